"""The labels in a table as they are written there: in a tags column, or one column of 0 and 1 for each label.

`labels` tidies them. No torch, no ray.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from raytrain.data.cells import Source, Tags, tags_of
from raytrain.data.label_format import KAGGLE_FORMAT, LabelFormat
from raytrain.data.names import visible, without_invisible
from raytrain.data.tables import Column, Row, Rows, Table, read_rows, without_headers
from raytrain.errors import DataError

OTHER_COLUMNS = "rename the columns, or give --name-column and --tags-column (or --label-columns)"
_TRUE, _FALSE = ("1", "1.0", "true"), ("0", "0.0", "false")
_SLIPS = ("", "-1", "2", "x", "yes", "no", "y", "n", "t", "f")  # what people write for 0 and 1
_INDEX = re.compile(
    r"Unnamed: \d+|__index_level_\d+__"
)  # pandas' names for a column of row numbers


@dataclass(frozen=True)
class Tagged:
    """Rows as they were written, before they are tidied.

    Attributes:
        names: of the tiles.
        tags: labels of each.
        lines: of the rows.
        source: a path, or words for messages.
        sha256: of the file or of the rows.
        headers: rows left out since they repeat the header.
        remarks: what a user should know of how they were read, a sentence each.
        columns: of a table with one column for each label, their names; they are labels even where no tile has one.
    """

    names: list[str]
    tags: list[Tags]
    lines: list[int]
    source: str
    sha256: str
    headers: int = 0
    remarks: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()


def tagged_in(table: Table, form: LabelFormat, classes: Sequence[str] | None) -> Tagged:
    """The rows of a table whose header was read.

    Args:
        table: see `tables.open_table`.
        form: how it is to be read.
        classes: that the user listed.

    Raises:
        DataError: see `labels.read_labels`.
    """
    layout = _layout(table, form)
    if layout.label_columns:
        return _of_label_columns(table, layout.name_column, layout.label_columns)
    return _of_tags_column(table, form, classes)


def hash_of(names: Sequence[str], tags: Sequence[Tags], lines: Sequence[int]) -> str:
    """The hash of rows that are in no file."""
    return hashlib.sha256(repr(list(zip(names, tags, lines, strict=True))).encode()).hexdigest()


def tidy_label(label: str) -> str:
    """A label without characters that nobody sees, and with single spaces."""
    return " ".join(without_invisible(label).split())


def same_form(label: str) -> str:
    """A label in Unicode's composed form (NFC): é is one character or two, and the same label."""
    return unicodedata.normalize("NFC", label)


def _of_tags_column(table: Table, form: LabelFormat, classes: Sequence[str] | None) -> Tagged:
    columns = [Column(form.name_column, "name"), Column(form.tags_column, "labels")]
    rows = read_rows(table, columns, OTHER_COLUMNS)
    _check_other_header(rows, form.tags_column, table.path, classes or ())
    cells = [row.cells[1] for row in rows.rows]
    source = Source(table.path, [row.line for row in rows.rows])
    # A table with a row for each label has one label in a cell.
    tags = tags_of(cells, source, form.tags_separator, classes, whole=form.join_rows)
    return _tagged(table, rows, tags, tuple(_only_flags(tags, form.tags_column)))


def _check_other_header(rows: Rows, column: str, path: str, classes: Sequence[str]) -> None:
    """Refuses a row whose label is the name of the tags column: a header that names its first column otherwise."""
    for row in rows.rows:
        if str(row.cells[1]).casefold() == column.casefold() and row.cells[1] not in classes:
            raise DataError(
                f'line {row.line} of {path} has the label "{visible(str(row.cells[1]))}", which is its column\'s name',
                "two tables with other headers were probably put together",
                "take that line out; or, if it is a label, list all labels with --classes",
            )


def _only_flags(tags: Sequence[Tags], column: str) -> Iterator[str]:
    found = {tag for words in tags for tag in words}
    if found and {tag.casefold() for tag in found} <= {*_TRUE, *_FALSE}:
        yield (
            f'the column "{column}" holds only {" and ".join(sorted(found))}: they are the classes. '
            "If each label has a column of its own, give --label-columns."
        )


def _of_label_columns(table: Table, name_column: str, label_columns: Sequence[str]) -> Tagged:
    """Rows of a table with one column of 0 and 1 for each label."""
    labels = [tidy_label(column) for column in label_columns]
    _check_different(labels, table.path)
    columns = [Column(name_column, "name"), *(Column(column, "flag") for column in label_columns)]
    rows = read_rows(
        table, columns, "--name-column NAME --label-columns A,B,C with columns of the file"
    )
    tags = [tuple(_labels_of_row(row, labels, table.path)) for row in rows.rows]
    count = f"{len(labels)} column{'s' * (len(labels) != 1)}"
    remark = f'{count} of 0 and 1, one for each label: {", ".join(labels)}; tiles are named by "{visible(name_column)}"'
    return _tagged(table, rows, tags, (remark,), tuple(labels))


