"""How long each rank takes for its own part of a step: a slow machine makes all the others wait."""

from __future__ import annotations

import platform
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from raytrain.checkpoints.history import RankRow
from raytrain.training.waits import Waits
from raytrain.worker import Worker

# A rank is slow that takes so many times the median of the ranks.
SLOW = 1.5
# Fewer steps than this say nothing: one that the operating system held up would count.
FEWEST_STEPS = 10


class Pace:
    """Times what a rank does alone in each step of an epoch: it waits for tiles, augments them,
    goes forward.

    The backward pass is left out, since in it gradients travel and the fast ranks wait for the slow
    ones. On a GPU events take the time, so that nobody waits for the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.gpu = device.type == "cuda"
        self.waits = Waits()
        self.marks: list[tuple[Any, Any]] = []  # start and end of each step
        self.began: Any = None
        # Seconds that steps have waited for their first tiles since the last call of `waited`.
        self.data_wait_s = 0.0
        self.asked = 0.0

    def begin(self) -> None:
        """A step begins: its tiles are asked for."""
        self.began = self._mark()
        self.asked = time.monotonic()

    def arrived(self) -> None:
        """The first tiles of a step are there."""
        self.data_wait_s += time.monotonic() - self.asked

    def waited(self) -> float:
        """Seconds that steps have waited for their first tiles since the last call of this."""
        seconds = self.data_wait_s
        self.data_wait_s = 0.0
        return seconds

    def alone(self) -> None:
        """What the rank does alone in this step is done."""
        if self.began is not None:
            self.marks.append((self.began, self._mark()))
            self.began = None

    def steps(self) -> list[float]:
        """Seconds of each step since the last call of this."""
        if self.gpu:
            torch.cuda.synchronize()
            # Events measure in milliseconds.
            seconds = [start.elapsed_time(end) / 1e3 for start, end in self.marks]
        else:
            seconds = [end - start for start, end in self.marks]
        self.marks.clear()
        return seconds

    def _mark(self) -> Any:
        if not self.gpu:
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


@dataclass(frozen=True)
class Paces:
    """The paces of an epoch.

    Args:
        rows: one for each rank; known on rank 0 and empty elsewhere. Likewise `waits`.
        waits: (host, fraction of the time that it waited for a CPU) of each rank.
        data_wait_s: seconds that this rank has waited for tiles.
    """

    rows: list[RankRow]
    waits: list[tuple[str, float]]
    data_wait_s: float = 0.0


def of_ranks(pace: Pace, stage: int, epoch: int, worker: Worker, group: Any) -> Paces:
    """The paces of all ranks. All of them call it together."""
    steps = pace.steps()
    median = statistics.median(steps) if steps else 0.0
    data_wait_s = pace.waited()
    mine = (platform.node(), len(steps), median, pace.waits.share())
    found: list[Any] = [mine]
    if worker.world > 1:
        found = [None] * worker.world
        dist.gather_object(mine, found if worker.leads else None, dst=0, group=group)
    if not worker.leads:
        return Paces([], [], data_wait_s)
    rows, waits = [], []
    for rank, (host, count, seconds, waited) in enumerate(found):
        rows.append(RankRow(stage, epoch, rank, host, count, seconds))
        waits.append((host, waited))
    return Paces(rows, waits, data_wait_s)


def slow_ranks(rows: list[RankRow]) -> list[str]:
    """A sentence for each rank that all others wait for; none for an epoch too short to tell."""
    if not rows:
        return []
    usual = statistics.median_low([row.seconds for row in rows])
    sentences = []
    for row in rows:
        if row.steps < FEWEST_STEPS or usual <= 0 or row.seconds <= SLOW * usual:
            continue
        sentences.append(
            f"rank {row.rank} on {row.host} takes {row.seconds / usual:.1f} times as long for its "
            "part of a step "
            "as the others: all wait for it (ranks.csv)"
        )
    return sentences
