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
# Steps between two looks at the device: a gradient that is not finite is known after so many at the latest.
CHECK_EVERY = 50


class GroupDiverged(DivergedError):
    """Diverged, as every rank of the group finds at the same place of its program."""


class EpochRecord:
    """What the steps of an epoch leave behind: losses (on the device until the end), rates, time."""

    def __init__(self, number: int, epoch: int, batches: int, world: int) -> None:
        self.number, self.epoch, self.batches, self.world = (number, epoch, batches, world)
        self.outcomes: list[torch.Tensor] = []
        self.rates: list[tuple[list[float], float]] = []
        self.losses: list[float] = []
        self.tiles, self.seconds, self.paused = 0, 0.0, 0.0
        self.began = self.said = time.monotonic()
        self.before = 0

    def restore(self, outcomes: list[torch.Tensor], rates: list[tuple[list[float], float]]) -> None:
        """Takes in the steps of the epoch that were done before this process began; time and tiles count from here."""
        self.outcomes, self.rates, self.before = outcomes, rates, len(outcomes)

    @property
    def done(self) -> int:
        """Steps of the epoch that are done."""
        return len(self.outcomes)

    def add(self, outcome: Outcome, rates: tuple[list[float], float]) -> None:
        """Takes in a step and its (rate per group, momentum).

        Raises:
            GroupDiverged: one of the last steps had a gradient that is not finite.
        """
        self.outcomes.append(outcome.values)
        self.rates.append(rates)
        self.tiles += outcome.tiles
        done = self.done
        if done % CHECK_EVERY == 0 and bool(torch.stack(self.outcomes[-CHECK_EVERY:])[:, 1].any()):
            self.check()
        if time.monotonic() - self.said > PROGRESS_EVERY_S:
            self.said = time.monotonic()
            left = (self.said - self.began) / (done - self.before) * (self.batches - done)
            logger.info(
                f"  stage {self.number} epoch {self.epoch}: step {done}/{self.batches}, {duration(left)} to go"
            )

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
        total = torch.stack(self.outcomes)
        if self.world > 1:
            dist.all_reduce(total)
        for i, (loss, left_out) in enumerate(total.tolist()):
            if left_out or not math.isfinite(loss):
                self._refuse(i, loss)
        return total[:, 0].tolist()

    def _refuse(self, step: int, loss: float) -> None:
        what = "the gradient is not finite" if math.isfinite(loss) else f"the loss became {loss}"
        raise GroupDiverged(
            f"{what} at step {step + 1} of stage {self.number} epoch {self.epoch}",
            "no weight was moved by it, but training cannot go on; no checkpoint was written after it",
            f"lower the peak lr of stage {self.number}, then start a new run with --init-from the last checkpoint",
        )

    def rows(self, first: int) -> list[StepRow]:
        """A row per step, counted over the run from `first`."""
        return [
            StepRow(self.number, self.epoch, first + i, lr, momentum, loss)
            for i, ((lr, momentum), loss) in enumerate(zip(self.rates, self.losses, strict=True))
        ]
