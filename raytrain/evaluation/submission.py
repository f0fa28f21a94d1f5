"""The competition's file from predictions: `image_name,tags`, one row a tile, tags separated by spaces.

Every tile gets at least its most probable label: an empty field scores 0. Neither torch nor ray.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import compress
from pathlib import PurePosixPath

import numpy as np
import pandas as pd

from raytrain import storage
from raytrain.errors import DataError
from raytrain.evaluation.metrics import THRESHOLD, Array
from raytrain.evaluation.predictions import Predictions

# Only these are taken off: `tile.v2` has no extension.
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp"})
ANOTHER = "give the predictions of the competition's test folders, each once, and its own sample file"


def build(
    predictions: Sequence[Predictions], thresholds: float | Array | None = None, sample: str | None = None
) -> pd.DataFrame:
    """The rows to submit: image_name without extension, tags in class order.

    Args:
        predictions: one a folder of test tiles, all with the same classes.
        thresholds: probability that a label must exceed; one for all, (K,), or None for 0.2.
        sample: place of the competition's sample file. It gives the order, and exactly its names must be there;
            without it rows are sorted by name, numbers in names as numbers.

    Raises:
        DataError: other classes, a label with a space, a tile that comes twice, or names that differ from the sample's.
    """
    classes = _classes(predictions)
    cut = THRESHOLD if thresholds is None else thresholds
    tags = {}
    for part in predictions:
        for name, words in zip(map(_stem, part.names), _tags(part, cut, classes), strict=True):
            if name in tags:
                raise DataError(
                    f"the tile {name} comes twice in the predictions", "one of two answers would count", ANOTHER
                )
            tags[name] = words
    names = sorted(tags, key=_natural) if sample is None else _sample_names(sample)
    if sample is not None:
        _check_names(set(tags), names, sample)
    return pd.DataFrame({"image_name": names, "tags": [tags[name] for name in names]})


def write(place: str, table: pd.DataFrame) -> None:
    """Writes the table as CSV, lines ended by LF.

    Raises:
        StorageError: the place cannot be written.
    """
    storage.write_text(place, table.to_csv(index=False, lineterminator="\n"))


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
            f'the label "{bad[0]}" is empty or has a space', "spaces separate the tags of a tile", "rename it"
        )
    return classes


def _tags(part: Predictions, cut: float | Array, classes: Sequence[str]) -> Iterable[str]:
    said = part.probability > cut
    if len(said):
        empty = ~said.any(axis=1)
        said[empty, np.argmax(part.logits[empty], axis=1)] = True
    return (" ".join(compress(classes, row)) for row in said.tolist())


def _stem(name: str) -> str:
    suffix = PurePosixPath(name).suffix
    return name.removesuffix(suffix) if suffix.lower() in EXTENSIONS else name


def _natural(name: str) -> tuple[list[str | int], str]:
    # Splitting at digits puts words at even places and numbers at odd ones, so like is compared with like.
    return [int(word) if i % 2 else word for i, word in enumerate(re.split(r"([0-9]+)", name))], name


def _sample_names(place: str) -> list[str]:
    """image_name of a sample file, in its order."""
    try:
        content = storage.read_bytes(place)
        names: list[str] = pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False)["image_name"].tolist()
    except FileNotFoundError:
        raise DataError(f"there is no sample file {place}", "", "leave --sample out, or give the file") from None
    except (KeyError, ValueError) as error:  # pandas' parser and UTF-8 errors are ValueErrors
        reason = "it has no column image_name" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise DataError(
            f"{place} is not a sample file: {reason}", "the order and names of rows are its own", ANOTHER
        ) from None
    return names


def _check_names(known: set[str], names: list[str], sample: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    wrong = {
        "not in the predictions": [name for name in names if name not in known],
        "not in the sample": sorted(known.difference(names), key=_natural),
        "in the sample more than once": twice,
    }
    found = [f"{len(bad):,} {what} ({', '.join(bad[:3])})" for what, bad in wrong.items() if bad]
    if found:
        raise DataError(
            f"the predictions and {sample} do not name the same tiles: {'; '.join(found)}",
            "the competition refuses such a file, or scores missing tiles as 0",
            ANOTHER,
        )
