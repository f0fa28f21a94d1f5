"""The commands that get, make and divide data: `raytrain download`, `raytrain ingest`, `raytrain data split`.

As in `cli.py`, heavy modules are imported inside the commands.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import App, Parameter

from raytrain import storage
from raytrain.cli.job import check_written
from raytrain.config import SPLIT_NAME
from raytrain.data.bands import parse as parse_bands
from raytrain.data.label_format import KAGGLE_FORMAT, LabelFormat
from raytrain.data.listing import is_list, listed_pictures
from raytrain.data.names import SUFFIXES, visible
from raytrain.data.sources import Images, Tiles, images_at, images_in
from raytrain.data.splits import Rule
from raytrain.data.text import NAMES, listed, read_lines
from raytrain.data.tile_values import column_of
from raytrain.distributed.environment import check_session
from raytrain.errors import ConfigError, masked, typed
from raytrain.output import outlive_reader

data_app = App(name="data", help="Look at a dataset, check it, divide it.")
Bands = Annotated[
    str | None,
    Parameter(name="--bands", help="bands of TIFF tiles for red,green,blue, from 1, such as 3,2,1"),
]
Scale = Annotated[str, Parameter(name="--scale", help="values of TIFF tiles that become 0,255")]
SplitBy = Literal["random", "stratified", "group", "folder", "column", "list"]
SPLIT_HELP = (
    "stratified: every label in its share; group: no group on both sides; folder, column, list: as the folder, "
    "a table or a list of names says"
)


@dataclass(frozen=True)
class Division:
    """Which tiles validate: flags that `ingest` and `data split` share."""

    valid: Annotated[float, Parameter(help="share of tiles that validate, 0 to 1")] = 0.2
    seed: Annotated[
        int, Parameter(help="seed of the division, and at ingest of the order of rows")
    ] = 42
    table: Annotated[
        str | None,
        Parameter(help="CSV or Parquet file with names and --column, for group and column"),
    ] = None
    column: Annotated[str | None, Parameter(help="column of --table")] = None
    valid_values: Annotated[
        list[str] | None, Parameter(help="folders or column values that validate", negative="")
    ] = None
    test_values: Annotated[
        list[str] | None, Parameter(help="folders or column values that test", negative="")
    ] = None
    valid_list: Annotated[
        str | None, Parameter(help="text file with the names of tiles that validate")
    ] = None
    test_list: Annotated[
        str | None, Parameter(help="text file with the names of tiles that test")
    ] = None

    def rule(self, by: str, folds: int | None = None) -> Rule:
        """The rule that the flags state.

        Raises:
            ConfigError: a flag is out of range, or does not go with `by`.
        """
        self._check(by, folds)
        if by == "list":
            valid, test = _names_in(self.valid_list), _names_in(self.test_list)
        else:
            default = ["valid"] if by == "folder" else []
            valid, test = self.valid_values or default, self.test_values or []
        return Rule(by, self.valid, folds, tuple(valid), tuple(test), self.seed)

    def groups(self, names: Sequence[str], name_column: str, separator: str) -> list[str] | None:
        """The value of --column of each tile, or None where no table is given.

        Args:
            names: of the tiles.
            name_column: of the table; where it has none of that name, image_name.
            separator: between the columns of a CSV.
        """
        if self.table is None or self.column is None:
            return None
        name_columns = (name_column, KAGGLE_FORMAT.name_column)
        return column_of(names, storage.absolute(self.table), self.column, name_columns, separator)

    def _check(self, by: str, folds: int | None) -> None:
        check_seed(self.seed)
        if not 0 < self.valid < 1:
            raise ConfigError(
                f"--valid {self.valid} is not between 0 and 1",
                "both parts need tiles",
                "--valid 0.2",
            )
        if folds is not None and (folds < 2 or by in ("column", "folder", "list")):
            raise ConfigError(
                f"--folds {folds} with --by {by}",
                "folds are 2 or more, drawn at random",
                "--folds 5 --by stratified",
            )
        needed, example = _NEEDED.get(by, ((), ""))
        optional = {
            "column": ("test_values",),
            "folder": ("valid_values", "test_values"),
            "list": ("test_list",),
        }
        flags = ("table", "column", "valid_values", "test_values", "valid_list", "test_list")
        for flag in flags:
            given = bool(getattr(self, flag))
            if given != (flag in needed) and not (given and flag in optional.get(by, ())):
                raise ConfigError(
                    f"a division by {by} {'needs' if flag in needed else 'takes no'} --{flag.replace('_', '-')}",
                    "the flags must say which tile belongs where, and none may be ignored",
                    example
                    or f"leave it out, or divide by another rule, such as --split {_SPLITS_BY[flag]}",
                )


_NEEDED = {
    "group": (("table", "column"), "--table scenes.csv --column scene"),
    "column": (
        ("table", "column", "valid_values"),
        "--table parts.csv --column part --valid-values valid",
    ),
    "folder": ((), "--valid-values valid"),
    "list": (("valid_list",), "--valid-list names.txt"),
}


_SPLITS_BY = {
    "table": "column",
    "column": "column",
    "valid_values": "folder",
    "test_values": "folder",
    "valid_list": "list",
    "test_list": "list",
}


def _names_in(file: str | None) -> list[str]:
    return read_lines(storage.absolute(file), NAMES) if file is not None else []


@dataclass(frozen=True)
class SourceFlags:
    """Which pictures of a folder count: flags that `ingest` and `predict` share."""

    subfolders: Annotated[
        bool, Parameter(negative="", help="also tiles in folders below --images")
    ] = False
    suffix: Annotated[
        list[str] | None, Parameter(help="endings of the tiles, such as .jpg", negative="")
    ] = None
    folders: Annotated[
        list[str] | None, Parameter(help="only these folders below --images", negative="")
    ] = None

    def find(self, source: str, *, below: bool = False) -> Images:
        """The pictures in a folder or a list; `below`: also in sub-folders, whatever the flag says.

        Raises:
            ConfigError: it is neither, or flags that do not go with a list.
            DataError: no pictures, or the list cannot be read.
        """
        if not is_list(source):
            subfolders = self.subfolders or below
            return images_in(
                source,
                subfolders=subfolders,
                suffixes=self.suffix or SUFFIXES,
                folders=self.folders or (),
            )
        if self.suffix or self.folders:
            raise ConfigError(
                f"--suffix and --folders do not go with the list {source}",
                "it names each tile",
                "leave them out",
            )
        return images_at(listed_pictures(source))


@dataclass(frozen=True)
class LabelFlags:
    """How labels appear: flags of `ingest`."""

    name_column: Annotated[str, Parameter(help="column with the tile's name")] = "image_name"
    tags_column: Annotated[str, Parameter(help="column with the labels")] = "tags"
    separator: Annotated[
        str, Parameter(help="one character between the columns of a CSV, or `tab`")
    ] = ","
    tags_separator: Annotated[
        str | None, Parameter(help="between the labels of a tile; white space by default")
    ] = None
    label_columns: Annotated[
        str | None,
        Parameter(
            help="columns of 0 and 1, one for each label, instead of --tags-column; comma-separated or FILE.txt"
        ),
    ] = None
    join_rows: Annotated[
        bool, Parameter(negative="", help="a tile has one row for each of its labels: join them")
    ] = False
    classes: Annotated[
        str | None,
        Parameter(
            help="labels in target order, comma-separated or FILE.txt with one a line; default: all, sorted"
        ),
    ] = None
    allow_empty: Annotated[bool, Parameter(negative="", help="keep tiles without any label")] = (
        False
    )
    force: Annotated[
        bool, Parameter(negative="", help="also read a label file of more than 200 MB")
    ] = False

    def mark(self) -> str:
        """The character between columns.

        Raises:
            ConfigError: it is not one character.
        """
        separator = "\t" if self.separator == "tab" else self.separator
        if len(separator) != 1 or separator in '"\r\n' or self.tags_separator == "":
            raise ConfigError(
                f"--separator {separator!r} --tags-separator {self.tags_separator!r}",
                "columns are separated by one character, labels by one or more",
                "--separator ';', or --separator tab",
            )
        return separator

    def label(self, found: Images, labels: str) -> Tiles:
        """The pictures with their labels: from a file, or for the word `folders` from the names of their folders."""
        classes = listed(self.classes, "--classes") if self.classes else None
        if labels == "folders":
            if self.label_columns or self.join_rows:
                raise ConfigError(
                    f"--{'label-columns' if self.label_columns else 'join-rows'} with --labels folders",
                    "the folders' names are the labels, and have no columns and no rows",
                    "leave it out",
                )
            return found.label_from_folders(classes)
        columns = tuple(listed(self.label_columns, "--label-columns")) if self.label_columns else ()
        if columns and self.tags_column != KAGGLE_FORMAT.tags_column:
            raise ConfigError(
                f"--tags-column {self.tags_column} with --label-columns",
                "labels stand in one column, or each in a column of its own",
                "leave one of them out",
            )
        form = LabelFormat(
            self.name_column,
            self.tags_column,
            self.mark(),
            self.tags_separator,
            columns,
            self.join_rows,
        )
        return found.label_from_file(
            labels, form, classes, allow_empty=self.allow_empty, force=self.force
        )


def download(
    what: Literal["planet"],
    /,
    *,
    out: Annotated[str, Parameter(help="local folder to fill")],
    source: Annotated[
        str,
        Parameter(
            name="--from",
            help="competition, dataset, or the path of an archive or folder that you have",
        ),
    ] = "competition",
) -> None:
    """Get Planet's tiles and labels: from Kaggle, or from files at hand."""
    check_written("--out", out)
    from raytrain.data.download import download as run_download

    outlive_reader()
    run_download(out, source)


