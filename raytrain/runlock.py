"""The lock of a run, so that only one process at a time trains it.

The lock is a file in the run's directory. It names its owner, and the owner renews it every
`BEAT_S` seconds. A new process takes over the lock of a process that has ended:

- If the owner's process id means the same process here, the kernel tells whether it still runs.
- Otherwise the lock must have been silent for `SILENT_S` seconds and then not change while it is
  watched. That is the case on another machine, and also in another container: it may report the
  same host name, but it numbers its processes itself.

Imports neither torch nor ray.
"""

from __future__ import annotations

import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from raytrain import storage
from raytrain.errors import StorageError, TakenError

logger = logging.getLogger(__name__)

FILE = "lock.json"
# Keys that every lock file has. "processes" is missing in files of older versions.
KEYS = {"host", "pid", "started", "token", "beat"}
# Seconds between two writes of the lock by its owner.
BEAT_S = 15.0
# Seconds without a write after which an owner elsewhere may be dead.
SILENT_S = 60.0
# Object stores have neither locks nor exclusive writes. If two processes write the lock within
# these seconds, the one whose content is read back afterwards owns it.
SETTLE_S = 1.0
# Seconds between two looks at a lock.
LOOK_EVERY_S = 1.0


class Lock:
    """A lock that this process holds."""

    def __init__(self, path: str, mine: dict[str, Any]) -> None:
        self.path = path
        self.mine = mine

    def check(self) -> None:
        """Checks that no other process has taken the lock, as after a pause of this machine.

        Raises:
            TakenError: one has.
        """
        owner = _owner(self.path)
        if owner is not None and owner["token"] != self.mine["token"]:
            raise _taken(self.path, owner)


@contextmanager
def held(path: str) -> Iterator[Lock]:
    """Holds the lock of a run.

    Args:
        path: the run's directory, which is made if it does not exist.

    Raises:
        TakenError: another process trains the run.
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
        yield Lock(path, mine)
    finally:
        # The thread ends before the release: it would write the lock again.
        ended.set()
        thread.join()
        _release(path, mine)


def outwait(path: str) -> None:
    """Waits while a lock of another machine may be that of a process that has ended.

    It is for commands that are given again by a machine, not by somebody who has looked. It returns
    as soon as the lock changes, is gone, or has been silent for `SILENT_S` seconds; `held` decides.

    Args:
        path: the run's directory.
    """
    owner = _owner(path)
    if owner is None or _is_our_numbering(owner):
        return
    # Not by the clocks alone, since those of two machines may differ.
    silent_s = max(0.0, min(SILENT_S, time.time() - owner["beat"]))
    end = time.monotonic() + SILENT_S - silent_s
    if end > time.monotonic():
        logger.info(
            f"the run {storage.name_of(path)} was trained by {owner_in_words(path)}; "
            f"waiting up to {SILENT_S:.0f} s for a sign of it"
        )
    while time.monotonic() < end and _owner(path) == owner:
        time.sleep(LOOK_EVERY_S)


def is_held(path: str) -> bool:
    """Returns whether another process seems to hold the lock of a run.

    It does not wait, so the owner on another machine counts as alive until its lock has been silent
    for long enough.

    Args:
        path: the run's directory.
    """
    owner = _owner(path)
    if owner is None:
        return False
    if _is_our_numbering(owner):
        return bool(_started(owner["pid"]) == owner["started"])
    return time.time() - float(owner["beat"]) < SILENT_S


def owner_in_words(path: str) -> str:
    """Returns who holds the lock of a run; empty where nobody does."""
    owner = _owner(path)
    if owner is None:
        return ""
    return f"process {owner['pid']} on {owner['host']}"


def _acquire(path: str, mine: dict[str, Any]) -> None:
    owner = _owner(path)
    if owner is not None and not _has_ended(path, owner):
        raise _taken(path, owner)
    with _alone(path):
        # Another process may have taken the lock since it was read above.
        current = _owner(path)
        if _token(current) != _token(owner):
            raise _taken(path, current or mine)
        _write(path, mine)
    if storage.is_uri(path):
        time.sleep(SETTLE_S)
        current = _owner(path)
        if current is not None and current["token"] != mine["token"]:
            raise _taken(path, current)


def _token(owner: dict[str, Any] | None) -> str | None:
    if owner is None:
        return None
    token: str = owner["token"]
    return token


def _has_ended(path: str, owner: dict[str, Any]) -> bool:
    """Returns whether the owner of a lock has ended."""
    if _is_our_numbering(owner):
        started = _started(owner["pid"])
        # The kernel gives the id of an ended process to a new one, with another start time.
        return started is None or started != owner["started"]
    if time.time() - owner["beat"] < SILENT_S:
        return False
    # The clocks of two machines may differ, so the age of the last beat proves nothing. The lock of
    # a running process changes within a beat.
    time.sleep(BEAT_S * 1.2)
    return _owner(path) == owner


def _is_our_numbering(owner: dict[str, Any]) -> bool:
    """Returns whether the owner's process id means the same process to this one."""
    if owner["host"] != platform.node():
        return False
    if "processes" not in owner:  # written before 28 November 2026
        return True
    return owner["processes"] is not None and owner["processes"] == _process_namespace()


