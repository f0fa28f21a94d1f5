"""Which failures of workers start the group again."""

import json
import os
import signal
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import ray
import ray.train.torch
import torch

from raytrain import memory
from raytrain.config import Recipe, load_recipe
from raytrain.distributed import train
from raytrain.distributed.messages import Unstarted
from raytrain.distributed.restarts import MOST_IN_VAIN, Judge, permanent_failure, restarts
from raytrain.errors import (
    DivergedError,
    Interrupted,
    NoRoomError,
    ResourceError,
    UnfinishedError,
    exit_code_of,
)
from raytrain.runs import Run

DEAD = ray.exceptions.RayActorError()
BROKEN = RuntimeError("[pair.cc:553] gloo: Connection closed by peer [127.0.0.1]:1")

LOST = torch.distributed.DistNetworkError(
    "Failed to recv, got 0 bytes. Connection was likely closed."
)


@pytest.mark.parametrize(
    "failures",
    [{0: DEAD}, {1: BROKEN}, {0: BROKEN, 1: DEAD}, {0: ConnectionResetError("reset")}, {1: LOST}],
)
def test_a_death_and_what_it_does_to_the_others_pass(failures):
    assert permanent_failure(failures) is None


@pytest.mark.parametrize(
    "error",
    [
        DivergedError("the loss became nan"),
        ModuleNotFoundError("timm"),
        TypeError("x"),
        RuntimeError("shape"),
    ],
)
def test_an_error_of_the_program_would_come_again(error):
    assert permanent_failure({0: BROKEN, 1: error}) is error
    # Where a rank has died, only our own errors are believed.
    assert permanent_failure({0: DEAD, 1: error}) is (
        error if isinstance(error, DivergedError) else None
    )
    wrapped = ray.exceptions.RayTaskError("f", "", error)
    if isinstance(error, DivergedError):
        assert permanent_failure({0: wrapped}) is error


class Call:
    """Stands for a remote method: keeps what it was called with."""

    def __init__(self):
        self.told = []

    def remote(self, value):
        self.told.append(value)


class Box:
    """Stands for the mailbox."""

    def __init__(self):
        self.log, self.step = Call(), Call()


def test_a_worker_that_is_ended_for_want_of_memory_starts_again_once(tmp_path):
    box, memory = Box(), ray.exceptions.OutOfMemoryError("node is running low on memory")
    callback = restarts(str(tmp_path), box)
    callback.after_exception(None, {1: memory, 0: BROKEN})
    callback.after_exception(None, {0: DEAD})
    assert len(box.log.told) == 2 and box.step.told == [False, False]  # no step is under way
    with pytest.raises(ResourceError, match=r"rank 1 .* for the 2nd time"):
        callback.after_exception(None, {1: memory, 0: BROKEN})


@pytest.fixture
def kernel(monkeypatch):
    """A control group whose counter of kills a test moves."""
    kills = [3]
    monkeypatch.setattr(memory, "kills", lambda: kills[0])
    monkeypatch.setattr(
        memory,
        "left",
        lambda: memory.Memory(10**8, "left of the limit of 4.0 GB (memory.max)", 4 * 10**9),
    )
    return kills


def test_the_second_kill_by_the_kernel_without_progress_ends_the_run_with_what_held_how_much(
    tmp_path, kernel, monkeypatch
):
    held = [("ray::RayTrainWorker", 1_500_000_000), ("raytrain", 700_000_000)]
    monkeypatch.setattr(memory, "holders", lambda: held)
    callback = restarts(str(tmp_path), Box())
    callback.after_report(None, None, None)
    monkeypatch.setattr(memory, "holders", lambda: held[1:])  # the largest is gone
    kernel[0] += 1
    callback.after_exception(None, {1: DEAD, 0: BROKEN})
    kernel[0] += 1
    with pytest.raises(
        ResourceError, match=r"the kernel killed the worker of rank 1 .* for the 2nd time"
    ) as caught:
        callback.after_exception(None, {1: DEAD, 0: BROKEN})
    assert caught.value.exit_code == 5
    assert "limit of 4.0 GB" in caught.value.what
    assert "ray::RayTrainWorker 1.5 GB, raytrain 0.7 GB" in caught.value.why


def test_a_death_without_a_kill_by_the_kernel_is_no_want_of_memory(tmp_path, kernel):
    judge = Judge(str(tmp_path))
    for _ in range(MOST_IN_VAIN):
        assert judge.verdict({1: DEAD, 0: BROKEN}) is None
    assert judge.out_of_memory == 0


