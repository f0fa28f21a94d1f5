"""What is decided between two steps: rank 0 decides, and all ranks hear it after the same step."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import torch
import torch.distributed as dist

from raytrain.worker import Worker

# At most so many seconds pass between two decisions, as far as steps allow.
EVERY_S = 0.5
# And at most so many steps, where a step takes next to no time.
MOST_STEPS = 1000


class Action(IntEnum):
    """What happens before the next step."""

    GO_ON = 0
    SAVE = 1
    STOP = 2


class Wishes:
    """What rank 0 asks between steps: whether there is a reason to stop, and whether a checkpoint
    is wanted.
    """

    def __init__(
        self,
        stop: Callable[[], str | None],
        keep: Callable[[], bool],
        due: Callable[[], bool],
    ) -> None:
        """Takes the questions.

        Args:
            stop: gives the reason to stop, or None.
            keep: whether a checkpoint is wanted from outside.
            due: whether the last checkpoint is old enough for a new one.
        """
        self.stop = stop
        self.keep = keep
        self.due = due
        self.reason: str | None = None

    def action(self) -> Action:
        """What rank 0 wants now. A reason to stop stays once it was given."""
        if self.reason is None:
            self.reason = self.stop()
        if self.reason:
            return Action.STOP
        if self.due() or self.keep():
            return Action.SAVE
        return Action.GO_ON


class Decisions:
    """Rank 0's decisions. Each one says after how many steps the next comes: in between nothing is
    exchanged.

    They travel between host processes (gloo), so that nobody waits for a GPU.
    """

    def __init__(self, worker: Worker, decide: Callable[[], Action], every_s: float) -> None:
        self.worker = worker
        self.decide = decide
        self.every_s = min(every_s, EVERY_S)
        self.group: Any = None
        if worker.world > 1 and worker.device.type == "cuda":
            self.group = dist.new_group(backend="gloo")
        self.steps = 0  # since the last decision
        self.wanted = 1  # steps until the next decision
        self.decided_at = time.monotonic()

    def after_step(self) -> Action:
        """The decision after a step; every rank calls it after every step."""
        self.steps += 1
        if self.steps < self.wanted:
            return Action.GO_ON
        return self.now()

    def now(self) -> Action:
        """A decision at once; every rank calls it together."""
        # (action, steps until the next decision), int64: one broadcast for both.
        message = torch.zeros(2, dtype=torch.int64)
        if self.worker.leads:
            message[0] = int(self.decide())
            message[1] = self._steps_until_next()
        if self.worker.world > 1:
            dist.broadcast(message, 0, group=self.group)
        self.steps = 0
        self.wanted = int(message[1])
        self.decided_at = time.monotonic()
        return Action(int(message[0]))

    def _steps_until_next(self) -> int:
        """So many that they take `every_s`, if they take as long as the ones before."""
        seconds = max(time.monotonic() - self.decided_at, 1e-6)
        steps = int(self.every_s * self.steps / seconds)
        return min(MOST_STEPS, max(1, steps))
