"""Mean and standard deviation of each channel of the training tiles.

Imports neither torch nor ray.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from raytrain.data.dataset import Dataset, decoded_images

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]

# More tiles are not read: their means differ so little that the start of a run need not wait.
MOST_TILES = 4096
# Of the choice among more tiles. Not the recipe's seed, so that runs of all seeds see equal pixels.
SEED = 0
DIGITS = 8


def channel_statistics(dataset: Dataset, split: str, size: int) -> tuple[list[float], list[float]]:
    """Computes mean and standard deviation of each channel over the training tiles of a split.

    The sums are whole numbers, so the result does not depend on their order or on the machine. Of
    more than `MOST_TILES` tiles, that many are chosen at random, always the same ones.

    Args:
        dataset: an opened dataset.
        split: name of the split.
        size: side of the decoded tiles, pixels.

    Returns:
        Means and standard deviations, (C,) each, of values from 0 to 1.

    Raises:
        DataError: a shard or a picture is damaged.
    """
    rows = _chosen_rows(dataset.part_rows(split, "train"))
    logger.info(f"normalisation: reading {len(rows)} training tiles at {size} px")
    sums = [0] * dataset.tile_format.channels
    squares = [0] * dataset.tile_format.channels
    for tile in _tiles(dataset, rows, size):
        # int64 holds the squares of 4096 x 4096 values of 16 bits; Python's integers hold all.
        values = tile.reshape(-1, tile.shape[2]).astype(np.int64)
        for channel, column in enumerate(values.T):
            sums[channel] += int(column.sum())
            squares[channel] += int(np.dot(column, column))
    count = len(rows) * size * size
    means = []
    deviations = []
    for channel, (total, square) in enumerate(zip(sums, squares, strict=True)):
        mean, deviation = _moments(total, square, count, dataset.tile_format.scale)
        if deviation == 0:
            logger.warning(
                f"channel {channel + 1} has the same value in all of these tiles: "
                "a network learns nothing from it"
            )
            # The channel becomes 0; its deviation cannot divide it.
            deviation = 1.0
        means.append(mean)
        deviations.append(deviation)
    return means, deviations


def _chosen_rows(rows: Array) -> Array:
    """At most `MOST_TILES` of some rows, ascending."""
    if len(rows) <= MOST_TILES:
        return rows
    generator = np.random.default_rng(SEED)
    return np.sort(generator.choice(rows, MOST_TILES, replace=False))


def _tiles(dataset: Dataset, rows: Array, size: int) -> Iterator[Array]:
    """The decoded tiles of ascending rows. One shard is in memory at a time."""
    starts = dataset.shard_starts
    for first, end in itertools.pairwise(starts):
        in_shard = rows[(rows >= first) & (rows < end)]
        if len(in_shard):
            yield from decoded_images(dataset, in_shard.tolist(), size)


def _moments(total: int, square: int, count: int, scale: int) -> tuple[float, float]:
    """Mean and standard deviation of `count` values, in units of `scale`.

    Args:
        total: sum of the values.
        square: sum of their squares.
        count: number of values.
        scale: the value that is 1.
    """
    mean = total / (count * scale)
    # The variance times count squared: a whole number, so nothing cancels.
    spread = count * square - total * total
    deviation = math.sqrt(spread) / (count * scale)
    return round(mean, DIGITS), round(deviation, DIGITS)
