"""The command `raytrain data show`: tiles with their labels on one sheet.

Heavy modules are imported inside the functions, so that help and mistakes in flags answer at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from raytrain import storage
from raytrain.cli.flags import check_seed
from raytrain.cli.job import check_written
from raytrain.config import Augment, Recipe, load_recipe
from raytrain.errors import ConfigError, DataError, masked

if TYPE_CHECKING:
    import numpy as np

    from raytrain.data.dataset import Dataset
    from raytrain.report.sheet import Cell, Row

    Rows = np.ndarray[Any, Any]  # int64 (n,), row numbers of a dataset

# Tiles in a row of the sheet.
COLUMNS = 6
# By default: four rows, or as many tiles as have a row each with --augmented.
TILES = 4 * COLUMNS
AUGMENTED_TILES = 8
# Below 32 pixels nothing can be seen on a tile; above 1024 the sheet becomes huge.
SMALLEST, LARGEST = 32, 1024


@dataclass(frozen=True)
class ShowFlags:
    """Which tiles are shown, and how."""

    out: Annotated[
        str | None, Parameter(help="image to write; default: NAME-tiles.png in this folder")
    ] = None
    part: Annotated[
        Literal["train", "valid", "test", "all"], Parameter(help="part of the split to show")
    ] = "all"
    split: Annotated[
        str | None, Parameter(help="split that --part refers to; default: the dataset's first")
    ] = None
    label: Annotated[str | None, Parameter(help="show only tiles with this label")] = None
    per_label: Annotated[
        bool, Parameter(negative="", help="draw one row of tiles for each label")
    ] = False
    augmented: Annotated[
        bool,
        Parameter(
            negative="",
            help="draw one row for each tile: before the recipe's augmentation, "
            "and after it five times",
        ),
    ] = False
    config: Annotated[
        str | None, Parameter(help="recipe that --augmented uses; default: the lesson's")
    ] = None
    tiles: Annotated[
        int | None,
        Parameter(
            help="number of tiles; default: 24, with --per-label 6 per row, with --augmented 8"
        ),
    ] = None
    size: Annotated[int, Parameter(help="side length of a tile on the sheet, pixels")] = 160
    seed: Annotated[
        int, Parameter(help="random seed for the choice of tiles and the augmentation")
    ] = 42

    def check(self) -> None:
        """Refuses values out of range and flags that contradict each other.

        Raises:
            ConfigError: with the flags.
        """
        check_seed(self.seed)
        given = f"--size {self.size}"
        if self.tiles is not None:
            given = f"--tiles {self.tiles} {given}"
        if (self.tiles is not None and self.tiles < 1) or not SMALLEST <= self.size <= LARGEST:
            raise ConfigError(
                given,
                f"a sheet has at least one tile, "
                f"and each has a side of {SMALLEST} to {LARGEST} pixels",
                "--tiles 24 --size 160",
            )
        if self.per_label and self.augmented:
            raise ConfigError(
                "--per-label and --augmented",
                "each gives the rows another meaning",
                "leave one of them out",
            )
        if self.config and not self.augmented:
            raise ConfigError(
                f"--config {self.config} without --augmented",
                "only augmentation needs a recipe",
                "--augmented",
            )


NO_FLAGS = ShowFlags()


def show(dataset: str, /, *, flags: Annotated[ShowFlags, Parameter(name="*")] = NO_FLAGS) -> None:
    """Draw randomly chosen tiles with their labels on one sheet (PNG)."""
    check_written("--out", flags.out or "TILES.png")
    flags.check()
    recipe = None
    if flags.augmented:
        recipe = load_recipe(flags.config)
    from raytrain.data.dataset import open_dataset, unknown_tiles
    from raytrain.report import sheet

    found = open_dataset(dataset)
    chosen = _chosen_rows(found, flags)
    # A tile with several labels is in several rows, and is decoded and listed once.
    every = list(dict.fromkeys(row for rows in chosen.values() for row in rows))
    drawn = _sheet_rows(found, chosen, every, flags, recipe)
    path = storage.absolute(flags.out or f"{storage.name_of(found.path)}-tiles.png")
    storage.write_bytes(path, sheet.draw(drawn, _title(found, len(every), flags)))
    _print_tiles(found, every)
    unknown = unknown_tiles(found)
    if unknown:
        known = found.rows - unknown
        print(f"the dataset has {known:,} tiles with a target, {unknown:,} without one")
    print(f"sheet of {len(every)} tiles: {masked(path)}")


# Choosing tiles


def _chosen_rows(dataset: Dataset, flags: ShowFlags) -> dict[str, list[int]]:
    """Row numbers of the tiles to show, by the heading above them; without headings under ""."""
    rows = _rows_of(dataset, flags.split, flags.part)
    if flags.per_label:
        labels: Sequence[str] = dataset.classes
        if flags.label:
            labels = [flags.label]
        return _rows_by_label(dataset, rows, labels, flags.tiles or COLUMNS, flags.seed)
    if flags.label:
        rows = _with_label(dataset, rows, flags.label)
    count = TILES
    if flags.augmented:
        count = AUGMENTED_TILES
    return {"": _some(rows, flags.tiles or count, flags.seed)}


def _rows_of(dataset: Dataset, split: str | None, part: str) -> Rows:
    """Row numbers of a part, or of all tiles."""
    import numpy as np

    if part == "all" and split is None:
        return np.arange(dataset.rows)
    from raytrain.data.inspection import parts_of

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
    from raytrain.data.inspection import class_index

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
    import numpy as np

    return [int(row) for row in np.random.default_rng(seed).permutation(rows)[:count]]


# Drawing


def _sheet_rows(
    dataset: Dataset,
    chosen: Mapping[str, list[int]],
    every: list[int],
    flags: ShowFlags,
    recipe: Recipe | None,
) -> list[Row]:
    if recipe is None:
        cells = _cells(dataset, every, flags.size)
        return _plain(chosen, cells)
    # Augmented at the tiles' own size, as training does, and resized afterwards.
    cells = _cells(dataset, every, dataset.tile_size)
    return _augmented([cells[row] for row in every], recipe.data.augment, flags.size, flags.seed)


def _cells(dataset: Dataset, rows: list[int], size: int) -> dict[int, Cell]:
    """The cell of each row, with the tile as it is drawn, uint8 (size, size, 3)."""
    from raytrain.data.dataset import decoded_images, shown_labels
    from raytrain.data.drawing import drawn
    from raytrain.report.sheet import Cell

    names = dataset.table["image_name"]
    cells = {}
    for row, pixels in zip(rows, decoded_images(dataset, rows, size), strict=True):
        cells[row] = Cell(drawn(pixels), names[row], shown_labels(dataset, row))
    return cells


def _plain(chosen: Mapping[str, list[int]], cells: Mapping[int, Cell]) -> list[Row]:
    """Rows of up to COLUMNS tiles; the first row of each heading shows it."""
    from raytrain.report.sheet import Row

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
    import numpy as np

    from raytrain.report.sheet import Cell, Row
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


def _title(dataset: Dataset, count: int, flags: ShowFlags) -> str:
    words = [storage.name_of(dataset.path), f"{count} of {dataset.rows:,} tiles"]
    if flags.split or flags.part != "all":
        words.append(f"split {flags.split or _first_split(dataset)}")
    if flags.part != "all":
        words.append(f"part {flags.part}")
    if flags.label:
        words.append(f"label {flags.label}")
    if flags.augmented:
        words.append(f"augmentation of {flags.config or 'the lesson'}")
    return " · ".join(words)


def _print_tiles(dataset: Dataset, rows: list[int]) -> None:
    """Prints a line per tile: its name, its stored size and its labels."""
    from raytrain.data.dataset import shown_labels, sides

    names = [str(dataset.table["image_name"][row]) for row in rows]
    width = max(map(len, names))
    for name, (w, h), row in zip(names, sides(dataset)[rows], rows, strict=True):
        size = f"{w}x{h}"
        print(f"{name:{width}}  {size:>9}  {' '.join(shown_labels(dataset, row))}")
