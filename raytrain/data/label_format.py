"""How to read a label file: the user's choices as data. Imports neither torch nor ray."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class LabelFormat:
    """How to read a label file.

    Attributes:
        name_column: column with the names of the tiles.
        tags_column: column with the labels of the tiles.
        separator: one character between the columns of a CSV file. Parquet files need none.
        tags_separator: text between the labels of one tile; None means white space.
        label_columns: columns of 0 and 1, one per label, used instead of a tags column. Their
            names are the labels.
        join_rows: a tile has one row for each of its labels. A cell is then one label, unless
            `tags_separator` is given.
        one_label: a cell is one label, whatever white space it has.
    """

    name_column: str = "image_name"
    tags_column: str = "tags"
    separator: str = ","
    tags_separator: str | None = None
    label_columns: tuple[str, ...] = ()
    join_rows: bool = False
    one_label: bool = False

    def content(self) -> dict[str, Any]:
        """Returns the format as dataset.json stores it, in the types that JSON gives back.

        Fields that the first datasets did not have are left out while they have their default.
        """
        found = asdict(self)
        # An ingest compares these values with those of the dataset that is already there. With
        # the newer fields in every dataset, each older one would look like another source.
        newer = {
            "label_columns": list(self.label_columns),
            "join_rows": self.join_rows,
            "one_label": self.one_label,
        }
        for key, value in newer.items():
            del found[key]
            if value:
                found[key] = value
        return found


KAGGLE_FORMAT = LabelFormat()
# The usual column of tables with one label per tile.
ONE_LABEL_COLUMN = "label"
