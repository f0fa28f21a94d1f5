"""What several parts of the check share: opened stages and whole runs. No Ray."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from raytrain.bench import schedule
from raytrain.bench.stage import OpenStage
from raytrain.bench.verdicts import Setting, Skip
from raytrain.config import Recipe
from raytrain.data.dataset import open_dataset
from raytrain.log import heard
from raytrain.training.services import Hooks
from raytrain.training.state import Metrics

PREFIX = "raytrain-check-"


@contextmanager
def temporary_directory() -> Iterator[str]:
    """A directory that exists as long as the context."""
    with tempfile.TemporaryDirectory(prefix=PREFIX) as directory:
        yield directory


@contextmanager
def opened_stage(
    setting: Setting, how: str, stages: list[dict[str, Any]], **changes: Any
) -> Iterator[OpenStage]:
    """Opens the first stage of a new run.

    Args:
        setting: of the check.
        how: execution of the network: eager or graphs; on a CPU always eager.
        stages: as in `Setting.recipe`.
        changes: as in `Setting.recipe`.

    Raises:
        RuntimeError: CUDA graphs were asked for and are not possible.
    """
    recipe = setting.recipe(stages, execution=setting.execution(how), **changes)
    with (
        temporary_directory() as run,
        heard(refuse_fallback),
        closing(OpenStage(recipe, open_dataset(setting.dataset), 1, setting.worker, run)) as opened,
    ):
        yield opened


def refuse_fallback(message: str) -> None:
    """Turns the log message of a stage that falls back to eager execution into an error.

    A stage that silently ran eagerly would prove nothing about graphs.

    Raises:
        RuntimeError: with the message.
    """
    # Both messages of raytrain.training.execution about a fallback begin like this.
    if message.startswith("CUDA graphs"):
        raise RuntimeError(message)


def whole_run(setting: Setting, recipe: Recipe, run: str, hooks: Hooks) -> Metrics:
    """Trains all stages of a recipe as `fit` does, with its checkpoints and history.

    Args:
        setting: of the check.
        recipe: complete.
        run: directory of the run.
        hooks: of the run.

    Returns:
        The metrics that `fit` returns; nothing where only TensorBoard events could not be written.

    Raises:
        Skip: the package that checkpoints are written with is not installed.
    """
    if not schedule.can_write_checkpoints():
        raise Skip(f"the package {schedule.NEEDED} is not installed")
    dataset = open_dataset(setting.dataset)
    metrics = schedule.fit_without_events(recipe, dataset, run, setting.worker, hooks)
    return metrics or {}
