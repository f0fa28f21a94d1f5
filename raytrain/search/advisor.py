"""What to train next, by the model over chains and their prefixes. No torch, no ray."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from scipy.special import ndtr

from raytrain.search.advice import FieldWorth, Proposal, Source, Verdict, drawn_anew
from raytrain.search.chains import Chain
from raytrain.search.model import Fit, Model
from raytrain.search.points import Array, Point
from raytrain.search.record import Record
from raytrain.search.regression import Expected
from raytrain.search.worth import worth_of_fields

# Chains that are drawn before the model proposes any.
FIRST_DRAWS = 8
# With fewer finished chains, there is nothing to improve on.
LEAST_TO_COMPARE = 2
# With fewer finished chains, the best end is too uncertain to stop another one.
LEAST_FINISHED = 4
# Candidates of a proposal: so many random ones, and as many neighbours of the best chains.
CANDIDATES = 100
BEST_CHAINS = 5
# A chain stops if its mean and so many standard deviations lie below the best mean.
PATIENCE = 1.0
# Improvement is worth its cost to this power. Every chain counts as a little dearer than it is: one
# whose stages are nearly all trained is no bargain if it promises next to nothing.
COST_POWER = 0.5
LEAST_COST = 0.08


class ModelAdvisor:
    """Proposes the chain that promises most for its cost, and stops those that promise too little.

    It answers the questions of `Advisor`.
    """

    def __init__(self, source: Source, seed: int) -> None:
        """Starts without any outcome.

        Args:
            source: where chains come from.
            seed: of the draws and of the fits of the model.
        """
        self._source = source
        self._seed = seed
        self._record = Record()
        self._model = Model(source.axes, seed)

    @property
    def fit(self) -> Fit:
        """The hyperparameters of the model, to be recorded."""
        return self._model.fit

    def restore(self, fit: Fit) -> None:
        """Takes hyperparameters that were recorded, which spares the fits that led to them."""
        self._model.restore(fit)

    def hear(self, chain: Chain, stages: int, score: float | None) -> None:
        """Takes the outcome of a stage, see `Advisor.hear`."""
        self._record.hear(chain, stages, score)
        self._model.hear(Point(chain, stages), score)
        if score is None and stages < chain.length:
            # The chain goes no further: its end counts as the worst one.
            self._model.hear(Point(chain, chain.length), None)

    def propose(
        self,
        number: int,
        under_way: Sequence[Chain],
        taken: Collection[str],
        trained: Collection[str],
    ) -> Proposal | None:
        """Returns the chain that promises most for what it costs; see `Advisor.propose`.

        The first ones are random draws.
        """
        rng = np.random.default_rng((self._seed, number))
        finished = self._record.finished
        if len(taken) < FIRST_DRAWS or len(finished) < LEAST_TO_COMPARE:
            chain = drawn_anew(self._source, rng, lambda one: self._record.closed(one, taken))
            if chain is None:
                return None
            return Proposal(chain, chain.cost_left(trained))
        candidates = self._candidates(rng, taken)
        if not candidates:
            return None
        return self._most_promising(candidates, finished, under_way, trained)

    def verdict(self, chain: Chain, stages: int) -> Verdict:
        """Stops a chain that is not likely to become the best one; see `Advisor.verdict`."""
        finished = self._record.finished
        if stages == chain.length or len(finished) < LEAST_FINISHED:
            return Verdict(stop=False)
        ends = self._model.posterior([chain, *finished]).ends([chain, *finished])
        mean = float(ends.mean[0])
        sd = float(ends.sd[0])
        best = float(ends.mean[1:].max())
        return Verdict(_highest_hope(mean, sd) < best, mean, sd, best)

    def finalists(self, count: int) -> list[Chain]:
        """Returns the finished chains with the highest means, the best one first.

        A mean hears of a chain's neighbours, too; the highest score is often the luckiest one.
        """
        return self._ranked()[:count]

    def field_worth(self) -> list[FieldWorth]:
        """Returns what each field of the best chain is worth; none before a chain is finished."""
        best = self.finalists(1)
        if not best:
            return []
        return worth_of_fields(self._model.posterior(), self._source.axes, best[0])

    def noise(self) -> float | None:
        """Returns the standard deviation of the score of a chain over seeds, as the model sees it;
        None before two chains are finished."""
        if len(self._record.finished) < 2:
            return None
        spread = self._model.posterior().evidence.scale.spread
        return self._model.fit.hyperparameters.noise * spread

    def _ranked(self) -> list[Chain]:
        """The finished chains, that with the highest mean first."""
        finished = self._record.finished
        if not finished:
            return []
        means = self._model.posterior(finished).ends(finished).mean
        return [finished[place] for place in np.argsort(-means, kind="stable")]

    def _candidates(self, rng: np.random.Generator, taken: Collection[str]) -> list[Chain]:
        """Random chains and neighbours of the best ones, none twice."""
        best = self._ranked()[:BEST_CHAINS]
        found: dict[str, Chain] = {}
        for _ in range(CANDIDATES):
            origin = best[rng.integers(len(best))]
            for chain in (self._source.draw(rng), self._source.near(origin, rng)):
                if chain is not None and not self._record.closed(chain, taken):
                    found[chain.keys[-1]] = chain
        if not found:
            # The neighbourhood is used up, and perhaps the space.
            chain = drawn_anew(self._source, rng, lambda one: self._record.closed(one, taken))
            if chain is not None:
                return [chain]
        return list(found.values())

    def _most_promising(
        self,
        candidates: list[Chain],
        finished: list[Chain],
        under_way: Sequence[Chain],
        trained: Collection[str],
    ) -> Proposal:
        posterior = self._model.posterior([*candidates, *finished], under_way)
        ends = posterior.ends(candidates)
        best = float(posterior.ends([*finished, *under_way]).mean.max())
        improvement = expected_improvement(ends.mean, ends.sd, best)
        costs = np.array([chain.cost_left(trained) for chain in candidates])
        worth = improvement / (costs + LEAST_COST) ** COST_POWER
        hopeless = self._hopeless(candidates, ends, float(posterior.ends(finished).mean.max()))
        if not hopeless.all():
            worth = np.where(hopeless, -np.inf, worth)
        place = int(np.argmax(worth))
        return Proposal(
            chain=candidates[place],
            cost_left=float(costs[place]),
            mean=float(ends.mean[place]),
            sd=float(ends.sd[place]),
            best=best,
            improvement=float(improvement[place]),
            to_end=bool(hopeless[place]),
        )

    def _hopeless(self, candidates: list[Chain], ends: Expected, best: float) -> Array:
        """Which chains a verdict would stop before they have trained anything, bool (N,).

        Their first stage is known already. Such a trial would be a row of the table and nothing
        else. Where nothing better is left, one of them is trained to its end.

        Args:
            candidates: chains.
            ends: what is expected of their ends.
            best: highest mean of a finished chain.
        """
        if len(self._record.finished) < LEAST_FINISHED:
            return np.zeros(len(candidates), dtype=bool)
        begun = np.array([self._record.begun(chain) for chain in candidates])
        return np.asarray(begun & (_highest_hope(ends.mean, ends.sd) < best))


def _highest_hope(mean: Any, sd: Any) -> Any:
    """Below the best mean, it stops a chain: floats, or float64 (N,)."""
    return mean + PATIENCE * sd


def expected_improvement(mean: Array, sd: Array, best: float) -> Array:
    """Returns the expectation of max(score - best, 0) of normal scores, float64 (N,).

    D. R. Jones, M. Schonlau and W. J. Welch 1998, "Efficient Global Optimization of Expensive
    Black-Box Functions", equation 15.

    Args:
        mean: of the scores, float64 (N,).
        sd: their standard deviations, above 0, float64 (N,).
        best: what is to be surpassed.
    """
    gain = mean - best
    ratio = gain / sd
    density = np.exp(-0.5 * ratio**2) / np.sqrt(2 * np.pi)
    return np.asarray(gain * ndtr(ratio) + sd * density)
