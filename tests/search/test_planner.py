"""The planner, driven by a simulated clock: no deadlock, no stage by two, no draw lost."""

import random

import made_up
import pytest
from driven import SCORE, Chains, Disk, Faults, Grid, Search, Violation, World, drawing, noise_of

from raytrain.errors import ConfigError, DataError, StorageError
from raytrain.search import table as tables
from raytrain.search.advisor import ModelAdvisor
from raytrain.search.chance import RandomAdvisor
from raytrain.search.failures import End, How
from raytrain.search.outcomes import Found
from raytrain.search.planner import Parts, Planner
from raytrain.search.supply import Limits
from raytrain.search.table import Kind, State, Table


class Kept(Table):
    """A table that is written nowhere."""

    def save(self):
        self.saves = getattr(self, "saves", 0) + 1


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def planner(grid=None, slots=2, limits=None, advisor=None, reruns=lambda table: (), table=None):
    candidates = Chains(grid or Grid())
    disk = Disk()
    clock = Clock()
    parts = Parts(
        table=table or Kept(""),
        candidates=candidates,
        advisor=advisor or RandomAdvisor(candidates.source, 0),
        shelf=disk,
        limits=limits or Limits(6),
        score=SCORE,
        slots=lambda: slots,
        reruns=reruns,
        clock=clock,
    )
    return Planner(parts), disk, clock


def add(found, grid, *chains):
    for chain in chains:
        candidates = found.parts.candidates
        draw = candidates.draw_of(grid.chain(*chain))
        found.enter(candidates.trial(len(found.parts.table.trials), Kind.TRIED, draw))


def train_all(found, trial):
    """Reports all stages of a trial, as its process does."""
    for stage in range(1, len(trial.keys) + 1):
        found.stage_done(trial.number, stage, Found(0.5, 1.0), trained=True)


def random_search(seed, world=World, advisor=None):
    """A search of random size with kills, deaths, silent ends and a rival on the same storage."""
    rng = random.Random(seed)
    grid = Grid(
        lengths=tuple(rng.randint(1, 4) for _ in range(rng.randint(1, 3))),
        levels=rng.randint(1, 3),
        shared=rng.randint(1, 2),
    )
    faults = Faults(
        death=rng.choice([0, 0, 0.05]),
        silent=rng.choice([0, 0.5]),
        kill_every=rng.choice([0, 20]),
        kills=rng.randint(0, 4),
        diverges=rng.choice([0, 0.1]),
    )
    found = world(grid, noise_of, seed, faults)
    searches = []
    for name in ("one", "two")[: rng.randint(1, 2)]:
        searches.append(
            Search(name, advisor or drawing(seed), Limits(rng.randint(2, 14)), rng.randint(1, 6))
        )
    return found, found.run(*searches)


def check_ended(found):
    for table in found:
        for trial in table.trials:
            assert trial.state in (State.COMPLETE, State.DIVERGED, State.STOPPED, State.FAILED)
            assert trial.state is not State.FAILED or "died" in trial.reason


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_random_searches_with_kills_deaths_and_rivals(first):
    for seed in range(first, first + 50):
        check_ended(random_search(seed)[1])


@pytest.mark.slow
def test_a_thousand_random_searches():
    for seed in range(1000):
        check_ended(random_search(seed)[1])


@pytest.mark.slow
def test_random_searches_with_the_model():
    for seed in range(40):
        check_ended(random_search(seed, advisor=lambda space: ModelAdvisor(space, 0))[1])


class WithoutRule(World):
    """The rule is taken out: whoever lacks a stage may go."""

    def _start(self, search):
        driver = super()._start(search)
        driver.planner._claimed = lambda: set()
        return driver


class TableAfterwards(World):
    """The table is written after a trial is handed out."""

    def _start(self, search):
        driver = super()._start(search)
        driver.planner._save = lambda: None
        return driver


