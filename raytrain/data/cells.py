"""Splits the cells of a tags column into labels.

A cell holds labels with a separator between them, or a list as programs write it, such as
`['haze', 'primary']`: `DataFrame.to_csv` writes lists as Python prints them, other programs as
JSON, numpy without commas. A column is read as lists if every cell that is not blank is a list. A
mixture is refused. Imports neither torch nor ray.
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
# A string in quotes, which may hold the quote itself after a backslash.
_QUOTED = r""""(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'"""
# An item in quotes, then a comma, or white space as numpy writes it, or the end.
_ITEM = re.compile(rf"\s*({_QUOTED})(?:\s*,|\s+|\s*$)")
# Each opening bracket of a list, a tuple or a set, with its closing one.
_CLOSES = {"[": "]", "(": ")", "{": "}"}
_QUOTES = "\"'‘’“”„«»"
# Marks inside a label that probably separate two labels.
_PROBABLE_SEPARATORS = ",;|"
# What programs write for no value, and for the items that they leave out of a long list.
_NO_LABEL = {"none", "nan", "null", "<na>", "...", "…"}


@dataclass(frozen=True)
class Source:
    """Where cells come from, for messages.

    Attributes:
        name: a path, or words such as `the table in memory`.
        lines: line of each cell.
    """

    name: str
    lines: Sequence[int]


@dataclass(frozen=True)
class _Splitting:
    """How cells are split into labels.

    Attributes:
        separator: text between the labels; None means white space.
        known: classes that the user listed.
        has_classes: whether the user listed classes. Then a separator inside a label is no slip.
        whole: a text is one label, unless a separator is given.
    """

    separator: str | None
    known: frozenset[str]
    has_classes: bool
    whole: bool


def tags_of(
    cells: Sequence[Cell],
    source: Source,
    separator: str | None = None,
    classes: Sequence[str] | None = None,
    *,
    whole: bool = False,
) -> list[Tags]:
    """Returns the labels of every cell, as they are written.

    Args:
        cells: texts, or lists of labels.
        source: where the cells come from.
        separator: text between the labels of a cell; None means white space.
        classes: labels that the user listed. They may contain spaces, brackets, quotes and commas.
        whole: a text is one label if it is not a list and no separator is given.

    Raises:
        DataError: some cells are lists and others are not, a list cannot be read, or a label has
            stray brackets or quotes, or a comma that probably separates two labels. The message
            names the line.
    """
    how = _Splitting(separator, frozenset(classes or ()), classes is not None, whole)
    # A million cells have few different contents, so each is split once, with its first line.
    keys = [_key(cell) for cell in cells]
    # From the end, so that the first line of a content is the one that stays.
    first = dict(zip(reversed(keys), reversed(source.lines), strict=True))
    different = list(dict.fromkeys(keys))
    contents = [key if isinstance(key, str) else list(key) for key in different]
    lines = [first[key] for key in different]
    found = _tags_of(contents, Source(source.name, lines), how)
    of_key = dict(zip(different, found, strict=True))
    return [of_key[key] for key in keys]


def _key(cell: Cell) -> str | tuple[str, ...]:
    """Returns what equal cells have in common; a list cannot be looked up."""
    if isinstance(cell, str):
        return cell
    return tuple(cell)


def _tags_of(cells: Sequence[Cell], source: Source, how: _Splitting) -> list[Tags]:
    """Splits cells of which no two are equal. Arguments and errors are those of `tags_of`."""
    is_list = [_is_written_list(cell, how) for cell in cells]
    if any(is_list):
        _check_all_lists(cells, is_list, source)
        found = _split_lists(cells, source, how)
    else:
        found = [_tidy(_words(cell, how)) for cell in cells]
        if how.separator is None and not how.has_classes and not how.whole:
            _check_separated(cells, source)
    _check_stray(cells, found, source, how.known)
    return found


def _words(cell: Cell, how: _Splitting) -> Sequence[str]:
    """Splits a cell that is not a written list."""
    if not isinstance(cell, str):
        return cell
    if how.whole and how.separator is None:
        return [cell]
    words = cell.split(how.separator)
    text = " ".join(cell.split())
    # `bare ground` is one label if it is listed, unless `bare` and `ground` are listed too.
    if text in how.known and not how.known.issuperset(words):
        return [text]
    return words


def _is_written_list(cell: Cell, how: _Splitting) -> bool:
    """Tells whether a cell is a text with a list as a program writes it."""
    if not isinstance(cell, str):
        return False
    text = cell.strip()
    if len(text) < 2 or _CLOSES.get(text[0]) != text[-1]:
        return False
    # The brackets may belong to classes that the user listed.
    if how.known:
        words = [word.strip() for word in text.split(how.separator)]
        if text in how.known or how.known.issuperset(words):
            return False
    if text[0] == "[":
        return True
    # `(unknown)` may be a label, but tuples and sets of text hold items in quotes.
    return text[1:-1].strip().startswith(("'", '"'))


def _check_all_lists(cells: Sequence[Cell], is_list: Sequence[bool], source: Source) -> None:
    first = is_list.index(True)
    for cell, good, line in zip(cells, is_list, source.lines, strict=True):
        if cell and not good:
            raise DataError(
                f"line {line} of {source.name} has the labels {visible(str(cell))[:80]}, "
                f"line {source.lines[first]} the list {visible(str(cells[first]))[:80]}",
                "it is not clear whether brackets belong to the labels",
                "write the labels in one way in all rows, or list all labels with --classes",
            )


