"""The line that is logged after each epoch: its numbers, and when the run will end."""

from __future__ import annotations

import time

from raytrain.checkpoints.history import EpochRow
from raytrain.config import LAYER_GROUPS
from raytrain.log import duration
from raytrain.registry import Evaluation
from raytrain.training import waits
from raytrain.training.job import Job
from raytrain.training.pace import Paces

# A line has many columns.
SHORT_NAMES = {"accuracy": "acc", "balanced accuracy": "balanced", "top-5 accuracy": "top-5"}


def line_of_epoch(job: Job, row: EpochRow, paces: Paces) -> str:
    """The line of an epoch; below it, where threads waited much for a CPU, which."""
    stage = job.stage(row.stage)
    line = formatted(
        row,
        stages=len(job.recipe.stages),
        epochs=stage.epochs,
        frozen=stage.frozen_groups == LAYER_GROUPS - 1,
        remaining_s=_remaining_seconds(job, row),
        task=job.task,
    )
    for name in job.own_metrics:
        line += f"  {name} {row.scores[name]:.4f}"
    contention = waits.sentence(paces.waits)
    if not contention:
        return line
    return f"{line}\n  {contention}"


def _remaining_seconds(job: Job, row: EpochRow) -> float:
    """The epochs to come, each at this epoch's seconds times the ratio of pixels."""
    last = job.recipe.selected[1]
    pixels = 0
    for number in range(row.stage, last + 1):
        stage = job.stage(number)
        done = row.epoch if number == row.stage else 0
        pixels += (stage.epochs - done) * stage.size**2
    return row.seconds * pixels / row.size**2


def formatted(
    row: EpochRow,
    *,
    stages: int,
    epochs: int,
    frozen: bool,
    remaining_s: float,
    task: Evaluation,
) -> str:
    """Returns the line that is logged after each epoch.

    Args:
        row: the epoch.
        stages: number of stages of the recipe.
        epochs: number of epochs of this stage.
        frozen: whether only the head trains.
        remaining_s: estimated seconds until the end of the run.
        task: which scores there are, and which one says that an epoch is the best.
    """
    # All variants have the same width, so that the columns of successive lines are aligned.
    state = "unfrozen"
    if frozen:
        state = "frozen  "
    end = time.localtime(time.time() + remaining_s)
    parts = [
        f"stage {row.stage}/{stages}",
        f"{row.size:>3} px {state}",
        f"epoch {row.epoch}/{epochs}",
        f"lr {row.lr:.1e}",
        f"train {row.train_loss:.4f}",
        f"valid {row.valid_loss:.4f}",
        *_scores(row, task),
        f"{row.images_per_s:.0f} img/s",
        duration(row.seconds),
        f"end {time.strftime('%H:%M:%S', end)} (in {duration(remaining_s)})",
    ]
    return "  ".join(parts)


def _scores(row: EpochRow, task: Evaluation) -> list[str]:
    """The scores of an epoch with their names; the one that says `best` has a mark."""
    score = task.SCORE
    parts = []
    for key, name in task.METRICS.items():
        mark = ""
        if key == score.key:
            mark = "      "
            if row.scores[key] == row.scores[score.best_key]:
                mark = " *best"
        parts.append(f"{SHORT_NAMES.get(name, name)} {row.scores[key]:.4f}{mark}")
    return parts
