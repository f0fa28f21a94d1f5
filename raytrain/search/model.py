"""A Gaussian process over chains of stages and their prefixes. No torch, no ray.

It hears the score of every finished stage and says what it expects of the ends of chains. The
covariance is that of `kernel`; regression and marginal likelihood are algorithm 2.1 of C. E.
Rasmussen and C. K. I. Williams 2006, "Gaussian Processes for Machine Learning".
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, cho_solve, cholesky, solve_triangular

from raytrain.search import kernel
from raytrain.search.chains import Axes, Chain
from raytrain.search.kernel import Hyperparameters
from raytrain.search.points import Array, Encoder, Gaps, Point, end
from raytrain.search.scores import Scale, scales_of

# Hyperparameters are fitted when this many scores are heard, and again whenever their number has
# grown by a tenth and two.
FIRST_FIT = 6
# Tries of a fit: drawn anew, then near the best one with ever smaller steps.
DRAWN_TRIES = 30
NEAR_TRIES = 20
WIDEST_STEP = 0.5
# Added to variances, so that points which are all but equal do not break the factorisation.
JITTER = 1e-8
# The level of the ends of chains, which all lists share.
ENDS = "ends"


@dataclass(frozen=True)
class Fit:
    """Hyperparameters, and the number of scores that they were fitted on."""

    scores: int
    hyperparameters: Hyperparameters


@dataclass(frozen=True, eq=False)
class Evidence:
    """What was heard, as a regression takes it.

    Attributes:
        points: N chains after some of their stages.
        values: their scores in standard units, float64 (N,).
        trainings: which of the points are the same training, and have the same noise, int64 (N,).
        scale: of the ends, which leads back to scores.
    """

    points: tuple[Point, ...]
    values: Array
    trainings: Array
    scale: Scale

    def believing(self, chains: Sequence[Chain], means: Array) -> Evidence:
        """Returns the same with ends that are not known yet, at the means that are expected.

        Args:
            chains: that are under way.
            means: of the scores of their ends, float64 (N,).
        """
        expected = (means - self.scale.centre) / self.scale.spread
        first = int(self.trainings.max()) + 1
        return Evidence(
            points=self.points + tuple(end(chain) for chain in chains),
            values=np.concatenate([self.values, expected]),
            trainings=np.concatenate([self.trainings, first + np.arange(len(chains))]),
            scale=self.scale,
        )


@dataclass(frozen=True, eq=False)
class Expected:
    """What is expected of the ends of N chains, as scores over all seeds.

    Attributes:
        mean: float64 (N,).
        sd: standard deviation of the error of the mean, float64 (N,).
    """

    mean: Array
    sd: Array


class Posterior:
    """What is expected after some evidence, with given hyperparameters."""

    def __init__(self, encoder: Encoder, evidence: Evidence, of: Hyperparameters) -> None:
        """Solves the regression.

        Args:
            encoder: of the points.
            evidence: what was heard.
            of: the hyperparameters.
        """
        self.evidence = evidence
        self._encoder = encoder
        self._of = of
        self._rows = encoder.rows(evidence.points)
        gaps = encoder.gaps(self._rows, self._rows)
        self._lower = _factor(gaps, evidence.trainings, of)
        self._weights = cho_solve((self._lower, True), evidence.values)

    def ends(self, chains: Sequence[Chain]) -> Expected:
        """Returns what is expected of the ends of chains."""
        return self.at([end(chain) for chain in chains])

    def at(self, points: Sequence[Point]) -> Expected:
        """Returns what is expected at points, in the units and around the mean of the ends."""
        rows = self._encoder.rows(points)
        cross = kernel.covariance(self._encoder.gaps(rows, self._rows), self._of)
        explained = solve_triangular(self._lower, cross.T, lower=True)
        left = kernel.variance(rows, self._of) - (explained**2).sum(axis=0)
        scale = self.evidence.scale
        mean = scale.centre + scale.spread * (cross @ self._weights)
        return Expected(mean, scale.spread * np.sqrt(np.maximum(left, JITTER)))

    def covariance(self, chains: Sequence[Chain]) -> Array:
        """Returns the covariance of the errors of the means of N ends, float64 (N, N)."""
        points = [end(chain) for chain in chains]
        rows = self._encoder.rows(points)
        cross = kernel.covariance(self._encoder.gaps(rows, self._rows), self._of)
        explained = solve_triangular(self._lower, cross.T, lower=True)
        prior = kernel.covariance(self._encoder.gaps(rows, rows), self._of)
        return np.asarray(self.evidence.scale.spread**2 * (prior - explained.T @ explained))


class Model:
    """Hears scores of stages, and fits itself to them now and then.

    What it answers is a function of the seed and of the scores in their order.
    """

    def __init__(self, axes: Axes, seed: int) -> None:
        """Starts without any score.

        Args:
            axes: the fields that a search draws.
            seed: of the tries of fits.
        """
        self._encoder = Encoder(axes)
        self._seed = seed
        self._points: list[Point] = []
        self._scores: list[float | None] = []
        # The place of each key in these lists.
        self._places: dict[str, int] = {}
        self._fit = Fit(0, kernel.usual())
        self._solved: Posterior | None = None

    @property
    def fit(self) -> Fit:
        """The hyperparameters in use, to be recorded."""
        self._fit_where_due()
        return self._fit

    def restore(self, fit: Fit) -> None:
        """Takes hyperparameters that were recorded, in place of the fits that led to them.

        Answers are those of the time when they were recorded, or later. A replay from the first
        proposal on fits anew instead.
        """
        self._fit = fit
        self._solved = None

    def hear(self, point: Point, score: float | None) -> None:
        """Takes the score of a finished stage. Only the first one of a key counts.

        Args:
            point: the chain after that stage.
            score: higher is better; None for a stage that diverged.
        """
        if point.key in self._places:
            return
        self._places[point.key] = len(self._points)
        self._points.append(point)
        self._scores.append(score)
        self._solved = None

    def posterior(self, chains: Sequence[Chain] = (), believed: Sequence[Chain] = ()) -> Posterior:
        """Returns what is expected now.

        Args:
            chains: that will be asked about. What they share with chains of other lists counts for
                them, too.
            believed: chains under way, which count as if their ends had the means expected.
        """
        self._fit_where_due()
        posterior = self._solve(self._twins([*chains, *believed]))
        if not believed:
            return posterior
        means = posterior.ends(believed).mean
        evidence = posterior.evidence.believing(believed, means)
        return Posterior(self._encoder, evidence, self._fit.hyperparameters)

    def _twins(self, chains: Sequence[Chain]) -> list[Point]:
        """Points of a list whose training was heard as one of another list: they have its key."""
        found: dict[tuple[str, str], Point] = {}
        for chain in (*(point.chain for point in self._points), *chains):
            for stages, key in enumerate(chain.keys, start=1):
                place = self._places.get(key)
                if place is None or self._points[place].chain.schedule == chain.schedule:
                    continue
                found.setdefault((key, chain.schedule), Point(chain, stages))
        return list(found.values())

    def _solve(self, twins: Sequence[Point]) -> Posterior:
        points = (*self._points, *twins)
        if self._solved is None or self._solved.evidence.points != points:
            evidence = self._evidence(len(self._points), twins)
            self._solved = Posterior(self._encoder, evidence, self._fit.hyperparameters)
        return self._solved

    def _evidence(self, count: int, twins: Sequence[Point]) -> Evidence:
        """The first scores, and what they are to chains of other lists."""
        points = (*self._points[:count], *twins)
        places = [self._places[point.key] for point in points]
        levels = [_level(point) for point in self._points[:count]]
        scales = scales_of(self._scores[:count], levels, ENDS)
        values = []
        for point, place in zip(points, places, strict=True):
            # A list that was not heard of at this level has no scale of its own there.
            scale = scales.get(_level(point), scales[levels[place]])
            values.append(scale.units(self._scores[place]))
        return Evidence(points, np.array(values), np.array(places), scales[ENDS])

    def _fit_where_due(self) -> None:
        """Goes through the fits that are due, each on the scores that were known when it was."""
        while True:
            count = next_fit(self._fit.scores)
            if count > len(self._points):
                return
            # Twins tell nothing new, and two lists with equal scores would look like no chance.
            evidence = self._evidence(count, ())
            rows = self._encoder.rows(evidence.points)
            gaps = self._encoder.gaps(rows, rows)
            rng = np.random.default_rng((self._seed, count))
            found = fitted(gaps, evidence.values, self._fit.hyperparameters, rng)
            self._fit = Fit(count, found)
            self._solved = None


def next_fit(scores: int) -> int:
    """Returns the number of scores at which the fit after one on so many scores is due."""
    if scores < FIRST_FIT:
        return FIRST_FIT
    return scores + scores // 10 + 2


def fitted(
    gaps: Gaps, values: Array, last: Hyperparameters, rng: np.random.Generator
) -> Hyperparameters:
    """Returns the hyperparameters with the highest posterior density among random tries.

    That is their marginal likelihood times what was thought of them before.

    Args:
        gaps: between the N points and themselves.
        values: scores in standard units, float64 (N,).
        last: the winner of the last fit, which is one of the tries.
        rng: of the tries.
    """
    best = last
    highest = _worth(gaps, values, last)
    for number in range(DRAWN_TRIES + NEAR_TRIES):
        if number < DRAWN_TRIES:
            tried = kernel.drawn(rng)
        else:
            left = (DRAWN_TRIES + NEAR_TRIES - number) / NEAR_TRIES
            tried = kernel.moved(best, rng, WIDEST_STEP * left)
        worth = _worth(gaps, values, tried)
        if worth > highest:
            best = tried
            highest = worth
    return best


def _worth(gaps: Gaps, values: Array, of: Hyperparameters) -> float:
    """What a fit makes as high as it can."""
    return log_likelihood(gaps, values, of) + kernel.log_prior(of)


def log_likelihood(gaps: Gaps, values: Array, of: Hyperparameters) -> float:
    """Returns the logarithm of the marginal likelihood of N values, float64 (N,).

    Equation 2.30 of Rasmussen and Williams. -inf where the covariance cannot be factorised.
    """
    try:
        lower = _factor(gaps, np.arange(len(values)), of)
    except LinAlgError:
        return float("-inf")
    whitened = solve_triangular(lower, values, lower=True, check_finite=False)
    constant = 0.5 * len(values) * np.log(2 * np.pi)
    return float(-0.5 * whitened @ whitened - np.log(np.diag(lower)).sum() - constant)


def _factor(gaps: Gaps, trainings: Array, of: Hyperparameters) -> Array:
    """The lower Cholesky factor of the covariance of scores with their noise, float64 (N, N)."""
    same = trainings[:, None] == trainings[None]
    total = kernel.covariance(gaps, of) + of.noise**2 * same
    total[np.diag_indices_from(total)] += JITTER
    return np.asarray(cholesky(total, lower=True, overwrite_a=True, check_finite=False))


def _level(point: Point) -> Hashable:
    """What the score of a point is compared with."""
    if point.ended:
        return ENDS
    return point.chain.schedule, point.stages
