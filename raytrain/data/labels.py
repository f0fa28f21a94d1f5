"""Which tile has which labels, from a CSV or Parquet file or from rows in memory.

White space, case, Unicode form and repetitions of labels are tidied and counted. Everything else
that could be misread is an error that names its line. `tables` reads the rows, `tagged` the labels
in them. Imports neither torch nor ray.
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
from raytrain.data.names import (
    ORDINARY,
    spelling_of_stem,
    visible,
    why_unsafe,
    without_invisible,
)
from raytrain.data.tables import Cell, Table, open_table
from raytrain.data.tagged import Tagged, hash_of, same_form, tagged_in, tidy_label
from raytrain.data.text import FileKind
from raytrain.errors import DataError, did_you_mean

Array = np.ndarray[Any, Any]

LABELS = FileKind(
    "label file",
    "labels are needed to train",
    "--labels FILE with the columns image_name,tags; "
    "or --labels folders, where the folder's name is the label",
    separated=True,
)

# Names of a column that are Python's texts at the same time.
NAMES_AT_ONCE = 65_536


@dataclass(frozen=True)
class Labels:
    """The labels of a set of tiles.

    Attributes:
        table: one row per tile, in the order of the source: image_name, tags (tuple of unique
            labels), line (in the label file, or the row's number from 1), problem (the kind that
            quarantine.jsonl gives, or empty) and detail (why).
        classes: all labels, sorted; or the ones that the user listed.
        sha256: hash of the file's bytes, or of the rows.
        notes: number of tidied items, by a short description.
        remarks: sentences that a user should read about how the source was read.
    """

    table: pd.DataFrame
    classes: list[str]
    sha256: str
    notes: dict[str, int] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def targets(self) -> Array:
        """uint8 (rows, K): 1 if the tile has the label. Repeated labels count once."""
        number = {name: i for i, name in enumerate(self.classes)}
        # A million rows have few different lists of labels, each of which is a row of this matrix.
        position: dict[Tags, int] = {}
        for tags in self.table["tags"]:
            position.setdefault(tags, len(position))
        different = np.zeros((len(position), len(self.classes)), np.uint8)
        for tags, row in position.items():
            for tag in tags:
                different[row, number[tag]] = 1
        rows = [position[tags] for tags in self.table["tags"]]
        return different[np.array(rows, np.int64)]


def read_labels(
    path: str,
    form: LabelFormat = KAGGLE_FORMAT,
    classes: Sequence[str] | None = None,
    *,
    allow_empty: bool = False,
    force: bool = False,
) -> Labels:
    """Reads a label file.

    It is Parquet if its name or its first bytes say so, else CSV. Files ending in .gz and .zip are
    unpacked. The file is taken to have one column for each label if it has no tags column, and its
    columns besides the names are two or more that hold only 0 and 1.

    Args:
        path: path or URI.
        form: how to read the file.
        classes: the labels in target order; by default all labels of the file, sorted.
        allow_empty: keep tiles without labels; otherwise they are left out as `no-labels`.
        force: also read a file of more than 200 MB.

    Raises:
        DataError: the file is missing, too large, not UTF-8, an HTML page, has another separator, a
            wrong header, a row with another number of fields, an open quote, no rows, lists that
            cannot be read, or a label that is not in `classes`. The message names the line.
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
    """Reads the labels of an opened table. Arguments and errors are those of `read_labels`."""
    tagged = tagged_in(table, form, classes)
    if classes is None and tagged.columns:
        # Each such column is a class, also one that no tile has.
        classes = sorted(tagged.columns)
    return tidied(tagged, classes, allow_empty=allow_empty, join_rows=form.join_rows)