class WithoutLease(World):
    """Processes ignore the lease of a stage."""

    def _begin_stage(self, process):
        stage = self._stage(process)
        owner = stage.owner
        if owner is not None and owner.driver is not process.driver:
            self._take_lease(process, stage)
        super()._begin_stage(process)


class OutcomeFirst(World):
    """The outcome of a stage is written before its checkpoint."""

    def _write_checkpoint(self, process, stage):
        super()._write_outcome(process, stage)

    def _write_outcome(self, process, stage):
        super()._write_checkpoint(process, stage)


@pytest.mark.parametrize(
    ("mutant", "sentence"),
    [
        (WithoutRule, "was handed out and waits for"),
        (TableAfterwards, "stands in no table"),
        (WithoutLease, "trains a stage that"),
        (OutcomeFirst, "from a checkpoint that is not there"),
    ],
)
def test_the_simulation_fails_for_each_mutant(mutant, sentence):
    with pytest.raises(Violation, match=sentence):
        for seed in range(200):
            random_search(seed, mutant)


@pytest.mark.parametrize("seed", range(12))
def test_kills_change_neither_the_trials_nor_their_scores(seed):
    """A fixed list of trials without stopping."""
    rng = random.Random(seed)
    grid = Grid()
    given = []
    for _ in range(12):
        listed = rng.randrange(2)
        levels = tuple(rng.randrange(3) for _ in range(grid.lengths[listed]))
        given.append(grid.chain(listed, rng.randrange(2), levels))
    found = []
    for faults in (Faults(), Faults(death=0.03, silent=0.5, kill_every=10, kills=3)):
        search = Search("one", drawing(0), Limits(0), 3, given=tuple(given))
        table = World(grid, noise_of, seed, faults).run(search)[0]
        found.append([(t.number, t.state, [part.score for part in t.parts]) for t in table.trials])
    assert found[0] == found[1]


def test_a_trial_waits_for_the_stage_that_a_live_one_is_going_to_train():
    grid = Grid()
    found, _, _ = planner(grid, slots=3, limits=Limits(0))
    add(found, grid, (0, 0, (0, 0, 0)), (0, 0, (0, 1, 0)), (0, 1, (0, 0, 0)))
    assert found.next_trial().number == 0
    assert found.next_trial().number == 2
    assert found.next_trial() is None
    found.stage_done(0, 1, Found(0.8, 1.0), trained=True)
    # The shared stage is there; the second trial goes on from it.
    assert found.next_trial().number == 1
    assert found.parts.table.trials[1].parts[0].trained is False


def test_a_stage_that_was_known_before_the_trial_went_is_not_taken_twice():
    grid = Grid()
    found, disk, _ = planner(grid, limits=Limits(0))
    chain = grid.chain(0, 0, (0, 0, 0))
    disk.stages[chain.keys[0]].found = Found(0.7, 1.0)
    add(found, grid, (0, 0, (0, 0, 0)))
    trial = found.next_trial()
    assert len(trial.parts) == 1
    found.stage_done(0, 1, Found(0.7, 1.0), trained=False)
    found.stage_done(0, 2, Found(0.8, 1.0), trained=True)
    assert [part.score for part in trial.parts] == [0.7, 0.8]


def test_a_trial_whose_stages_are_all_there_is_never_handed_out():
    grid = Grid()
    found, disk, _ = planner(grid, limits=Limits(0))
    chain = grid.chain(0, 0, (0, 0, 0))
    for key in chain.keys:
        disk.stages[key].found = Found(0.9, 1.0)
    add(found, grid, (0, 0, (0, 0, 0)))
    assert found.next_trial() is None
    assert found.is_over
    assert found.parts.table.trials[0].score == 0.9


def test_a_stage_that_another_search_trains_is_left_alone_and_looked_at_again(logged):
    grid = Grid()
    found, disk, clock = planner(grid, limits=Limits(0))
    add(found, grid, (0, 0, (0, 0, 0)))
    first = found.parts.table.trials[0].keys[0]
    disk.stages[first].owner = "process 7 on there"
    assert found.next_trial() is None
    assert not found.is_over
    assert any("process 7 on there trains its next stage" in line for line in logged)
    disk.stages[first].owner = None
    assert found.next_trial() is None  # not yet
    clock.now = 6.0
    assert found.next_trial().number == 0


