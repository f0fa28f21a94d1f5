"""What training changes, and the metrics that callers hear of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from raytrain import storage
from raytrain.checkpoints.history import EpochRow, History
from raytrain.checkpoints.layout import LAST
from raytrain.training.ema import Ema
from raytrain.training.job import Job
from raytrain.training.optim import Rate

Metrics = dict[str, Any]


@dataclass
class TrainState:
    """What training changes.

    Args:
        model: of this rank, unwrapped.
        ema: averages of its weights, where the recipe asks for them.
        history: epochs and steps so far.
        lr_scale: factor on all peak rates, below 1 after a divergence.
        lr: peak rate of the stage that runs, `lr_scale` included.
        newest: path of the checkpoint that the run would resume from.
        stepped: whether this process has done a step.
    """

    model: nn.Sequential
    ema: Ema | None
    history: History
    lr_scale: float
    lr: Rate | None = None
    newest: str | None = None
    stepped: bool = False

    @property
    def judged_model(self) -> nn.Module:
        """The network that validation judges: the averages where there are any."""
        return self.ema.module if self.ema else self.model

    @property
    def averages(self) -> nn.Module | None:
        """The averaged network, as `checkpoints.writing.snapshot` takes it."""
        return self.ema.module if self.ema else None


def last_metrics(job: Job, state: TrainState) -> Metrics:
    """The metrics of the last epoch; empty before the first one."""
    if not state.history.epochs:
        return {}
    return epoch_metrics(job, state.history.epochs[-1])


def epoch_metrics(job: Job, row: EpochRow) -> Metrics:
    """What callers hear of an epoch."""
    return {
        "stage": row.stage,
        "epoch": row.epoch,
        **{key: row.scores[key] for key in (*job.task.METRICS, *job.own_metrics)},
        "valid_loss": row.valid_loss,
        "train_loss": row.train_loss,
        "checkpoint": storage.join(job.path, "checkpoints", LAST),
    }
