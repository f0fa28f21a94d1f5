"""One optimiser step on a global batch: the same tiles, draws and mean whatever the number of workers and passes.

Between two steps the host never waits for a GPU: losses and the sign of a step that was left out stay on the device.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from raytrain.config import Recipe
from raytrain.errors import ResourceError
from raytrain.models.precision import autocast, dtype_of
from raytrain.tiles import sampling
from raytrain.tiles.feeds import Source, moved
from raytrain.training import execution, transforms
from raytrain.training.ema import Ema
from raytrain.training.pace import Pace
from raytrain.training.tasks import MultiLabel
from raytrain.worker import Worker


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
    partner: sampling.Rows
    share: torch.Tensor | None


@dataclass(frozen=True)
class Plan:
    """A global batch before its tiles are there: its place, its rows, its chance, and this rank's passes over it."""

    epoch: int
    number: int
    rows: sampling.Rows
    draws: Draws
    passes: list[slice]

    def wanted(self) -> Iterator[sampling.Rows]:
        """Rows of each pass; after them those of their partners, where tiles are mixed."""
        for part in self.passes:
            yield self.rows[part]
            if self.draws.share is not None:
                # A partner may belong to another rank's share.
                yield self.rows[self.draws.partner[part]]


@dataclass(frozen=True)
class Outcome:
    """What a step leaves on the device: this rank's share of the mean loss, and 1.0 where it was left out, float (2,)."""

    values: torch.Tensor
    tiles: int


