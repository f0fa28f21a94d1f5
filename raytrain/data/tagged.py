"""The labels in a table as they are written there: in a tags column, or one column of 0 and 1 for each label.

`labels` tidies them. No torch, no ray.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from raytrain.data.cells import Source, Tags, tags_of
from raytrain.data.label_format import KAGGLE_FORMAT, LabelFormat
from raytrain.data.names import visible
from raytrain.data.tables import Column, Table, read_rows, without_headers
from raytrain.errors import DataError

OTHER_COLUMNS = "rename the columns, or give --name-column and --tags-column (or --label-columns)"
_TRUE, _FALSE = ("1", "1.0", "true"), ("0", "0.0", "false")
COLUMNS_SHOWN = 6


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


def _of_tags_column(table: Table, form: LabelFormat, classes: Sequence[str] | None) -> Tagged:
    columns = [Column(form.name_column, "name"), Column(form.tags_column, "labels")]
    rows = read_rows(table, columns, OTHER_COLUMNS)
    lines = [row.line for row in rows.rows]
    cells = [row.cells[1] for row in rows.rows]
    tags = tags_of(cells, Source(table.path, lines), form.tags_separator, classes)
    names = [str(row.cells[0]) for row in rows.rows]
    remarks = tuple(_only_flags(tags, form.tags_column))
    sha256 = table.sha256 or hash_of(names, tags, lines)
    return Tagged(names, tags, lines, table.path, sha256, rows.headers, remarks)


def _only_flags(tags: Sequence[Tags], column: str) -> Iterator[str]:
    found = {tag for words in tags for tag in words}
    if found and (found <= {"0", "1"} or {tag.casefold() for tag in found} <= {"true", "false"}):
        yield (
            f'the column "{column}" holds only {" and ".join(sorted(found))}: they are the classes. '
            "If each label has a column of its own, give --label-columns."
        )


def _of_label_columns(table: Table, name_column: str, label_columns: Sequence[str]) -> Tagged:
    """Rows of a table with one column of 0 and 1 for each label."""
    columns = [Column(name_column, "name"), *(Column(column, "flag") for column in label_columns)]
    rows = read_rows(table, columns, "--name-column NAME --label-columns A,B,C with columns of the file")
    tags: list[Tags] = []
    for row in rows.rows:
        words = []
        for label, cell in zip(label_columns, row.cells[1:], strict=True):
            flag = str(cell).casefold()
            if flag not in _TRUE and flag not in _FALSE:
                raise DataError(
                    f'line {row.line} of {table.path} has {visible(str(cell))!r} in the column "{label}"',
                    "a column for one label holds 0 and 1, or true and false",
                    "correct that cell, or name the right columns with --label-columns",
                )
            if flag in _TRUE:
                words.append(" ".join(label.split()))
        tags.append(tuple(words))
    shown = ", ".join(label_columns[:COLUMNS_SHOWN]) + (", ..." if len(label_columns) > COLUMNS_SHOWN else "")
    remark = f'{len(label_columns)} columns of 0 and 1, one for each label: {shown}; tiles are named by "{name_column}"'
    names = [str(row.cells[0]) for row in rows.rows]
    lines = [row.line for row in rows.rows]
    sha256 = table.sha256 or hash_of(names, tags, lines)
    labels = tuple(" ".join(label.split()) for label in label_columns)
    return Tagged(names, tags, lines, table.path, sha256, rows.headers, (remark,), labels)


def _layout(table: Table, form: LabelFormat) -> LabelFormat:
    """The format that a table has: as the user says, or one column of 0 and 1 for each label where that is clear.

    It is where no column has the name of the tags column, and all columns but one hold 0 and 1 alone. That one holds the
    names, whatever it is called, unless the user named another.
    """
    asked = form.label_columns or form.tags_column != KAGGLE_FORMAT.tags_column
    if asked or form.tags_column in table.header:
        return form
    columns = [name for name in table.header if name]
    if len(columns) < 3:
        return form
    other = _not_flags(table, columns)
    flags = [column for column in columns if column not in other]
    if form.name_column in columns:
        other.pop(form.name_column, None)
        flags = [column for column in flags if column != form.name_column]
        name_column = form.name_column
    elif form.name_column == KAGGLE_FORMAT.name_column and other:
        name_column = next(iter(other))
        other.pop(name_column)
    else:
        return form
    if len(flags) < 2:
        return form
    if other:
        column, (line, cell) = next(iter(other.items()))
        raise DataError(
            f'{table.path} has {len(flags)} columns of 0 and 1, and "{column}" with "{visible(cell)[:40]}" in line {line}',
            "it is not clear which columns are labels",
            f"--tags-column {column}, or --label-columns {','.join(flags[:COLUMNS_SHOWN])} with the columns that are labels",
        )
    return replace(form, name_column=name_column, label_columns=tuple(flags))


def _not_flags(table: Table, columns: list[str]) -> dict[str, tuple[int, str]]:
    """The columns that do not hold 0 and 1 (true and false) alone, with line and content of their first other cell."""
    found: dict[str, tuple[int, str]] = {}
    if len(set(columns)) != len(columns):
        return found
    for row in without_headers(table.cells([Column(column, "any") for column in columns]), columns, table.path).rows:
        for column, cell in zip(columns, row.cells, strict=True):
            if column not in found and str(cell).casefold() not in (*_TRUE, *_FALSE):
                found[column] = (row.line, str(cell))
    return found
