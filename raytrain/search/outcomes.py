"""What becomes of trials as stages get their outcomes: scores, verdicts, ends. No torch, no ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from raytrain.evaluation.score import Score
from raytrain.search.advice import Advisor
from raytrain.search.candidates import chain_of
from raytrain.search.table import Heard, Kind, Part, State, Table, Trial, Verdict

# Seconds between two looks at what other searches have trained.
LOOK_EVERY_S = 5.0


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


class Outcomes:
    """Knows the outcomes of stages, and gives them to the trials of a table."""

    def __init__(
        self,
        table: Table,
        advisor: Advisor,
        shelf: Shelf,
        score: Score,
        clock: Callable[[], float],
    ) -> None:
        """Lets the advisor hear what an earlier attempt has heard.

        Args:
            table: of the search.
            advisor: hears every outcome once, and stops trials.
            shelf: the stages.
            score: the objective.
            clock: seconds.
        """
        self.known: dict[str, Found] = {}
        self._table = table
        self._advisor = advisor
        self._shelf = shelf
        self._score = score
        self._clock = clock
        self._heard: set[str] = set()
        self._looked = float("-inf")
        for heard in table.heard:
            self._tell(table.trials[heard.trial], heard.stage, heard.score)

    def look(self, trials: Iterable[Trial]) -> None:
        """Asks the storage, now and then, for the stages that waiting trials lack."""
        if self._clock() - self._looked < LOOK_EVERY_S:
            return
        self._looked = self._clock()
        for trial in trials:
            self.look_for(trial)

    def look_for(self, trial: Trial) -> None:
        """Asks the storage for the stages that a trial lacks, up to the first without outcome."""
        for place in range(len(trial.parts), len(trial.keys)):
            key = trial.keys[place]
            if key in self.known:
                continue
            found = self._shelf.outcome(key, trial.names[place])
            if found is None:
                return
            self.known[key] = found

    def advance(self, trial: Trial) -> bool:
        """Gives a waiting trial the known outcomes of its stages. Returns whether it got any."""
        before = len(trial.parts)
        while trial.is_open:
            found = self.known.get(trial.keys[len(trial.parts)])
            if found is None:
                break
            self.take(trial, found, trained=False)
        return len(trial.parts) > before

    def take(self, trial: Trial, found: Found, *, trained: bool) -> None:
        """Gives a trial the outcome of its next stage, and ends it where that is due.

        Args:
            trial: an open trial.
            found: the outcome.
            trained: whether the trial itself has trained the stage.
        """
        self.known[trial.keys[len(trial.parts)]] = found
        trial.parts.append(Part(found.score, found.seconds, trained))
        stage = len(trial.parts)
        self._hear(trial, stage, found.score)
        if found.score is None:
            trial.close(found.state, found.reason)
        elif stage == len(trial.keys):
            trial.close(State.COMPLETE)
        elif trial.kind is Kind.DRAWN and not trial.to_end:
            self._judge(trial, stage)

    def _hear(self, trial: Trial, stage: int, score: float | None) -> None:
        """Lets the advisor hear an outcome that it has not heard yet."""
        if trial.kind is Kind.RERUN or trial.coordinates is None:
            return
        if trial.keys[stage - 1] in self._heard:
            return
        self._table.heard.append(Heard(trial.number, stage, score))
        self._tell(trial, stage, score)

    def _tell(self, trial: Trial, stage: int, score: float | None) -> None:
        chain = chain_of(trial)
        assert chain is not None  # only trials of the space are heard of
        self._heard.add(trial.keys[stage - 1])
        self._advisor.hear(chain, stage, self._turned(score))

    def _turned(self, score: float | None) -> float | None:
        """A score as the advisor takes it, for which higher is better; or back again."""
        if score is None or self._score.higher_is_better:
            return score
        return -score

    def _judge(self, trial: Trial, stage: int) -> None:
        """Stops a trial that does not promise enough after a stage."""
        chain = chain_of(trial)
        assert chain is not None  # it was drawn from the space
        found = self._advisor.verdict(chain, stage)
        mean = self._turned(found.mean)
        best = self._turned(found.best)
        if mean is None or best is None or found.sd is None:
            return
        heard = len(self._table.heard)
        trial.verdicts.append(Verdict(stage, mean, found.sd, best, found.stop, heard))
        if found.stop:
            trial.close(
                State.STOPPED,
                f"it promised {mean:.4f} ± {found.sd:.4f}, and the best one {best:.4f}",
            )
