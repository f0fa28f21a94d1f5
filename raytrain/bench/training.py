"""What the bench measures of training: each stage against its ceiling, and further parts.

Knows no Ray and runs where there is none: it needs torch, torchvision, NumPy, pandas, pyarrow,
Pillow and pydantic (`python -m raytrain.bench`).
"""

from __future__ import annotations

import logging
import resource
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing

import torch

from raytrain.bench import comparisons, gpu
from raytrain.bench.blocks import Side, alternate, ratios
from raytrain.bench.figures import Figure
from raytrain.bench.measurement import TILES_PER_S, Measurement
from raytrain.bench.profiles import profiled
from raytrain.bench.sides import Ceiling, Loop, alone, wait_for
from raytrain.bench.variants import variants
from raytrain.config import Recipe
from raytrain.data.dataset import Dataset
from raytrain.tiles.sampling import Rows

logger = logging.getLogger(__name__)


# Whole epochs to measure at most, and the seconds after which no further one is begun.
EPOCHS = 3
EPOCHS_S = 60.0


def measure(
    recipe: Recipe, dataset: Dataset, *, pairs: int, block: int, parts: Collection[str]
) -> list[Figure]:
    """Measures the selected stages of a recipe.

    Args:
        recipe: with `model.weights` none, so that the network gets random weights.
        dataset: an opened dataset with the recipe's split.
        pairs: number of rounds in which the sides train in turn.
        block: optimiser steps of a side before it is the next one's turn.
        parts: some of `PARTS`. `train` measures every selected stage. The others measure one: the
            first selected stage that is not frozen, or the first if all are.
    """
    figures: list[Figure] = []
    first, last = recipe.selected
    with tempfile.TemporaryDirectory(prefix="raytrain-bench-") as run:
        if "train" in parts:
            for number in range(first, last + 1):
                figures += stage_figures(Measurement(recipe, dataset, number, run, pairs, block))
            # Before the other parts, which hold several networks at once.
            figures += memory(alone(recipe).device)
        one_stage = Measurement(recipe, dataset, _first_unfrozen(recipe), run, pairs, block)
        for part, figures_of in OTHER_PARTS.items():
            if part in parts:
                figures += figures_of(one_stage)
    return figures


def _first_unfrozen(recipe: Recipe) -> int:
    """The number of the first selected stage that is not frozen, or of the first stage."""
    first, last = recipe.selected
    for number in range(first, last + 1):
        if not recipe.stage(number).freeze:
            return number
    return first


def stage_figures(measured: Measurement) -> list[Figure]:
    """Measures one stage: the loop, its ceiling, and their ratio; batches, validation, epochs."""
    recipe = measured.recipe
    loop = Loop(recipe, measured.dataset, measured.number, alone(recipe), measured.run)
    name = loop.name
    about = loop.about
    logger.info(f"{about}: the loop and its ceiling in turn")
    with closing(loop):
        sides: dict[str, Side] = {"loop": loop, "ceiling": Ceiling.of(loop)}
        rates = alternate(sides, pairs=measured.pairs, steps=measured.block)
        ceiling = tuple(rates["ceiling"])
        whole = tuple(rates["loop"])
        ratio = ratios(rates["loop"], rates["ceiling"])
        return [
            Figure(f"{name}.ceiling", "step only, one batch", TILES_PER_S, ceiling, about),
            Figure(f"{name}.loop", "training, whole loop", TILES_PER_S, whole, about),
            Figure(f"{name}.ratio", "training / step only", "", ratio, about),
            *_batches(loop, measured.pairs),
            *_epochs(loop, min(measured.pairs, EPOCHS)),
            *gpu.figures(loop, rates["loop"], pairs=measured.pairs, block=measured.block),
        ]