class Stepper:
    """Steps of one stage: holds network, optimiser and tiles."""

    def __init__(
        self,
        recipe: Recipe,
        number: int,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        source: Source,
        worker: Worker,
        on_batch: Callable[[Batch], None] = lambda batch: None,
        ema: Ema | None = None,
    ) -> None:
        self.recipe, self.number, self.stage = recipe, number, recipe.stages[number - 1]
        self.network, self.optimizer, self.source = network, optimizer, source
        self.worker, self.on_batch, self.ema = worker, on_batch, ema
        self.task = MultiLabel(recipe.train)
        self.precision = recipe.train.precision
        self.pace = Pace(worker.device)
        self.trained = [p for group in optimizer.param_groups for p in group["params"]]

    def __call__(self, rows: sampling.Rows, epoch: int, i: int) -> Outcome:
        """Trains on the global batch `i` of an epoch."""
        plan = self.plan(rows, epoch, i)
        return self._step(plan, self.source.batches(plan.wanted(), dtype_of(self.precision)))

    def epoch(
        self, batches: Sequence[sampling.Rows], epoch: int, first: int = 0
    ) -> Iterator[Outcome]:
        """Trains on the global batches of an epoch from number `first` on; their tiles are fetched ahead."""
        plans: deque[Plan] = deque()

        def wanted() -> Iterator[sampling.Rows]:
            for i in range(first, len(batches)):
                plans.append(self.plan(batches[i], epoch, i))
                yield from plans[-1].wanted()

        fetched = self.source.batches(wanted(), dtype_of(self.precision))
        with contextlib.closing(fetched):
            self.pace.begin()
            for batch in fetched:
                yield self._step(plans.popleft(), itertools.chain([batch], fetched))
                self.pace.begin()

    def _step(self, plan: Plan, fetched: Iterator[dict[str, torch.Tensor]]) -> Outcome:
        try:
            return self._outcome(plan, fetched)
        except torch.OutOfMemoryError as error:
            said = str(error).splitlines()[0]
        # Not in the handler: while the error is known, its traceback holds all that the failed step has computed.
        raise self._out_of_memory(plan, said)

    def _outcome(self, plan: Plan, fetched: Iterator[dict[str, torch.Tensor]]) -> Outcome:
        if len(plan.passes) > 1 and execution.reuses_gradients(self.network):
            self._begin_sums()
        loss = torch.stack([self._pass(plan, n, fetched) for n in range(len(plan.passes))]).sum()
        left_out = self._update()
        if self.ema:
            self.ema.update(
                self.network.module
                if isinstance(self.network, DistributedDataParallel)
                else self.network
            )
        return Outcome(torch.stack([loss, left_out.to(loss)]), len(plan.rows))

    def _begin_sums(self) -> None:
        """Gives gradients memory of their own: autograd would keep that of a graph, which the next pass overwrites.

        https://github.com/pytorch/pytorch/issues/181723
        """
        for weight in self.trained:
            weight.grad = torch.zeros_like(weight)

    def _pass(self, plan: Plan, n: int, fetched: Iterator[dict[str, torch.Tensor]]) -> torch.Tensor:
        """Forward and backward of one pass. Returns its share of the global batch's mean loss."""
        batch = next(fetched)
        self.on_batch(Batch("train", self.number, plan.epoch, plan.number, batch))
        pixels, target = self._mixed(plan, plan.passes[n], batch, fetched)
        # Dropout becomes a function of the position alone, and differs per rank.
        torch.manual_seed(
            sampling.seed_of(*self._key(plan.epoch, plan.number), self.worker.rank, n)
        )
        last = n == len(plan.passes) - 1
        with self._synchronised(last):
            with autocast(self.precision, self.worker.device):
                logits = self.network(pixels)
            share = self.task.loss_sum(logits, target) / len(plan.rows)
            if last:
                self.pace.alone()
            # DDP averages gradients over ranks; times world makes it the mean over the global batch.
            (share * self.worker.world).backward()
        return share.detach()

    def _update(self) -> torch.Tensor:
        """Moves the weights, unless a gradient is not finite: then nothing moves. Returns 1.0 for a step left out, else 0.

        Judged from the gradient that all ranks share after their reduction, so all of them do the same.
        """
        gradients = [p.grad for p in self.trained if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.recipe.train.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self.trained, self.recipe.train.clip_norm, norm)
        left_out = (~norm.isfinite()).float()
        # Where torch's GradScaler leaves its finding; fused optimisers look there, on the device.
        vars(self.optimizer)["found_inf"] = left_out
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return left_out

    def _key(self, epoch: int, i: int) -> tuple[int, int, int, int]:
        return self.recipe.train.seed, self.number, epoch, i

    def plan(self, rows: sampling.Rows, epoch: int, i: int) -> Plan:
        """What is known of the global batch `i` of an epoch before its tiles are there."""
        worker, passes = self.worker, self.recipe.train.accumulate
        slices = sampling.pass_slices(len(rows), worker.rank, worker.world, passes)
        return Plan(epoch, i, rows, self._draw(len(rows), self._key(epoch, i)), slices)

    def _draw(self, count: int, key: tuple[int, ...]) -> Draws:
        generator = torch.Generator().manual_seed(sampling.seed_of(*key))
        augment = transforms.draw(self.recipe.augment(self.stage), count, generator)
        alpha = self.recipe.train.mixup
        if not alpha:
            return Draws(augment, np.arange(count), None)
        chance = np.random.default_rng((*key, 1))
        share = chance.beta(alpha, alpha, count)
        return Draws(
            augment, chance.permutation(count), torch.from_numpy(np.maximum(share, 1 - share))
        )

    def _mixed(
        self,
        plan: Plan,
        part: slice,
        batch: dict[str, torch.Tensor],
        fetched: Iterator[dict[str, torch.Tensor]],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Augmented pixels and targets; with mixup (Zhang et al. 2018) each is the mean of two, weighted by the share."""
        draws = plan.draws
        pixels, target = (
            self.augmented(batch["image"], draws.augment.rows(part), plan.epoch),
            batch["target"],
        )
        if draws.share is None:
            return pixels, target
        other, partner = next(fetched), torch.from_numpy(draws.partner[part])
        mixed_in = self.augmented(other["image"], draws.augment.rows(partner), plan.epoch)
        share = moved(draws.share[part].to(pixels.dtype), pixels.device)[:, None]
        return torch.lerp(mixed_in, pixels, share[..., None, None]), torch.lerp(
            other["target"], target, share
        )

    def augmented(self, images: torch.Tensor, draws: transforms.Draws, epoch: int) -> torch.Tensor:
        """uint8 (B, 3, H, W) to the pixels (B, 3, S, S) that the network sees in an epoch."""
        size, dtype = self.stage.size_at(epoch), dtype_of(self.precision)
        return transforms.train_pixels(
            images, draws.to(self.worker.device), size, self.recipe.data.normalize, dtype
        )

    def _synchronised(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Gradients travel between ranks in the last pass only."""
        if last or not isinstance(self.network, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.network.no_sync()

    def _out_of_memory(self, plan: Plan, said: str) -> ResourceError:
        mine = plan.passes[0].stop - plan.passes[0].start
        size, batch, passes = (
            self.stage.size_at(plan.epoch),
            len(plan.rows),
            self.recipe.train.accumulate,
        )
        fits = self._passes_that_fit(mine, size)
        return ResourceError(
            f"the GPU's memory is too small for {mine} tiles of {size} px in one pass (global batch {batch}, "
            f"train.accumulate = {passes}): {said}",
            f"training stops; tried just now: {mine // fits} tiles in one pass do fit"
            if fits
            else "not even 2 tiles in one pass fit",
            f"--train.accumulate {passes * fits}" if fits else "a smaller stage size or network",
        )

    def _passes_that_fit(self, mine: int, size: int) -> int:
        """The power of two that passes must be multiplied by to fit, found by trying; 0 where nothing does."""
        network = (
            self.network.module
            if isinstance(self.network, DistributedDataParallel)
            else self.network
        )
        execution.run_eagerly(network)  # graphs hold memory, of passes that are too large
        factor = 2
        while mine // factor >= sampling.MIN_TILES_PER_RANK:
            self.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            if self._fits(network, (-(-mine // factor), 3, size, size)):
                return factor
            factor *= 2
        return 0

    def _fits(self, network: nn.Module, shape: tuple[int, ...]) -> bool:
        """Whether a pass of pixels of this shape finds room; leaves nothing behind but gradients."""
        try:
            # The first step has yet to make the optimiser's two moments of every weight.
            moments = (
                [] if self.optimizer.state else [torch.empty_like(p) for p in self.trained * 2]
            )
            pixels = torch.zeros(shape, dtype=dtype_of(self.precision), device=self.worker.device)
            with autocast(self.precision, self.worker.device):
                logits = network(pixels.contiguous(memory_format=torch.channels_last))
            logits.sum().backward()
        except torch.OutOfMemoryError:
            return False
        del moments  # held until here
        return True