def _process_namespace() -> str | None:
    """Returns an id of the namespace that numbers this process; None if it cannot be known.

    It consists of the id of the kernel's boot and the inode of the namespace (man 7
    pid_namespaces), which is unique only until the next boot.
    """
    if not Path("/proc/self/stat").exists():
        return "no namespaces on this system"
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return None
    return f"{boot} {namespace}"


def _started(pid: int) -> str | None:
    """Returns when a process of this host was started; None if there is no such process.

    The value is the field `starttime` of /proc/PID/stat, in clock ticks since boot (man 5 proc).
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return _alive_without_proc(pid)
    # Field 2, the name of the program, may itself hold spaces and parentheses. After its closing
    # parenthesis follow the fields from 3 on; starttime is field 22.
    _, _, fields_from_3 = stat.rpartition(")")
    return fields_from_3.split()[22 - 3]


def _alive_without_proc(pid: int) -> str | None:
    """Returns "alive" for a running process on a system without /proc, such as macOS."""
    if Path("/proc/self/stat").exists():
        return None
    try:
        # Signal 0 is not delivered. The call only checks whether the process exists.
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:  # it exists and belongs to another user
        pass
    return "alive"


def _beat(path: str, mine: dict[str, Any], ended: threading.Event) -> None:
    """Renews the lock until the end, or until another process has taken it."""
    while not ended.wait(BEAT_S):
        # If the storage fails, training itself will meet the error and report it.
        with suppress(StorageError):
            owner = _owner(path)
            if owner is not None and owner["token"] != mine["token"]:
                return
            _write(path, mine)


def _release(path: str, mine: dict[str, Any]) -> None:
    # An error here would hide the one that training ended with. A lock that stays does no harm,
    # since its process ends now.
    with suppress(StorageError):
        owner = _owner(path)
        if owner is not None and owner["token"] == mine["token"]:
            storage.remove(storage.join(path, FILE))
    if not storage.is_uri(path):
        # Removes the directory of a run that has not begun. Any other one is not empty.
        with suppress(OSError):
            os.rmdir(storage.absolute(path))


def _owner(path: str) -> dict[str, Any] | None:
    """Returns the content of the lock file; None if there is no valid one."""
    try:
        owner = storage.read_json(storage.join(path, FILE))
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(owner, dict) or not owner.keys() >= KEYS:
        return None
    return owner


def _write(path: str, mine: dict[str, Any]) -> None:
    # The beat is in seconds since 1970, by this machine's clock.
    storage.write_json(storage.join(path, FILE), mine | {"beat": time.time()})


@contextmanager
def _alone(path: str) -> Iterator[None]:
    """Lets one process of this machine at a time take the lock of a run in a local directory.

    This short lock on the directory makes reading and writing the lock file one step.
    """
    if storage.is_uri(path):
        yield
        return
    with ExitStack() as stack:
        # Only errors of taking the lock, not those of the body.
        with storage.failures("lock", path):
            stack.enter_context(storage.file_lock(storage.absolute(path)))
        yield


def _taken(path: str, owner: dict[str, Any]) -> TakenError:
    last_heard = ""
    if "beat" in owner:
        # With the clock of another machine the difference may be negative.
        age_s = max(0.0, time.time() - owner["beat"])
        last_heard = f", last heard of {age_s:.0f} s ago"
    run = storage.name_of(path)
    process = f"process {owner['pid']} on {owner['host']}"
    return TakenError(
        f"the run {run} is being trained by {process}{last_heard}",
        "two processes would write the same checkpoints",
        "wait until it ends or stop it, then try again; or give another --name",
    )
