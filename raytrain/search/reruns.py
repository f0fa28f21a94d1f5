"""Which reruns of the finalists are needed. No torch, no ray.

    still_to_train(finalists, how)   those that are needed and have not ended

A finalist that is clearly worse after its first rerun gets no second one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t

from raytrain.evaluation import intervals
from raytrain.evaluation.metrics import Array
from raytrain.evaluation.score import Score
from raytrain.search.finalists import Finalist

# Costs that differ by less are equal except for the order of summation.
_DIGITS_OF_COST = 9


@dataclass(frozen=True, eq=False)
class Reading:
    """How reruns are read.

    Attributes:
        score: what is compared, and its direction.
        seeds: of the reruns, in the order in which they are trained.
        groups: group of each tile, (N,), such as its scene; None if every tile counts on its own.
        resample_seed: of the resampled tiles.
    """

    score: Score
    seeds: tuple[int, ...]
    groups: Array | None = None
    resample_seed: int = 0


def still_to_train(finalists: Sequence[Finalist], how: Reading) -> list[tuple[int, int]]:
    """Returns the reruns that are known to be needed and have not ended.

    All get a first rerun. The given recipe and the cheapest finalist get all others too, since the
    others are compared with them. Each other one gets them only when all first reruns have ended
    and it is not clearly worse. A finalist that diverged gets no more.

    Args:
        finalists: the most promising first.
        how: the seeds, and the direction of the score.

    Returns:
        (number of the trial, seed), the most urgent first.
    """
    needed = []
    for round_number, seed in enumerate(how.seeds):
        for finalist in finalists:
            if finalist.diverged or finalist.has_ended(seed):
                continue
            if round_number == 0 or _goes_on(finalist, finalists, how):
                needed.append((finalist.number, seed))
    return needed


def _goes_on(finalist: Finalist, finalists: Sequence[Finalist], how: Reading) -> bool:
    """Whether it is certain that a finalist gets more than its first rerun."""
    if finalist in controls(finalists):
        return True
    first = how.seeds[0]
    if not all(other.has_ended(first) for other in finalists):
        return False
    return not is_clearly_worse(finalist, finalists, how)


def is_clearly_worse(finalist: Finalist, finalists: Sequence[Finalist], how: Reading) -> bool:
    """Returns whether a finalist is clearly worse than the others after the first rerun of all.

    One rerun each says nothing of the noise within a finalist. So the scatter of the others stands
    for it, and real differences among them only make the test stricter. The finalist is clearly
    worse below the 95 % interval for one more score of the same kind as the others:
    m ± t s √(1 + 1/n), with n - 1 degrees of freedom.

    The given recipe and the cheapest finalist never are: the others are compared with them.
    """
    seed = how.seeds[0]
    if seed not in finalist.reruns:
        return False
    if finalist in controls(finalists):
        return False
    others = []
    for other in finalists:
        if other is not finalist and seed in other.reruns:
            others.append(other.reruns[seed].score)
    if len(others) < 2:
        return False
    scatter = float(np.std(others, ddof=1)) * math.sqrt(1 + 1 / len(others))
    half = float(t.ppf(intervals.ENDS[1], len(others) - 1)) * scatter
    behind = float(np.mean(others)) - finalist.reruns[seed].score
    if not how.score.higher_is_better:
        behind = -behind
    return behind > half


def controls(finalists: Sequence[Finalist]) -> list[Finalist]:
    """Returns those that all others are compared with: the given recipe and the cheapest one.

    Those that diverged do not count.
    """
    trained = [finalist for finalist in finalists if not finalist.diverged]
    found = [finalist for finalist in trained if finalist.given]
    if trained:
        least = cheapest(trained)
        if not least.given:
            found.append(least)
    return found


def cheapest(finalists: Sequence[Finalist]) -> Finalist:
    """Returns the cheapest one; of equally cheap ones the given recipe, then the first."""
    return min(finalists, key=lambda one: (round(one.cost, _DIGITS_OF_COST), not one.given))
