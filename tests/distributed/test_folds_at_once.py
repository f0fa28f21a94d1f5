"""Folds that train at the same time: how many, with how many threads, and how they end."""

import json
import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from searching import Driver
from test_folds import recipe, rows

from raytrain.cli.main import run_command
from raytrain.config import load_recipe
from raytrain.data.dataset import open_dataset
from raytrain.distributed import folds, folds_at_once, memory, slots
from raytrain.distributed.fold_limits import Limit, in_words, threads_of_worker
from raytrain.distributed.folds_at_once import Fold, Work, seconds_to_go, train_at_once
from raytrain.distributed.memory import CONTROLLER_BYTES, RAY_BYTES, WORKER_BYTES, needed
from raytrain.distributed.slots import Resources
from raytrain.errors import DataError, Interrupted, NoRoomError, StorageError, UnfinishedError
from raytrain.log import labelled
from raytrain.memory import Memory

# How many fit


@pytest.mark.parametrize(
    ("limit", "has", "at_once"),
    [
        (Limit(1, gpu=False), Resources(1), 1),
        (Limit(1, gpu=False), Resources(2), 1),
        (Limit(1, gpu=False), Resources(3), 2),
        (Limit(1, gpu=False), Resources(16), 15),
        # On two CPUs, two workers take half a CPU each; on many, one each.
        (Limit(2, gpu=False), Resources(2), 1),
        (Limit(2, gpu=False), Resources(4), 1),
        (Limit(2, gpu=False), Resources(5), 2),
        (Limit(3, gpu=False), Resources(3), 1),
        # Of folds on GPUs the GPUs count alone: each has its share of the CPUs.
        (Limit(1, gpu=True), Resources(16, 4), 4),
        (Limit(2, gpu=True), Resources(16, 5), 2),
        (Limit(1, gpu=True), Resources(3, 8), 8),
        (Limit(1, gpu=False), Resources(16, 4), 15),
        # Threads that are given: four folds of four threads use sixteen CPUs.
        (Limit(1, gpu=False, threads=4), Resources(16), 4),
        (Limit(2, gpu=False, threads=16), Resources(16), 1),
        (Limit(1, gpu=True, threads=16), Resources(16, 4), 4),
        (Limit(1, gpu=False, most=3), Resources(16), 3),
        # A fold that is too large is refused where it starts, not here.
        (Limit(8, gpu=True), Resources(4, 2), 1),
    ],
)
def test_as_many_folds_as_fit_into_cpus_gpus_threads_and_memory(limit, has, at_once):
    assert limit.at_once(has) == at_once


def test_folds_at_once_share_the_cpus_as_threads():
    assert threads_of_worker(16, workers=1, at_once=1) == 16
    assert threads_of_worker(16, workers=1, at_once=5) == 3
    assert threads_of_worker(16, workers=2, at_once=5) == 1
    assert threads_of_worker(2, workers=1, at_once=3) == 1
    # The number that is recorded leaves room for as many folds as it was made for.
    for cpus in range(1, 40):
        for workers in (1, 2, 3):
            at_once = Limit(workers, gpu=False).at_once(Resources(cpus))
            threads = threads_of_worker(cpus, workers, at_once)
            assert Limit(workers, gpu=False, threads=threads).at_once(Resources(cpus)) == at_once


def test_memory_holds_groups_with_what_each_has_beside_its_workers(monkeypatch):
    settings = load_recipe("quickstart", {"num_workers": 2, "train": {"precision": "fp32"}})
    worker = needed(settings, 17).worker
    # RAY_BYTES holds the controller of the first group.
    three = RAY_BYTES + 3 * 2 * worker + 2 * CONTROLLER_BYTES
    monkeypatch.setattr("raytrain.memory.resident", lambda: 0)

    def fit(size):
        monkeypatch.setattr("raytrain.memory.left", lambda: Memory(size, "free", size))
        return memory.groups_that_fit(settings, 17)

    assert (fit(three), fit(three - 1), fit(1)) == (3, 2, 1)
    # A trial of a search with a group has a process of its own before it.
    trials = three + 3 * WORKER_BYTES
    monkeypatch.setattr("raytrain.memory.left", lambda: Memory(trials, "free", trials))
    assert memory.trials_that_fit(settings, 17) == 3
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert memory.groups_that_fit(settings, 17) is None


