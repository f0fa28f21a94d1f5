"""Tiles as files on disk, as people have them before any ingest. No ray."""

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
from raytrain.data.dataset import Dataset, labels_of, read_images


def write_jpegs(
    dataset: Dataset, rows: Sequence[int], directory: Path
) -> tuple[list[Path], np.ndarray[Any, Any]]:
    """Writes the encoded bytes of some rows as files named by their tiles.

    Returns:
        Paths in the order of the rows, with the suffix of their format (.jpg for JPEG), and targets uint8 (n, K).
    """
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for row, content in zip(rows, read_images(dataset, rows), strict=True):
        paths.append(directory / f"{dataset.table['image_name'].iloc[row]}{_suffix(content)}")
        paths[-1].write_bytes(content)
    return paths, dataset.targets[np.asarray(rows)]


def write_labelled(dataset: Dataset, count: int, directory: Path) -> tuple[Path, Path]:
    """Fills a folder with `count` tiles, the dataset's own in turn under new names (hard links), and a label file.

    Returns:
        The folder with the tiles and the CSV: image_name, tags.
    """
    # Ingest takes no tile without a label.
    rows = np.flatnonzero(dataset.targets.any(1))[:count].tolist()
    originals, _ = write_jpegs(dataset, rows, directory / "originals")
    folder, lines = directory / "tiles", ["image_name,tags"]
    folder.mkdir()
    for number, (row, path) in enumerate(islice(cycle(zip(rows, originals, strict=True)), count)):
        os.link(path, folder / f"tile_{number}{path.suffix}")
        lines.append(f"tile_{number},{' '.join(labels_of(dataset, row))}")
    labels = directory / "labels.csv"
    labels.write_text("\n".join(lines) + "\n")
    return folder, labels


def _suffix(content: bytes) -> str:
    with Image.open(io.BytesIO(content), formats=images.FORMATS) as image:
        return ".jpg" if image.format == "JPEG" else f".{str(image.format).lower()}"
