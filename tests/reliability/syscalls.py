"""Runs a piece of work in a forked process and disturbs it at its n-th write to the file system.

The process is traced (ptrace), so every system call counts, also those of Arrow's and torch's own code: opening a file to
write, writing, flushing, renaming, making and removing. Before the n-th the process is killed, or the call fails. Flushes
(fsync, sync) count but are not carried out: what a process has written survives its end without them, and they are slow.
Linux on x86-64 only.
"""

import ctypes
import errno
import json
import os
import platform
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from raytrain.errors import RaytrainError, exit_code_of

# Number of the call, and which argument is the path (or the descriptor of the directory it counts from), or the descriptor.
PATHS = {
    "open": (2, 0),
    "creat": (85, 0),
    "openat": (257, 1),
    "rename": (82, 0),
    "renameat": (264, 1),
    "renameat2": (316, 1),
    "mkdir": (83, 0),
    "mkdirat": (258, 1),
    "rmdir": (84, 0),
    "unlink": (87, 0),
    "unlinkat": (263, 1),
    "link": (86, 1),
    "linkat": (265, 3),
    "symlink": (88, 1),
    "symlinkat": (266, 2),
    "truncate": (76, 0),
    "utimensat": (280, 1),
}
DESCRIPTORS = {
    "write": (1, 0),
    "pwrite64": (18, 0),
    "writev": (20, 0),
    "fsync": (74, 0),
    "fdatasync": (75, 0),
    "ftruncate": (77, 0),
    "fallocate": (285, 0),
    "sendfile": (40, 0),
    "copy_file_range": (326, 2),
}
WITHOUT = {"sync": (162, 0)}
CALLS = {
    number: (name, path)
    for table in (PATHS, DESCRIPTORS, WITHOUT)
    for name, (number, path) in table.items()
}
FLUSHES, PARTLY = {"fsync", "fdatasync", "sync"}, {"write", "pwrite64"}
AT_FDCWD, TO_WRITE = -100, os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

TRACEME, PEEKUSER, POKEUSER, SYSCALL, SETOPTIONS = 0, 3, 6, 24, 0x4200
SYSGOOD, TRACECLONE, EXITKILL = 1, 8, 0x100000
# Offsets in struct user_regs_struct of <sys/user.h>: arguments 0 to 5, the call's number, its result.
ARGUMENTS, NUMBER, RESULT = [8 * n for n in (14, 13, 12, 7, 9, 8)], 8 * 15, 8 * 10
ALL_THREADS = 0x40000000  # __WALL

Work = Callable[[], object]


@dataclass(frozen=True)
class Fault:
    """What happens at a point: an error that the call returns, or the end of the process.

    An error that `stays` is met by all later calls too, as on a disk that is full or has become read-only. `calls` are those
    that it can happen in: nothing else needs room, for instance. A kill in the middle of a write leaves half of it.
    """

    name: str
    error: int | None = None
    stays: bool = False
    calls: frozenset[str] = frozenset([*PATHS, *DESCRIPTORS, *WITHOUT])

    def fits(self, point: str) -> bool:
        """Whether it can happen at a point."""
        return point.split()[0] in self.calls


NEED_ROOM = {*DESCRIPTORS, "open", "creat", "openat", "mkdir", "mkdirat", "symlink", "symlinkat"}
KILLS = (Fault("killed before"), Fault("killed in", calls=frozenset(PARTLY)))
ERRORS = (
    Fault("ENOSPC", errno.ENOSPC, stays=True, calls=frozenset(NEED_ROOM)),
    Fault("EROFS", errno.EROFS, stays=True, calls=frozenset([*PATHS, *DESCRIPTORS])),
    Fault("EIO", errno.EIO),
)
# A forked process may inherit a lock that nobody releases; no work here takes a second.
HUNG_S = 60


@dataclass(frozen=True)
class Ended:
    """How the work ended: the point that was disturbed (None: it had fewer), and what it raised.

    `code` is the exit code of the house for the error (0 without, None where the process was killed), `text` its sentence or,
    for any other error than ours, its traceback.
    """

    point: str | None
    code: int | None
    text: str = ""


def possible() -> bool:
    """Whether processes can be traced here."""
    return sys.platform == "linux" and platform.machine() == "x86_64"


def points(work: Work, folder: Path) -> list[str]:
    """The points of a work that nothing disturbs: call and path below the folder."""
    seen: list[str] = []
    ended = _run(work, folder, None, None, seen)
    if ended.code != 0:
        raise RuntimeError(f"the work fails undisturbed: {ended.text}")
    return seen


def disturbed(work: Work, folder: Path, number: int, fault: Fault) -> Ended:
    """Runs the work with a fault at its point of a number (from 0) below a folder."""
    return _run(work, folder, number, fault, [])


def _run(
    work: Work, folder: Path, number: int | None, fault: Fault | None, seen: list[str]
) -> Ended:
    report, ours = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _child(work, ours)
    os.close(ours)
    tracer = _Tracer(pid, str(folder), number, fault, seen)
    try:
        status = tracer.follow()
    finally:
        with open(report, "rb") as stream:
            told = stream.read()
    point = seen[number] if number is not None and len(seen) > number else None
    if os.WIFSIGNALED(status):
        hung = os.WTERMSIG(status) != signal.SIGKILL
        return Ended(
            point, 1 if hung else None, f"ended by signal {os.WTERMSIG(status)}" if hung else ""
        )
    return Ended(point, **json.loads(told))