def test_the_end_is_that_of_the_last_fold():
    # One after the other.
    assert seconds_to_go(10.0, running=[], waiting=4, at_once=1) == 40.0
    # Five folds, two at once: the first has just ended, the second is about to.
    assert seconds_to_go(10.0, running=[10.0], waiting=3, at_once=2) == 20.0
    assert seconds_to_go(10.0, running=[2.0], waiting=3, at_once=2) == 20.0
    assert seconds_to_go(10.0, running=[4.0], waiting=0, at_once=2) == 6.0
    # Longer than expected is about to end.
    assert seconds_to_go(10.0, running=[12.0], waiting=0, at_once=3) == 0.0
    assert seconds_to_go(10.0, running=[5.0, 6.0, 7.0], waiting=1, at_once=2) == 13.0


def test_the_number_of_folds_in_words():
    assert in_words(5, 15) == "5 folds to train, 5 at once"
    assert in_words(5, 1) == "5 folds to train, one after the other"
    assert in_words(1, 15) == "1 fold to train"
    assert in_words(0, 15) == "all folds are trained"


def test_every_line_of_a_label_begins_with_it(logged):
    with labelled("fold 2: "):
        folds_at_once.logger.info("epoch 1\n  slow")
    folds_at_once.logger.info("plain")
    assert logged == ["fold 2: epoch 1\nfold 2:   slow", "plain"]


# How they start and end, without Ray


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """The limit is asked again at once."""
    monkeypatch.setattr(folds_at_once, "ASK_EVERY_S", 0.02)


class Training:
    """Folds whose training lasts until the test lets it end."""

    def __init__(self, at_once, count=4):
        self.folds = [Fold(f"cv-{n}", f"n-cv-{n}", n, count) for n in range(1, count + 1)]
        self.at_once = at_once
        self.running = []
        self.most = 0
        self.done = []
        self.ends = {fold: threading.Event() for fold in self.folds}
        self.errors = {}
        self.killed = threading.Event()
        # Whether a first signal is not heard, as in a step that lasts.
        self.steps_on = False

    @property
    def work(self):
        return Work(
            folds=self.folds,
            train=self.train,
            at_once=lambda: self.at_once,
            done=self.done.append,
            end_groups=self.killed.set,
            began=time.monotonic(),
        )

    def train(self, fold, stop):
        self.running.append(fold.number)
        self.most = max(self.most, len(self.running))
        try:
            while not self.ends[fold].wait(0.005):
                if self.killed.is_set():
                    raise RuntimeError("the controller is gone")
                if stop.reason() is not None and not self.steps_on:
                    raise UnfinishedError(f"stopped by {stop.reason()}")
            if fold in self.errors:
                raise self.errors.pop(fold)
        finally:
            self.running.remove(fold.number)

    def end(self, *numbers):
        for number in numbers:
            self.ends[self.folds[number - 1]].set()

    def fail(self, number, error):
        self.errors[self.folds[number - 1]] = error
        self.end(number)

    def wait_for(self, *numbers):
        end = time.monotonic() + 10
        while sorted(self.running) != list(numbers):
            assert time.monotonic() < end, self.running
            time.sleep(0.005)


def beside(training, script):
    """Trains in the main thread while a script acts in another. Raises what either does."""
    faults = []

    def act():
        try:
            script()
        except BaseException as error:
            faults.append(error)
            training.end(*range(1, len(training.folds) + 1))

    thread = threading.Thread(target=act)
    thread.start()
    try:
        train_at_once(training.work)
    finally:
        thread.join()
        assert not faults, faults


