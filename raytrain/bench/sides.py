"""The sides that train in turn: the program's own loop, and the bare step as its limit. No Ray."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count

import torch
from torch import nn

from raytrain.bench.blocks import Side, children_stopped
from raytrain.bench.stage import OpenStage
from raytrain.config import Recipe
from raytrain.data.dataset import Dataset
from raytrain.machine import usable_cpus
from raytrain.models.precision import autocast, dtype_of
from raytrain.training.epoch import EpochRecord
from raytrain.worker import Worker, compute_device


class Loop:
    """The program's own training loop in one stage.

    Its blocks continue across the ends of epochs. Nothing is validated and nothing is saved.
    """

    def __init__(
        self, recipe: Recipe, dataset: Dataset, number: int, worker: Worker, run: str
    ) -> None:
        """Opens stage `number` (from 1) of a recipe; see `OpenStage`."""
        self.opened = OpenStage(recipe, dataset, number, worker, run)
        self.recipe = self.opened.recipe
        self.stage = self.opened.stage
        self.device = worker.device
        self.tile_counts = self._tile_counts()

    @property
    def name(self) -> str:
        """First part of the names of this stage's figures, such as train.stage-1-128."""
        return f"train.{self.recipe.stage_names[self.opened.number - 1]}"

    @property
    def about(self) -> str:
        """What the figures were measured on, such as: resnet18 64 px batch 32 bf16."""
        about = self.about_in(self.recipe.train.precision)
        if self.stage.freeze:
            return f"{about} frozen"
        return about

    def about_in(self, precision: str) -> str:
        """The same for a whole, unfrozen network in another precision."""
        batch = self.recipe.batch_size(self.stage)
        return f"{self.recipe.model.arch} {self.stage.size} px batch {batch} {precision}"

    def block(self, steps: int) -> float:
        """See `Side.block`."""
        # A GPU works asynchronously, so the clock may be read only when its queue is empty.
        wait_for(self.device)
        began = time.perf_counter()
        tiles = 0.0
        for _ in range(steps):
            tiles += next(self.tile_counts)
        while self._is_busy():
            tiles += next(self.tile_counts)
        wait_for(self.device)
        return tiles / (time.perf_counter() - began)

    def epoch_seconds(self, epoch: int) -> float:
        """Trains through a whole epoch (from 1). Returns the seconds that it took."""
        began = time.perf_counter()
        for record in self.opened.steps(epoch):
            last = record
        # Reads the losses from the device, so all its work is part of the time.
        last.finish()
        return time.perf_counter() - began

    def close(self) -> None:
        """See `Side.close`."""
        # The generator first: it may be in the middle of fetching from the tiles.
        self.tile_counts.close()
        self.opened.close()

    def _is_busy(self) -> bool:
        """Whether background work would disturb the next side, so that this block must go on."""
        return False

    def _after_step(self, record: EpochRecord) -> None:
        """What happens between two steps; nothing here."""

    def _tile_counts(self) -> Generator[float]:
        """Trains endlessly, one step for each value: this process's share of its tiles."""
        world = self.opened.worker.world
        for number in count():
            epoch = number % self.stage.epochs + 1
            before = 0
            for record in self.opened.steps(epoch):
                self._after_step(record)
                yield (record.tiles - before) / world
                before = record.tiles


class Saving(Loop):
    """The loop with checkpoints within epochs, at the interval of the run's own saver.

    The time in which other sides train does not count towards the interval. A block continues
    until its last checkpoint is written, so that no writing slows down the next side.
    """

    def __init__(
        self, recipe: Recipe, dataset: Dataset, number: int, worker: Worker, run: str
    ) -> None:
        """Opens stage `number` (from 1) of a recipe; see `OpenStage`."""
        super().__init__(recipe, dataset, number, worker, run)
        self.saver = self.opened.saver
        self.saves = 0
        # Moment of the monotonic clock at which the last block ended.
        self.paused_at = time.monotonic()

    def block(self, steps: int) -> float:
        """See `Side.block`."""
        self.saver.began += time.monotonic() - self.paused_at
        try:
            return super().block(steps)
        finally:
            self.paused_at = time.monotonic()

    def block_with_save(self, steps: int) -> float:
        """Trains a block that begins with a checkpoint.

        Afterwards the saver knows what a checkpoint costs, from which it derives its interval.
        """
        # As if the last checkpoint was infinitely long ago.
        self.saver.began = float("-inf")
        return self.block(steps)

    def _is_busy(self) -> bool:
        pending = self.saver.pending
        return pending is not None and not pending.done()

    def _after_step(self, record: EpochRecord) -> None:
        began = self.saver.began
        # After the last step of an epoch the program saves in another way, with its metrics.
        if record.done < record.batches:
            self.opened.save_if_due(record)
        # The saver notes when a checkpoint began, so a new moment means a new checkpoint.
        if self.saver.began != began:
            self.saves += 1


