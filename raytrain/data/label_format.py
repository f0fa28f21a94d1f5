"""How a label file is to be read: the decisions of a user, as data. No torch, no ray."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class LabelFormat:
    """How a label file is to be read.

    Attributes:
        name_column: column with the tile's name; tags_column: with its labels.
        separator: one character between the columns of a CSV; a Parquet file needs none.
        tags_separator: between the labels of a tile; None for white space.
        label_columns: instead of a tags column, the columns of 0 and 1, one for each label; their names are the labels.
        join_rows: a tile has one row for each of its labels; a cell is one label, unless `tags_separator` is given.
    """

    name_column: str = "image_name"
    tags_column: str = "tags"
    separator: str = ","
    tags_separator: str | None = None
    label_columns: tuple[str, ...] = ()
    join_rows: bool = False

    def content(self) -> dict[str, Any]:
        """As JSON gives it back; what is newer than the first datasets only where it is used, so they stay the same."""
        newer = {"label_columns": list(self.label_columns), "join_rows": self.join_rows}
        older = {key: value for key, value in asdict(self).items() if key not in newer}
        return older | {key: value for key, value in newer.items() if value}


KAGGLE_FORMAT = LabelFormat()
