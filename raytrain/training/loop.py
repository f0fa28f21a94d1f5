"""fit: stages -> epochs -> steps, over any tiles and any process group.

`fit` trains the stages of a recipe in one process of a group (or alone) and leaves a run directory behind: checkpoints
under the lesson's names, history, predictions of the validation part. It knows nothing of Ray: `say` and `report`
carry lines and metrics out.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from raytrain import storage
from raytrain.config import Recipe, Stage
from raytrain.data.cache import Store, open_store, stored_size
from raytrain.data.dataset import Dataset
from raytrain.errors import ConfigError, DataError, DivergedError
from raytrain.evaluation import predictions
from raytrain.training import checkpoint as ckpt
from raytrain.training import models, optim, tiles, transforms
from raytrain.training.history import EpochRow, History, StepRow, duration, epoch_line, smoothed
from raytrain.training.tasks import MultiLabel

PROGRESS_EVERY_S = 30.0
Metrics = dict[str, Any]


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
    """What a step saw, for `on_batch`: the part, the position, and the rank's tiles."""

    part: str
    stage: int
    epoch: int
    number: int
    tensors: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Hooks:
    """Where lines, metrics and (in tests) batches go. `report` is called by every rank after each epoch."""

    say: Callable[[str], None] = print
    report: Callable[[Metrics], None] = lambda metrics: None
    on_batch: Callable[[Batch], None] = lambda batch: None
    on_stage_end: Callable[[int, nn.Module], None] = lambda stage, model: None


def fit(recipe: Recipe, dataset: Dataset, run: str, worker: Worker, hooks: Hooks) -> Metrics:
    """Trains the selected stages of a recipe, going on from the run's latest checkpoint if it has one.

    Returns:
        The metrics of the last validation: stage, epoch, f2, valid_loss, accuracy, checkpoint.

    Raises:
        ConfigError, DataError, DivergedError, StorageError: see their sentences.
    """
    torch.set_num_threads(recipe.train.threads or max(1, worker.cpus // worker.local_world))
    trainer = Trainer(_with_precision(recipe, worker), dataset, run, worker, hooks)
    return trainer.run_stages()


def default_precision(device: torch.device) -> str:
    """`bf16` where the processor computes in it, else `fp32`."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    capable = torch.cpu.get_capabilities()
    return "bf16" if capable.get("avx512_bf16") or capable.get("amx_bf16") else "fp32"


def _with_precision(recipe: Recipe, worker: Worker) -> Recipe:
    """Replaces `auto` by what rank 0's processor has: all ranks must compute alike."""
    if recipe.train.precision != "auto":
        return recipe
    chosen = [default_precision(worker.device)]
    if worker.world > 1:
        dist.broadcast_object_list(chosen, src=0)
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"precision": chosen[0]})})


