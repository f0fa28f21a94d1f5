"""The commands that make and divide data: `raytrain ingest`, `raytrain data split`.

As in `cli.py`, heavy modules are imported inside the commands.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from cyclopts import App, Parameter

from raytrain import storage
from raytrain.config import SPLIT_NAME
from raytrain.errors import ConfigError

data_app = App(name="data", help="Look at a dataset, check it, divide it.")


def ingest(
    *,
    images: Annotated[str, Parameter(help="folder with the tiles directly inside")],
    labels: Annotated[str, Parameter(help="CSV or Parquet file with one row a tile")],
    out: Annotated[str, Parameter(help="dataset directory or URI to make")],
    valid: Annotated[float, Parameter(help="share of rows that validate, 0 to 1")] = 0.2,
    seed: Annotated[int, Parameter(help="seed of the split and of the order of rows")] = 42,
    max_bad: Annotated[
        int | None, Parameter(help="unusable tiles before nothing is written; default max(10, 0.1 %)")
    ] = None,
    classes: Annotated[
        str | None, Parameter(help="labels in target order, comma-separated; default: all, sorted")
    ] = None,
    name_column: Annotated[str, Parameter(help="column with the tile's name")] = "image_name",
    tags_column: Annotated[str, Parameter(help="column with the labels")] = "tags",
    separator: Annotated[str, Parameter(help="one character between the columns of a CSV, or `tab`")] = ",",
    tags_separator: Annotated[
        str | None, Parameter(help="between the labels of a tile; white space by default")
    ] = None,
) -> None:
    """Make a dataset of Parquet shards from tiles and a label file."""
    _check_draw(valid, seed)
    separator = "\t" if separator == "tab" else separator
    if len(separator) != 1 or separator in '"\r\n' or tags_separator == "":
        raise ConfigError(
            f"--separator {separator!r} --tags-separator {tags_separator!r}",
            "columns are separated by one character, labels by one or more",
            "--separator ';', or --separator tab",
        )
    from raytrain.data.sources import LabelFormat
    from raytrain.distributed.ingest import ingest as run_ingest

    done = run_ingest(
        images, labels, out, classes=classes.split(",") if classes else None, valid=valid, seed=seed, max_bad=max_bad,
        form=LabelFormat(name_column, tags_column, separator, tags_separator),
    )  # fmt: skip
    verb = "is there already" if done.already_there else f"written by {len(done.pids)} processes"
    print(f"dataset {done.dataset.place} {verb}: {done.dataset.rows} tiles, {len(done.dataset.classes)} classes")
    for key, count in done.counts.items():
        print(f"  {key}: {count}")
    print(f"next: raytrain train --config planet-resnet18 --dataset {out}")


@data_app.command
def split(
    dataset: str,
    /,
    *,
    name: Annotated[str, Parameter(help="of the new split; with --folds NAME-1, NAME-2, ...")],
    by: Annotated[
        Literal["random", "stratified", "group", "column"],
        Parameter(
            help="stratified: every label in its share; group: no group on both sides; column: as its values say"
        ),
    ] = "random",
    valid: Annotated[float, Parameter(help="share of tiles that validate, 0 to 1")] = 0.2,
    seed: Annotated[int, Parameter(help="seed of the division")] = 42,
    folds: Annotated[int | None, Parameter(help="so many splits; every tile validates in one of them")] = None,
    table: Annotated[str | None, Parameter(help="CSV with image_name and --column, for group and column")] = None,
    column: Annotated[str | None, Parameter(help="column of --table")] = None,
    valid_values: Annotated[list[str] | None, Parameter(help="values of the column that validate", negative="")] = None,
    test_values: Annotated[list[str] | None, Parameter(help="values of the column that test", negative="")] = None,
) -> None:
    """Add a named split, or one for each of several folds, to a dataset; no shard is touched."""
    _check_draw(valid, seed)
    _check_rule(name, by, folds, valid_values, test_values)
    given = [value is not None for value in (table, column)]
    if given != [by in ("group", "column")] * 2:
        raise ConfigError(
            f"--by {by} {'needs' if by in ('group', 'column') else 'takes no'} --table and --column",
            "they say which tile belongs to which group",
            "--by group --table scenes.csv --column scene",
        )
    from raytrain.data import sources, splits
    from raytrain.data.dataset import add_splits, open_dataset

    found = open_dataset(dataset)
    order = found.table["image_name"].argsort()  # the division does not depend on how rows lie in shards
    names = found.table["image_name"].iloc[order].to_list()
    groups = sources.column_of(names, storage.absolute(table), column) if table and column else []
    rule = splits.Rule(by, valid, folds, tuple(valid_values or ()), tuple(test_values or ()), seed)
    tables = rule.tables(name, names, found.targets[order], groups)
    new = add_splits(found, tables)
    for made, rows in tables.items():
        counts = ", ".join(f"{part} {count}" for part, count in sorted(rows["part"].value_counts().items()))
        print(f"split {made}: {counts}{'' if made in new else ' (is there already)'}")
    print(f"next: raytrain train --config planet-resnet18 --dataset {dataset} --data.split {next(iter(tables))}")


def _check_rule(
    name: str, by: str, folds: int | None, valid_values: list[str] | None, test_values: list[str] | None
) -> None:
    if not re.fullmatch(SPLIT_NAME, name):
        raise ConfigError(
            f"--name {name} is not made of letters, digits, _, . and -", "it becomes a file", "--name stratified"
        )
    if folds is not None and (folds < 2 or by == "column"):
        raise ConfigError(
            f"--folds {folds} with --by {by}", "folds are 2 or more, drawn at random", "--folds 5 --by stratified"
        )
    if (by == "column") != bool(valid_values) or (test_values and not valid_values):
        raise ConfigError(
            f"--by {by} {'needs' if by == 'column' else 'takes no'} --valid-values{'' if by == 'column' else ' or --test-values'}",
            "the values of the column say what validates",
            "--by column --table parts.csv --column part --valid-values valid",
        )


def check_seed(seed: int) -> None:
    """Refuses a seed that random generators do not take.

    Raises:
        ConfigError: it is negative.
    """
    if seed < 0:
        raise ConfigError(f"--seed {seed} is less than 0", "seeds of random generators are not negative", "--seed 42")


def _check_draw(valid: float, seed: int) -> None:
    check_seed(seed)
    if not 0 < valid < 1:
        raise ConfigError(f"--valid {valid} is not between 0 and 1", "both parts need tiles", "--valid 0.2")
