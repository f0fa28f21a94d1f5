"""fit: stages -> epochs -> steps, over any tiles and any process group.

`fit` trains the stages of a recipe in one process of a group (or alone) and leaves a run directory behind: checkpoints
under the lesson's names, history, predictions of the validation part. `find_rates` runs the range test instead. Neither
knows Ray: `say` and `report` carry lines and metrics out.
"""

from __future__ import annotations

import contextlib
import itertools
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from raytrain import storage
from raytrain.config import LAYER_GROUPS, Recipe, Stage
from raytrain.data.cache import stored_size
from raytrain.data.dataset import Dataset
from raytrain.errors import DataError, DivergedError
from raytrain.evaluation import predictions
from raytrain.training import checkpoint as ckpt
from raytrain.training import execution, lr_find, models, optim, tiles, transforms, validation
from raytrain.training.ema import Ema
from raytrain.training.epoch import EpochRecord
from raytrain.training.feed import Source
from raytrain.training.history import EpochRow, History, epoch_line, smoothed
from raytrain.training.memory import keep_freed_memory
from raytrain.training.placement import Placed, place_tiles
from raytrain.training.precision import agreed_precision, dtype_of
from raytrain.training.step import Batch, Outcome, Stepper, Worker
from raytrain.training.tasks import MultiLabel

AUTO_RULE = "minimum/10"
Metrics = dict[str, Any]


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
    trainer = Trainer(recipe, dataset, run, worker, hooks)
    with contextlib.closing(trainer.placed.feed):
        return _fit(trainer)


def _fit(trainer: Trainer) -> Metrics:
    for number, stage in trainer.stages_left():
        step = trainer.start_stage(number)
        for epoch in range(trainer.epochs_done(number) + 1, stage.epochs + 1):
            record = deque(trainer.steps(step, number, epoch), maxlen=1).pop()
            record.finish()
            trainer.share_statistics()
            metrics = trainer.validate(number, epoch)
            trainer.keep(number, epoch, record, metrics, step.optimizer)
        trainer.end_stage(number)
    return trainer.end()


def find_rates(recipe: Recipe, dataset: Dataset, run: str, worker: Worker, hooks: Hooks) -> dict[int, lr_find.Curve]:
    """Runs the range test for each selected stage, every time from the same weights. Returns its curve by stage.

    Raises:
        As `fit`.
    """
    trainer = Trainer(recipe, dataset, run, worker, hooks)
    with contextlib.closing(trainer.placed.feed):
        return {number: trainer.range_test(number) for number, _ in trainer.stages_left()}


@dataclass(frozen=True)
class Start:
    """Where a run begins: stage and epochs done in it, the checkpoint it came from, what is restored beside weights.

    `unnamed` is a stage that ended in a crash after its last epoch: the checkpoint with its name is still to write.
    `order` holds the window that tiles are shuffled in, where a run goes on: it must not change.
    """

    position: tuple[int, int] = (0, 0)
    parent: str | None = None
    optimizer: dict[str, Any] | None = None
    lr: Any = None
    unnamed: int = 0
    order: tuple[int | None] | None = None


