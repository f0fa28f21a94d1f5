"""Stages as runs of their own, named by their content, so that searches share them. No ray.

    <storage>/stages/<key>/                 a run directory of one stage
    <storage>/stages/<key>/outcome.json     what came of it, written last

Each stage starts from the checkpoint of the stage before it. Such a chain has the bits of one run
on a CPU: seeds and names count over the whole list of stages. The checkpoint of a stage has the
lesson's name here, such as stage-1-256: searches that share the stage may call it otherwise.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from raytrain import registry, runs, storage
from raytrain.checkpoints import layout, reading
from raytrain.checkpoints.history import read_epochs
from raytrain.config import Recipe
from raytrain.data.dataset import Dataset
from raytrain.errors import DivergedError
from raytrain.evaluation import predictions
from raytrain.runlock import held
from raytrain.training.state import Metrics

logger = logging.getLogger(__name__)

# Below the storage path. No run may have this name.
FOLDER = runs.STAGES
FILE = "outcome.json"
COMPLETE = "complete"
DIVERGED = "diverged"

# Trains the one selected stage of a recipe in a run directory, as `loop.fit` does. Its metrics also
# hold `machine`, see `machine_of`.
Train = Callable[[Recipe, str], Metrics]


@dataclass(frozen=True)
class Plan:
    """A stage to train.

    Attributes:
        key: names it by its content.
        number: of the stage in its whole list, from 1.
        recipe: with the list cut after the stage, which alone is selected. It starts from the
            checkpoint of the stage before.
    """

    key: str
    number: int
    recipe: Recipe

    @property
    def path(self) -> str:
        """Its run directory."""
        return storage.join(self.recipe.storage, self.key)

    @property
    def checkpoint(self) -> str:
        """Path of the checkpoint that it leaves behind."""
        return storage.join(self.path, "checkpoints", self.recipe.stage_names[-1])


@dataclass(frozen=True)
class Outcome:
    """What came of a stage.

    Attributes:
        state: `COMPLETE` or `DIVERGED`.
        scores: of its last epoch: the metrics of the task, `valid_loss`, metrics of the user's own,
            and the held-out score under each decision rule. Empty for a stage that diverged.
        seconds: that its epochs took.
        epochs: number of epochs that were trained.
        reason: why it diverged.
        machine: on which it was trained, see `machine_of`.
    """

    state: str
    scores: dict[str, float]
    seconds: float
    epochs: int
    reason: str
    machine: dict[str, Any]


class Stopped(Exception):
    """A signal stopped the training of a stage, which goes on from its checkpoint.

    Args:
        reason: name of the signal.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def plans(recipe: Recipe, keys: Sequence[str]) -> tuple[Plan, ...]:
    """Returns the stages of a chain, each of which starts from the one before.

    Args:
        recipe: complete, with absolute paths. Its own `init_from` is where the first stage starts.
        keys: of the stages that it selects.
    """
    root = storage.join(recipe.storage, FOLDER)
    recipe = recipe.without_stage_names()
    found: list[Plan] = []
    for (number, _), key in zip(recipe.selected_stages(), keys, strict=True):
        changes: dict[str, Any] = {
            "stages": recipe.stages[:number],
            "select": str(number),
            "storage": root,
        }
        if found:
            # The classes are in the order of the dataset since the first stage.
            changes |= {"init_from": found[-1].checkpoint, "remap_labels": False}
        found.append(Plan(key, number, recipe.model_copy(update=changes)))
    return tuple(found)


def find(plan: Plan) -> Outcome | None:
    """Returns the outcome of a stage; None where it has none, or its checkpoint is gone."""
    return outcome_in(plan.path, storage.name_of(plan.checkpoint))