def test_a_divergence_ends_all_chains_through_it_at_no_cost():
    grid = Grid()
    found, _, _ = planner(grid, limits=Limits(0))
    add(found, grid, (0, 0, (0, 0, 0)), (0, 0, (0, 1, 0)))
    assert found.next_trial().number == 0
    assert found.stage_done(0, 1, Found(None, 1.0, "the loss is nan"), trained=True)
    found.ended(0, End(How.DONE))
    assert found.next_trial() is None
    rows = found.parts.table.trials
    assert [row.state for row in rows] == [State.DIVERGED, State.DIVERGED]
    assert rows[1].reason == "the loss is nan"
    assert [heard.score for heard in found.parts.table.heard] == [None]
    assert found.is_over


def test_three_deaths_without_progress_give_a_trial_up_and_progress_counts_anew():
    grid = Grid()
    found, disk, _ = planner(grid, limits=Limits(0))
    add(found, grid, (0, 0, (0, 0, 0)))
    key = found.parts.table.trials[0].keys[0]
    for epochs in (0, 0, 1, 1, 1):
        assert found.next_trial().number == 0
        disk.stages[key].epochs = epochs
        found.ended(0, End(How.DIED, "killed"))
    assert found.next_trial() is None
    row = found.parts.table.trials[0]
    assert (row.state, row.reason) == (State.FAILED, "its process died 3 times: killed")


def test_the_same_failure_three_times_in_a_row_ends_the_search_with_its_reason():
    grid = Grid(levels=3)
    found, _, _ = planner(grid, slots=1, limits=Limits(9))
    error = ConfigError("the file of weights is gone")
    for _ in range(3):
        trial = found.next_trial()
        found.ended(trial.number, End(How.FAILED, error.what, error))
    assert found.next_trial() is None
    assert found.is_over and found.error is error


def test_a_fault_that_kills_every_trial_ends_the_search():
    found, _, _ = planner(Grid(levels=3), slots=1, limits=Limits(9))
    for _ in range(9):
        trial = found.next_trial()
        found.ended(trial.number, End(How.DIED, "ImportError: no module"))
    assert found.is_over and "3 trials in a row failed" in str(found.error)
    assert "no module" in str(found.error)


def test_different_failures_do_not_end_the_search():
    found, _, _ = planner(Grid(levels=3), slots=1, limits=Limits(9))
    for reason in ("one", "two", "one", "two"):
        trial = found.next_trial()
        found.ended(trial.number, End(How.FAILED, reason, DataError(reason)))
    assert found.next_trial() is not None


def test_a_storage_that_fails_in_a_trial_ends_the_search_and_keeps_the_trial():
    found, _, _ = planner(limits=Limits(9))
    trial = found.next_trial()
    error = StorageError("the disk is full")
    found.ended(trial.number, End(How.FAILED, error.what, error))
    assert found.is_over and found.error is error
    assert trial.is_open


def test_a_table_that_cannot_be_written_ends_the_search(monkeypatch):
    monkeypatch.setattr("raytrain.search.planner.SAVE_AGAIN_S", 0.0)

    class Full(Table):
        def save(self):
            raise StorageError("the disk is full")

    found, _, _ = planner(table=Full(""))
    assert found.next_trial() is None
    assert found.is_over and found.error.exit_code == 7


def test_after_a_signal_nothing_is_handed_out_and_the_table_can_go_on():
    found, _, _ = planner(slots=1, limits=Limits(3))
    trial = found.next_trial()
    found.stop("SIGTERM")
    assert found.next_trial() is None and not found.is_over
    found.ended(trial.number, End(How.SIGNALLED))
    assert found.is_over and trial.is_open
    again, _, _ = planner(slots=1, limits=Limits(3), table=found.parts.table)
    assert again.next_trial().number == trial.number


