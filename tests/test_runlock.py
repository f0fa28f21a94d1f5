"""The lock of a run: one owner, taken over from the dead, never from the living."""

import errno
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from raytrain import runlock, storage
from raytrain.cli.main import run_command
from raytrain.config import load_recipe
from raytrain.errors import ConfigError, StorageError

HOLDER = """
import sys, time
from raytrain.errors import ConfigError, StorageError
from raytrain.runlock import held
while time.time() < float(sys.argv[2]):
    pass
try:
    with held(sys.argv[1]):
        print("held", flush=True)
        time.sleep(float(sys.argv[3]))
except ConfigError:
    print("refused", flush=True)
"""


def holder(path, at=0.0, seconds=60.0):
    command = [sys.executable, "-c", HOLDER, str(path), str(at), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def content(path):
    return json.loads((path / "lock.json").read_text())


def test_a_second_owner_is_refused_and_the_lock_goes_with_the_first(tmp_path):
    with runlock.held(str(tmp_path / "run")):
        with pytest.raises(ConfigError) as caught, runlock.held(str(tmp_path / "run")):
            pass
        assert (
            f"process {os.getpid()} on {platform.node()}, last heard of 0 s ago"
            in caught.value.what
        )
    assert list(tmp_path.iterdir()) == []
    with runlock.held(str(tmp_path / "run")):
        pass


def test_the_lock_of_a_killed_process_is_taken_over_at_once(tmp_path):
    process = holder(tmp_path)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(ConfigError, match=f"process {process.pid} "), runlock.held(str(tmp_path)):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    with runlock.held(str(tmp_path)):
        assert content(tmp_path)["pid"] == os.getpid()


def test_a_run_that_is_being_trained_is_refused_by_the_commands_before_ray_starts(
    dataset, tmp_path, capsys
):
    arguments = [
        "train",
        "--config",
        "smoke",
        "--dataset",
        dataset.path,
        "--storage",
        str(tmp_path),
    ]
    with runlock.held(str(tmp_path / "n")):
        assert run_command([*arguments, "--name", "n"]) == 2
        (tmp_path / "n" / "config.yaml").write_text(
            load_recipe("smoke", {"dataset": dataset.path}).to_yaml()
        )
        assert run_command(["train", "--resume", "n", "--storage", str(tmp_path)]) == 2
    found = capsys.readouterr()
    assert (
        found.err.count("the run n is being trained by process") == 2
        and "starting" not in found.out
    )


def test_a_number_that_another_process_has_now_does_not_keep_the_lock(tmp_path):
    (tmp_path / "config.yaml").touch()
    with runlock.held(str(tmp_path)):
        owner = content(tmp_path)
    (tmp_path / "lock.json").write_text(json.dumps(owner | {"started": "1", "token": "x"}))
    with runlock.held(str(tmp_path)):
        assert content(tmp_path)["started"] == owner["started"]


@pytest.mark.parametrize(
    ("age", "beats", "free"), [(10, False, False), (100, False, True), (100, True, False)]
)
def test_elsewhere_a_silent_owner_loses_it_and_one_that_is_heard_keeps_it(
    tmp_path, monkeypatch, age, beats, free
):
    monkeypatch.setattr(runlock, "BEAT_S", 0.3)
    owner = {"host": "elsewhere", "pid": 1, "started": "1", "token": "x", "beat": time.time() - age}
    (tmp_path / "lock.json").write_text(json.dumps(owner))
    if beats:  # with a clock that is behind
        beat = threading.Timer(0.1, lambda: runlock._write(str(tmp_path), owner))
        beat.start()
    if free:
        with runlock.held(str(tmp_path)):
            assert content(tmp_path)["pid"] == os.getpid()
    else:
        with pytest.raises(ConfigError, match="on elsewhere"), runlock.held(str(tmp_path)):
            pass


@pytest.mark.parametrize(
    ("processes", "age", "free"),
    [
        ("another container", 10, False),
        ("another container", 100, True),
        (None, 10, False),
        (None, 100, True),
        ("ours", 10, True),
        ("an earlier version", 10, True),
    ],
)
def test_a_host_of_the_same_name_is_not_this_one_where_it_numbers_its_processes_itself(
    tmp_path, monkeypatch, processes, age, free
):
    monkeypatch.setattr(runlock, "BEAT_S", 0.3)
    # There is no such process here, and in the other container there may be.
    owner = {
        "host": platform.node(),
        "pid": 2**22 + 1,
        "started": "1",
        "token": "x",
        "beat": time.time() - age,
    }
    with runlock.held(str(tmp_path / "first")):
        ours = content(tmp_path / "first")["processes"]
    if processes != "an earlier version":
        owner["processes"] = ours if processes == "ours" else processes
    (tmp_path / "config.yaml").touch()
    (tmp_path / "lock.json").write_text(json.dumps(owner))
    if free:
        with runlock.held(str(tmp_path)):
            assert content(tmp_path)["processes"] == ours
    else:
        with pytest.raises(ConfigError, match="last heard of 1"), runlock.held(str(tmp_path)):
            pass


def test_where_nothing_tells_who_numbers_the_processes_only_the_heart_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(runlock, "_process_namespace", lambda: None)
    process = {
        "host": platform.node(),
        "pid": 2**22 + 1,
        "started": "1",
        "token": "x",
        "beat": time.time(),
    }
    (tmp_path / "lock.json").write_text(json.dumps(process | {"processes": None}))
    with pytest.raises(ConfigError), runlock.held(str(tmp_path)):
        pass


def test_a_process_in_a_namespace_of_its_own_is_not_taken_for_dead(tmp_path):
    tool = shutil.which("unshare")
    if tool is None or subprocess.run([tool, "--pid", "--fork", "true"]).returncode != 0:
        pytest.skip("no right to make a process namespace")
    command = [
        "unshare",
        "--pid",
        "--fork",
        "--mount-proc",
        sys.executable,
        "-c",
        HOLDER,
        str(tmp_path),
        "0",
        "20",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        assert content(tmp_path)["host"] == platform.node() and content(tmp_path)["pid"] < 10
        with pytest.raises(ConfigError, match="is being trained"), runlock.held(str(tmp_path)):
            pass
    finally:
        # SIGTERM does not end the first process of a namespace.
        os.kill(next(iter(children(process.pid))), signal.SIGKILL)
        process.wait()


def children(pid):
    return [int(word) for word in open(f"/proc/{pid}/task/{pid}/children").read().split()]


def test_the_heart_beats_and_stops_where_the_lock_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(runlock, "BEAT_S", 0.05)
    with runlock.held(str(tmp_path)):
        first = content(tmp_path)["beat"]
        while content(tmp_path)["beat"] == first:
            time.sleep(0.02)
        other = content(tmp_path) | {"token": "y", "host": "elsewhere"}
        runlock._write(str(tmp_path), other)
        time.sleep(0.2)
    assert content(tmp_path)["token"] == "y"


@pytest.mark.parametrize("kind", ["new", "left by the dead"])
def test_of_several_that_start_together_one_gets_it(tmp_path, kind):
    if kind != "new":
        owner = {
            "host": platform.node(),
            "pid": 2**22 + 1,
            "started": "1",
            "token": "x",
            "beat": 0.0,
        }
        (tmp_path / "lock.json").write_text(json.dumps(owner))
    at = time.time() + 1.5
    processes = [holder(tmp_path, at, 1.5) for _ in range(5)]
    words = sorted(process.communicate()[0] for process in processes)
    assert words == ["held\n", *["refused\n"] * 4]


def test_what_is_no_lock_does_not_lock(tmp_path):
    (tmp_path / "config.yaml").touch()
    for text in ("", "{", "[]", '{"host": 1}'):
        (tmp_path / "lock.json").write_text(text)
        with runlock.held(str(tmp_path)):
            pass


def test_a_place_without_locks_is_a_fault_of_the_storage(tmp_path, monkeypatch):
    def nothing(handle, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(storage.fcntl, "flock", nothing)
    with (
        pytest.raises(StorageError, match="No locks available"),
        runlock.held(str(tmp_path / "run")),
    ):
        pass


def test_storage_that_fails_at_the_end_does_not_hide_how_it_ended(tmp_path, monkeypatch):
    def full(path):
        raise StorageError(f"cannot remove {path}: Read-only file system")

    monkeypatch.setattr(storage, "remove", full)
    with pytest.raises(ZeroDivisionError), runlock.held(str(tmp_path / "run")):
        1 / 0  # noqa: B018


# A command that is given again by a machine


def elsewhere(path, age):
    """A lock of a process of another machine, last heard of some seconds ago."""
    path.mkdir(exist_ok=True)
    owner = {"host": "gone", "pid": 7, "started": "1", "token": "t", "beat": time.time() - age}
    (path / runlock.FILE).write_text(json.dumps(owner | {"processes": "other"}))


def waited(path, monkeypatch, change=lambda: None):
    """How many looks it took."""
    looks = []

    def sleep(seconds):
        looks.append(seconds)
        change()

    now = iter(range(1000))
    monkeypatch.setattr(runlock.time, "sleep", sleep)
    monkeypatch.setattr(runlock.time, "monotonic", lambda: next(now))
    runlock.outwait(str(path))
    return len(looks)


def test_a_lock_of_a_machine_that_died_is_outwaited(tmp_path, monkeypatch, logged):
    elsewhere(tmp_path / "run", 30)
    assert 25 <= waited(tmp_path / "run", monkeypatch) <= 31
    assert "was trained by process 7 on gone; waiting up to 60 s" in logged[0]


def test_a_lock_that_is_silent_for_long_is_not_waited_for(tmp_path, monkeypatch):
    elsewhere(tmp_path / "run", 3000)
    assert waited(tmp_path / "run", monkeypatch) == 0
    assert waited(tmp_path / "none", monkeypatch) == 0


def test_a_lock_that_changes_ends_the_wait(tmp_path, monkeypatch):
    elsewhere(tmp_path / "run", 0)
    run = tmp_path / "run"
    assert waited(run, monkeypatch, lambda: elsewhere(run, 5)) == 1
