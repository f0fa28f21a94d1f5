"""Sheets of tiles of a dataset: which tiles are drawn, and how.

    chosen(dataset, how)         row numbers, by the heading above them
    drawn(dataset, rows, how)    the sheet, PNG bytes

It joins the dataset, the augmentation of training and the drawing of reports. So it stands in none
of their rooms. Torch is imported only where tiles are augmented.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raytrain import storage
from raytrain.config import Augment
from raytrain.data.dataset import Dataset, decoded_images, names_of, shown_labels
from raytrain.data.drawing import drawn as drawn_pixels
from raytrain.data.inspection import class_index, parts_of
from raytrain.errors import DataError
from raytrain.report import sheet
from raytrain.report.sheet import Cell, Row

Rows = np.ndarray[Any, Any]  # int64 (n,), row numbers of a dataset

# Tiles in a row of the sheet.
COLUMNS = 6
# By default: four rows, or as many tiles as have a row each where they are augmented.
TILES = 4 * COLUMNS
AUGMENTED_TILES = 8


@dataclass(frozen=True)
class SheetOptions:
    """Which tiles are on a sheet, and how they are drawn.

    Attributes:
        part: train, valid, test or all.
        split: that `part` refers to; None for the first one.
        label: only tiles with this label.
        per_label: draw one row of tiles for each label.
        augment: draw one row for each tile: as validation sees it, then draws of this augmentation.
        recipe: name of the recipe that it comes from, for the title.
        tiles: number of tiles; None for the default.
        size: side of a tile on the sheet in pixels.
        seed: of the choice of tiles and of the augmentation.
    """

    part: str = "all"
    split: str | None = None
    label: str | None = None
    per_label: bool = False
    augment: Augment | None = None
    recipe: str = "the lesson"
    tiles: int | None = None
    size: int = 160
    seed: int = 42


def chosen(dataset: Dataset, how: SheetOptions) -> dict[str, list[int]]:
    """Returns the row numbers of tiles by the heading above them; without headings, under "".

    Raises:
        DataError: there is no tile to show.
    """
    rows = _rows_of(dataset, how.split, how.part)
    if how.per_label:
        labels: Sequence[str] = dataset.classes
        if how.label:
            labels = [how.label]
        return _rows_by_label(dataset, rows, labels, how.tiles or COLUMNS, how.seed)
    if how.label:
        rows = _with_label(dataset, rows, how.label)
    count = TILES
    if how.augment is not None:
        count = AUGMENTED_TILES
    return {"": _some(rows, how.tiles or count, how.seed)}


def _rows_of(dataset: Dataset, split: str | None, part: str) -> Rows:
    """Row numbers of a part, or of all tiles."""
    if part == "all" and split is None:
        return np.arange(dataset.rows)
    split = split or _first_split(dataset)
    parts = parts_of(dataset, split)  # (rows,) words; "" for a tile that is in no part
    belongs = parts == part
    if part == "all":
        belongs = parts != ""
    rows = np.flatnonzero(belongs)
    if len(rows):
        return rows
    there = sorted(set(parts) - {""})
    raise DataError(
        f'the split {split} has no part "{part}"',
        "no tile to show",
        f"--part {' or '.join(there)}",
    )


def _first_split(dataset: Dataset) -> str:
    for entry in dataset.manifest["splits"]:
        return str(entry["name"])
    # There is none: `parts_of` then says so.
    return "random"


def _has_label(dataset: Dataset, rows: Rows, label: str) -> Rows:
    """Those of some rows whose tile has a label."""
    # Where the target is unknown it is zeros, so such a tile has no label.
    kept: Rows = rows[dataset.targets[rows, class_index(dataset, label)] != 0]
    return kept


def _with_label(dataset: Dataset, rows: Rows, label: str) -> Rows:
    kept = _has_label(dataset, rows, label)
    if not len(kept):
        raise DataError(
            f"no tile of this part has the label {label}",
            "there is nothing to show",
            "another --part or --label",
        )
    return kept


def _rows_by_label(
    dataset: Dataset, rows: Rows, labels: Sequence[str], count: int, seed: int
) -> dict[str, list[int]]:
    """Up to `count` rows for each label, by its heading; a label without tiles is left out."""
    chosen = {}
    for label in labels:
        kept = _has_label(dataset, rows, label)
        if not len(kept):
            continue
        plural = "s" * (len(kept) != 1)
        chosen[f"{label} · {len(kept):,} tile{plural}"] = _some(kept, count, seed)
    return chosen


def _some(rows: Rows, count: int, seed: int) -> list[int]:
    """Up to `count` of the rows in random order; the same seed gives the same ones."""
    return [int(row) for row in np.random.default_rng(seed).permutation(rows)[:count]]


# Drawing


def drawn(dataset: Dataset, rows: Mapping[str, list[int]], how: SheetOptions) -> bytes:
    """Draws a sheet.

    Args:
        dataset: opened.
        rows: as `chosen` gives them.
        how: the same options.

    Returns:
        PNG bytes; equal arguments give equal bytes.

    Raises:
        ConfigError: the sheet would be too large.
        DataError: a picture cannot be read.
    """
    every = distinct(rows)
    title = _title(dataset, len(every), how)
    if how.augment is None:
        return sheet.draw(_plain(rows, _cells(dataset, every, how.size)), title)
    # Augmented at the tiles' own size, as training does, and resized afterwards.
    cells = _cells(dataset, every, dataset.tile_size)
    in_order = [cells[row] for row in every]
    return sheet.draw(_augmented(in_order, how.augment, how.size, how.seed), title)


def distinct(rows: Mapping[str, list[int]]) -> list[int]:
    """Returns each row once: a tile with several labels stands under several headings."""
    return list(dict.fromkeys(row for of_heading in rows.values() for row in of_heading))


def _cells(dataset: Dataset, rows: list[int], size: int) -> dict[int, Cell]:
    """The cell of each row, with the tile as it is drawn, uint8 (size, size, 3)."""
    cells = {}
    names = names_of(dataset, rows)
    for row, name, pixels in zip(rows, names, decoded_images(dataset, rows, size), strict=True):
        cells[row] = Cell(drawn_pixels(pixels), name, shown_labels(dataset, row))
    return cells


def _plain(chosen: Mapping[str, list[int]], cells: Mapping[int, Cell]) -> list[Row]:
    """Rows of up to COLUMNS tiles; the first row of each heading shows it."""
    drawn = []
    for heading, rows in chosen.items():
        for start in range(0, len(rows), COLUMNS):
            shown = ""
            if start == 0:
                shown = heading
            drawn.append(Row([cells[row] for row in rows[start : start + COLUMNS]], shown))
    return drawn


def _augmented(cells: list[Cell], augment: Augment, size: int, seed: int) -> list[Row]:
    """A row for each tile: as validation sees it, then draws of the training augmentation.

    Args:
        cells: tiles of one size.
        augment: the recipe's augmentation.
        size: side length on the sheet, pixels.
        seed: seed of the draws.
    """
    from raytrain.training.transforms import examples

    pixels = np.stack([cell.pixels for cell in cells])  # uint8 (B, H, W, 3)
    # Both are uint8 (B, draws, size, size, 3).
    unchanged = examples(pixels, Augment(flip="none", p_affine=0, p_lighting=0), 1, size, seed)
    drawn = examples(pixels, augment, COLUMNS - 1, size, seed)
    rows = []
    for cell, before, after in zip(cells, unchanged, drawn, strict=True):
        row = [Cell(before[0], cell.name, cell.labels)]
        for number, changed in enumerate(after, 1):
            row.append(Cell(changed, "", (f"draw {number}",)))
        rows.append(Row(row))
    return rows


def _title(dataset: Dataset, count: int, how: SheetOptions) -> str:
    words = [storage.name_of(dataset.path), f"{count} of {dataset.rows:,} tiles"]
    if how.split or how.part != "all":
        words.append(f"split {how.split or _first_split(dataset)}")
    if how.part != "all":
        words.append(f"part {how.part}")
    if how.label:
        words.append(f"label {how.label}")
    if how.augment is not None:
        words.append(f"augmentation of {how.recipe}")
    return " · ".join(words)
