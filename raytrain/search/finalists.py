"""The finalists of a search and the scores of their reruns. No torch, no ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from raytrain.evaluation.metrics import Array

# How many of the best trials run again, beside the given recipe.
BEST = 3


@dataclass(frozen=True, eq=False)
class Rerun:
    """A finalist that was trained again with a fresh seed.

    Attributes:
        score: on all tiles, under a decision that was fitted elsewhere.
        per_tile: scores of single tiles whose mean is the score, float64 (N,), in the same order
            for all finalists; None for a score that is no mean over tiles.
    """

    score: float
    per_tile: Array | None = None


def rerun_of(per_tile: Array) -> Rerun:
    """Returns the rerun whose score is the mean of scores of single tiles, (N,)."""
    return Rerun(float(per_tile.mean()), per_tile)


@dataclass(frozen=True, eq=False)
class Finalist:
    """A trial whose reruns decide whether it wins.

    Attributes:
        number: of the trial.
        name: for people, such as "trial 7" or "the given recipe".
        cost: of its chain, where the given recipe costs 1.
        given: whether it is the given recipe.
        reruns: the complete ones, by seed.
        diverged: seeds of those whose training diverged.
        first: its score in the search; of no use but where nothing was trained again.
    """

    number: int
    name: str
    cost: float
    given: bool = False
    reruns: Mapping[int, Rerun] = field(default_factory=dict)
    diverged: frozenset[int] = frozenset()
    first: float | None = None

    @property
    def scores(self) -> Array:
        """Scores of the complete reruns, float64 (R,)."""
        return np.array([rerun.score for rerun in self.reruns.values()], np.float64)

    def has_ended(self, seed: int) -> bool:
        """Returns whether the rerun with a seed is complete or diverged."""
        return seed in self.reruns or seed in self.diverged

    def mean_per_tile(self) -> Array | None:
        """Returns the mean over reruns of the score of each tile, (N,); None without such."""
        found = []
        for rerun in self.reruns.values():
            if rerun.per_tile is None:
                return None
            found.append(rerun.per_tile)
        mean: Array = np.mean(found, axis=0)
        return mean