def ingest(
    *,
    images: Annotated[
        str,
        Parameter(
            help="folder with the tiles, or a text file (.txt) with a path or URI on each line"
        ),
    ],
    labels: Annotated[
        str, Parameter(help="CSV or Parquet file with one row a tile, or `folders`: their names")
    ],
    out: Annotated[str, Parameter(help="dataset directory or URI to make")],
    source: Annotated[SourceFlags, Parameter(name="*")] = SourceFlags(),
    form: Annotated[LabelFlags, Parameter(name="*")] = LabelFlags(),
    split: Annotated[SplitBy, Parameter(help=SPLIT_HELP)] = "random",
    division: Annotated[Division, Parameter(name="*")] = Division(),
    max_bad: Annotated[
        int | None,
        Parameter(help="unusable tiles before nothing is written; default max(10, 0.1 %)"),
    ] = None,
    bands: Bands = None,
    scale: Scale = "0,255",
) -> None:
    """Make a dataset of Parquet shards from tiles and their labels; goes on with one that was interrupted."""
    check_written("--out", out)
    check_session()
    rule, band_rule = division.rule(split), parse_bands(bands, scale)
    tiles = form.label(source.find(images, below=labels == "folders"), labels)
    names = tiles.table["image_name"].to_list()
    divided = tiles.divide(rule, division.groups(names, form.name_column, form.mark()))
    from raytrain.data.dataset import examples
    from raytrain.distributed.ingest import ingest as run_ingest

    done = run_ingest(divided, out, max_bad=max_bad, bands=band_rule)
    verb = "is there already" if done.already_there else f"written by {len(done.pids)} processes"
    print(
        f"dataset {masked(done.dataset.path)} {verb}: {done.dataset.rows} tiles, {len(done.dataset.classes)} classes"
    )
    for key, count in done.counts.items():
        print(f"  {key}: {count}")
    for example in examples(done.dataset):
        print(f"  {example}")
    chosen = "" if split == "random" else f" --data.split {split}"
    print(f"next: raytrain train --config planet-resnet18 --dataset {typed(out)}{chosen}")


