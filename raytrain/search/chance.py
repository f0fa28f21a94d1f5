"""A search by random draws alone: `--search random`. No torch, no ray."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from raytrain.search.advice import Proposal, Source, Verdict, drawn_anew
from raytrain.search.chains import Chain
from raytrain.search.record import Record


class RandomAdvisor:
    """Draws chains and stops none. Its finalists are those with the highest scores.

    It answers the questions of `Advisor`.
    """

    def __init__(self, source: Source, seed: int) -> None:
        """Starts without any outcome.

        Args:
            source: where chains come from.
            seed: of the draws.
        """
        self._source = source
        self._seed = seed
        self._record = Record()

    def hear(self, chain: Chain, stages: int, score: float | None) -> None:
        """Takes the outcome of a stage, see `Advisor.hear`."""
        self._record.hear(chain, stages, score)

    def propose(
        self,
        number: int,
        under_way: Sequence[Chain],
        taken: Collection[str],
        trained: Collection[str],
    ) -> Proposal | None:
        """Returns a random chain that was not proposed before; see `Advisor.propose`."""
        rng = np.random.default_rng((self._seed, number))
        chain = drawn_anew(self._source, rng, lambda one: self._record.closed(one, taken))
        if chain is None:
            return None
        return Proposal(chain, chain.cost_left(trained))

    def verdict(self, chain: Chain, stages: int) -> Verdict:
        """Lets every chain go on."""
        return Verdict(stop=False)

    def finalists(self, count: int) -> list[Chain]:
        """Returns the finished chains with the highest scores, the best one first."""
        ends = self._record.ends
        ranked = sorted(self._record.finished, key=lambda chain: ends[chain.keys[-1]], reverse=True)
        return ranked[:count]