class Trainer:
    """The state of a run in one process: network, tiles, rows of the parts, record."""

    def __init__(self, recipe: Recipe, dataset: Dataset, run: str, worker: Worker, hooks: Hooks) -> None:
        self.recipe, self.dataset, self.run, self.worker, self.hooks = recipe, dataset, run, worker, hooks
        self.task = MultiLabel()
        self.train_rows = dataset.part_rows(recipe.data.split, "train")
        self.valid_rows = dataset.part_rows(recipe.data.split, "valid")
        check_rows(recipe, len(self.train_rows), len(self.valid_rows))
        torch.manual_seed(_key(recipe.train.seed, 0))
        self.model = models.build(recipe.model.arch, len(dataset.classes), recipe.model.dropout)
        self.start, self.parent, self.optimizer_state = self._initialise()
        self.model.to(worker.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs
        self.store = self._open_store()
        self.history = History(run, self.start)
        self.last: Metrics = self._row_metrics(self.history.epochs[-1]) if self.history.epochs else {}

    @property
    def leads(self) -> bool:
        """True on rank 0, which alone writes."""
        return self.worker.rank == 0

    def run_stages(self) -> Metrics:
        """Works through the selected stages in order."""
        first, last = self.recipe.selected
        for number in range(first, last + 1):
            if (number, self.recipe.stages[number - 1].epochs) > self.start:
                self._run_stage(number, self.recipe.stages[number - 1])
        if self.leads:
            self.history.write_events()
        return self.last

    def _initialise(self) -> tuple[tuple[int, int], str | None, dict[str, Any] | None]:
        """Own latest checkpoint, else init_from, else weights, else random: in this order.

        Every rank reads the same files, so that all agree on the position without talking.
        """
        own, skipped = ckpt.find_latest(storage.join(self.run, "checkpoints"))
        for sentence in skipped if self.leads else []:
            self.hooks.say(f"skipped a checkpoint: {sentence}")
        source = own or (ckpt.load(self.recipe.init_from) if self.recipe.init_from else None)
        origin = "random weights"
        if source:
            ckpt.check_fits(source, self.dataset.classes, self.recipe.model.arch)
            self.model.load_state_dict(source.weights())
            origin = f"{source.place} (F2 {source.meta['f2']:.4f})"
        else:
            state = models.body_weights(self.recipe.model.arch, self.recipe.model.weights)
            if state is not None:
                models.load_body(self.model, state, self.recipe.model.weights)
                origin = f"weights {self.recipe.model.weights}"
        if own:
            self._check_same_data(own)
        if self.leads:
            verb = f"resuming after stage {own.position[0]} epoch {own.position[1]}" if own else "new run"
            self.hooks.say(f"{verb}, from {origin}")
        return (own.position if own else (0, 0), source.place if source else None, own.train_state() if own else None)

    def _check_same_data(self, own: ckpt.Checkpoint) -> None:
        wanted = (self.dataset.hash, self.dataset.split_hash(self.recipe.data.split))
        if (own.meta["dataset_hash"], own.meta["split_hash"]) != wanted:
            raise DataError(
                f"the dataset {self.dataset.place} is not the one that {own.place} was trained on",
                "tiles or their parts have changed since; validation tiles could have been trained on",
                "start a new run with --init-from that checkpoint, or restore the dataset",
            )

    def _open_store(self) -> Store:
        size = stored_size(self.dataset.tile_size, [stage.size for stage in self.recipe.stages])
        began = time.monotonic()
        worker = self.worker
        store = open_store(
            self.dataset, size, processes=max(1, worker.cpus // worker.local_world),
            turn=(worker.local_rank, worker.local_world),
            say=self.hooks.say,
        )  # fmt: skip
        self.hooks.say(
            f"tiles: rank {worker.rank} of {worker.world} decoded {store.decoded} of {self.dataset.rows} at {size} px"
            f" in {duration(time.monotonic() - began)}, the others were in {store.directory}"
        )
        return store

    def _run_stage(self, number: int, stage: Stage) -> None:
        models.set_frozen(self.model, stage.freeze)
        rates = optim.group_rates(stage.lr, 3, self.recipe.train.schedule)
        optimizer = optim.make_optimizer(self.model, rates, self.recipe.train.wd)
        done = self.start[1] if self.start[0] == number else 0
        if done and self.optimizer_state:
            optimizer.load_state_dict(self.optimizer_state)
        network = self._wrapped()
        for epoch in range(done + 1, stage.epochs + 1):
            self._run_epoch(number, stage, epoch, network, optimizer)
        if self.leads:
            self._save(self.recipe.stage_names[number - 1], number, stage.epochs, None)
        self.hooks.on_stage_end(number, self.model)

    def _wrapped(self) -> nn.Module:
        """DDP built anew: a wrapper made while parameters were frozen would never synchronise them later."""
        if self.worker.world == 1:
            return self.model
        devices = [self.worker.device] if self.worker.device.type == "cuda" else None
        with warnings.catch_warnings():
            # torch 2.15 renames broadcast_buffers; older ones do not know the new name.
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(
                self.model, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
            )

    def _run_epoch(
        self, number: int, stage: Stage, epoch: int, network: nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        began = time.monotonic()
        steps, seconds, seen = self._train_epoch(number, stage, epoch, network, optimizer)
        self._share_buffers()
        metrics = self._validate(number, stage, epoch)
        row = EpochRow(
            stage=number, size=stage.size, epoch=epoch, lr=steps[-1].lr[-1],
            train_loss=smoothed([step.loss for step in steps]), valid_loss=metrics["valid_loss"],
            accuracy=metrics["accuracy"], f2=metrics["f2"], f2_best=max(self.history.best, metrics["f2"]),
            images_per_s=seen / seconds, seconds=time.monotonic() - began,
        )  # fmt: skip
        self.last = self._row_metrics(row)
        self.history.add(row, steps, write=self.leads)
        if self.leads:
            # After the history: a crash in between leaves a row too many, which a resumed run drops, never one too few.
            self._save("last", number, epoch, optimizer.state_dict())
            left = self._remaining_seconds(number, epoch, row)
            self.hooks.say(
                epoch_line(
                    row, stages=len(self.recipe.stages), epochs=stage.epochs, frozen=stage.freeze, remaining_s=left
                )
            )
        self.hooks.report(self.last)

    def _train_epoch(
        self, number: int, stage: Stage, epoch: int, network: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[list[StepRow], float, int]:
        """Returns the steps with their global losses, the seconds in them, and the tiles seen by all ranks."""
        recipe, world = self.recipe, self.worker.world
        order = tiles.epoch_order(self.train_rows, self.dataset.shard_rows, (recipe.train.seed, number, epoch))
        batches = tiles.global_batches(order, recipe.train.batch_size, world, recipe.train.drop_last)
        dropped = len(order) - sum(map(len, batches))
        if dropped and epoch == 1 and self.leads:
            self.hooks.say(f"stage {number}: the last {dropped} tiles of an epoch make no full batch and are dropped")
        network.train()
        losses, rates = [], []
        began = said = time.monotonic()
        for i, rows in enumerate(batches):
            step = (epoch - 1) * len(batches) + i
            rates.append(optim.set_step(optimizer, step, stage.epochs * len(batches), recipe.train.schedule))
            losses.append(self._step(number, stage, epoch, i, rows, network, optimizer))
            if self.leads and time.monotonic() - said > PROGRESS_EVERY_S:
                said = time.monotonic()
                left = (said - began) / (i + 1) * (len(batches) - i - 1)
                self.hooks.say(f"  stage {number} epoch {epoch}: step {i + 1}/{len(batches)}, {duration(left)} to go")
        values = self._global_losses(losses)
        seconds = time.monotonic() - began
        self._check_finite(values, number, epoch)
        first = self.history.step
        steps = [
            StepRow(number, epoch, first + i, lr, momentum, value)
            for i, ((lr, momentum), value) in enumerate(zip(rates, values, strict=True))
        ]
        return steps, seconds, len(order) - dropped

    def _step(
        self, number: int, stage: Stage, epoch: int, i: int, rows: tiles.Rows, network: nn.Module,
        optimizer: torch.optim.Optimizer,
    ) -> torch.Tensor:  # fmt: skip
        """One optimiser step on a global batch. Returns this rank's share of the global mean loss, on the device."""
        worker, data = self.worker, self.recipe.data
        key = (self.recipe.train.seed, number, epoch, i)
        share = tiles.rank_slice(len(rows), worker.rank, worker.world)
        draws = transforms.draw(data.augment, len(rows), torch.Generator().manual_seed(_key(*key)))
        batch = tiles.batch_of(self.store, self.dataset.targets, rows[share], worker.device)
        self.hooks.on_batch(Batch("train", number, epoch, i, batch))
        pixels = transforms.train_pixels(
            batch["image"], draws.rows(share).to(worker.device), stage.size, data.normalize
        )
        # Dropout becomes a function of the position alone, and differs per rank.
        torch.manual_seed(_key(*key, worker.rank + 1))
        with self._autocast():
            logits = network(pixels)
        loss = self.task.loss_sum(logits, batch["target"]) / len(rows)
        # DDP averages gradients over ranks; times world makes it the mean over the global batch.
        (loss * worker.world).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _autocast(self) -> torch.autocast:
        enabled = self.recipe.train.precision == "bf16"
        return torch.autocast(self.worker.device.type, dtype=torch.bfloat16, enabled=enabled)

    def _global_losses(self, losses: list[torch.Tensor]) -> list[float]:
        total = torch.stack(losses)
        if self.worker.world > 1:
            dist.all_reduce(total)
        values: list[float] = total.tolist()
        return values

    def _check_finite(self, losses: list[float], number: int, epoch: int) -> None:
        wrong = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), None)
        if wrong is not None:
            raise DivergedError(
                f"the loss became {losses[wrong]} at step {wrong + 1} of stage {number} epoch {epoch}",
                "weights after that step are useless; no checkpoint of this epoch was written",
                f"lower the peak lr of stage {number}, then start a new run with --init-from the last checkpoint",
            )

    def _share_buffers(self) -> None:
        """Gives all ranks the mean of their BatchNorm statistics, so that validation does not depend on who computes it.

        The mean, not rank 0's alone: each rank saw only its slice of every batch. Normalisation in training uses the
        batch's own statistics, so nothing else changes.
        """
        if self.worker.world > 1:
            for buffer in (b for b in self.model.buffers() if b.is_floating_point()):
                dist.all_reduce(buffer)
                buffer /= self.worker.world

    def _validate(self, number: int, stage: Stage, epoch: int) -> Metrics:
        """Logits of every validation tile exactly once; the metrics are computed alike on every rank."""
        share = tiles.rank_slice(len(self.valid_rows), self.worker.rank, self.worker.world)
        mine = self.valid_rows[share]
        found = np.concatenate([*self._logits(mine, number, stage, epoch), np.zeros((0, len(self.dataset.classes)))])
        parts: list[tuple[tiles.Rows, np.ndarray[Any, Any]]] = [(mine, found.astype(np.float32))]
        if self.worker.world > 1:
            parts = [parts[0] for _ in range(self.worker.world)]
            dist.all_gather_object(parts, (mine, found.astype(np.float32)))
        rows = np.concatenate([part[0] for part in parts])
        logits = np.concatenate([part[1] for part in parts])
        names = tuple(self.dataset.table["image_name"].iloc[rows])
        if len(set(names)) != len(names) or len(names) != len(self.valid_rows):
            raise RuntimeError(
                f"validation saw {len(names)} tiles, {len(set(names))} different; {len(self.valid_rows)} exist"
            )
        target = self.dataset.targets[rows]
        if self.leads:
            meta = {"task": self.task.name, "split": self.recipe.data.split, "part": "valid",
                    "dataset": self.dataset.place, "checkpoint": storage.join(self.run, "checkpoints", "last")}  # fmt: skip
            outcome = predictions.Predictions(names, logits, target, tuple(self.dataset.classes), meta)
            predictions.write(storage.join(self.run, "predictions.parquet"), outcome)
        return self.task.metrics(logits, target)

    def _logits(self, rows: tiles.Rows, number: int, stage: Stage, epoch: int) -> Iterator[np.ndarray[Any, Any]]:
        self.model.eval()
        size = max(1, 2 * self.recipe.train.batch_size // self.worker.world)
        for i, start in enumerate(range(0, len(rows), size)):
            batch = tiles.batch_of(self.store, self.dataset.targets, rows[start : start + size], self.worker.device)
            self.hooks.on_batch(Batch("valid", number, epoch, i, batch))
            pixels = transforms.valid_pixels(batch["image"], stage.size, self.recipe.data.normalize)
            # The unwrapped module: no collective may depend on how many batches a rank has.
            with torch.inference_mode(), self._autocast():
                yield self.model(pixels).float().cpu().numpy()

    def _save(self, name: str, number: int, epoch: int, optimizer: dict[str, Any] | None) -> None:
        meta = self._meta(number, epoch)
        place = storage.join(self.run, "checkpoints", name)
        ckpt.save(place, self.model, meta, None if optimizer is None else optimizer)

    def _meta(self, number: int, epoch: int) -> Metrics:
        recipe = self.recipe
        return {
            "recipe": recipe.model_dump(mode="json"), "stage": number, "epoch": epoch,
            "stage_name": recipe.stage_names[number - 1], "size": recipe.stages[number - 1].size,
            "step": self.history.step, "arch": recipe.model.arch, "classes": self.dataset.classes,
            "task": self.task.name, "normalize": recipe.data.normalize, "precision": recipe.train.precision,
            "resize": {"stored_size": self.store.size, "rule": transforms.RESIZE_RULE},
            "thresholds": {"default": 0.2}, "dataset": self.dataset.place, "dataset_hash": self.dataset.hash,
            "split": recipe.data.split, "split_hash": self.dataset.split_hash(recipe.data.split),
            "parent": self.parent, "f2": self.last["f2"], "world": self.worker.world,
            "threads": torch.get_num_threads(), "versions": {"torch": torch.__version__},
        }  # fmt: skip

    def _row_metrics(self, row: EpochRow) -> Metrics:
        place = storage.join(self.run, "checkpoints", "last")
        return {"stage": row.stage, "epoch": row.epoch, "f2": row.f2, "valid_loss": row.valid_loss,
                "accuracy": row.accuracy, "train_loss": row.train_loss, "checkpoint": place}  # fmt: skip

    def _remaining_seconds(self, number: int, epoch: int, row: EpochRow) -> float:
        """The epochs to come, each at this epoch's seconds times the ratio of pixels."""
        stages = list(enumerate(self.recipe.stages, 1))[number - 1 : self.recipe.selected[1]]
        epochs = sum((stage.epochs - (epoch if n == number else 0)) * stage.size**2 for n, stage in stages)
        return row.seconds * epochs / row.size**2


def check_rows(recipe: Recipe, train: int, valid: int) -> None:
    """Refuses parts that cannot make one batch or one judgement.

    Raises:
        ConfigError: the global batch is larger than the training part, or too small for the workers.
        DataError: no validation rows.
    """
    if valid == 0:
        raise DataError(
            f"the split {recipe.data.split} has no validation rows",
            "nothing could be judged",
            "raytrain ingest --valid 0.2",
        )
    if train < recipe.train.batch_size:
        raise ConfigError(
            f"train.batch_size = {recipe.train.batch_size} is more than the {train} training tiles",
            "an epoch would have no full batch",
            f"--train.batch-size {max(2, train // 4)}",
        )
    if recipe.train.batch_size < tiles.MIN_TILES_PER_RANK * recipe.num_workers:
        raise ConfigError(
            f"train.batch_size = {recipe.train.batch_size} over {recipe.num_workers} workers leaves one fewer than 2 tiles",
            "BatchNorm needs at least 2 tiles on every worker",
            f"--train.batch-size {tiles.MIN_TILES_PER_RANK * recipe.num_workers}",
        )


def _key(*parts: int) -> int:
    """A 63-bit seed from (seed, stage, epoch, ...): close positions give unrelated streams."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))
