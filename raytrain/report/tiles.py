"""The sheet of tiles: which ones to show, and what was said about each against the truth.

Predictions and their dataset in, cards with small JPEGs out. The pictures pass the same gate as everywhere, since
browsers show the 4-component JPEGs of Planet with wrong colours. Neither torch nor ray.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from raytrain.data import images
from raytrain.data.dataset import open_dataset, read_images
from raytrain.errors import DataError
from raytrain.evaluation.predictions import Predictions

SIDE = 160  # pixels
QUALITY = 80


@dataclass(frozen=True)
class Card:
    """One tile of the sheet: a data: URI, its F2, and its labels by how the prediction met the truth."""

    name: str
    picture: str
    f2: float
    right: tuple[str, ...]
    missed: tuple[str, ...]
    false: tuple[str, ...]


def choose(
    f2: np.ndarray[Any, Any], target: np.ndarray[Any, Any], each: int = 4
) -> dict[str, list[int]]:
    """Row numbers of the best, the median and the worst tiles, `each` of a kind and no tile twice.

    Args:
        f2: float (N,), F2 of every tile.
        target: uint8 (N, K). Among tiles of equal F2 those with more labels go outward: they show more.
        each: tiles of a kind; fewer where there are not enough tiles.
    """
    labels = target.sum(axis=1)
    ranked = np.lexsort((-labels, -f2)).tolist()
    each = min(each, len(ranked) // 3)
    middle = (len(ranked) - each) // 2
    best = set(ranked[:each])
    worst = [row for row in np.lexsort((-labels, f2)).tolist() if row not in best][:each]
    taken = {*best, *worst}
    median = [row for row in ranked[middle:] + ranked[:middle][::-1] if row not in taken][:each]
    return {"best": ranked[:each], "median": median, "worst": worst}


def cards(
    predictions: Predictions,
    predicted: np.ndarray[Any, Any],
    f2: np.ndarray[Any, Any],
    rows: Sequence[int],
    path: str,
) -> list[Card]:
    """The cards of some rows of the predictions.

    Args:
        predictions: with targets.
        predicted: bool (N, K), the labels that were said.
        f2: float (N,), F2 of every tile.
        rows: which tiles, in the order wanted.
        path: the dataset they come from.

    Raises:
        DataError: the dataset is not there any more, is damaged, or does not hold these tiles.
        StorageError: its file system cannot be reached.
    """
    dataset = open_dataset(path)
    positions = {name: row for row, name in enumerate(dataset.table["image_name"])}
    missing = [predictions.names[row] for row in rows if predictions.names[row] not in positions]
    if missing:
        raise DataError(f"{path} does not hold the tile {missing[0]}")
    contents = read_images(dataset, [positions[predictions.names[row]] for row in rows])
    return [
        _card(predictions, predicted[row], float(f2[row]), row, content)
        for row, content in zip(rows, contents, strict=True)
    ]


def thumbnail(content: bytes) -> str:
    """Encoded bytes of a tile as a data: URI of an RGB JPEG of SIDE × SIDE pixels.

    Raises:
        DataError: the bytes are no picture.
    """
    try:
        pixels = images.decode(content, SIDE)
    except images.BadImage as error:
        raise DataError(f"a tile cannot be decoded: {error.detail}") from None
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, format="JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(sink.getvalue()).decode()


def _card(
    predictions: Predictions, predicted: np.ndarray[Any, Any], f2: float, row: int, content: bytes
) -> Card:
    def named(which: np.ndarray[Any, Any]) -> tuple[str, ...]:
        return tuple(
            label for label, chosen in zip(predictions.classes, which, strict=True) if chosen
        )

    assert predictions.target is not None
    true = predictions.target[row] != 0
    right, missed, false = (
        named(true & predicted),
        named(true & ~predicted),
        named(predicted & ~true),
    )
    return Card(predictions.names[row], thumbnail(content), f2, right, missed, false)
