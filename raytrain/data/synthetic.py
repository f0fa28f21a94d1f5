"""Synthetic tiles for the quickstart and the tests: 256x256 pictures with the 17 Planet labels, painted from noise.

Any tile can be made again from (seed, index). Label sets are drawn from `label_sets.csv`, counts of whole label sets in
the competition's label file (aggregate statistics, no rows of it). Every other tile is written as a 4-component JPEG,
as all the real ones are. They are named and marked synthetic; scores on them are no Planet results. No torch, no ray.
"""

from __future__ import annotations

import csv
import io
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from raytrain import storage
from raytrain.data.synthetic_paint import paint

CLASSES = (
    "agriculture",
    "artisinal_mine",
    "bare_ground",
    "blooming",
    "blow_down",
    "clear",
    "cloudy",
    "conventional_mine",
    "cultivation",
    "habitation",
    "haze",
    "partly_cloudy",
    "primary",
    "road",
    "selective_logging",
    "slash_burn",
    "water",
)
# Counts of label sets are raised to this power, so that the rarest labels occur a few times in two thousand tiles.
TEMPER = 0.85
# The quirks of the real file, at fixed places: a tile without weather label, one with nine labels, and in the CSV a
# repeated tag and tags out of order.
NO_WEATHER, REPEATED_TAG, UNSORTED_TAGS, NINE_LABELS = 7, 11, 13, 17
_FIXED = {
    NO_WEATHER: "water",
    REPEATED_TAG: "agriculture clear cultivation primary",
    UNSORTED_TAGS: "blooming clear primary",
    NINE_LABELS: "agriculture bare_ground clear cultivation habitation primary road slash_burn water",
}


def labels(seed: int, index: int) -> tuple[str, ...]:
    """The label set of a tile, sorted."""
    if index in _FIXED:
        return tuple(_FIXED[index].split())
    sets, weights = _label_sets()
    return sets[int(np.random.default_rng([seed, index, 0]).choice(len(sets), p=weights))]


def tile(seed: int, index: int) -> np.ndarray[Any, Any]:
    """The pixels of a tile, uint8 (256, 256, 3) RGB."""
    return paint(frozenset(labels(seed, index)), np.random.default_rng([seed, index, 1]))


def name(index: int) -> str:
    """The tile's name: synthetic_000007."""
    return f"synthetic_{index:06}"


def encoded(seed: int, index: int) -> bytes:
    """The tile as JPEG bytes: 4 components with an empty K channel for odd indices, as the real tiles; RGB for even."""
    image = Image.fromarray(tile(seed, index))
    if index % 2:
        inverted = 255 - np.asarray(image)
        empty = np.zeros((*inverted.shape[:2], 1), np.uint8)
        image = Image.fromarray(np.concatenate([inverted, empty], 2), "CMYK")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, comment=b"synthetic")
    return buffer.getvalue()


def write(out: Path, rows: int, seed: int = 0, processes: int | None = None) -> tuple[Path, Path]:
    """Writes tiles 0 to rows - 1 and their label file; where the label file is there already, nothing is done.

    Args:
        out: directory to make.
        rows: number of tiles.
        seed: of the whole set.
        processes: by default the CPUs that this process may use.

    Returns:
        The image folder `out/synthetic-jpg` and the label file `out/synthetic_v2.csv`, which is written last.
    """
    folder, label_file, text = (
        out / "synthetic-jpg",
        out / "synthetic_v2.csv",
        _label_text(rows, seed),
    )
    if label_file.exists() and label_file.read_text() == text:
        return folder, label_file
    storage.make_dir(str(folder))
    processes = processes or len(os.sched_getaffinity(0))
    if rows < 32 * processes:
        _write_tiles(folder, seed, range(rows))
    else:
        chunks = [range(i, rows, processes) for i in range(processes)]
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            list(pool.map(_write_tiles, [folder] * processes, [seed] * processes, chunks))
    storage.write_text(str(label_file), text)
    return folder, label_file


def _write_tiles(folder: Path, seed: int, indices: range) -> None:
    for index in indices:
        storage.write_bytes(str(folder / f"{name(index)}.jpg"), encoded(seed, index), durable=False)


def _label_text(rows: int, seed: int) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image_name", "tags"])
    for index in range(rows):
        tags = list(labels(seed, index))
        tags = [*tags, "cultivation"] if index == REPEATED_TAG else tags
        tags = [*tags[1:], tags[0]] if index == UNSORTED_TAGS else tags
        writer.writerow([name(index), " ".join(tags)])
    return text.getvalue()


@cache
def _label_sets() -> tuple[list[tuple[str, ...]], np.ndarray[Any, Any]]:
    text = resources.files("raytrain.data").joinpath("label_sets.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    weights = np.array([float(row["tiles"]) for row in rows]) ** TEMPER
    return [tuple(row["tags"].split()) for row in rows], weights / weights.sum()
