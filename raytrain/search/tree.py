"""Trials as a tree of the stages that they share, for the terminal. No torch, no ray."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raytrain.config import LAYER_GROUPS, Recipe, Stage
from raytrain.search.chains import Chain

# The lines before a branch, before the last one, and before what hangs below each.
_BRANCH = "├─ "
_LAST = "└─ "
_BELOW_BRANCH = "│  "
_BELOW_LAST = "   "


@dataclass(frozen=True)
class Entry:
    """A trial of the tree.

    Attributes:
        label: such as "trial 3" or "rerun 1 of trial 3".
        chain: its stages.
        stages: a description of each stage; that of the first also names what is set outside the
            stages.
    """

    label: str
    chain: Chain
    stages: Sequence[str]


@dataclass(frozen=True)
class Totals:
    """Costs of some trials, where the given recipe costs 1.

    Attributes:
        trials: how many there are.
        alone: cost if each trial trained all its stages.
        shared: cost if no stage is trained twice.
    """

    trials: int
    alone: float
    shared: float

    @property
    def saved(self) -> float:
        """The share that is saved, from 0 to 1."""
        if self.alone == 0:
            return 0.0
        return 1 - self.shared / self.alone

    @property
    def line(self) -> str:
        """For the terminal."""
        return (
            f"{self.trials} trials cost {self.alone:.2f} alone and {self.shared:.2f} shared: "
            f"{100 * self.saved:.0f} % saved (the given recipe costs 1)"
        )


@dataclass
class _Node:
    """A stage of the tree.

    Attributes:
        text: its description.
        cost: of the stage alone.
        labels: of the trials that end with it.
        below: the stages that follow it, by key.
    """

    text: str
    cost: float
    labels: list[str] = field(default_factory=list)
    below: dict[str, _Node] = field(default_factory=dict)


def lines(entries: Iterable[Entry]) -> list[str]:
    """Returns a line for each stage: its description, its cost, and the trials that end there.

    Stages stand in the order of the trials.
    """
    rows = _rows(_roots(entries), "", top=True)
    # All costs stand in one column.
    width = max((len(text) for text, _ in rows), default=0)
    found = []
    for text, node in rows:
        line = f"{text:{width}}  {node.cost:6.3f}  {', '.join(node.labels)}"
        found.append(line.rstrip())
    return found


def totals(entries: Iterable[Entry]) -> Totals:
    """Returns what the trials cost alone, and with shared stages."""
    trials = 0
    alone = 0.0
    shared = 0.0
    trained: set[str] = set()
    for entry in entries:
        trials += 1
        alone += entry.chain.cost
        shared += entry.chain.cost_left(trained)
        trained |= set(entry.chain.keys)
    return Totals(trials, alone, shared)


def stage_in_words(recipe: Recipe, number: int) -> str:
    """Describes a stage in a few words, such as "128 px x 5, frozen, lr 0.01".

    Args:
        recipe: that has the stage.
        number: of the stage, from 1.
    """
    stage = recipe.stage(number)
    size = f"{stage.size}"
    if stage.start_size is not None:
        size = f"{stage.start_size} to {stage.size}"
    parts = [f"{size} px x {stage.epochs}"]
    if stage.frozen_groups == LAYER_GROUPS - 1:
        parts.append("frozen")
    elif stage.frozen_groups:
        parts.append(f"{stage.frozen_groups} of {LAYER_GROUPS} groups frozen")
    parts.append(f"lr {_rate_in_words(recipe, stage)}")
    if stage.batch_size is not None:
        parts.append(f"batch {stage.batch_size}")
    if stage.augment is not None:
        parts += _augment_in_words(recipe, stage)
    return ", ".join(parts)


def chain_in_words(recipe: Recipe, shared: Mapping[str, Any]) -> tuple[str, ...]:
    """Describes each stage that a recipe trains.

    Args:
        recipe: of a trial.
        shared: what the trial has drawn outside the stages, by path. It stands before the first
            stage, because it belongs to all of them.
    """
    parts = []
    for number, _ in recipe.selected_stages():
        parts.append(stage_in_words(recipe, number))
    if shared:
        settings = ", ".join(f"{path} {_in_words(value)}" for path, value in shared.items())
        parts[0] = f"{settings}: {parts[0]}"
    return tuple(parts)


def _in_words(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_in_words(part)}" for name, part in value.items())
    return str(value)


def _rate_in_words(recipe: Recipe, stage: Stage) -> str:
    # What a range test will find is not known yet.
    if recipe.lr is not None:
        return recipe.lr
    if isinstance(stage.lr, tuple):
        first, second = stage.lr
        return f"{first:.3g} to {second:.3g}"
    return f"{stage.lr:.3g}"


def _augment_in_words(recipe: Recipe, stage: Stage) -> list[str]:
    """The random changes of a stage that differ from those of the recipe."""
    common = recipe.data.augment.model_dump()
    own = recipe.augment(stage).model_dump()
    parts = []
    for name, value in own.items():
        if value != common[name]:
            parts.append(f"{name} {_in_words(value)}")
    return parts


def _roots(entries: Iterable[Entry]) -> dict[str, _Node]:
    """The first stages by key, with all others below them."""
    roots: dict[str, _Node] = {}
    for entry in entries:
        chain = entry.chain
        level = roots
        node = None
        for key, text, cost in zip(chain.keys, entry.stages, chain.costs, strict=True):
            # A trial that shares the stage describes it with the same words.
            node = level.setdefault(key, _Node(text, cost))
            level = node.below
        if node is not None:
            node.labels.append(entry.label)
    return roots


def _rows(level: dict[str, _Node], indent: str, *, top: bool = False) -> list[tuple[str, _Node]]:
    """The text of each stage with its place in the tree, from top to bottom.

    Args:
        level: stages after the same one.
        indent: of all lines below that one.
        top: whether they are first stages, which hang from nothing.
    """
    rows = []
    nodes = list(level.values())
    for number, node in enumerate(nodes, 1):
        branch, below = _BRANCH, _BELOW_BRANCH
        if number == len(nodes):
            branch, below = _LAST, _BELOW_LAST
        if top:
            branch, below = "", ""
        rows.append((f"{indent}{branch}{node.text}", node))
        rows += _rows(node.below, indent + below)
    return rows