def labels_of(
    names: Sequence[str],
    cells: Sequence[Cell],
    source: str,
    classes: Sequence[str] | None = None,
    *,
    one_label: bool = False,
) -> Labels:
    """Treats labels in memory like those of a file.

    Args:
        names: names of the tiles.
        cells: labels of each tile: a text, in which white space separates them, or a list.
        source: words for messages, such as "the labels of the function".
        classes: the labels in target order; by default all of them, sorted.
        one_label: a text is one label, whatever white space it has.

    Raises:
        DataError: no rows, lists that cannot be read, or a label that is not in `classes`.
    """
    if not names:
        raise DataError(
            f"{source} have no rows", "there is nothing to learn from", "check where they come from"
        )
    rows = Source(source, _row_numbers(names))
    tags = tags_of(cells, rows, None, classes, whole=one_label)
    return tidied(_tagged(names, tags, source), classes)


def labels_of_folders(
    names: Sequence[str], folders: Sequence[str], classes: Sequence[str] | None
) -> Labels:
    """Makes the folder of each tile its label.

    Args:
        names: names of the tiles.
        folders: folder of each tile. Its whole name is one label, whatever characters it has.
        classes: the labels in target order; by default all of them, sorted.

    Raises:
        DataError: a label is not in `classes`.
    """
    tags: list[Tags] = []
    for folder in folders:
        label = " ".join(folder.split())
        tags.append((label,))
    return tidied(_tagged(names, tags, "the folder names"), classes)


def _row_numbers(names: Sequence[str]) -> list[int]:
    return list(range(1, len(names) + 1))


def _tagged(names: Sequence[str], tags: list[Tags], source: str) -> Tagged:
    lines = _row_numbers(names)
    return Tagged(pd.Series(list(names)), tags, lines, source, hash_of(names, tags, lines))


def tidied(
    tagged: Tagged,
    classes: Sequence[str] | None,
    *,
    allow_empty: bool = False,
    join_rows: bool = False,
) -> Labels:
    """Gives each class one spelling, removes repetitions, and finds the problem of each row.

    Args:
        tagged: the rows as they were written.
        classes: the labels in target order, or None for all, sorted.
        allow_empty: keep tiles without labels.
        join_rows: join the rows of one tile.

    Raises:
        DataError: a label is not in `classes`, or two of `classes` are the same.
    """
    _check_classes(classes or ())
    spelled = _spelled(tagged, classes)
    # Names are compared only in one spelling of their folders.
    # `/` between folders, if Windows or `find .` wrote them.
    names = tagged.names.str.replace("\\", "/", regex=False).str.removeprefix("./")
    tags = [spelled.unique[written] for written in tagged.tags]
    lines = np.array(tagged.lines, np.int64)
    table = pd.DataFrame({"image_name": names, "tags": tags, "line": lines})
    rows = len(table)
    # Before the problems are looked for: joined rows no longer contradict each other.
    if join_rows:
        table = _joined(table)
    table["problem"], table["detail"] = _problems(table, allow_empty)
    found = sorted(set(spelled.class_of.values()))
    listed = list(classes or ())
    if classes is not None:
        _check_known(found, listed, tagged)
    notes = _notes_on_labels(spelled)
    notes["rows that repeat the header, left out"] = tagged.headers
    notes["rows joined to another row of their tile"] = rows - len(table)
    notes["rows repeated word for word"] = int((table["problem"] == "repeated").sum())
    remarks = [*tagged.remarks]
    remarks += _one_label_a_row(table)
    remarks += _without_tiles(listed, found)
    return Labels(table, listed or found, tagged.sha256, notes, tuple(remarks))


@dataclass(frozen=True)
class _Spelled:
    """The different lists of labels, step by step from what was written to the classes.

    Attributes:
        rows: number of rows that have each list, as it was written.
        clean: its labels without invisible characters and without empty labels.
        counts: how often each clean label is written.
        class_of: the class that each clean label means.
        classes: classes of each list, with repetitions.
        unique: classes of each list, each once, in the order in which they are written.
    """

    rows: Counter[Tags]
    clean: dict[Tags, Tags]
    counts: Counter[str]
    class_of: dict[str, str]
    classes: dict[Tags, Tags]
    unique: dict[Tags, Tags]


