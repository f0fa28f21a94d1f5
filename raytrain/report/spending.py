"""What a search has spent, in the order of its outcomes, and what it has not. No torch, no ray."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from raytrain.report.search_record import SearchRecord
from raytrain.search.table import State, Table, Trial


@dataclass(frozen=True)
class Outcome:
    """A stage of a trial that came to an outcome.

    Attributes:
        trial: it belongs to.
        stage: number of stages of the trial that were done then.
        spent: cost of all stages trained until then, where the given recipe costs 1.
    """

    trial: Trial
    stage: int
    spent: float

    @property
    def is_last(self) -> bool:
        """Whether it is the last one of its trial."""
        return self.stage == len(self.trial.parts)


def outcomes(table: Table) -> list[Outcome]:
    """Returns the outcomes of a table in the order in which the model heard them.

    Those that it did not hear, such as reruns, follow in the order of the trials. A stage that
    several trials share is paid once; one that another search trained costs nothing.
    """
    trained = _trained_keys(table)
    paid: set[str] = set()
    spent = 0.0
    found = []
    for trial, stage in _in_order(table):
        key = trial.keys[stage - 1]
        if key in trained and key not in paid:
            paid.add(key)
            spent += trial.costs[stage - 1]
        found.append(Outcome(trial, stage, spent))
    return found


def _in_order(table: Table) -> Iterator[tuple[Trial, int]]:
    """Each trial and stage with an outcome, once."""
    by_number = {trial.number: trial for trial in table.trials}
    seen: set[tuple[int, int]] = set()
    for heard in table.heard:
        trial = by_number.get(heard.trial)
        if trial is None or heard.stage > len(trial.parts):
            continue
        if (heard.trial, heard.stage) not in seen:
            seen.add((heard.trial, heard.stage))
            yield trial, heard.stage
    for trial in table.trials:
        for stage in range(1, len(trial.parts) + 1):
            if (trial.number, stage) not in seen:
                yield trial, stage


def _trained_keys(table: Table) -> set[str]:
    """Keys of the stages that a trial of this search trained."""
    found = set()
    for trial in table.trials:
        for key, part in zip(trial.keys, trial.parts, strict=False):
            if part.trained:
                found.add(key)
    return found


@dataclass
class Work:
    """Stages, with their epochs, cost and seconds.

    Attributes:
        stages: how many there are.
        epochs: of them together; None where the number is not known of all.
        cost: of them together, where the given recipe costs 1.
        seconds: that they took; None where they were never trained.
    """

    stages: int = 0
    epochs: int | None = 0
    cost: float = 0.0
    seconds: float | None = 0.0

    def add(self, epochs: int | None, cost: float, seconds: float | None) -> None:
        """Counts a stage."""
        self.stages += 1
        self.cost += cost
        if epochs is None or self.epochs is None:
            self.epochs = None
        else:
            self.epochs += epochs
        if seconds is None or self.seconds is None:
            self.seconds = None
        else:
            self.seconds += seconds


@dataclass(frozen=True)
class Savings:
    """What the stages of all trials took, and what they did not.

    Attributes:
        alone: all stages with an outcome, as if each trial had trained its own.
        trained: those that this search trained.
        shared: those that were there already, from another trial or another search.
        left_out: stages after the end of a trial that the model stopped or that diverged.
    """

    alone: Work
    trained: Work
    shared: Work
    left_out: Work

    @property
    def share(self) -> float:
        """The share of the cost that was saved, from 0 to 1, of all chains trained to their end."""
        whole = self.alone.cost + self.left_out.cost
        if whole == 0:
            return 0.0
        return 1 - self.trained.cost / whole


def savings(record: SearchRecord) -> Savings:
    """Adds up the stages of all trials."""
    found = Savings(Work(), Work(), Work(), Work(seconds=None))
    for trial in record.table.trials:
        epochs = _epochs(record, trial)
        for number, part in enumerate(trial.parts):
            of_stage = (epochs[number], trial.costs[number], part.seconds)
            found.alone.add(*of_stage)
            if part.trained:
                found.trained.add(*of_stage)
            else:
                found.shared.add(*of_stage)
        if trial.state in (State.STOPPED, State.DIVERGED):
            for number in range(len(trial.parts), len(trial.keys)):
                found.left_out.add(epochs[number], trial.costs[number], None)
    return found


def _epochs(record: SearchRecord, trial: Trial) -> list[int | None]:
    """Epochs of each stage of a trial, as its recipe says, else as its history does."""
    recipe = record.recipe_of(trial)
    if recipe is not None:
        stages = [stage for _, stage in recipe.selected_stages()]
        if len(stages) == len(trial.keys):
            return [stage.epochs for stage in stages]
    found: list[int | None] = []
    for key in trial.keys:
        history = record.histories.get(key)
        found.append(None if history is None else len(history))
    return found
