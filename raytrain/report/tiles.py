"""The tiles of a report: chooses which to show, and makes their cards.

    choose(score, wealth)          the best, the median and the worst tiles
    sheet(record, chosen, ...)     picture and lines of these tiles

All pictures are decoded by raytrain/data/pixels.py and stored again, since browsers show the
4-component JPEGs of Planet with wrong colours, and no TIFF. Imports neither torch nor ray.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image

from raytrain.data import drawing, images, pixels
from raytrain.data.dataset import all_names, open_dataset, read_images
from raytrain.data.tile_format import TileFormat
from raytrain.errors import DataError, StorageError
from raytrain.evaluation.metrics import Array
from raytrain.report.record import Record
from raytrain.report.sections import Card, Line, Sheet

SIDE = 160  # pixels
RGB = TileFormat()
QUALITY = 80  # of the JPEGs: about 5 KB a tile, and no visible blocks at this size


def choose(score: Array, wealth: Array, each: int = 4) -> dict[str, list[int]]:
    """Chooses the best, the median and the worst tiles. No tile is chosen twice.

    Args:
        score: float (N,), of each tile.
        wealth: (N,), such as the number of labels. Of tiles with equal score, those with more come
            first among the best and among the worst, since they show more.
        each: tiles of a kind; fewer if there are not enough tiles.

    Returns:
        Row numbers by kind: best, median, worst.
    """
    each = min(each, len(score) // 3)
    # The last key of lexsort counts first: the score, then the wealth. As signed numbers, since
    # minus an unsigned one would be large.
    poorer = -np.asarray(wealth, np.float64)
    best_first = np.lexsort((poorer, -score)).tolist()
    worst_first = np.lexsort((poorer, score)).tolist()
    best = best_first[:each]
    # Tiles of equal score may be at the beginning of both orders.
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


def sheet(
    record: Record,
    chosen: Mapping[str, list[int]],
    score: Array,
    lines: Callable[[int], tuple[Line, ...]],
    intro: tuple[Line, ...],
) -> Sheet:
    """Makes the cards of the chosen tiles, or says why there are none.

    Args:
        record: with predictions.
        chosen: row numbers of the predictions by kind.
        score: float (N,), of each tile.
        lines: what stands below the tile of a row.
        intro: what stands above the cards.
    """
    if record.dataset is None:
        return Sheet(note="No tiles are shown, since no file names the dataset of the predictions.")
    found = {}
    try:
        for kind, rows in chosen.items():
            # A kind has no rows if there are fewer than three tiles.
            if rows:
                found[kind] = _cards(record, record.dataset, rows, score, lines)
    except (DataError, StorageError) as error:
        # Datasets are moved and deleted; the rest of the report does not need one.
        return Sheet(note=f"No tiles are shown: {error.what}.")
    return Sheet(found, intro)


def _cards(
    record: Record,
    path: str,
    rows: Sequence[int],
    score: Array,
    lines: Callable[[int], tuple[Line, ...]],
) -> list[Card]:
    """The cards of some rows of the predictions, in the order wanted.

    Raises:
        DataError: the dataset no longer exists, is damaged, or does not contain these tiles.
        StorageError: the dataset's file system cannot be reached.
    """
    assert record.predictions is not None
    dataset = open_dataset(path)
    row_of_name = {}
    for row, name in enumerate(all_names(dataset)):
        row_of_name[name] = row
    dataset_rows = []
    for row in rows:
        name = record.predictions.names[row]
        if name not in row_of_name:
            raise DataError(f"{path} does not contain the tile {name}")
        dataset_rows.append(row_of_name[name])
    contents = read_images(dataset, dataset_rows)
    found = []
    for row, content in zip(rows, contents, strict=True):
        name = record.predictions.names[row]
        picture = thumbnail(content, dataset.tile_format)
        found.append(Card(name, picture, float(score[row]), lines(row)))
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