def _spelled(tagged: Tagged, classes: Sequence[str] | None) -> _Spelled:
    rows = Counter(tagged.tags)
    clean = {tags: _clean(tags) for tags in rows}
    counts: Counter[str] = Counter()
    for tags, count in rows.items():
        for label in clean[tags]:
            counts[label] += count
    class_of = _spellings(counts, classes)
    classes_of = {tags: _replaced(clean[tags], class_of) for tags in rows}
    # dict.fromkeys removes repetitions and keeps the order.
    unique = {tags: tuple(dict.fromkeys(classes_of[tags])) for tags in rows}
    return _Spelled(rows, clean, counts, class_of, classes_of, unique)


def _clean(tags: Tags) -> Tags:
    labels = [tidy_label(tag) for tag in tags]
    return tuple(label for label in labels if label)


def _replaced(tags: Tags, class_of: dict[str, str]) -> Tags:
    return tuple(class_of[tag] for tag in tags)


def _notes_on_labels(spelled: _Spelled) -> dict[str, int]:
    """Counts what was tidied. The descriptions are keys in dataset.json."""
    repeating = 0
    cleaned = 0
    for written, rows in spelled.rows.items():
        if len(spelled.classes[written]) != len(spelled.unique[written]):
            repeating += rows
        if spelled.clean[written] != written:
            cleaned += rows
    other_case = 0
    other_form = 0
    for label, count in spelled.counts.items():
        name = spelled.class_of[label]
        if same_form(label) != same_form(name):
            other_case += count
        elif label != name:
            other_form += count
    return {
        "rows that repeat a label": repeating,
        "labels written in another case": other_case,
        "labels written in another Unicode form": other_form,
        "labels with invisible characters, now without": cleaned,
    }


def _joined(table: pd.DataFrame) -> pd.DataFrame:
    """Joins the rows of each tile at the position of its first row, with the labels of all."""
    stems = [spelling_of_stem(name) for name in table["image_name"]]
    # A dict for its keys: a set that keeps the order in which labels were added.
    tags_of_tile: dict[str, dict[str, None]] = {}
    for tile, tags in zip(stems, table["tags"], strict=True):
        tags_of_tile.setdefault(tile, {}).update(dict.fromkeys(tags))
    repeated = pd.Series(stems, index=table.index).duplicated()
    first = table[~repeated].copy()
    # Both are in the order of each tile's first row.
    first["tags"] = [tuple(tags) for tags in tags_of_tile.values()]
    return first.reset_index(drop=True)


def _one_label_a_row(table: pd.DataFrame) -> Iterator[str]:
    """Yields a remark if tiles seem to have one row for each label."""
    differ = table[table["problem"] == "contradicting-labels"]
    if differ.empty:
        return
    # Rows with several labels are whole lists, and differ because of a mistake.
    if differ["tags"].map(len).max() > 1:
        return
    tiles = differ["image_name"].nunique()
    yield (
        f"{tiles} tiles have several rows with one label each, {len(differ)} rows: "
        "they are left out. All labels of a tile belong in one cell; --join-rows joins its rows."
    )


def _without_tiles(classes: Sequence[str], found: Sequence[str]) -> Iterator[str]:
    """Yields a remark if no tile has some of the listed classes."""
    alone = [name for name in classes if name not in found]
    if alone:
        yield f"no tile has {visible(', '.join(alone))}"


def _spellings(counts: Counter[str], classes: Sequence[str] | None) -> dict[str, str]:
    """Finds the class that each written label means.

    `Primary` means `primary` if that is listed; without listed classes, if it is written more
    often. Likewise an accent may be a character of its own (NFD) or part of the letter (NFC).

    Args:
        counts: how often each label is written.
        classes: labels that the user listed, or None.

    Returns:
        The class of each label.
    """
    listed = set(classes or ())
    # Most frequent first; the alphabet decides between equals, so that every run decides alike.
    candidates = sorted(listed or counts)
    candidates.sort(key=lambda word: -counts[word])
    by_fold: dict[str, list[str]] = {}
    for word in candidates:
        by_fold.setdefault(same_form(word).casefold(), []).append(word)
    found = {}
    for word in counts:
        if word in listed:
            found[word] = word
        else:
            # A label that is like none of the listed classes is refused later.
            alike = by_fold.get(same_form(word).casefold(), [word])
            found[word] = alike[0]
    return found


