"""What trains in turn: the program's own loop, and the step alone on one batch that lies on the device. No ray."""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from contextlib import ExitStack
from itertools import count

import torch
from torch import nn

from raytrain.bench.blocks import Side, children_stopped
from raytrain.config import Recipe
from raytrain.data.dataset import Dataset
from raytrain.models.precision import autocast, dtype_of
from raytrain.training.epoch import EpochRecord
from raytrain.training.hooks import Hooks
from raytrain.training.loop import Trainer
from raytrain.worker import Worker


class Loop:
    """The program's own loop in one stage, in blocks of steps that go on over the ends of epochs; nothing is validated."""

    def __init__(
        self, recipe: Recipe, dataset: Dataset, number: int, worker: Worker, run: str
    ) -> None:
        self.trainer = Trainer(recipe, dataset, run, worker, Hooks())
        self.recipe, self.stage = self.trainer.recipe, self.trainer.recipe.stages[number - 1]
        self.number, self.device = number, worker.device
        self.step = self.trainer.start_stage(number)
        self.tiles = self._tiles()

    @property
    def name(self) -> str:
        """Of the stage's figures."""
        return f"train.{self.recipe.stage_names[self.number - 1]}"

    @property
    def about(self) -> str:
        """What the figures were measured on: resnet18 64 px batch 32 bf16."""
        frozen = " frozen" if self.stage.freeze else ""
        return f"{self._what()} {self.recipe.train.precision}{frozen}"

    def about_in(self, precision: str) -> str:
        """The same of the whole network in another precision."""
        return f"{self._what()} {precision}"

    def _what(self) -> str:
        return f"{self.recipe.model.arch} {self.stage.size} px batch {self.recipe.batch_size(self.stage)}"

    def block(self, steps: int) -> float:
        """See `Side`. The first step pays for fetching ahead, as the first of a run does."""
        wait_for(self.device)
        began, done = time.perf_counter(), 0.0
        for _ in range(steps):
            done += next(self.tiles)
        while self._busy():
            done += next(self.tiles)
        wait_for(self.device)
        return done / (time.perf_counter() - began)

    def close(self) -> None:
        """Ends what fetches ahead."""
        self.tiles.close()
        self.trainer.placed.feed.close()

    def _busy(self) -> bool:
        """Whether something works in the background that would disturb the other side."""
        return False

    def _after(self, record: EpochRecord) -> None:
        """What follows a step."""

    def _tiles(self) -> Generator[float]:
        """Trains a step each; gives this rank's tiles in it."""
        for n in count():
            before = 0
            for record in self.trainer.steps(self.step, self.number, n % self.stage.epochs + 1):
                self._after(record)
                yield (record.tiles - before) / self.trainer.worker.world
                before = record.tiles


class Saving(Loop):
    """The loop with its checkpoints within epochs, as often as the run's saver wants them; its rests do not count.

    A block goes on for the steps in which its last checkpoint is still being written.
    """

    def __init__(
        self, recipe: Recipe, dataset: Dataset, number: int, worker: Worker, run: str
    ) -> None:
        super().__init__(recipe, dataset, number, worker, run)
        self.saver, self.saves, self.rested = self.trainer.saver, 0, time.monotonic()

    def block(self, steps: int) -> float:
        """See `Side`."""
        self.saver.began += time.monotonic() - self.rested
        try:
            return super().block(steps)
        finally:
            self.rested = time.monotonic()

    def block_with_save(self, steps: int) -> float:
        """A block that begins with a checkpoint: what it costs is known afterwards, and so the interval."""
        self.saver.began = float("-inf")
        return self.block(steps)

    def close(self) -> None:
        """Ends the saver too."""
        super().close()
        self.saver.close()

    def _busy(self) -> bool:
        return self.saver.pending is not None and not self.saver.pending.done()

    def _after(self, record: EpochRecord) -> None:
        began = self.saver.began
        if record.done < record.batches:
            self.trainer._between_steps(self.step, record)
        self.saves += self.saver.began != began


class Ceiling:
    """Forward, backward and optimiser step on one random batch that lies on the device: what a loop can reach at most."""

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        shape: tuple[int, ...],
        outputs: int,
        precision: str,
        device: torch.device,
    ) -> None:
        self.network, self.optimizer, self.precision, self.device = (
            network,
            optimizer,
            precision,
            device,
        )
        pixels = torch.randn(shape, dtype=dtype_of(precision), device=device)
        self.pixels = pixels.contiguous(memory_format=torch.channels_last)
        self.target = torch.randint(0, 2, (shape[0], outputs), device=device).to(pixels.dtype)

    @classmethod
    def of(cls, loop: Loop) -> Ceiling:
        """That of a loop of one worker: its network and optimiser as they are, in turn with it."""
        step, stage, outputs = loop.step, loop.stage, len(loop.trainer.dataset.classes)
        shape = (loop.recipe.batch_size(stage), 3, stage.size, stage.size)
        return cls(
            step.network, step.optimizer, shape, outputs, loop.recipe.train.precision, loop.device
        )

    def block(self, steps: int) -> float:
        """See `Side`."""
        self.network.train()
        wait_for(self.device)
        began = time.perf_counter()
        for _ in range(steps):
            with autocast(self.precision, self.device):
                logits = self.network(self.pixels)
            nn.functional.binary_cross_entropy_with_logits(
                logits.to(self.target.dtype), self.target
            ).backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        wait_for(self.device)
        return steps * len(self.pixels) / (time.perf_counter() - began)

    def close(self) -> None:
        """Nothing works in the background."""


class Resting:
    """A side whose other processes are stopped between its blocks."""

    def __init__(self, side: Side) -> None:
        self.side, self.rest = side, ExitStack()

    def block(self, steps: int) -> float:
        """See `Side`."""
        self.rest.close()
        rate = self.side.block(steps)
        self.rest.enter_context(children_stopped())
        return rate

    def close(self) -> None:
        """Ends the side."""
        self.rest.close()
        self.side.close()


def wait_for(device: torch.device) -> None:
    """Waits until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def alone(recipe: Recipe) -> Worker:
    """One worker with all CPUs, and with the GPU where there is one."""
    gpu = torch.cuda.is_available() and recipe.use_gpu is not False
    return Worker(device=torch.device("cuda" if gpu else "cpu"), cpus=len(os.sched_getaffinity(0)))
