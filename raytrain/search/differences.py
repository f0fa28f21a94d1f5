"""Differences of finalists with intervals that cover seeds and tiles. No torch, no ray.

Two sources of noise count. Another seed gives the same recipe another score. Other tiles would give
the same networks other scores. An interval over tiles alone knows nothing of the first one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t

from raytrain.evaluation import intervals
from raytrain.evaluation.intervals import Estimate
from raytrain.evaluation.metrics import Array
from raytrain.search import simultaneous
from raytrain.search.finalists import Finalist

# Of searches whose finalists are all equal, so many call none better than what it is compared with.
QUIET = 0.95


@dataclass(frozen=True, eq=False)
class Noise:
    """What is known about the noise of some finalists, in their order.

    Attributes:
        means: score of each finalist, mean over its reruns, float64 (F,).
        reruns: number of reruns of each, int64 (F,).
        seed_variance: of the score of one rerun, pooled over the finalists.
        seed_df: its degrees of freedom. With 0 nothing is known about it.
        resampled: mean scores over resampled tiles, the same tiles for all, float64
            (RESAMPLES, F); None for a score that is no mean over tiles.
        tile_df: degrees of freedom of the noise of tiles.
        controls: number of finalists that all others are compared with.
    """

    means: Array
    reruns: Array
    seed_variance: float
    seed_df: int
    resampled: Array | None
    tile_df: int
    controls: int

    @property
    def covers_tiles(self) -> bool:
        """Whether the intervals cover the noise of tiles."""
        return self.resampled is not None


def noise_of(
    finalists: Sequence[Finalist], controls: int, groups: Array | None = None, seed: int = 0
) -> Noise:
    """Estimates the noise from the reruns.

    Reruns of different recipes with the same seed count as independent. If they are alike, the
    intervals are wider than they must be.

    Args:
        finalists: each with a complete rerun.
        controls: see `Noise`.
        groups: group of each tile, (N,), see `intervals.resampled_means`.
        seed: of the resamples.

    Raises:
        DataError: fewer than two tiles or groups.
    """
    squares = 0.0
    degrees = 0
    for finalist in finalists:
        scores = finalist.scores
        squares += float(np.sum((scores - scores.mean()) ** 2))
        degrees += len(scores) - 1
    resampled, units = _resampled(finalists, groups, seed)
    return Noise(
        means=np.array([finalist.scores.mean() for finalist in finalists]),
        reruns=np.array([len(finalist.scores) for finalist in finalists]),
        seed_variance=squares / max(1, degrees),
        seed_df=degrees,
        resampled=resampled,
        tile_df=units - 1,
        controls=controls,
    )


def _resampled(
    finalists: Sequence[Finalist], groups: Array | None, seed: int
) -> tuple[Array | None, int]:
    """`Noise.resampled`, and the number of tiles or groups that were resampled."""
    columns = []
    for finalist in finalists:
        per_tile = finalist.mean_per_tile()
        if per_tile is None:
            return None, 1
        columns.append(per_tile)
    units = len(columns[0])
    if groups is not None:
        units = len(set(groups.tolist()))
    return intervals.resampled_means(np.stack(columns, axis=1), groups, seed), units


def difference(noise: Noise, first: int, second: int) -> Estimate:
    """Computes the score of one finalist less that of another one.

    The variance of the difference is s² (1/n + 1/m) + v. Here s² is the pooled variance of a rerun,
    n and m are the numbers of reruns, and v is the variance over resampled tiles. The degrees of
    freedom of the sum are those of F. E. Satterthwaite 1946, "An Approximate Distribution of
    Estimates of Variance Components". The interval is never narrower than the 95 % interval of
    Student's t. It is wider where several finalists are compared, see `simultaneous.quantile`.

    Args:
        noise: of all finalists.
        first: index of the finalist that is subtracted.
        second: index of the other one.

    Returns:
        The difference with its interval, which is infinite where the noise of seeds is unknown.
    """
    value = float(noise.means[second] - noise.means[first])
    if noise.seed_df == 0:
        return Estimate(value, -math.inf, math.inf)
    of_seeds = noise.seed_variance * (1 / noise.reruns[first] + 1 / noise.reruns[second])
    of_tiles = 0.0
    if noise.resampled is not None:
        of_tiles = float((noise.resampled[:, second] - noise.resampled[:, first]).var())
    error = math.sqrt(of_seeds + of_tiles)
    if error == 0:
        return Estimate(value, value, value)
    half = error * _width(noise, of_seeds, of_tiles)
    return Estimate(value, value - half, value + half)


def _width(noise: Noise, of_seeds: float, of_tiles: float) -> float:
    """Half of an interval in standard errors."""
    inverse = of_seeds**2 / noise.seed_df
    if of_tiles > 0:
        inverse += of_tiles**2 / noise.tile_df
    df = (of_seeds + of_tiles) ** 2 / inverse
    # Rounded down, so that equal quantiles are computed once.
    df = math.floor(10 * df) / 10
    several = simultaneous.quantile(QUIET, len(noise.means), noise.controls, df)
    return max(float(t.ppf(intervals.ENDS[1], df)), several)
