"""Where an axis of scores begins and ends, so that a few bad ones do not flatten the rest.

Imports neither torch nor ray.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from raytrain.evaluation.score import Score

# Fewer values have no outliers.
FEWEST = 5
# Of the distance between the quartiles: J. W. Tukey 1977, "Exploratory Data Analysis".
FENCE = 1.5
# Empty share of the axis beyond the outermost values.
MARGIN = 0.07


@dataclass(frozen=True)
class Range:
    """The part of an axis that is shown.

    Attributes:
        low: lower end.
        high: upper end.
        worst: the worst value that is shown at its place; worse ones are drawn there, too.
    """

    low: float
    high: float
    worst: float

    def is_outside(self, value: float, score: Score) -> bool:
        """Returns whether a value is too bad to be shown at its place."""
        return score.is_better(self.worst, value)

    def shown(self, value: float, score: Score) -> float:
        """Returns where a value is drawn."""
        if self.is_outside(value, score):
            return self.worst
        return value


def range_of(values: Iterable[float], score: Score) -> Range:
    """Returns the range for some scores: bad ones beyond Tukey's fence are left out of it.

    Args:
        values: at least one.
        score: its direction says which ones are bad.
    """
    array = np.array(list(values), np.float64)
    worst = _worst(array, score)
    low = min(worst, float(array.max()))
    high = max(worst, float(array.max()))
    if not score.higher_is_better:
        low = min(worst, float(array.min()))
        high = max(worst, float(array.min()))
    span = high - low
    if span == 0:
        # Of a single value, or of equal ones.
        span = max(abs(high), 1e-6) * 0.02
    margin = MARGIN * span
    return Range(low - margin, high + margin, worst)


def _worst(array: np.ndarray[tuple[int], np.dtype[np.float64]], score: Score) -> float:
    lower, upper = np.quantile(array, [0.25, 0.75])
    reach = FENCE * (upper - lower)
    fenced = array
    if len(array) >= FEWEST:
        fenced = array[(array >= lower - reach) & (array <= upper + reach)]
    if score.higher_is_better:
        return float(fenced.min())
    return float(fenced.max())
