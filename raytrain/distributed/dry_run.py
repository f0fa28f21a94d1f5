"""`train --dry-run`: everything that can be known without training, in this process, without Ray.

Resolves places, reads two batches, takes one step at every stage size and says what the run would be.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Any

import numpy as np
import ray
import torch

from raytrain.config import LAYER_GROUPS, Recipe, Stage
from raytrain.data.dataset import Dataset, decoded_images
from raytrain.distributed import gpus
from raytrain.distributed.cluster import cpus
from raytrain.distributed.memory import available, check_memory, needed
from raytrain.distributed.preflight import (
    FULL_CHECKPOINTS,
    check_group,
    check_recipe,
    checkpoint_bytes,
    free_bytes,
    use_gpu,
)
from raytrain.log import duration
from raytrain.models import layer_groups, networks
from raytrain.models.precision import agreed_precision, dtype_of, keep_fp32
from raytrain.tiles import cache, placement, sampling
from raytrain.tiles.feeds import CacheFeed, Source
from raytrain.training import optim
from raytrain.training.step import Stepper
from raytrain.worker import Worker

logger = logging.getLogger(__name__)


def dry_run(recipe: Recipe) -> None:
    """Checks a recipe and prints its plan.

    Raises:
        RaytrainError: as `train` would, before anything is started.
    """
    check_group(recipe)
    recipe, dataset = check_recipe(recipe)
    check_memory(recipe, len(dataset.classes))
    device = _device(recipe)
    keep_fp32()
    precision = agreed_precision(recipe.train.precision, device, world=1)
    recipe = recipe.model_copy(
        update={"train": recipe.train.model_copy(update={"precision": precision})}
    )
    networks.check_batch_norm(recipe.model.batch_norm, device.type)
    model = networks.build(
        recipe.model.arch, len(dataset.classes), recipe.model.dropout, recipe.model.batch_norm
    )
    networks.to_device(model, device, dtype_of(precision))
    size = cache.stored_size(dataset.tile_size, [stage.size for stage in recipe.stages])
    lines = [
        *_plan(recipe, dataset, model),
        placement.planned_tiles(dataset, size, device, recipe.tiles),
    ]
    for line in lines:
        logger.info(line)
    first, last = recipe.selected
    selected = list(enumerate(recipe.stages, 1))[first - 1 : last]
    rows = dataset.part_rows(recipe.data.split, "train")[
        : 2 * max(recipe.batch_size(stage) for _, stage in selected)
    ]
    pixels, targets = (
        _decoded(dataset, rows, size),
        torch.from_numpy(dataset.targets[rows]).to(device),
    )
    source = Source(CacheFeed(pixels, device), targets)
    logger.info(f"read two batches: {len(rows)} tiles decoded at {size} px")
    total = 0.0
    for number, stage in selected:
        steps, batch = _steps(recipe, dataset, stage), recipe.batch_size(stage)
        seconds = _step_seconds(
            recipe, number, model, source, np.arange(min(batch, len(rows))), device
        )
        total += seconds * steps * stage.epochs
        frozen = (
            f"{stage.frozen_groups} of {LAYER_GROUPS} layer groups frozen"
            if stage.freeze
            else "unfrozen"
        )
        rise = f", rising from {stage.start_size} px" if stage.start_size else ""
        logger.info(
            f"stage {number} {recipe.stage_names[number - 1]}: {stage.epochs} epochs x {steps} steps of {batch}, {frozen}, "
            f"lr {recipe.lr or stage.lr}{rise}, one step {seconds:.2f} s here"
        )
    logger.info(
        f"in this process alone the steps would take {duration(total)}; {recipe.num_workers} workers share them"
    )


def _device(recipe: Recipe) -> torch.device:
    """Where a step is tried: on a GPU where the command would use them."""
    if "RAY_ADDRESS" in os.environ and not ray.is_initialized():
        logger.info(
            "the GPUs of the cluster at RAY_ADDRESS are counted when the command starts, not here"
        )
        return gpus.device(recipe.use_gpu is not False and gpus.seen().count > 0)
    return gpus.device(use_gpu(recipe))


def _steps(recipe: Recipe, dataset: Dataset, stage: Stage) -> int:
    rows = dataset.part_rows(recipe.data.split, "train")
    return len(
        sampling.global_batches(
            rows, recipe.batch_size(stage), recipe.num_workers, recipe.train.drop_last
        )
    )


def _plan(recipe: Recipe, dataset: Dataset, model: torch.nn.Sequential) -> list[str]:
    workers, batch = recipe.num_workers, recipe.train.batch_size
    shares = sorted(
        {len(range(*sampling.rank_slice(batch, r, workers).indices(batch))) for r in range(workers)}
    )
    counts = {part: len(dataset.part_rows(recipe.data.split, part)) for part in ("train", "valid")}
    weights = networks.parameter_count(model)
    named, full = checkpoint_bytes(recipe, weights)
    free = free_bytes(recipe.storage)
    return [
        f"dataset: {dataset.path}, {counts['train']} training and {counts['valid']} validation tiles, "
        f"{len(dataset.classes)} classes",
        f"model: {recipe.model.arch}, {weights:,} parameters, weights {recipe.model.weights}, {recipe.train.precision}",
        f"workers: {workers}, {cpus()} CPUs on this machine; global batch {batch}, per worker {' or '.join(map(str, shares))}",
        f"checkpoints: {named / 1e6:.0f} MB for each stage and the best, {FULL_CHECKPOINTS} of up to {full / 1e6:.0f} MB to go "
        f"on from, in {recipe.storage}"
        + (f" ({free / 1e9:.0f} GB free)" if free is not None else ""),
        _memory(recipe, dataset),
    ]


def _memory(recipe: Recipe, dataset: Dataset) -> str:
    bound = available()
    room = (
        f"{bound.free / 1e9:.1f} GB are {bound.bound}"
        if bound
        else "how much there is, this system does not tell"
    )
    return f"memory: {needed(recipe, len(dataset.classes))}; {room}"


def _decoded(dataset: Dataset, rows: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
    return np.stack(list(decoded_images(dataset, rows.tolist(), size)))


def _step_seconds(
    recipe: Recipe,
    number: int,
    model: torch.nn.Sequential,
    source: Source,
    rows: sampling.Rows,
    device: torch.device,
) -> float:
    """Time of one step on some tiles of `source`; the model is not the same afterwards."""
    stage = recipe.stages[number - 1]
    layer_groups.set_frozen(model, stage.frozen_groups)
    rates = optim.group_rates(stage.lr, LAYER_GROUPS, recipe.train.schedule)
    optimizer = optim.make_optimizer(model, rates, recipe.train.wd)
    step = Stepper(recipe, number, model.train(), optimizer, source, Worker(device=device))
    if device.type == "cuda":
        # The first one also loads CUDA's and cuDNN's kernels, which a run does once.
        step(rows, stage.epochs, 0).values.tolist()
    began = time.monotonic()
    step(rows, stage.epochs, 0).values.tolist()
    return time.monotonic() - began
