"""What an advisor of a search is asked and what it answers. No torch, no ray."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from raytrain.search.chains import Axes, Chain
from raytrain.search.points import Array

# Draws after which a space counts as used up, where each was taken already.
MOST_DRAWS = 1000


@dataclass(frozen=True)
class Source:
    """Where chains come from.

    Attributes:
        axes: the fields that are drawn.
        draw: returns a random chain; None if it finds none.
        near: returns a neighbour of a chain; None if it finds none.
    """

    axes: Axes
    draw: Callable[[np.random.Generator], Chain | None]
    near: Callable[[Chain, np.random.Generator], Chain | None]


@dataclass(frozen=True)
class Proposal:
    """A chain to train, and why.

    Attributes:
        chain: the chain.
        cost_left: of its stages that are not trained, where the whole given recipe costs 1.
        mean: score that is expected of its end; None for a random draw.
        sd: standard deviation of that; None for a random draw.
        best: highest mean of a finished chain; None for a random draw.
        improvement: expected gain over the best one, in the units of the score; None likewise.
        to_end: whether no verdict stops it, since nothing better was left.
    """

    chain: Chain
    cost_left: float
    mean: float | None = None
    sd: float | None = None
    best: float | None = None
    improvement: float | None = None
    to_end: bool = False


@dataclass(frozen=True)
class Verdict:
    """Whether a chain stops at the end of a stage, and why.

    Attributes:
        stop: whether it does.
        mean: score that is expected of its end; None where nothing is judged.
        sd: standard deviation of that; None likewise.
        best: highest mean of a finished chain; None likewise.
    """

    stop: bool
    mean: float | None = None
    sd: float | None = None
    best: float | None = None


@dataclass(frozen=True, eq=False)
class FieldWorth:
    """What the choice of a field changes, with all others as in the best chain.

    Attributes:
        schedule: the list of stages that the best chain has.
        path: of the field.
        levels: coordinates, float64 (N,).
        mean: score of the end that is expected at each, float64 (N,).
        sd: standard deviation of that, float64 (N,).
        worth: the highest mean - the lowest.
        worth_sd: standard deviation of that difference.
    """

    schedule: str
    path: str
    levels: Array
    mean: Array
    sd: Array
    worth: float
    worth_sd: float


class Advisor(Protocol):
    """Proposes chains, stops them and names the best ones.

    Each answer is a function of the seed, of what was heard in its order, and of the arguments. So
    a search that was recorded is replayed to the same proposals and verdicts.
    """

    def hear(self, chain: Chain, stages: int, score: float | None) -> None:
        """Takes the outcome of a stage, whoever trained it.

        Args:
            chain: a chain that goes through the stage.
            stages: the number of the stage, from 1.
            score: higher is better; None for a stage that diverged.
        """

    def propose(
        self,
        number: int,
        under_way: Sequence[Chain],
        taken: Collection[str],
        trained: Collection[str],
    ) -> Proposal | None:
        """Returns the next chain; None if none is left.

        Args:
            number: of the proposal in the search. No two have the same.
            under_way: chains that were proposed and have not come to an end.
            taken: keys of the last stages of all chains that were proposed.
            trained: keys of stages that cost nothing: trained ones, and those that others train.
        """

    def verdict(self, chain: Chain, stages: int) -> Verdict:
        """Says whether a chain stops after a stage whose outcome was heard.

        Args:
            chain: the chain.
            stages: the number of the stage, from 1.
        """

    def finalists(self, count: int) -> list[Chain]:
        """Returns the best finished chains, the best one first; at most so many."""


def drawn_anew(
    source: Source, rng: np.random.Generator, closed: Callable[[Chain], bool]
) -> Chain | None:
    """Returns a random chain that is not closed; None if MOST_DRAWS give none.

    Args:
        source: where it comes from.
        rng: of the draws.
        closed: whether a chain cannot be proposed.
    """
    for _ in range(MOST_DRAWS):
        chain = source.draw(rng)
        if chain is not None and not closed(chain):
            return chain
    return None
