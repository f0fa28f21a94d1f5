"""Whether probabilities mean what they say, and the temperature that mends them. No torch, no ray.

All take `logits` or `probability` float (N, K) and `target` (N, K) of 0 and 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from raytrain.evaluation import metrics
from raytrain.evaluation.metrics import Array

BINS = 15  # as Guo et al. 2017
# Where the temperature is sought. Logits that separate the labels without a fault have none: a
# lower one is always better.
LOWEST = 0.05
HIGHEST = 20.0


@dataclass(frozen=True, eq=False)
class Reliability:
    """Predicted and observed frequency by bins of probability.

    Attributes:
        count: decisions in each bin, int64 (BINS,).
        predicted: mean probability in each bin, (BINS,); NaN in an empty one.
        observed: share of true labels in each bin, (BINS,); NaN in an empty one.
    """

    count: Array
    predicted: Array
    observed: Array

    @property
    def error(self) -> float:
        """Expected calibration error: mean over decisions of |observed - predicted| of the bin."""
        filled = self.count > 0
        gaps = np.abs(self.observed[filled] - self.predicted[filled])
        return float(np.average(gaps, weights=self.count[filled]))


def reliability(probability: Array, target: Array) -> Reliability:
    """Sorts all N x K decisions into bins of equal width by their probability.

    Naeini, Cooper and Hauskrecht 2015, "Obtaining Well Calibrated Probabilities Using Bayesian
    Binning".
    """
    flat = probability.ravel()
    # A probability of 1 belongs to the last bin.
    number = np.minimum((flat * BINS).astype(np.int64), BINS - 1)
    count = np.bincount(number, minlength=BINS)
    sums = np.bincount(number, weights=flat, minlength=BINS)
    true = np.bincount(number, weights=(target != 0).ravel(), minlength=BINS)
    # 0 / 0 gives the NaN that is wanted here.
    with np.errstate(invalid="ignore"):
        return Reliability(count, sums / count, true / count)


def temperature(logits: Array, target: Array) -> float:
    """Finds the temperature T that minimises the cross entropy of logits / T.

    Guo, Pleiss, Sun and Weinberger 2017, "On Calibration of Modern Neural Networks". The loss is
    convex in 1 / T, so it has one minimum, where its derivative is 0.

    Returns:
        T, between LOWEST and HIGHEST.
    """
    # Here, because SciPy takes a second to import, and the bench's machines lack it.
    from scipy.optimize import brentq

    x = np.asarray(logits, np.float64)
    true = np.asarray(target != 0, np.float64)

    def slope(log_temperature: float) -> float:
        """Derivative of the loss by 1 / T. It falls as T rises."""
        scaled = metrics.sigmoid(x * math.exp(-log_temperature))
        return float(np.vdot(scaled - true, x)) / x.size

    low = math.log(LOWEST)
    high = math.log(HIGHEST)
    if slope(low) <= 0:
        return LOWEST
    if slope(high) >= 0:
        return HIGHEST
    return math.exp(brentq(slope, low, high, xtol=1e-6))
