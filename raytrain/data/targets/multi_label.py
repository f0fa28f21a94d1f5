"""Multi-label: any number of labels per tile, as in the competition. Neither torch nor ray."""

from __future__ import annotations

from typing import Any

import numpy as np

from raytrain.data.label_format import KAGGLE_FORMAT, LabelFormat
from raytrain.data.labels import Labels

# The competition's columns image_name,tags, with white space between the labels of a tile.
FORMAT = KAGGLE_FORMAT
RECIPE = "planet-resnet18"
# A label of a few tiles would otherwise be all that the network learns.
MOST_WEIGHT = 20.0

Array = np.ndarray[Any, Any]


def adapted(form: LabelFormat) -> LabelFormat:
    """Returns the user's format: it needs no change."""
    return form


def checked(labels: Labels) -> Labels:
    """Returns the labels: every row can be used."""
    return labels


def check_empty(allow_empty: bool) -> None:
    """Does nothing: a tile may have no label if the user says so."""


def balanced_weights(target: Array) -> Array:
    """Returns negatives / positives of each label, at most `MOST_WEIGHT`.

    The positive terms of a label then weigh as much as its negative ones.

    Args:
        target: uint8 (N, K), of the training part.

    Returns:
        float64 (K,); `MOST_WEIGHT` for a label that no tile has.
    """
    positives = target.sum(axis=0, dtype=np.float64)
    negatives = len(target) - positives
    weights: Array = np.minimum(negatives / np.maximum(positives, 1), MOST_WEIGHT)
    return weights
