"""A dataset for a bench where there is none: generated tiles of the size and format of Planet's. No ray, no scipy.

256x256 JPEGs of four components and quality 75, 15 kB in the mean (600 real ones: 15.6 kB), whose decoding takes 0.9 of
the time of real ones. The colour of a tile follows from its labels, so that training has something to learn.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from PIL import Image

from raytrain import storage
from raytrain.data import dataset as ds
from raytrain.data.splits import as_split, random_parts

CLASSES = tuple(f"label-{k:02}" for k in range(17))
LABEL_RATES = np.array([0.9, 0.7, 0.3, 0.2, 0.2, 0.15, 0.1, 0.1, 0.05, 0.05, *[0.01] * 7])
# As many as ingest puts into a shard.
LEAST_ROWS, MOST_ROWS, SHARDS = 64, 1024, 16
POOL_FROM_TILES = 3000
Array = np.ndarray[Any, Any]


@contextmanager
def workplace(path: str | None, tiles: int, side: int = 256) -> Iterator[ds.Dataset]:
    """The dataset at `place`, or so many generated tiles for as long as the context lasts.

    Decoded tiles of generated ones are cached beside them and not in the user's cache, where they would stay.
    """
    if path is not None:
        yield ds.open_dataset(path)
        return
    kept = os.environ.get("RAYTRAIN_CACHE")
    with tempfile.TemporaryDirectory(prefix="raytrain-bench-tiles-") as directory:
        os.environ["RAYTRAIN_CACHE"] = f"{directory}/cache"
        try:
            yield write_tiles(f"{directory}/dataset", tiles, side)
        finally:
            os.environ.pop("RAYTRAIN_CACHE")
            if kept is not None:
                os.environ["RAYTRAIN_CACHE"] = kept


def write_tiles(path: str, count: int, side: int = 256) -> ds.Dataset:
    """Writes and opens a dataset of `count` generated tiles with the split `random`; the same bytes every time."""
    step = int(np.clip(-(-count // SHARDS), LEAST_ROWS, MOST_ROWS))
    starts = range(0, count, step)
    ends = [min(start + step, count) for start in starts]
    work = ([path] * len(starts), starts, ends, [side] * len(starts))
    if count < POOL_FROM_TILES:
        shards = list(map(_write_shard, *work))
    else:
        with ProcessPoolExecutor(
            len(os.sched_getaffinity(0)), multiprocessing.get_context("spawn")
        ) as pool:
            shards = list(pool.map(_write_shard, *work))
    split = as_split([_name(i) for i in range(count)], random_parts(count))
    content = ds.split_bytes(split)
    storage.write_bytes(storage.join(path, "splits", "random.parquet"), content)
    manifest = {
        "schema_version": ds.SCHEMA_VERSION,
        "task": "multi-label",
        "source": {"images": "synthetic, for a bench"},
        "classes": list(CLASSES),
        "tile_size": side,
        "shards": shards,
        "splits": [ds.split_entry("random", content, split)],
    }
    storage.write_json(storage.join(path, "dataset.json"), manifest)
    return ds.open_dataset(path)


def picture(target: Array, side: int, generator: np.random.Generator) -> bytes:
    """A tile with these labels, uint8 (K,), as JPEG bytes."""
    # Each label has a colour of its own and moves the tile's mean by it.
    colours = np.random.default_rng(0).integers(-40, 41, (len(CLASSES), 3))
    middle = np.clip(128 + target @ colours, 80, 176)
    coarse = np.clip(middle + generator.integers(-60, 61, (8, 8, 3)), 0, 255).astype(np.uint8)
    grain = generator.normal(0, 4, (side // 4, side // 4)).astype(np.float32)
    smooth = np.asarray(_enlarged(coarse, side), np.float32)
    pixels = np.clip(smooth + np.asarray(_enlarged(grain, side))[..., None], 0, 255).astype(
        np.uint8
    )
    # Planet's are of this kind: inverted colours and an empty fourth component.
    inverted = np.concatenate([255 - pixels, np.zeros((side, side, 1), np.uint8)], 2)
    sink = io.BytesIO()
    Image.fromarray(inverted, "CMYK").save(sink, "JPEG", quality=75)
    return sink.getvalue()


def _enlarged(pixels: Array, side: int) -> Image.Image:
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)


def _name(index: int) -> str:
    return f"generated_{index:06}"


def _write_shard(path: str, start: int, end: int, side: int) -> dict[str, Any]:
    rows = []
    for index in range(start, end):
        generator = np.random.default_rng([side, index])
        target = (generator.random(len(CLASSES)) < LABEL_RATES).astype(np.uint8)
        target[0] |= not target.any()  # ingest takes no tile without a label
        content = picture(target, side, generator)
        rows.append((_name(index), content, side, side, crc32(content), target))
    written = bytes(ds.shard_bytes(rows))
    file = f"part-{start:06}.parquet"
    storage.write_bytes(str(Path(path) / "shards" / file), written)
    return ds.shard_entry(file, written, [row[0] for row in rows], [row[-1] for row in rows])