def test_a_search_ends_when_its_space_is_used_up(logged):
    grid = Grid(lengths=(2,), levels=2, shared=1)
    found, _, _ = planner(grid, slots=1, limits=Limits(50))
    numbers = []
    while (trial := found.next_trial()) is not None:
        numbers.append(trial.number)
        train_all(found, trial)
        found.ended(trial.number, End(How.DONE))
    assert len(numbers) == 4 and found.is_over
    assert any("the space is used up" in line for line in logged)


def test_a_budget_keeps_the_time_of_the_reruns():
    found, _, clock = planner(Grid(levels=9), slots=1, limits=Limits(50, budget_s=50.0, reruns=2))
    drawn = 0
    while (trial := found.next_trial()) is not None:
        drawn += 1
        # A second for each stage, as `train_all` says.
        clock.now += len(trial.keys)
        train_all(found, trial)
        found.ended(trial.number, End(How.DONE))
    # Eight reruns of two or three stages take 16 to 24 s of the 50.
    assert 26 <= clock.now <= 34 + 3
    assert drawn < 50


def test_a_budget_ends_the_drawing():
    found, _, clock = planner(slots=1, limits=Limits(50, budget_s=100.0))
    trial = found.next_trial()
    clock.now = 101.0
    train_all(found, trial)
    found.ended(trial.number, End(How.DONE))
    while (trial := found.next_trial()) is not None:
        train_all(found, trial)
        found.ended(trial.number, End(How.DONE))
    # Only what was drawn before the budget was spent.
    assert found.is_over and len(found.parts.table.trials) <= 3


def test_reruns_come_last_and_share_nothing_with_the_search():
    grid = Grid(lengths=(1,), levels=2, shared=1)

    def reruns(table):
        done = {(trial.rerun_of, trial.seed) for trial in table.of_kind(Kind.RERUN)}
        return [(0, 7)] if (0, 7) not in done else []

    found, _, _ = planner(grid, slots=1, limits=Limits(2), reruns=reruns)
    kinds = []
    while (trial := found.next_trial()) is not None:
        kinds.append((trial.kind, trial.rerun_of, trial.seed))
        train_all(found, trial)
        found.ended(trial.number, End(How.DONE))
    assert kinds == [(Kind.DRAWN, None, None), (Kind.DRAWN, None, None), (Kind.RERUN, 0, 7)]
    assert len(found.parts.table.heard) == 2
    assert found.is_over


def test_the_table_is_read_back_as_it_was_written(tmp_path):
    grid = Grid()
    table = Table(str(tmp_path))
    found, _, _ = planner(grid, slots=1, limits=Limits(3), table=table)
    trial = found.next_trial()
    found.stage_done(trial.number, 1, Found(0.5, 1.0), trained=True)
    again = tables.read(str(tmp_path))
    assert again.trials == table.trials and again.heard == table.heard
    (tmp_path / "trials.json").write_text("{}")
    with pytest.raises(DataError, match="cannot be used"):
        tables.read(str(tmp_path))


def test_a_large_budget_is_spent_on_training_and_not_on_rows_that_stop_at_once():
    """Once all first stages are known, what the model holds to be hopeless is not drawn again and again."""
    world = made_up.make("base", 0)
    clock = World(
        made_up.source(),
        lambda key, chain, stage: world.seen(chain, stage),
        seed=0,
        seconds_of=lambda cost: cost,
    )
    limits = Limits(1000, budget_s=30.0)
    [table] = clock.run(Search("search", lambda source: ModelAdvisor(source, 0), limits, slots=1))
    assert clock.clock >= 30.0
    in_vain = [trial for trial in table.trials if not any(part.trained for part in trial.parts)]
    assert len(in_vain) <= len(table.trials) / 10
    to_end = [trial for trial in table.trials if trial.to_end]
    assert to_end and {trial.state for trial in to_end} <= {
        State.COMPLETE,
        State.DIVERGED,
        State.OPEN,
    }
    assert not any(trial.verdicts for trial in to_end)
