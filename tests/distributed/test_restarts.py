"""Which failures of workers start the group again."""

import json

import pytest
import ray
import torch

from raytrain import machine
from raytrain.distributed import train
from raytrain.distributed.restarts import MOST_IN_VAIN, Judge, permanent_failure, restarts
from raytrain.errors import DivergedError, NoRoomError, ResourceError
from raytrain.runs import Run

DEAD = ray.exceptions.RayActorError()
BROKEN = RuntimeError("[pair.cc:553] gloo: Connection closed by peer [127.0.0.1]:1")

LOST = torch.distributed.DistNetworkError("Failed to recv, got 0 bytes. Connection was likely closed.")


@pytest.mark.parametrize(
    "failures", [{0: DEAD}, {1: BROKEN}, {0: BROKEN, 1: DEAD}, {0: ConnectionResetError("reset")}, {1: LOST}]
)
def test_a_death_and_what_it_does_to_the_others_pass(failures):
    assert permanent_failure(failures) is None


@pytest.mark.parametrize(
    "error", [DivergedError("the loss became nan"), ModuleNotFoundError("timm"), TypeError("x"), RuntimeError("shape")]
)
def test_an_error_of_the_program_would_come_again(error):
    assert permanent_failure({0: BROKEN, 1: error}) is error
    # Where a rank has died, only our own errors are believed.
    assert permanent_failure({0: DEAD, 1: error}) is (error if isinstance(error, DivergedError) else None)
    wrapped = ray.exceptions.RayTaskError("f", "", error)
    if isinstance(error, DivergedError):
        assert permanent_failure({0: wrapped}) is error


class Lines:
    """Stands for the queue of lines."""

    def __init__(self):
        self.said = []

    def put(self, line):
        self.said.append(line)


def test_a_worker_that_is_ended_for_want_of_memory_starts_again_once(tmp_path):
    lines, memory = Lines(), ray.exceptions.OutOfMemoryError("node is running low on memory")
    callback = restarts(lines, str(tmp_path))
    callback.after_exception(None, {1: memory, 0: BROKEN})
    callback.after_exception(None, {0: DEAD})
    assert len(lines.said) == 2
    with pytest.raises(ResourceError, match=r"rank 1 .* for the 2nd time"):
        callback.after_exception(None, {1: memory, 0: BROKEN})


@pytest.fixture
def kernel(monkeypatch):
    """A control group whose counter of kills a test moves."""
    kills = [3]
    monkeypatch.setattr(machine, "kills", lambda: kills[0])
    monkeypatch.setattr(machine, "memory", lambda: machine.Memory(10**8, "left of the limit of 4.0 GB (memory.max)"))
    return kills


def test_the_second_kill_by_the_kernel_without_progress_ends_the_run_with_what_held_how_much(
    tmp_path, kernel, monkeypatch
):
    held = [("ray::RayTrainWorker", 1_500_000_000), ("raytrain", 700_000_000)]
    monkeypatch.setattr(machine, "holders", lambda: held)
    callback = restarts(Lines(), str(tmp_path))
    callback.after_report(None, None, None)
    monkeypatch.setattr(machine, "holders", lambda: held[1:])  # the largest is gone
    kernel[0] += 1
    callback.after_exception(None, {1: DEAD, 0: BROKEN})
    kernel[0] += 1
    with pytest.raises(ResourceError, match=r"the kernel killed the worker of rank 1 .* for the 2nd time") as caught:
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


def test_waits_for_room_end_a_run_only_where_it_got_no_further(tmp_path, monkeypatch):
    run, lines, groups = Run(str(tmp_path)), [], []

    def group(function, place, recipe, say, on_batch):
        groups.append(place)
        if len(groups) <= 2:
            saved(tmp_path / "checkpoints", len(groups))
        raise NoRoomError("2 workers found no room")

    monkeypatch.setattr(train, "_group", group)
    with pytest.raises(NoRoomError):
        train._while_it_gets_on(run, None, lines.append, None)
    assert len(groups) == 3 and len(lines) == 2 and "the run got further" in lines[0]


def saved(checkpoints, step):
    """What tells how far a run is."""
    place = checkpoints / f"step-{step:08}"
    place.mkdir(parents=True)
    (place / "meta.json").write_text(json.dumps({"stage": 1, "epoch": 0, "epoch_steps": step}))
