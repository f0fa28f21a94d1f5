"""Which tiles make up each batch, and in which order the batches come.

The order of samples is a pure function of (seed, stage, epoch). A global batch holds the same tiles
for any number of workers, and each rank takes its slice of it. A run that resumes in the middle of
an epoch therefore needs no stored state of the sampler.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raytrain.config import Recipe
from raytrain.data.dataset import Dataset
from raytrain.errors import ConfigError, DataError, did_you_mean

# Row numbers of a dataset, shape (N,).
Rows = np.ndarray[Any, np.dtype[np.int64]]
# One half of the validation rows fits the thresholds, the other half measures them.
MIN_VALIDATION_ROWS = 2
# With fewer than two tiles on a rank, BatchNorm has no variance to normalise by.
MIN_TILES_PER_RANK = 2


@dataclass(frozen=True)
class ShuffleWindow:
    """How many shards are shuffled together; None means all of them."""

    shards: int | None


def training_rows(recipe: Recipe, dataset: Dataset) -> Rows:
    """Returns the row numbers that an epoch visits, int64 (N,), ascending.

    Each training tile stands there once, or as often as `data.repeat` says.

    Args:
        recipe: names the split and the labels to repeat.
        dataset: an opened dataset.

    Raises:
        ConfigError: `data.repeat` names a label that the dataset does not have.
        DataError: see `Dataset.part_rows`.
    """
    rows: Rows = dataset.part_rows(recipe.data.split, "train")
    by_label = recipe.data.repeat
    if not by_label:
        return rows
    classes = dataset.classes
    for label in by_label:
        if label not in classes:
            raise ConfigError(
                f'data.repeat names the label "{label}", which {dataset.path} does not have.'
                f"{did_you_mean(label, classes)}",
                f"its labels are {', '.join(classes)}",
                "--set data.repeat={LABEL: 2} with one of these labels",
            )
    factors = np.array([by_label.get(label, 1) for label in classes])
    return np.repeat(rows, repeats(dataset.targets[rows], factors))


def repeats(targets: np.ndarray[Any, Any], factors: Rows) -> Rows:
    """Returns how often an epoch visits each tile: the largest factor of its labels, at least 1.

    Args:
        targets: uint8 (N, K), 1 where a tile has the label.
        factors: int64 (K,), 1 for a label that is not repeated.

    Returns:
        int64 (N,).
    """
    largest: Rows = (targets * factors).max(axis=1)
    return np.maximum(largest, 1)


def repeated_in_words(rows: Rows) -> str:
    """Returns a sentence about the rows of an epoch in which some tiles are repeated."""
    return (
        f"data.repeat: an epoch shows {len(rows)} tiles, "
        f"which are {len(np.unique(rows))} different ones"
    )


def epoch_order(
    rows: Rows, shard_starts: Rows, key: Sequence[int], window: int | None = None
) -> Rows:
    """Orders the rows of an epoch.

    The shards are permuted first. Then the rows are permuted within windows of `window` shards.

    Args:
        rows: int64 (N,), the row numbers to visit, ascending. A number that stands there several
            times is visited as often.
        shard_starts: int64 (shards + 1,), the first row of each shard, and the number of all rows.
        key: (seed, stage, epoch).
        window: number of shards held at once; None for all, which is a full shuffle.

    Returns:
        int64 (N,), a permutation of `rows`.
    """
    generator = np.random.default_rng(list(key))
    # The rows of shard s are rows[bounds[s] : bounds[s + 1]], since `rows` is ascending.
    bounds = np.searchsorted(rows, shard_starts)
    shards = generator.permutation(len(shard_starts) - 1)
    shards_at_once = window or len(shards)
    pieces = []
    for start in range(0, len(shards), shards_at_once):
        members = []
        for shard in shards[start : start + shards_at_once]:
            begin, end = bounds[shard], bounds[shard + 1]
            members.append(rows[begin:end])
        pieces.append(generator.permutation(np.concatenate(members)))
    return np.concatenate(pieces)


def global_batches(order: Rows, batch_size: int, world: int, drop_last: bool) -> list[Rows]:
    """Cuts the order of an epoch into global batches.

    A last batch that is not full is dropped in two cases: with `drop_last`, or when it would leave
    a rank with fewer than 2 tiles.

    Args:
        order: int64 (N,), row numbers in the order of the epoch.
        batch_size: tiles of a global batch.
        world: number of ranks that share a batch.
        drop_last: whether to drop a last batch that is not full.

    Returns:
        int64 arrays of `batch_size` row numbers each; the last one may be shorter.
    """
    batches = []
    for start in range(0, len(order), batch_size):
        batches.append(order[start : start + batch_size])
    if not batches:
        return batches
    last = len(batches[-1])
    too_small = last < MIN_TILES_PER_RANK * world
    if last < batch_size and (drop_last or too_small):
        batches.pop()
    return batches


def rank_slice(length: int, rank: int, world: int) -> slice:
    """Returns the contiguous share of a rank. The shares differ by one tile at most."""
    small, extra = divmod(length, world)
    # Each of the first `extra` ranks takes one tile of the remainder.
    first = rank * small + min(rank, extra)
    share = small
    if rank < extra:
        share += 1
    return slice(first, first + share)


def pass_slices(length: int, rank: int, world: int, passes: int) -> list[slice]:
    """Cuts the share of a rank into the passes that its gradient is accumulated over.

    There are fewer passes than asked for if one of them would have fewer than 2 tiles. Every rank
    gets the same number of passes, because ranks wait for each other in the last one.

    Args:
        length: tiles of the global batch.
        rank: the rank whose share is cut.
        world: number of ranks.
        passes: number of passes that the recipe asks for.

    Returns:
        Slices of the global batch.
    """
    share = rank_slice(length, rank, world)
    # By the smallest share, length // world, which is the same number on every rank.
    most_passes = length // world // MIN_TILES_PER_RANK
    count = max(1, min(passes, most_passes))
    slices = []
    for number in range(count):
        part = rank_slice(share.stop - share.start, number, count)
        start = share.start + part.start
        stop = share.start + part.stop
        slices.append(slice(start, stop))
    return slices


def seed_of(*parts: int) -> int:
    """Returns a 63-bit seed for (seed, stage, epoch, ...). Neighbouring positions are unrelated."""
    state = np.random.SeedSequence(parts).generate_state(1, np.uint64)
    # One bit less, so that the seed also fits into a signed 64-bit integer.
    return int(state[0] >> np.uint64(1))


def check_batches(recipe: Recipe, train: int, valid: int) -> None:
    """Checks that the tiles suffice for one batch of every stage and for one validation.

    Args:
        recipe: the recipe with its batch sizes and number of workers.
        train: number of training tiles in an epoch.
        valid: number of validation tiles.

    Raises:
        ConfigError: a global batch is larger than the training part, or too small for the number
            of workers and passes.
        DataError: there are fewer than 2 validation rows.
    """
    if valid < MIN_VALIDATION_ROWS:
        raise DataError(
            f"the split {recipe.data.split} has {valid} validation rows",
            "thresholds are fitted on one half of them and judged on the other",
            "raytrain ingest --valid 0.2",
        )
    sizes = {recipe.batch_size(stage) for stage in recipe.stages}
    for size in sorted(sizes):
        _check_batch_size(recipe, size, train)


def _check_batch_size(recipe: Recipe, size: int, train: int) -> None:
    if train < size:
        raise ConfigError(
            f"a batch size of {size} is more than the {train} training tiles",
            "an epoch would have no full batch",
            f"--train.batch-size {max(2, train // 4)}",
        )
    least = MIN_TILES_PER_RANK * recipe.most_workers * recipe.train.accumulate
    if size < least:
        raise ConfigError(
            f"a batch size of {size} over {recipe.most_workers} workers and train.accumulate = "
            f"{recipe.train.accumulate} passes leaves a pass with fewer than 2 tiles",
            "BatchNorm needs at least 2 tiles in every pass",
            f"--train.batch-size {least}",
        )
