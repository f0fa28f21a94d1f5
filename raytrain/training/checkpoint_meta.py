"""What `meta.json` says of a checkpoint. Its weights and optimiser state: `saving.py`."""

from __future__ import annotations

import torch

from raytrain.checkpoints import versions
from raytrain.data.dataset import extensions
from raytrain.training import transforms
from raytrain.training.job import Job
from raytrain.training.state import Metrics, TrainState


def checkpoint_meta(
    job: Job, state: TrainState, number: int, epochs: int, steps: int = 0
) -> Metrics:
    """What `meta.json` of a checkpoint says, after whole epochs of a stage and some steps of the
    next epoch.
    """
    recipe = job.recipe
    score = job.task.SCORE
    value = None  # within an epoch nothing was judged yet
    if not steps:
        value = state.history.epochs[-1].scores[score.key]
    values = recipe.model_dump(mode="json")
    return {
        versions.KEY: versions.written_version(extended=bool(extensions(job.dataset.manifest))),
        "recipe": values,
        "stage": number,
        "epoch": epochs,
        "stage_name": recipe.stage_names[number - 1],
        "size": job.stage(number).size,
        "epoch_steps": steps,
        "step": state.history.step + steps,
        "arch": recipe.model.arch,
        "classes": job.dataset.classes,
        "task": job.dataset.task,
        "normalize": values["data"]["normalize"],
        **job.dataset.tile_format.content(),
        "precision": recipe.train.precision,
        "window": job.tiles.window,
        "resize": {"stored_size": job.tiles.size, "rule": transforms.RESIZE_RULE},
        **job.task.CHECKPOINT_FACTS,
        "dataset": job.dataset.path,
        "dataset_hash": job.dataset.hash,
        "split": recipe.data.split,
        "split_hash": job.dataset.split_hash(recipe.data.split),
        "parent": job.start.parent,
        "metric": score.key,
        "score": value,
        score.key: value,
        "lr": state.lr,
        "lr_scale": state.lr_scale,
        "ema_updates": state.ema.updates if state.ema else 0,
        "world": job.worker.world,
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__},
    }
