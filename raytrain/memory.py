"""The memory that a command may use on this machine, who holds it, and kills by the kernel.

Imports neither torch nor ray.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from raytrain import control_groups
from raytrain.control_groups import CGROUPS, PROC, counter, number

# /proc counts in "kB", which are 1,024 bytes (man 5 proc).
KB = 1024


@dataclass(frozen=True)
class Memory:
    """A bound on the memory that the processes of a command may use together.

    Attributes:
        free: bytes that may still be used.
        bound: what sets the bound, worded to follow "1.0 GB are ".
        whole: bytes in total, those in use included.
    """

    free: int
    bound: str
    whole: int


@dataclass(frozen=True)
class _Files:
    """Names of the files of a memory control group, which differ between the two versions.

    Attributes:
        limit: file with the limit in bytes.
        used: file with the bytes in use.
        kills: file whose counter `oom_kill` is the number of killed processes.
        cache: counters in `memory.stat` of the part of `used` that is the page cache.
    """

    limit: str
    used: str
    kills: str
    cache: tuple[str, str]


# https://docs.kernel.org/admin-guide/cgroup-v1/memory.html
V1 = _Files(
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "memory.oom_control",
    ("total_inactive_file", "total_active_file"),
)
# https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files
V2 = _Files("memory.max", "memory.current", "memory.events", ("inactive_file", "active_file"))


def left(cgroups: Path = CGROUPS, proc: Path = PROC) -> Memory | None:
    """Returns how much memory is left for this process and those that it starts.

    That is the smallest of the machine's free memory and what each control group of this process
    has left.

    Args:
        cgroups: where the control groups are mounted.
        proc: the kernel's /proc.

    Returns:
        None if the system reports neither, as on macOS.
    """
    bounds = [_left_of_limit(group, files) for group, files in _memory_groups(cgroups, proc)]
    bounds.insert(0, _free_on_machine(proc))
    known = [bound for bound in bounds if bound is not None]
    return min(known, key=lambda bound: bound.free, default=None)


def _free_on_machine(proc: Path) -> Memory | None:
    # MemAvailable, not MemFree: it includes the page cache that the kernel can give back.
    available = KB * counter(proc / "meminfo", "MemAvailable:")
    if not available:
        return None
    total = KB * counter(proc / "meminfo", "MemTotal:")
    return Memory(available, "free on this machine", total)


def _left_of_limit(group: Path, files: _Files) -> Memory | None:
    """Returns what a control group has left; None if it has no limit."""
    limit = number(group / files.limit)
    used = number(group / files.used)
    if limit is None or used is None:
        return None
    # The page cache counts as used, but the kernel gives it back when memory is short.
    cached = sum(counter(group / "memory.stat", name) for name in files.cache)
    left = min(limit, max(0, limit - used + cached))
    bound = f"left of the limit of {limit / 1e9:.1f} GB ({group / files.limit})"
    return Memory(left, bound, limit)


def kills(cgroups: Path = CGROUPS, proc: Path = PROC) -> int:
    """Returns how many processes of this control group the kernel has killed for lack of memory."""
    groups = _memory_groups(cgroups, proc)
    if not groups:
        return 0
    # Only the nearest group: the ones above it also count processes of other jobs.
    group, files = groups[0]
    return counter(group / files.kills, "oom_kill")


def resident(pid: int | str = "self", proc: Path = PROC) -> int:
    """Returns the bytes of anonymous memory of a process; 0 if there is no such process.

    Mapped files and shared memory, such as Ray's object store, are not included.
    """
    return KB * counter(proc / str(pid) / "status", "RssAnon:")


def holders(proc: Path = PROC) -> list[tuple[str, int]]:
    """Returns (name, bytes) of each process in this process's control group, the largest first.

    The bytes are those of `resident`.
    """
    found = []
    # The directories of processes are the ones whose names are numbers.
    for path in proc.glob("[0-9]*"):
        size = resident(path.name, proc)
        if size and _same_group(path, proc):
            found.append((_name(path), size))
    return sorted(found, key=lambda holder: -holder[1])


def _same_group(path: Path, proc: Path) -> bool:
    try:
        return (path / "cgroup").read_text() == (proc / "self" / "cgroup").read_text()
    except OSError:  # the process has ended in the meantime
        return False


def _name(path: Path) -> str:
    """Returns the program of a process, or the title that Ray has given it (`ray::...`)."""
    try:
        arguments = (path / "cmdline").read_text().split("\0")
    except OSError:
        return "?"
    program = arguments[0].rpartition("/")[2]
    # A title can be a whole command line.
    return program[:40]


def _memory_groups(cgroups: Path, proc: Path) -> list[tuple[Path, _Files]]:
    """Returns the control group of this process and those above it, the nearest first."""
    version, folders = control_groups.groups("memory", cgroups, proc)
    files = V1 if version == 1 else V2
    return [(folder, files) for folder in folders]
