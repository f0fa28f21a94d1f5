"""Metrics of logits, as NumPy functions that training and `evaluate` share.

All take `logits` float (N, K) and `target` (N, K) of 0 and 1, for N tiles and K classes, and
compute in float64. A label is predicted where its probability is strictly above the threshold.
Imports neither torch nor ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

Array = np.ndarray[Any, Any]
# The threshold of fastai's lesson on Planet. The best one for F-beta is near F / (1 + beta²), here
# 0.93 / 5. (Lipton et al. 2014, "Optimal Thresholding of Classifiers to Maximize F1 Measure", show
# F / 2 for F1.)
THRESHOLD = 0.2
# Keeps the denominators of F2 from being 0.
EPS = 1e-9


def sigmoid(logits: Array) -> Array:
    """Returns float64 probabilities; exact at 0, without overflow at either end."""
    x = np.asarray(logits, np.float64)
    # exp of a negative number cannot overflow; both branches use it.
    small = np.exp(-np.abs(x))
    numerator = np.where(x >= 0, 1.0, small)
    return numerator / (1.0 + small)


def bce(logits: Array, target: Array) -> float:
    """Returns the binary cross entropy, the mean over tiles and classes.

    Equals torch's `binary_cross_entropy_with_logits`.
    """
    x = np.asarray(logits, np.float64)
    # -log sigmoid(x) = log(1 + exp(-x)): of x where the label is present, of -x where it is not.
    signed = np.where(target != 0, -x, x)
    return float(np.logaddexp(0.0, signed).mean())


def f2_of_counts(tp: Array, predicted: Array, true: Array) -> Array:
    """Computes F2 from counts of labels; 0 where no label is right.

    The formula is fastai's F-beta with beta 2 and 1e-9 in the denominators (fastai 1.0.21,
    metrics.py:7-17).

    Args:
        tp: number of labels that are predicted and true.
        predicted: number of predicted labels.
        true: number of true labels. All three have shapes that broadcast.
    """
    precision = tp / (predicted + EPS)
    recall = tp / (true + EPS)
    denominator = 4.0 * precision + recall + EPS
    return precision * recall / denominator * 5.0


def f2_per_tile(predicted: Array, target: Array) -> Array:
    """Computes F2 of every tile on its own.

    Equals sklearn's `fbeta_score(average="samples")` to about 1e-9.

    Args:
        predicted: bool (N, K).
        target: (N, K) of 0 and 1.

    Returns:
        float64 (N,).

    Raises:
        TypeError: `predicted` is not bool. All probabilities or logits would count as predicted.
    """
    if predicted.dtype != np.bool_:
        raise TypeError(
            f"predicted is {predicted.dtype}, not bool: "
            "compare sigmoid(logits) with a threshold first"
        )
    true = target != 0
    return f2_of_counts(
        tp=_count(predicted & true),
        predicted=_count(predicted),
        true=_count(true),
    )


def _count(labels: Array) -> Array:
    """Number of labels of each tile, float64 (N,), of bool (N, K)."""
    return np.asarray(np.count_nonzero(labels, axis=1), np.float64)


def f2(logits: Array, target: Array, threshold: float | Array = THRESHOLD) -> float:
    """Computes the competition's metric: the mean over tiles of their F2.

    Args:
        logits: float (N, K).
        target: (N, K) of 0 and 1.
        threshold: probability that a label must exceed; one for all labels, or (K,).
    """
    predicted = sigmoid(logits) > threshold
    return float(f2_per_tile(predicted, target).mean())


def accuracy_thresh(logits: Array, target: Array, threshold: float | Array = THRESHOLD) -> float:
    """Returns the share of the N x K decisions that are right (fastai's `accuracy_thresh`)."""
    predicted = sigmoid(logits) > threshold
    right = predicted == (target != 0)
    return float(right.mean())


def average_precision(logits: Array, target: Array) -> Array:
    """Computes the average precision of each class.

    Returns:
        float64 (K,); NaN where no tile has the label.
    """
    true = target != 0
    found = []
    for scores, has_label in zip(logits.T, true.T, strict=True):
        found.append(_average_precision(scores, has_label))
    return np.array(found, np.float64)


def _average_precision(scores: Array, true: Array) -> float:
    """Sum of precision x gain in recall over the distinct scores, without interpolation.

    Equals sklearn's `average_precision_score`.

    Args:
        scores: float (N,).
        true: bool (N,).
    """
    total = np.count_nonzero(true)
    if total == 0:
        return float("nan")
    hits, chosen = _ranked_hits(scores, true)
    gains = np.diff(hits, prepend=0)
    return float(np.sum(hits / chosen * gains) / total)


def precision_recall(scores: Array, has_label: Array) -> tuple[Array, Array]:
    """Computes precision and recall where all tiles above each distinct score get the label.

    Args:
        scores: of one class, float (N,).
        has_label: (N,) of 0 and 1, at least one of them 1.

    Returns:
        Both float64 (distinct scores,), recall ascending.
    """
    true = has_label != 0
    hits, chosen = _ranked_hits(scores, true)
    return hits / chosen, hits / np.count_nonzero(true)


def _ranked_hits(scores: Array, true: Array) -> tuple[Array, Array]:
    """The number of right tiles, and of all tiles, whose score is at least each distinct one."""
    order = np.argsort(-scores, kind="stable")
    # Tiles of equal score enter together, so that their order in the file does not matter.
    is_last = np.append(np.diff(scores[order]) != 0, True)
    ends = np.flatnonzero(is_last)
    hits = np.cumsum(true[order])[ends]
    return hits, ends + 1


def per_label(
    logits: Array, target: Array, classes: Sequence[str], threshold: float | Array = THRESHOLD
) -> pd.DataFrame:
    """Computes a table with one row for each class, in class order.

    Args:
        logits: float (N, K).
        target: (N, K) of 0 and 1.
        classes: names of the K classes.
        threshold: probability that a label must exceed; one for all labels, or (K,).

    Returns:
        Columns label, count, precision, recall, f2, average_precision, threshold. `count` is the
        number of tiles that truly have the label, `f2` that of the label over all tiles. A score
        that would be 0 / 0 (nothing predicted, nothing true) is NaN.
    """
    predicted = sigmoid(logits) > threshold
    true = target != 0
    tp = np.count_nonzero(predicted & true, axis=0)
    chosen = np.count_nonzero(predicted, axis=0)
    count = np.count_nonzero(true, axis=0)
    # 0 / 0 gives the NaN that is wanted here.
    with np.errstate(invalid="ignore"):
        precision = tp / chosen
        recall = tp / count
        # F-beta with beta 2: (1 + 4) tp / (4 true + predicted).
        f2_of_label = 5 * tp / (4 * count + chosen)
    return pd.DataFrame(
        {
            "label": list(classes),
            "count": count,
            "precision": precision,
            "recall": recall,
            "f2": f2_of_label,
            "average_precision": average_precision(logits, target),
            "threshold": np.broadcast_to(threshold, len(classes)),
        }
    )
