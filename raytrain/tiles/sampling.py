"""Which tiles make which batch, and the batches themselves.

The order of samples is a pure function of (seed, stage, epoch), and a global batch is the same set of tiles whatever
the number of workers; rank r takes its slice. Resume in the middle of an epoch therefore needs no stored state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from raytrain.config import Recipe
from raytrain.errors import ConfigError, DataError

Rows = np.ndarray[Any, np.dtype[np.int64]]
LEAST_JUDGED = 2
# Below two tiles on a rank BatchNorm has no variance to normalise by.
MIN_TILES_PER_RANK = 2


def epoch_order(
    rows: Rows, shard_rows: Sequence[int], key: Sequence[int], window: int | None = None
) -> Rows:
    """Orders the rows of an epoch: shards are permuted, then rows within windows of `window` shards.

    Args:
        rows: int64 row numbers to visit, ascending.
        shard_rows: rows of each shard of the dataset, in order.
        key: (seed, stage, epoch).
        window: shards held at once; None for all, which is a full shuffle.

    Returns:
        int64, a permutation of `rows`.
    """
    generator = np.random.default_rng(list(key))
    bounds = np.searchsorted(rows, np.cumsum([0, *shard_rows]))
    shards = generator.permutation(len(shard_rows))
    window = window or len(shards)
    pieces = []
    for start in range(0, len(shards), window):
        members = [rows[bounds[s] : bounds[s + 1]] for s in shards[start : start + window]]
        pieces.append(generator.permutation(np.concatenate(members)))
    return np.concatenate(pieces)


def global_batches(order: Rows, batch_size: int, world: int, drop_last: bool) -> list[Rows]:
    """Cuts an epoch's order into global batches.

    The last, smaller one is dropped with `drop_last`, or where it would leave a rank fewer than 2 tiles.
    """
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    last_is_short = bool(batches) and len(batches[-1]) < batch_size
    if last_is_short and (drop_last or len(batches[-1]) < MIN_TILES_PER_RANK * world):
        batches.pop()
    return batches


def rank_slice(length: int, rank: int, world: int) -> slice:
    """The contiguous share of a rank: sizes differ by one tile at most."""
    small, extra = divmod(length, world)
    first = rank * small + min(rank, extra)
    return slice(first, first + small + (rank < extra))


def pass_slices(length: int, rank: int, world: int, passes: int) -> list[slice]:
    """The share of a rank, cut into the passes that its gradient is accumulated in: fewer where one had under 2 tiles.

    As many on every rank, since ranks wait for each other in the last one.
    """
    share = rank_slice(length, rank, world)
    passes = max(1, min(passes, length // world // MIN_TILES_PER_RANK))
    parts = (rank_slice(share.stop - share.start, n, passes) for n in range(passes))
    return [slice(share.start + part.start, share.start + part.stop) for part in parts]


def seed_of(*parts: int) -> int:
    """A 63-bit seed from (seed, stage, epoch, ...): close positions give unrelated streams."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def check_batches(recipe: Recipe, train: int, valid: int) -> None:
    """Refuses parts that cannot make one batch or one judgement.

    Raises:
        ConfigError: a global batch is larger than the training part, or too small for workers and passes.
        DataError: fewer than 2 validation rows.
    """
    if valid < LEAST_JUDGED:
        raise DataError(
            f"the split {recipe.data.split} has {valid} validation rows",
            "thresholds are fitted on one half of them and judged on the other",
            "raytrain ingest --valid 0.2",
        )
    least = MIN_TILES_PER_RANK * recipe.num_workers * recipe.train.accumulate
    for size in sorted({recipe.batch_size(stage) for stage in recipe.stages}):
        if train < size:
            raise ConfigError(
                f"a batch size of {size} is more than the {train} training tiles",
                "an epoch would have no full batch",
                f"--train.batch-size {max(2, train // 4)}",
            )
        if size < least:
            raise ConfigError(
                f"a batch size of {size} over {recipe.num_workers} workers and train.accumulate = "
                f"{recipe.train.accumulate} passes leaves one fewer than 2 tiles",
                "BatchNorm needs at least 2 tiles in every pass",
                f"--train.batch-size {least}",
            )
