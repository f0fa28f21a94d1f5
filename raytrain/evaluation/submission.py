"""The competition's file: image_name,tags with one row per test tile, checked against a sample file."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from raytrain import storage
from raytrain.errors import DataError
from raytrain.evaluation.metrics import THRESHOLD
from raytrain.evaluation.predictions import Predictions


def build(
    predictions: Sequence[Predictions], thresholds: float | np.ndarray[Any, Any] | None, sample: str | None
) -> pd.DataFrame:
    """Makes the table image_name, tags.

    Args:
        predictions: one or several files' worth, with the same classes and different tiles.
        thresholds: one for all labels, or (K,); 0.2 where None. A tile without any label above gets its highest one,
            since an empty answer scores 0.
        sample: CSV whose first column names the tiles wanted, in order; natural order of names where None.

    Raises:
        DataError: other classes, a tile twice, or names that differ from the sample's.
    """
    if any(p.classes != predictions[0].classes for p in predictions):
        raise DataError(
            "the predictions files have different classes", "their labels cannot stand in one file",
            "predict all folders with the same checkpoint",
        )  # fmt: skip
    tags = {}
    for found in predictions:
        for name, text in zip(found.names, _tags(found, THRESHOLD if thresholds is None else thresholds), strict=True):
            stem = re.sub(r"\.(jpe?g|png|tiff?)$", "", name)
            if stem in tags:
                raise DataError(f"the tile {stem} is predicted twice", "it would stand twice in the file", "give each file once")
            tags[stem] = text
    names = _sample_names(sample, tags) if sample else sorted(tags, key=_natural)
    return pd.DataFrame({"image_name": names, "tags": [tags[name] for name in names]})


def write(place: str, table: pd.DataFrame) -> None:
    """Writes the CSV."""
    storage.write_text(place, table.to_csv(index=False, lineterminator="\n"))


def _tags(predictions: Predictions, thresholds: float | np.ndarray[Any, Any]) -> list[str]:
    chosen = predictions.probability > thresholds
    empty = ~chosen.any(1)
    chosen[empty, predictions.logits[empty].argmax(1)] = True
    classes = np.array(predictions.classes)
    return [" ".join(classes[row]) for row in chosen]


def _sample_names(sample: str, tags: dict[str, str]) -> list[str]:
    try:
        text = storage.read_bytes(sample).decode("utf-8-sig")
    except (FileNotFoundError, UnicodeDecodeError):
        raise DataError(f"the sample file {sample} cannot be read", "it names the tiles wanted", "--sample CSV") from None
    names = [row[0] for row in csv.reader(io.StringIO(text)) if row][1:]
    missing, extra = sorted(set(names) - tags.keys(), key=_natural), sorted(tags.keys() - set(names), key=_natural)
    if missing or extra:
        raise DataError(
            f"the predictions do not fit {sample}: {len(missing)} tiles are missing ({', '.join(missing[:3]) or 'none'}), "
            f"{len(extra)} are not asked for ({', '.join(extra[:3]) or 'none'})",
            "the competition refuses a file with other names",
            "raytrain predict --checkpoint C --images test-jpg --images test-jpg-additional --out P.parquet",
        )
    return names


def _natural(name: str) -> tuple[Any, ...]:
    """test_2 before test_10."""
    return tuple(int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name))
