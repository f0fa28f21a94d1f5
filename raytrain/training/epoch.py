"""What the steps of an epoch leave behind."""

from __future__ import annotations

import logging
import math
import time

import torch
import torch.distributed as dist

from raytrain.checkpoints.history import StepRow
from raytrain.errors import DivergedError
from raytrain.log import duration
from raytrain.training.step import Outcome

logger = logging.getLogger(__name__)

PROGRESS_EVERY_S = 30.0
# Steps between two looks at the device: a gradient that is not finite is known after so many at the
# latest.
CHECK_EVERY = 50

# Learning rate of each layer group, and momentum.
Rates = tuple[list[float], float]


class GroupDiverged(DivergedError):
    """Diverged, as every rank of the group finds at the same point of its program."""


class EpochRecord:
    """Losses, rates and time of an epoch. Losses stay on the device until its end."""

    def __init__(self, number: int, epoch: int, batches: int, world: int) -> None:
        """Begins the record of an epoch.

        Args:
            number: of the stage, from 1.
            epoch: of the stage, from 1.
            batches: global batches of the epoch.
            world: number of workers.
        """
        self.number = number
        self.epoch = epoch
        self.batches = batches
        self.world = world
        self.outcomes: list[torch.Tensor] = []  # `Outcome.values` of each step, float (2,)
        self.rates: list[Rates] = []
        self.losses: list[float] = []  # of the global batches, once the epoch is finished
        self.tiles = 0
        self.seconds = 0.0  # in training steps
        self.paused = 0.0  # seconds in which checkpoints were copied
        self.steps_before = 0  # of this epoch, before this process began
        self.began = time.monotonic()
        self.logged_at = self.began

    def restore(self, outcomes: list[torch.Tensor], rates: list[Rates]) -> None:
        """Takes in the steps of the epoch that were done before this process began; time and tiles
        count from here.
        """
        self.outcomes = outcomes
        self.rates = rates
        self.steps_before = len(outcomes)

    @property
    def done(self) -> int:
        """Steps of the epoch that are done."""
        return len(self.outcomes)

    @property
    def steps_left(self) -> bool:
        """Whether the epoch has a step to come."""
        return self.done < self.batches

    def add(self, outcome: Outcome, rates: Rates) -> None:
        """Takes in a step and its rates.

        Raises:
            GroupDiverged: one of the last steps had a gradient that is not finite.
        """
        self.outcomes.append(outcome.values)
        self.rates.append(rates)
        self.tiles += outcome.tiles
        if self.done % CHECK_EVERY == 0:
            left_out = torch.stack(self.outcomes[-CHECK_EVERY:])[:, 1]
            if bool(left_out.any()):
                self.check()
        if time.monotonic() - self.logged_at > PROGRESS_EVERY_S:
            self._log_progress()

    def finish(self) -> None:
        """Adds the shares of all ranks up to the losses of the global batches.

        Raises:
            GroupDiverged: one of them, or a gradient, is not finite.
        """
        self.losses = self.check()
        self.seconds = time.monotonic() - self.began - self.paused

    def check(self) -> list[float]:
        """Losses of the global batches so far; all ranks call it together.

        Raises:
            GroupDiverged: one of them, or a gradient, is not finite.
        """
        total = torch.stack(self.outcomes)  # (steps, 2)
        if self.world > 1:
            dist.all_reduce(total)
        for step, (loss, left_out) in enumerate(total.tolist(), 1):
            if left_out or not math.isfinite(loss):
                raise self._diverged(step, loss)
        losses: list[float] = total[:, 0].tolist()
        return losses

    def rows(self, first: int) -> list[StepRow]:
        """A row for each step, counted over the run from `first`."""
        rows = []
        for i, (lr, momentum) in enumerate(self.rates):
            row = StepRow(self.number, self.epoch, first + i, lr, momentum, self.losses[i])
            rows.append(row)
        return rows

    def log_first_step(self) -> None:
        """Logs that the first step is done; waits for the device."""
        self.outcomes[0].tolist()
        seconds = time.monotonic() - self.began
        logger.info(
            f"stage {self.number} epoch {self.epoch}: first step of {self.batches} done in "
            f"{seconds:.1f} s"
        )

    def _log_progress(self) -> None:
        self.logged_at = time.monotonic()
        seconds_per_step = (self.logged_at - self.began) / (self.done - self.steps_before)
        left = seconds_per_step * (self.batches - self.done)
        logger.info(
            f"  stage {self.number} epoch {self.epoch}: step {self.done}/{self.batches}, "
            f"{duration(left)} to go"
        )

    def _diverged(self, step: int, loss: float) -> GroupDiverged:
        what = f"the loss became {loss}"
        if math.isfinite(loss):
            what = "the gradient is not finite"
        return GroupDiverged(
            f"{what} at step {step} of stage {self.number} epoch {self.epoch}",
            "no weight was moved by it, but training cannot go on; no checkpoint was written "
            "after it",
            f"lower the peak lr of stage {self.number}, then start a new run with --init-from the "
            "last checkpoint",
        )
