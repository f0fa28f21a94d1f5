"""One optimiser step on a global batch: the same tiles, draws and mean whatever the number of workers and passes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from raytrain.config import Recipe
from raytrain.training import tiles, transforms
from raytrain.training.ema import Ema
from raytrain.training.precision import autocast, dtype_of
from raytrain.training.tasks import MultiLabel


@dataclass(frozen=True)
class Worker:
    """This process among the workers of a run."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    cpus: int = 1


@dataclass(frozen=True)
class Batch:
    """What a pass saw, for `on_batch`: the part, the position, and the rank's tiles."""

    part: str
    stage: int
    epoch: int
    number: int
    tensors: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Draws:
    """All chance of a global batch: augmentation, and mixup's partners with the share of the tile itself."""

    augment: transforms.Draws
    partner: tiles.Rows
    share: torch.Tensor | None


@dataclass(frozen=True)
class Source:
    """Decoded tiles uint8 (N, S, S, 3) and their targets uint8 (N, K)."""

    pixels: np.ndarray[Any, Any]
    targets: np.ndarray[Any, Any]


class Stepper:
    """Steps of one stage: holds network, optimiser and tiles; `step(rows, epoch, i)` trains on a global batch."""

    def __init__(
        self, recipe: Recipe, number: int, network: nn.Module, optimizer: torch.optim.Optimizer, source: Source,
        worker: Worker, on_batch: Callable[[Batch], None] = lambda batch: None, ema: Ema | None = None,
    ) -> None:  # fmt: skip
        self.recipe, self.number, self.stage = recipe, number, recipe.stages[number - 1]
        self.network, self.optimizer, self.source = network, optimizer, source
        self.worker, self.on_batch, self.ema = worker, on_batch, ema
        self.task = MultiLabel(recipe.train)
        self.precision = recipe.train.precision

    def __call__(self, rows: tiles.Rows, epoch: int, i: int) -> torch.Tensor:
        """Trains on the global batch `i` of an epoch. Returns this rank's share of its mean loss, on the device."""
        train, worker = self.recipe.train, self.worker
        key = (train.seed, self.number, epoch, i)
        draws = self._draw(len(rows), key)
        passes = tiles.pass_slices(len(rows), worker.rank, worker.world, train.accumulate)
        loss = torch.zeros((), dtype=dtype_of(self.precision), device=worker.device)
        for n, part in enumerate(passes):
            batch = self._tiles(rows[part])
            self.on_batch(Batch("train", self.number, epoch, i, batch))
            pixels, target = self._mixed(batch, rows, part, draws, epoch)
            # Dropout becomes a function of the position alone, and differs per rank.
            torch.manual_seed(tiles.seed_of(*key, worker.rank, n))
            with self._synchronised(last=n == len(passes) - 1):
                with autocast(self.precision, worker.device):
                    logits = self.network(pixels)
                share = self.task.loss_sum(logits, target) / len(rows)
                # DDP averages gradients over ranks; times world makes it the mean over the global batch.
                (share * worker.world).backward()
            loss += share.detach()
        if train.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), train.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update(self.network.module if isinstance(self.network, DistributedDataParallel) else self.network)
        return loss

    def _draw(self, count: int, key: tuple[int, ...]) -> Draws:
        generator = torch.Generator().manual_seed(tiles.seed_of(*key))
        augment = transforms.draw(self.recipe.augment(self.stage), count, generator)
        alpha = self.recipe.train.mixup
        if not alpha:
            return Draws(augment, np.arange(count), None)
        chance = np.random.default_rng((*key, 1))
        share = chance.beta(alpha, alpha, count)
        return Draws(augment, chance.permutation(count), torch.from_numpy(np.maximum(share, 1 - share)))

    def _tiles(self, rows: tiles.Rows) -> dict[str, torch.Tensor]:
        dtype = dtype_of(self.precision)
        return tiles.batch_of(self.source.pixels, self.source.targets, rows, self.worker.device, dtype)

    def _mixed(
        self, batch: dict[str, torch.Tensor], rows: tiles.Rows, part: slice, draws: Draws, epoch: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Augmented pixels and targets; with mixup (Zhang et al. 2018) each is the mean of two, weighted by the share."""
        pixels, target = self._augmented(batch["image"], draws.augment.rows(part), epoch), batch["target"]
        if draws.share is None:
            return pixels, target
        # A partner may belong to another rank's share: the tiles of the whole batch are in this node's store.
        partner = draws.partner[part]
        other = self._tiles(rows[partner])
        mixed_in = self._augmented(other["image"], draws.augment.rows(torch.from_numpy(partner)), epoch)
        share = draws.share[part].to(pixels)[:, None]
        return torch.lerp(mixed_in, pixels, share[..., None, None]), torch.lerp(other["target"], target, share)

    def _augmented(self, images: torch.Tensor, draws: transforms.Draws, epoch: int) -> torch.Tensor:
        size, dtype = self.stage.size_at(epoch), dtype_of(self.precision)
        return transforms.train_pixels(images, draws.to(self.worker.device), size, self.recipe.data.normalize, dtype)

    def _synchronised(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Gradients travel between ranks in the last pass only."""
        if last or not isinstance(self.network, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.network.no_sync()
