"""The control groups of this process: which they are, and the limits in their files.

A container, a Slurm job or a Kubernetes pod has limits of its own for memory and CPUs, which
control groups enforce. Both versions are read (man 7 cgroups). Imports neither torch nor ray.
"""

from __future__ import annotations

from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")


def groups(controller: str, cgroups: Path = CGROUPS, proc: Path = PROC) -> tuple[int, list[Path]]:
    """Returns the control groups of this process that limit a resource.

    Args:
        controller: name of the resource, `memory` or `cpu`.
        cgroups: where the control groups are mounted.
        proc: the kernel's /proc.

    Returns:
        The version of their files, 1 or 2, and their directories: the one of this process and
        those above it, the nearest first. There are none where the system has no control groups.
    """
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return 2, []
    # Lines of /proc/self/cgroup are `number:controllers:path`. With version 1 one of them names the
    # controller; the line of version 2 names none. If both versions are mounted, the one with the
    # controller has the limit.
    entries = [line.split(":", 2) for line in lines]
    for _, controllers, path in entries:
        if controller in controllers.split(","):
            return 1, _upwards(cgroups / controller, path)
    for _, controllers, path in entries:
        if not controllers:
            return 2, _upwards(cgroups, path)
    return 2, []


def _upwards(root: Path, path: str) -> list[Path]:
    group = root / path.strip("/")
    if not group.is_dir():
        # Inside a container the path may be the one on the host. The container's own group is
        # mounted as the root then.
        group = root
    above = [group, *group.parents]
    return above[: above.index(root) + 1]


def cpu_quota(cgroups: Path = CGROUPS, proc: Path = PROC) -> float | None:
    """Returns how many CPUs the processes of this control group may use together on average.

    Args:
        cgroups: where the control groups are mounted.
        proc: the kernel's /proc.

    Returns:
        The smallest quota of this group and those above it, such as 0.5; None without one.
    """
    version, folders = groups("cpu", cgroups, proc)
    read = {1: _quota_of_version_1, 2: _quota_of_version_2}[version]
    found = [read(folder) for folder in folders]
    return min((quota for quota in found if quota is not None), default=None)


# https://docs.kernel.org/scheduler/sched-bwc.html
def _quota_of_version_1(group: Path) -> float | None:
    quota = number(group / "cpu.cfs_quota_us")
    period = number(group / "cpu.cfs_period_us")
    # -1 means that there is none.
    if quota is None or not period or quota <= 0:
        return None
    return quota / period


# https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files
def _quota_of_version_2(group: Path) -> float | None:
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return int(quota) / int(period)
    # There is no such file, or its first word is `max`.
    except (OSError, ValueError):
        return None


def number(file: Path) -> int | None:
    """Returns the number in a file; None for the word `max`, or if there is no such file."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def counter(file: Path, name: str) -> int:
    """Returns the number after a name in a file with lines `name number`; 0 if it is missing."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return 0
    for line in lines:
        words = line.split()
        if words and words[0] == name:
            return int(words[1])
    return 0
