"""One process at a time trains a run: a lock file in its directory, with a heartbeat.

A lock whose process is dead on this host is taken over at once, one that was silent for a minute elsewhere after it was
watched for the time of a beat. Elsewhere is also another container: it may have this host's name, and numbers processes
by itself. Imports neither torch nor ray.
"""

from __future__ import annotations

import fcntl
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from raytrain import storage
from raytrain.errors import ConfigError, StorageError

FILE = "lock.json"
BEAT_S, SILENT_S = 15.0, 60.0
# An object store has neither locks nor exclusive writes: of two that write, the one whose words are read back wins.
SETTLE_S = 1.0


@contextmanager
def held(path: str) -> Iterator[None]:
    """Holds the lock of a run's directory, which is made where there is none.

    Raises:
        ConfigError: another process trains the run.
        StorageError: the lock cannot be written.
    """
    storage.make_dir(path)
    mine = {
        "host": platform.node(),
        "processes": _process_namespace(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "token": uuid.uuid4().hex,
    }
    _acquire(path, mine)
    ended = threading.Event()
    thread = threading.Thread(target=_beat, args=(path, mine, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        _release(path, mine)


def _acquire(path: str, mine: dict[str, Any]) -> None:
    owner = _owner(path)
    if owner is not None and not _is_over(path, owner):
        raise _taken(path, owner)
    with _alone(path):
        now = _owner(path)
        if (now or {}).get("token") != (owner or {}).get("token"):
            raise _taken(path, now or mine)  # somebody was faster
        _write(path, mine)
    if storage.is_uri(path):
        time.sleep(SETTLE_S)
        now = _owner(path)
        if now is not None and now["token"] != mine["token"]:
            raise _taken(path, now)


def _is_over(path: str, owner: dict[str, Any]) -> bool:
    """Whether a lock's owner has ended."""
    if _numbers_are_ours(owner):
        return _started(owner["pid"]) != owner["started"] or owner["started"] is None
    if time.time() - owner["beat"] < SILENT_S:
        return False
    # The clocks of two machines may differ: a lock that is alive changes while it is watched.
    time.sleep(BEAT_S * 1.2)
    return _owner(path) == owner


def _numbers_are_ours(owner: dict[str, Any]) -> bool:
    """Whether an owner's process number means the same process here."""
    if owner["host"] != platform.node():
        return False
    if "processes" not in owner:  # written before 28 November 2026
        return True
    return owner["processes"] is not None and owner["processes"] == _process_namespace()


def _process_namespace() -> str | None:
    """The kernel that runs now and the namespace that numbers this process; None where they cannot be known."""
    if not Path("/proc/self/stat").exists():
        return "no namespaces on this system"
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return None


def _started(pid: int) -> str | None:
    """When a process of this host began, as its kernel tells it; None where there is none with this id."""
    try:
        # The name of a program may hold spaces and parentheses: fields are counted after the last of them.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return _alive_without_proc(pid)


def _alive_without_proc(pid: int) -> str | None:
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "alive"


def _beat(path: str, mine: dict[str, Any], ended: threading.Event) -> None:
    while not ended.wait(BEAT_S):
        try:
            owner = _owner(path)
            if owner is not None and owner["token"] != mine["token"]:
                return
            _write(path, mine)
        except StorageError:
            continue  # training itself will meet what ails the storage


def _release(path: str, mine: dict[str, Any]) -> None:
    with suppress(
        StorageError
    ):  # the lock of a process that has ended is none, and how it ended must be heard
        owner = _owner(path)
        if owner is not None and owner["token"] == mine["token"]:
            storage.remove(storage.join(path, FILE))
    if not storage.is_uri(path):
        with suppress(OSError):  # not empty: a run was begun
            os.rmdir(storage.absolute(path))


def _owner(path: str) -> dict[str, Any] | None:
    try:
        owner: dict[str, Any] = storage.read_json(storage.join(path, FILE))
        return owner if {"host", "pid", "started", "token", "beat"} <= owner.keys() else None
    except (FileNotFoundError, ValueError, AttributeError):
        return None


def _write(path: str, mine: dict[str, Any]) -> None:
    storage.write_json(storage.join(path, FILE), mine | {"beat": time.time()})


@contextmanager
def _alone(path: str) -> Iterator[None]:
    """For the moment of taking the lock, the only process that does so in a local directory."""
    if storage.is_uri(path):
        yield
        return
    with storage.failures("lock", path):
        handle = os.open(storage.absolute(path), os.O_RDONLY)
    try:
        with storage.failures("lock", path):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _taken(path: str, owner: dict[str, Any]) -> ConfigError:
    beat = (
        f", last heard of {max(0.0, time.time() - owner['beat']):.0f} s ago"
        if "beat" in owner
        else ""
    )
    return ConfigError(
        f"the run {storage.name_of(path)} is being trained by process {owner['pid']} on {owner['host']}{beat}",
        "two processes would write the same checkpoints",
        "wait for its end or stop it, then try again; or give another --name",
    )