def test_folds_start_as_others_end_and_as_the_cluster_grows(logged):
    training = Training(at_once=2, count=5)

    def script():
        training.wait_for(1, 2)
        training.end(2)
        training.wait_for(1, 3)
        training.at_once = 3
        training.wait_for(1, 3, 4)
        training.at_once = 1
        training.end(1, 3)
        training.wait_for(4)
        training.end(4)
        training.wait_for(5)
        training.end(5)

    beside(training, script)
    assert {fold.number for fold in training.done} == {1, 2, 3, 4, 5} and training.most == 3
    assert "fold 2 of 5: n-cv-2" in logged
    assert sum("is done, 0:00 after the start, 0:00 to go" in line for line in logged) == 5


def test_after_a_failure_the_others_end_and_none_starts(logged):
    training = Training(at_once=3)

    def script():
        training.wait_for(1, 2, 3)
        training.fail(2, DataError("tile 7 is damaged", "it cannot be read"))
        training.wait_for(1, 3)
        time.sleep(0.1)
        assert any("failed" in line for line in logged)
        training.fail(3, ValueError("the second error"))
        training.wait_for(1)
        training.end(1)

    with pytest.raises(DataError, match="tile 7 is damaged"):
        beside(training, script)
    assert [fold.number for fold in training.done] == [1]
    assert (
        "fold 2 of 4 failed: tile 7 is damaged; the 2 other folds that run go on to their ends, "
        "and no further one starts"
    ) in logged
    assert (
        "fold 3 of 4 failed: ValueError: the second error; the other fold that runs goes on to "
        "its end, and no further one starts"
    ) in logged


def test_a_fold_whose_end_cannot_be_noted_is_a_failure():
    training = Training(at_once=2, count=2)

    def done(fold):
        raise StorageError("the disk is full")

    training.end(1, 2)
    with pytest.raises(StorageError, match="the disk is full"):
        train_at_once(replace(training.work, done=done))


def test_a_fold_that_finds_no_room_waits_until_another_one_ends(logged):
    training = Training(at_once=3)

    def script():
        training.wait_for(1, 2, 3)
        training.fail(2, NoRoomError("1 workers found no room"))
        training.wait_for(1, 3)
        training.ends[training.folds[1]].clear()
        time.sleep(0.1)
        training.wait_for(1, 3)
        training.end(3)
        training.wait_for(1, 2, 4)
        training.end(1, 2, 4)

    beside(training, script)
    assert len(training.done) == 4
    assert any("fold 2 of 4 found no room" in line for line in logged)
    # Where it is the only one, nobody else of this command will make room.
    training = Training(at_once=2, count=1)
    training.fail(1, NoRoomError("1 workers found no room"))
    with pytest.raises(NoRoomError):
        train_at_once(training.work)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_that_run_and_none_starts(number, logged):
    training = Training(at_once=2)

    def script():
        training.wait_for(1, 2)
        training.end(2)
        training.wait_for(1, 3)
        os.kill(os.getpid(), number)
        training.wait_for()

    with pytest.raises(UnfinishedError, match=f"stopped by {number.name}, .* of n-cv-1, n-cv-3$"):
        beside(training, script)
    assert [fold.number for fold in training.done] == [2]
    assert sum("once more stops all at once" in line for line in logged) == 1


def test_a_signal_before_any_first_step_keeps_nothing():
    training = Training(at_once=2)

    def train(fold, stop):
        while stop.reason() is None:
            time.sleep(0.005)
        raise Interrupted(signal.SIGTERM)

    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    with pytest.raises(Interrupted) as caught:
        train_at_once(replace(training.work, train=train))
    assert caught.value.exit_code == 143


def test_a_second_signal_ends_at_once_and_waits_for_the_threads(monkeypatch):
    monkeypatch.setattr("raytrain.distributed.messages.SAME_SIGNAL_S", 0.05)
    training = Training(at_once=2)
    training.steps_on = True

    def script():
        training.wait_for(1, 2)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
        training.wait_for()

    with pytest.raises(Interrupted) as caught:
        beside(training, script)
    assert caught.value.exit_code == 130 and training.done == []


