"""One optimiser step on a global batch: the same tiles, draws and mean for any number of workers
and passes.

Between two steps the host never waits for a GPU: losses, and whether a step was left out, stay on
the device.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from raytrain.config import Recipe
from raytrain.models.precision import autocast, dtype_of
from raytrain.registry import Loss
from raytrain.tiles import sampling
from raytrain.tiles.feeds import Source, moved
from raytrain.training import execution, out_of_memory, transforms
from raytrain.training.batch_plan import BatchPlan, plan_batch
from raytrain.training.pace import Pace
from raytrain.training.trained import Trained
from raytrain.worker import Worker

# Of a batch: "image", "target" and "index", see `Source.batches`.
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Outcome:
    """What a step leaves on the device.

    Args:
        values: float (2,), this rank's share of the mean loss, and 1.0 where the step was left out.
        tiles: of the global batch.
    """

    values: torch.Tensor
    tiles: int


def _nothing() -> None:
    """Nobody counts the batches."""


class Stepper:
    """Takes the steps of one stage."""

    def __init__(
        self,
        recipe: Recipe,
        number: int,
        trained: Trained,
        source: Source,
        loss: Loss,
        worker: Worker,
        beat: Callable[[], None] = _nothing,
    ) -> None:
        """Prepares the steps of a stage.

        Args:
            recipe: of the run, its precision resolved.
            number: of the stage, from 1.
            trained: what a step moves.
            source: of tiles and targets.
            loss: of a batch, the sum over its tiles.
            worker: this process.
            beat: called when the tiles of a pass are there, for the watchdog.
        """
        self.recipe = recipe
        self.number = number
        self.stage = recipe.stage(number)
        self.trained = trained
        self.network = trained.network
        self.model = trained.model
        self.optimizer = trained.optimizer
        self.ema = trained.ema
        self.source = source
        self.loss = loss
        self.worker = worker
        self.beat = beat
        self.precision = recipe.train.precision
        self.pace = Pace(worker.device)
        self.weights = trained.weights

    def __call__(self, rows: sampling.Rows, epoch: int, number: int) -> Outcome:
        """Trains on the global batch `number` of an epoch, whose tiles are fetched now."""
        plan = self.plan(rows, epoch, number)
        return self._step(plan, self.source.batches(plan.wanted(), dtype_of(self.precision)))

    def epoch(
        self, batches: Sequence[sampling.Rows], epoch: int, first: int = 0
    ) -> Iterator[Outcome]:
        """Trains on the global batches of an epoch from number `first` on; their tiles are fetched
        ahead.
        """
        plans: deque[BatchPlan] = deque()

        def wanted() -> Iterator[sampling.Rows]:
            for number in range(first, len(batches)):
                plan = self.plan(batches[number], epoch, number)
                plans.append(plan)
                yield from plan.wanted()

        fetched = self.source.batches(wanted(), dtype_of(self.precision))
        with contextlib.closing(fetched):
            self.pace.begin()
            for batch in fetched:
                self.pace.arrived()
                yield self._step(plans.popleft(), itertools.chain([batch], fetched))
                self.pace.begin()

    def plan(self, rows: sampling.Rows, epoch: int, number: int) -> BatchPlan:
        """What is known of the global batch `number` of an epoch before its tiles are there."""
        return plan_batch(self.recipe, self.number, self.worker, rows, epoch, number)

    def next_batch(self, plan: BatchPlan, fetched: Iterator[Tensors]) -> Tensors:
        """The tiles of the next pass over a planned batch."""
        batch = next(fetched)
        self.beat()
        return batch

    def augmented(self, images: torch.Tensor, draws: transforms.Draws, epoch: int) -> torch.Tensor:
        """uint8 or uint16 (B, C, H, W) to the pixels (B, C, S, S) that the network sees."""
        return transforms.train_pixels(
            images,
            draws.to(self.worker.device),
            self.stage.size_at(epoch),
            self.recipe.data.normalize,
            dtype_of(self.precision),
        )

    def _step(self, plan: BatchPlan, fetched: Iterator[Tensors]) -> Outcome:
        try:
            return self._outcome(plan, fetched)
        except torch.OutOfMemoryError as error:
            message = str(error).splitlines()[0]
        # Not in the handler: while the error is known, its traceback holds all that the failed step
        # has computed.
        raise out_of_memory.advice(
            self.recipe, self.stage, self.trained, self.worker, plan, message
        )

    def _outcome(self, plan: BatchPlan, fetched: Iterator[Tensors]) -> Outcome:
        if len(plan.passes) > 1 and execution.reuses_gradients(self.model):
            self._begin_sums()
        losses = [self.train_pass(plan, n, fetched) for n in range(len(plan.passes))]
        loss = torch.stack(losses).sum()
        left_out = self.update()
        if self.ema:
            self.ema.update(self.model)
        return Outcome(torch.stack([loss, left_out.to(loss)]), len(plan.rows))

    def _begin_sums(self) -> None:
        """Gives gradients memory of their own: autograd would keep that of a graph, which the next
        pass overwrites.

        https://github.com/pytorch/pytorch/issues/181723
        """
        for weight in self.weights:
            weight.grad = torch.zeros_like(weight)

    def train_pass(self, plan: BatchPlan, n: int, fetched: Iterator[Tensors]) -> torch.Tensor:
        """Forward and backward of one pass. Returns its share of the global batch's mean loss."""
        batch = self.next_batch(plan, fetched)
        pixels, target = self._mixed(plan, plan.passes[n], batch, fetched)
        # Dropout becomes a function of the position alone, and differs for each rank.
        torch.manual_seed(sampling.seed_of(*plan.key, self.worker.rank, n))
        is_last = n == len(plan.passes) - 1
        with self._synchronised(is_last):
            with autocast(self.precision, self.worker.device):
                logits = self.network(pixels)
            share = self.loss(logits, target) / len(plan.rows)
            if is_last:
                # Gradients travel in the backward pass: from here on ranks wait for each other.
                self.pace.alone()
            # DDP averages gradients over ranks; times world makes it the mean over the global
            # batch.
            (share * self.worker.world).backward()
        return share.detach()

    def _mixed(
        self, plan: BatchPlan, part: slice, batch: Tensors, fetched: Iterator[Tensors]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Augmented pixels and targets of a pass.

        With mixup (Zhang et al. 2018) each is the mean of two, weighted as drawn.
        """
        draws = plan.draws
        pixels = self.augmented(batch["image"], draws.augment.rows(part), plan.epoch)
        target = batch["target"]
        if draws.weight is None:
            return pixels, target
        other = next(fetched)
        partner = torch.from_numpy(draws.partner[part])
        mixed_in = self.augmented(other["image"], draws.augment.rows(partner), plan.epoch)
        weight = moved(draws.weight[part].to(pixels.dtype), pixels.device)[:, None]  # (B, 1)
        mixed_pixels = torch.lerp(mixed_in, pixels, weight[..., None, None])
        mixed_target = torch.lerp(other["target"], target, weight)
        return mixed_pixels, mixed_target

    def _synchronised(self, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """Gradients travel between ranks in the last pass only."""
        if not is_last and isinstance(self.network, DistributedDataParallel):
            return self.network.no_sync()
        return contextlib.nullcontext()

    def update(self) -> torch.Tensor:
        """Moves the weights, unless a gradient is not finite: then nothing moves.

        Judged from the gradient that all ranks share after their reduction, so all of them do the
        same.

        Returns:
            1.0 for a step that was left out, else 0, float ().
        """
        gradients = [weight.grad for weight in self.weights if weight.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        clip_norm = self.recipe.train.clip_norm
        if clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self.weights, clip_norm, norm)
        left_out = (~norm.isfinite()).float()
        # Where torch's GradScaler leaves its finding; fused optimisers look there, on the device.
        vars(self.optimizer)["found_inf"] = left_out
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return left_out
