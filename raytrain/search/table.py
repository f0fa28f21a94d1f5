"""The table of a search: every trial that was drawn, and every outcome that was heard.

    <storage>/<name>/trials.json

It is written before a trial is handed out, and after each event. A search that was killed goes on
from this file alone. No torch, no ray.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from raytrain import storage
from raytrain.errors import DataError

FILE = "trials.json"
VERSION = 1


class Kind(StrEnum):
    """Where a trial comes from."""

    GIVEN = "given"  # the recipe that the user gave
    TRIED = "tried"  # --try
    DRAWN = "drawn"
    RERUN = "rerun"  # a finalist with a fresh seed


class State(StrEnum):
    """How far a trial is."""

    OPEN = "open"  # it waits or runs
    COMPLETE = "complete"
    STOPPED = "stopped"  # by the model, at the end of a stage
    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out of memory"
    FAILED = "failed"


@dataclass
class Part:
    """A stage of a trial that has an outcome.

    Attributes:
        score: the objective after it; None where it diverged or found no memory.
        seconds: that its training took, whoever trained it.
        trained: whether this trial trained it. False where it was found.
    """

    score: float | None
    seconds: float
    trained: bool


@dataclass
class Verdict:
    """What the model said of a trial at the end of a stage.

    Attributes:
        stage: number of stages that were done.
        mean: expected objective at the end of the trial.
        sd: standard deviation of it.
        best: highest mean of a finished trial.
        stops: whether the trial stopped there.
        heard: how many outcomes the model had heard.
    """

    stage: int
    mean: float
    sd: float
    best: float
    stops: bool
    heard: int


@dataclass
class Trial:
    """A row of the table.

    Attributes:
        number: from 0.
        kind: where it comes from.
        schedule: name of its list of stages.
        values: drawn or tried values by path, such as stages.2.lr; numbers in paths count from 1.
        coordinates: of the fields outside the stages and of each stage, as a `Chain` has them;
            None where the space does not hold the trial.
        keys: of its stages.
        costs: of its stages, where the given recipe costs 1.
        names: of the checkpoints in the directories of its stages, such as stage-1-128, whatever
            names the recipe gives them.
        state: how far it is.
        parts: its stages that have an outcome, in order.
        verdicts: of the model.
        seed: of training, where it is not that of the recipe.
        rerun_of: number of the trial that a rerun repeats.
        heard: how many outcomes the model had heard when it was drawn; None for other kinds.
        gain: expected improvement when it was drawn.
        to_end: whether no verdict stops it, since nothing better was left.
        deaths: how often its process died since its last progress.
        reason: why it failed, diverged or stopped.
    """

    number: int
    kind: Kind
    schedule: str
    values: dict[str, Any]
    coordinates: tuple[tuple[float, ...], tuple[tuple[float, ...], ...]] | None
    keys: tuple[str, ...]
    costs: tuple[float, ...]
    names: tuple[str, ...]
    state: State = State.OPEN
    parts: list[Part] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    seed: int | None = None
    rerun_of: int | None = None
    heard: int | None = None
    gain: float | None = None
    to_end: bool = False
    deaths: int = 0
    reason: str = ""

    @property
    def score(self) -> float | None:
        """The objective at its end; None unless it is complete."""
        if self.state is not State.COMPLETE:
            return None
        return self.parts[-1].score

    @property
    def is_own_outside(self) -> bool:
        """Whether it is a user's own trial outside the space: the model hears nothing of it."""
        return self.kind is Kind.TRIED and self.coordinates is None

    @property
    def is_open(self) -> bool:
        """Whether it waits or runs."""
        return self.state is State.OPEN

    def close(self, state: State, reason: str = "") -> None:
        """Notes how it has ended, and why."""
        self.state = state
        self.reason = reason


@dataclass(frozen=True)
class Heard:
    """An outcome that the model heard.

    Attributes:
        trial: number of the trial that it was heard from.
        stage: number of stages that were done.
        score: the objective; None where the stage diverged or found no memory.
    """

    trial: int
    stage: int
    score: float | None


@dataclass
class Table:
    """The trials of a search.

    Attributes:
        directory: of the search.
        trials: by number.
        heard: outcomes in the order in which the model heard them.
        seconds: that the search ran, over all its attempts.
        model: what the model keeps between two attempts.
    """

    directory: str
    trials: list[Trial] = field(default_factory=list)
    heard: list[Heard] = field(default_factory=list)
    seconds: float = 0.0
    model: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """Of the file."""
        return storage.join(self.directory, FILE)

    def save(self) -> None:
        """Writes the file.

        Raises:
            StorageError: it cannot be written.
        """
        storage.write_json(self.path, self.content())

    def content(self) -> dict[str, Any]:
        """Returns what the file holds, see `take`."""
        return {
            "version": VERSION,
            "trials": [asdict(trial) for trial in self.trials],
            "heard": [asdict(heard) for heard in self.heard],
            "seconds": round(self.seconds, 1),
            "model": self.model,
        }

    def take(self, content: dict[str, Any]) -> None:
        """Takes what a file holds in place of what the table holds.

        Raises:
            KeyError, TypeError, ValueError: it is no content of a table.
        """
        if content["version"] != VERSION:
            raise ValueError(f"it is not of version {VERSION}")
        self.trials = [_trial(row) for row in content["trials"]]
        self.heard = [Heard(**row) for row in content["heard"]]
        self.seconds = float(content["seconds"])
        self.model = dict(content["model"])

    def open_trials(self) -> list[Trial]:
        """Returns the trials that wait or run."""
        return [trial for trial in self.trials if trial.is_open]

    def waiting(self, live: Collection[int]) -> list[Trial]:
        """Returns the open trials that do not run.

        Args:
            live: numbers of those that run.
        """
        return [trial for trial in self.open_trials() if trial.number not in live]

    def of_kind(self, *kinds: Kind) -> list[Trial]:
        """Returns the trials of some kinds."""
        return [trial for trial in self.trials if trial.kind in kinds]


def read(directory: str) -> Table:
    """Reads the table of a search; an empty one where there is none yet.

    Raises:
        DataError: the file is damaged, or a newer version wrote it.
    """
    table = Table(directory)
    try:
        table.take(storage.read_json(table.path))
    except FileNotFoundError:
        pass
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(table.path, repr(error)) from None
    return table


def _trial(row: dict[str, Any]) -> Trial:
    parts = [Part(**part) for part in row["parts"]]
    verdicts = [Verdict(**verdict) for verdict in row["verdicts"]]
    changed = {
        "kind": Kind(row["kind"]),
        "state": State(row["state"]),
        "keys": tuple(row["keys"]),
        "costs": tuple(row["costs"]),
        "names": tuple(row["names"]),
        "coordinates": _coordinates(row["coordinates"]),
        "parts": parts,
        "verdicts": verdicts,
    }
    return Trial(**{**row, **changed})


def _coordinates(
    found: Sequence[Any] | None,
) -> tuple[tuple[float, ...], tuple[tuple[float, ...], ...]] | None:
    if found is None:
        return None
    shared, stages = found
    return tuple(shared), tuple(tuple(stage) for stage in stages)


def _damaged(path: str, what: str) -> DataError:
    return DataError(
        f"{path} cannot be used: {what}",
        "it would be unknown which trials were drawn",
        "start another search with --name; its stages are found where they are",
    )