def test_a_fault_of_the_limit_leaves_no_thread_behind(monkeypatch):
    training = Training(at_once=2)
    answers = iter([1])
    training.end(1)
    with pytest.raises(StopIteration):
        train_at_once(replace(training.work, at_once=lambda: next(answers)))
    assert training.running == []


# On Ray


@pytest.fixture
def three_cpus(monkeypatch):
    """The cluster of two CPUs says that it has three: two folds of one worker take two."""
    monkeypatch.setattr(slots, "resources", lambda: Resources(3))


def one_thread(divided, storage, **fields):
    return recipe(divided, storage, train={"batch_size": 16, "threads": 1}, **fields)


@pytest.fixture(scope="module")
def divided(dataset, tmp_path_factory):
    """The dataset of 160 tiles in two folds, half, and in three, cv."""
    path = tmp_path_factory.mktemp("divided") / "tiles"
    shutil.copytree(dataset.path, path)
    for name, count in (("half", "2"), ("cv", "3")):
        assert run_command(["data", "split", str(path), "--folds", count, "--name", name]) == 0
    return open_dataset(str(path))


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_two_folds_at_once_are_those_of_one_after_the_other(
    divided, tmp_path, monkeypatch, logged, request
):
    """Both groups train at the same time; the bits are those of one process that trains in turn."""
    assert slots.resources() == Resources(2)
    monkeypatch.setattr(slots, "resources", lambda: Resources(3))
    at_once = folds.train_folds(one_thread(divided, tmp_path / "at_once"), "half", "n")
    assert "2 folds to train, 2 at once" in logged
    of_runs = [line for line in logged if line.startswith(("fold 1: ", "fold 2: "))]
    # Of every line of a run, it is known whose it is.
    assert not [line for line in logged if "epoch 1/1" in line and line not in of_runs]
    assert sum("epoch 1/1" in line for line in of_runs) == 2
    assert sum("starting 1 CPU worker" in line for line in of_runs) == 2
    # Both had begun before the first was done.
    first_end = next(n for n, line in enumerate(logged) if " is done, " in line)
    begun = [line for line in logged[:first_end] if "starting 1 CPU worker" in line]
    assert len(begun) == 2
    assert json.loads((tmp_path / "at_once/n/folds.json").read_text())["done"] == [
        "half-1",
        "half-2",
    ]
    logged.clear()
    monkeypatch.setattr(slots, "resources", lambda: Resources(2))
    request.getfixturevalue("in_this_process")
    in_turn = folds.train_folds(one_thread(divided, tmp_path / "in_turn"), "half", "n")
    assert "2 folds to train, one after the other" in logged
    assert not any(line.startswith("fold 1: ") for line in logged)
    assert rows(at_once) == rows(in_turn)


@pytest.mark.usefixtures("cluster", "in_this_process", "three_cpus")
def test_a_fold_that_fails_beside_another_is_the_error_and_all_go_on_later(
    divided,
    tmp_path,
    monkeypatch,
    logged,
):
    group = folds.train.__globals__["_group"]

    def fails_in_the_first(function, path, *more):
        if path.endswith("cv-1"):
            raise DataError("tile 7 is damaged")
        return group(function, path, *more)

    monkeypatch.setattr("raytrain.distributed.train._group", fails_in_the_first)
    settings = one_thread(divided, tmp_path)
    with pytest.raises(DataError, match="tile 7 is damaged"):
        folds.train_folds(settings, "cv", "n")
    assert json.loads((tmp_path / "n/folds.json").read_text())["done"] == ["cv-2"]
    assert json.loads((tmp_path / "n/failure.json").read_text())["error"] == "DataError"
    assert json.loads((tmp_path / "n-cv-1/failure.json").read_text())["error"] == "DataError"
    assert not (tmp_path / "n-cv-3").exists()
    assert any("fold 1 of 3 failed: tile 7 is damaged; the other fold" in line for line in logged)
    assert f"all folds go on with: raytrain train --resume n --storage {tmp_path}" in logged


