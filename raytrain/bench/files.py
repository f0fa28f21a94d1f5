"""Writes the tiles of a dataset as image files, the form they have before an ingest. No Ray."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from raytrain.data import images
from raytrain.data.dataset import Dataset, labels_of, names_of, read_images


def write_jpegs(
    dataset: Dataset, rows: Sequence[int], directory: Path
) -> tuple[list[Path], np.ndarray[Any, Any]]:
    """Writes the encoded bytes of some tiles as files that are named after the tiles.

    Args:
        dataset: an opened dataset.
        rows: row numbers of the tiles.
        directory: is created where it is missing.

    Returns:
        The paths in the order of the rows, with the suffix of their format (.jpg for JPEG), and
        the targets, uint8 (n, K).
    """
    directory.mkdir(parents=True, exist_ok=True)
    names = names_of(dataset, rows)
    paths = []
    for name, content in zip(names, read_images(dataset, rows), strict=True):
        path = directory / f"{name}{_suffix(content)}"
        path.write_bytes(content)
        paths.append(path)
    return paths, dataset.targets[np.asarray(rows)]


def write_labelled(dataset: Dataset, count: int, directory: Path) -> tuple[Path, Path]:
    """Writes a folder of `count` tiles and a label file, as input of an ingest.

    The tiles of the dataset are repeated under new names until there are enough.

    Args:
        dataset: an opened dataset.
        count: number of tiles to write.
        directory: where the folder and the label file are created.

    Returns:
        The folder with the tiles, and the CSV file with the columns image_name and tags.
    """
    # An ingest refuses tiles without a label.
    labelled = dataset.targets.any(axis=1)
    rows = np.flatnonzero(labelled)[:count].tolist()
    originals, _ = write_jpegs(dataset, rows, directory / "originals")
    folder = directory / "tiles"
    folder.mkdir()
    lines = ["image_name,tags"]
    repeated = islice(cycle(zip(rows, originals, strict=True)), count)
    for number, (row, original) in enumerate(repeated):
        # A hard link takes no space, and an ingest reads it like a file of its own.
        os.link(original, folder / f"tile_{number}{original.suffix}")
        tags = " ".join(labels_of(dataset, row))
        lines.append(f"tile_{number},{tags}")
    labels = directory / "labels.csv"
    labels.write_text("\n".join(lines) + "\n")
    return folder, labels


def _suffix(content: bytes) -> str:
    """The file name suffix of encoded bytes, such as .jpg or .png."""
    # Only the header is read here. The list of formats keeps Pillow from trying rarely used ones.
    with Image.open(io.BytesIO(content), formats=images.FORMATS) as image:
        image_format = str(image.format).lower()
    if image_format == "jpeg":
        return ".jpg"
    return f".{image_format}"
