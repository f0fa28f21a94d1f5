"""Where the trials of a search come from: draws until the limits are reached, then reruns.

No torch, no ray.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from raytrain.search.advice import Advisor
from raytrain.search.candidates import Candidates, chain_of
from raytrain.search.chains import Chain
from raytrain.search.forecast import seconds_of_reruns
from raytrain.search.table import Kind, Table, Trial

logger = logging.getLogger(__name__)

# Numbers and seeds of the trials to run again, from the table; empty when the reruns are complete.
Reruns = Callable[[Table], Sequence[tuple[int, int]]]


@dataclass(frozen=True)
class Limits:
    """When a search is over.

    Attributes:
        num_samples: number of trials, the given recipe and tried ones among them, reruns not.
        budget_s: seconds that the search may take, reruns included; None for any.
        reruns: how often each finalist runs again.
    """

    num_samples: int
    budget_s: float | None = None
    reruns: int = 0


class Supply:
    """Makes trials. The caller adds them to the table."""

    def __init__(
        self,
        table: Table,
        candidates: Candidates,
        advisor: Advisor,
        limits: Limits,
        reruns: Reruns,
        slots: Callable[[], int],
    ) -> None:
        """Takes up a table, which an earlier attempt may have left.

        Args:
            table: of the search.
            candidates: makes trials of draws.
            advisor: proposes them.
            limits: when the search is over.
            reruns: which finalists run again.
            slots: how many trials run at once.
        """
        self._table = table
        self._candidates = candidates
        self._advisor = advisor
        self._limits = limits
        self._reruns = reruns
        self._slots = slots
        self._exhausted = False
        for trial in table.trials:
            candidates.remember(trial)

    def has_drawn_all(self, seconds: float) -> bool:
        """Returns whether no trial is drawn any more.

        Args:
            seconds: that the search has run.
        """
        if self._exhausted:
            return True
        if self._limits.budget_s is not None:
            reruns = seconds_of_reruns(self._table, self._limits.reruns, self._slots())
            if seconds + reruns >= self._limits.budget_s:
                return True
        drawn = self._table.of_kind(Kind.GIVEN, Kind.TRIED, Kind.DRAWN)
        return len(drawn) >= self._limits.num_samples

    def draw(self, trained: Collection[str]) -> Trial | None:
        """Draws the next trial; None if the space is used up.

        Args:
            trained: keys of the stages that are trained.
        """
        table = self._table
        number = len(table.trials)
        taken = {trial.keys[-1] for trial in table.trials}
        costs_nothing = set(trained)
        for trial in table.open_trials():
            costs_nothing.update(trial.keys)
        proposal = self._advisor.propose(number, self._under_way(), taken, costs_nothing)
        if proposal is None:
            self._exhausted = True
            logger.info("the space is used up: a thousand draws gave no new trial of allowed cost")
            return None
        draw = self._candidates.draw_of(proposal.chain)
        trial = self._candidates.trial(number, Kind.DRAWN, draw)
        trial.heard = len(table.heard)
        trial.gain = proposal.improvement
        trial.to_end = proposal.to_end
        return trial

    def wanted_reruns(self) -> Sequence[tuple[int, int]]:
        """Returns the numbers and seeds of trials to run again; none if these are complete."""
        return self._reruns(self._table)

    def rerun(self, number: int, seed: int) -> Trial:
        """Returns a trial that repeats another one with a fresh seed."""
        return self._candidates.rerun(len(self._table.trials), self._table.trials[number], seed)

    def _under_way(self) -> list[Chain]:
        found = []
        for trial in self._table.open_trials():
            chain = chain_of(trial)
            if chain is not None and trial.kind is not Kind.RERUN:
                found.append(chain)
        return found
