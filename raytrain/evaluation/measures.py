"""Measures of decided labels: bool (N, K) against targets (N, K) of 0 and 1. No torch, no ray.

All equal scikit-learn's functions of the same names with `zero_division=0`: a score that would be
0 / 0 is 0.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from raytrain.evaluation.metrics import Array

# Over what the mean is taken: tiles (sklearn's "samples"), all decisions, or labels.
Average = Literal["tiles", "micro", "macro"]
# Axis along which an N x K array is counted for each way.
_AXES: dict[Average, int | None] = {"tiles": 1, "micro": None, "macro": 0}
_BETAS = (1, 2)  # of F-beta in `all_of`


def fbeta_of_counts(tp: Array, predicted: Array, true: Array, beta: float) -> Array:
    """Computes F-beta = (1 + β²) tp / (β² true + predicted) from counts; 0 where it is 0 / 0.

    Args:
        tp: number of labels that are predicted and true.
        predicted: number of predicted labels.
        true: number of true labels. All three have shapes that broadcast.
        beta: how much more a missed label weighs than a false one; its square counts.
    """
    square = beta * beta
    return _ratio((1 + square) * tp, square * true + predicted)


def fbeta(predicted: Array, target: Array, beta: float, average: Average = "tiles") -> float:
    """Returns F-beta: the mean over tiles or labels ("macro"), or of all decisions ("micro")."""
    true = target != 0
    axis = _AXES[average]
    tp = np.count_nonzero(predicted & true, axis=axis)
    chosen = np.count_nonzero(predicted, axis=axis)
    count = np.count_nonzero(true, axis=axis)
    scores = fbeta_of_counts(np.asarray(tp), np.asarray(chosen), np.asarray(count), beta)
    return float(scores.mean())


def jaccard(predicted: Array, target: Array) -> float:
    """Returns the mean over tiles of |predicted ∩ true| / |predicted ∪ true|."""
    true = target != 0
    both = np.count_nonzero(predicted & true, axis=1)
    either = np.count_nonzero(predicted | true, axis=1)
    return float(_ratio(both, either).mean())


def hamming_loss(predicted: Array, target: Array) -> float:
    """Returns the share of the N x K decisions that are wrong."""
    wrong = predicted != (target != 0)
    return float(wrong.mean())


def exact_match(predicted: Array, target: Array) -> float:
    """Returns the share of tiles whose labels are all right (sklearn's `accuracy_score`)."""
    right = predicted == (target != 0)
    return float(right.all(axis=1).mean())


def all_of(predicted: Array, target: Array) -> dict[str, float]:
    """Computes every measure of this module, by its name in metrics.json."""
    found = {}
    for beta in _BETAS:
        for average in _AXES:
            found[f"f{beta}_{average}"] = fbeta(predicted, target, beta, average)
    found["jaccard"] = jaccard(predicted, target)
    found["hamming_loss"] = hamming_loss(predicted, target)
    found["exact_match"] = exact_match(predicted, target)
    return found


def _ratio(numerator: Array, denominator: Array) -> Array:
    """The quotient, 0 where the denominator is 0, float64."""
    top = np.asarray(numerator, np.float64)
    bottom = np.asarray(denominator, np.float64)
    shape = np.broadcast_shapes(top.shape, bottom.shape)
    return np.divide(top, bottom, out=np.zeros(shape), where=bottom != 0)
