"""Decides which trial of a search runs next, so that no stage is trained twice and none waits.

A trial is handed out only if no live trial is going to train the first stage that it lacks. A trial
that waits holds no CPU and no GPU. Once two chains differ, they never meet again: if nothing runs,
the first trial that waits lacks a stage that nobody trains, and can go. So nothing waits for ever.

The planner knows neither Ray nor torch. It is asked for trials, and told what became of them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from raytrain.errors import RaytrainError, StorageError
from raytrain.evaluation.score import Score
from raytrain.search.advice import Advisor
from raytrain.search.candidates import Candidates, chain_of
from raytrain.search.chains import Chain
from raytrain.search.space import Draw
from raytrain.search.table import Heard, Kind, Part, State, Table, Trial, Verdict

logger = logging.getLogger(__name__)

# Seconds between two looks at what other searches have trained.
LOOK_EVERY_S = 5.0
# Seconds until a trial is handed out again whose stage another search was faster to begin.
RETRY_S = 5.0
# A trial is given up after so many deaths of its process without a newer checkpoint.
MOST_DEATHS = 3
# So many failures in a row with the same reason end the search.
SAME_FAILURES = 3
# The table is written so often before its storage counts as failed, with pauses of so many seconds.
SAVE_ATTEMPTS = 3
SAVE_AGAIN_S = 1.0
# So many drawn trials may wait for each that can run.
WAITING_PER_SLOT = 2


@dataclass(frozen=True)
class Found:
    """The outcome of a stage.

    Attributes:
        score: the objective; None where it diverged or found no memory.
        seconds: that its training took.
        reason: why it has no score.
        state: of a trial that ends with it.
    """

    score: float | None
    seconds: float
    reason: str = ""
    state: State = State.DIVERGED


class Shelf(Protocol):
    """The stages in the storage, which other searches train too."""

    def outcome(self, key: str, name: str) -> Found | None:
        """Returns the outcome of a stage; None where it has none, or its checkpoint is gone.

        Args:
            key: of the stage.
            name: of its checkpoint.
        """

    def owner(self, key: str) -> str:
        """Returns who trains a stage now, in words; empty where nobody does."""

    def reached(self, key: str) -> Any:
        """Returns how far the newest checkpoint of a stage is; later ones compare as greater."""


class How(Enum):
    """How a trial that was handed out has ended."""

    DONE = "done"  # with its last report
    TAKEN = "taken"  # another process trains its next stage
    SIGNALLED = "signalled"  # a signal stopped it, with a checkpoint
    FAILED = "failed"  # with an error that the next attempt would repeat
    DIED = "died"  # its process ended


@dataclass(frozen=True)
class End:
    """The end of a trial that was handed out.

    Attributes:
        how: see there.
        reason: in words.
        error: that it failed with.
    """

    how: How
    reason: str = ""
    error: RaytrainError | None = None


@dataclass(frozen=True)
class Limits:
    """When a search is over.

    Attributes:
        num_samples: number of trials, the given recipe and tried ones among them, reruns not.
        budget_s: seconds that the search may take, reruns included; None for any.
    """

    num_samples: int
    budget_s: float | None = None


# Numbers and seeds of the trials to run again, from the table; empty when the reruns are complete.
Reruns = Callable[[Table], Sequence[tuple[int, int]]]


@dataclass
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


@dataclass
class Progress:
    """What a planner knows beside the table.

    Attributes:
        live: numbers of the trials that were handed out and have not ended.
        known: outcomes of stages by key.
        heard: keys of the outcomes that the advisor has heard.
        later: when a trial may be handed out again, by number.
        reached: how far the stage of a trial was when its process died last, by number.
        reasons: of the last failures in a row.
        exhausted: why no further trial can be drawn; empty while it can.
        stopped: name of the signal that stopped the search.
        error: that ends the search.
    """

    live: set[int] = field(default_factory=set)
    known: dict[str, Found] = field(default_factory=dict)
    heard: set[str] = field(default_factory=set)
    later: dict[int, float] = field(default_factory=dict)
    reached: dict[int, Any] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    exhausted: str = ""
    stopped: str = ""
    error: RaytrainError | None = None


class Planner:
    """Hands out trials and keeps the table."""

    def __init__(self, parts: Parts) -> None:
        """Takes up a table, which an earlier attempt may have left.

        Args:
            parts: what it works with.
        """
        self.parts = parts
        self.now = Progress()
        self._began = parts.clock() - parts.table.seconds
        self._looked = float("-inf")
        for trial in parts.table.trials:
            parts.candidates.remember(trial)
        for heard in parts.table.heard:
            self._tell(parts.table.trials[heard.trial], heard.stage, heard.score)

    # Questions

    @property
    def is_over(self) -> bool:
        """Whether nothing runs, and nothing will be handed out any more."""
        if self.now.live:
            return False
        if self.is_ending:
            return True
        return not self.parts.table.open_trials() and self._has_drawn_all() and not self._wanted()

    @property
    def is_ending(self) -> bool:
        """Whether a signal or an error ends the search as soon as nothing runs."""
        return bool(self.now.stopped) or self.now.error is not None

    def next_trial(self) -> Trial | None:
        """Returns a trial to run now, which counts as live from here; None if there is none."""
        if self.is_ending:
            return None
        try:
            return self._next_trial()
        except StorageError as error:
            self.fail(error)
            return None

    def _next_trial(self) -> Trial | None:
        self._look_at_others()
        for trial in self.parts.table.open_trials():
            if trial.number not in self.now.live:
                self._advance(trial)
        if len(self.now.live) >= self.parts.slots():
            return None
        # A table that could not be written hands out nothing.
        while not self.is_ending:
            for trial in self._waiting():
                if self._may_go(trial):
                    self.now.live.add(trial.number)
                    return trial
            if not self._add_trials():
                break
        return None

    # Events

    def stage_done(self, number: int, found: Found, *, trained: bool) -> bool:
        """Takes the outcome of the next stage of a live trial.

        Args:
            number: of the trial.
            found: the outcome.
            trained: whether the trial has trained the stage. False where it found it.

        Returns:
            Whether the trial stops here.
        """
        trial = self.parts.table.trials[number]
        key = trial.keys[len(trial.parts)]
        self.now.known[key] = found
        trial.deaths = 0
        self._take(trial, found, trained=trained)
        self._save()
        return not trial.is_open

    def ended(self, number: int, end: End) -> None:
        """Takes the end of a live trial, whatever ended it."""
        self.now.live.discard(number)
        trial = self.parts.table.trials[number]
        if not trial.is_open:
            self.now.reasons.clear()
        elif end.how is How.TAKEN:
            self.now.later[number] = self.parts.clock() + RETRY_S
        elif end.how is How.FAILED:
            self._failed(trial, end)
        elif end.how is not How.SIGNALLED:
            # A trial that ends without its last outcome and without a word has died, too.
            self._died(trial, end.reason or "its process ended without a word")
        self._save()

    def stop(self, signal_name: str) -> None:
        """Hands out nothing more after a signal."""
        self.now.stopped = self.now.stopped or signal_name

    def fail(self, error: RaytrainError) -> None:
        """Hands out nothing more after an error that ends the search."""
        self.now.error = self.now.error or error

    # Trials

    def add(self, kind: Kind, draw: Draw) -> Trial:
        """Adds a trial of the user's own, or the given recipe, to the table."""
        table = self.parts.table
        trial = self.parts.candidates.trial(len(table.trials), kind, draw)
        table.trials.append(trial)
        self._save()
        return trial

    def _add_trials(self) -> bool:
        """Draws another trial, or adds the reruns. Returns whether there are new trials."""
        if len(self._waiting()) >= WAITING_PER_SLOT * self.parts.slots():
            return False
        if not self._has_drawn_all():
            return self._draw()
        if self.parts.table.open_trials():
            return False
        wanted = self._wanted()
        for number, seed in wanted:
            self._add_rerun(number, seed)
        return bool(wanted)

    def _draw(self) -> bool:
        table = self.parts.table
        number = len(table.trials)
        proposal = self.parts.advisor.propose(
            number, self._under_way(), self._taken(), self._costing_nothing()
        )
        if proposal is None:
            self.now.exhausted = (
                "the space is used up: a thousand draws gave no trial that is new and cheap enough"
            )
            logger.info(self.now.exhausted)
            return True
        trial = self.parts.candidates.trial(
            number, Kind.DRAWN, self.parts.candidates.draw_of(proposal.chain)
        )
        trial.heard = len(table.heard)
        trial.gain = proposal.improvement
        table.trials.append(trial)
        # Before it is handed out: no draw is lost.
        self._save()
        self._advance(trial)
        return True

    def _add_rerun(self, number: int, seed: int) -> None:
        table = self.parts.table
        trial = self.parts.candidates.rerun(len(table.trials), table.trials[number], seed)
        table.trials.append(trial)
        self._save()

    def _has_drawn_all(self) -> bool:
        if self.now.exhausted:
            return True
        limits = self.parts.limits
        if limits.budget_s is not None and self.seconds >= limits.budget_s:
            return True
        drawn = self.parts.table.of_kind(Kind.GIVEN, Kind.TRIED, Kind.DRAWN)
        return len(drawn) >= limits.num_samples

    def _wanted(self) -> Sequence[tuple[int, int]]:
        return self.parts.reruns(self.parts.table)

    @property
    def seconds(self) -> float:
        """That the search has run, over all its attempts."""
        return self.parts.clock() - self._began

    # Who may go

    def _waiting(self) -> list[Trial]:
        found = []
        for trial in self.parts.table.open_trials():
            if trial.number not in self.now.live:
                found.append(trial)
        return found

    def _may_go(self, trial: Trial) -> bool:
        """Whether nobody is going to train the first stage that a trial lacks."""
        if self.now.later.get(trial.number, 0.0) > self.parts.clock():
            return False
        first = trial.keys[len(trial.parts)]
        if first in self._claimed():
            return False
        owner = self.parts.shelf.owner(first)
        if owner:
            self.now.later[trial.number] = self.parts.clock() + RETRY_S
            logger.info(f"trial {trial.number} waits: {owner} trains its next stage")
            return False
        return True

    def _claimed(self) -> set[str]:
        """Keys of the stages that live trials are going to train."""
        found: set[str] = set()
        for number in self.now.live:
            trial = self.parts.table.trials[number]
            found.update(trial.keys[len(trial.parts) :])
        return found

    def _under_way(self) -> list[Chain]:
        found = []
        for trial in self.parts.table.open_trials():
            chain = chain_of(trial)
            if chain is not None and trial.kind is not Kind.RERUN:
                found.append(chain)
        return found

    def _taken(self) -> set[str]:
        return {trial.keys[-1] for trial in self.parts.table.trials}

    def _costing_nothing(self) -> set[str]:
        """Keys of stages that are trained, or that a trial under way is going to train."""
        found = set(self.now.known)
        for trial in self.parts.table.open_trials():
            found.update(trial.keys)
        return found

    # Outcomes

    def _look_at_others(self) -> None:
        """Asks the storage, now and then, for the stages that trials which wait lack."""
        if self.parts.clock() - self._looked < LOOK_EVERY_S:
            return
        self._looked = self.parts.clock()
        for trial in self._waiting():
            self._look(trial)

    def _look(self, trial: Trial) -> None:
        """Asks the storage for the stages that a trial lacks, up to the first without outcome."""
        for place in range(len(trial.parts), len(trial.keys)):
            key = trial.keys[place]
            if key in self.now.known:
                continue
            found = self.parts.shelf.outcome(key, trial.names[place])
            if found is None:
                return
            self.now.known[key] = found

    def _advance(self, trial: Trial) -> None:
        """Gives a trial that waits the outcomes of its stages that others have trained."""
        if trial.parts == []:
            self._look(trial)
        before = len(trial.parts)
        while trial.is_open:
            found = self.now.known.get(trial.keys[len(trial.parts)])
            if found is None:
                break
            self._take(trial, found, trained=False)
        if len(trial.parts) > before:
            self._save()

    def _take(self, trial: Trial, found: Found, *, trained: bool) -> None:
        """Adds the outcome of a trial's next stage, and ends the trial where that is due."""
        trial.parts.append(Part(found.score, found.seconds, trained))
        stage = len(trial.parts)
        self._hear(trial, stage, found.score)
        if found.score is None:
            self._close(trial, found.state, found.reason)
        elif stage == len(trial.keys):
            self._close(trial, State.COMPLETE)
        elif trial.kind is Kind.DRAWN:
            self._judge(trial, stage)

    def _hear(self, trial: Trial, stage: int, score: float | None) -> None:
        """Lets the advisor hear an outcome that it has not heard yet."""
        if trial.kind is Kind.RERUN or trial.coordinates is None:
            return
        if trial.keys[stage - 1] in self.now.heard:
            return
        self.parts.table.heard.append(Heard(trial.number, stage, score))
        self._tell(trial, stage, score)

    def _tell(self, trial: Trial, stage: int, score: float | None) -> None:
        chain = chain_of(trial)
        assert chain is not None  # only trials of the space are heard of
        self.now.heard.add(trial.keys[stage - 1])
        self.parts.advisor.hear(chain, stage, self._higher(score))

    def _higher(self, score: float | None) -> float | None:
        """A score in the direction in which higher is better, or one of that direction turned."""
        if score is None or self.parts.score.higher_is_better:
            return score
        return -score

    def _judge(self, trial: Trial, stage: int) -> None:
        """Stops a trial that does not promise enough after a stage."""
        chain = chain_of(trial)
        assert chain is not None  # it was drawn from the space
        found = self.parts.advisor.verdict(chain, stage)
        if found.mean is None or found.sd is None:
            return
        mean = self._higher(found.mean)
        best = self._higher(found.best)
        assert mean is not None and best is not None  # a verdict has all of them
        trial.verdicts.append(
            Verdict(stage, mean, found.sd, best, found.stop, len(self.parts.table.heard))
        )
        if found.stop:
            self._close(
                trial,
                State.STOPPED,
                f"it promised {mean:.4f} ± {found.sd:.4f}, the best one {best:.4f}",
            )

    def _close(self, trial: Trial, state: State, reason: str = "") -> None:
        trial.state = state
        trial.reason = reason

    # Failures

    def _failed(self, trial: Trial, end: End) -> None:
        error = end.error
        if isinstance(error, StorageError):
            # Nothing is wrong with the trial, and all others would fail in the same way.
            self.fail(error)
            return
        self._close(trial, State.FAILED, end.reason)
        self.now.reasons.append(end.reason)
        same = self.now.reasons[-SAME_FAILURES:]
        if len(same) == SAME_FAILURES and len(set(same)) == 1:
            self.fail(error or RaytrainError(f"{SAME_FAILURES} trials failed: {end.reason}"))

    def _died(self, trial: Trial, reason: str) -> None:
        reached = (len(trial.parts), self.parts.shelf.reached(trial.keys[len(trial.parts)]))
        before = self.now.reached.get(trial.number)
        self.now.reached[trial.number] = reached
        if before is not None and reached > before:
            trial.deaths = 0
        trial.deaths += 1
        logger.warning(f"trial {trial.number} died ({reason}); death {trial.deaths} in vain")
        if trial.deaths >= MOST_DEATHS:
            self._close(trial, State.FAILED, f"its process died {MOST_DEATHS} times: {reason}")

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
