"""Decides which trial of a search runs next, so that no stage is trained twice and none waits.

A trial is handed out only if no live trial is going to train the first stage that it lacks. A trial
that waits holds no CPU and no GPU. Once two chains differ, they never meet again: if nothing runs,
the first trial that waits lacks a stage that nobody trains, and can go. So nothing waits for ever.

The planner knows neither Ray nor torch. It is asked for trials, and told what became of them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from raytrain.errors import RaytrainError, StorageError
from raytrain.evaluation.score import Score
from raytrain.search.advice import Advisor
from raytrain.search.candidates import Candidates
from raytrain.search.failures import End, Failures, How
from raytrain.search.outcomes import Found, Outcomes, Shelf
from raytrain.search.supply import Limits, Reruns, Supply
from raytrain.search.table import Table, Trial

logger = logging.getLogger(__name__)

# Seconds until a trial is handed out again whose stage another search was faster to begin.
RETRY_S = 5.0
# The table is written so often before its storage counts as failed, with pauses of so many seconds.
SAVE_ATTEMPTS = 3
SAVE_AGAIN_S = 1.0
# So many drawn trials may wait for each that can run.
WAITING_PER_SLOT = 2


@dataclass(frozen=True)
class Parts:
    """What a planner works with.

    Attributes:
        table: of the search.
        candidates: where trials come from.
        advisor: proposes and stops them.
        shelf: the stages.
        limits: when the search is over.
        score: the objective.
        slots: how many trials can run at once; asked again and again.
        reruns: which finalists run again.
        clock: seconds.
    """

    table: Table
    candidates: Candidates
    advisor: Advisor
    shelf: Shelf
    limits: Limits
    score: Score
    slots: Callable[[], int]
    reruns: Reruns
    clock: Callable[[], float] = time.monotonic


class Planner:
    """Hands out trials and keeps the table.

    Attributes:
        parts: what it works with.
        live: numbers of the trials that were handed out and have not ended.
        stopped: name of the signal that stopped the search; empty where none did.
        error: that ends the search.
    """

    def __init__(self, parts: Parts) -> None:
        """Takes up a table, which an earlier attempt may have left."""
        self.parts = parts
        self.live: set[int] = set()
        self.stopped = ""
        self.error: RaytrainError | None = None
        # When a trial may be handed out again, by number.
        self.later: dict[int, float] = {}
        self._outcomes = Outcomes(parts.table, parts.advisor, parts.shelf, parts.score, parts.clock)
        self._failures = Failures(parts.shelf)
        self._supply = Supply(
            parts.table,
            parts.candidates,
            parts.advisor,
            parts.limits,
            parts.reruns,
            parts.slots,
        )
        self._began = parts.clock() - parts.table.seconds

    # Questions

    @property
    def seconds(self) -> float:
        """That the search has run, over all its attempts."""
        return self.parts.clock() - self._began

    @property
    def is_ending(self) -> bool:
        """Whether a signal or an error ends the search as soon as nothing runs."""
        return bool(self.stopped) or self.error is not None

    @property
    def is_over(self) -> bool:
        """Whether nothing runs, and nothing will be handed out any more."""
        if self.live:
            return False
        if self.is_ending:
            return True
        if self.parts.table.open_trials() or not self._supply.has_drawn_all(self.seconds):
            return False
        return not self._supply.wanted_reruns()

    def next_trial(self) -> Trial | None:
        """Returns a trial to run now, which counts as live from here; None if there is none."""
        if self.is_ending:
            return None
        try:
            return self._next_trial()
        except StorageError as error:
            self.fail(error)
            return None

    # Events

    def enter(self, trial: Trial) -> None:
        """Adds a trial to the table, with the outcomes of those of its stages that are there."""
        self.parts.table.trials.append(trial)
        # Before it is handed out: no draw is lost.
        self._save()
        self._outcomes.look_for(trial)
        if self._outcomes.advance(trial):
            self._save()

    def stage_done(self, number: int, stage: int, found: Found, *, trained: bool) -> bool:
        """Takes the outcome of a stage of a live trial.

        Args:
            number: of the trial.
            stage: its number in the trial, from 1. A trial reports all of its stages, also those
                that were known before it was handed out.
            found: the outcome.
            trained: whether the trial has trained the stage. False where it found it.

        Returns:
            Whether the trial ends here.
        """
        trial = self.parts.table.trials[number]
        if stage > len(trial.parts) and trial.is_open:
            trial.deaths = 0
            self._outcomes.take(trial, found, trained=trained)
            self._save()
        return not trial.is_open

    def ended(self, number: int, end: End) -> None:
        """Takes the end of a live trial, whatever ended it."""
        self.live.discard(number)
        trial = self.parts.table.trials[number]
        if not trial.is_open:
            self._failures.succeeded()
        elif end.how is How.TAKEN:
            self.later[number] = self.parts.clock() + RETRY_S
        elif end.how is How.FAILED:
            error = self._failures.failed(trial, end)
            if error is not None:
                self.fail(error)
        elif end.how is not How.SIGNALLED:
            # A trial that ends without its last outcome and without a word has died, too.
            error = self._failures.died(trial, end.reason or "its process ended without a word")
            if error is not None:
                self.fail(error)
        self._save()

    def stop(self, signal_name: str) -> None:
        """Hands out nothing more after a signal."""
        self.stopped = self.stopped or signal_name

    def fail(self, error: RaytrainError) -> None:
        """Hands out nothing more after an error that ends the search."""
        self.error = self.error or error

    # Handing out

    def _next_trial(self) -> Trial | None:
        self._outcomes.look(self.parts.table.waiting(self.live))
        for trial in self.parts.table.waiting(self.live):
            if self._outcomes.advance(trial):
                self._save()
        if len(self.live) >= self.parts.slots():
            return None
        # A table that could not be written hands out nothing.
        while not self.is_ending:
            for trial in self.parts.table.waiting(self.live):
                if self._may_go(trial):
                    self.live.add(trial.number)
                    return trial
            if not self._add_trials():
                break
        return None

    def _may_go(self, trial: Trial) -> bool:
        """Whether nobody is going to train the first stage that a trial lacks."""
        if self.later.get(trial.number, 0.0) > self.parts.clock():
            return False
        first = trial.keys[len(trial.parts)]
        if first in self._claimed():
            return False
        owner = self.parts.shelf.owner(first)
        if owner:
            self.later[trial.number] = self.parts.clock() + RETRY_S
            logger.info(f"trial {trial.number} waits: {owner} trains its next stage")
            return False
        return True

    def _claimed(self) -> set[str]:
        """Keys of the stages that live trials are going to train."""
        found: set[str] = set()
        for number in self.live:
            trial = self.parts.table.trials[number]
            found.update(trial.keys[len(trial.parts) :])
        return found

    # New trials

    def _add_trials(self) -> bool:
        """Draws another trial, or adds the reruns. Returns whether there may be new trials."""
        if len(self.parts.table.waiting(self.live)) >= WAITING_PER_SLOT * self.parts.slots():
            return False
        if not self._supply.has_drawn_all(self.seconds):
            trial = self._supply.draw(self._outcomes.known)
            if trial is not None:
                self.enter(trial)
            return True
        if self.parts.table.open_trials():
            return False
        wanted = self._supply.wanted_reruns()
        for number, seed in wanted:
            self.enter(self._supply.rerun(number, seed))
        return bool(wanted)

    def _save(self) -> None:
        """Writes the table. A storage that fails again and again ends the search."""
        self.parts.table.seconds = self.seconds
        for attempt in range(1, SAVE_ATTEMPTS + 1):
            try:
                self.parts.table.save()
                return
            except StorageError as error:
                if attempt == SAVE_ATTEMPTS:
                    self.fail(error)
                    return
                time.sleep(SAVE_AGAIN_S)
