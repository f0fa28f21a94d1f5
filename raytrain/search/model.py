"""The model of a search: it hears scores of stages and says what it expects of the ends of chains.

No torch, no ray.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from raytrain.search import kernel
from raytrain.search.chains import Axes, Chain
from raytrain.search.fitting import fitted, next_fit
from raytrain.search.kernel import Hyperparameters
from raytrain.search.points import Encoder, Point
from raytrain.search.regression import Evidence, Posterior
from raytrain.search.scores import scales_of

# The level of the ends of chains, which all lists share.
ENDS = "ends"


@dataclass(frozen=True)
class Fit:
    """Hyperparameters, and the number of scores that they were fitted on."""

    scores: int
    hyperparameters: Hyperparameters


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


def _level(point: Point) -> Hashable:
    """What the score of a point is compared with."""
    if point.ended:
        return ENDS
    return point.chain.schedule, point.stages
