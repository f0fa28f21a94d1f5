"""Which tile has which labels, from a CSV or Parquet file or from rows in memory.

Reading is strict: pandas would silently shift columns on an extra comma and turn a tag `NA` into nothing. White space
and case of labels are tidied and counted; everything else that could be misread is an error with its line. No torch, no ray.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raytrain import storage
from raytrain.data.images import SUFFIXES
from raytrain.errors import DataError, did_you_mean

MAX_LABEL_BYTES = 200 * 2**20
# Components between slashes; none starts with a dot, so no name leads out of the folder.
SAFE_NAME = re.compile(r"(?=.{1,255}\Z)[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*")

SAFE_LISTED = re.compile(r"(?!/)(?!(?:.*/)?\.\.?(?:/|\Z))[^\0-\x1f]{1,255}")


@dataclass(frozen=True)
class LabelFormat:
    """How a label file is to be read.

    Attributes:
        name_column: column with the tile's name; tags_column: with its labels.
        separator: one character between the columns of a CSV; a Parquet file needs none.
        tags_separator: between the labels of a tile; None for white space.
    """

    name_column: str = "image_name"
    tags_column: str = "tags"
    separator: str = ","
    tags_separator: str | None = None

    def tags(self, value: str | list[str]) -> tuple[str, ...]:
        """The labels of one tile, from a cell of the tags column: text, or in Parquet a list."""
        parts = value.split(self.tags_separator) if isinstance(value, str) else value
        return tuple(" ".join(part.split()) for part in parts if part.strip())


KAGGLE_FORMAT = LabelFormat()


@dataclass(frozen=True)
class Labels:
    """The labels of a set of tiles.

    Attributes:
        table: one row a tile, in the order of the source: image_name, tags (tuple of unique labels), line (its line in
            the label file, or its number from 1), and problem (the quarantine kind, or empty).
        classes: all labels, sorted, or the ones the user listed.
        sha256: hash of the file's bytes, or of the rows.
        notes: counts of what was tidied, by a short description.
    """

    table: pd.DataFrame
    classes: list[str]
    sha256: str
    notes: dict[str, int] = field(default_factory=dict)

    @property
    def targets(self) -> np.ndarray[Any, Any]:
        """uint8 (rows, K), 1 where the tile has the label; repeated tags count once."""
        column = {name: i for i, name in enumerate(self.classes)}
        targets = np.zeros((len(self.table), len(self.classes)), np.uint8)
        for row, tags in enumerate(self.table["tags"]):
            targets[row, [column[tag] for tag in tags]] = 1
        return targets


def read_labels(
    place: str,
    form: LabelFormat = KAGGLE_FORMAT,
    classes: Sequence[str] | None = None,
    *,
    allow_empty: bool = False,
    force: bool = False,
) -> Labels:
    """Reads a label file: Parquet where its name ends so, else CSV.

    Args:
        place: path or URI.
        form: how it is to be read.
        classes: the labels in target order; by default all labels of the file, sorted.
        allow_empty: a tile without labels is a tile; otherwise it is left out as `no-labels`.
        force: also read a file of more than 200 MB.

    Raises:
        DataError: missing, too large, not UTF-8, HTML, another separator, wrong header, a row with another number of
            fields, an open quote, no rows, or a label that is not in `classes`; with the line.
    """
    content = _label_bytes(place, force)
    table = _table(content, place, form)
    if classes is None and form.tags_separator is None:
        _check_separated(table, place)
    table["tags"] = [form.tags(tags) for tags in table["tags"]]
    return tidied(table, hashlib.sha256(content).hexdigest(), place, classes, allow_empty=allow_empty)


def labels_of(
    names: Iterable[str],
    tags: Iterable[Iterable[str]],
    source: str,
    classes: Sequence[str] | None = None,
    *,
    allow_empty: bool = False,
    listed: bool = False,
) -> Labels:
    """Labels that are in memory, treated as those of a file.

    Args:
        names: of the tiles.
        tags: labels of each tile.
        source: words for messages, such as "the folder names".
        classes: the labels in target order; by default all of them, sorted.
        allow_empty: a tile without labels is a tile.
        listed: the names were listed in a folder: they cannot lead out of it, so spaces and accents are fine.

    Raises:
        DataError: no rows, or a label that is not in `classes`.
    """
    cells = [
        (name, KAGGLE_FORMAT.tags(list(words)), line)
        for line, (name, words) in enumerate(zip(names, tags, strict=True), 1)
    ]
    table = pd.DataFrame(cells, columns=["image_name", "tags", "line"])
    if table.empty:
        raise DataError(f"{source} have no rows", "there is nothing to learn from", "check where they come from")
    sha256 = hashlib.sha256(repr(cells).encode()).hexdigest()
    return tidied(table, sha256, source, classes, allow_empty=allow_empty, listed=listed)


def tidied(
    table: pd.DataFrame,
    sha256: str,
    place: str,
    classes: Sequence[str] | None,
    *,
    allow_empty: bool,
    listed: bool = False,
) -> Labels:
    """Labels with one spelling for each class, no repeats, and the problem of every row that cannot be used."""
    _check_classes(classes or ())
    counts = Counter(tag for tags in table["tags"] for tag in tags)
    spelling = _spellings(counts, classes)
    one_case = [tuple(spelling[tag] for tag in tags) for tags in table["tags"]]
    unique = [tuple(dict.fromkeys(tags)) for tags in one_case]
    table = table.assign(tags=unique)
    table["problem"] = _problems(table, allow_empty, SAFE_LISTED if listed else SAFE_NAME)
    found = sorted(set(spelling.values()))
    if classes is not None:
        _check_known(found, list(classes), table, place)
    notes = {
        "rows that repeat a label": sum(len(a) != len(b) for a, b in zip(one_case, unique, strict=True)),
        "labels written in another case": sum(n for tag, n in counts.items() if spelling[tag] != tag),
        "rows repeated word for word": int((table["problem"] == "repeated").sum()),
    }
    return Labels(table, list(classes or found), sha256, notes)


def column_of(names: Sequence[str], place: str, column: str, name_column: str = "image_name") -> list[str]:
    """One column of a CSV for the named tiles, such as the scene or region they belong to; suffixes may be left out.

    Raises:
        DataError: as `read_labels`, a tile stands there twice with different values, or not at all.
    """
    values: dict[str, str] = {}
    form = LabelFormat(name_column, column)
    for name, cell, line in _table(_label_bytes(place, force=False), place, form).itertuples(index=False):
        value = " ".join(form.tags(cell))
        known = values.setdefault(stem(name), value)
        if known != value:
            raise DataError(
                f'line {line} of {place} says {column} "{value}" of {name}, an earlier line "{known}"',
                "a tile belongs to one side of a split",
                "correct that line",
            )
    missing = [name for name in names if stem(name) not in values]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(names)} tiles have no row in {place}, such as {missing[0]}",
            "it would be unknown which side of the split they belong to",
            "add them to the table",
        )
    return [values[stem(name)] for name in names]


def stem(name: str) -> str:
    """A tile's name without the suffix of a picture."""
    return name.removesuffix(next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), ""))