def outcome_in(path: str, name: str) -> Outcome | None:
    """As `find`, for a caller that has no plan.

    Args:
        path: of the stage's run directory.
        name: of the checkpoint that it leaves behind.
    """
    try:
        content = storage.read_json(storage.join(path, FILE))
        found = Outcome(**content)
    except (FileNotFoundError, ValueError, TypeError):
        return None
    if found.state == DIVERGED:
        return found
    if not storage.exists(storage.join(path, "checkpoints", name, layout.MANIFEST)):
        return None
    return found


def forget_if_damaged(plan: Plan) -> bool:
    """Removes the outcome of a stage whose checkpoint is damaged, so that it is trained again.

    Returns:
        Whether it was damaged.

    Raises:
        TakenError: another process trains the stage already.
    """
    try:
        reading.read(plan.checkpoint)
        return False
    except reading.DamagedCheckpoint as error:
        logger.warning(f"stage {plan.number} is trained again: {error}")
    with held(plan.path):
        storage.remove(storage.join(plan.path, FILE))
    return True


def train(plan: Plan, dataset: Dataset, function: Train) -> Outcome:
    """Trains a stage, or goes on from its latest checkpoint; one that has an outcome stays.

    Args:
        plan: of the stage.
        dataset: opened.
        function: does the training.

    Raises:
        TakenError: another process trains it.
        Stopped: a signal stopped it.
        RaytrainError: as `loop.fit`, except for a divergence, which is an outcome.
    """
    with held(plan.path) as lock:
        known = find(plan)
        if known is not None:
            _remove_intermediate(plan)
            return known
        _begin(plan, dataset)
        try:
            metrics = function(plan.recipe, plan.path)
            if "stopped" in metrics:
                raise Stopped(metrics["stopped"])
            found = _complete(plan, dataset, metrics)
        except DivergedError as error:
            found = _diverged(plan, error)
        # A process that was thought to be dead must not overwrite what its successor wrote.
        lock.check()
        storage.write_json(storage.join(plan.path, FILE), asdict(found))
        _remove_intermediate(plan)
        return found


def _begin(plan: Plan, dataset: Dataset) -> None:
    config = storage.join(plan.path, "config.yaml")
    if not storage.exists(config):
        runs.create(plan.recipe, plan.key, dataset)
        return
    # Dataset or storage may have been moved since.
    storage.write_text(config, plan.recipe.to_yaml())


def _complete(plan: Plan, dataset: Dataset, metrics: Metrics) -> Outcome:
    scores = {}
    for name, value in metrics.items():
        if isinstance(value, float):
            scores[name] = value
    scores |= rule_scores(storage.join(plan.path, "predictions.parquet"), dataset.task)
    seconds, epochs = _time(plan)
    return Outcome(COMPLETE, scores, seconds, epochs, "", metrics["machine"])


def _diverged(plan: Plan, error: DivergedError) -> Outcome:
    seconds, epochs = _time(plan)
    return Outcome(DIVERGED, {}, seconds, epochs, error.what, machine_of(None))


def _time(plan: Plan) -> tuple[float, int]:
    """Seconds and number of the epochs that the history holds."""
    rows = read_epochs(plan.path)
    return sum(row.seconds for row in rows), len(rows)


def rule_scores(path: str, task: str) -> dict[str, float]:
    """Returns the held-out score of saved predictions under each decision rule.

    They are the numbers that `raytrain evaluate` shows for the same file.

    Args:
        path: of the predictions.
        task: of the dataset.
    """
    by_rule = registry.evaluation(task).tile_scores(predictions.read(path))
    return {name: float(scores.mean()) for name, scores in by_rule.items()}


def machine_of(device: torch.device | None) -> dict[str, Any]:
    """Returns what may tell the last bits of one machine from those of another.

    Args:
        device: that trains; None where that is not known.
    """
    found = {
        "host": platform.node(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "gpu": None,
        "cuda": torch.version.cuda,
    }
    if device is not None and device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def _remove_intermediate(plan: Plan) -> None:
    """Removes the checkpoints that a complete stage does not need any more."""
    for name in (layout.LAST, layout.BEST):
        storage.remove(storage.join(plan.path, "checkpoints", name))
