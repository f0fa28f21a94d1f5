"""Synthetic tiles for the quickstart and the tests: 256x256 pictures with the 17 Planet labels.

A tile is painted from noise and depends on (seed, index) only. Label sets are drawn from
`label_sets.csv`: how often each label set occurs in the competition's label file (aggregate
statistics, no rows of it). Every other tile is written as a 4-component JPEG, as all real ones
are. Names and JPEG comments mark the tiles as synthetic; scores on them are no Planet results.
Imports neither torch nor ray.
"""

from __future__ import annotations

import csv
import io
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from raytrain import storage
from raytrain.data.synthetic_paint import paint
from raytrain.machine import usable_cpus

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
# Counts of label sets are raised to this power, so that the rarest labels occur a few times in two
# thousand tiles.
TEMPER = 0.85
# Indices of tiles with the peculiarities of the real label file: no weather label, a tag that is
# repeated in the CSV, tags out of order in the CSV, and nine labels.
NO_WEATHER = 7
REPEATED_TAG = 11
UNSORTED_TAGS = 13
NINE_LABELS = 17
_FIXED = {
    NO_WEATHER: "water",
    REPEATED_TAG: "agriculture clear cultivation primary",
    UNSORTED_TAGS: "blooming clear primary",
    NINE_LABELS: (
        "agriculture bare_ground clear cultivation habitation primary road slash_burn water"
    ),
}
# With fewer tiles for each process, starting the processes takes longer than painting.
_MIN_TILES_PER_PROCESS = 32
_JPEG_QUALITY = 90


def labels(seed: int, index: int) -> tuple[str, ...]:
    """Returns the label set of a tile, sorted."""
    if index in _FIXED:
        return tuple(_FIXED[index].split())
    sets, weights = _label_sets()
    # The last number separates this stream from that of the pixels.
    rng = np.random.default_rng([seed, index, 0])
    chosen = int(rng.choice(len(sets), p=weights))
    return sets[chosen]


def tile(seed: int, index: int) -> np.ndarray[Any, Any]:
    """Returns the pixels of a tile, uint8 (256, 256, 3) RGB."""
    rng = np.random.default_rng([seed, index, 1])
    return paint(frozenset(labels(seed, index)), rng)


def name(index: int) -> str:
    """Returns the name of a tile: synthetic_000007."""
    return f"synthetic_{index:06}"


def encoded(seed: int, index: int) -> bytes:
    """Returns the tile as a JPEG.

    Odd indices have 4 components, inverted colours with an empty K channel, as the real tiles
    have. Even ones are RGB.
    """
    image = Image.fromarray(tile(seed, index))
    if index % 2:
        inverted = 255 - np.asarray(image)
        black = np.zeros((*inverted.shape[:2], 1), np.uint8)
        image = Image.fromarray(np.concatenate([inverted, black], 2), "CMYK")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY, comment=b"synthetic")
    return buffer.getvalue()


def write(out: Path, rows: int, seed: int = 0, processes: int | None = None) -> tuple[Path, Path]:
    """Writes tiles 0 to rows - 1 and their label file.

    Does nothing where the same label file exists: it is written last, so the tiles are complete.

    Args:
        out: directory to create.
        rows: number of tiles.
        seed: of the whole set.
        processes: by default the number of CPUs that this process may use.

    Returns:
        The image folder `out/synthetic-jpg` and the label file `out/synthetic_v2.csv`.
    """
    folder = out / "synthetic-jpg"
    label_file = out / "synthetic_v2.csv"
    text = _label_text(rows, seed)
    if label_file.exists() and label_file.read_text() == text:
        return folder, label_file
    storage.make_dir(str(folder))
    processes = processes or usable_cpus()
    if rows < _MIN_TILES_PER_PROCESS * processes:
        _write_tiles(folder, seed, range(rows))
    else:
        _write_in_processes(folder, seed, rows, processes)
    storage.write_text(str(label_file), text)
    return folder, label_file


def _write_in_processes(folder: Path, seed: int, rows: int, processes: int) -> None:
    chunks = [range(first, rows, processes) for first in range(processes)]
    # spawn: a fork of a process with threads may inherit a lock that is never released.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context) as pool:
        written = pool.map(_write_tiles, [folder] * processes, [seed] * processes, chunks)
        # Reading the results raises the errors of the processes.
        list(written)


def _write_tiles(folder: Path, seed: int, indices: range) -> None:
    for index in indices:
        path = folder / f"{name(index)}.jpg"
        # Not durable: the tiles can be painted again.
        storage.write_bytes(str(path), encoded(seed, index), durable=False)


def _label_text(rows: int, seed: int) -> str:
    """The label file as CSV text."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image_name", "tags"])
    for index in range(rows):
        tags = list(labels(seed, index))
        if index == REPEATED_TAG:
            tags = [*tags, "cultivation"]
        if index == UNSORTED_TAGS:
            tags = [*tags[1:], tags[0]]
        writer.writerow([name(index), " ".join(tags)])
    return text.getvalue()


@cache
def _label_sets() -> tuple[list[tuple[str, ...]], np.ndarray[Any, Any]]:
    """The label sets, and the probability of each as float64 (sets,)."""
    text = resources.files("raytrain.data").joinpath("label_sets.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    sets = [tuple(row["tags"].split()) for row in rows]
    counts = np.array([float(row["tiles"]) for row in rows])
    weights = counts**TEMPER
    return sets, weights / weights.sum()
