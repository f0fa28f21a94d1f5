"""`train --dry-run`: everything that can be known without training, in this process, without Ray.

Resolves places, reads two batches, takes one step at every stage size and says what the run would be.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raytrain import storage
from raytrain.config import Recipe, Stage
from raytrain.data import cache, images
from raytrain.data.dataset import Dataset, read_images
from raytrain.distributed.cluster import cpus
from raytrain.distributed.preflight import check_recipe, check_workers
from raytrain.training import models, optim, tiles, transforms
from raytrain.training.history import duration
from raytrain.training.loop import default_precision
from raytrain.training.tasks import MultiLabel

# fp32 weights and buffers, and two moments of Adam for each weight.
BYTES_PER_WEIGHT = 4
ADAM_MOMENTS = 2


def dry_run(recipe: Recipe, say: Callable[[str], None] = print) -> None:
    """Checks a recipe and prints its plan.

    Raises:
        RaytrainError: as `train` would, before anything is started.
    """
    check_workers(recipe.num_workers)
    recipe, dataset = check_recipe(recipe)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = default_precision(device) if recipe.train.precision == "auto" else recipe.train.precision
    rows = dataset.part_rows(recipe.data.split, "train")
    batches = tiles.global_batches(rows, recipe.train.batch_size, recipe.num_workers, recipe.train.drop_last)
    model = models.build(recipe.model.arch, len(dataset.classes), recipe.model.dropout).to(device)
    for line in _plan(recipe, dataset, model, len(batches), precision):
        say(line)
    size = cache.stored_size(dataset.tile_size, [stage.size for stage in recipe.stages])
    pixels = [_decoded(dataset, batch, size) for batch in batches[:2]]
    say(f"read two batches: {sum(map(len, pixels))} tiles decoded at {size} px")
    first, last = recipe.selected
    total = 0.0
    for number, stage in list(enumerate(recipe.stages, 1))[first - 1 : last]:
        seconds = _step_seconds(recipe, stage, model, pixels[0], dataset.targets[batches[0]], device, precision)
        total += seconds * len(batches) * stage.epochs
        say(f"stage {number} {recipe.stage_names[number - 1]}: {stage.epochs} epochs x {len(batches)} steps, "
            f"{'frozen' if stage.freeze else 'unfrozen'}, lr {stage.lr}, one step {seconds:.2f} s here")  # fmt: skip
    say(f"in this process alone the steps would take {duration(total)}; {recipe.num_workers} workers share them")


def _plan(recipe: Recipe, dataset: Dataset, model: torch.nn.Sequential, steps: int, precision: str) -> list[str]:
    workers, batch = recipe.num_workers, recipe.train.batch_size
    shares = sorted({len(range(*tiles.rank_slice(batch, r, workers).indices(batch))) for r in range(workers)})
    counts = {part: len(dataset.part_rows(recipe.data.split, part)) for part in ("train", "valid")}
    size = cache.stored_size(dataset.tile_size, [stage.size for stage in recipe.stages])
    weights = models.parameter_count(model)
    megabytes = weights * BYTES_PER_WEIGHT / 1e6
    free = _free(recipe.storage)
    return [
        f"dataset: {dataset.place}, {counts['train']} training and {counts['valid']} validation tiles, "
        f"{len(dataset.classes)} classes",
        f"model: {recipe.model.arch}, {weights:,} parameters, weights {recipe.model.weights}, {precision}",
        f"workers: {workers} of {cpus()} CPUs; global batch {batch}, per worker {' or '.join(map(str, shares))}; "
        f"{steps} steps an epoch",
        f"checkpoints: {megabytes:.0f} MB a stage, up to {megabytes * (1 + ADAM_MOMENTS):.0f} MB for the last, "
        f"in {recipe.storage}{free}",
        f"tile cache: {cache.store_bytes(dataset, size) / 1e6:.0f} MB at {size} px in {cache.default_directory()}",
    ]


def _free(place: str) -> str:
    if storage.is_uri(place):
        return ""
    return f" ({shutil.disk_usage(Path(place)).free / 1e9:.0f} GB free)"


def _decoded(dataset: Dataset, rows: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
    return np.stack([images.decode(content, size) for content in read_images(dataset, rows.tolist())])


def _step_seconds(
    recipe: Recipe, stage: Stage, model: torch.nn.Sequential, pixels: np.ndarray[Any, Any],
    target: np.ndarray[Any, Any], device: torch.device, precision: str,
) -> float:  # fmt: skip
    models.set_frozen(model, stage.freeze)
    rates = optim.group_rates(stage.lr, 3, recipe.train.schedule)
    optimizer = optim.make_optimizer(model, rates, recipe.train.wd)
    draws = transforms.draw(recipe.data.augment, len(pixels), torch.Generator().manual_seed(recipe.train.seed))
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device)
    began = time.monotonic()
    inputs = transforms.train_pixels(batch, draws.to(device), stage.size, recipe.data.normalize)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits = model(inputs)
    loss = MultiLabel().loss_sum(logits, torch.from_numpy(target).float().to(device)) / len(pixels)
    loss.backward()
    optimizer.step()
    loss.item()
    return time.monotonic() - began
