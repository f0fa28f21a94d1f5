"""What `meta.json` says of a checkpoint. Its weights and optimiser state: `saving.py`."""

from __future__ import annotations

import torch

from raytrain.checkpoints import versions
from raytrain.training import transforms
from raytrain.training.job import Job
from raytrain.training.state import Metrics, TrainState

# Stands in every checkpoint until thresholds are fitted on predictions: the lesson's own.
DEFAULT_THRESHOLD = 0.2


def checkpoint_meta(
    job: Job, state: TrainState, number: int, epochs: int, steps: int = 0
) -> Metrics:
    """What `meta.json` of a checkpoint says, after whole epochs of a stage and some steps of the
    next epoch.
    """
    recipe = job.recipe
    tiles = job.dataset.tile_format
    values = recipe.model_dump(mode="json")
    return {
        versions.KEY: versions.written_version(extended=not tiles.is_plain),
        "recipe": values,
        "stage": number,
        "epoch": epochs,
        "stage_name": recipe.stage_names[number - 1],
        "size": job.stage(number).size,
        "epoch_steps": steps,
        "step": state.history.step + steps,
        "arch": recipe.model.arch,
        "classes": job.dataset.classes,
        "task": job.task.name,
        "normalize": values["data"]["normalize"],
        **tiles.content(),
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
