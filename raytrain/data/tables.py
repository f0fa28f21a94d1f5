"""Reads tables that a user gives as CSV or Parquet: a header, and rows that know their line.

Reading is strict. pandas would silently shift columns at an extra comma and read a tag `NA` as
nothing. Only what cannot be misread is tidied: white space around cells, rows without any text,
commas at the end of a row, and a header that is repeated in the middle. Imports neither torch nor
ray.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from raytrain.data.names import trimmed, visible
from raytrain.data.text import FileKind, decoded, read_bytes, unpacked
from raytrain.errors import DataError, did_you_mean

Cell = str | list[str]
# Excel accepts `sep=;` as the first line of a CSV file, which names the separator.
_EXCEL_SEPARATOR = re.compile(rb"sep=([^\r\n])(?=[\r\n])")
_PARQUET = b"PAR1"  # first bytes of a Parquet file
_OTHER_SEPARATORS = ",;\t|"

Holds = Literal["name", "labels", "value", "flag", "any"]
"""What a column is read as: a name (text), labels (text or a list of text), a value (text or a
whole number), a flag (0 or 1), or anything, to find out what it holds."""

# Why a missing column is needed.
_PURPOSE: dict[str, str] = {
    "name": "it says which tile a row is about",
    "labels": "it says which labels a tile has",
    "value": "it says where a tile belongs",
    "flag": "it says whether a tile has that label",
}
# What a column must hold.
_REQUIREMENT: dict[str, str] = {
    "name": "names are text, and every row has one",
    "labels": "labels are text or lists of text",
    "value": "a value is text or a whole number, and every row has one",
    "flag": "a column for one label holds 0 and 1, or true and false, and no empty cell",
    "any": "",
}


@dataclass(frozen=True)
class Column:
    """A column to read.

    Attributes:
        name: in the header.
        holds: what its cells are read as.
    """

    name: str
    holds: Holds


class Row(NamedTuple):
    """The requested cells of one row. A tuple, since a table may have a million of them.

    Attributes:
        line: line of a CSV file in which the row starts, or number of a Parquet row, from 1.
        cells: one for each requested column.
    """

    line: int
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Rows:
    """The rows of a table, without blank rows and without headers, column by column.

    Attributes:
        lines: line of each row.
        columns: cells of each requested column. Equal texts are one object, except for names.
        headers: how often the header was repeated, as in files that were concatenated.
    """

    lines: Sequence[int]
    columns: tuple[list[Cell], ...]
    headers: int


class Table(Protocol):
    """A table whose header was read.

    Attributes:
        path: path of its file, for messages.
        header: names of the columns.
        sha256: hash of its file; empty for a table in memory.
    """

    path: str
    header: list[str]
    sha256: str

    def cells(self, columns: Sequence[Column]) -> Iterator[Row]:
        """Yields the cells of some columns, row by row. Blank rows are skipped."""


def open_table(path: str, kind: FileKind, separator: str = ",", *, force: bool = False) -> Table:
    """Reads the header of a CSV or Parquet file, which may be compressed as .gz or .zip.

    Args:
        path: path or URI.
        kind: what the file is, for messages.
        separator: one character between the columns of a CSV file.
        force: also read a file of more than 200 MB.

    Raises:
        DataError: the text cannot be read (see `text`), there is no header, or the file is not
            the Parquet file that its name promises.
    """
    stored = read_bytes(path, kind, force=force)
    # The hash is that of the stored bytes, so that anybody can compute it with sha256sum.
    sha256 = hashlib.sha256(stored).hexdigest()
    content = unpacked(stored, path, force=force)
    if path.lower().endswith(".parquet") or content.startswith(_PARQUET):
        return _ParquetTable(path, content, sha256)
    decoded(content, path)  # refuses what is no text
    return _CsvTable(path, content, sha256, separator, kind)


def read_rows(table: Table, columns: Sequence[Column], fix: str) -> Rows:
    """Reads all rows of some columns.

    Args:
        table: see `open_table`.
        columns: the columns to read; the first one holds names.
        fix: what to type if a column is missing.

    Raises:
        DataError: a column is missing or there twice, a row cannot be read, another header stands
            in the middle, or there are no rows. The message names the line.
    """
    _check_columns(table, columns, fix)
    names = [column.name for column in columns]
    found = without_headers(table.cells(columns), names, table.path)
    if not found.lines:
        raise DataError(
            f"{table.path} has a header in line 1 but no rows",
            "there is nothing to read from it",
            "check the file",
        )
    return found


def without_headers(rows: Iterable[Row], names: Sequence[str], source: str) -> Rows:
    """Removes and counts the rows that repeat the header.

    Args:
        rows: cells of some columns.
        names: names of these columns.
        source: path of the table, for messages.

    Raises:
        DataError: the first cell of a row is the name of its column, but another cell is not.
    """
    wanted = [name.casefold() for name in names]
    lines = array("Q")
    columns: tuple[list[Cell], ...] = tuple([] for _ in names)
    first_column, *other_columns = columns
    headers = 0
    # A million rows have few different labels, so each text is kept once.
    texts: dict[str, str] = {}
    for row in rows:
        line, (first, *others) = row
        # Nearly all rows differ from a header in their first cell; this check alone is cheap.
        if str(first).casefold() in wanted and _is_header(row, wanted):
            if _folded(row) != wanted:
                raise _another_header(row, source)
            headers += 1
            continue
        lines.append(line)
        first_column.append(first)
        for column, cell in zip(other_columns, others, strict=True):
            if isinstance(cell, str):
                cell = texts.setdefault(cell, cell)
            column.append(cell)
    return Rows(lines, columns, headers)


def _another_header(row: Row, source: str) -> DataError:
    first = visible(str(row.cells[0]))
    last = visible(str(row.cells[-1]))[:40]
    return DataError(
        f'line {row.line} of {source} begins with "{first}" as a header does, '
        f'but continues with "{last}"',
        "two tables with different columns were probably concatenated",
        "remove that line; or, if a tile has this name, rename the column",
    )


def _folded(row: Row) -> list[str]:
    """The cells of a row without differences of case, for a comparison with the header."""
    return [str(cell).casefold() for cell in row.cells]


def _is_header(row: Row, wanted: Sequence[str]) -> bool:
    """Tells whether a row begins as the header does, or has the header's names in another order."""
    cells = _folded(row)
    if cells[0] == wanted[0]:
        return True
    return len(cells) > 1 and sorted(cells) == sorted(wanted)