@data_app.command
def split(
    dataset: str,
    /,
    *,
    name: Annotated[str, Parameter(help="of the new split; with --folds NAME-1, NAME-2, ...")],
    by: Annotated[SplitBy, Parameter(help=SPLIT_HELP)] = "random",
    folds: Annotated[
        int | None, Parameter(help="so many splits; every tile validates in one of them")
    ] = None,
    division: Annotated[Division, Parameter(name="*")] = Division(),
    name_column: Annotated[
        str, Parameter(help="column of --table with the tile's name")
    ] = KAGGLE_FORMAT.name_column,
    separator: Annotated[
        str, Parameter(help="one character between the columns of --table, or `tab`")
    ] = ",",
) -> None:
    """Add a named split, or one for each of several folds, to a dataset; no shard is touched."""
    if not re.fullmatch(SPLIT_NAME, name):
        raise ConfigError(
            f"--name {name} is not made of letters, digits, _, . and -",
            "it becomes a file",
            "--name stratified",
        )
    check_written("DATASET", dataset)
    rule = division.rule(by, folds)
    from raytrain.data.dataset import add_splits, open_dataset
    from raytrain.data.splits import natural_order, only_in_valid

    found = open_dataset(dataset)
    # Not as rows lie in shards: the division depends on the tiles alone, and a random one is the lesson's.
    order = natural_order(found.table["image_name"].to_list())
    names, targets = found.table["image_name"].iloc[order].to_list(), found.targets[order]
    mark = LabelFlags(separator=separator).mark()
    tables = rule.tables(name, names, targets, division.groups(names, name_column, mark) or [])
    new = add_splits(found, tables)
    if lost := rule.unmatched(names):
        print(f"{len(lost)} listed names are no tiles: {visible(', '.join(lost[:3]))}")
    for made, rows in tables.items():
        counts = ", ".join(
            f"{part} {count}" for part, count in sorted(rows["part"].value_counts().items())
        )
        print(f"split {made}: {counts}{'' if made in new else ' (is there already)'}")
        alone = only_in_valid(rows["part"], targets, found.classes)
        print(f"  only in validation, so never learned: {', '.join(alone)}") if alone else None
    print(
        f"next: raytrain train --config planet-resnet18 --dataset {typed(dataset)} --data.split {next(iter(tables))}"
    )


def check_seed(seed: int) -> None:
    """Refuses a seed that random generators do not take.

    Raises:
        ConfigError: it is negative.
    """
    if seed < 0:
        raise ConfigError(
            f"--seed {seed} is less than 0",
            "seeds of random generators are not negative",
            "--seed 42",
        )
