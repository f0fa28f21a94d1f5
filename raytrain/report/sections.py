"""What a task adds to a report: score, table of labels, pictures, tiles, limits. Neither torch nor
ray.

The module of each task in this folder fills these; `page.py` and the templates show them
without knowing the task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from raytrain.report.templates import Draw

# The page calls the scores of a label uncertain if it was judged on fewer tiles than this.
RARE = 20


@dataclass(frozen=True)
class Metric:
    """A score between 0 and 1, with its name and an explanation."""

    name: str
    value: float
    note: str = ""


@dataclass(frozen=True)
class Drawing:
    """A picture that is still to be drawn in each theme.

    Attributes:
        draw: gives PNG bytes for a theme.
        alt: a description of it.
        caption: the sentences below it.
    """

    draw: Draw
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Column:
    """A column of the table of labels.

    Attributes:
        key: column of the table that is shown.
        title: its header.
        digits: decimals of its numbers; None for whole numbers.
    """

    key: str
    title: str
    digits: int | None = None


@dataclass(frozen=True)
class LabelTable:
    """The table of labels.

    Attributes:
        rows: column label, and the columns below.
        columns: those after the label.
        note: a sentence about them.
    """

    rows: pd.DataFrame
    columns: Sequence[Column]
    note: str

    def records(self) -> list[dict[str, Any]]:
        """Returns the rows as mappings from column to value."""
        return list(self.rows.to_dict("records"))

    def rare(self) -> list[str]:
        """Returns the labels that were judged on few tiles."""
        few = self.rows["count"] < RARE
        return [str(label) for label in self.rows.loc[few, "label"]]


@dataclass(frozen=True)
class TextTable:
    """A table whose cells are text.

    Attributes:
        titles: headers of the columns.
        rows: cells of each row, as many as titles.
        strong: number of the row that stands out, from 0; None for none.
        note: sentences about it.
    """

    titles: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Line:
    """Words of one kind: missed, false, or empty for what is right."""

    kind: str
    text: str


@dataclass(frozen=True)
class Card:
    """A tile of the report.

    Attributes:
        name: of the tile.
        picture: a data: URI.
        score: of this tile alone.
        lines: below it.
    """

    name: str
    picture: str
    score: float
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Sheet:
    """The tiles of the report by kind, or the sentence that explains why there are none."""

    cards: dict[str, list[Card]] = field(default_factory=dict)
    intro: tuple[Line, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Sections:
    """What a task adds to a report.

    Attributes:
        headline: the score to compare runs by.
        baselines: what simple methods reach without a network.
        table: of labels.
        decision: a sentence on how a label is decided.
        decisions: the ways to decide labels, with their scores.
        measures: other scores of decided labels, under some of these ways.
        decision_pictures: of how labels are decided, by the name of their PNG file.
        scores_note: the sentence below the picture of the scores by epoch.
        pictures: of labels, by the name of their PNG file.
        sheet: tiles.
        submission: words after `raytrain submission P.parquet`, such as flags; empty for none.
        limits: sentences for the model card.
    """

    headline: Metric | None = None
    baselines: Sequence[Metric] = ()
    table: LabelTable | None = None
    decision: str = ""
    decisions: TextTable | None = None
    measures: TextTable | None = None
    decision_pictures: dict[str, Drawing] = field(default_factory=dict)
    scores_note: str = ""
    pictures: dict[str, Drawing] = field(default_factory=dict)
    sheet: Sheet = field(default_factory=Sheet)
    submission: str = ""
    limits: Sequence[str] = ()
