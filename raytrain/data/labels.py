"""Which tile has which labels, from a CSV or Parquet file or from rows in memory.

White space, case, Unicode form and repeats of labels are tidied and counted; everything else that could be misread is an
error with its line. `tables` reads the rows, `tagged` the labels in them. No torch, no ray.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from raytrain.data.cells import Source, Tags, tags_of
from raytrain.data.label_format import KAGGLE_FORMAT, LabelFormat
from raytrain.data.names import spelling_of_stem, visible, why_unsafe, without_invisible
from raytrain.data.tables import Cell, Table, open_table
from raytrain.data.tagged import Tagged, hash_of, same_form, tagged_in, tidy_label
from raytrain.data.text import FileKind
from raytrain.errors import DataError, did_you_mean

LABELS = FileKind(
    "label file",
    "labels are needed to train",
    "--labels FILE with the columns image_name,tags; or --labels folders, where the folder's name is the label",
    separated=True,
)


@dataclass(frozen=True)
class Labels:
    """The labels of a set of tiles.

    Attributes:
        table: one row a tile, in the order of the source: image_name, tags (tuple of unique labels), line (its line in
            the label file, or its number from 1), problem (the quarantine kind, or empty) and detail (why).
        classes: all labels, sorted, or the ones the user listed.
        sha256: hash of the file's bytes, or of the rows.
        notes: counts of what was tidied, by a short description.
        remarks: what a user should know of how the source was read, a sentence each.
    """

    table: pd.DataFrame
    classes: list[str]
    sha256: str
    notes: dict[str, int] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def targets(self) -> np.ndarray[Any, Any]:
        """uint8 (rows, K), 1 where the tile has the label; repeated tags count once."""
        column = {name: i for i, name in enumerate(self.classes)}
        targets = np.zeros((len(self.table), len(self.classes)), np.uint8)
        for row, tags in enumerate(self.table["tags"]):
            targets[row, [column[tag] for tag in tags]] = 1
        return targets


def read_labels(
    path: str,
    form: LabelFormat = KAGGLE_FORMAT,
    classes: Sequence[str] | None = None,
    *,
    allow_empty: bool = False,
    force: bool = False,
) -> Labels:
    """Reads a label file: Parquet where its name or its first bytes say so, else CSV; .gz and .zip are unpacked.

    A file without the tags column, in which at least two columns beside the name hold 0 and 1 and all others too, has one
    column for each label.

    Args:
        path: path or URI.
        form: how it is to be read.
        classes: the labels in target order; by default all labels of the file, sorted.
        allow_empty: a tile without labels is a tile; otherwise it is left out as `no-labels`.
        force: also read a file of more than 200 MB.

    Raises:
        DataError: missing, too large, not UTF-8, HTML, another separator, wrong header, a row with another number of
            fields, an open quote, no rows, lists that cannot be read, or a label that is not in `classes`; with the line.
    """
    table = open_table(path, LABELS, form.separator, force=force)
    return labels_in(table, form, classes, allow_empty=allow_empty)


def labels_in(
    table: Table,
    form: LabelFormat = KAGGLE_FORMAT,
    classes: Sequence[str] | None = None,
    *,
    allow_empty: bool = False,
) -> Labels:
    """The labels in a table whose header was read; arguments and errors as `read_labels`."""
    tagged = tagged_in(table, form, classes)
    if classes is None and tagged.columns:
        classes = sorted(tagged.columns)
    return tidied(tagged, classes, allow_empty=allow_empty, join_rows=form.join_rows)


def labels_of(
    names: Sequence[str], cells: Sequence[Cell], source: str, classes: Sequence[str] | None = None
) -> Labels:
    """Labels that are in memory, treated as those of a file.

    Args:
        names: of the tiles.
        cells: labels of each tile: text, in which white space separates them, or a list.
        source: words for messages, such as "the labels of the function".
        classes: the labels in target order; by default all of them, sorted.

    Raises:
        DataError: no rows, lists that cannot be read, or a label that is not in `classes`.
    """
    if not names:
        raise DataError(
            f"{source} have no rows", "there is nothing to learn from", "check where they come from"
        )
    lines = list(range(1, len(names) + 1))
    tags = tags_of(cells, Source(source, lines), None, classes)
    return tidied(Tagged(list(names), tags, lines, source, hash_of(names, tags, lines)), classes)


def labels_of_folders(
    names: Sequence[str], folders: Sequence[str], classes: Sequence[str] | None
) -> Labels:
    """Labels of tiles from the folder each lies in: its whole name is one label, whatever characters it has.

    Raises:
        DataError: a label is not in `classes`.
    """
    source, lines = "the folder names", list(range(1, len(names) + 1))
    tags: list[Tags] = [(" ".join(folder.split()),) for folder in folders]
    return tidied(Tagged(list(names), tags, lines, source, hash_of(names, tags, lines)), classes)


def tidied(
    tagged: Tagged,
    classes: Sequence[str] | None,
    *,
    allow_empty: bool = False,
    join_rows: bool = False,
) -> Labels:
    """Labels with one spelling for each class, no repeats, and the problem of every row that cannot be used.

    Args:
        tagged: the rows as they were written.
        classes: the labels in target order, or None for all, sorted.
        allow_empty: a tile without labels is a tile.
        join_rows: rows of one tile are joined.

    Raises:
        DataError: a label that is not in `classes`, or two of `classes` that are one.
    """
    _check_classes(classes or ())
    clean = [tuple(filter(None, (tidy_label(tag) for tag in tags))) for tags in tagged.tags]
    counts = Counter(tag for tags in clean for tag in tags)
    spelled = _spellings(counts, classes)
    one_spelling = [tuple(spelled[tag] for tag in tags) for tags in clean]
    unique = [tuple(dict.fromkeys(tags)) for tags in one_spelling]
    names = [
        name.replace("\\", "/").removeprefix("./") for name in tagged.names
    ]  # as Windows and `find .` write them
    table = pd.DataFrame({"image_name": names, "tags": unique, "line": tagged.lines})
    rows = len(table)
    if join_rows:
        table = _joined(table)
    table["problem"], table["detail"] = _problems(table, allow_empty)
    found = sorted(set(spelled.values()))
    if classes is not None:
        _check_known(found, list(classes), tagged)
    notes = {
        "rows that repeat a label": sum(
            len(a) != len(b) for a, b in zip(one_spelling, unique, strict=True)
        ),
        "labels written in another case": sum(
            n for tag, n in counts.items() if same_form(tag) != same_form(spelled[tag])
        ),
        "labels written in another Unicode form": sum(
            n
            for tag, n in counts.items()
            if tag != spelled[tag] and same_form(tag) == same_form(spelled[tag])
        ),
        "labels with invisible characters, now without": sum(
            a != b for a, b in zip(tagged.tags, clean, strict=True)
        ),
        "rows that repeat the header, left out": tagged.headers,
        "rows joined to another row of their tile": rows - len(table),
        "rows repeated word for word": int((table["problem"] == "repeated").sum()),
    }
    remarks = (*tagged.remarks, *_one_label_a_row(table), *_without_tiles(classes or (), found))
    return Labels(table, list(classes or found), tagged.sha256, notes, remarks)


def _joined(table: pd.DataFrame) -> pd.DataFrame:
    """One row a tile, where its first row stands, with the labels of all its rows."""
    tags_of_tile: dict[str, dict[str, None]] = {}
    for name, tags in zip(table["image_name"], table["tags"], strict=True):
        tags_of_tile.setdefault(spelling_of_stem(name), {}).update(dict.fromkeys(tags))
    stems = pd.Series([spelling_of_stem(name) for name in table["image_name"]], index=table.index)
    first = table[~stems.duplicated()].copy()
    first["tags"] = [tuple(tags) for tags in tags_of_tile.values()]
    return first.reset_index(drop=True)


def _one_label_a_row(table: pd.DataFrame) -> Iterator[str]:
    """What is said where tiles have several rows with one label each."""
    differ = table[table["problem"] == "contradicting-labels"]
    if len(differ) and all(len(tags) <= 1 for tags in differ["tags"]):
        tiles = differ["image_name"].nunique()
        yield (
            f"{tiles} tiles have several rows with one label each, {len(differ)} rows: they are left out. "
            "Labels of a tile stand in one cell; --join-rows joins its rows."
        )


def _without_tiles(classes: Sequence[str], found: Sequence[str]) -> Iterator[str]:
    alone = [name for name in classes if name not in found]
    if alone:
        yield f"no tile has {visible(', '.join(alone))}"


def _spellings(counts: Counter[str], classes: Sequence[str] | None) -> dict[str, str]:
    """The class that each written label means: `Primary` is `primary` where that is listed, or written more often.

    So with accents: one that is written as a letter and a mark (NFD) is the same as one in one character (NFC).
    """
    listed = Counter(dict.fromkeys(classes or (), 1))
    by_fold: dict[str, list[str]] = {}
    for word in sorted(listed or counts, key=lambda word: (-counts[word], word)):
        by_fold.setdefault(same_form(word).casefold(), []).append(word)
    found = {}
    for word in counts:
        alike = by_fold.get(same_form(word).casefold(), [word])
        found[word] = word if word in listed else alike[0]
    return found


def _check_classes(classes: Sequence[str]) -> None:
    forms = Counter(same_form(name) for name in classes)
    for name in classes:
        count = forms[same_form(name)]
        clean = without_invisible(name) == " ".join(name.split()) == name
        if count > 1 or not name or not clean:
            raise DataError(
                f"the list of classes has '{visible(name)}' {count} times",
                "each class is one column of the targets, and its name stands in every result",
                "--classes with different names, without spaces around them; a name with a comma stands in double quotes",
            )


def _problems(table: pd.DataFrame, allow_empty: bool) -> tuple[list[str], list[str]]:
    """The problem of each row, and its detail where the kind does not say enough."""
    tags_of_name: dict[str, set[frozenset[str]]] = {}
    for name, tags in zip(table["image_name"], table["tags"], strict=True):
        tags_of_name.setdefault(name, set()).add(frozenset(tags))
    seen: Counter[str] = Counter()
    problems, details = [], []
    for name, tags in zip(table["image_name"], table["tags"], strict=True):
        seen[name] += 1
        unsafe = why_unsafe(name)
        if unsafe:
            problem = "unsafe-name"
        elif len(tags_of_name[name]) > 1:
            problem = "contradicting-labels"
        elif seen[name] > 1:
            problem = "repeated"
        else:
            problem = "" if tags or allow_empty else "no-labels"
        problems.append(problem)
        details.append(unsafe)
    return problems, details


def _check_known(found: list[str], classes: list[str], tagged: Tagged) -> None:
    unknown = [tag for tag in found if tag not in classes]
    if unknown:
        key = same_form(unknown[0]).casefold()
        lines = [
            line
            for tags, line in zip(tagged.tags, tagged.lines, strict=True)
            if any(same_form(without_invisible(tag)).casefold() == key for tag in tags)
        ]
        raise DataError(
            f'{tagged.source} has the label "{visible(unknown[0])}" on {len(lines)} tiles (first in line {lines[0]}), '
            f"which is not in the list of classes.{did_you_mean(unknown[0], classes)}",
            "a label that is not a class cannot be learned",
            "correct the label file, or add the label to --classes",
        )
