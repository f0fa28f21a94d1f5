"""The watchdog: speaks once of a stall, with the stacks, and never of what goes on."""

import threading
import time

import pytest

from raytrain import storage
from raytrain.errors import StorageError
from raytrain.training import watchdog as watching
from raytrain.training.watchdog import TIMES_MEDIAN, Watchdog


@pytest.fixture
def watched(tmp_path):
    said = []
    watchdog = Watchdog(str(tmp_path), 3, 0.2, said.append)
    watchdog.said = said
    yield watchdog
    watchdog.close()


def wait_until(condition):
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    assert condition()


def hangs(watchdog):
    wait_until(lambda: watchdog.said)


def test_a_stall_is_told_once_with_the_place_where_it_hangs(watched, tmp_path):
    watched.start()
    watched.beat()
    hangs(watched)
    wait_until((tmp_path / "stacks" / "rank-3.txt").exists)
    assert "in hangs" in (tmp_path / "stacks" / "rank-3.txt").read_text()
    assert "rank 3 has begun no batch for" in watched.said[0]
    time.sleep(0.5)
    assert len(watched.said) == 1
    watched.beat()
    watched.durations.clear()  # the pause above is not what batches take
    wait_until(lambda: len(watched.said) == 2)


def test_before_the_first_batch_and_after_the_end_nothing_is_a_stall(watched):
    watched.start()
    time.sleep(0.5)
    watched.beat()
    watched.close()
    time.sleep(0.4)
    assert not watched.said and not watched.thread.is_alive()


def test_long_batches_are_no_stall(watched):
    watched.durations.extend([1.0, 2.0, 60.0])
    assert watched.limit_s == TIMES_MEDIAN * 2.0


@pytest.mark.parametrize("telling", ["works", "hangs"])
def test_after_a_stall_was_told_it_acts_even_where_telling_hangs(tmp_path, monkeypatch, telling):
    monkeypatch.setattr(watching, "TELLING_S", 0.3)
    acted, said, freed = [], [], threading.Event()
    say = said.append if telling == "works" else lambda line: freed.wait(20)
    watchdog = Watchdog(str(tmp_path), 0, 0.2, say, lambda: acted.append(list(said)))
    watchdog.start()
    watchdog.beat()
    wait_until(lambda: acted)
    freed.set()
    watchdog.close()
    assert len(acted) == 1 and len(acted[0]) == (telling == "works")


def test_without_storage_the_stacks_are_said(watched, monkeypatch):
    def full(place, text):
        raise StorageError("cannot write")

    monkeypatch.setattr(storage, "write_text", full)
    watched.start()
    watched.beat()
    wait_until(lambda: len(watched.said) == 2)
    assert "cannot write" in watched.said[1] and "Thread" in watched.said[1]