class Trainer:
    """The state of a run in one process: network, tiles, rows of the parts, record."""

    def __init__(self, recipe: Recipe, dataset: Dataset, run: str, worker: Worker, hooks: Hooks) -> None:
        keep_freed_memory()
        torch.set_num_threads(recipe.train.threads or max(1, worker.cpus // worker.local_world))
        precision = agreed_precision(recipe.train.precision, worker.device, worker.world)
        self.recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"precision": precision})})
        self.dataset, self.run, self.worker, self.hooks = dataset, run, worker, hooks
        self.train_rows = dataset.part_rows(recipe.data.split, "train")
        self.valid_rows = dataset.part_rows(recipe.data.split, "valid")
        tiles.check_batches(recipe, len(self.train_rows), len(self.valid_rows))
        models.check_batch_norm(recipe.model.batch_norm, worker.device.type)
        torch.manual_seed(tiles.seed_of(recipe.train.seed, 0))
        self.model = models.build(
            recipe.model.arch, len(dataset.classes), recipe.model.dropout, recipe.model.batch_norm
        )
        self.start, source = self._initialise()
        models.placed(self.model, worker.device, dtype_of(precision))
        self.ema = self._restored_ema(source)
        self.placed = self._place_tiles()
        self.source = Source(self.placed.feed, torch.from_numpy(dataset.targets).to(worker.device))
        self.history = History(run, self.start.position)
        self.last: Metrics = self._row_metrics(self.history.epochs[-1]) if self.history.epochs else {}
        self.task = MultiLabel(recipe.train)
        self.lr: Any = None  # peak of the stage that runs
        self.waiting = True  # for the first step

    @property
    def leads(self) -> bool:
        """True on rank 0, which alone writes."""
        return self.worker.rank == 0

    def say(self, line: str) -> None:
        """Says a line once for the group."""
        if self.leads:
            self.hooks.say(line)

    def stages_left(self) -> Iterator[tuple[int, Stage]]:
        """(number, stage) of the selected stages that are not complete, the checkpoint with their name included."""
        first, last = self.recipe.selected
        for number, stage in list(enumerate(self.recipe.stages, 1))[first - 1 : last]:
            if (number, stage.epochs) > self.start.position or self.start.unnamed == number:
                yield number, stage

    def epochs_done(self, number: int) -> int:
        """Epochs of a stage that a resumed run has behind it."""
        return self.start.position[1] if self.start.position[0] == number else 0

    def start_stage(self, number: int) -> Stepper:
        """Freezes, makes a new optimiser (its state goes on in the middle of a stage only) and DDP anew."""
        resumed = self.epochs_done(number) > 0
        self.lr = self.start.lr if resumed else self._peak(number)
        batches = self.batches(number, 1)
        self._set_execution(number, batches)
        step = self._stepper(self.recipe, number, self.lr, self.ema)
        dropped = len(self.train_rows) - sum(map(len, batches))
        if dropped:
            self.say(f"stage {number}: the last {dropped} tiles of an epoch make no full batch and are dropped")
        if resumed and self.start.optimizer:
            step.optimizer.load_state_dict(self.start.optimizer)
        return step

    def steps(self, step: Stepper, number: int, epoch: int) -> Iterator[EpochRecord]:
        """Trains through an epoch and stops after every step, with what the epoch's steps have left behind so far."""
        batches, epochs = self.batches(number, epoch), self.recipe.stages[number - 1].epochs
        record = EpochRecord(number, epoch, len(batches), self.worker.world, self.say)
        self.model.train()
        outcomes = step.epoch(batches, epoch)
        for i in range(len(batches)):
            position = (epoch - 1) * len(batches) + i
            rates = optim.set_step(step.optimizer, position, epochs * len(batches), self.recipe.train.schedule)
            record.add(next(outcomes), rates)
            self._say_first(record)
            yield record

    def _say_first(self, record: EpochRecord) -> None:
        """Says once when the first step was done: the wait for the device costs nothing there."""
        if self.waiting:
            self.waiting = False
            record.outcomes[0].tolist()
            self.say(
                f"stage {record.number} epoch {record.epoch}: first step of {record.batches} done in "
                f"{time.monotonic() - record.began:.1f} s"
            )

    def batches(self, number: int, epoch: int) -> list[tiles.Rows]:
        """The global batches of an epoch, in order."""
        train, stage = self.recipe.train, self.recipe.stages[number - 1]
        order = tiles.epoch_order(
            self.train_rows, self.dataset.shard_rows, (train.seed, number, epoch), self.placed.window
        )
        return tiles.global_batches(order, self.recipe.batch_size(stage), self.worker.world, train.drop_last)

    def share_statistics(self) -> None:
        """Gives all ranks the mean of their BatchNorm statistics, so that validation does not depend on who computes it.

        The mean, not rank 0's alone: each rank saw only its slice of every batch. Normalisation in training uses the
        batch's own statistics, so nothing else changes.
        """
        if self.worker.world == 1 or self.recipe.model.batch_norm == "fixed":
            return
        modules = [self.model, self.ema.module] if self.ema else [self.model]
        for buffer in itertools.chain.from_iterable(map(models.running_statistics, modules)):
            dist.all_reduce(buffer)
            buffer /= self.worker.world

    def validate(self, number: int, epoch: int) -> Metrics:
        """Metrics of every validation tile exactly once, alike on every rank; rank 0 writes the predictions."""
        recipe, stage, worker = self.recipe, self.recipe.stages[number - 1], self.worker
        mine = self.valid_rows[tiles.rank_slice(len(self.valid_rows), worker.rank, worker.world)]
        found = validation.rank_logits(
            self.ema.module if self.ema else self.model, self.source, mine, size=stage.size,
            batch=max(1, 2 * recipe.batch_size(stage) // worker.world), normalize=recipe.data.normalize,
            precision=recipe.train.precision,
            on_batch=lambda i, tensors: self.hooks.on_batch(Batch("valid", number, epoch, i, tensors)),
        )  # fmt: skip
        rows, logits = validation.gather_logits(mine, found, worker)
        names = tuple(self.dataset.table["image_name"].iloc[rows])
        validation.prove_cover(names, len(self.valid_rows))
        target = self.dataset.targets[rows]
        if not np.isfinite(logits).all():
            raise DivergedError(
                f"the network answers with values that are not finite after stage {number} epoch {epoch}",
                "its weights are useless; no checkpoint of this epoch was written",
                f"lower the peak lr of stage {number}, then start a new run with --init-from the last checkpoint",
            )
        if self.leads:
            self._write_predictions(names, logits, target)
        return self.task.metrics(logits, target)

    def keep(
        self, number: int, epoch: int, record: EpochRecord, metrics: Metrics, optimizer: torch.optim.Optimizer
    ) -> None:
        """Writes the epoch into the record, then the checkpoint `last`; says its line and reports it."""
        stage = self.recipe.stages[number - 1]
        row = EpochRow(
            stage=number, size=stage.size, epoch=epoch, lr=record.rates[-1][0][-1],
            train_loss=smoothed(self._losses(number) + record.losses), valid_loss=metrics["valid_loss"],
            accuracy=metrics["accuracy"], f2=metrics["f2"], f2_best=max(self.history.best, metrics["f2"]),
            images_per_s=record.tiles / record.seconds, seconds=time.monotonic() - record.began,
        )  # fmt: skip
        self.last = self._row_metrics(row)
        self.history.add(row, record.rows(self.history.step), write=self.leads)
        if self.leads:
            # After the history: a crash in between leaves a row too many, which a resumed run drops, never one too few.
            self._save("last", number, epoch, optimizer.state_dict())
            left = self._remaining_seconds(number, epoch, row)
            frozen = stage.frozen_groups == LAYER_GROUPS - 1
            line = epoch_line(row, stages=len(self.recipe.stages), epochs=stage.epochs, frozen=frozen, remaining_s=left)
            self.hooks.say(line)
        self.hooks.report(self.last)

    def _losses(self, number: int) -> list[float]:
        """Losses of the stage's steps before this epoch: fastai starts its smoothed loss anew at each `fit`, not epoch."""
        return [step.loss for step in self.history.steps if step.stage == number]

    def end_stage(self, number: int) -> None:
        """Saves the checkpoint under the lesson's name."""
        if self.leads:
            self._save(self.recipe.stage_names[number - 1], number, self.recipe.stages[number - 1].epochs, None)
        self.hooks.on_stage_end(number, self.model)

    def end(self) -> Metrics:
        """Writes the TensorBoard events. Returns the metrics of the last epoch."""
        if self.leads:
            self.history.write_events()
        return self.last

    def range_test(self, number: int) -> lr_find.Curve:
        """Runs the range test of a stage, at its last size, and restores the weights; rank 0 leaves it in `lr-find/`.

        Raises:
            DivergedError: on every rank, where the curve is too short to be read.
        """
        with lr_find.weights_restored(self.model):
            step = self._stepper(self.recipe.at_last_sizes(), number, self.recipe.stages[number - 1].lr, None)
            self.model.train()
            outcomes = self._endless(step, number)

            def loss(t: int) -> float:
                total = next(outcomes).values[0]
                if self.worker.world > 1:
                    dist.all_reduce(total)
                return float(total)

            curve = lr_find.range_test(loss, step.optimizer)
        found = lr_find.suggestions(curve)
        if self.leads:
            lr_find.write(storage.join(self.run, "lr-find"), self.recipe.stage_names[number - 1], curve, found)
        return curve

    def _endless(self, step: Stepper, number: int) -> Iterator[Outcome]:
        for epoch in itertools.count(1):
            yield from step.epoch(self.batches(number, epoch), epoch)

    def _peak(self, number: int) -> float | tuple[float, float]:
        """The stage's peak rate as the recipe says, or as the range test finds it."""
        stage = self.recipe.stages[number - 1]
        if self.recipe.lr != "auto":
            return stage.lr
        curve = self.range_test(number)
        found = lr_find.suggestions(curve)
        known = ", ".join(f"{rule} {lr:.1e}" for rule, lr in found.items())
        if lr_find.fall(curve) < lr_find.CLEAR_FALL:
            self.say(
                f"stage {number}: in the range test the loss falls by {lr_find.fall(curve):.0%} only, which says nothing about "
                f"rates ({known}); peak lr stays {_readable(stage.lr)}"
            )
            return stage.lr
        peak = lr_find.scaled(stage.lr, found[AUTO_RULE])
        self.say(
            f"stage {number}: the range test suggests {known}; peak lr {_readable(peak)} instead of {_readable(stage.lr)}"
        )
        return peak

    def _stepper(self, recipe: Recipe, number: int, lr: float | tuple[float, float], ema: Ema | None) -> Stepper:
        stage, train = recipe.stages[number - 1], recipe.train
        models.set_frozen(self.model, stage.frozen_groups)
        rates = optim.group_rates(lr, LAYER_GROUPS, train.schedule)
        optimizer = optim.make_optimizer(self.model, rates, train.wd)
        return Stepper(recipe, number, self._wrapped(), optimizer, self.source, self.worker, self.hooks.on_batch, ema)

    def _set_execution(self, number: int, batches: list[tiles.Rows]) -> None:
        stage, worker, train = self.recipe.stages[number - 1], self.worker, self.recipe.train
        models.set_frozen(self.model, stage.frozen_groups)
        how = execution.chosen(train.execution, worker.device, stage.epochs * len(batches))
        part = tiles.pass_slices(len(batches[0]), worker.rank, worker.world, train.accumulate)[0]
        shape = (part.stop - part.start, 3, stage.size, stage.size)
        execution.set_execution(self.model, how, shape, train.precision, worker.device, self.say)

    def _initialise(self) -> tuple[Start, ckpt.Checkpoint | None]:
        """Own latest checkpoint, else init_from, else weights, else random: in this order.

        Every rank reads the same files, so that all agree on the position without talking.
        """
        own, skipped = ckpt.find_latest(storage.join(self.run, "checkpoints"))
        for sentence in skipped:
            self.say(f"skipped a checkpoint: {sentence}")
        source = own or (ckpt.load(self.recipe.init_from) if self.recipe.init_from else None)
        origin = "random weights"
        if source:
            ckpt.check_fits(source, self.dataset.classes, self.recipe.model.arch)
            # A checkpoint's F2 is that of its averages: a run that keeps none starts from them.
            goes_on = own is not None or self.recipe.train.ema > 0
            self.model.load_state_dict(source.weights() if goes_on else source.judged_weights())
            origin = f"{source.place} (F2 {source.meta['f2']:.4f})"
        else:
            state = models.body_weights(self.recipe.model.arch, self.recipe.model.weights)
            if state is not None:
                models.load_body(self.model, state, self.recipe.model.weights)
                origin = f"weights {self.recipe.model.weights}"
        if own:
            self._check_same_data(own)
            self.say(f"resuming after stage {own.position[0]} epoch {own.position[1]}, from {origin}")
            lr = own.meta["lr"]
            lr = tuple(lr) if isinstance(lr, list) else lr
            return Start(
                own.position, own.place, own.train_state(), lr, self._unnamed(own), (own.meta.get("window"),)
            ), own
        self.say(f"new run, from {origin}")
        return Start(parent=source.place if source else None), source

    def _unnamed(self, own: ckpt.Checkpoint) -> int:
        number, epochs = own.position
        named = storage.join(self.run, "checkpoints", self.recipe.stage_names[number - 1], ckpt.MANIFEST)
        complete = epochs == self.recipe.stages[number - 1].epochs
        return number if complete and not storage.exists(named) else 0

    def _restored_ema(self, source: ckpt.Checkpoint | None) -> Ema | None:
        if not self.recipe.train.ema:
            return None
        averaged = source.ema_weights() if source else None
        ema = Ema(self.model, self.recipe.train.ema, source.meta["ema_updates"] if source and averaged else 0)
        if averaged:
            ema.module.load_state_dict(averaged)
        return ema

    def _check_same_data(self, own: ckpt.Checkpoint) -> None:
        wanted = (self.dataset.hash, self.dataset.split_hash(self.recipe.data.split))
        if (own.meta["dataset_hash"], own.meta["split_hash"]) != wanted:
            raise DataError(
                f"the dataset {self.dataset.place} is not the one that {own.place} was trained on",
                "tiles or their parts have changed since; validation tiles could have been trained on",
                "start a new run with --init-from that checkpoint, or restore the dataset",
            )

    def _place_tiles(self) -> Placed:
        recipe = self.recipe
        size = stored_size(self.dataset.tile_size, [stage.size for stage in recipe.stages])
        return place_tiles(
            self.dataset, size, self.worker, choice=recipe.tiles, window_gb=recipe.data.window_gb,
            order=self.start.order, say=self.hooks.say,
        )  # fmt: skip

    def _wrapped(self) -> nn.Module:
        """DDP built anew: a wrapper made while parameters were frozen would never synchronise them later."""
        if self.worker.world == 1:
            return self.model
        devices = [self.worker.device] if self.worker.device.type == "cuda" else None
        with warnings.catch_warnings():
            # torch 2.15 renames broadcast_buffers; older ones do not know the new name.
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(
                self.model, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True,
                # Which weights train is settled for a stage. With several passes torch cannot leave out their reduction.
                static_graph=self.recipe.train.accumulate == 1,
            )  # fmt: skip

    def _write_predictions(self, names: tuple[str, ...], logits: validation.Logits, target: validation.Logits) -> None:
        meta = {"task": self.task.name, "split": self.recipe.data.split, "part": "valid",
                "dataset": self.dataset.place, "checkpoint": storage.join(self.run, "checkpoints", "last")}  # fmt: skip
        logits = logits.astype("float32")
        outcome = predictions.Predictions(names, logits, target, tuple(self.dataset.classes), meta)
        predictions.write(storage.join(self.run, "predictions.parquet"), outcome)

    def _save(self, name: str, number: int, epoch: int, optimizer: dict[str, Any] | None) -> None:
        place = storage.join(self.run, "checkpoints", name)
        averaged = self.ema.module if self.ema else None
        ckpt.save(place, self.model, self._meta(number, epoch), optimizer, averaged)

    def _meta(self, number: int, epoch: int) -> Metrics:
        recipe = self.recipe
        return {
            "recipe": recipe.model_dump(mode="json"), "stage": number, "epoch": epoch,
            "stage_name": recipe.stage_names[number - 1], "size": recipe.stages[number - 1].size,
            "step": self.history.step, "arch": recipe.model.arch, "classes": self.dataset.classes,
            "task": self.task.name, "normalize": recipe.data.normalize, "precision": recipe.train.precision,
            "window": self.placed.window, "resize": {"stored_size": self.placed.size, "rule": transforms.RESIZE_RULE},
            "thresholds": {"default": 0.2}, "dataset": self.dataset.place, "dataset_hash": self.dataset.hash,
            "split": recipe.data.split, "split_hash": self.dataset.split_hash(recipe.data.split),
            "parent": self.start.parent, "f2": self.last["f2"],
            "lr": self.lr, "ema_updates": self.ema.updates if self.ema else 0, "world": self.worker.world,
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


def _readable(lr: float | tuple[float, float]) -> str:
    return " to ".join(f"{value:.1e}" for value in (lr if isinstance(lr, tuple) else (lr,)))
