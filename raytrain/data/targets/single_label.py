"""Single label: exactly one per tile. Neither torch nor ray."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from raytrain.data.label_format import ONE_LABEL_COLUMN, LabelFormat
from raytrain.data.labels import Labels
from raytrain.data.names import visible
from raytrain.errors import ConfigError

FORMAT = LabelFormat(tags_column=ONE_LABEL_COLUMN, one_label=True)
RECIPE = "single-label-resnet18"
# The problem of a row with several labels, as quarantine.jsonl names it.
SEVERAL = "several-labels"
# A class of a few tiles would otherwise be all that the network learns.
MOST_WEIGHT = 20.0

Array = np.ndarray[Any, Any]


def adapted(form: LabelFormat) -> LabelFormat:
    """Returns the user's format, in which the whole cell is the label.

    Raises:
        ConfigError: rows are to be joined, or labels separated, which makes several of one.
    """
    flag = ""
    if form.join_rows:
        flag = "--join-rows"
    elif form.tags_separator is not None:
        flag = f"--tags-separator {form.tags_separator!r}"
    if flag:
        raise ConfigError(
            f"{flag} with --task single-label",
            "a tile has exactly one label, and its cell holds nothing else",
            "leave it out, or choose another --task",
        )
    return replace(form, one_label=True)


def checked(labels: Labels) -> Labels:
    """Returns labels with a problem on each row that has several."""
    table = labels.table.copy()
    several = table["tags"].map(len) > 1
    several &= table["problem"] == ""
    table.loc[several, "problem"] = SEVERAL
    for row in table.index[several]:
        words = ", ".join(table.loc[row, "tags"])
        table.loc[row, "detail"] = f"{visible(words)}: a tile of this task has one label"
    return replace(labels, table=table)


def check_empty(allow_empty: bool) -> None:
    """Refuses tiles without a label.

    Raises:
        ConfigError: they are asked for.
    """
    if not allow_empty:
        return
    raise ConfigError(
        "--allow-empty with --task single-label",
        "a tile of this task has exactly one label; one without could not be learned or judged",
        "leave it out; tiles to predict later come by --test-folder DIR",
    )


def balanced_weights(target: Array) -> Array:
    """Returns N / (K n) for a class of n tiles, at most `MOST_WEIGHT`.

    All classes then weigh the same, and the mean over tiles stays 1. It is sklearn's
    `compute_class_weight("balanced")`.

    Args:
        target: uint8 (N, K), of the training part.

    Returns:
        float64 (K,); `MOST_WEIGHT` for a class without tiles.
    """
    tiles, classes = target.shape
    of_class = target.sum(axis=0, dtype=np.float64)
    weights = np.full(classes, MOST_WEIGHT)
    present = of_class > 0
    weights[present] = tiles / (classes * of_class[present])
    return np.minimum(weights, MOST_WEIGHT)
