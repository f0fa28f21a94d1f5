"""What logits are worth: numpy functions of (logits, target), the same for the training loop and for `evaluate`.

In: `logits` float (N, K), `target` (N, K) of 0 and 1; N tiles, K classes. Inside everything is float64. A label is
predicted where its probability is strictly above the threshold. Neither torch nor ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

Array = np.ndarray[Any, Any]
THRESHOLD = 0.2  # of the lesson; for F-beta the best cut is near F / (1 + beta²) = 0.93 / 5
EPS = 1e-9


def sigmoid(logits: Array) -> Array:
    """float64 probabilities; exact at 0, no overflow at either end."""
    x = np.asarray(logits, np.float64)
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1.0 + small)


def bce(logits: Array, target: Array) -> float:
    """Binary cross entropy, mean over tiles and classes (torch's `binary_cross_entropy_with_logits`)."""
    x = np.asarray(logits, np.float64)
    # -log sigmoid(x) = log(1 + exp(-x)): of x where the label is there, of -x where it is not.
    return float(np.logaddexp(0.0, np.where(target != 0, -x, x)).mean())


def f2_of_counts(tp: Array, predicted: Array, true: Array) -> Array:
    """F2 from the counts of right, predicted and true labels, any equal shapes; 0 where nothing is right.

    fastai's form of F-beta with beta 2 and eps 1e-9 in the denominators (fastai 1.0.21 metrics.py:7-17).
    """
    precision = tp / (predicted + EPS)
    recall = tp / (true + EPS)
    return precision * recall / (4.0 * precision + recall + EPS) * 5.0


def f2_per_tile(predicted: Array, target: Array) -> Array:
    """F2 of every tile on its own, float64 (N,); equals sklearn's `average="samples"` to about 1e-9.

    Args:
        predicted: bool (N, K). Probabilities or logits are refused: all of them would count as predicted.
    """
    if predicted.dtype != np.bool_:
        raise TypeError(
            f"predicted is {predicted.dtype}, not bool: compare sigmoid(logits) with a threshold first"
        )
    true = target != 0
    counts = [
        np.count_nonzero(which, axis=1).astype(np.float64)
        for which in (predicted & true, predicted, true)
    ]
    return f2_of_counts(*counts)


def f2(logits: Array, target: Array, threshold: float | Array = THRESHOLD) -> float:
    """The competition's metric: mean over tiles of their F2.

    Args:
        threshold: probability that a label must exceed; one for all labels, or (K,).
    """
    return float(f2_per_tile(sigmoid(logits) > threshold, target).mean())


def accuracy_thresh(logits: Array, target: Array, threshold: float | Array = THRESHOLD) -> float:
    """Share of the N x K decisions that are right (fastai's `accuracy_thresh`)."""
    return float(((sigmoid(logits) > threshold) == (target != 0)).mean())


def average_precision(logits: Array, target: Array) -> Array:
    """float64 (K,): area under the precision-recall steps of each class; NaN where no tile has the label."""
    return np.array(
        [_average_precision(x, t != 0) for x, t in zip(logits.T, target.T, strict=True)], np.float64
    )


def _average_precision(scores: Array, true: Array) -> float:
    """Sum of precision x gain in recall over the distinct scores, without interpolation (as sklearn)."""
    total = np.count_nonzero(true)
    if total == 0:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    # Tiles of equal score enter together, so that their order in the file does not matter.
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    hits = np.cumsum(true[order])[ends]
    return float(np.sum(hits / (ends + 1) * np.diff(hits, prepend=0)) / total)


def per_label(
    logits: Array, target: Array, classes: Sequence[str], threshold: float | Array = THRESHOLD
) -> pd.DataFrame:
    """One row a class, in class order: label, count, precision, recall, f2, average_precision, threshold.

    `count` is the number of tiles that truly have the label, f2 that of the label over all tiles. A score that would
    be 0 / 0 (nothing predicted, nothing true) is NaN.
    """
    predicted, true = sigmoid(logits) > threshold, target != 0
    tp, chosen, count = (
        np.count_nonzero(which, axis=0) for which in (predicted & true, predicted, true)
    )
    with np.errstate(invalid="ignore"):
        columns = {
            "precision": tp / chosen,
            "recall": tp / count,
            "f2": 5 * tp / (4 * count + chosen),
        }
    return pd.DataFrame(
        {"label": list(classes), "count": count, **columns}
        | {
            "average_precision": average_precision(logits, target),
            "threshold": np.broadcast_to(threshold, len(classes)),
        }
    )
