"""The stages of all trials as a tree in which each shared stage stands once. No torch, no ray.

`layout` gives each trial a row and each stage a cell that spans the rows of the trials that share
it. Trials with the best ends come first, reruns last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from raytrain.evaluation.score import Score
from raytrain.search.table import Kind, Trial


@dataclass(frozen=True)
class Cell:
    """A stage in the layout.

    Attributes:
        trial: the first one that has it.
        depth: number of the stage among those that trials train, from 0.
        first_row: of the trials that share it, from 0.
        rows: how many trials share it.
        score: the objective after it; None where it diverged.
    """

    trial: Trial
    depth: int
    first_row: int
    rows: int
    score: float | None


@dataclass(frozen=True)
class Layout:
    """The tree as cells.

    Attributes:
        cells: of all stages with an outcome.
        trials: the trial of each row.
        first_stage: number of the first stage that trials train.
    """

    cells: tuple[Cell, ...]
    trials: tuple[Trial, ...]
    first_stage: int = 1

    @property
    def depth(self) -> int:
        """Number of stages of the longest chain."""
        return max((cell.depth + 1 for cell in self.cells), default=0)


# Lower for trials that come first: whether it is a rerun, then how bad its end is.
Rank = tuple[bool, float]


@dataclass
class _Node:
    """A stage of the tree, with the trials that end there and the stages that follow."""

    trial: Trial
    depth: int
    ends: list[Trial] = field(default_factory=list)
    below: dict[str, _Node] = field(default_factory=dict)
    # Of the best trial that goes through it.
    rank: Rank = (True, math.inf)


def layout(trials: Sequence[Trial], score: Score, first_stage: int = 1) -> Layout:
    """Lays out the stages of some trials that have an outcome.

    Args:
        trials: those without any stage are left out.
        score: the objective.
        first_stage: number of the first stage that trials train.
    """
    roots = _roots(trials, score)
    cells: list[Cell] = []
    rows: list[Trial] = []
    for node in _in_order(roots):
        _place(node, cells, rows, score)
    return Layout(tuple(cells), tuple(rows), first_stage)


def _roots(trials: Sequence[Trial], score: Score) -> dict[str, _Node]:
    roots: dict[str, _Node] = {}
    for trial in trials:
        level = roots
        rank = _rank(trial, score)
        node = None
        for depth in range(len(trial.parts)):
            node = level.setdefault(trial.keys[depth], _Node(trial, depth))
            node.rank = min(node.rank, rank)
            level = node.below
        if node is not None:
            node.ends.append(trial)
    return roots


def _rank(trial: Trial, score: Score) -> Rank:
    rerun = trial.kind is Kind.RERUN
    if trial.score is None:
        return rerun, math.inf
    if score.higher_is_better:
        return rerun, -trial.score
    return rerun, trial.score


def _in_order(level: dict[str, _Node]) -> list[_Node]:
    return sorted(level.values(), key=lambda node: (node.rank, node.trial.number))


def _place(node: _Node, cells: list[Cell], rows: list[Trial], score: Score) -> None:
    first_row = len(rows)
    for below in _in_order(node.below):
        _place(below, cells, rows, score)
    # Trials that end here stand below those that go on.
    rows.extend(sorted(node.ends, key=lambda trial: (_rank(trial, score), trial.number)))
    part = node.trial.parts[node.depth]
    cells.append(Cell(node.trial, node.depth, first_row, len(rows) - first_row, part.score))
