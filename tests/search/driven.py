"""A search in simulated time: the product's planner, with stages that only pretend to train.

    storage     a dictionary; leases, checkpoints and outcomes of stages, tables of searches
    trials      processes that train epoch after epoch, as `stages.train` does, and may die
    drivers     own a planner each, and may be killed; several of them share a storage

Whatever happens, what the tests hold is checked at each event: see `Violation`.
"""

from __future__ import annotations

import collections
import heapq
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from raytrain.evaluation.score import Score
from raytrain.search.advice import Advisor, Source
from raytrain.search.chains import Axes, Axis, Chain
from raytrain.search.chance import RandomAdvisor
from raytrain.search.failures import End, How
from raytrain.search.outcomes import Found
from raytrain.search.planner import Parts, Planner
from raytrain.search.space import Draw
from raytrain.search.supply import Limits
from raytrain.search.table import Kind, Table, Trial

EPOCHS = 3
SCORE = Score("f2", "F2")


class Violation(AssertionError):
    """What must never happen: a deadlock, a stage by two, an epoch kept twice, a draw lost."""


# A small space


@dataclass(frozen=True)
class Grid:
    """Chains whose stages draw one of some levels each; all lists begin with the same stage.

    Attributes:
        lengths: number of stages of each list.
        levels: of each stage's field.
        shared: levels of the field outside the stages.
    """

    lengths: tuple[int, ...] = (3, 2)
    levels: int = 3
    shared: int = 2

    @property
    def axes(self) -> Axes:
        axis = Axis("rate")
        stages = {str(place): ((axis,),) * length for place, length in enumerate(self.lengths)}
        return Axes((Axis("wd"),), stages)

    def chain(self, schedule: int, shared: int, levels: tuple[int, ...]) -> Chain:
        keys = []
        for stage in range(1, len(levels) + 1):
            # The first stage is the same in all lists.
            listed = "" if stage == 1 else str(schedule)
            keys.append(f"{listed}|{shared}|{'-'.join(map(str, levels[:stage]))}")
        most = max(1, self.levels - 1)
        return Chain(
            schedule=str(schedule),
            shared=(shared / max(1, self.shared - 1),),
            stages=tuple((level / most,) for level in levels),
            keys=tuple(keys),
            costs=(1.0 / len(levels),) * len(levels),
        )

    def draw(self, rng: np.random.Generator) -> Chain:
        schedule = int(rng.integers(len(self.lengths)))
        levels = tuple(int(rng.integers(self.levels)) for _ in range(self.lengths[schedule]))
        return self.chain(schedule, int(rng.integers(self.shared)), levels)

    def near(self, chain: Chain, rng: np.random.Generator) -> Chain:
        most = max(1, self.levels - 1)
        levels = [round(stage[0] * most) for stage in chain.stages]
        place = int(rng.integers(len(levels)))
        levels[place] = int(rng.integers(self.levels))
        shared = round(chain.shared[0] * max(1, self.shared - 1))
        return self.chain(int(chain.schedule), shared, tuple(levels))


class Chains:
    """Stands for `Candidates`: any source of chains, whose draws are the chains themselves."""

    def __init__(self, source: Any) -> None:
        self.source = Source(source.axes, source.draw, source.near)
        self.chains: dict[str, Chain] = {}

    def draw_of(self, chain: Chain) -> Draw:
        self.chains[chain.keys[-1]] = chain
        return Draw(chain.schedule, {"key": chain.keys[-1]})

    def trial(self, number: int, kind: Kind, draw: Draw) -> Trial:
        chain = self.chains[draw.values["key"]]
        return Trial(
            number=number,
            kind=kind,
            schedule=chain.schedule,
            values=dict(draw.values),
            coordinates=(chain.shared, chain.stages),
            keys=chain.keys,
            costs=chain.costs,
            names=chain.keys,
        )

    def rerun(self, number: int, of: Trial, seed: int) -> Trial:
        keys = tuple(f"{key}@{seed}" for key in of.keys)
        return Trial(
            number=number,
            kind=Kind.RERUN,
            schedule=of.schedule,
            values=dict(of.values),
            coordinates=of.coordinates,
            keys=keys,
            costs=of.costs,
            names=keys,
            seed=seed,
            rerun_of=of.number,
        )

    def remember(self, trial: Trial) -> None:
        shared, stages = trial.coordinates
        self.chains[trial.keys[-1]] = Chain(trial.schedule, shared, stages, trial.keys, trial.costs)