def _batches(loop: Loop, rounds: int) -> Iterator[Figure]:
    """How fast tiles become batches on the device, without augmentation and with it."""
    fetched_rates = []
    augmented_rates = []
    for epoch in range(1, rounds + 1):
        batches = loop.opened.batches(epoch)
        tiles = sum(len(rows) for rows in batches)
        fetched_rates.append(tiles / _fetching_seconds(loop, batches))
        augmented_rates.append(tiles / _augmenting_seconds(loop, batches, epoch))
    name = loop.name
    about = loop.about
    fetched = tuple(fetched_rates)
    augmented = tuple(augmented_rates)
    yield Figure(f"{name}.cache", "cache to batch", TILES_PER_S, fetched, about)
    yield Figure(f"{name}.augmented", "cache to augmented batch", TILES_PER_S, augmented, about)


def _fetching_seconds(loop: Loop, batches: Sequence[Rows]) -> float:
    began = time.perf_counter()
    for _ in loop.opened.fetched(batches):
        pass
    wait_for(loop.device)
    return time.perf_counter() - began


def _augmenting_seconds(loop: Loop, batches: Sequence[Rows], epoch: int) -> float:
    began = time.perf_counter()
    for position, batch in enumerate(loop.opened.fetched(batches)):
        loop.opened.augmented(batch["image"], batches[position], epoch, position)
    wait_for(loop.device)
    return time.perf_counter() - began


def _epochs(loop: Loop, rounds: int) -> Iterator[Figure]:
    """Whole epochs with their validation, as `fit` runs them, but without its files."""
    epoch_seconds: list[float] = []
    validation_rates: list[float] = []
    train_tiles = len(loop.opened.train_rows)
    valid_tiles = len(loop.opened.valid_rows)
    for number in range(rounds):
        training_s = loop.epoch_seconds(number % loop.stage.epochs + 1)
        began = time.perf_counter()
        loop.opened.validate(1)
        validation_s = time.perf_counter() - began
        validation_rates.append(valid_tiles / validation_s)
        epoch_seconds.append(training_s + validation_s)
        logger.info(f"  epoch {number + 1} of {rounds}: {epoch_seconds[-1]:.1f} s")
        if sum(epoch_seconds) > EPOCHS_S:
            break
    rates = tuple(validation_rates)
    yield Figure(f"{loop.name}.validation", "validation", TILES_PER_S, rates, loop.about)
    about = f"{loop.about}, {train_tiles} + {valid_tiles} tiles"
    seconds = tuple(epoch_seconds)
    yield Figure(f"{loop.name}.epoch", "an epoch with validation", "s", seconds, about)


def memory(device: torch.device) -> list[Figure]:
    """The largest memory that this process has had so far, and on a GPU that of its tensors."""
    # On Linux ru_maxrss is in KiB: man 2 getrusage.
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    gigabytes = (host / 1e9,)
    about = "with the pages of mapped tiles"
    label = "host memory of the process, at most"
    figures = [Figure("memory.host", label, "GB", gigabytes, about)]
    if device.type == "cuda":
        gigabytes = (torch.cuda.max_memory_allocated(device) / 1e9,)
        figures.append(Figure("memory.gpu", "GPU memory, at most", "GB", gigabytes))
    return figures


def choices(measured: Measurement) -> list[Figure]:
    """What each choice in the step is worth; on a CPU only."""
    if alone(measured.recipe).device.type != "cpu":
        return []
    return variants(measured)


def profile(measured: Measurement) -> list[Figure]:
    """Where the time of the loop's steps goes; on a CPU only."""
    recipe = measured.recipe
    worker = alone(recipe)
    if worker.device.type != "cpu":
        return []
    loop = Loop(recipe, measured.dataset, measured.number, worker, measured.run)
    with closing(loop):
        logger.info(f"{loop.about}: where the time of its steps goes")
        return profiled(loop, measured.pairs, measured.block)


# In the order in which they run; each of them measures one stage.
OTHER_PARTS: Mapping[str, Callable[[Measurement], list[Figure]]] = {
    "workers": comparisons.workers,
    "stream": comparisons.streamed,
    "peer": comparisons.against_plain,
    "variants": choices,
    "profile": profile,
    "checkpoints": comparisons.checkpointed,
}
PARTS = ("train", *OTHER_PARTS)
