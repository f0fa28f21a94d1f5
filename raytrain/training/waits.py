"""How long the threads of a process were ready to run and got no CPU, since other processes had it
(Linux only).

The kernel counts it for each thread: /proc/<pid>/task/<thread>/schedstat holds the nanoseconds on a
CPU, the nanoseconds in the queue for one, and the number of turns
(Documentation/scheduler/sched-stats.rst).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

TASKS = Path("/proc/self/task")
# Fraction of an epoch's time. With two threads on two cores and nothing beside them it is a few
# percent.
MUCH = 0.2
# A thread that is busy for less than this fraction of the time is not one that a step waits for.
BUSY = 0.3


@dataclass(frozen=True)
class Turn:
    """Nanoseconds of a thread on a CPU and in the queue for one, since it began."""

    on: int
    queued: int


class Waits:
    """Measures from its making, or from the last `share`, to the next `share`."""

    def __init__(self, tasks: Path = TASKS) -> None:
        self.tasks = tasks
        self.before = _turns(tasks)
        self.began = time.monotonic()

    def share(self) -> float:
        """The largest fraction of the time that one of the busy threads waited for a CPU; 0 where
        nothing is known.
        """
        now = _turns(self.tasks)
        ended = time.monotonic()
        passed = 1e9 * (ended - self.began)  # nanoseconds
        worst = 0.0
        for thread, turn in now.items():
            start = self.before.get(thread, Turn(0, 0))
            on = turn.on - start.on
            queued = turn.queued - start.queued
            if on + queued >= BUSY * passed > 0:
                worst = max(worst, queued / passed)
        self.before = now
        self.began = ended
        return min(worst, 1.0)


def sentence(waits: list[tuple[str, float]]) -> str:
    """What is printed below the line of an epoch about the (host, fraction) of each rank; empty
    where none waited much.
    """
    if not waits:
        return ""
    fractions = [fraction for _, fraction in waits]
    worst = max(fractions)
    if worst < MUCH:
        return ""
    rank = fractions.index(worst)
    host = waits[rank][0]
    return (
        f"other processes take the CPU: rank {rank} on {host} waited for one {worst:.0%} of the "
        "time; "
        "wait for their end, or use --train.threads 1 or fewer --num-workers"
    )


def _turns(tasks: Path) -> dict[str, Turn]:
    """The turns of each thread of the process, by its number."""
    found = {}
    for path in tasks.glob("*/schedstat"):
        try:
            on, queued, _ = path.read_text().split()
        except (OSError, ValueError):  # the thread has ended
            continue
        found[path.parent.name] = Turn(int(on), int(queued))
    return found
