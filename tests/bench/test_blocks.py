"""Sides in turn, ratios, groups of processes."""

import os
import signal
import time

import pytest

from raytrain.bench import blocks
from raytrain.bench.blocks import Group, alternate, children_stopped, ratios
from raytrain.bench.sides import Resting


class Fake:
    """A side whose rate is its rank and the steps; it notes what it was asked for."""

    def __init__(self, rank=0, notes=None, name=""):
        self.rank, self.notes, self.name = rank, [] if notes is None else notes, name

    def block(self, steps):
        self.notes.append((self.name, steps))
        return 100.0 * self.rank + steps + len(self.notes) / 1000

    def close(self):
        self.notes.append((self.name, None))


def test_sides_take_turns_and_every_second_round_goes_the_other_way(logged):
    notes = []
    sides = {name: Fake(notes=notes, name=name) for name in "abc"}
    rates = alternate(sides, pairs=3, steps=7, warmup=2)
    assert notes == [*zip("abc", [2] * 3, strict=True), *((name, 7) for name in "abccbaabc")]
    # Asked 4th, 9th and 10th in all.
    assert rates["a"] == [7.004, 7.009, 7.010] and rates["c"] == [7.006, 7.007, 7.012]
    assert [line.split(":")[0] for line in logged] == [f"  round {n} of 3" for n in (1, 2, 3)]
    assert "to go" in logged[0]


def test_ratios_are_those_of_each_round():
    assert ratios([2.0, 9.0], [4.0, 3.0]) == (0.5, 3.0)
    with pytest.raises(ValueError):
        ratios([1.0], [1.0, 2.0])


@pytest.mark.slow
def test_a_group_sums_the_rates_of_its_processes_and_ends_them():
    group = Group(2, Fake)
    try:
        assert group.block(5) == pytest.approx(100 + 5 + 5 + 2 / 1000)
        assert group.block(1) == pytest.approx(100 + 1 + 1 + 4 / 1000)
        assert all(process.pid != os.getpid() for process in group.processes)
    finally:
        group.close()
    assert [process.exitcode for process in group.processes] == [0, 0]


def test_a_group_whose_process_fails_says_so_and_leaves_none_behind(capfd):
    before = blocks.multiprocessing.active_children()
    with pytest.raises(RuntimeError, match="ended"):
        Group(1, Fake, "one", "argument", "too many")
    assert blocks.multiprocessing.active_children() == before
    assert "TypeError" in capfd.readouterr().err


def _state(process):
    with open(f"/proc/{process.pid}/stat") as file:
        return file.read().rpartition(") ")[2][0]


def _soon(process, states):
    end = time.monotonic() + 20
    while _state(process) not in states and time.monotonic() < end:
        time.sleep(0.01)
    return _state(process)


@pytest.fixture
def sleeper():
    process = blocks.multiprocessing.get_context("spawn").Process(target=time.sleep, args=(100,))
    process.start()
    yield process
    process.kill()
    process.join()


def test_other_processes_stand_still_between_the_blocks_of_a_resting_side(sleeper):
    side = Resting(Fake())
    assert side.block(3) == 3.001
    assert _soon(sleeper, "T") == "T"
    seen = []
    side.side.block = lambda steps: seen.append(_soon(sleeper, "SR")) or 1.0
    side.block(3)
    assert seen[0] in "SR" and _soon(sleeper, "T") == "T"
    side.close()
    assert _soon(sleeper, "SR") in "SR" and side.side.notes[-1] == ("", None)


def test_stopped_processes_go_on_after_an_error(sleeper):
    with pytest.raises(KeyError), children_stopped():
        assert _soon(sleeper, "T") == "T"
        raise KeyError
    assert _soon(sleeper, "SR") in "SR"
    os.kill(sleeper.pid, signal.SIGTERM)
    sleeper.join(20)
    assert sleeper.exitcode == -signal.SIGTERM
