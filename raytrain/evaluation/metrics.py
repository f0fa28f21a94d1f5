"""Metrics of multi-label logits: numpy in, numbers out; every other room uses these and no others.

Throughout, `logits` is float (N, K), `target` is uint8 or bool (N, K), N tiles and K labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

Array = np.ndarray[Any, Any]
THRESHOLD = 0.2
EPSILON = 1e-9
BETA_SQUARED = 4.0


def sigmoid(logits: Array) -> Array:
    """Probabilities in float64, whatever the precision of the logits."""
    probability: Array = expit(np.asarray(logits, dtype=np.float64))
    return probability


def bce(logits: Array, target: Array) -> float:
    """Mean binary cross entropy over tiles and labels: max(x, 0) - x t + log(1 + exp(-|x|))."""
    x = np.asarray(logits, dtype=np.float64)
    return float((np.maximum(x, 0) - x * target + np.log1p(np.exp(-np.abs(x)))).mean())


def f2_per_tile(predicted: Array, target: Array) -> Array:
    """F2 of each tile, float64 (N,): 5 P R / (4 P + R) with 1e-9 in the denominators, as fastai 1 (metrics.py:7-17).

    A tile without labels, or without predicted labels, scores 0.
    """
    predicted, target = np.asarray(predicted, bool), np.asarray(target, bool)
    hits = (predicted & target).sum(1)
    precision = hits / (predicted.sum(1) + EPSILON)
    recall = hits / (target.sum(1) + EPSILON)
    score: Array = (1 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall + EPSILON)
    return score


def f2(logits: Array, target: Array, threshold: float | Array = THRESHOLD) -> float:
    """Mean F2 over tiles, the competition's metric; a label is predicted where its probability is above `threshold`.

    Args:
        logits: float (N, K).
        target: uint8 (N, K).
        threshold: one for all labels, or (K,). The comparison is strict.
    """
    return float(f2_per_tile(sigmoid(logits) > threshold, target).mean())


def accuracy_thresh(logits: Array, target: Array, threshold: float = THRESHOLD) -> float:
    """Share of the N x K decisions that are right."""
    return float(((sigmoid(logits) > threshold) == np.asarray(target, bool)).mean())


def average_precision(logits: Array, target: Array) -> Array:
    """Average precision of each label, float64 (K,): sum over thresholds of (R_n - R_{n-1}) P_n; nan without positives.

    Tiles with equal scores count as one threshold, so their order does not matter.
    """
    return np.array([_average_precision(logits[:, k], target[:, k]) for k in range(np.shape(logits)[1])])


def _average_precision(scores: Array, target: Array) -> float:
    positives = int(np.sum(target))
    if positives == 0:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(np.asarray(target, np.int64)[order])
    last = np.append(np.diff(scores[order]) != 0, True)
    precision = hits[last] / (np.flatnonzero(last) + 1)
    recall = hits[last] / positives
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def per_label(
    logits: Array, target: Array, classes: Sequence[str], threshold: float | Array = THRESHOLD
) -> pd.DataFrame:
    """One row a label: label, count, precision, recall, f2 (over tiles, of this label), average_precision, threshold."""
    predicted, target = sigmoid(logits) > threshold, np.asarray(target, bool)
    hits = (predicted & target).sum(0)
    precision = hits / (predicted.sum(0) + EPSILON)
    recall = hits / (target.sum(0) + EPSILON)
    return pd.DataFrame(
        {
            "label": list(classes),
            "count": target.sum(0),
            "precision": precision,
            "recall": recall,
            "f2": (1 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall + EPSILON),
            "average_precision": average_precision(logits, target),
            "threshold": np.broadcast_to(threshold, len(classes)),
        }
    )
