"""Time that threads waited for a CPU."""

import os
import subprocess
import sys
import threading
import time

import pytest

from raytrain.training.waits import MUCH, Waits, sentence


def turns(tasks, **threads):
    """Writes what the kernel tells: (nanoseconds on a CPU, in the queue) of each thread."""
    for name, (on, queued) in threads.items():
        (tasks / name).mkdir(exist_ok=True)
        (tasks / name / "schedstat").write_text(f"{on} {queued} 7\n")


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("raytrain.training.waits.time.monotonic", lambda: now[0])
    return now


def test_the_working_thread_that_waited_most_counts(tmp_path, clock):
    turns(tmp_path, main=(5, 5), helper=(0, 0), idle=(0, 0))
    waits = Waits(tmp_path)
    clock[0] += 10.0
    second = 10**9
    turns(
        tmp_path,
        main=(5 + 8 * second, 5 + second),
        helper=(6 * second, 4 * second),
        idle=(second, second),
    )
    assert waits.share() == pytest.approx(0.4)
    clock[0] += 10.0
    assert waits.share() == 0.0


def test_a_thread_that_began_meanwhile_counts_and_one_that_ended_does_not(tmp_path, clock):
    turns(tmp_path, main=(0, 0))
    waits = Waits(tmp_path)
    clock[0] += 1.0
    turns(tmp_path, late=(4 * 10**8, 5 * 10**8))
    (tmp_path / "main" / "schedstat").unlink()
    assert waits.share() == pytest.approx(0.5)


def test_without_the_kernel_s_numbers_nothing_is_said(tmp_path):
    waits = Waits(tmp_path / "nothing")
    assert waits.share() == 0.0
    assert sentence([("host", 0.0), ("host", MUCH / 2)]) == "" and sentence([]) == ""


def test_the_sentence_names_the_rank_that_waited_most_and_what_to_do():
    said = sentence([("a", 0.25), ("b", 0.5)])
    assert "rank 1 on b waited for one 50% of the time" in said and "--train.threads 1" in said


BUSY = "import os\nos.sched_setaffinity(0, {%d})\nwhile True: pass"


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="Linux tells it")
def test_the_kernel_s_numbers_show_a_process_beside_us_on_the_same_core():
    core = min(os.sched_getaffinity(0))
    beside = subprocess.Popen([sys.executable, "-c", BUSY % core])
    shares = []

    def work():
        os.sched_setaffinity(threading.get_native_id(), {core})
        waits, end = Waits(), time.monotonic() + 1.5
        while time.monotonic() < end:
            pass
        shares.append(waits.share())

    try:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    finally:
        beside.kill()
        beside.wait()
    assert shares[0] > MUCH
