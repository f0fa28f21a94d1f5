"""The watchdog: speaks once of a stall, with the stacks, and never of what goes on."""

import threading
import time

import pytest

from raytrain import storage
from raytrain.checkpoints.saver import Saver
from raytrain.errors import StorageError
from raytrain.log import heard
from raytrain.training import watchdog as watching
from raytrain.training.watchdog import TIMES_MEDIAN, Saves, Watchdog


@pytest.fixture
def watched(tmp_path, logged):
    watchdog = Watchdog(str(tmp_path), 3, 0.2)
    watchdog.said = logged
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
    watchdog = Watchdog(str(tmp_path), 0, 0.2, lambda: acted.append(list(said)))
    with heard(said.append if telling == "works" else lambda line: freed.wait(20)):
        watchdog.start()
        watchdog.beat()
        wait_until(lambda: acted)
        freed.set()
        watchdog.close()
        # What tells of the stall goes on in a thread: it would log into the next test.
        wait_until((tmp_path / "stacks" / "rank-0.txt").exists)
    assert len(acted) == 1 and len(acted[0]) == (telling == "works")


class Others(Saves):
    """Another rank writes until it is told to end; afterwards it counts the seconds, as a mailbox does."""

    def __init__(self):
        self.ended, self.asked = None, 0

    def ago(self):
        self.asked += 1
        return 0.0 if self.ended is None else time.monotonic() - self.ended


def test_a_checkpoint_being_written_here_is_no_stall_and_is_told_once(tmp_path, logged):
    writing, noted, said = [True], [], logged

    class Noted(Saves):
        def note(self, writing):
            noted.append(writing)

    watchdog = Watchdog(str(tmp_path), 0, 0.2, writes=lambda: writing[0], saves=Noted())
    watchdog.start()
    watchdog.beat()
    wait_until(lambda: said)
    time.sleep(0.6)
    assert (
        len(said) == 1
        and "training waits for a checkpoint to be written" in said[0]
        and noted == [True]
    )
    writing[0] = False
    ended = time.monotonic()
    wait_until(lambda: len(said) == 2)  # what hangs after it is a stall
    watchdog.close()
    assert (
        time.monotonic() - ended >= 0.2
        and "has begun no batch" in said[1]
        and noted == [True, False]
    )


def test_a_checkpoint_that_another_rank_writes_is_no_stall(tmp_path, logged):
    others, said = Others(), logged
    watchdog = Watchdog(str(tmp_path), 1, 0.2, saves=others)
    watchdog.start()
    watchdog.beat()
    wait_until(lambda: others.asked > 3)
    assert not said
    others.ended = time.monotonic()
    asked = others.asked
    wait_until(lambda: others.asked > asked or said)
    wait_until(lambda: said)
    assert time.monotonic() - others.ended >= 0.2
    watchdog.close()


def test_no_rank_asks_for_the_others_while_batches_come(tmp_path):
    others = Others()
    watchdog = Watchdog(str(tmp_path), 1, 5.0, print, saves=others)
    watchdog.start()
    watchdog.beat()
    time.sleep(1.2)
    watchdog.close()
    assert others.asked == 0


def test_a_saver_writes_until_what_it_was_given_is_written(tmp_path, monkeypatch):
    """Also while the training thread waits for it, which is when a watchdog asks."""
    go_on, seen = threading.Event(), []
    saver = Saver(str(tmp_path / "checkpoints"), None)
    monkeypatch.setattr(saver, "_write", lambda entries: go_on.wait(20))
    assert not saver.writing
    saver.save([("last", None)], time.monotonic())
    thread = threading.Thread(target=saver.wait)
    thread.start()
    wait_until(lambda: saver.pending is None)
    seen.append(saver.writing)
    go_on.set()
    thread.join()
    saver.close()
    assert seen == [True] and not saver.writing


def test_without_storage_the_stacks_are_said(watched, monkeypatch):
    def full(path, text):
        raise StorageError("cannot write")

    monkeypatch.setattr(storage, "write_text", full)
    watched.start()
    watched.beat()
    wait_until(lambda: len(watched.said) == 2)
    assert "cannot write" in watched.said[1] and "Thread" in watched.said[1]
