"""A whole schedule, from the command to the last file, in a process of its own. No ray.

    python -m raytrain.bench.schedule DATASET RECIPE.json RUN

trains every stage of the recipe with validation and F2 after each epoch, as `raytrain train` does, checkpoints, history
and predictions included, and writes the report where its packages are installed.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raytrain.bench.figures import Figure
from raytrain.bench.sides import alone
from raytrain.checkpoints.history import read_epochs
from raytrain.config import Recipe, Stage
from raytrain.data.dataset import Dataset, open_dataset
from raytrain.errors import ConfigError
from raytrain.log import printed
from raytrain.training.hooks import Hooks
from raytrain.training.loop import fit

logger = logging.getLogger(__name__)


NEEDED = "safetensors"
# Peak rates of the lesson: frozen, and unfrozen as a pair over the layer groups.
FROZEN_LR, UNFROZEN_LR = 0.01, (1e-5, 0.002)


def stages(sizes: list[tuple[int, int]], epochs: int) -> tuple[Stage, ...]:
    """The lesson's list for some (size, batch): each frozen, then unfrozen, for so many epochs; half the rates at later sizes."""
    made = []
    for number, (size, batch) in enumerate(sizes):
        low, high = UNFROZEN_LR
        scale = 1.0 if number == 0 else 0.5
        made.append(
            Stage(size=size, epochs=epochs, freeze=True, lr=scale * FROZEN_LR, batch_size=batch)
        )
        made.append(
            Stage(size=size, epochs=epochs, freeze=False, lr=(low, scale * high), batch_size=batch)
        )
    return tuple(made)


def whole_schedule(recipe: Recipe, dataset: Dataset) -> list[Figure]:
    """Runs the schedule once and times it from the command to the end of its process; its tiles are decoded in it.

    Args:
        recipe: all its stages are run; `model.weights` is none where there is no internet.
        dataset: whose tiles may be in the cache or not: what is missing is decoded first.

    Raises:
        ConfigError: the package that checkpoints are written with is not installed.
    """
    if importlib.util.find_spec(NEEDED) is None:
        raise ConfigError(
            f"the package {NEEDED} is not installed",
            "a schedule writes checkpoints with it",
            f"pip install {NEEDED}",
        )
    with tempfile.TemporaryDirectory(prefix="raytrain-bench-") as directory:
        path, run = Path(directory) / "recipe.json", f"{directory}/run"
        path.write_text(recipe.model_dump_json())
        command = [
            sys.executable,
            "-u",
            "-m",
            "raytrain.bench.schedule",
            dataset.path,
            str(path),
            run,
        ]
        began = time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            first = _passed_on(process.stdout, began)
        seconds = time.monotonic() - began
        if process.returncode:
            raise RuntimeError(
                f"the schedule ended with exit code {process.returncode}; what it said stands above"
            )
        return _figures(recipe, dataset, run, seconds, first)


def _passed_on(lines: Any, began: float) -> float:
    """Says the lines of the process. Returns the seconds from `began` to its first optimiser step."""
    first = 0.0
    for line in lines:
        logger.info(f"  {line.rstrip()}")
        if ": first step of " in line:
            first = time.monotonic() - began
    return first


def _figures(
    recipe: Recipe, dataset: Dataset, run: str, seconds: float, first: float
) -> list[Figure]:
    epochs = read_epochs(run)
    sizes = ", ".join(f"{size}" for size in dict.fromkeys(stage.size for stage in recipe.stages))
    about = f"{recipe.model.arch}, {dataset.rows} tiles, {len(epochs)} epochs, {sizes} px"
    return [
        Figure("schedule", "command to last file", "s", (seconds,), about),
        Figure(
            "schedule.first-step",
            "command to first step",
            "s",
            (first,),
            f"{about}; decodes what is not cached",
        ),
        Figure(
            "schedule.epoch",
            "an epoch with validation and files",
            "s",
            tuple(row.seconds for row in epochs),
            about,
        ),
        Figure(
            "schedule.rate",
            "training of an epoch",
            "tiles/s",
            tuple(row.images_per_s for row in epochs),
            about,
        ),
        Figure("schedule.f2", "F2 after each epoch", "", tuple(row.f2 for row in epochs), about),
    ]


def run_schedule(recipe: Recipe, dataset: Dataset, run: str) -> None:
    """Trains and writes the report. What needs a package that is missing is left out, and said."""
    _without(
        lambda: fit(recipe, dataset, run, alone(recipe), Hooks()),
        "tensorboardX",
        "TensorBoard events",
    )

    def report() -> None:
        from raytrain.report.conclude import conclude

        logger.info(f"report: {conclude(run).report}")

    _without(report, "", "the report")


def _without(do: Callable[[], object], package: str, what: str) -> None:
    """Does it, up to the import of a package (any with an empty name) that is not installed."""
    try:
        do()
    except ModuleNotFoundError as error:
        if package and error.name != package:
            raise
        logger.info(f"{what} left out: the package {error.name} is not installed")


if __name__ == "__main__":
    path, recipe_path, run_path = sys.argv[1:]
    with printed():
        run_schedule(
            Recipe.model_validate(json.loads(Path(recipe_path).read_text())),
            open_dataset(path),
            run_path,
        )
