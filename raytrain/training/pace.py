"""How long each rank takes for its own part of a step: a machine that is slower than the others makes all of them wait."""

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

# Times the median of the ranks.
SLOW = 1.5
# Fewer steps than this say nothing: one that the operating system held up would count.
FEWEST_STEPS = 10


class Pace:
    """Times, of each step of an epoch, what a rank does alone: it waits for tiles, augments them, goes forward.

    The backward pass is left out, since in it gradients travel and the fast wait for the slow. On a GPU events take the
    time, so that nobody waits for the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.gpu = device.type == "cuda"
        self.waits = Waits()
        self.marks: list[tuple[Any, Any]] = []
        self.began: Any = None

    def begin(self) -> None:
        """A step begins."""
        self.began = self._mark()

    def alone(self) -> None:
        """What the rank does alone in this step is done."""
        if self.began is not None:
            self.marks.append((self.began, self._mark()))
            self.began = None

    def steps(self) -> list[float]:
        """Seconds of each step since the last call of this."""
        if self.gpu:
            torch.cuda.synchronize()
        seconds = [a.elapsed_time(b) / 1e3 if self.gpu else b - a for a, b in self.marks]
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
    """Of an epoch, on rank 0 (elsewhere empty): a row for each rank, and its host with the share it waited for a CPU."""

    rows: list[RankRow]
    waits: list[tuple[str, float]]


def of_ranks(pace: Pace, stage: int, epoch: int, *, rank: int, world: int, group: Any) -> Paces:
    """The paces of all ranks. All of them call it together."""
    steps, host = pace.steps(), platform.node()
    mine = (host, len(steps), statistics.median(steps) if steps else 0.0, pace.waits.share())
    found: list[Any] = [mine] * world
    if world > 1:
        dist.gather_object(mine, found if rank == 0 else None, dst=0, group=group)
    if rank != 0:
        return Paces([], [])
    rows = [RankRow(stage, epoch, r, *one[:3]) for r, one in enumerate(found)]
    return Paces(rows, [(one[0], one[3]) for one in found])


def slow_ranks(rows: list[RankRow]) -> list[str]:
    """A sentence for each rank that all others wait for; none for an epoch too short to tell."""
    usual = statistics.median_low([row.seconds for row in rows]) if rows else 0.0
    return [
        f"rank {row.rank} on {row.host} takes {row.seconds / usual:.1f} times as long for its part of a step as the others: "
        f"all wait for it (ranks.csv)"
        for row in rows
        if row.steps >= FEWEST_STEPS and row.seconds > SLOW * usual > 0
    ]