@pytest.mark.usefixtures("cluster", "three_cpus")
def test_a_dry_run_says_how_many_train_at_once_and_their_threads(divided, tmp_path, capsys):
    (tmp_path / "r.yaml").write_text("stages: [{size: 32, epochs: 1, lr: 0.005}]\n")
    given = ["--config", str(tmp_path / "r.yaml"), "--dataset", divided.path, "--no-use-gpu"]
    more = ["--folds", "cv", "--name", "n", "--storage", str(tmp_path), "--model.weights", "none"]
    assert run_command(["train", *given, *more, "--dry-run"]) == 0
    assert "3 folds to train, 2 at once; threads per worker: " in capsys.readouterr().out
    assert run_command(["train", *given, *more, "--dry-run", "--train.threads", "2"]) == 0
    last = capsys.readouterr().out
    assert "3 folds to train, one after the other; threads per worker: 2" in last


def test_threads_are_resolved_once_for_all_folds_of_a_machine(divided, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.setattr(slots, "resources", lambda: Resources(16))
    monkeypatch.setattr(folds, "groups_that_fit", lambda *given: 2)
    found = folds.planned(recipe(divided, tmp_path), "cv", "n")
    assert found.recipe.train.threads == 8
    monkeypatch.setattr(folds, "groups_that_fit", lambda *given: None)
    found = folds.planned(recipe(divided, tmp_path), "cv", "n")
    assert found.recipe.train.threads == 5  # three folds, not the fifteen that would fit
    # A cluster is asked once it is connected.
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr("raytrain.distributed.preflight.check_workers", lambda number: None)
    found = folds.planned(recipe(divided, tmp_path), "cv", "n")
    assert found.recipe.train.threads is None
    assert folds.plan_in_words(found) == (
        "3 folds to train, one after the other, or as many at once as the cluster holds when they "
        "start"
    )


@pytest.mark.usefixtures("cluster", "in_this_process")
def test_on_a_cluster_the_threads_are_recorded_when_folds_first_train_at_once(
    divided,
    tmp_path,
    monkeypatch,
    logged,
):
    """As if the cluster of two CPUs had twelve, and RAY_ADDRESS named it."""
    monkeypatch.setattr("raytrain.distributed.environment.connects", lambda *given: True)
    monkeypatch.setattr("raytrain.distributed.preflight.check_networks", lambda *given: None)
    monkeypatch.setattr(folds, "train_at_once", lambda work: [work.done(f) for f in work.folds])
    monkeypatch.setattr(folds, "join", lambda *given: None)
    monkeypatch.setattr(folds.predictions, "write", lambda *given: None)
    monkeypatch.setattr(slots, "resources", lambda: Resources(12))
    monkeypatch.setattr(folds, "cpus", lambda: 12)
    found = folds.train_folds(recipe(divided, tmp_path), "cv", "n")
    assert found.recipe.train.threads == 4
    assert "threads per worker: 4, in all folds that follow" in logged
    assert folds.find(str(tmp_path / "n")).recipe.train.threads == 4
    # The number that was recorded stays.
    monkeypatch.setattr(folds, "cpus", lambda: 24)
    assert folds.train_folds(recipe(divided, tmp_path), "cv", "n").recipe.train.threads == 4


# Signals

# A session of the command's own, which declares three CPUs.
CODE = (
    "import functools, ray\n"
    "ray.init = functools.partial(ray.init, num_cpus=3)\n"
    "from raytrain.cli.main import main\n"
    "main()\n"
)


def written(folder, dataset, epochs):
    (folder / "r.yaml").write_text(
        "train: {batch_size: 8, threads: 1}\n"
        f"stages: [{{size: 64, epochs: {epochs}, freeze: false, lr: 0.005}}]\n"
    )
    given = ["--config", str(folder / "r.yaml"), "--dataset", dataset.path, "--no-use-gpu"]
    return ["train", *given, "--model.weights", "none", "--folds", "half", "--name", "n"]


def epochs_of(run: Path) -> int:
    history = run / "history.csv"
    return len(history.read_text().splitlines()) - 1 if history.exists() else 0


@pytest.mark.slow
@pytest.mark.usefixtures("no_cluster")
def test_signals_while_two_folds_train_cost_no_bit(divided, tmp_path):
    """./dev test -m slow tests/distributed/test_folds_at_once.py"""
    command = written(tmp_path, divided, epochs=30)
    whole = Driver(tmp_path, [*command, "--storage", str(tmp_path / "whole")], CODE)
    assert whole.end(300) == 0, whole.text
    assert "2 folds to train, 2 at once" in whole.text
    cut = tmp_path / "cut"
    again = ["train", "--resume", "n", "--storage", str(cut)]
    reached = 0
    for number in (signal.SIGINT, signal.SIGTERM):
        first = [*command, "--storage", str(cut)] if number == signal.SIGINT else again
        driver = Driver(tmp_path, first, CODE)
        target = reached + 2
        driver.wait_for(lambda target=target: _both_reached(cut, target))
        sent = time.time()
        driver.send(number)
        assert driver.end() == 75, driver.text
        assert f"stopped by {number.name}, with everything kept" in driver.text
        assert "in the checkpoints of n-half-1, n-half-2" in driver.text
        assert "raytrain train --resume n --storage" in driver.text
        assert "Traceback" not in driver.text
        for split in ("half-1", "half-2"):
            newest = (cut / f"n-{split}/checkpoints").glob("*/MANIFEST.json")
            assert max(path.stat().st_mtime for path in newest) > sent
        reached = max(epochs_of(cut / "n-half-1"), epochs_of(cut / "n-half-2"))
    driver = Driver(tmp_path, again, CODE)
    assert driver.end(300) == 0, driver.text
    joined = "n/predictions.parquet"
    assert (cut / joined).read_bytes() == (tmp_path / "whole" / joined).read_bytes()
    assert epochs_of(cut / "n-half-1") == epochs_of(cut / "n-half-2") == 30


def _both_reached(folder, epochs):
    return min(epochs_of(folder / "n-half-1"), epochs_of(folder / "n-half-2")) >= epochs


@pytest.mark.slow
@pytest.mark.usefixtures("no_cluster")
def test_a_second_signal_ends_two_folds_that_start(divided, tmp_path):
    command = written(tmp_path, divided, epochs=5)
    driver = Driver(tmp_path, [*command, "--storage", str(tmp_path)], CODE)
    driver.wait_for(lambda: driver.text.count("starting 1 CPU worker") == 2)
    driver.send(signal.SIGTERM)
    # Later than what counts as the same signal, and long before the first step.
    time.sleep(2.5)
    driver.send(signal.SIGTERM)
    assert driver.end(60) == 143, driver.text
    assert "raytrain train --resume n --storage" in driver.text
    assert "Traceback" not in driver.text and "failed" not in driver.text


@pytest.mark.slow
@pytest.mark.usefixtures("cluster", "three_cpus")
def test_a_fold_whose_worker_fails_lets_the_other_end(divided, tmp_path, monkeypatch, logged):
    group = folds.train.__globals__["_group"]

    def broken(config):
        raise DataError("tile 7 is damaged")

    def broken_in_the_first(function, path, *more):
        if path.endswith("cv-1"):
            function = broken
        return group(function, path, *more)

    monkeypatch.setattr("raytrain.distributed.train._group", broken_in_the_first)
    with pytest.raises(DataError, match="tile 7 is damaged"):
        folds.train_folds(one_thread(divided, tmp_path), "cv", "n")
    assert json.loads((tmp_path / "n/folds.json").read_text())["done"] == ["cv-2"]
    assert not (tmp_path / "n-cv-3").exists()
    said = [line for line in logged if line.startswith("fold 1 of 3 failed: ")]
    assert len(said) == 1 and "tile 7 is damaged; the other fold that runs goes on" in said[0]