def _split_lists(cells: Sequence[Cell], source: Source, how: _Splitting) -> list[Tags]:
    """Splits cells that are all written lists, or blank."""
    inner = [_without_brackets(cell) for cell in cells]
    separator = how.separator
    if separator is None:
        separator = _separator_of_bare_lists(inner)
    found = []
    for cell, text, line in zip(cells, inner, source.lines, strict=True):
        items = _items(text, separator)
        if items is None:
            raise DataError(
                f"line {line} of {source.name} has {visible(str(cell).strip())[:80]}, "
                "which is not a list of labels",
                "it is not clear which labels are meant",
                "write it as ['haze', 'primary'], or as haze primary",
            )
        found.append(_tidy(items))
    if how.separator is None and not how.has_classes:
        # Commas between bare items separate them; marks inside quotes belong to the label.
        bare = []
        for text in inner:
            if _has_quotes(text):
                text = ""
            bare.append(text.replace(",", " "))
        _check_separated(bare, source)
    return found


def _without_brackets(cell: Cell) -> str:
    if not cell:
        return ""
    return str(cell).strip()[1:-1].strip()


def _separator_of_bare_lists(inner: Sequence[str]) -> str | None:
    """Returns a comma if any list without quotes has one.

    Else lists such as `[haze primary]` are split at white space, as the text `haze primary` is.
    """
    for text in inner:
        if "," in text and not _has_quotes(text):
            return ","
    return None


def _items(text: str, separator: str | None) -> list[str] | None:
    """Returns the items of a list without its brackets, or None if it is not clear."""
    if _has_quotes(text):
        return _quoted_items(text)
    return _bare_items(text, separator)


def _has_quotes(text: str) -> bool:
    return text.startswith(("'", '"')) or text.endswith(("'", '"'))


def _bare_items(text: str, separator: str | None) -> list[str] | None:
    """Returns the items of a list without quotes.

    None means that it contains other lists, or a word that programs write for no value.
    """
    if any(mark in text for mark in "[]{}'\""):
        return None
    items = text.split(separator)
    for item in items:
        if item.strip().casefold() in _NO_LABEL:
            return None
    return items


def _quoted_items(text: str) -> list[str] | None:
    """Returns the items of a list in which each is in quotes, or None if it is anything else."""
    items = []
    position = 0
    while position < len(text):
        match = _ITEM.match(text, position)
        if match is None:
            return None
        item = _unquoted(match[1])
        if item is None:
            return None
        items.append(item)
        position = match.end()
    return items


def _unquoted(text: str) -> str | None:
    """Evaluates a string of JSON or Python, or returns None if its escapes fit neither."""
    # literal_eval runs no code. JSON comes first, because Python would keep the backslash of "\/".
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
    """Makes white space single spaces, and drops empty labels."""
    tidy = [" ".join(word.split()) for word in words]
    return tuple(word for word in tidy if without_invisible(word).strip())


def _check_separated(cells: Sequence[Cell], source: Source) -> None:
    """Refuses a text that has a separator inside a label."""
    for cell, line in zip(cells, source.lines, strict=True):
        if not isinstance(cell, str):
            continue
        for mark in _PROBABLE_SEPARATORS:
            if mark in cell:
                raise DataError(
                    f'line {line} of {source.name} has the labels "{visible(cell)[:80]}", '
                    f"with {mark!r} inside",
                    "labels are separated by white space; this would be learned as one label",
                    f"raytrain ingest --tags-separator '{mark}'; or list the labels with --classes",
                )


def _check_stray(
    cells: Sequence[Cell], found: Sequence[Tags], source: Source, known: frozenset[str]
) -> None:
    """Refuses labels that have brackets or quotes which do not belong to them.

    Args:
        cells: as they are written.
        found: labels of each cell.
        source: of the cells.
        known: classes that the user listed; they may have any marks.
    """
    # Each different label is looked at once, because the rows of a table repeat a few of them.
    labels: set[str] = set()
    for tags in found:
        labels.update(tags)
    stray = {label for label in labels - known if _is_stray(label)}
    for cell, tags, line in zip(cells, found, source.lines, strict=True):
        wrong = next((label for label in tags if label in stray), None)
        if wrong is None and isinstance(cell, str) and not known.issuperset(tags):
            wrong = _torn_label(cell.strip(), tags)
        if wrong is not None:
            raise DataError(
                f"line {line} of {source.name} has the labels {visible(str(cell))[:80]}: "
                f"one of them would be {visible(wrong)}",
                "brackets and quotes stand around a list, or the label was split in two",
                "write labels as haze primary; list all labels with --classes; "
                "or give another --tags-separator",
            )


def _torn_label(cell: str, tags: Tags) -> str | None:
    """Returns a label that lost a quote or a parenthesis when its cell was split, or None.

    `forest (dense, old)` split at the comma has the torn label `forest (dense`.
    """
    if _is_quoted(cell):
        return tags[0]
    # Unbalanced in the whole cell already, as in `a)`: then it is how the label is written.
    if not _is_balanced(cell, "(", ")"):
        return None
    for tag in tags:
        if not _is_balanced(tag, "(", ")"):
            return tag
    return None


def _is_stray(label: str) -> bool:
    """Tells whether a label is in quotes, begins as a list does, or has unbalanced brackets.

    Parentheses, apostrophes and inches may belong to a label: `forest (mixed)`, `'70s`, `5"`.
    """
    if label[0] in "[{":
        return True
    if label.startswith(("('", '("')) or label.endswith(("')", '")')):
        return True
    if not _is_balanced(label, "[", "]") or not _is_balanced(label, "{", "}"):
        return True
    return _is_quoted(label)


def _is_balanced(text: str, opening: str, closing: str) -> bool:
    return text.count(opening) == text.count(closing)


def _is_quoted(text: str) -> bool:
    return len(text) > 1 and text[0] in _QUOTES and text[-1] in _QUOTES
