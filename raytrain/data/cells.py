"""Cells of a tags column: labels separated by a mark, or lists as programs write them (`['haze', 'primary']`).

`DataFrame.to_csv` writes lists as Python prints them, other programs as JSON, numpy without commas. A column is read as
lists where every cell that is not blank is one; a mixture is refused. No torch, no ray.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from raytrain.data.names import visible, without_invisible
from raytrain.data.tables import Cell
from raytrain.errors import DataError

Tags = tuple[str, ...]
_QUOTED = r""""(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'"""
# An item in quotes, then a comma, or white space as numpy writes it, or the end.
_ITEM = re.compile(rf"\s*({_QUOTED})(?:\s*,|\s+|\s*$)")
_CLOSES = {"[": "]", "(": ")", "{": "}"}
_QUOTES = "\"'‘’“”„«»"
# What programs write for no value, and for the items that they leave out of a long list.
_NO_LABEL = {"none", "nan", "null", "<na>", "...", "…"}


@dataclass(frozen=True)
class Source:
    """Where cells come from, for messages.

    Attributes:
        name: a path, or words such as `the table in memory`.
        lines: of the cells.
    """

    name: str
    lines: Sequence[int]


def tags_of(
    cells: Sequence[Cell],
    source: Source,
    separator: str | None = None,
    classes: Sequence[str] | None = None,
    *,
    whole: bool = False,
) -> list[Tags]:
    """The labels of every cell, as they are written.

    Args:
        cells: text, or a list of labels.
        source: of the cells.
        separator: between the labels in a text; None for white space.
        classes: that the user listed; a label among them may have spaces, brackets, quotes and commas.
        whole: a text is one label, where it is no list and no separator is given.

    Raises:
        DataError: some cells are lists and others are not, a list that cannot be read, a label with stray brackets or
            quotes, or with a comma that probably separates labels; with the line.
    """
    known = set(classes or ())
    written = [isinstance(cell, str) and _is_written_list(cell, separator, known) for cell in cells]
    if any(written):
        _check_all_written(cells, written, source)
        found = _from_written(cells, source, separator, classes is None)
    else:
        found = [_tidy(_words(cell, separator, known, whole)) for cell in cells]
        if separator is None and classes is None and not whole:
            _check_separated(cells, source)
    _check_stray(cells, found, source, known)
    return found


def _words(cell: Cell, separator: str | None, known: set[str], whole: bool) -> Sequence[str]:
    if not isinstance(cell, str):
        return cell
    if whole and separator is None:
        return [cell]
    words = cell.split(separator)
    text = " ".join(cell.split())
    if text in known and not known.issuperset(words):
        return [text]
    return words


def _is_written_list(cell: str, separator: str | None, known: set[str]) -> bool:
    text = cell.strip()
    if len(text) < 2 or _CLOSES.get(text[0]) != text[-1]:
        return False
    if known and (text in known or all(word.strip() in known for word in text.split(separator))):
        return False
    # `(unknown)` may be a label. Tuples and sets hold items in quotes.
    return text[0] == "[" or text[1:-1].strip().startswith(("'", '"'))


def _check_all_written(cells: Sequence[Cell], written: Sequence[bool], source: Source) -> None:
    first = written.index(True)
    for cell, is_list, line in zip(cells, written, source.lines, strict=True):
        if not is_list and cell:
            raise DataError(
                f"line {line} of {source.name} has the labels {visible(str(cell))[:80]}, "
                f"line {source.lines[first]} the list {visible(str(cells[first]))[:80]}",
                "it is not clear whether brackets belong to the labels",
                "write the labels in one way in all rows, or list all labels with --classes",
            )


def _from_written(
    cells: Sequence[Cell], source: Source, separator: str | None, check: bool
) -> list[Tags]:
    inner = [str(cell).strip()[1:-1].strip() if cell else "" for cell in cells]
    bare = [text for text in inner if not _has_quotes(text)]
    # Without quotes and commas, `[haze primary]` is cut as the text `haze primary` is.
    mark = separator
    if separator is None and any("," in text for text in bare):
        mark = ","
    found = []
    for cell, text, line in zip(cells, inner, source.lines, strict=True):
        items = _quoted_items(text) if _has_quotes(text) else _bare_items(text, mark)
        if items is None:
            raise DataError(
                f"line {line} of {source.name} has {visible(str(cell).strip())[:80]}, which is no list of labels",
                "it is not clear which labels are meant",
                "write it as ['haze', 'primary'], or as haze primary",
            )
        found.append(_tidy(items))
    if separator is None and check:
        plain = ["" if _has_quotes(text) else text.replace(",", " ") for text in inner]
        _check_separated(plain, source)
    return found


