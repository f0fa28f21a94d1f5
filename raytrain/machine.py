"""Facts of this machine: how much memory a command may use, and whether the kernel has killed for want of it.

A container, a Slurm job or a Kubernetes pod has a limit of its own, kept by a control group: version 1 or 2 (man cgroups).
Imports neither torch nor ray.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")


@dataclass(frozen=True)
class Memory:
    """Bytes that the processes of a command may use together from now on, what sets that bound, and all that it allows."""

    free: int
    bound: str
    whole: int


@dataclass(frozen=True)
class _Files:
    """Names of a control group's files: the limit, the use, where kills are counted; and what of the use are files in memory."""

    limit: str
    used: str
    kills: str
    cache: tuple[str, str]


V1 = _Files(
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "memory.oom_control",
    ("total_inactive_file", "total_active_file"),
)
V2 = _Files("memory.max", "memory.current", "memory.events", ("inactive_file", "active_file"))


def memory(cgroups: Path = CGROUPS, proc: Path = PROC) -> Memory | None:
    """The smaller of the machine's free memory and what is left of the limits of this process's control groups.

    Args:
        cgroups: where control groups are mounted.
        proc: the kernel's /proc.

    Returns:
        None where the kernel tells neither, as on a Mac.
    """
    found = []
    available = 1024 * _counter(proc / "meminfo", "MemAvailable:")
    if available:
        found.append(
            Memory(
                available, "free on this machine", 1024 * _counter(proc / "meminfo", "MemTotal:")
            )
        )
    for group, files in _groups(cgroups, proc):
        limit = _number(group / files.limit)
        used = _number(group / files.used)
        if limit is None or used is None:
            continue
        # Pages of files are given back when memory is short.
        cached = sum(_counter(group / "memory.stat", name) for name in files.cache)
        left = min(limit, max(0, limit - used + cached))
        found.append(
            Memory(
                left, f"left of the limit of {limit / 1e9:.1f} GB ({group / files.limit})", limit
            )
        )
    return min(found, key=lambda bound: bound.free, default=None)


def kills(cgroups: Path = CGROUPS, proc: Path = PROC) -> int:
    """How many processes of this one's control group the kernel has killed so far because its memory was used up."""
    return sum(
        _counter(group / files.kills, "oom_kill") for group, files in _groups(cgroups, proc)[:1]
    )


def resident(pid: int | str = "self", proc: Path = PROC) -> int:
    """Bytes of memory that a process holds for itself, without those of files. 0 where there is no such process."""
    return 1024 * _counter(proc / str(pid) / "status", "RssAnon:")


def holders(proc: Path = PROC) -> list[tuple[str, int]]:
    """Name and own bytes (shared ones not counted) of each process of this user's session group, the largest first."""
    found = []
    for path in proc.glob("[0-9]*"):
        size = resident(path.name, proc)
        if size and _same_group(path, proc):
            found.append((_name(path), size))
    return sorted(found, key=lambda holder: -holder[1])


def _same_group(path: Path, proc: Path) -> bool:
    try:
        return (path / "cgroup").read_text() == (proc / "self" / "cgroup").read_text()
    except OSError:
        return False


def _name(path: Path) -> str:
    """What a person would call a process: Ray's own titles, else the program."""
    try:
        words = (path / "cmdline").read_text().split("\0")
    except OSError:
        return "?"
    return words[0].rpartition("/")[2][:40]


def _groups(cgroups: Path, proc: Path) -> list[tuple[Path, _Files]]:
    """The directories of this process's control group and those above it, the nearest first."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return _upwards(cgroups / "memory", path, V1)
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            return _upwards(cgroups, path, V2)
    return []


def _upwards(root: Path, path: str, files: _Files) -> list[tuple[Path, _Files]]:
    # Inside a container the path may be that of the host: then the container's own group is mounted as the root.
    group = root / path.strip("/")
    if not group.is_dir():
        group = root
    above = [group, *group.parents]
    return [(folder, files) for folder in above[: above.index(root) + 1]]


def _number(file: Path) -> int | None:
    """The number that a file holds; None for `max` and where there is no such file."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _counter(file: Path, name: str) -> int:
    """The number behind a word in a file of lines `word number`; 0 where it is not there."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return 0
    for line in lines:
        words = line.split()
        if words[:1] == [name]:
            return int(words[1])
    return 0
