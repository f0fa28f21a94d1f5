"""What training changes, and what a checkpoint holds of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from raytrain import storage
from raytrain.checkpoints import versions
from raytrain.checkpoints.history import EpochRow, History
from raytrain.checkpoints.layout import LAST
from raytrain.training import transforms
from raytrain.training.ema import Ema
from raytrain.training.job import Job
from raytrain.training.optim import Rate

Metrics = dict[str, Any]
# Stands in every checkpoint until thresholds are fitted on predictions: the lesson's own.
DEFAULT_THRESHOLD = 0.2


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


def checkpoint_meta(
    job: Job, state: TrainState, number: int, epochs: int, steps: int = 0
) -> Metrics:
    """What `meta.json` of a checkpoint says, after whole epochs of a stage and some steps of the
    next epoch.
    """
    recipe = job.recipe
    return {
        versions.KEY: versions.VERSION,
        "recipe": recipe.model_dump(mode="json"),
        "stage": number,
        "epoch": epochs,
        "stage_name": recipe.stage_names[number - 1],
        "size": job.stage(number).size,
        "epoch_steps": steps,
        "step": state.history.step + steps,
        "arch": recipe.model.arch,
        "classes": job.dataset.classes,
        "task": job.task.name,
        "normalize": recipe.data.normalize,
        "precision": recipe.train.precision,
        "window": job.tiles.window,
        "resize": {"stored_size": job.tiles.size, "rule": transforms.RESIZE_RULE},
        "thresholds": {"default": DEFAULT_THRESHOLD},
        "dataset": job.dataset.path,
        "dataset_hash": job.dataset.hash,
        "split": recipe.data.split,
        "split_hash": job.dataset.split_hash(recipe.data.split),
        "parent": job.start.parent,
        # Within an epoch nothing was judged yet.
        "f2": None if steps else state.history.epochs[-1].f2,
        "lr": state.lr,
        "lr_scale": state.lr_scale,
        "ema_updates": state.ema.updates if state.ema else 0,
        "world": job.worker.world,
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__},
    }


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
        "f2": row.f2,
        "valid_loss": row.valid_loss,
        "accuracy": row.accuracy,
        "train_loss": row.train_loss,
        "checkpoint": storage.join(job.path, "checkpoints", LAST),
    }