# What is stored


@dataclass
class Stage:
    """A stage directory.

    Attributes:
        epochs: of its newest checkpoint.
        checkpoint: whether the checkpoint of its end is there.
        found: its outcome.
        owner: the process that holds its lease.
        trained: how often each epoch was trained and kept.
    """

    epochs: int = 0
    checkpoint: bool = False
    found: Found | None = None
    owner: Process | None = None
    trained: collections.Counter[int] = field(default_factory=collections.Counter)


class Disk:
    """Stands for the storage, and answers as a `Shelf`."""

    def __init__(self) -> None:
        self.stages: dict[str, Stage] = collections.defaultdict(Stage)
        self.tables: dict[str, str] = {}

    def outcome(self, key: str, name: str) -> Found | None:
        return self.stages[key].found

    def owner(self, key: str) -> str:
        return str(self.stages[key].owner or "")

    def reached(self, key: str) -> int:
        return self.stages[key].epochs


class StoredTable(Table):
    """A table in a `Disk`."""

    def __init__(self, disk: Disk, name: str) -> None:
        super().__init__(name)
        self.disk = disk
        if name in disk.tables:
            self.take(json.loads(disk.tables[name]))

    def save(self) -> None:
        self.disk.tables[self.directory] = json.dumps(self.content())


# What runs


@dataclass(frozen=True)
class Faults:
    """What goes wrong, as probabilities or mean times.

    Attributes:
        death: that a process dies in an epoch.
        silent: that its death reaches nobody until somebody looks.
        kill_every: mean time between two kills of a driver; 0 for none.
        kills: how many of them at most.
        diverges: that a stage diverges; drawn from its key alone.
    """

    death: float = 0.0
    silent: float = 0.0
    kill_every: float = 0.0
    kills: int = 0
    diverges: float = 0.0


@dataclass(eq=False)
class Process:
    """The process of a trial.

    Attributes:
        driver: that handed the trial out.
        trial: its row.
        place: of the stage that it is in, from 0.
        runs: whether it has started; until then it holds no lease.
    """

    driver: Driver
    trial: Trial
    place: int = 0
    runs: bool = False

    def __str__(self) -> str:
        return f"trial {self.trial.number} of {self.driver.name}"


@dataclass(eq=False)
class Driver:
    """A search that runs: its planner, and the processes of its trials."""

    name: str
    planner: Planner
    processes: dict[int, Process] = field(default_factory=dict)
    silent: list[int] = field(default_factory=list)


@dataclass
class Search:
    """How a search is started, and started again after a kill.

    Attributes:
        name: of its table.
        advisor: made anew for each attempt, from a source of chains.
        limits: of the search.
        slots: how many trials run at once.
        reruns: as a planner takes them.
        given: chains to begin with.
    """

    name: str
    advisor: Callable[[Source], Advisor]
    limits: Limits
    slots: int
    reruns: Callable[[Table], Any] = lambda table: ()
    given: tuple[Chain, ...] = ()


