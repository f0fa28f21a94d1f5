"""How many tiles one core decodes. No ray, no torch."""

from __future__ import annotations

import time

from raytrain.bench.figures import Figure
from raytrain.data import images
from raytrain.data.dataset import Dataset, read_images

MOST_TILES = 1000


def decode_rate(dataset: Dataset, rounds: int) -> list[Figure]:
    """Tiles per second from encoded bytes in memory to uint8 pixels of their own size, in this thread alone."""
    contents = list(read_images(dataset, range(min(MOST_TILES, dataset.rows))))
    rates = []
    for _ in range(rounds):
        began = time.perf_counter()
        for content in contents:
            images.decode(content)
        rates.append(len(contents) / (time.perf_counter() - began))
    size = sum(map(len, contents)) / len(contents) / 1000
    about = f"one core, {dataset.tile_size} px, {size:.1f} kB a tile"
    return [Figure("decode", "decode", "tiles/s", tuple(rates), about)]
