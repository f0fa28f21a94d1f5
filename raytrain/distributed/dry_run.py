"""`train --dry-run`: checks everything that can be known without training, and prints the plan.

Runs in this process, without Ray. It reads two batches, takes one step in every selected stage and
estimates from these steps how long the run would take.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Any

import numpy as np
import ray
import torch

from raytrain import machine, registry, tracking
from raytrain.config import LAYER_GROUPS, Recipe, Stage
from raytrain.data.dataset import Dataset, decoded_images
from raytrain.distributed.memory import available, check_memory, needed
from raytrain.distributed.preflight import (
    FULL_CHECKPOINTS,
    check_group,
    check_recipe,
    checkpoint_bytes,
    free_bytes,
    use_gpu,
)
from raytrain.distributed.session import cpus
from raytrain.log import duration
from raytrain.models import networks
from raytrain.models.precision import agreed_precision, dtype_of, keep_fp32
from raytrain.registry import Loss
from raytrain.tasks.choice import loss_of
from raytrain.tiles import cache, placement, sampling
from raytrain.tiles.feeds import CacheFeed, Source
from raytrain.training.stage import stage_network
from raytrain.training.step import Stepper
from raytrain.training.trained import Trained
from raytrain.worker import Worker, compute_device

logger = logging.getLogger(__name__)


def dry_run(recipe: Recipe) -> None:
    """Checks a recipe and logs its plan.

    Args:
        recipe: its `dataset` is set; paths may be relative.

    Raises:
        RaytrainError: what `train` would raise before it starts anything.
    """
    check_group(recipe)
    recipe, dataset = check_recipe(recipe)
    tracking.check(recipe.mlflow)
    check_memory(recipe, len(dataset.classes), dataset.tile_format.channels)
    device = _device(recipe)
    recipe = _with_resolved_precision(recipe, device)
    model = _network(recipe, dataset, device)
    # Side in pixels of the decoded tiles that training would keep.
    size = cache.kept_size(recipe, dataset)
    # Raises before the first line is logged if the tiles cannot be kept where the recipe says.
    tiles_line = placement.planned_tiles(dataset, size, device, recipe.tiles)
    for line in _plan(recipe, dataset, model):
        logger.info(line)
    logger.info(tiles_line)
    source, read = _two_batches(recipe, dataset, size, device)
    logger.info(f"read two batches: {read} tiles decoded at {size} px")
    loss = loss_of(recipe, dataset, device)
    total_s = 0.0
    for number, stage in _selected_stages(recipe):
        # `source` holds only the tiles that were read, so a step takes its rows from 0 on.
        rows = np.arange(min(recipe.batch_size(stage), read))
        step_s = _step_seconds(recipe, number, model, source, loss, rows)
        steps = _steps(recipe, dataset, stage)
        logger.info(_stage_line(recipe, number, steps, step_s))
        total_s += step_s * steps * stage.epochs
    text = f"in this process alone the steps would take {duration(total_s)}"
    if recipe.num_workers > 1:
        text += f"; {recipe.num_workers} workers share them"
    logger.info(text)


def _device(recipe: Recipe) -> torch.device:
    """The device that steps are tried on: a GPU if the command would use GPUs."""
    if "RAY_ADDRESS" in os.environ and not ray.is_initialized():
        logger.info(
            "the GPUs of the cluster at RAY_ADDRESS are counted when the command starts, not here"
        )
        return compute_device(recipe.use_gpu is not False and machine.seen_gpus().count > 0)
    return compute_device(use_gpu(recipe))


def _with_resolved_precision(recipe: Recipe, device: torch.device) -> Recipe:
    """The recipe with the precision that `auto` stands for on this device."""
    precision = agreed_precision(recipe.train.precision, device, world=1)
    train = recipe.train.model_copy(update={"precision": precision})
    return recipe.model_copy(update={"train": train})


def _network(recipe: Recipe, dataset: Dataset, device: torch.device) -> networks.Network:
    """The network of the recipe with random weights, on the device."""
    keep_fp32()
    networks.check_batch_norm(recipe.model.batch_norm, device.type)
    model = registry.training(dataset.task).network(
        recipe.model, len(dataset.classes), dataset.tile_format.channels
    )
    networks.to_device(model, device, dtype_of(recipe.train.precision))
    return model


def _selected_stages(recipe: Recipe) -> list[tuple[int, Stage]]:
    """The stages that would be trained, with their numbers in the recipe, which count from 1."""
    first, last = recipe.selected
    return list(enumerate(recipe.stages, 1))[first - 1 : last]


def _two_batches(
    recipe: Recipe, dataset: Dataset, size: int, device: torch.device
) -> tuple[Source, int]:
    """Decodes the first training tiles: two batches of the largest selected stage.

    Args:
        recipe: complete.
        dataset: opened.
        size: side of the decoded tiles in pixels.
        device: where steps are tried.

    Returns:
        A source of these tiles alone, and their number.
    """
    batch = max(recipe.batch_size(stage) for _, stage in _selected_stages(recipe))
    rows = sampling.training_rows(recipe, dataset)[: 2 * batch]
    pixels = _decoded(dataset, rows, size)
    task = registry.training(dataset.task)
    targets = task.device_targets(dataset.targets[rows], device)
    return Source(CacheFeed(pixels, device), targets), len(rows)


def _decoded(dataset: Dataset, rows: sampling.Rows, size: int) -> np.ndarray[Any, Any]:
    """The tiles of these rows as uint8 or uint16 (N, size, size, C)."""
    return np.stack(list(decoded_images(dataset, rows.tolist(), size)))


def _steps(recipe: Recipe, dataset: Dataset, stage: Stage) -> int:
    """Number of steps in an epoch of a stage."""
    rows = sampling.training_rows(recipe, dataset)
    batches = sampling.global_batches(
        rows, recipe.batch_size(stage), recipe.num_workers, recipe.train.drop_last
    )
    return len(batches)


def _plan(recipe: Recipe, dataset: Dataset, model: networks.Network) -> list[str]:
    """One line for each of dataset, network, workers, checkpoints and memory."""
    split = recipe.data.split
    train_tiles = len(dataset.part_rows(split, "train"))
    valid_tiles = len(dataset.part_rows(split, "valid"))
    parameters = networks.parameter_count(model)
    repeated = []
    if recipe.data.repeat:
        repeated.append(sampling.repeated_in_words(sampling.training_rows(recipe, dataset)))
    return [
        f"dataset: {dataset.path}, {train_tiles} training and {valid_tiles} validation tiles, "
        f"{len(dataset.classes)} classes, {dataset.tile_format}",
        *repeated,
        f"model: {recipe.model.arch}, {parameters:,} parameters, weights {recipe.model.weights}, "
        f"{recipe.train.precision}",
        _workers_line(recipe),
        _checkpoints_line(recipe, parameters),
        _memory_line(recipe, dataset),
    ]


def _workers_line(recipe: Recipe) -> str:
    """How a batch is divided among the workers. Their shares differ by at most one tile."""
    batch = recipe.train.batch_size
    shares = set()
    for rank in range(recipe.num_workers):
        share = sampling.rank_slice(batch, rank, recipe.num_workers)
        shares.add(share.stop - share.start)
    per_worker = " or ".join(str(share) for share in sorted(shares))
    return (
        f"workers: {recipe.num_workers}, {cpus()} CPUs on this machine; "
        f"global batch {batch}, per worker {per_worker}"
    )


def _checkpoints_line(recipe: Recipe, parameters: int) -> str:
    """Number and size of the checkpoints that the run will write."""
    named, full = checkpoint_bytes(recipe, parameters)
    line = (
        f"checkpoints: {named / 1e6:.0f} MB for each stage and the best, "
        f"{FULL_CHECKPOINTS} of up to {full / 1e6:.0f} MB to resume from, in {recipe.storage}"
    )
    free = free_bytes(recipe.storage)
    if free is not None:
        line += f" ({free / 1e9:.0f} GB free)"
    return line


def _memory_line(recipe: Recipe, dataset: Dataset) -> str:
    """What the run needs and what there is."""
    need = needed(recipe, len(dataset.classes), dataset.tile_format.channels)
    bound = available()
    if bound is None:
        return f"memory: {need}; this system does not report how much there is"
    return f"memory: {need}; {bound.free / 1e9:.1f} GB are {bound.bound}"


def _stage_line(recipe: Recipe, number: int, steps: int, step_s: float) -> str:
    """What a stage would do, and the seconds that one of its steps has taken here."""
    stage = recipe.stage(number)
    frozen = "unfrozen"
    if stage.freeze:
        frozen = f"{stage.frozen_groups} of {LAYER_GROUPS} layer groups frozen"
    rising = ""
    if stage.start_size:
        rising = f", rising from {stage.start_size} px"
    return (
        f"stage {number} {recipe.stage_names[number - 1]}: {stage.epochs} epochs x {steps} steps "
        f"of {recipe.batch_size(stage)}, {frozen}, lr {recipe.lr or stage.lr}{rising}, "
        f"one step {step_s:.2f} s here"
    )


def _step_seconds(
    recipe: Recipe,
    number: int,
    model: networks.Network,
    source: Source,
    loss: Loss,
    rows: sampling.Rows,
) -> float:
    """Takes a training step and returns its seconds. The weights of `model` change.

    Args:
        recipe: complete.
        number: of the stage, from 1.
        model: on `device`.
        source: pictures and targets, on the device that the step is taken on.
        loss: of a batch.
        rows: int64 (B,), the rows of `source` in the batch.
    """
    stage = recipe.stage(number)
    device = source.targets.device
    worker = Worker(device=device)
    network, optimizer = stage_network(recipe, number, model, stage.lr, worker)
    trained = Trained(network.train(), optimizer)
    step = Stepper(recipe, number, trained, source, loss, worker)
    if device.type == "cuda":
        # The first step also loads the kernels of CUDA and cuDNN, which a run does only once.
        step(rows, stage.epochs, 0).values.tolist()
    began = time.monotonic()
    # A GPU computes in the background; `tolist` waits for it.
    step(rows, stage.epochs, 0).values.tolist()
    return time.monotonic() - began
