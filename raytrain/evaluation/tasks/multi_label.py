"""Multi-label: several labels per tile, judged by the mean F2 over tiles. No torch, no ray."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import compress
from typing import Any

import numpy as np

from raytrain.errors import DataError
from raytrain.evaluation import metrics, thresholds
from raytrain.evaluation.metrics import Array
from raytrain.evaluation.predictions import Predictions
from raytrain.evaluation.score import Score
from raytrain.evaluation.thresholds import Judgement

SCORE = Score("f2", "F2")
# Metrics of an epoch beside the loss, by their column in history.csv, with their names for people.
METRICS = {"accuracy": "accuracy", "f2": "F2"}
# The competition's file: image_name,tags.
ANSWER_COLUMN = "tags"
# Whether a label is decided by a threshold that can be fitted.
HAS_THRESHOLDS = True
# What meta.json of a checkpoint says of this task alone: thresholds are fitted on predictions
# later, so the lesson's own stands there.
CHECKPOINT_FACTS: dict[str, Any] = {"thresholds": {"default": metrics.THRESHOLD}}


def epoch_metrics(logits: Array, target: Array) -> dict[str, float]:
    """Computes the metrics of a validation.

    Args:
        logits: float (N, K).
        target: uint8 (N, K) of 0 and 1.

    Returns:
        valid_loss (binary cross entropy), accuracy (share of right decisions at 0.2) and f2 at 0.2.
    """
    return {
        "valid_loss": metrics.bce(logits, target),
        "accuracy": metrics.accuracy_thresh(logits, target),
        "f2": metrics.f2(logits, target),
    }


def probabilities(logits: Array) -> Array:
    """Returns the probability of each label, float64 (N, K)."""
    return metrics.sigmoid(logits)


def judge(predictions: Predictions) -> Judgement:
    """Evaluates predictions, and fits thresholds on them; see `thresholds.judge`."""
    return thresholds.judge(predictions)


def table(judgement: Judgement) -> str:
    """Returns the judgement as text for the terminal."""
    return thresholds.table(judgement)


def write(judgement: Judgement, out: str) -> None:
    """Writes thresholds.json, metrics.json and per_label.csv into a directory."""
    thresholds.write(judgement, out)


def check_answers(classes: tuple[str, ...]) -> None:
    """Refuses labels that the competition's file cannot hold.

    Raises:
        DataError: a label has a space, or is empty.
    """
    for label in classes:
        if not label or re.search(r"\s", label):
            raise DataError(
                f'the label "{label}" has a space, or is empty',
                "spaces separate the tags of a tile in the competition's file",
                "rename it in the labels, then ingest and train again",
            )


def read_thresholds(path: str, classes: tuple[str, ...]) -> Array:
    """Reads the recommended thresholds of a thresholds.json, float64 (K,)."""
    return thresholds.read_thresholds(path, classes)


def answers(predictions: Predictions, cut: Array | None) -> Iterator[str]:
    """Yields the answer for each tile: its labels in class order, separated by spaces.

    Every tile gets at least its most probable label, because an empty field scores 0.

    Args:
        predictions: of N tiles.
        cut: threshold of each label, (K,); None for 0.2.
    """
    if cut is None:
        cut = np.full(len(predictions.classes), metrics.THRESHOLD)
    predicted = probabilities(predictions.logits) > cut  # bool (N, K)
    # argmax fails for a part without tiles.
    if len(predicted):
        empty = ~predicted.any(axis=1)
        predicted[empty, np.argmax(predictions.logits[empty], axis=1)] = True
    for row in predicted.tolist():
        yield " ".join(compress(predictions.classes, row))
