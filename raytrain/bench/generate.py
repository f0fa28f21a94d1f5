"""Generates a dataset for a bench where there is no real one. No Ray, no SciPy.

The tiles have the size and format of Planet's: 256x256 JPEGs of four components with quality 75.
They take 15 kB on average (600 real ones: 15.6 kB) and decode in 0.9 of the time of real ones.
The colour of a tile follows from its labels, so that training has something to learn.
"""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow as pa
from PIL import Image

from raytrain import registry, storage
from raytrain.data import dataset as ds
from raytrain.data import row_labels
from raytrain.data.splits import as_split, random_parts
from raytrain.machine import usable_cpus

# As many classes as Planet has, with similarly unequal frequencies.
CLASSES = tuple(f"label-{k:02}" for k in range(17))
FREQUENT = (0.9, 0.7, 0.3, 0.2, 0.2, 0.15, 0.1, 0.1, 0.05, 0.05)
LABEL_RATES = np.array([*FREQUENT, *[0.01] * 7])
# Rows of a shard, chosen like those of an ingest: 16 shards within these limits.
LEAST_ROWS = 64
MOST_ROWS = 1024
SHARDS = 16
# Below this number of tiles a process pool would take longer to start than it saves.
POOL_FROM_TILES = 3000
CACHE_VARIABLE = "RAYTRAIN_CACHE"
Array = np.ndarray[Any, Any]


@contextmanager
def workplace(path: str | None, tiles: int, side: int = 256) -> Iterator[ds.Dataset]:
    """Opens a dataset, or generates one that exists as long as the context.

    Args:
        path: of a dataset; None to generate tiles.
        tiles: number of tiles to generate.
        side: of the generated tiles, pixels.
    """
    if path is not None:
        yield ds.open_dataset(path)
        return
    before = os.environ.get(CACHE_VARIABLE)
    with tempfile.TemporaryDirectory(prefix="raytrain-bench-tiles-") as directory:
        # In the user's own cache the decoded tiles would stay behind after the bench.
        os.environ[CACHE_VARIABLE] = f"{directory}/cache"
        try:
            yield write_tiles(f"{directory}/dataset", tiles, side)
        finally:
            os.environ.pop(CACHE_VARIABLE)
            if before is not None:
                os.environ[CACHE_VARIABLE] = before


def write_tiles(path: str, count: int, side: int = 256) -> ds.Dataset:
    """Writes a dataset of generated tiles with the split `random`, and opens it.

    The same arguments give the same bytes every time.

    Args:
        path: directory of the new dataset.
        count: number of tiles.
        side: of a tile, pixels.
    """
    shards = _write_shards(path, count, side)
    labels = _labels_file(shards, count)
    storage.write_bytes(storage.join(path, row_labels.FILE), labels)
    names = [_name(index) for index in range(count)]
    split = as_split(names, random_parts(count))
    content = ds.split_bytes(split)
    storage.write_bytes(storage.join(path, "splits", "random.parquet"), content)
    manifest = {
        "schema_version": ds.SCHEMA_VERSION,
        "task": registry.DEFAULT,
        "source": {"images": "synthetic, for a bench"},
        "classes": list(CLASSES),
        "tile_size": side,
        "shards": [shard.entry for shard in shards],
        row_labels.HASH_KEY: hashlib.sha256(labels).hexdigest(),
        "splits": [ds.split_entry("random", content, split)],
    }
    # Last, because a folder is a dataset only once this file exists.
    storage.write_json(storage.join(path, "dataset.json"), manifest)
    return ds.open_dataset(path)


@dataclass(frozen=True)
class _Shard:
    """A shard that was written.

    Attributes:
        entry: of the shard in dataset.json.
        bytes: of its file.
        targets: uint8 (rows, K).
    """

    entry: dict[str, Any]
    bytes: int
    targets: Array


def _labels_file(shards: Sequence[_Shard], count: int) -> bytes:
    """The file with names and targets of all rows."""
    names = pa.array([_name(index) for index in range(count)], pa.string())
    targets = np.concatenate([shard.targets for shard in shards])
    column = row_labels.target_rows(targets, np.ones(count, np.bool_))
    rows = [shard.entry["rows"] for shard in shards]
    return row_labels.content(names, column, rows, [shard.bytes for shard in shards])


def _write_shards(path: str, count: int, side: int) -> list[_Shard]:
    """Writes all shards, in a process pool if there are many tiles."""
    rows_per_shard = int(np.clip(-(-count // SHARDS), LEAST_ROWS, MOST_ROWS))
    starts = range(0, count, rows_per_shard)
    ends = [min(start + rows_per_shard, count) for start in starts]
    # One sequence for each parameter of `_write_shard`, as `map` takes them.
    arguments = ([path] * len(starts), starts, ends, [side] * len(starts))
    if count < POOL_FROM_TILES:
        return list(map(_write_shard, *arguments))
    cores = usable_cpus()
    with ProcessPoolExecutor(cores, multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(_write_shard, *arguments))


def _write_shard(path: str, start: int, end: int, side: int) -> _Shard:
    """Writes the tiles from `start` to `end` - 1."""
    rows = []
    for index in range(start, end):
        # A generator for each tile: its bytes do not depend on how tiles are divided into shards.
        generator = np.random.default_rng([side, index])
        target = _labels(generator)
        content = picture(target, side, generator)
        rows.append((_name(index), content, side, side, crc32(content), target))
    written = bytes(ds.shard_bytes(rows))
    file = f"part-{start:06}.parquet"
    storage.write_bytes(str(Path(path) / "shards" / file), written)
    names = [row[0] for row in rows]
    targets = [row[-1] for row in rows]
    entry = ds.shard_entry(file, written, names, targets)
    return _Shard(entry, len(written), np.stack(targets))


def _labels(generator: np.random.Generator) -> Array:
    """Random labels of a tile, uint8 (K,), of which at least one is set."""
    target = (generator.random(len(CLASSES)) < LABEL_RATES).astype(np.uint8)
    # An ingest refuses tiles without a label, so no dataset contains one.
    target[0] |= not target.any()
    return target


def picture(target: Array, side: int, generator: np.random.Generator) -> bytes:
    """Draws a tile.

    Args:
        target: its labels, uint8 (K,).
        side: pixels.
        generator: source of the random structure.

    Returns:
        JPEG bytes.
    """
    # Each label shifts the mean colour of the tile by a colour of its own; int (K, 3).
    colours = np.random.default_rng(0).integers(-40, 41, (len(CLASSES), 3))
    mean_colour = np.clip(128 + target @ colours, 80, 176)
    # Large smooth structures from 8x8 random colours, and fine grain of a quarter of the size.
    patches = mean_colour + generator.integers(-60, 61, (8, 8, 3))
    coarse = np.clip(patches, 0, 255).astype(np.uint8)
    grain = generator.normal(0, 4, (side // 4, side // 4)).astype(np.float32)
    smooth = np.asarray(_enlarged(coarse, side), np.float32)
    rough = np.asarray(_enlarged(grain, side))[..., None]
    pixels = np.clip(smooth + rough, 0, 255).astype(np.uint8)
    # Planet's JPEGs have inverted colours and an empty fourth component.
    empty = np.zeros((side, side, 1), np.uint8)
    inverted = np.concatenate([255 - pixels, empty], axis=2)
    buffer = io.BytesIO()
    Image.fromarray(inverted, "CMYK").save(buffer, "JPEG", quality=75)
    return buffer.getvalue()


def _enlarged(pixels: Array, side: int) -> Image.Image:
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)


def _name(index: int) -> str:
    return f"generated_{index:06}"
