"""Hyperparameters from scores: when they are fitted, and how. No torch, no ray."""

from __future__ import annotations

import numpy as np

from raytrain.search import kernel
from raytrain.search.kernel import Hyperparameters
from raytrain.search.points import Array, Gaps
from raytrain.search.regression import log_likelihood

# Hyperparameters are fitted when this many scores are heard, and again whenever their number has
# grown by a tenth and two.
FIRST_FIT = 6
# Tries of a fit: drawn anew, then near the best one with ever smaller steps.
DRAWN_TRIES = 30
NEAR_TRIES = 20
WIDEST_STEP = 0.5


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
