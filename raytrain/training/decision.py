"""What is decided between two steps: rank 0 decides, all ranks hear it after the same step."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import torch
import torch.distributed as dist

from raytrain.worker import Worker

# Seconds between two decisions at most, where steps are shorter.
EVERY_S = 0.5
MOST_STEPS = 1000


class Action(IntEnum):
    """What happens before the next step."""

    GO_ON = 0
    SAVE = 1
    STOP = 2


class Decisions:
    """Rank 0's decisions. With each it says after how many steps it decides again: in between nothing is exchanged.

    They travel between host processes (gloo), so that nobody waits for a GPU.
    """

    def __init__(self, worker: Worker, decide: Callable[[], Action], every_s: float) -> None:
        self.worker, self.decide, self.every_s = worker, decide, min(every_s, EVERY_S)
        gpus = worker.world > 1 and worker.device.type == "cuda"
        self.group: Any = dist.new_group(backend="gloo") if gpus else None
        self.steps, self.wanted, self.at = 0, 1, time.monotonic()

    def after_step(self) -> Action:
        """The decision after a step; every rank calls it after every step."""
        self.steps += 1
        return self.now() if self.steps >= self.wanted else Action.GO_ON

    def now(self) -> Action:
        """A decision at once; every rank calls it together."""
        word = torch.zeros(2, dtype=torch.int64)
        if self.worker.rank == 0:
            word[0], word[1] = int(self.decide()), self._steps_until_next()
        if self.worker.world > 1:
            dist.broadcast(word, 0, group=self.group)
        self.steps, self.wanted, self.at = 0, int(word[1]), time.monotonic()
        return Action(int(word[0]))

    def _steps_until_next(self) -> int:
        """So many that they take `every_s`, if they take as long as the ones before."""
        seconds = max(time.monotonic() - self.at, 1e-6)
        return min(MOST_STEPS, max(1, int(self.every_s * self.steps / seconds)))
