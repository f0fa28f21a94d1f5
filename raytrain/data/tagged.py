"""Reads the labels of a table as they are written there.

They are in a tags column, or in one column of 0 and 1 for each label. `labels` tidies them
afterwards. Imports neither torch nor ray.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from raytrain.data.cells import Source, Tags, tags_of
from raytrain.data.label_format import KAGGLE_FORMAT, ONE_LABEL_COLUMN, LabelFormat
from raytrain.data.names import visible, without_invisible
from raytrain.data.tables import Cell, Column, Rows, Table, read_rows, without_headers
from raytrain.errors import DataError

OTHER_COLUMNS = "rename the columns, or give --name-column and --tags-column (or --label-columns)"
_CHOOSE_COLUMNS = (
    "--label-columns A,B,C with the columns that are labels, "
    "or --tags-column NAME with the only column of labels"
)
_TRUE = ("1", "1.0", "true")
_FALSE = ("0", "0.0", "false")
_FLAGS = (*_TRUE, *_FALSE)
# What people write instead of 0 and 1.
_SLIPS = ("", "-1", "2", "x", "yes", "no", "y", "n", "t", "f")
# The names that pandas gives a column of row numbers, in CSV and in Parquet.
_INDEX = re.compile(r"Unnamed: \d+|__index_level_\d+__")


@dataclass(frozen=True)
class Tagged:
    """Rows as they were written, before they are tidied.

    Attributes:
        names: names of the tiles.
        tags: labels of each tile.
        lines: line of each row.
        source: a path, or words for messages.
        sha256: hash of the file or of the rows.
        headers: number of rows that were left out because they repeat the header.
        remarks: sentences that a user should read about how the rows were read.
        columns: labels of a table with one column for each label. They are labels even if no tile
            has one of them.
    """

    names: pd.Series
    tags: list[Tags]
    lines: Sequence[int]
    source: str
    sha256: str
    headers: int = 0
    remarks: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()


def tagged_in(table: Table, form: LabelFormat, classes: Sequence[str] | None) -> Tagged:
    """Reads the rows of a table whose header was read.

    Args:
        table: see `tables.open_table`.
        form: how to read it.
        classes: the labels that the user listed, or None.

    Raises:
        DataError: see `labels.read_labels`.
    """
    layout = _layout(table, form)
    if layout.label_columns:
        return _of_label_columns(table, layout.name_column, layout.label_columns)
    return _of_tags_column(table, form, classes)


def hash_of(names: Sequence[str], tags: Sequence[Tags], lines: Sequence[int]) -> str:
    """Returns the SHA-256 of rows that are not in a file."""
    # dataset.json stores the hash, so the text that is hashed must never change.
    rows = list(zip(names, tags, lines, strict=True))
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def tidy_label(label: str) -> str:
    """Removes invisible characters from a label, and makes white space single spaces."""
    return " ".join(without_invisible(label).split())


def same_form(label: str) -> str:
    """Returns a label in Unicode's composed form (NFC).

    `é` may be written as one character or as a letter and an accent; both are the same label.
    """
    return unicodedata.normalize("NFC", label)


def _of_tags_column(table: Table, form: LabelFormat, classes: Sequence[str] | None) -> Tagged:
    """Reads a table with all labels of a row in one column."""
    columns = [Column(form.name_column, "name"), Column(form.tags_column, "labels")]
    rows = read_rows(table, columns, OTHER_COLUMNS)
    _check_other_header(rows, form.tags_column, table.path, classes or ())
    cells = rows.columns[1]
    source = Source(table.path, rows.lines)
    # A table with one row for each label has one label in a cell.
    whole = form.join_rows or form.one_label
    tags = tags_of(cells, source, form.tags_separator, classes, whole=whole)
    found = _tagged(table, rows, tags)
    return replace(found, remarks=tuple(_only_flags(tags, form.tags_column)))


def _check_other_header(rows: Rows, column: str, path: str, classes: Sequence[str]) -> None:
    """Refuses a row whose label is the name of the tags column.

    It is probably a second header that has another name for the first column.
    """
    cells = rows.columns[1]
    # Each content once: a million rows have few different ones.
    for label in dict.fromkeys(map(str, cells)):
        if label in classes:
            continue
        if label.casefold() == column.casefold():
            line = rows.lines[[str(cell) for cell in cells].index(label)]
            raise DataError(
                f'line {line} of {path} has the label "{visible(label)}", '
                "which is its column's name",
                "two tables with different headers were probably concatenated",
                "remove that line; or, if it is a label, list all labels with --classes",
            )


def _only_flags(tags: Sequence[Tags], column: str) -> Iterator[str]:
    """Yields a remark if the only labels are 0 and 1."""
    found: set[str] = set()
    for words in set(tags):
        found.update(words)
    folded = {label.casefold() for label in found}
    if folded and folded.issubset(_FLAGS):
        values = " and ".join(sorted(found))
        yield (
            f'the column "{column}" holds only {values}: they are the classes. '
            "If each label has a column of its own, give --label-columns."
        )


def _of_label_columns(table: Table, name_column: str, label_columns: Sequence[str]) -> Tagged:
    """Reads a table with one column of 0 and 1 for each label."""
    labels = [tidy_label(column) for column in label_columns]
    _check_different(labels, table.path)
    columns = [Column(name_column, "name")]
    columns += [Column(column, "flag") for column in label_columns]
    fix = "--name-column NAME --label-columns A,B,C with columns of the file"
    rows = read_rows(table, columns, fix)
    tags: list[Tags] = []
    # Equal rows of flags have one tuple of labels.
    shared: dict[Tags, Tags] = {}
    for line, *flags in zip(rows.lines, *rows.columns[1:], strict=True):
        found_here = tuple(_labels_of_row(line, flags, labels, table.path))
        tags.append(shared.setdefault(found_here, found_here))
    count = f"{len(labels)} columns"
    if len(labels) == 1:
        count = "1 column"
    # The user did not choose the columns one by one: another 0/1 column may be among them.
    remark = (
        f"{count} of 0 and 1, one for each label: {', '.join(labels)}; "
        f'tiles are named by "{visible(name_column)}"'
    )
    found = _tagged(table, rows, tags)
    return replace(found, remarks=(remark,), columns=tuple(labels))


def _check_different(labels: Sequence[str], path: str) -> None:
    seen: dict[str, str] = {}
    for label in labels:
        other = seen.setdefault(same_form(label).casefold(), label)
        # Identity, not equality: after tidying, two columns may have equal labels.
        if other is not label:
            raise DataError(
                f'line 1 of {path} has the columns "{visible(other)}" and "{visible(label)}", '
                "which are one label",
                "labels that differ only in case or Unicode form would be two classes",
                "rename one of them, or remove it",
            )


def _labels_of_row(
    line: int, flags: Sequence[Cell], labels: Sequence[str], path: str
) -> Iterator[str]:
    for label, cell in zip(labels, flags, strict=True):
        flag = str(cell).casefold()
        if flag in _TRUE:
            yield label
        elif flag not in _FALSE:
            raise DataError(
                f'line {line} of {path} has "{visible(str(cell))}" '
                f'in the column "{visible(label)}"',
                "a column for one label holds 0 and 1, or true and false",
                "correct that cell, or name the right columns with --label-columns",
            )


def _tagged(table: Table, rows: Rows, tags: list[Tags]) -> Tagged:
    names = [str(cell) for cell in rows.columns[0]]
    lines = rows.lines
    sha256 = table.sha256 or hash_of(names, tags, lines)
    return Tagged(pd.Series(names), tags, lines, table.path, sha256, rows.headers)


def _layout(table: Table, form: LabelFormat) -> LabelFormat:
    """Finds out which format a table has.

    It is the user's, or one column of 0 and 1 for each label if that is clear. It is clear if no
    column has the name of the tags column, and all columns but one hold only 0 and 1. The one
    column holds the names of the tiles, whatever it is called, unless the user named another.

    Raises:
        DataError: nearly all columns hold only 0 and 1.
    """
    columns = _possible_flags(table, form)
    if not columns:
        return form
    odd = _odd_cells(table, columns)
    name_column = _name_column(form, columns, list(odd))
    if name_column is None:
        return form
    labels = [column for column in columns if column != name_column]
    if any(column in odd for column in labels):
        _check_slips(table, labels, odd)
        return form
    return replace(form, name_column=name_column, label_columns=tuple(labels))


def _possible_flags(table: Table, form: LabelFormat) -> list[str]:
    """Returns the columns that may be names and flags; none if the table is clearly another."""
    usual = KAGGLE_FORMAT.tags_column
    if form.one_label:
        usual = ONE_LABEL_COLUMN
    chosen = form.label_columns or form.tags_column != usual
    if chosen or form.tags_column in table.header:
        return []
    columns = []
    for name in table.header:
        if name and not _INDEX.fullmatch(name):
            columns.append(name)
    # Names and a single column of 0 and 1 may be any table.
    if len(columns) < 3:
        return []
    # Two columns with the same name are refused elsewhere.
    if len(set(columns)) < len(columns):
        return []
    return columns


@dataclass(frozen=True)
class _Odd:
    """The first cell of a column that is neither 0 nor 1: its line and its text."""

    line: int
    text: str


def _odd_cells(table: Table, columns: Sequence[str]) -> dict[str, _Odd]:
    """Returns the first cell that is not a flag, for each column that has one, in their order."""
    found: dict[str, _Odd] = {}
    wanted = [Column(column, "any") for column in columns]
    rows = without_headers(table.cells(wanted), columns, table.path)
    for line, *cells in zip(rows.lines, *rows.columns, strict=True):
        for column, cell in zip(columns, cells, strict=True):
            text = str(cell)
            if column not in found and text.casefold() not in _FLAGS:
                found[column] = _Odd(line, text)
    # `found` is in the order of lines, but the caller takes the first column for the names.
    ordered = {}
    for column in columns:
        if column in found:
            ordered[column] = found[column]
    return ordered


def _name_column(form: LabelFormat, columns: Sequence[str], odd: Sequence[str]) -> str | None:
    """Returns the column with the names, or None if it is not clear.

    It is the one that the user named. A table without `image_name` has its names in the first
    column that holds more than 0 and 1.
    """
    if form.name_column in columns:
        return form.name_column
    if form.name_column == KAGGLE_FORMAT.name_column and odd:
        return odd[0]
    return None


def _check_slips(table: Table, labels: Sequence[str], odd: Mapping[str, _Odd]) -> None:
    """Refuses a table of 0 and 1 that has a slip in it, and names the slip.

    Other tables may also have a column of 0 and 1, so at least two columns must hold flags or
    what people write instead.
    """
    others = []  # columns that hold something else
    slips = []  # those of them in which it is a slip
    for column in labels:
        if column not in odd:
            continue
        others.append(column)
        if odd[column].text.casefold() in _SLIPS:
            slips.append(column)
    flags = len(labels) - len(others)
    if flags + len(slips) < 2:
        return
    column = others[0]
    fix = _CHOOSE_COLUMNS
    if slips:
        column = slips[0]
        fix = f"write 0 or 1 in such cells; if it is no label, {_CHOOSE_COLUMNS}"
    cell = odd[column]
    raise DataError(
        f"{table.path} looks like a table with one column of 0 and 1 for each label, "
        f'but line {cell.line} has "{visible(cell.text)[:40]}" in the column "{visible(column)}"',
        "such a column holds 0 and 1, or true and false, in every row",
        fix,
    )
