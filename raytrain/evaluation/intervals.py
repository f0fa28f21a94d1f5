"""Intervals of a mean over tiles by the bootstrap, and the comparison of two models on one set.

Tiles are resampled, or whole groups of them: tiles of one scene are alike, so they say less than as
many independent ones. B. Efron 1979, "Bootstrap Methods: Another Look at the Jackknife"; the
intervals are those between percentiles. No torch, no ray.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from raytrain.errors import DataError
from raytrain.evaluation.metrics import Array

RESAMPLES = 1000
# The ends of a 95 % interval.
ENDS = (0.025, 0.975)
# Standard errors between 0 and a difference that 95 % intervals leave out in 80 % of samples: the
# normal distribution's quantiles of 97.5 % and 80 %.
SETTLED = 1.959964 + 0.841621


@dataclass(frozen=True)
class Estimate:
    """A mean over tiles.

    Attributes:
        value: the mean.
        low: lower end of its 95 % interval.
        high: upper end of it.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """A score of two models on the same tiles.

    Attributes:
        first: mean score of the first one.
        second: mean score of the second one.
        difference: second - first.
        share_better: share of the resamples in which the second one is better.
        needed: number of tiles that would show a difference of this size in four of five samples;
            None where there is no difference.
    """

    first: float
    second: float
    difference: Estimate
    share_better: float
    needed: int | None

    @property
    def verdict(self) -> str:
        """ "better" or "worse", for the second one, if the interval leaves 0 out; else
        "no difference"."""
        if self.difference.low <= 0 <= self.difference.high:
            return "no difference"
        if self.share_better > 0.5:
            return "better"
        return "worse"


def resampled_means(values: Array, groups: Array | None = None, seed: int = 0) -> Array:
    """Computes the means over resampled tiles, or over the tiles of resampled groups.

    All columns share each resample, so that they can be compared.

    Args:
        values: float64 (N, M).
        groups: (N,), whatever tells the group of a tile. None resamples single tiles.
        seed: of the resamples.

    Returns:
        float64 (RESAMPLES, M).

    Raises:
        DataError: fewer than two tiles, or groups. Every resample would be the same.
    """
    sums, sizes = _units(np.asarray(values, np.float64), groups)
    units = len(sums)
    if units < 2:
        raise DataError(
            f"there are {len(values)} tiles in {units} groups to resample",
            "an interval needs at least two that may differ",
            "give more tiles, or a --column with more values",
        )
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(RESAMPLES):
        draw = rng.integers(units, size=units)
        # How often each unit was drawn; the products sum over the drawn ones.
        counts = np.bincount(draw, minlength=units)
        means.append(counts @ sums / (counts @ sizes))
    return np.stack(means)


def interval(resampled: Array) -> tuple[float, float]:
    """Returns the ends of the 95 % interval of resampled means, (RESAMPLES,)."""
    low, high = np.quantile(resampled, ENDS)
    return float(low), float(high)


def estimate(values: Array, groups: Array | None = None, seed: int = 0) -> Estimate:
    """Returns the mean of values, (N,), with its interval; see `resampled_means`."""
    low, high = interval(resampled_means(values[:, None], groups, seed)[:, 0])
    return Estimate(float(values.mean()), low, high)


def compare(
    first: Array,
    second: Array,
    *,
    higher_is_better: bool = True,
    groups: Array | None = None,
    seed: int = 0,
) -> Comparison:
    """Compares two models by their scores of the same tiles.

    Args:
        first: score of each tile by the first model, float64 (N,).
        second: by the second one, in the same order.
        higher_is_better: direction of the score.
        groups: see `resampled_means`.
        seed: of the resamples.
    """
    difference = second - first
    resampled = resampled_means(difference[:, None], groups, seed)[:, 0]
    return comparison(first, second, resampled, higher_is_better=higher_is_better)


def comparison(
    first: Array, second: Array, resampled: Array, *, higher_is_better: bool = True
) -> Comparison:
    """As `compare`, for a caller that has resampled the difference already, (RESAMPLES,)."""
    difference = second - first
    low, high = interval(resampled)
    better = resampled > 0
    if not higher_is_better:
        better = resampled < 0
    mean = float(difference.mean())
    return Comparison(
        first=float(first.mean()),
        second=float(second.mean()),
        difference=Estimate(mean, low, high),
        share_better=float(better.mean()),
        needed=_needed(mean, float(resampled.std()), len(difference)),
    )


def _needed(difference: float, error: float, tiles: int) -> int | None:
    """Number of tiles that would settle a difference.

    The standard error falls with the root of the number of tiles. The interval leaves 0 out in 80 %
    of the samples where the difference is SETTLED standard errors.

    Args:
        difference: mean over the tiles.
        error: its standard error.
        tiles: number of tiles.
    """
    if difference == 0:
        return None
    return max(1, math.ceil(tiles * (SETTLED * error / difference) ** 2))


def _units(values: Array, groups: Array | None) -> tuple[Array, Array]:
    """What is resampled: sums of values of each unit (U, M), and its number of tiles (U,)."""
    if groups is None:
        return values, np.ones(len(values), np.int64)
    _, unit = np.unique(groups, return_inverse=True)
    sizes = np.bincount(unit)
    sums = np.zeros((len(sizes), values.shape[1]))
    np.add.at(sums, unit, values)
    return sums, sizes