def _check_different(labels: Sequence[str], path: str) -> None:
    seen: dict[str, str] = {}
    for label in labels:
        other = seen.setdefault(same_form(label).casefold(), label)
        if other is not label:
            raise DataError(
                f'line 1 of {path} has the columns "{visible(other)}" and "{visible(label)}", which are one label',
                "labels that differ in case or Unicode form alone would be two classes",
                "rename one of them, or take it out",
            )


def _labels_of_row(row: Row, labels: Sequence[str], path: str) -> Iterator[str]:
    for label, cell in zip(labels, row.cells[1:], strict=True):
        flag = str(cell).casefold()
        if flag not in _TRUE and flag not in _FALSE:
            raise DataError(
                f'line {row.line} of {path} has "{visible(str(cell))}" in the column "{visible(label)}"',
                "a column for one label holds 0 and 1, or true and false",
                "correct that cell, or name the right columns with --label-columns",
            )
        if flag in _TRUE:
            yield label


def _tagged(
    table: Table,
    rows: Rows,
    tags: list[Tags],
    remarks: tuple[str, ...],
    columns: tuple[str, ...] = (),
) -> Tagged:
    names = [str(row.cells[0]) for row in rows.rows]
    lines = [row.line for row in rows.rows]
    sha256 = table.sha256 or hash_of(names, tags, lines)
    return Tagged(names, tags, lines, table.path, sha256, rows.headers, remarks, columns)


def _layout(table: Table, form: LabelFormat) -> LabelFormat:
    """The format that a table has: as the user says, or one column of 0 and 1 for each label where that is clear.

    It is where no column has the name of the tags column, and all columns but one hold 0 and 1 alone. That one holds the
    names, whatever it is called, unless the user named another.
    """
    asked = form.label_columns or form.tags_column != KAGGLE_FORMAT.tags_column
    columns = [name for name in table.header if name and not _INDEX.fullmatch(name)]
    if (
        asked
        or form.tags_column in table.header
        or len(columns) < 3
        or len(set(columns)) != len(columns)
    ):
        return form
    odd = _odd_cells(table, columns)
    name_column = _name_column(form, columns, list(odd))
    if name_column is None:
        return form
    labels = [column for column in columns if column != name_column]
    others = [column for column in labels if column in odd]
    if not others:
        return replace(form, name_column=name_column, label_columns=tuple(labels))
    # Other tables have such columns too, or none; a 0/1 table with a slip in it is told what the slip is.
    slips = [column for column in others if odd[column].text.casefold() in _SLIPS]
    if len(labels) - len(others) + len(slips) < 2:
        return form
    column = slips[0] if slips else others[0]
    choose = "--label-columns A,B,C with the columns that are labels, or --tags-column NAME with the only one"
    raise DataError(
        f"{table.path} looks like a table with one column of 0 and 1 for each label, but line {odd[column].line} has "
        f'"{visible(odd[column].text)[:40]}" in the column "{visible(column)}"',
        "such a column holds 0 and 1, or true and false, in every row",
        f"write 0 or 1 in such cells; if it is no label, {choose}" if slips else choose,
    )


@dataclass(frozen=True)
class _Odd:
    """The first cell of a column that is neither 0 nor 1: its line and text."""

    line: int
    text: str


def _odd_cells(table: Table, columns: Sequence[str]) -> dict[str, _Odd]:
    """For each column that does not hold 0 and 1 (true and false) alone, its first other cell."""
    found: dict[str, _Odd] = {}
    wanted = [Column(column, "any") for column in columns]
    for row in without_headers(table.cells(wanted), columns, table.path).rows:
        for column, cell in zip(columns, row.cells, strict=True):
            if column not in found and str(cell).casefold() not in (*_TRUE, *_FALSE):
                found[column] = _Odd(row.line, str(cell))
    return {column: found[column] for column in columns if column in found}


def _name_column(form: LabelFormat, columns: Sequence[str], odd: Sequence[str]) -> str | None:
    """The column that the user named; else, of a table without `image_name`, the first that does not hold 0 and 1."""
    if form.name_column in columns:
        return form.name_column
    if form.name_column == KAGGLE_FORMAT.name_column and odd:
        return odd[0]
    return None
