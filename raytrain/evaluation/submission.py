"""The competition's file from predictions: `image_name,tags`, one row a tile, tags separated by spaces.

Every tile gets at least its most probable label: an empty field scores 0. Neither torch nor ray.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np
import pandas as pd

from raytrain import storage
from raytrain.data.names import KnownNames, stem, visible
from raytrain.data.tables import Column, open_table, read_rows
from raytrain.data.text import FileKind
from raytrain.errors import ConfigError, DataError, did_you_mean
from raytrain.evaluation.metrics import THRESHOLD, Array
from raytrain.evaluation.predictions import Predictions

ANOTHER = (
    "give the predictions of the competition's test folders, each once, and its own sample file"
)
SAMPLE = FileKind(
    "sample file", "the order and names of rows are its own", "leave --sample out, or give the file"
)
SHOWN = 3  # names in a sentence
MANY = 0.01  # share of tiles without predictions above which a folder was probably forgotten


@dataclass(frozen=True)
class Submission:
    """The rows to submit.

    Attributes:
        table: image_name, tags (labels in class order, separated by spaces).
        filled: tiles of the sample that were not predicted and got the labels for missing ones.
        labels: those labels.
    """

    table: pd.DataFrame
    filled: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()

    def said(self) -> Iterator[str]:
        """What a user should know of the rows, a sentence each."""
        if not self.filled:
            return
        share = len(self.filled) / len(self.table)
        names = visible(", ".join(self.filled[:SHOWN])) + (
            ", ..." if len(self.filled) > SHOWN else ""
        )
        labels = " ".join(self.labels)
        yield f'not predicted, so they get "{labels}": {len(self.filled):,} of {len(self.table):,} tiles ({share:.1%}): {names}'
        if share > MANY:
            yield "warning: that is more than a few damaged files; are the predictions of a test folder missing?"


def build(
    predictions: Sequence[Predictions],
    thresholds: float | Array | None = None,
    sample: str | None = None,
    missing: Sequence[str] = (),
) -> Submission:
    """The rows to submit: image_name without extension, or as the sample has it; tags in class order.

    Args:
        predictions: one a folder of test tiles, all with the same classes.
        thresholds: probability that a label must exceed; one for all, (K,), or None for 0.2.
        sample: path of the competition's sample file. It gives the order, and exactly its names must be there;
            without it rows are sorted by name, numbers in names as numbers.
        missing: labels of the sample's tiles that were not predicted, since their pictures cannot be read; without, such
            tiles are refused.

    Raises:
        ConfigError: one of the labels in `missing` is no class.
        DataError: other classes, a label with a space, a tile that comes twice, or names that differ from the sample's.
    """
    classes = _classes(predictions)
    _check_labels(missing, classes)
    cut = THRESHOLD if thresholds is None else thresholds
    tags: dict[str, str] = {}
    for part in predictions:
        for name, words in zip(map(stem, part.names), _tags(part, cut, classes), strict=True):
            if name in tags:
                raise DataError(
                    f"the tile {visible(name)} comes twice in the predictions",
                    "one of two answers would count",
                    ANOTHER,
                )
            tags[name] = words
    if sample is None:
        names = sorted(tags, key=_natural)
        return Submission(
            pd.DataFrame({"image_name": names, "tags": [tags[name] for name in names]})
        )
    names = _sample_names(sample)
    tiles = _tiles_of(names, tags)
    _check_names(set(tags), names, tiles, sample, bool(missing))
    filled = tuple(name for name, tile in zip(names, tiles, strict=True) if tile is None)
    ordered = [label for label in classes if label in missing]
    every = [" ".join(ordered) if tile is None else tags[tile] for tile in tiles]
    return Submission(pd.DataFrame({"image_name": names, "tags": every}), filled, tuple(ordered))


def write(path: str, table: pd.DataFrame) -> None:
    """Writes the table as CSV, lines ended by LF.

    Raises:
        StorageError: the place cannot be written.
    """
    storage.write_text(path, table.to_csv(index=False, lineterminator="\n"))


def _classes(predictions: Sequence[Predictions]) -> tuple[str, ...]:
    found = {part.classes for part in predictions}
    if len(found) != 1:
        raise DataError(
            f"the predictions have {len(found)} different lists of classes",
            "a label's column would mean another label in the next file",
            "predict all folders with one checkpoint",
        )
    classes = found.pop()
    bad = [label for label in classes if not label or re.search(r"\s", label)]
    if bad:
        raise DataError(
            f'the label "{bad[0]}" has a space, or is empty',
            "spaces separate the tags of a tile in the competition's file",
            "rename it in the labels, then ingest and train again",
        )
    return classes


def _tags(part: Predictions, cut: float | Array, classes: Sequence[str]) -> Iterable[str]:
    said = part.probability > cut
    if len(said):
        empty = ~said.any(axis=1)
        said[empty, np.argmax(part.logits[empty], axis=1)] = True
    return (" ".join(compress(classes, row)) for row in said.tolist())


def _natural(name: str) -> tuple[list[str | int], str]:
    # Splitting at digits puts words at even places and numbers at odd ones, so like is compared with like.
    return [
        int(word) if i % 2 else word for i, word in enumerate(re.split(r"([0-9]+)", name))
    ], name


def _sample_names(path: str) -> list[str]:
    """image_name of a sample file, in its order."""
    fix = f"its column image_name gives the order; {ANOTHER}"
    rows = read_rows(open_table(path, SAMPLE), [Column("image_name", "name")], fix)
    return [str(row.cells[0]) for row in rows.rows]


def _tiles_of(names: Sequence[str], predicted: Iterable[str]) -> list[str | None]:
    """The predicted tile that each name of the sample means; None where it was not predicted."""
    known = KnownNames(predicted)
    found = [known.find(name) for name in names]
    return [tiles[0] if tiles else None for tiles in found]


def _check_labels(missing: Sequence[str], classes: Sequence[str]) -> None:
    for label in missing:
        if label not in classes:
            raise ConfigError(
                f'--missing has "{visible(label)}", which is no class.{did_you_mean(label, classes)}',
                "the competition knows only its own labels",
                f"use some of {', '.join(classes)}",
            )


def _check_names(
    predicted: set[str], names: Sequence[str], tiles: Sequence[str | None], sample: str, fills: bool
) -> None:
    not_predicted = [name for name, tile in zip(names, tiles, strict=True) if tile is None]
    wrong = {
        "not in the predictions": [] if fills else not_predicted,
        "not in the sample": sorted(
            predicted.difference(tile for tile in tiles if tile), key=_natural
        ),
        "in the sample more than once": [
            name for name, count in Counter(map(stem, names)).items() if count > 1
        ],
    }
    found = [
        f"{len(bad):,} {what} ({visible(', '.join(bad[:SHOWN]))})"
        for what, bad in wrong.items()
        if bad
    ]
    if not found:
        return
    fix = ANOTHER
    if not_predicted and not fills:
        fix += "; tiles that cannot be read get labels by --missing 'clear primary'"
    raise DataError(
        f"the predictions and {sample} do not name the same tiles: {'; '.join(found)}",
        "the competition refuses such a file, or scores missing tiles as 0",
        fix,
    )
