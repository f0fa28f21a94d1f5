"""How alike the scores of two chains are, before any is known. No torch, no ray.

A covariance over chains and their prefixes. It is a sum, in units of the spread of the ends:

    list       chains of the same list of stages
    level      the same number of stages of it
    shared     a smooth term for each field outside the stages
    rate       a smooth term for each field of each stage, damped for every stage that follows
    mix        a smooth term for all fields of a stage and of those before it together, damped alike

The smooth terms are squared exponentials, C. E. Rasmussen and C. K. I. Williams 2006, "Gaussian
Processes for Machine Learning", equation 4.9. The damping is that of an autoregression: what a
stage did is carried on by a factor, M. C. Kennedy and A. O'Hagan 2000, "Predicting the Output from
a Complex Computer Code When Fast Approximations Are Available".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raytrain.search.points import Array, Gaps, Rows


@dataclass(frozen=True)
class Hyperparameters:
    """Of the covariance. Amplitudes are standard deviations, in units of the spread of the ends.

    Attributes:
        list: amplitude of the term of a list.
        level: that of a number of stages of a list.
        shared: that of a field outside the stages.
        rate: that of a field of a stage.
        mix: that of the fields of a stage and of those before it together.
        length: distance of coordinates over which scores change; all of an ordered field is 1.
        carry: what is left of the effect of a stage after the next one, from 0 to 1.
        noise: standard deviation of a score around the mean over seeds.
    """

    list: float
    level: float
    shared: float
    rate: float
    mix: float
    length: float
    carry: float
    noise: float


# What is thought of hyperparameters before any score: the median, and the standard deviation of the
# logarithm. Rates are expected to add up, so that few scores teach much; many scores can tell more.
PRIORS = {
    "list": (0.4, 0.6),
    "level": (0.3, 0.7),
    "shared": (0.3, 0.8),
    "rate": (1.2, 0.7),
    "mix": (0.3, 0.7),
    "length": (0.6, 0.5),
    "carry": (0.5, 0.5),
    "noise": (0.3, 0.6),
}
# A stage does not weigh more than it did when it was trained.
MOST_CARRY = 1.0


def usual() -> Hyperparameters:
    """Returns the medians."""
    return Hyperparameters(**{name: median for name, (median, _) in PRIORS.items()})


def drawn(rng: np.random.Generator) -> Hyperparameters:
    """Returns hyperparameters drawn from what is thought of them before any score."""
    values = {}
    for name, (median, spread) in PRIORS.items():
        values[name] = median * float(np.exp(spread * rng.normal()))
    return _limited(values)


def moved(origin: Hyperparameters, rng: np.random.Generator, step: float) -> Hyperparameters:
    """Returns others near them: each is multiplied by a lognormal number.

    Args:
        origin: where to start.
        rng: of the draw.
        step: standard deviation of the logarithms, in those of the priors.
    """
    values = {}
    for name, (_, spread) in PRIORS.items():
        values[name] = getattr(origin, name) * float(np.exp(step * spread * rng.normal()))
    return _limited(values)


def log_prior(of: Hyperparameters) -> float:
    """Returns the logarithm of the density of their logarithms, apart from a constant."""
    total = 0.0
    for name, (median, spread) in PRIORS.items():
        total -= 0.5 * (np.log(getattr(of, name) / median) / spread) ** 2
    return total


def _limited(values: dict[str, float]) -> Hyperparameters:
    values["carry"] = min(values["carry"], MOST_CARRY)
    return Hyperparameters(**values)


def covariance(gaps: Gaps, of: Hyperparameters) -> Array:
    """Returns the covariance of the scores of A and B points without noise, float64 (A, B)."""
    total = of.list**2 * gaps.lists + of.level**2 * gaps.levels
    decay = -0.5 / of.length**2
    for squared in gaps.shared:
        total += of.shared**2 * np.exp(decay * squared)
    for stage, both in enumerate(gaps.both):
        alike = of.mix**2 * np.exp(decay * gaps.trail[stage])
        for squared, present in zip(gaps.fields[stage], gaps.present[stage], strict=True):
            alike += of.rate**2 * present * np.exp(decay * squared)
        total += both * of.carry ** gaps.later[stage] * alike
    return np.asarray(total)


def variance(rows: Rows, of: Hyperparameters) -> Array:
    """Returns the variance of the scores of P points without noise, float64 (P,).

    It is the diagonal of the covariance.
    """
    _, depth, _ = rows.fields.shape
    total = np.full(len(rows.stages), of.list**2 + of.level**2)
    total += of.shared**2 * rows.shared.shape[1]
    for stage in range(depth):
        reached = rows.stages > stage
        later = np.maximum(rows.stages - stage - 1, 0)
        own = of.mix**2 + of.rate**2 * rows.present[:, stage].sum(axis=1)
        total += reached * of.carry ** (2 * later) * own
    return np.asarray(total)
