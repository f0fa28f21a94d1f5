"""Runs a whole schedule in a process of its own and times it. No Ray.

    python -m raytrain.bench.schedule DATASET RECIPE.json RUN

trains every stage of the recipe as `raytrain train` does: with validation after each epoch,
checkpoints, history and predictions. It writes the report too, if the packages for it are
installed.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from raytrain import registry
from raytrain.bench.figures import Figure
from raytrain.bench.sides import alone
from raytrain.checkpoints.history import read_epochs
from raytrain.config import Recipe, Stage
from raytrain.data.dataset import Dataset, open_dataset
from raytrain.errors import ConfigError
from raytrain.log import printed
from raytrain.training.loop import fit
from raytrain.training.services import Hooks
from raytrain.training.state import Metrics
from raytrain.worker import Worker

# By its full name: as a program of its own this module is called __main__, and messages of that
# name would not be printed.
logger = logging.getLogger("raytrain.bench.schedule")


# The package that checkpoints are written with.
NEEDED = "safetensors"
# The package that TensorBoard events are written with, after everything else.
EVENTS_PACKAGE = "tensorboardX"
# Peak learning rates of the lesson: one for the head of a frozen network, and for an unfrozen one
# a pair from its first layer group to its last.
FROZEN_LR = 0.01
UNFROZEN_LR = (1e-5, 0.002)


def can_write_checkpoints() -> bool:
    """Whether the package that checkpoints are written with is installed."""
    return importlib.util.find_spec(NEEDED) is not None


def stages(sizes: list[tuple[int, int]], epochs: int) -> tuple[Stage, ...]:
    """The stages of the lesson: each size first frozen, then unfrozen.

    The peak rates are halved from the second size on, except that of the first layer group.

    Args:
        sizes: (side of the tiles in pixels, batch size) in order.
        epochs: of each stage.
    """
    made = []
    for number, (size, batch) in enumerate(sizes):
        scale = 1.0
        if number > 0:
            scale = 0.5
        low, high = UNFROZEN_LR
        frozen_lr = scale * FROZEN_LR
        unfrozen_lr = (low, scale * high)
        made.append(Stage(size=size, epochs=epochs, freeze=True, lr=frozen_lr, batch_size=batch))
        made.append(Stage(size=size, epochs=epochs, freeze=False, lr=unfrozen_lr, batch_size=batch))
    return tuple(made)


def whole_schedule(recipe: Recipe, dataset: Dataset) -> list[Figure]:
    """Runs a schedule once and times it from its command to the end of its process.

    Args:
        recipe: all of its stages are run; set `model.weights` to none where there is no internet.
        dataset: tiles that are not in the cache are decoded first, which is part of the time.

    Raises:
        ConfigError: the package that checkpoints are written with is not installed.
        RuntimeError: the schedule failed.
    """
    if not can_write_checkpoints():
        raise ConfigError(
            f"the package {NEEDED} is not installed",
            "a schedule writes checkpoints with it",
            f"pip install {NEEDED}",
        )
    with tempfile.TemporaryDirectory(prefix="raytrain-bench-") as directory:
        path = Path(directory) / "recipe.json"
        path.write_text(recipe.model_dump_json())
        run = f"{directory}/run"
        program = [sys.executable, "-u", "-m", "raytrain.bench.schedule"]
        began = time.monotonic()
        with subprocess.Popen(
            [*program, dataset.path, str(path), run], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            first_step_s = _log_lines(process.stdout, began)
        seconds = time.monotonic() - began
        if process.returncode != 0:
            raise RuntimeError(
                f"the schedule ended with exit code {process.returncode}; "
                "its own message is printed above"
            )
        return _figures(recipe, dataset, run, seconds, first_step_s)


def _log_lines(lines: Iterable[str], began: float) -> float:
    """Logs the lines of the schedule as they come.

    Args:
        lines: its standard output.
        began: moment of the monotonic clock at which it was started.

    Returns:
        Seconds until the first optimiser step was done; 0 if there was none.
    """
    first_step_s = 0.0
    for line in lines:
        logger.info(f"  {line.rstrip()}")
        # The training loop logs this once, after its first step.
        if ": first step of " in line:
            first_step_s = time.monotonic() - began
    return first_step_s


def _figures(
    recipe: Recipe, dataset: Dataset, run: str, seconds: float, first_step_s: float
) -> list[Figure]:
    epochs = read_epochs(run)
    # Each size once, in the order of the stages.
    sizes = dict.fromkeys(str(stage.size) for stage in recipe.stages)
    about = (
        f"{recipe.model.arch}, {dataset.rows} tiles, {len(epochs)} epochs, {', '.join(sizes)} px"
    )
    first_about = f"{about}; decodes what is not cached"
    epoch_seconds = tuple(row.seconds for row in epochs)
    rates = tuple(row.images_per_s for row in epochs)
    score = registry.evaluation(dataset.task).SCORE
    scores = tuple(row.scores[score.key] for row in epochs)
    first = (first_step_s,)
    return [
        Figure("schedule", "command to last file", "s", (seconds,), about),
        Figure("schedule.first-step", "command to first step", "s", first, first_about),
        Figure("schedule.epoch", "an epoch with validation and files", "s", epoch_seconds, about),
        Figure("schedule.rate", "training of an epoch", "tiles/s", rates, about),
        Figure(f"schedule.{score.key}", f"{score.name} after each epoch", "", scores, about),
    ]


def run_schedule(recipe: Recipe, dataset: Dataset, run: str) -> None:
    """Trains and writes the report. Whatever needs a missing package is left out, with a message.

    Args:
        recipe: complete.
        dataset: an opened dataset with the recipe's split.
        run: directory of the run.
    """
    metrics = fit_without_events(recipe, dataset, run, alone(recipe), Hooks())
    if metrics is None:
        _log_left_out("TensorBoard events", EVENTS_PACKAGE)
    try:
        # Imported here, because it needs more packages than training does.
        from raytrain.report.conclude import conclude

        report = conclude(run).report
    except ModuleNotFoundError as error:
        _log_left_out("the report", error.name)
        return
    logger.info(f"report: {report}")


def fit_without_events(
    recipe: Recipe, dataset: Dataset, run: str, worker: Worker, hooks: Hooks
) -> Metrics | None:
    """Runs `fit` also where the package for TensorBoard events is missing.

    `fit` writes its events last, so everything else is done by then.

    Returns:
        The metrics that `fit` returns, or None where it could not write its events.
    """
    try:
        return fit(recipe, dataset, run, worker, hooks)
    except ModuleNotFoundError as error:
        if error.name != EVENTS_PACKAGE:
            raise
        return None


def _log_left_out(what: str, package: str | None) -> None:
    logger.info(f"{what} left out: the package {package} is not installed")


def main(dataset: str, recipe: str, run: str) -> None:
    """Runs the schedule of a recipe; all three are paths."""
    with printed():
        settings = json.loads(Path(recipe).read_text())
        run_schedule(Recipe.model_validate(settings), open_dataset(dataset), run)


if __name__ == "__main__":
    main(*sys.argv[1:])
