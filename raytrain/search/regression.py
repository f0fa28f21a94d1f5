"""Gaussian process regression over points of chains. No torch, no ray.

Algorithm 2.1 of C. E. Rasmussen and C. K. I. Williams 2006, "Gaussian Processes for Machine
Learning", with the covariance of `kernel`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, cho_solve, cholesky, solve_triangular

from raytrain.search import kernel
from raytrain.search.chains import Chain
from raytrain.search.kernel import Hyperparameters
from raytrain.search.points import Array, Encoder, Gaps, Point, end
from raytrain.search.scores import Scale

# Added to variances, so that points which are all but equal do not break the factorisation.
JITTER = 1e-8


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
