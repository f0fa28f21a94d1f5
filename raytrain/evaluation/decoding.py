"""Expected-F decoding: the labels of a tile with the highest expected F-beta. No torch, no ray.

Labels are taken as independent given the tile, with calibrated probabilities. The best set of k
labels is then the k most probable ones, and the numbers of true labels inside and outside it are
Poisson-binomial. Ye, Chai, Lee and Chieu 2012, "Optimizing F-Measures: A Tale of Two Approaches".
Waegeman et al. 2014, "On the Bayes-Optimality of F-Measure Maximizers" (JMLR 15), show when it is
optimal, and that dependent labels need more than their own probabilities.
"""

from __future__ import annotations

import numpy as np

from raytrain.evaluation import measures
from raytrain.evaluation.metrics import Array

# Tiles are decoded in blocks whose arrays have about so many numbers (64 MB).
_BLOCK = 8_000_000


def best_sets(probability: Array, beta: float = 2.0) -> Array:
    """Finds for each tile the labels with the highest expected F-beta.

    Args:
        probability: of each label, float64 (N, K).
        beta: of F-beta.

    Returns:
        bool (N, K). Of equally good sets it is the smallest; a tile has none only where all its
        probabilities are 0.
    """
    rows, labels = probability.shape
    found = np.zeros((rows, labels), np.bool_)
    size = max(1, _BLOCK // (labels + 1) ** 2)
    for start in range(0, rows, size):
        block = probability[start : start + size]
        order = np.argsort(-block, axis=1, kind="stable")
        ranked = np.take_along_axis(block, order, axis=1)
        chosen = expected_by_size(ranked, beta).argmax(axis=1)
        is_in = np.arange(labels) < chosen[:, None]  # by rank
        np.put_along_axis(found[start : start + size], order, is_in, axis=1)
    return found


def expected_by_size(ranked: Array, beta: float) -> Array:
    """Computes the expected F-beta of the k most probable labels, for k = 0 ... K.

    Args:
        ranked: probabilities, the highest first, float64 (N, K).
        beta: of F-beta.

    Returns:
        float64 (N, K + 1).
    """
    rows, labels = ranked.shape
    outside = _counts_outside(ranked)
    expected = np.zeros((rows, labels + 1))
    inside = np.ones((rows, 1))
    for k in range(1, labels + 1):
        inside = _with_label(inside, ranked[:, k - 1])
        scores = _scores(k, labels, beta)
        expected[:, k] = np.einsum("na,na->n", inside @ scores, outside[k])
    return expected


def _scores(size: int, labels: int, beta: float) -> Array:
    """F-beta of a set by the numbers of true labels in it (row) and outside (column)."""
    inside = np.arange(size + 1)[:, None]
    outside = np.arange(labels - size + 1)[None, :]
    return measures.fbeta_of_counts(inside, np.asarray(size), inside + outside, beta)


def _counts_outside(ranked: Array) -> list[Array]:
    """Distributions of the number of true labels after the first k.

    Returns:
        Entry k is float64 (N, K - k + 1): the probability of 0, 1 ... K - k true ones.
    """
    rows, labels = ranked.shape
    counts = np.ones((rows, 1))
    found = [counts]
    for k in reversed(range(labels)):
        counts = _with_label(counts, ranked[:, k])
        found.append(counts)
    return found[::-1]


def _with_label(counts: Array, probability: Array) -> Array:
    """The distribution (N, n + 1) of a number of true labels, (N, n), after one more label."""
    rows, size = counts.shape
    present = probability[:, None]
    more = np.zeros((rows, size + 1))
    more[:, :-1] = counts * (1 - present)
    more[:, 1:] += counts * present
    return more