def test_a_kill_of_another_process_beside_is_no_kill_of_a_worker(tmp_path, kernel):
    judge = Judge(str(tmp_path))
    for _ in range(3):
        kernel[0] += 1
        assert judge.verdict({0: BROKEN}) is None
    assert judge.out_of_memory == 0


def test_kills_between_which_the_run_got_further_do_not_end_it(tmp_path, kernel):
    judge = Judge(str(tmp_path))
    for step in range(1, 6):
        kernel[0] += 1
        assert judge.verdict({1: DEAD}) is None
        saved(tmp_path, step)


def test_failures_count_from_the_last_place_that_the_run_reached(tmp_path):
    judge = Judge(str(tmp_path))
    memory = ray.exceptions.OutOfMemoryError("low")
    for step in range(1, 20):
        assert judge.verdict({0: memory}) is None
        saved(tmp_path, step)
    for _ in range(MOST_IN_VAIN):
        assert judge.verdict({1: DEAD, 0: BROKEN}) is None
    assert judge.verdict({1: DEAD, 0: BROKEN}) is DEAD


def test_waits_for_room_end_a_run_only_where_it_got_no_further(tmp_path, monkeypatch, logged):
    run, groups = Run(str(tmp_path)), []

    def group(function, path, *more):
        groups.append(path)
        if len(groups) <= 2:
            saved(tmp_path / "checkpoints", len(groups))
        raise NoRoomError("2 workers found no room")

    monkeypatch.setattr(train, "_group", group)
    with pytest.raises(NoRoomError):
        train._train_while_progressing(run, None, ())
    assert len(groups) == 3 and len(logged) == 2 and "the run got further" in logged[0]


@pytest.mark.parametrize(
    ("raised", "code"),
    [(Interrupted(15), 143), (KeyboardInterrupt(), 75), (Unstarted(1), 75), (ValueError("x"), 1)],
)
def test_only_a_signal_beside_the_steps_has_cost_nothing(tmp_path, raised, code):
    saved(tmp_path / "checkpoints", 3)
    run = Run(str(tmp_path))
    assert exit_code_of(train._final_error(run, raised)) == code
    # A third signal, while a second one ends the run and its steps are lost.
    raised.__context__ = Interrupted(15)
    assert train._final_error(run, raised) is raised


@pytest.mark.parametrize("trained", [False, True])
def test_a_signal_while_room_is_waited_for_ends_the_run(tmp_path, monkeypatch, trained):
    run, groups = Run(str(tmp_path)), []

    def group(function, path, *more):
        groups.append(path)
        if trained:
            saved(tmp_path / "checkpoints", 3)
        raise Unstarted(signal.SIGTERM)

    monkeypatch.setattr(train, "_group", group)
    with pytest.raises(UnfinishedError if trained else Interrupted) as caught:
        train._attempt(run, Recipe())
    code = 75 if trained else 143
    failure = json.loads((tmp_path / "failure.json").read_text())
    assert len(groups) == 1 and exit_code_of(caught.value) == failure["exit_code"] == code
    assert (
        "stopped by SIGTERM" in failure["message"]
        and "raytrain train --resume" in failure["message"]
    )


def test_a_signal_as_a_wait_for_room_ends_is_kept(tmp_path, monkeypatch):
    """Ray says that there was no room, before the signal was delivered."""

    class Error(ray.train.TrainingFailedError):
        controller_failure = type("WorkerGroupStartupTimeoutError", (Exception,), {})()

    def fit(trainer):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.02)
        raise Error

    @contextmanager
    def nothing(*arguments):
        yield None

    monkeypatch.setattr(train, "mailbox", nothing)
    monkeypatch.setattr(train, "use_gpu", lambda recipe: False)
    monkeypatch.setattr(train, "cpus", lambda: 2)
    monkeypatch.setattr(
        ray.train.torch,
        "TorchTrainer",
        lambda *arguments, **named: SimpleNamespace(
            fit=lambda: fit(0), _initialize_and_run_controller=None
        ),
    )
    with pytest.raises(Unstarted):
        train._group(train.train_worker, str(tmp_path), load_recipe("smoke"))


def saved(checkpoints, step):
    """What tells how far a run is."""
    path = checkpoints / f"step-{step:08}"
    path.mkdir(parents=True)
    (path / "meta.json").write_text(json.dumps({"stage": 1, "epoch": 0, "epoch_steps": step}))
