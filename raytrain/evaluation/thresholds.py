"""Fits thresholds that turn probabilities into labels.

    best_global(logits, target)      one threshold for all labels
    best_per_class(logits, target)   one for each label, by coordinate ascent
    shrunk(per_class, common, count) the same, those of rare labels pulled towards the common one

What is fitted here is judged on other tiles, see `judgement`. Imports neither torch nor ray.
"""

from __future__ import annotations

import math

import numpy as np

from raytrain.evaluation import metrics
from raytrain.evaluation.metrics import Array

DEFAULT = metrics.THRESHOLD
# Thresholds that are tried: 0.01, 0.02 ... 0.99.
GRID_SIZE = 99
# Means of F2 that differ by less are equal except for the order of summation.
TIE = 1e-12
# A label with so many tiles gets the mean of its own threshold and the common one. Of 0 to 400 it
# is the best for 600 tiles whose labels differ (tests/evaluation/truth.py, "labels shifted").
SHRINKAGE = 50


def best_global(logits: Array, target: Array) -> tuple[float, float]:
    """Finds the threshold of 0.01, 0.02 ... 0.99 with the highest F2.

    Returns:
        The threshold, the one nearest to 0.2 of equally good ones, and its F2.
    """
    probability = metrics.sigmoid(logits)
    grid = _grid()
    means = []
    for threshold in grid:
        per_tile = metrics.f2_per_tile(probability > threshold, target)
        means.append(per_tile.mean())
    scores = np.array(means)
    best = _nearest_best(scores, DEFAULT)
    return float(grid[best]), float(scores[best])


def best_per_class(
    logits: Array, target: Array, start: float | Array = DEFAULT, seed: int = 0
) -> tuple[Array, float]:
    """Finds one threshold for each class by coordinate ascent on F2.

    It stops when a pass over all classes gains nothing. The label of a class changes only the
    counts of its own tile. So the F2 of every tile with and without the label give the scores of
    all 99 thresholds: by one cumulative sum of gains over the tiles in order of probability.

    Args:
        logits: float (N, K).
        target: (N, K) of 0 and 1.
        start: threshold, or (K,), to start from. A class moves only if that gains, and as little
            as it can.
        seed: of the order of classes in every pass.

    Returns:
        float64 (K,) thresholds, and their F2 on these tiles.
    """
    probability = metrics.sigmoid(logits)
    true = target != 0
    grid = _grid()
    cuts = np.broadcast_to(start, probability.shape[1]).astype(np.float64)
    # int (N, K): the number of thresholds that each probability is strictly above.
    above = np.searchsorted(grid, probability, side="left")
    rng = np.random.default_rng(seed)
    predicted = probability > cuts
    # int (N,) each: right, predicted and true labels of a tile.
    tp = np.count_nonzero(predicted & true, axis=1)
    chosen = np.count_nonzero(predicted, axis=1)
    count = np.count_nonzero(true, axis=1)
    best = metrics.f2(logits, target, cuts)
    before = -math.inf
    while best > before + TIE:
        before = best
        for k in rng.permutation(len(cuts)):
            has_label = true[:, k]
            other_tp = tp - (predicted[:, k] & has_label)
            other_chosen = chosen - predicted[:, k]
            scores = _scores_of_class(other_tp, other_chosen, count, has_label, above[:, k])
            found = _nearest_best(scores, cuts[k])
            if scores[found] > best + TIE:
                cuts[k] = grid[found]
                best = scores[found]
                predicted[:, k] = probability[:, k] > cuts[k]
                tp = other_tp + (predicted[:, k] & has_label)
                chosen = other_chosen + predicted[:, k]
    # Computed anew: the scores above differ from it by rounding.
    return cuts, metrics.f2(logits, target, cuts)


def shrunk(per_class: Array, common: float, count: Array) -> Array:
    """Pulls the thresholds of rare labels towards the common one.

    The threshold of a label with n tiles is (n · its own + SHRINKAGE · common) / (n + SHRINKAGE).

    Args:
        per_class: own threshold of each label, (K,).
        common: the threshold for all labels.
        count: tiles that have each label, among those that the thresholds were fitted on, (K,).
    """
    weight = count / (count + SHRINKAGE)
    found: Array = weight * per_class + (1 - weight) * common
    return found


def _grid() -> Array:
    """The thresholds that are tried, float64 (99,)."""
    return np.arange(1, GRID_SIZE + 1) / 100


def _nearest_best(scores: Array, current: float) -> int:
    """Index of the best score on the grid; of equal ones the nearest to the current threshold."""
    equal = np.flatnonzero(scores >= scores.max() - TIE)
    distance = np.abs(_grid()[equal] - current)
    return int(equal[distance.argmin()])


def _scores_of_class(
    tp: Array, chosen: Array, count: Array, has_label: Array, above: Array
) -> Array:
    """Mean F2 for every threshold of a class, while all other labels stay as they are predicted.

    Args:
        tp: right labels of each tile without this class, int (N,).
        chosen: predicted labels of each tile without this class, int (N,).
        count: true labels of each tile, int (N,).
        has_label: bool (N,), whether the tile has the class.
        above: int (N,), number of thresholds that the probability of the class is above.

    Returns:
        float64 (99,).
    """
    without = metrics.f2_of_counts(tp, chosen, count)
    with_label = metrics.f2_of_counts(tp + has_label, chosen + 1, count)
    gain = with_label - without
    # A tile above exactly j thresholds has the label at the first j of them: so the gain at a
    # threshold is the sum over the tiles above it, counted from the far end.
    by_count = np.bincount(above, weights=gain, minlength=GRID_SIZE + 1)
    # A tile above no threshold gains nothing.
    by_step = by_count[1:]
    gains = by_step[::-1].cumsum()[::-1]
    sums = np.asarray(without.sum() + gains)
    return sums / len(count)