def _has_quotes(text: str) -> bool:
    return text.startswith(("'", '"')) or text.endswith(("'", '"'))


def _bare_items(text: str, separator: str | None) -> list[str] | None:
    """The items of a list without quotes, or None where it holds other lists or the word for no value."""
    items = text.split(separator)
    if any(mark in text for mark in "[]{}'\"") or any(
        item.strip().casefold() in _NO_LABEL for item in items
    ):
        return None
    return items


def _quoted_items(text: str) -> list[str] | None:
    """The items of a list in which each is in quotes, or None where it is written in another way."""
    items, at = [], 0
    while at < len(text):
        match = _ITEM.match(text, at)
        item = _unquoted(match[1]) if match else None
        if match is None or item is None:
            return None
        items.append(item)
        at = match.end()
    return items


def _unquoted(text: str) -> str | None:
    """What a string of JSON or Python means, or None where its escapes are those of neither."""
    readers: list[Callable[[str], object]] = [json.loads, ast.literal_eval]
    for read in readers:
        try:
            found = read(text)
        except (ValueError, SyntaxError):
            continue
        if isinstance(found, str):
            return found
    return None


def _tidy(words: Sequence[str]) -> Tags:
    """Labels with single spaces, without empty ones."""
    tidy = [" ".join(word.split()) for word in words]
    return tuple(word for word in tidy if without_invisible(word).strip())


def _check_separated(cells: Sequence[Cell], source: Source) -> None:
    for cell, line in zip(cells, source.lines, strict=True):
        mark = next((mark for mark in ",;|" if isinstance(cell, str) and mark in cell), None)
        if mark:
            raise DataError(
                f'line {line} of {source.name} has the labels "{visible(str(cell))[:80]}", with {mark!r} inside',
                "labels are separated by white space; this would be learned as one label",
                f"raytrain ingest --tags-separator '{mark}'; or list the labels with --classes",
            )


def _check_stray(
    cells: Sequence[Cell], found: Sequence[Tags], source: Source, known: set[str]
) -> None:
    suspects = {tag for tags in found for tag in tags if _is_stray(tag)} - known
    for cell, tags, line in zip(cells, found, source.lines, strict=True):
        wrong = next((tag for tag in tags if tag in suspects), None)
        if wrong is None and isinstance(cell, str) and not known.issuperset(tags):
            wrong = _torn_apart(cell.strip(), tags)
        if wrong is not None:
            raise DataError(
                f"line {line} of {source.name} has the labels {visible(str(cell))[:80]}: "
                f"one of them would be {visible(wrong)}",
                "brackets and quotes stand around a list, or the label was cut in two",
                "write labels as haze primary; list all labels with --classes; or give another --tags-separator",
            )


def _torn_apart(cell: str, tags: Tags) -> str | None:
    """A label that lost a quote or a parenthesis where its cell was cut, or None: `forest (dense`, of `forest (dense, old)`."""
    if _is_quoted(cell):
        return tags[0]
    if cell.count("(") != cell.count(")"):
        return None
    return next((tag for tag in tags if tag.count("(") != tag.count(")")), None)


def _is_stray(tag: str) -> bool:
    """Whether a label is in quotes, begins as a list does, or has brackets that do not belong together.

    Parentheses, apostrophes and inches may belong to a label: `forest (mixed)`, `'70s`, `5"`.
    """
    if tag[0] in "[{" or tag.startswith(("('", '("')) or tag.endswith(("')", '")')):
        return True
    return _is_quoted(tag) or tag.count("[") != tag.count("]") or tag.count("{") != tag.count("}")


def _is_quoted(text: str) -> bool:
    return len(text) > 1 and text[0] in _QUOTES and text[-1] in _QUOTES