def _check_columns(table: Table, columns: Sequence[Column], fix: str) -> None:
    for column in columns:
        if table.header.count(column.name) == 1:
            continue
        header = visible(",".join(table.header))[:120]
        # Of a column that is there twice, its own name would be the nearest one.
        others = [name for name in table.header if name != column.name]
        raise DataError(
            f'{table.path} must have one column "{visible(column.name)}"; '
            f"its header in line 1 is {header}.{did_you_mean(column.name, others)}",
            _PURPOSE[column.holds],
            fix,
        )


class _CsvTable:
    """A CSV file, whose bytes are known to be UTF-8. They are decoded while they are read."""

    def __init__(
        self, path: str, content: bytes, sha256: str, separator: str, kind: FileKind
    ) -> None:
        self.path = path
        self.sha256 = sha256
        self._kind = kind
        self._content = content.removeprefix(codecs.BOM_UTF8)
        self._separator = separator
        excel = _EXCEL_SEPARATOR.match(self._content)
        if excel:
            # The line end stays, so that this line is a blank one and all lines keep their number.
            self._content = self._content[excel.end() :]
            self._separator = excel[1].decode()
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
        for separator in _OTHER_SEPARATORS:
            if separator in self.header[0]:
                raise self._other_separator(separator)

    def _other_separator(self, found: str) -> DataError:
        fix = "save the table with commas between its columns"
        # Only some commands have the flag; a tab cannot be typed easily, so the flag takes a word.
        if self._kind.separated:
            value = repr(found)
            if found == "\t":
                value = "tab"
            fix = f"--separator {value}, or {fix}"
        return DataError(
            f"line 1 of {self.path} is separated by {found!r}, expected {self._separator!r}",
            "all columns would be read as one",
            fix,
        )

    def cells(self, columns: Sequence[Column]) -> Iterator[Row]:
        positions = [self.header.index(column.name) for column in columns]
        rows = self._rows()
        next(rows)  # the header
        for line, row in rows:
            if len(row) != len(self.header):
                content = visible(",".join(row))[:80]
                raise DataError(
                    f"line {line} of {self.path} has {len(row)} fields, "
                    f"the header has {len(self.header)}: {content}",
                    "a field too many or too few would shift labels to another tile",
                    "correct that line (several labels are separated by spaces, not commas)",
                )
            yield Row(line, tuple([row[position] for position in positions]))

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yields the line in which each row starts, and its trimmed cells, the header first.

        Blank rows are skipped, and blank cells beyond the width of the header are removed.
        """
        # newline="" leaves line ends to the csv module, as its documentation demands: inside
        # quotes they belong to a cell.
        stream = io.TextIOWrapper(io.BytesIO(self._content), "utf-8", newline="")
        reader = csv.reader(stream, strict=True, delimiter=self._separator)
        width = 0  # columns of the header, once it was read
        last_line = 0  # where the previous row ended
        try:
            for row in reader:
                # A row with a line end inside quotes takes several lines.
                start = last_line + 1
                last_line = reader.line_num
                cells = [trimmed(cell) for cell in row]
                if not any(cells):
                    continue
                width = width or len(cells)
                while len(cells) > width and not cells[-1]:
                    cells.pop()
                yield start, cells
        except csv.Error as error:
            raise DataError(
                f"{self.path} cannot be read from line {last_line + 1} on: {error}",
                "a quote that is opened there is never closed, or is inside a field",
                "correct that line",
            ) from None


class FrameTable:
    """A table in memory. Its rows are counted from 1, and it has no hash."""

    path = "the table in memory"
    sha256 = ""

    def __init__(self, frame: pd.DataFrame) -> None:
        self._frame = frame
        self.header = [trimmed(str(name)) for name in frame.columns]

    def cells(self, columns: Sequence[Column]) -> Iterator[Row]:
        """Yields the cells of some columns, row by row. Blank rows are skipped.

        Raises:
            DataError: see `cell_of`.
        """
        positions = [self.header.index(column.name) for column in columns]
        # By position, because the names in the frame may have white space around them.
        values = [self._frame.iloc[:, position].to_list() for position in positions]
        for line, row in enumerate(zip(*values, strict=True), 1):
            where = f"line {line} of {self.path}"
            cells = tuple(cell_of(value, where) for value in row)
            if any(cells):
                yield Row(line, cells)


def cell_of(value: Any, where: str) -> Cell:
    """Converts a value in memory to a text or a list of texts.

    None and NaN, which pandas makes of an empty cell, become an empty text.

    Args:
        value: of a cell.
        where: of the cell, for messages.

    Raises:
        DataError: a dictionary, bytes, or a list that contains something else than labels.
    """
    if isinstance(value, str):
        return trimmed(value)
    if isinstance(value, dict | bytes):
        raise _not_labels(value, where)
    if isinstance(value, set | frozenset):
        # Sets have another order in every process.
        return [_label_in(item, where) for item in sorted(value, key=str)]
    if isinstance(value, Iterable):
        return [_label_in(item, where) for item in value]
    if pd.isna(value):
        return ""
    return _text_of(value)


def _label_in(item: Any, where: str) -> str:
    if isinstance(item, str):
        return item
    if isinstance(item, bytes | Iterable) or pd.isna(item):
        raise _not_labels(item, where)
    return _text_of(item)


def _not_labels(value: Any, where: str) -> DataError:
    return DataError(
        f"{where} has {value!r:.40}, which is neither a label nor a list of labels",
        "it would be learned as a label of another name",
        "give each tile a text, or a list of texts",
    )


def _text_of(value: Any) -> str:
    """Converts a single value to text, a whole number without decimals: 1.0 becomes `1`.

    pandas stores whole numbers as floats if the column also has empty cells.
    """
    if isinstance(value, float | np.floating | Decimal) and value == value // 1:
        return str(int(value))
    return str(value)


class _ParquetTable:
    """A Parquet file in memory."""

    def __init__(self, path: str, content: bytes, sha256: str) -> None:
        self.path = path
        self.sha256 = sha256
        try:
            self._file = pq.ParquetFile(io.BytesIO(content))
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from None
        self.header = [trimmed(name) for name in self._file.schema_arrow.names]

    def cells(self, columns: Sequence[Column]) -> Iterator[Row]:
        values = self._values(columns)
        for line, row in enumerate(zip(*values, strict=True), 1):
            blank = all(value in (None, "", []) for value in row)
            if blank:
                continue
            cells = []
            for value, column in zip(row, columns, strict=True):
                cells.append(self._cell(value, column))
            yield Row(line, tuple(cells))

    def _values(self, columns: Sequence[Column]) -> list[list[Any]]:
        """Reads the values of each column.

        A column of a type that is not expected is never converted: an extension type may run code.
        """
        self._check_types(columns)
        names = []
        for column in columns:
            if _fits(self._type(column), column.holds):
                names.append(self._stored(column.name))
        try:
            table = self._file.read(columns=names)
            # Finds text that is not UTF-8, among others.
            table.validate(full=True)
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from None
        found = []
        rows = self._file.metadata.num_rows
        for column in columns:
            stored = self._stored(column.name)
            if stored in names:
                found.append(table.column(stored).to_pylist())
            else:
                # Only columns that may hold anything get here; this text is never taken for 0 or 1.
                found.append([f"a value of type {self._type(column)}"] * rows)
        return found

    def _check_types(self, columns: Sequence[Column]) -> None:
        for column in columns:
            kind = self._type(column)
            if column.holds == "any" or _fits(kind, column.holds):
                continue
            # A column of Arrow's type null has nothing but empty cells.
            empty = 0
            if pa.types.is_null(kind):
                empty = self._file.metadata.num_rows
            raise self._wrong_type(column, empty)

    def _stored(self, name: str) -> str:
        """Returns the name of a column as the file has it, with any white space around it."""
        return str(self._file.schema_arrow.names[self.header.index(name)])

    def _type(self, column: Column) -> pa.DataType:
        return self._file.schema_arrow.field(self._stored(column.name)).type

    def _cell(self, value: Any, column: Column) -> Cell:
        if isinstance(value, list):
            if None in value:
                raise self._wrong_type(column, 1)
            return [str(item) for item in value]
        if value is not None:
            return trimmed(_text_of(value))
        # A tile may have no labels; a row without a name or a value cannot be used.
        if column.holds in ("labels", "any"):
            return ""
        raise self._wrong_type(column, 1)

    def _wrong_type(self, column: Column, empty: int) -> DataError:
        name = visible(column.name)
        count = empty or "no"
        return DataError(
            f'column "{name}" of {self.path} is of type {self._type(column)} '
            f"with {count} empty cells",
            _REQUIREMENT[column.holds],
            "write it as text (labels: text, or a list of texts)",
        )

    def _unreadable(self, error: Exception) -> DataError:
        reason = str(error).split("\n")[0]
        return DataError(
            f"{self.path} is not a Parquet file, it cannot be read from line 1 on: {reason}",
            "its labels cannot be read",
            "get it again",
        )


def _fits(kind: pa.DataType, holds: Holds) -> bool:
    """Tells whether a column of an Arrow type can be read as what it should hold."""
    if _is_text(kind):
        return True
    if _is_list(kind) and _is_text(kind.value_type):
        return holds in ("labels", "any")
    # Floats and decimals may be 0.0 and 1.0, but their text is no reliable name of a value.
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return holds in ("flag", "any")
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return holds in ("value", "flag", "any")
    return False


def _is_text(kind: pa.DataType) -> bool:
    # Dictionaries are what pandas' categories become.
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    types = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(is_type(kind) for is_type in types)


def _is_list(kind: pa.DataType) -> bool:
    types = (
        pa.types.is_list,
        pa.types.is_large_list,
        pa.types.is_fixed_size_list,
        pa.types.is_list_view,
        pa.types.is_large_list_view,
    )
    return any(is_type(kind) for is_type in types)
