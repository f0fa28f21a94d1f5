"""The tiles of a report: chooses which to show, and compares the prediction of each to its labels.

    choose(f2, target)            the best, the median and the worst tiles
    cards(judged, rows, dataset)  picture and labels of these tiles

All pictures are decoded by raytrain/data/pixels.py and stored again, since browsers show the
4-component JPEGs of Planet with wrong colours, and no TIFF. Imports neither torch nor ray.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from raytrain.data import drawing, images, pixels
from raytrain.data.dataset import open_dataset, read_images
from raytrain.data.tile_format import TileFormat
from raytrain.errors import DataError
from raytrain.evaluation.metrics import Array
from raytrain.evaluation.predictions import Predictions

SIDE = 160  # pixels
RGB = TileFormat()
QUALITY = 80  # of the JPEGs: about 5 KB a tile, and no visible blocks at this size


@dataclass(frozen=True)
class JudgedTiles:
    """Predictions with targets, and what a threshold makes of them.

    Attributes:
        predictions: of N tiles and K labels, with targets.
        predicted: bool (N, K), the labels above the threshold.
        f2: float (N,), F2 of each tile.
    """

    predictions: Predictions
    predicted: Array
    f2: Array


@dataclass(frozen=True)
class Card:
    """A tile of the report.

    Attributes:
        name: of the tile.
        picture: a data: URI.
        f2: of this tile alone.
        right: labels that are true and were predicted.
        missed: labels that are true and were not predicted.
        false: labels that were predicted and are not true.
    """

    name: str
    picture: str
    f2: float
    right: tuple[str, ...]
    missed: tuple[str, ...]
    false: tuple[str, ...]


def choose(f2: Array, target: Array, each: int = 4) -> dict[str, list[int]]:
    """Chooses the best, the median and the worst tiles. No tile is chosen twice.

    Args:
        f2: float (N,), F2 of each tile.
        target: uint8 (N, K). Of tiles with equal F2, those with more labels show more, so they
            come first among the best and among the worst.
        each: tiles of a kind; fewer if there are not enough tiles.

    Returns:
        Row numbers by kind: best, median, worst.
    """
    each = min(each, len(f2) // 3)
    # The last key of lexsort counts first: F2, then the number of labels.
    fewer_labels = -target.sum(axis=1)
    best_first = np.lexsort((fewer_labels, -f2)).tolist()
    worst_first = np.lexsort((fewer_labels, f2)).tolist()
    best = best_first[:each]
    # Tiles of equal F2 may be at the beginning of both orders.
    taken = set(best)
    worst = [row for row in worst_first if row not in taken][:each]
    taken |= set(worst)
    # From the middle downwards; then upwards, if too few are left below.
    middle = (len(best_first) - each) // 2
    lower = best_first[middle:]
    upper = best_first[:middle]
    from_middle = lower + upper[::-1]
    median = [row for row in from_middle if row not in taken][:each]
    return {"best": best, "median": median, "worst": worst}


def cards(judged: JudgedTiles, rows: Sequence[int], path: str) -> list[Card]:
    """Makes the cards of some tiles.

    Args:
        judged: predictions and their F2.
        rows: row numbers of the predictions, in the order wanted.
        path: the dataset of the tiles.

    Raises:
        DataError: the dataset no longer exists, is damaged, or does not contain these tiles.
        StorageError: the dataset's file system cannot be reached.
    """
    dataset = open_dataset(path)
    row_of_name = {}
    for row, name in enumerate(dataset.table["image_name"]):
        row_of_name[name] = row
    dataset_rows = []
    for row in rows:
        name = judged.predictions.names[row]
        if name not in row_of_name:
            raise DataError(f"{path} does not contain the tile {name}")
        dataset_rows.append(row_of_name[name])
    contents = read_images(dataset, dataset_rows)
    found = []
    for row, content in zip(rows, contents, strict=True):
        found.append(_card(judged, row, thumbnail(content, dataset.tile_format)))
    return found


def thumbnail(content: bytes, tiles: TileFormat = RGB) -> str:
    """Decodes a tile and stores it as a small JPEG.

    Args:
        content: the encoded picture.
        tiles: format of the dataset's tiles. Of other than RGB three channels are drawn, see
            `drawing`.

    Returns:
        A data: URI of an RGB JPEG of SIDE × SIDE pixels.

    Raises:
        DataError: the bytes are not a picture.
    """
    try:
        tile = pixels.decode(content, tiles, SIDE)
    except images.BadImage as error:
        raise DataError(f"a tile cannot be decoded: {error.detail}") from None
    sink = io.BytesIO()
    Image.fromarray(drawing.drawn(tile)).save(sink, format="JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(sink.getvalue()).decode()


def _card(judged: JudgedTiles, row: int, picture: str) -> Card:
    predictions = judged.predictions
    assert predictions.target is not None
    # bool (K,)
    true = predictions.target[row] != 0
    predicted = judged.predicted[row]
    return Card(
        name=predictions.names[row],
        picture=picture,
        f2=float(judged.f2[row]),
        right=_names(predictions.classes, true & predicted),
        missed=_names(predictions.classes, true & ~predicted),
        false=_names(predictions.classes, predicted & ~true),
    )


def _names(classes: Sequence[str], chosen: Array) -> tuple[str, ...]:
    """The classes where `chosen`, bool (K,), is True."""
    return tuple(classes[k] for k in np.flatnonzero(chosen).tolist())