def _check_classes(classes: Sequence[str]) -> None:
    forms = Counter(same_form(name) for name in classes)
    for name in classes:
        count = forms[same_form(name)]
        if count > 1 or not name or name != tidy_label(name):
            raise DataError(
                f"the list of classes has '{visible(name)}' {count} times",
                "each class is one column of the targets, and its name appears in every result",
                "--classes with different names, without spaces around them; "
                "write a name with a comma in double quotes",
            )


def _problems(table: pd.DataFrame, allow_empty: bool) -> tuple[list[str], list[str]]:
    """Finds the problem of each row, and its detail if the kind does not say enough.

    Returns:
        Problem and detail of each row; both are empty for a row that can be used.
    """
    names = table["image_name"]
    several = _repeated(names)
    # Only of the names that stand in several rows, which are few.
    tags_of_name: dict[str, set[frozenset[str]]] = {}
    for name, tags in zip(names[several], table["tags"][several], strict=True):
        tags_of_name.setdefault(name, set()).add(frozenset(tags))
    seen: set[str] = set()
    problems = []
    details = []
    # Nearly all names are ordinary, and the check of all at once is far quicker.
    ordinary = names.str.fullmatch(ORDINARY).tolist()
    rows = zip(_one_by_one(names), table["tags"], several.tolist(), ordinary, strict=True)
    for name, tags, is_repeated, is_ordinary in rows:
        unsafe = ""
        if not is_ordinary:
            unsafe = why_unsafe(name)
        # The first problem that applies. Which of contradicting rows is right cannot be known, so
        # all of them are left out; of equal rows the first one stays.
        if unsafe:
            problem = "unsafe-name"
        elif is_repeated and len(tags_of_name[name]) > 1:
            problem = "contradicting-labels"
        elif is_repeated and name in seen:
            problem = "repeated"
        elif tags or allow_empty:
            problem = ""
        else:
            problem = "no-labels"
        if is_repeated:
            seen.add(name)
        problems.append(problem)
        details.append(unsafe)
    return problems, details


def _repeated(names: pd.Series) -> Array:
    """Returns whether each name may stand in several rows, bool (rows,).

    Names are compared by their hashes, which take less memory than a table of a million names.
    Different names of one hash are very rare, and are told apart by the caller.
    """
    hashes = np.fromiter(map(hash, _one_by_one(names)), np.int64, len(names))
    values, counts = np.unique(hashes, return_counts=True)
    return np.isin(hashes, values[counts > 1])


def _one_by_one(names: pd.Series) -> Iterator[str]:
    """Yields the names of a column without making a list of all of them."""
    for start in range(0, len(names), NAMES_AT_ONCE):
        yield from names.iloc[start : start + NAMES_AT_ONCE].to_list()


def _check_known(found: list[str], classes: list[str], tagged: Tagged) -> None:
    label = next((label for label in found if label not in classes), None)
    if label is None:
        return
    lines = _lines_with(label, tagged)
    raise DataError(
        f'{tagged.source} has the label "{visible(label)}" on {len(lines)} tiles '
        f"(first in line {lines[0]}), which is not in the list of classes."
        f"{did_you_mean(label, classes)}",
        "a label that is not a class cannot be learned",
        "correct the label file, or add the label to --classes",
    )


def _lines_with(label: str, tagged: Tagged) -> list[int]:
    """Returns the lines of the rows that have a label, in any of its spellings."""
    key = same_form(label).casefold()
    lines = []
    for tags, line in zip(tagged.tags, tagged.lines, strict=True):
        keys = [same_form(without_invisible(tag)).casefold() for tag in tags]
        if key in keys:
            lines.append(line)
    return lines
