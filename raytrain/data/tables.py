"""Tables that a user gives, CSV or Parquet: a header, and rows with the line they stand in.

Reading is strict: pandas would silently shift columns on an extra comma and turn a tag `NA` into nothing. What cannot be
misread is tidied: white space around cells, rows without any text, commas at the end of a row, a header that stands again
in the middle. No torch, no ray.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from raytrain.data.names import trimmed, visible
from raytrain.data.text import FileKind, decoded, read_bytes, unpacked
from raytrain.errors import DataError, did_you_mean

Cell = str | list[str]
_EXCEL_SEPARATOR = re.compile(
    r"sep=([^\r\n])(?=[\r\n])"
)  # the first line by which Excel is told what separates columns
Holds = Literal["name", "labels", "value", "flag", "any"]
"""What a column is read as: a name (text), labels (text or a list of text), a value (also whole numbers), a flag (0 and 1),
or anything, to find out."""


@dataclass(frozen=True)
class Column:
    """A column to read."""

    name: str
    holds: Holds


@dataclass(frozen=True)
class Row:
    """The cells that were asked for, and the line of a CSV that they start in, or the number of a Parquet row from 1."""

    line: int
    cells: tuple[Cell, ...]


@dataclass
class Rows:
    """The rows of a table.

    Attributes:
        rows: without blank ones and headers.
        headers: how many rows were the header once more, as in files that were put together.
    """

    rows: list[Row] = field(default_factory=list)
    headers: int = 0


class Table(Protocol):
    """A table whose header was read.

    Attributes:
        path: of its file, for messages.
        header: names of the columns.
        sha256: of its file; empty of a table in memory.
    """

    path: str
    header: list[str]
    sha256: str

    def cells(self, columns: Sequence[Column]) -> Iterator[Row]:
        """The cells of some columns, row by row; blank rows are left out."""


def open_table(path: str, kind: FileKind, separator: str = ",", *, force: bool = False) -> Table:
    """Reads the header of a CSV or Parquet file, which may be packed as .gz or .zip.

    Args:
        path: path or URI.
        kind: what it is, for messages.
        separator: between the columns of a CSV.
        force: also read a file of more than 200 MB.

    Raises:
        DataError: as `text`, no header, or not the Parquet file that its name promises.
    """
    stored = read_bytes(path, kind, force=force)
    content, sha256 = unpacked(stored, path, force=force), hashlib.sha256(stored).hexdigest()
    if path.lower().endswith(".parquet") or content.startswith(b"PAR1"):
        return _ParquetTable(path, content, sha256)
    return _CsvTable(path, decoded(content, path), sha256, separator, kind)


def read_rows(table: Table, columns: Sequence[Column], fix: str) -> Rows:
    """All rows of some columns, of which the first holds names.

    Args:
        table: see `open_table`.
        columns: to read.
        fix: what to type where one is missing.

    Raises:
        DataError: a column is missing or there twice, a row cannot be read, a header that differs stands in the middle,
            or there is no row; with the line.
    """
    _check_columns(table, columns, fix)
    found = without_headers(table.cells(columns), [column.name for column in columns], table.path)
    if not found.rows:
        raise DataError(
            f"{table.path} has a header in line 1 but no rows",
            "there is nothing to read from it",
            "check the file",
        )
    return found


def without_headers(rows: Iterable[Row], names: Sequence[str], source: str) -> Rows:
    """The rows without those that repeat the header, which are counted.

    Raises:
        DataError: the first cell is the name of its column, and another cell is not.
    """
    found = Rows()
    wanted = [name.casefold() for name in names]
    for row in rows:
        if str(row.cells[0]).casefold() not in wanted or not _is_header(row, wanted):
            found.rows.append(row)
            continue
        if [str(cell).casefold() for cell in row.cells] != wanted:
            raise DataError(
                f'line {row.line} of {source} begins with "{visible(str(row.cells[0]))}" as a header does, '
                f'and goes on with "{visible(str(row.cells[-1]))[:40]}"',
                "two tables with other columns were probably put together",
                "take that line out; or, if a tile is called so, rename the column",
            )
        found.headers += 1
    return found


def _is_header(row: Row, wanted: Sequence[str]) -> bool:
    """Whether a row begins as the header does, or holds the names of its columns in another order."""
    said = [str(cell).casefold() for cell in row.cells]
    return said[0] == wanted[0] or (len(said) > 1 and sorted(said) == sorted(wanted))


def _check_columns(table: Table, columns: Sequence[Column], fix: str) -> None:
    for column in columns:
        if table.header.count(column.name) == 1:
            continue
        header = visible(",".join(table.header))[:120]
        others = [name for name in table.header if name != column.name]
        raise DataError(
            f'{table.path} must have one column "{visible(column.name)}"; its header in line 1 is {header}.'
            f"{did_you_mean(column.name, others)}",
            _SAYS[column.holds],
            fix,
        )


class _CsvTable:
    def __init__(self, path: str, text: str, sha256: str, separator: str, kind: FileKind) -> None:
        self.path, self.sha256, self._kind = path, sha256, kind
        self._text, self._separator = text, separator
        if told := _EXCEL_SEPARATOR.match(text):
            # The line stays, as a blank one, so that lines keep their numbers.
            self._text, self._separator = text[told.end() :], told[1]
        _, self.header = next(self._rows(), (1, []))
        self._check_header()

    def _check_header(self) -> None:
        if not self.header:
            raise DataError(
                f"{self.path} is empty, it has no line 1",
                "a table begins with the names of its columns",
                "check it",
            )
        if len(self.header) > 1:
            return
        other = next((mark for mark in ",;\t|" if mark in self.header[0]), None)
        if other is not None:
            flag = (
                f"--separator {'tab' if other == chr(9) else repr(other)}, or "
                if self._kind.separated
                else ""
            )
            raise DataError(
                f"line 1 of {self.path} is separated by {other!r}, expected {self._separator!r}",
                "all columns would be read as one",
                f"{flag}save the table with commas between its columns",
            )

    def cells(self, columns: Sequence[Column]) -> Iterator[Row]:
        paths = [self.header.index(column.name) for column in columns]
        rows = self._rows()
        next(rows)  # the header
        for line, row in rows:
            if len(row) != len(self.header):
                raise DataError(
                    f"line {line} of {self.path} has {len(row)} fields, the header has {len(self.header)}: "
                    f"{visible(','.join(row))[:80]}",
                    "a field too many or too few would shift labels to another tile",
                    "correct that line (several labels are separated by spaces, not commas)",
                )
            yield Row(line, tuple(row[path] for path in paths))

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """Trimmed cells with the line they start in; without blank rows, and blank cells beyond the header are cut off."""
        reader = csv.reader(
            io.StringIO(self._text, newline=""), strict=True, delimiter=self._separator
        )
        width, line = 0, 0
        try:
            for row in reader:
                start, line = line + 1, reader.line_num
                cells = [trimmed(cell) for cell in row]
                if not any(cells):
                    continue
                width = width or len(cells)
                while len(cells) > width and not cells[-1]:
                    cells.pop()
                yield start, cells
        except csv.Error as error:
            raise DataError(
                f"{self.path} cannot be read from line {line + 1} on: {error}",
                "a quote that is opened there is never closed, or stands inside a field",
                "correct that line",
            ) from None


class FrameTable:
    """A table in memory; rows count from 1, and it has no hash of its own."""

    path, sha256 = "the table in memory", ""

    def __init__(self, frame: pd.DataFrame) -> None:
        self._frame = frame
        self.header = [trimmed(str(name)) for name in frame.columns]

    def cells(self, columns: Sequence[Column]) -> Iterator[Row]:
        paths = [self.header.index(column.name) for column in columns]
        values = [self._frame.iloc[:, path].to_list() for path in paths]
        for line, row in enumerate(zip(*values, strict=True), 1):
            cells = tuple(cell_of(value, f"line {line} of {self.path}") for value in row)
            if any(cells):
                yield Row(line, cells)


def cell_of(value: Any, where: str) -> Cell:
    """A value in memory as text or a list of text; None and NaN, which pandas makes of an empty cell, as empty text.

    Raises:
        DataError: a dictionary, bytes, or a list with something else than labels in it.
    """
    if isinstance(value, str):
        return trimmed(value)
    if isinstance(value, dict | bytes):
        raise _no_labels(value, where)
    if isinstance(value, Iterable):
        items = sorted(value, key=str) if isinstance(value, set | frozenset) else value
        return [_label_in(item, where) for item in items]
    return "" if pd.isna(value) else _text_of(value)


def _label_in(item: Any, where: str) -> str:
    if isinstance(item, str):
        return item
    if isinstance(item, bytes | Iterable) or pd.isna(item):
        raise _no_labels(item, where)
    return _text_of(item)


def _no_labels(value: Any, where: str) -> DataError:
    return DataError(
        f"{where} has {value!r:.40}, which is neither a label nor a list of labels",
        "it would be learned as a label of another name",
        "give each tile a text, or a list of texts",
    )


def _text_of(value: Any) -> str:
    """A number or another single value as text: 1.0 as `1`, so that a column with gaps in it reads as one without."""
    if isinstance(value, float | np.floating | Decimal) and value == value // 1:
        return str(int(value))
    return str(value)


class _ParquetTable:
    def __init__(self, path: str, content: bytes, sha256: str) -> None:
        self.path, self.sha256 = path, sha256
        try:
            self._file = pq.ParquetFile(io.BytesIO(content))
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from None
        self.header = [trimmed(name) for name in self._file.schema_arrow.names]

    def cells(self, columns: Sequence[Column]) -> Iterator[Row]:
        values = self._values(columns)
        for line, row in enumerate(zip(*values, strict=True), 1):
            if any(value not in (None, "", []) for value in row):
                yield Row(
                    line,
                    tuple(
                        self._cell(value, column)
                        for value, column in zip(row, columns, strict=True)
                    ),
                )

    def _values(self, columns: Sequence[Column]) -> list[list[Any]]:
        """The values of each column. A column of a foreign type is never converted: an extension type may run code."""
        kinds = {column.name: self._kind(column) for column in columns}
        rows = self._file.metadata.num_rows
        for column in columns:
            kind = kinds[column.name]
            if column.holds != "any" and not _fits(kind, column.holds):
                raise self._wrong_type(column, rows if pa.types.is_null(kind) else 0)
        names = [column.name for column in columns if _fits(kinds[column.name], column.holds)]
        try:
            table = self._file.read(columns=[self._stored(name) for name in names])
            table.validate(full=True)
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from None
        found = {name: table.column(self._stored(name)).to_pylist() for name in names}
        return [
            found.get(column.name, [f"a value of type {kinds[column.name]}"] * rows)
            for column in columns
        ]

    def _stored(self, name: str) -> str:
        """The name of a column as the file has it, with the white space around it."""
        return str(self._file.schema_arrow.names[self.header.index(name)])

    def _kind(self, column: Column) -> pa.DataType:
        return self._file.schema_arrow.field(self._stored(column.name)).type

    def _cell(self, value: Any, column: Column) -> Cell:
        if isinstance(value, list) and None not in value:
            return [str(item) for item in value]
        if value is None and column.holds in ("labels", "any"):
            return ""
        if value is None or isinstance(value, list):
            raise self._wrong_type(column, 1)
        return trimmed(_text_of(value))

    def _wrong_type(self, column: Column, empty: int) -> DataError:
        kind = self._kind(column)
        return DataError(
            f'column "{visible(column.name)}" of {self.path} is of type {kind} with {empty or "no"} empty cells',
            _NEEDED[column.holds],
            "write it as text (labels: text, or a list of texts)",
        )

    def _unreadable(self, error: Exception) -> DataError:
        reason = str(error).split("\n")[0]
        return DataError(
            f"{self.path} is not a Parquet file, and not read from line 1 on: {reason}",
            "its labels cannot be read",
            "get it again",
        )


_SAYS: dict[str, str] = {
    "name": "it says which tile a row is about",
    "labels": "it says which labels a tile has",
    "value": "it says where a tile belongs",
    "flag": "it says whether a tile has that label",
}
_NEEDED: dict[str, str] = {
    "name": "names are text, and every row has one",
    "labels": "labels are text or lists of text",
    "value": "a value is text or a whole number, and every row has one",
    "flag": "a column for one label holds 0 and 1, or true and false, and no empty cell",
    "any": "",
}


def _fits(kind: pa.DataType, holds: Holds) -> bool:
    """Whether a column of an Arrow type can be read as what it is to hold."""
    number = pa.types.is_integer(kind) or pa.types.is_boolean(kind)
    if _is_text(kind):
        return True
    if _is_list(kind) and _is_text(kind.value_type):
        return holds in ("labels", "any")
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return holds in ("flag", "any")
    return bool(number) and holds in ("value", "flag", "any")


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _is_list(kind: pa.DataType) -> bool:
    lists = (
        pa.types.is_list,
        pa.types.is_large_list,
        pa.types.is_fixed_size_list,
        pa.types.is_list_view,
    )
    return any(is_one(kind) for is_one in lists) or bool(pa.types.is_large_list_view(kind))
