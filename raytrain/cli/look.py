"""The commands that look at a dataset: `raytrain data show`, `raytrain data check`.

As in `cli.py`, heavy modules are imported inside the commands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from raytrain import storage
from raytrain.cli.data import check_seed
from raytrain.cli.job import check_written
from raytrain.config import Augment, load_recipe
from raytrain.data.text import listed
from raytrain.errors import ConfigError, DataError, masked

if TYPE_CHECKING:
    import numpy as np

    from raytrain.data.dataset import Dataset
    from raytrain.data.inspection import LabelRule
    from raytrain.report.sheet import Cell, Row

COLUMNS = 6  # tiles in a row of the sheet
Labels = Annotated[list[str] | None, Parameter(negative="")]


def show(
    dataset: str,
    /,
    *,
    out: Annotated[
        str | None, Parameter(help="picture to write; default NAME-tiles.png in this folder")
    ] = None,
    part: Annotated[
        Literal["train", "valid", "test", "all"], Parameter(help="of the split")
    ] = "all",
    split: Annotated[
        str | None, Parameter(help="that --part belongs to; default the dataset's first")
    ] = None,
    label: Annotated[str | None, Parameter(help="only tiles that have it")] = None,
    per_label: Annotated[
        bool, Parameter(negative="", help="a row of tiles for each label")
    ] = False,
    augmented: Annotated[
        bool,
        Parameter(
            negative="",
            help="a row for each tile: before the recipe's augmentation, and five times after",
        ),
    ] = False,
    config: Annotated[
        str | None, Parameter(help="recipe of --augmented; default the lesson's")
    ] = None,
    tiles: Annotated[
        int | None, Parameter(help="default 24; with --per-label 6 a row, with --augmented 8")
    ] = None,
    size: Annotated[int, Parameter(help="side of a tile on the sheet, pixels")] = 160,
    seed: Annotated[int, Parameter(help="of the choice of tiles and of the augmentation")] = 42,
) -> None:
    """Draw tiles with their labels, chosen at random, on one sheet (PNG)."""
    check_written("--out", out or "TILES.png")
    check_seed(seed)
    _check_show(tiles, size, per_label, augmented, config)
    recipe = load_recipe(config) if augmented else None
    from raytrain.data.dataset import open_dataset
    from raytrain.report import sheet

    found = open_dataset(dataset)
    rows = _rows_of(found, split, part)
    if per_label:
        chosen = _rows_by_label(
            found, rows, [label] if label else found.classes, tiles or COLUMNS, seed
        )
    else:
        rows = _with_label(found, rows, label) if label else rows
        chosen = {"": _some(rows, tiles or (8 if recipe else 4 * COLUMNS), seed)}
    every = list(dict.fromkeys(row for some in chosen.values() for row in some))
    cells = _cells(found, every, found.tile_size if recipe else size)
    if recipe:
        drawn = _augmented([cells[row] for row in chosen[""]], recipe.data.augment, size, seed)
    else:
        drawn = [
            sheet.Row([cells[row] for row in some[i : i + COLUMNS]], heading if i == 0 else "")
            for heading, some in chosen.items()
            for i in range(0, len(some), COLUMNS)
        ]
    title = _title(
        found, len(every), part, split, label, (config or "the lesson") if augmented else None
    )
    path = storage.absolute(out or f"{storage.name_of(found.path)}-tiles.png")
    storage.write_bytes(path, sheet.draw(drawn, title))
    _print_tiles(found, every)
    print(f"sheet of {len(every)} tiles: {masked(path)}")


def _check_show(
    tiles: int | None, size: int, per_label: bool, augmented: bool, config: str | None
) -> None:
    if (tiles is not None and tiles < 1) or not 32 <= size <= 1024:
        raise ConfigError(
            f"--size {size}" if tiles is None else f"--tiles {tiles} --size {size}",
            "a sheet has at least one tile, each with a side of 32 to 1024 pixels",
            "--tiles 24 --size 160",
        )
    if per_label and augmented:
        raise ConfigError(
            "--per-label and --augmented",
            "each gives the rows another meaning",
            "leave one of them out",
        )
    if config and not augmented:
        raise ConfigError(
            f"--config {config} without --augmented",
            "only augmentation needs a recipe",
            "--augmented",
        )


def _rows_of(dataset: Dataset, split: str | None, part: str) -> np.ndarray[Any, Any]:
    """Row numbers of a part, or all."""
    import numpy as np

    if part == "all" and split is None:
        return np.arange(dataset.rows)
    from raytrain.data.inspection import parts_of

    split = split or _first_split(dataset)
    parts = parts_of(dataset, split)
    rows = np.flatnonzero(parts != "" if part == "all" else parts == part)
    if not len(rows):
        there = sorted(set(parts) - {""})
        raise DataError(
            f'the split {split} has no part "{part}"',
            "no tile to show",
            f"--part {' or '.join(there)}",
        )
    return rows


def _first_split(dataset: Dataset) -> str:
    return str(next((entry["name"] for entry in dataset.manifest["splits"]), "random"))


def _with_label(dataset: Dataset, rows: np.ndarray[Any, Any], label: str) -> np.ndarray[Any, Any]:
    from raytrain.data.inspection import class_index

    kept: np.ndarray[Any, Any] = rows[dataset.targets[rows, class_index(dataset, label)] != 0]
    if not len(kept):
        raise DataError(
            f"no tile of this part has the label {label}",
            "there is nothing to show",
            "another --part or --label",
        )
    return kept


def _rows_by_label(
    dataset: Dataset, rows: np.ndarray[Any, Any], labels: Sequence[str], count: int, seed: int
) -> dict[str, list[int]]:
    """Some rows for each label by its heading; a label without tiles is left out."""
    from raytrain.data.inspection import class_index

    has = {label: rows[dataset.targets[rows, class_index(dataset, label)] != 0] for label in labels}
    heading = {
        label: f"{label} · {len(of):,} tile{'s' * (len(of) != 1)}" for label, of in has.items()
    }
    return {heading[label]: _some(of, count, seed) for label, of in has.items() if len(of)}


def _some(rows: np.ndarray[Any, Any], count: int, seed: int) -> list[int]:
    import numpy as np

    return [int(row) for row in np.random.default_rng(seed).permutation(rows)[:count]]


def _cells(dataset: Dataset, rows: list[int], size: int) -> dict[int, Cell]:
    from raytrain.data.dataset import decoded_images, labels_of
    from raytrain.report.sheet import Cell

    names = dataset.table["image_name"]
    return {
        row: Cell(pixels, names[row], labels_of(dataset, row))
        for row, pixels in zip(rows, decoded_images(dataset, rows, size), strict=True)
    }


def _augmented(cells: list[Cell], augment: Augment, size: int, seed: int) -> list[Row]:
    """A row for each tile: as validation sees it, then draws of the training augmentation, all of side `size`."""
    import numpy as np

    from raytrain.report.sheet import Cell, Row
    from raytrain.training.transforms import examples

    pixels = np.stack([cell.pixels for cell in cells])
    plain = examples(pixels, Augment(flip="none", p_affine=0, p_lighting=0), 1, size, seed)
    drawn = examples(pixels, augment, COLUMNS - 1, size, seed)
    return [
        Row(
            [
                Cell(before[0], cell.name, cell.labels),
                *(Cell(after, "", (f"draw {i}",)) for i, after in enumerate(some, 1)),
            ]
        )
        for cell, before, some in zip(cells, plain, drawn, strict=True)
    ]


def _title(
    dataset: Dataset,
    count: int,
    part: str,
    split: str | None,
    label: str | None,
    recipe: str | None,
) -> str:
    words = [storage.name_of(dataset.path), f"{count} of {dataset.rows:,} tiles"]
    words += [f"split {split or _first_split(dataset)}"] if split or part != "all" else []
    words += [f"part {part}"] if part != "all" else []
    words += [f"label {label}"] if label else []
    return " · ".join(words + ([f"augmentation of {recipe}"] if recipe else []))


def _print_tiles(dataset: Dataset, rows: list[int]) -> None:
    from raytrain.data.dataset import labels_of, sides

    names = [str(dataset.table["image_name"][row]) for row in rows]
    width = max(map(len, names))
    for name, (w, h), row in zip(names, sides(dataset)[rows], rows, strict=True):
        print(f"{name:{width}}  {f'{w}x{h}':>9}  {' '.join(labels_of(dataset, row))}")


def check(
    dataset: str,
    /,
    *,
    out: Annotated[
        str | None,
        Parameter(
            help="page to write (.html), or its folder; default NAME-check.html in this folder"
        ),
    ] = None,
    split: Annotated[str | None, Parameter(help="the only split to look at; default all")] = None,
    exactly_one: Annotated[Labels, Parameter(help="a,b,c: every tile has one of them")] = None,
    at_most_one: Annotated[Labels, Parameter(help="a,b: no tile has two of them")] = None,
    alone: Annotated[Labels, Parameter(help="a: a tile that has it has no other label")] = None,
    requires: Annotated[Labels, Parameter(help="a,b: a tile that has a has b too")] = None,
    fast: Annotated[
        bool, Parameter(negative="", help="bytes and labels only, no picture is decoded")
    ] = False,
) -> None:
    """Verify every byte; count labels; find broken label rules, duplicates, leaks between parts and odd tiles."""
    stated = {
        "exactly-one": exactly_one,
        "at-most-one": at_most_one,
        "alone": alone,
        "requires": requires,
    }
    check_written("--out", out or "CHECK.html")
    rules = [_rule(kind, text) for kind, texts in stated.items() for text in texts or ()]
    from raytrain.data.dataset import damages, open_dataset
    from raytrain.data.inspection import inspect
    from raytrain.report import dataset_page, dataset_text

    found = open_dataset(dataset)
    wrong = damages(found)
    if wrong:
        raise DataError(
            "; ".join(wrong),
            "training would stop or learn from wrong data",
            "ingest into a new directory",
        )
    inspection = inspect(found, split=split, rules=rules, decode=not fast)
    name = f"{storage.name_of(found.path)}-check.html"
    path = storage.absolute(
        name
        if out is None
        else out
        if storage.name_of(out).endswith(".html")
        else storage.join(out, name)
    )
    stem = storage.name_of(path).removesuffix(".html").removesuffix("-check")
    table = storage.join(storage.parent(path), f"{stem}-groups.csv")
    dataset_page.write(inspection, path, table)
    if inspection.leaks:
        storage.write_text(table, inspection.group_table.to_csv(index=False))
    print(dataset_text.summary(inspection))
    print(f"page: {masked(path)}")
    if inspection.leaks:
        print(f"next: {dataset_page.split_command(inspection, table)}")


def _rule(kind: str, text: str) -> LabelRule:
    from raytrain.data.inspection import LabelRule

    labels = tuple(dict.fromkeys(filter(None, listed(text, f"--{kind}"))))
    least = 1 if kind == "alone" else 2
    if len(labels) < least:
        raise ConfigError(
            f'--{kind} "{text}" names {len(labels)} label{"s" * (len(labels) != 1)}',
            f"such a rule needs {least} or more, separated by commas",
            f"--{kind} {'cloudy' if least == 1 else 'clear,cloudy'}",
        )
    return LabelRule(kind, labels)
