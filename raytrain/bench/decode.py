"""How many tiles one core decodes per second. No Ray, no torch."""

from __future__ import annotations

import time

from raytrain.bench.figures import Figure
from raytrain.data import images
from raytrain.data.dataset import Dataset, read_images

# 1,000 tiles of 15 kB fit into memory easily and take about half a second to decode.
MOST_TILES = 1000


def decode_rate(dataset: Dataset, rounds: int) -> list[Figure]:
    """Measures how fast this thread decodes tiles from encoded bytes in memory to uint8 pixels.

    The pixels keep the size of the tile. Reading from disk is not part of the measured time.

    Args:
        dataset: an opened dataset, of which the first tiles are decoded.
        rounds: how often the same tiles are decoded; each round gives one value.
    """
    # All bytes are read before the clock starts.
    contents = list(read_images(dataset, range(min(MOST_TILES, dataset.rows))))
    rates = []
    for _ in range(rounds):
        began = time.perf_counter()
        for content in contents:
            images.decode(content)
        seconds = time.perf_counter() - began
        rates.append(len(contents) / seconds)
    total_bytes = sum(len(content) for content in contents)
    kilobytes = total_bytes / len(contents) / 1000
    about = f"one core, {dataset.tile_size} px, {kilobytes:.1f} kB a tile"
    return [Figure("decode", "decode", "tiles/s", tuple(rates), about)]
