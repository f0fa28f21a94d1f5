"""Reads one value for each tile from a table, such as its scene or the part it belongs to.

Imports neither torch nor ray.
"""

from __future__ import annotations

from collections.abc import Sequence

from raytrain.data.names import KnownNames, visible
from raytrain.data.tables import Column, Table, open_table, read_rows
from raytrain.data.text import FileKind
from raytrain.errors import DataError

TABLE = FileKind(
    "table",
    "it says where each tile belongs",
    "--table FILE, a CSV or Parquet file with one row per tile",
    separated=True,
)
# What a message about a missing column advises the commands that divide tiles.
FIX = (
    "name its columns with --name-column and --column; "
    "if the label file's differ, ingest first, then raytrain data split"
)


def column_of(
    names: Sequence[str],
    path: str,
    column: str,
    name_columns: Sequence[str] = ("image_name",),
    separator: str = ",",
    *,
    optional: Sequence[str] = (),
    fix: str = FIX,
) -> list[str]:
    """Reads one column of a table, such as the scene or region of each tile.

    Args:
        names: names of the tiles. The table may write them with or without suffix.
        path: path of a CSV or Parquet file.
        column: name of the column.
        name_columns: possible names of the column with the tiles' names. The first one that the
            table has is used.
        separator: one character between the columns of a CSV. A comma is tried if it gives only
            one column.
        optional: names of further tiles, which the table may lack. It means such a tile only by
            its whole name, and only where no other tile has it.
        fix: what a message about a missing column advises.

    Returns:
        The value of each tile, then that of each of `optional`: an empty text where there is none.

    Raises:
        DataError: the table cannot be read (see `tables.open_table`), has two different values for
            one tile, or has none for a tile.
    """
    table = _table_of_values(path, separator)
    name_column = next((name for name in name_columns if name in table.header), name_columns[0])
    rows = read_rows(table, [Column(name_column, "name"), Column(column, "value")], fix)
    known = KnownNames(names)
    others = KnownNames(optional)
    values: dict[str, str] = {}
    for line, named, cell in zip(rows.lines, *rows.columns, strict=True):
        name = str(named)
        value = " ".join(str(cell).split())
        for tile in known.find(name) or others.whole(name):
            earlier = values.setdefault(tile, value)
            if earlier != value:
                raise DataError(
                    f'line {line} of {path} gives {visible(name)} the {column} "{value}", '
                    f'an earlier line "{earlier}"',
                    "a tile belongs to one group or part",
                    "correct that line",
                )
    missing = [name for name in names if name not in values]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(names)} tiles have no row in {path}, "
            f"such as {visible(missing[0])}",
            "it would be unknown where they belong",
            "add them to the table",
        )
    return [values.get(name, "") for name in (*names, *optional)]


def _table_of_values(path: str, separator: str) -> Table:
    """Opens a table whose separator need not be the one that the user gave for the label file."""
    if separator == ",":
        return open_table(path, TABLE)
    try:
        table = open_table(path, TABLE, separator)
    except DataError:
        # A header with commas alone is refused when another separator is expected. If the file
        # has another fault, reading it again raises the error of that one.
        return open_table(path, TABLE)
    if len(table.header) == 1:
        return open_table(path, TABLE)
    return table
