"""A value for each tile from a table, such as the scene it was cut from or the part it belongs to. No torch, no ray."""

from __future__ import annotations

from collections.abc import Sequence

from raytrain.data.names import KnownNames, visible
from raytrain.data.tables import Column, Table, open_table, read_rows
from raytrain.data.text import FileKind
from raytrain.errors import DataError

TABLE = FileKind(
    "table",
    "it says where each tile belongs",
    "--table FILE, a CSV or Parquet file with a row a tile",
    True,
)


def column_of(
    names: Sequence[str],
    path: str,
    column: str,
    name_columns: Sequence[str] = ("image_name",),
    separator: str = ",",
) -> list[str]:
    """One column of a table for the named tiles, such as the scene or region they belong to; suffixes may be left out.

    Args:
        names: of the tiles.
        path: of a CSV or Parquet file.
        column: its name.
        name_columns: what the column with the names of tiles may be called; the first that the table has is taken.
        separator: between the columns of a CSV; where that leaves one column, a comma.

    Raises:
        DataError: as `tables.open_table`, a tile stands there twice with different values, or not at all.
    """
    table = _table_of_values(path, separator)
    name_column = next((name for name in name_columns if name in table.header), name_columns[0])
    fix = "name its columns by --name-column and --column; where the labels' differ, ingest first, then raytrain data split"
    rows = read_rows(table, [Column(name_column, "name"), Column(column, "value")], fix)
    known = KnownNames(names)
    values: dict[str, str] = {}
    for row in rows.rows:
        name, value = str(row.cells[0]), " ".join(str(row.cells[1]).split())
        for tile in known.find(name):
            earlier = values.setdefault(tile, value)
            if earlier != value:
                raise DataError(
                    f'line {row.line} of {path} says {column} "{value}" of {visible(name)}, an earlier line "{earlier}"',
                    "a tile belongs to one side of a split",
                    "correct that line",
                )
    missing = [name for name in names if name not in values]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(names)} tiles have no row in {path}, such as {visible(missing[0])}",
            "it would be unknown which side of the split they belong to",
            "add them to the table",
        )
    return [values[name] for name in names]


def _table_of_values(path: str, separator: str) -> Table:
    try:
        table = open_table(path, TABLE, separator)
    except DataError:
        if separator == ",":
            raise
        return open_table(path, TABLE)
    # The label file's separator need not be that of the table.
    return table if len(table.header) > 1 or separator == "," else open_table(path, TABLE)