class World:
    """Runs searches on one storage until all of them are over."""

    def __init__(
        self,
        source: Any,
        score_of: Callable[[str, Chain | None, int], float],
        seed: int,
        faults: Faults = Faults(),
        seconds_of: Callable[[float], float] | None = None,
    ) -> None:
        """Starts with an empty storage.

        Args:
            source: of chains.
            score_of: the score of a stage by its key, a chain that goes through it, and its number.
            seed: of all that is drawn here.
            faults: what goes wrong.
            seconds_of: seconds of an epoch of a stage of some cost; random ones if None.
        """
        self.source = source
        self.score_of = score_of
        self.rng = random.Random(seed)
        self.faults = faults
        self.seconds_of = seconds_of
        self.disk = Disk()
        self.clock = 0.0
        self.events: list[tuple[float, float, Process]] = []
        self.kills = 0
        self.dies_at: dict[str, float] = {}
        self.started: collections.Counter[tuple[str, int]] = collections.Counter()
        self.turned_away = 0
        self.busy = 0.0

    # Drivers

    def run(self, *searches: Search) -> list[Table]:
        """Runs searches side by side to their ends. Returns their tables."""
        drivers = {search.name: self._start(search) for search in searches}
        over: set[str] = set()
        while len(over) < len(searches):
            for search in searches:
                if search.name not in over and self._step_driver(search, drivers):
                    over.add(search.name)
            if len(over) == len(searches):
                break
            if not self.events:
                self._wait(drivers, over)
                continue
            at, _, process = heapq.heappop(self.events)
            self._kill_drivers(searches, drivers, over, at)
            if drivers[process.driver.name] is process.driver:
                self.clock = max(self.clock, at)
                self._advance(process)
        return [StoredTable(self.disk, search.name) for search in searches]

    def _start(self, search: Search) -> Driver:
        candidates = Chains(self.source)
        table = StoredTable(self.disk, search.name)
        parts = Parts(
            table=table,
            candidates=candidates,
            advisor=search.advisor(candidates.source),
            shelf=self.disk,
            limits=search.limits,
            score=SCORE,
            slots=lambda: search.slots,
            reruns=search.reruns,
            # In a world without faults, a budget is one of work, whatever the number of slots.
            clock=lambda: self.busy if self.seconds_of else self.clock,
        )
        planner = Planner(parts)
        for number in range(len(table.trials), len(search.given)):
            draw = candidates.draw_of(search.given[number])
            planner.enter(candidates.trial(number, Kind.TRIED, draw))
        if self.faults.kill_every and self.kills < self.faults.kills:
            self.dies_at[search.name] = self.clock + self.rng.expovariate(
                1 / self.faults.kill_every
            )
        return Driver(search.name, planner)

    def _step_driver(self, search: Search, drivers: dict[str, Driver]) -> bool:
        """One look of Tune's loop. Returns whether the search is over."""
        driver = drivers[search.name]
        for number in driver.silent:
            driver.planner.ended(number, End(How.DIED, "it is gone"))
        driver.silent.clear()
        while True:
            trial = driver.planner.next_trial()
            if trial is None:
                return driver.planner.is_over
            self._hand_out(driver, trial)

    def _hand_out(self, driver: Driver, trial: Trial) -> None:
        stored = StoredTable(self.disk, driver.name).trials
        if trial.number >= len(stored):
            raise Violation(f"trial {trial.number} runs and stands in no table")
        # As the real process, it goes through all stages, and finds those that are there.
        process = Process(driver, trial)
        driver.processes[trial.number] = process
        self.started[driver.name, trial.number] += 1
        seconds = 0.0 if self.seconds_of else self.rng.uniform(0.1, 0.5)
        heapq.heappush(self.events, (self.clock + seconds, self.rng.random(), process))

    def _wait(self, drivers: dict[str, Driver], over: set[str]) -> None:
        """Lets time pass while nothing runs; somebody must be waiting for a moment to come."""
        later = [
            at
            for name, driver in drivers.items()
            if name not in over
            for at in driver.planner.later.values()
            if at > self.clock
        ]
        if not later:
            raise Violation("deadlock: nothing runs and nothing is handed out")
        self.clock = min(later)

    def _kill_drivers(
        self, searches: tuple[Search, ...], drivers: dict[str, Driver], over: set[str], at: float
    ) -> None:
        """Kills the drivers that are due before a moment, with all their processes."""
        for search in searches:
            dies_at = self.dies_at.get(search.name)
            if search.name in over or dies_at is None or dies_at > at:
                continue
            del self.dies_at[search.name]
            self.kills += 1
            self.clock = max(self.clock, dies_at)
            for process in drivers[search.name].processes.values():
                self._release(process)
            drivers[search.name] = self._start(search)

    # Processes

    def _stage(self, process: Process) -> Stage:
        return self.disk.stages[process.trial.keys[process.place]]

    def _begin_stage(self, process: Process) -> None:
        """Takes the lease of the next stage; or finds its outcome, or another owner."""
        stage = self._stage(process)
        if stage.owner is not None and stage.found is None:
            if stage.owner.driver is process.driver:
                raise Violation(f"{process} was handed out and waits for {stage.owner}")
            self.turned_away += 1
            self._end(process, End(How.TAKEN))
            return
        if stage.found is None:
            self._take_lease(process, stage)
        heapq.heappush(
            self.events, (self.clock + self._seconds(process), self.rng.random(), process)
        )

    def _take_lease(self, process: Process, stage: Stage) -> None:
        if process.place:
            parent = self.disk.stages[process.trial.keys[process.place - 1]]
            if not parent.checkpoint:
                raise Violation(f"{process} starts a stage from a checkpoint that is not there")
        if stage.owner is not None:
            raise Violation(f"{process} trains a stage that {stage.owner} trains")
        stage.owner = process

    def _seconds(self, process: Process) -> float:
        if self._stage(process).found is not None:
            return 0.0 if self.seconds_of else 0.1
        if self.seconds_of is not None:
            seconds = self.seconds_of(process.trial.costs[process.place])
        else:
            slow = 10 if self.rng.random() < 0.05 else 1
            seconds = self.rng.uniform(0.5, 1.5) * slow
        self.busy += seconds
        return seconds

    def _advance(self, process: Process) -> None:
        """The start of a process, the end of an epoch, or the finding of an outcome."""
        if not process.runs:
            process.runs = True
            self._begin_stage(process)
            return
        stage = self._stage(process)
        if stage.found is None:
            if self.rng.random() < self.faults.death:
                self._die(process)
                return
            if not self._end_epoch(process, stage):
                return
        self._report(process, stage.found)

    def _end_epoch(self, process: Process, stage: Stage) -> bool:
        """Keeps an epoch. Returns whether the stage is complete and the process still there."""
        epochs = EPOCHS if self.seconds_of is None else 1
        stage.epochs += 1
        stage.trained[stage.epochs] += 1
        if stage.trained[stage.epochs] > 1:
            raise Violation("an epoch was trained and kept twice")
        if stage.epochs < epochs:
            at = self.clock + self._seconds(process)
            heapq.heappush(self.events, (at, self.rng.random(), process))
            return False
        # A process may die between any two of these.
        for write in (self._write_checkpoint, self._write_outcome):
            write(process, stage)
            if self.rng.random() < self.faults.death / 2:
                self._die(process)
                return False
        stage.owner = None
        return True

    def _write_checkpoint(self, process: Process, stage: Stage) -> None:
        stage.checkpoint = True

    def _write_outcome(self, process: Process, stage: Stage) -> None:
        key = process.trial.keys[process.place]
        if random.Random(key).random() < self.faults.diverges:
            stage.found = Found(None, 1.0, "the loss is nan")
            return
        chain = process.driver.planner.parts.candidates.chains.get(process.trial.keys[-1])
        stage.found = Found(self.score_of(key, chain, process.place + 1), 1.0)

    def _report(self, process: Process, found: Found) -> None:
        process.place += 1
        stops = process.driver.planner.stage_done(
            process.trial.number, process.place, found, trained=True
        )
        if stops or process.place == len(process.trial.keys):
            self._end(process, End(How.DONE))
            return
        self._begin_stage(process)

    def _die(self, process: Process) -> None:
        self._release(process)
        if self.rng.random() < self.faults.silent:
            process.driver.processes.pop(process.trial.number)
            process.driver.silent.append(process.trial.number)
            return
        self._end(process, End(How.DIED, "killed"))

    def _end(self, process: Process, end: End) -> None:
        process.driver.processes.pop(process.trial.number)
        process.driver.planner.ended(process.trial.number, end)

    def _release(self, process: Process) -> None:
        """Frees the lease of a process that is gone: its epoch is lost."""
        for stage in self.disk.stages.values():
            if stage.owner is process:
                stage.owner = None


def noise_of(key: str, chain: Chain | None, stage: int) -> float:
    """A score that is a pure function of the stage's key."""
    return 0.8 + random.Random(key).random() * 0.1


def drawing(seed: int) -> Callable[[Source], Advisor]:
    """Random draws."""
    return lambda space: RandomAdvisor(space, seed)