def _child(work: Work, report: int) -> None:
    code, text = 0, ""
    try:
        # A group of its own, so that the tracer waits for this process and its threads alone.
        os.setpgid(0, 0)
        signal.alarm(HUNG_S)
        LIBC.ptrace(TRACEME, 0, None, None)
        os.kill(os.getpid(), signal.SIGSTOP)
        work()
    except RaytrainError as error:
        code, text = exit_code_of(error), str(error)
    except BaseException:
        code, text = 1, traceback.format_exc()
    finally:
        os.write(report, json.dumps({"code": code, "text": text}).encode())
        os._exit(0)


class _Tracer:
    """Follows a process and its threads from call to call."""

    def __init__(
        self, pid: int, folder: str, number: int | None, fault: Fault | None, seen: list[str]
    ) -> None:
        self.pid, self.folder, self.number, self.fault, self.seen = pid, folder, number, fault, seen
        self.results: dict[int, int] = {}  # of calls that are not carried out, by thread
        self.inside: set[int] = set()  # threads between the entry and the exit of a call

    def follow(self) -> int:
        """Returns the status that the process ended with."""
        os.waitpid(self.pid, ALL_THREADS)
        self.ask(SETOPTIONS, self.pid, 0, SYSGOOD | TRACECLONE | EXITKILL)
        self.ask(SYSCALL, self.pid)
        while True:
            thread, status = os.waitpid(-self.pid, ALL_THREADS)
            if os.WIFEXITED(status) or os.WIFSIGNALED(status):
                if thread == self.pid:
                    return status
                continue
            stop = os.WSTOPSIG(status)
            if stop == signal.SIGTRAP | 0x80:
                self.at_call(thread)
            passed_on = (
                0 if stop in (signal.SIGTRAP | 0x80, signal.SIGTRAP, signal.SIGSTOP) else stop
            )
            self.ask(SYSCALL, thread, 0, passed_on)

    def at_call(self, thread: int) -> None:
        """At the entry of a call: counts and disturbs it. At its exit: gives it the result that was decided on."""
        if thread in self.inside:
            self.inside.discard(thread)
            if thread in self.results:
                self.ask(POKEUSER, thread, RESULT, self.results.pop(thread))
            return
        self.inside.add(thread)
        name, where = CALLS.get(self.peek(thread, NUMBER), ("", 0))
        path = self.path(thread, name, where) if name else None
        if path is None:
            return
        number = len(self.seen)
        self.seen.append(f"{name} {path}")
        hit = self.number == number
        late = (
            self.number is not None
            and number > self.number
            and self.fault is not None
            and self.fault.stays
        )
        if self.fault and (hit or late) and name in self.fault.calls:
            self.disturb(thread)
        elif name in FLUSHES:
            self.skip(thread, 0)

    def disturb(self, thread: int) -> None:
        """Lets the call fail, or kills the process before it, or after half of its write."""
        assert self.fault is not None
        if self.fault.error:
            self.skip(thread, -self.fault.error)
            return
        if self.fault.calls == PARTLY:
            self.write_half(thread)
        os.kill(self.pid, signal.SIGKILL)

    def write_half(self, thread: int) -> None:
        """Writes the first half of what a call would write: a kill in its middle cannot be timed."""
        handle, address, length = (self.peek(thread, ARGUMENTS[n]) for n in range(3))
        with open(f"/proc/{self.pid}/fdinfo/{handle}") as file:
            position = int(file.readline().split()[1])
        half = os.open(f"/proc/{self.pid}/fd/{handle}", os.O_WRONLY)
        os.pwrite(half, self.memory(address, length // 2), position)
        os.close(half)

    def skip(self, thread: int, result: int) -> None:
        """Lets a call not happen: the kernel knows no call of the number -1."""
        self.ask(POKEUSER, thread, NUMBER, -1)
        self.results[thread] = result

    def path(self, thread: int, name: str, where: int) -> str | None:
        """The path below the folder that a call writes to; None where it writes nothing there."""
        if name in WITHOUT:
            return ""
        if name in DESCRIPTORS:
            return self.below(self.descriptor(self.peek(thread, ARGUMENTS[where])))
        if name in ("open", "openat") and not self.peek(thread, ARGUMENTS[where + 1]) & TO_WRITE:
            return None
        path = self.text(self.peek(thread, ARGUMENTS[where]))
        if not path.startswith("/"):
            base = (
                self.peek(thread, ARGUMENTS[where - 1])
                if name.endswith("at") or name == "renameat2"
                else AT_FDCWD
            )
            path = os.path.join(self.descriptor(ctypes.c_int(base).value), path)
        return self.below(path)

    def below(self, path: str) -> str | None:
        return (
            path.removeprefix(self.folder).strip("/")
            if path.startswith(f"{self.folder}/")
            else None
        )

    def descriptor(self, number: int) -> str:
        link = "cwd" if number == AT_FDCWD else f"fd/{number}"
        try:
            return os.readlink(f"/proc/{self.pid}/{link}")
        except OSError:
            return ""

    def memory(self, address: int, length: int) -> bytes:
        with open(f"/proc/{self.pid}/mem", "rb", 0) as file:
            file.seek(address)
            return file.read(length)

    def text(self, address: int) -> str:
        # Not past the end of the page: what follows may not be mapped.
        return (
            self.memory(address, min(4096, 8192 - address % 4096))
            .split(b"\0")[0]
            .decode(errors="replace")
        )

    def peek(self, thread: int, offset: int) -> int:
        return int(self.ask(PEEKUSER, thread, offset))

    def ask(self, what: int, thread: int, address: int = 0, data: int = 0) -> int:
        ctypes.set_errno(0)
        found = LIBC.ptrace(what, thread, address, data)
        # A thread may have been killed meanwhile.
        if found == -1 and ctypes.get_errno() not in (0, errno.ESRCH):
            raise OSError(ctypes.get_errno(), f"ptrace {what}: {os.strerror(ctypes.get_errno())}")
        return int(found)


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long
    return libc


LIBC = _libc()