@dataclass(frozen=True)
class RandomBatch:
    """What the batch of a ceiling looks like.

    Attributes:
        shape: of the pixels, (B, 3, S, S).
        outputs: logits of the network for each tile.
        precision: fp32, bf16 or fp64.
        device: where the batch lies.
    """

    shape: tuple[int, ...]
    outputs: int
    precision: str
    device: torch.device


class Ceiling:
    """Forward, backward and optimiser step on one random batch that lies on the device.

    No tiles are fetched or augmented, so no loop can be faster than this.
    """

    def __init__(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, batch: RandomBatch
    ) -> None:
        """Draws the batch. The network and its optimiser are on the device already."""
        self.network = network
        self.optimizer = optimizer
        self.precision = batch.precision
        self.device = batch.device
        pixels = torch.randn(batch.shape, dtype=dtype_of(batch.precision), device=batch.device)
        # The memory format of the pixels in training.
        self.pixels = pixels.contiguous(memory_format=torch.channels_last)
        target = torch.randint(0, 2, (batch.shape[0], batch.outputs), device=batch.device)
        self.target = target.to(pixels.dtype)

    @classmethod
    def of(cls, loop: Loop) -> Ceiling:
        """The ceiling of a loop of one process, with the loop's own network and optimiser.

        Both train the same weights in turn.
        """
        stage = loop.stage
        batch = RandomBatch(
            shape=(loop.recipe.batch_size(stage), 3, stage.size, stage.size),
            outputs=len(loop.opened.dataset.classes),
            precision=loop.recipe.train.precision,
            device=loop.device,
        )
        return cls(loop.opened.network, loop.opened.optimizer, batch)

    def block(self, steps: int) -> float:
        """See `Side.block`."""
        self.network.train()
        wait_for(self.device)
        began = time.perf_counter()
        for _ in range(steps):
            self._step()
        wait_for(self.device)
        return steps * len(self.pixels) / (time.perf_counter() - began)

    def close(self) -> None:
        """See `Side.close`; nothing works in the background."""

    def _step(self) -> None:
        with autocast(self.precision, self.device):
            logits = self.network(self.pixels)
        # Outside autocast, since a loss in bf16 would lose digits; so does the real loop.
        loss = nn.functional.binary_cross_entropy_with_logits(
            logits.to(self.target.dtype), self.target
        )
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class Resting:
    """Wraps a side whose child processes are paused between its blocks."""

    def __init__(self, side: Side) -> None:
        """Wraps a side that has started its child processes itself."""
        self.side = side
        # Holds the pause between two blocks, which begins in one call and ends in another.
        self.pause = ExitStack()

    def block(self, steps: int) -> float:
        """See `Side.block`."""
        self.pause.close()
        rate = self.side.block(steps)
        self.pause.enter_context(children_stopped())
        return rate

    def close(self) -> None:
        """See `Side.close`."""
        # A paused process could not end.
        self.pause.close()
        self.side.close()


def wait_for(device: torch.device) -> None:
    """Waits until a GPU has finished all work that is queued; a CPU has no queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def alone(recipe: Recipe) -> Worker:
    """This process as the only worker, with all CPUs and, where the recipe allows it, the GPU."""
    device = compute_device(torch.cuda.is_available() and recipe.use_gpu is not False)
    return Worker(device=device, cpus=usable_cpus())