def _label_bytes(place: str, force: bool) -> bytes:
    try:
        if storage.size(place) > MAX_LABEL_BYTES and not force:
            raise DataError(
                f"{place} has {storage.size(place):,} bytes, at most {MAX_LABEL_BYTES:,} are read",
                "the labels of a million tiles take some 40 MB: it is probably another file",
                "check the path; if it is the label file, give --force",
            )
        return storage.read_bytes(place)
    except FileNotFoundError:
        raise DataError(
            f"the label file {place} does not exist",
            "labels are needed to train",
            "raytrain ingest --labels CSV with the file that has the columns image_name,tags",
        ) from None


def looks_like_html(head: bytes) -> bool:
    """Whether a file or an answer begins as an HTML page does."""
    return head.lstrip(b"\xef\xbb\xbf \t\r\n")[:9].lower().startswith((b"<!doctype", b"<html", b"<head"))


def _text(content: bytes, place: str) -> str:
    if looks_like_html(content[:64]):
        raise DataError(
            f"{place} is an HTML page, not a table, from line 1 on",
            "a sign-in or error page was probably saved in its place",
            "download the label file again",
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{place} is not UTF-8 (byte 0x{content[error.start]:02x} at line {line})",
            "names and labels could be misread",
            "save it again as UTF-8",
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{place} has a NUL character at line {line}", "it is damaged or not text", "get it again")
    return text


def _table(content: bytes, place: str, form: LabelFormat) -> pd.DataFrame:
    """Columns image_name, tags (the cell as it stands) and line (of a CSV; of Parquet the row, from 1)."""
    parquet = place.lower().endswith(".parquet")
    rows = list(_parquet_rows(content, place, form) if parquet else _rows(_text(content, place), place, form))
    if not rows:
        raise DataError(
            f"{place} has a header in line 1 but no rows", "there is nothing to read from it", "check the file"
        )
    return pd.DataFrame(rows, columns=["image_name", "tags", "line"])


def _parquet_rows(content: bytes, place: str, form: LabelFormat) -> Iterator[tuple[str, str | list[str], int]]:
    try:
        file = pq.ParquetFile(io.BytesIO(content))
        columns = [file.schema_arrow.names[i] for i in _columns(file.schema_arrow.names, place, form)]
        table = file.read(columns=columns)
        table.validate(full=True)
    except pa.ArrowException as error:
        raise DataError(
            f"{place} is not a Parquet file: {error}", "its labels cannot be read", "get it again"
        ) from None
    for column in columns:
        kind = table.schema.field(column).type
        cell = kind.value_type if pa.types.is_list(kind) and column == form.tags_column else kind
        empty = table.column(column).null_count + (
            pc.list_flatten(table.column(column)).null_count if cell is not kind else 0
        )
        if not (pa.types.is_string(cell) or pa.types.is_large_string(cell)) or empty:
            raise DataError(
                f'column "{column}" of {place} is of type {kind} with {empty} empty cells',
                "names and labels are text, and every tile has both",
                "write it as text (labels: text, or a list of texts)",
            )
    cells = zip(*(table.column(column).to_pylist() for column in columns), strict=True)
    yield from ((name.strip(), tags, row) for row, (name, tags) in enumerate(cells, 1))


def _rows(text: str, place: str, form: LabelFormat) -> Iterator[tuple[str, str, int]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=form.separator)
    line = 0
    try:
        header = next(reader, [])
        line = max(1, reader.line_num)
        name, tags = _columns(header, place, form)
        for row in reader:
            line, start = reader.line_num + 1, line + 1
            if row and len(row) != len(header):
                raise DataError(
                    f"line {start} of {place} has {len(row)} fields, the header has {len(header)}: {','.join(row)[:80]}",
                    "a field too many or too few would shift labels to another tile",
                    "correct that line (several labels are separated by spaces, not commas)",
                )
            if row:
                yield row[name].strip(), row[tags], start
            line = reader.line_num
    except csv.Error as error:
        raise DataError(
            f"{place} cannot be read from line {line + 1} on: {error}",
            "a quote that is opened there is never closed, or stands inside a field",
            "correct that line",
        ) from None


def _columns(header: list[str], place: str, form: LabelFormat) -> tuple[int, int]:
    expected = (form.name_column, form.tags_column)
    fix = "rename the columns, or give --name-column and --tags-column"
    why = f"the columns {form.name_column} and {form.tags_column} say which tile has which labels"
    if len(header) <= 1:
        other = next((s for s in ",;\t|" if header and s in header[0]), None)
        if other:
            flag = {"\t": "tab"}.get(other, f"'{other}'")
            raise DataError(
                f"line 1 of {place} is separated by {other!r}, expected {form.separator!r}",
                why,
                f"raytrain ingest --separator {flag}",
            )
        if not header:
            raise DataError(f"{place} is empty, it has no line 1", why, "check the file")
    missing = [column for column in expected if header.count(column) != 1]
    if missing:
        raise DataError(
            f'{place} must have one column "{missing[0]}"; its header in line 1 is {",".join(header)[:120]}.'
            f"{did_you_mean(missing[0], header)}",
            why,
            fix,
        )
    return header.index(form.name_column), header.index(form.tags_column)


def _spellings(counts: Counter[str], classes: Sequence[str] | None) -> dict[str, str]:
    """The class that each written label means: `Primary` is `primary` where that is listed, or written more often."""
    listed = Counter(dict.fromkeys(classes or (), 1))
    by_fold: dict[str, list[str]] = {}
    for word in sorted(listed or counts, key=lambda word: (-counts[word], word)):
        by_fold.setdefault(word.casefold(), []).append(word)
    return {word: word if word in listed else by_fold.get(word.casefold(), [word])[0] for word in counts}


def _check_classes(classes: Sequence[str]) -> None:
    wrong = [
        name for name, count in Counter(classes).items() if count > 1 or not name or name != " ".join(name.split())
    ]
    if wrong:
        raise DataError(
            f"the list of classes has {wrong[0]!r} {classes.count(wrong[0])} times",
            "each class is one column of the targets, and its name stands in every result",
            "--classes with different names, without spaces around them",
        )


def _problems(table: pd.DataFrame, allow_empty: bool, safe: re.Pattern[str]) -> list[str]:
    tags_of: dict[str, set[frozenset[str]]] = {}
    for name, tags in zip(table["image_name"], table["tags"], strict=True):
        tags_of.setdefault(name, set()).add(frozenset(tags))
    seen: Counter[str] = Counter()
    problems = []
    for name, tags in zip(table["image_name"], table["tags"], strict=True):
        seen[name] += 1
        if not safe.fullmatch(name):
            problems.append("unsafe-name")
        elif len(tags_of[name]) > 1:
            problems.append("contradicting-labels")
        elif seen[name] > 1:
            problems.append("repeated")
        else:
            problems.append("" if tags or allow_empty else "no-labels")
    return problems


def _check_separated(table: pd.DataFrame, place: str) -> None:
    for cell, line in zip(table["tags"], table["line"], strict=True):
        mark = next((mark for mark in ",;|" if isinstance(cell, str) and mark in cell), None)
        if mark:
            raise DataError(
                f'line {line} of {place} has the labels "{cell[:80]}", with {mark!r} inside',
                "labels are separated by white space; this would be learned as one label",
                f"raytrain ingest --tags-separator '{mark}'; or list the labels with --classes",
            )


def _check_known(found: list[str], classes: list[str], table: pd.DataFrame, place: str) -> None:
    unknown = [tag for tag in found if tag not in classes]
    if unknown:
        lines = [line for tags, line in zip(table["tags"], table["line"], strict=True) if unknown[0] in tags]
        raise DataError(
            f'{place} has the label "{unknown[0]}" on {len(lines)} tiles (first in line {lines[0]}), '
            f"which is not in the list of classes.{did_you_mean(unknown[0], classes)}",
            "a label that is not a class cannot be learned",
            "correct the label file, or add the label to --classes",
        )
