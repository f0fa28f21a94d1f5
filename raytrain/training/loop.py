"""fit: stages -> epochs -> steps, over any tiles and any process group.

`fit` trains the stages of a recipe in one process of a group (or alone) and leaves a run directory behind: checkpoints
under the lesson's names, history, predictions of the validation part. `find_rates` runs the range test instead. Neither
knows Ray: `say` and `report` carry lines and metrics out.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from raytrain import storage
from raytrain.checkpoints import layout, writing
from raytrain.checkpoints.history import EpochRow, History, epoch_line, smoothed
from raytrain.checkpoints.saver import Saver
from raytrain.config import LAYER_GROUPS, Recipe, Stage
from raytrain.data.dataset import Dataset
from raytrain.evaluation import predictions
from raytrain.models import layer_groups, networks
from raytrain.models.precision import agreed_precision, dtype_of, keep_fp32
from raytrain.tiles import sampling
from raytrain.tiles.cache import stored_size
from raytrain.tiles.feeds import Source
from raytrain.tiles.placement import Tiles, open_tiles
from raytrain.training import ddp, execution, lr_find, optim, pace, transforms, validation, waits
from raytrain.training import start as starting
from raytrain.training.decision import Action, Decisions
from raytrain.training.ema import Ema
from raytrain.training.epoch import EpochRecord, GroupDiverged
from raytrain.training.hooks import Hooks, Metrics
from raytrain.training.memory import keep_freed_memory
from raytrain.training.step import Batch, Outcome, Stepper
from raytrain.training.tasks import MultiLabel
from raytrain.training.watchdog import Watchdog
from raytrain.worker import Worker

logger = logging.getLogger(__name__)


# On the peak rates of a run that diverged, from the checkpoint on that it goes back to.
BACKOFF = 0.5


def fit(
    recipe: Recipe,
    dataset: Dataset,
    run: str,
    worker: Worker,
    hooks: Hooks,
    *,
    backoff: bool = False,
) -> Metrics:
    """Trains the selected stages of a recipe, going on from the run's latest checkpoint if it has one.

    Args:
        recipe: complete, with absolute places.
        dataset: opened.
        run: its directory.
        worker: this process.
        hooks: see there.
        backoff: a run that diverges goes back to its latest checkpoint, once, and on with half the peak rates.

    Returns:
        The metrics of the last validation: stage, epoch, f2, valid_loss, accuracy, checkpoint. Where `hooks.stop` gave
        a reason, also `stopped` with it; then `checkpoint` is where the run goes on from.

    Raises:
        ConfigError, DataError, DivergedError, StorageError: see their sentences.
    """
    trainer = Trainer(recipe, dataset, run, worker, hooks)
    try:
        return _run(trainer)
    except GroupDiverged as error:
        if not backoff or trainer.lr_scale < 1:
            raise
        logger.info(
            f"{error.what}: the run goes back to its latest checkpoint and on with half the learning rates"
        )
    del trainer
    gc.collect()  # its parts refer to each other, and hold network and tiles in the GPU's memory
    if worker.world > 1:
        dist.barrier()  # rank 0 may have been writing what all are about to read
    return _run(Trainer(recipe, dataset, run, worker, hooks, BACKOFF))


def _run(trainer: Trainer) -> Metrics:
    parts = (trainer.placed.feed, trainer.saver, trainer.watchdog)
    with contextlib.closing(parts[0]), contextlib.closing(parts[1]), contextlib.closing(parts[2]):
        trainer.watchdog.start()
        if trainer.leads:
            trainer.saver.claim()
        return _fit(trainer)


def _fit(trainer: Trainer) -> Metrics:
    for number, stage in trainer.stages_left():
        try:
            step = trainer.start_stage(number)
        except lr_find.Stopped:
            return trainer.stopped()
        for epoch in range(trainer.start.epochs_done(number) + 1, stage.epochs + 1):
            if trainer.train_epoch(step, number, epoch):
                return trainer.stopped()
        # Its DDP holds autograd's nodes of the weights, which would refuse a capture on another stream.
        del step
        trainer.end_stage(number)
    return trainer.end()


def find_rates(
    recipe: Recipe, dataset: Dataset, run: str, worker: Worker, hooks: Hooks
) -> dict[int, lr_find.Curve]:
    """Runs the range test for each selected stage, every time from the same weights. Returns its curve by stage.

    Raises:
        As `fit`.
    """
    trainer = Trainer(recipe, dataset, run, worker, hooks)
    with contextlib.closing(trainer.placed.feed):
        return {number: trainer.range_test(number) for number, _ in trainer.stages_left()}


class Trainer:
    """The state of a run in one process: network, tiles, rows of the parts, record."""

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        run: str,
        worker: Worker,
        hooks: Hooks,
        backoff: float = 1.0,
    ) -> None:
        keep_freed_memory()
        keep_fp32()
        torch.set_num_threads(recipe.train.threads or max(1, worker.cpus // worker.local_world))
        precision = agreed_precision(recipe.train.precision, worker.device, worker.world)
        self.recipe = recipe.model_copy(
            update={"train": recipe.train.model_copy(update={"precision": precision})}
        )
        self.dataset, self.run, self.worker, self.hooks = dataset, run, worker, hooks
        self.train_rows = dataset.part_rows(recipe.data.split, "train")
        self.valid_rows = dataset.part_rows(recipe.data.split, "valid")
        sampling.check_batches(recipe, len(self.train_rows), len(self.valid_rows))
        networks.check_batch_norm(recipe.model.batch_norm, worker.device.type)
        torch.manual_seed(sampling.seed_of(recipe.train.seed, 0))
        self.model = networks.build(
            recipe.model.arch, len(dataset.classes), recipe.model.dropout, recipe.model.batch_norm
        )
        self.start, source = starting.begin(self.recipe, dataset, run, self.model, worker)
        self.backoff, self.lr_scale = backoff, self.start.lr_scale * backoff
        networks.to_device(self.model, worker.device, dtype_of(precision))
        self.ema = starting.averages(self.model, recipe.train.ema, source)
        self.placed = self._place_tiles()
        self.source = Source(self.placed.feed, torch.from_numpy(dataset.targets).to(worker.device))
        self.history = History(run, self.start.position[:2])
        self.last: Metrics = (
            self._row_metrics(self.history.epochs[-1]) if self.history.epochs else {}
        )
        self.task = MultiLabel(recipe.train)
        self.lr: Any = None  # peak of the stage that runs
        self.waiting = True  # for the first step
        self.saver = Saver(storage.join(run, "checkpoints"), recipe.train.save_every_s)
        self.decisions = Decisions(worker, self._decide, self.saver.interval_s)
        self.watchdog = Watchdog(
            run,
            worker.rank,
            recipe.train.stall_s,
            hooks.stalled,
            lambda: self.saver.writing,
            hooks.saves,
        )
        self.reason: str | None = None  # to stop
        self.newest = self.start.parent  # checkpoint of this run

    @property
    def leads(self) -> bool:
        """True on rank 0, which alone writes."""
        return self.worker.rank == 0

    def stages_left(self) -> Iterator[tuple[int, Stage]]:
        """(number, stage) of the selected stages that are not complete, the checkpoint with their name included."""
        first, last = self.recipe.selected
        for number, stage in list(enumerate(self.recipe.stages, 1))[first - 1 : last]:
            if (number, stage.epochs, 0) > self.start.position or self.start.unnamed == number:
                yield number, stage

    def start_stage(self, number: int) -> Stepper:
        """Freezes, makes a new optimiser (its state goes on in the middle of a stage only) and DDP anew."""
        resumed = self.start.resumes(number)
        peak, factor = (
            (self.start.lr, self.backoff) if resumed else (self._peak(number), self.lr_scale)
        )
        self.lr = optim.times(peak, factor)
        batches = self.batches(number, 1)
        self._set_execution(number, batches)
        step = self._stepper(self.recipe, number, self.lr, self.ema)
        dropped = len(self.train_rows) - sum(map(len, batches))
        if dropped:
            logger.info(
                f"stage {number}: the last {dropped} tiles of an epoch make no full batch and are dropped"
            )
        if resumed and self.start.optimizer:
            step.optimizer.load_state_dict(self.start.optimizer)
            optim.scale_peaks(step.optimizer, self.backoff)
        return step

    def train_epoch(self, step: Stepper, number: int, epoch: int) -> bool:
        """Trains, judges and keeps an epoch. Returns whether the run shall stop, within the epoch or after it."""
        for record in self.steps(step, number, epoch):
            if record.done < record.batches and self._between_steps(step, record):
                return True
        record.finish()
        self.share_statistics()
        worker, group = self.worker, self.decisions.group
        paces = pace.of_ranks(
            step.pace, number, epoch, rank=worker.rank, world=worker.world, group=group
        )
        for sentence in pace.slow_ranks(paces.rows):
            logger.info(sentence)
        judged = self.validate(number, epoch)
        # A run that is through has nothing to stop.
        action = Action.SAVE if self._is_end(number, epoch) else self.decisions.now()
        self.keep(
            number, epoch, record, paces, judged, step.optimizer, save=action is not Action.GO_ON
        )
        return action is Action.STOP

    def steps(self, step: Stepper, number: int, epoch: int) -> Iterator[EpochRecord]:
        """Trains through an epoch and stops after every step, with what the epoch's steps have left behind so far.

        In the epoch that a run goes on in, its first record holds the steps before as well.
        """
        batches, epochs = self.batches(number, epoch), self.recipe.stages[number - 1].epochs
        record = EpochRecord(number, epoch, len(batches), self.worker.world)

        def rates(i: int) -> tuple[list[float], float]:
            position = (epoch - 1) * len(batches) + i
            return optim.set_step(
                step.optimizer, position, epochs * len(batches), self.recipe.train.schedule
            )

        first = min(self.start.steps_done(number, epoch), len(batches))
        if first:
            outcomes = starting.restore(self.start.ranks, self.model, self.ema, self.worker)
            # Checkpoints from before 26 November 2026 do not hold the rates of their steps.
            before = list(self.start.rates[:first]) or [rates(i) for i in range(first)]
            record.restore(outcomes[:first], before)
        if first == len(batches):  # with more workers than before an epoch may have a batch less
            yield record
        self.model.train()
        taken = step.epoch(batches, epoch, first)
        for i in range(first, len(batches)):
            now = rates(i)
            record.add(next(taken), now)
            self._say_first(record)
            yield record

    def _between_steps(self, step: Stepper, record: EpochRecord) -> bool:
        """Saves where rank 0 says so. Returns whether the run shall stop."""
        action, began = self.decisions.after_step(), time.monotonic()
        if action is Action.GO_ON:
            return False
        # Weights that a step has broken reach no checkpoint.
        record.check()
        state = starting.rank_state(self.model, self.ema, record.outcomes)
        ranks = starting.gathered(state, self.worker, self.decisions.group)
        if self.leads:
            meta = self._meta(record.number, record.epoch - 1, record.done)
            name = layout.step_name(meta["step"])
            self._save(
                [name],
                meta,
                {"optimizer": step.optimizer.state_dict(), "ranks": ranks, "rates": record.rates},
            )
        record.paused += time.monotonic() - began
        return action is Action.STOP

    def _on_batch(self, batch: Batch) -> None:
        self.watchdog.beat()
        self.hooks.on_batch(batch)

    def _decide(self) -> Action:
        """What rank 0 decides for all."""
        self.reason = self.reason or self.hooks.stop()
        if self.reason:
            return Action.STOP
        return Action.SAVE if self.saver.due() or self.hooks.keep() else Action.GO_ON

    def _say_first(self, record: EpochRecord) -> None:
        """Says once when the first step was done: the wait for the device costs nothing there."""
        if self.waiting:
            self.waiting = False
            record.outcomes[0].tolist()
            logger.info(
                f"stage {record.number} epoch {record.epoch}: first step of {record.batches} done in "
                f"{time.monotonic() - record.began:.1f} s"
            )

    def batches(self, number: int, epoch: int) -> list[sampling.Rows]:
        """The global batches of an epoch, in order."""
        train, stage = self.recipe.train, self.recipe.stages[number - 1]
        order = sampling.epoch_order(
            self.train_rows,
            self.dataset.shard_rows,
            (train.seed, number, epoch),
            self.placed.window,
        )
        return sampling.global_batches(
            order, self.recipe.batch_size(stage), self.worker.world, train.drop_last
        )

    def share_statistics(self) -> None:
        """Gives all ranks the mean of their BatchNorm statistics, so that validation does not depend on who computes it.

        The mean, not rank 0's alone: each rank saw only its slice of every batch. Normalisation in training uses the
        batch's own statistics, so nothing else changes.
        """
        if self.worker.world == 1 or self.recipe.model.batch_norm == "fixed":
            return
        modules = [self.model, self.ema.module] if self.ema else [self.model]
        for buffer in itertools.chain.from_iterable(map(networks.running_statistics, modules)):
            dist.all_reduce(buffer)
            buffer /= self.worker.world

    def validate(self, number: int, epoch: int) -> validation.Judged:
        """Every validation tile judged exactly once, alike on every rank."""
        recipe, stage, worker = self.recipe, self.recipe.stages[number - 1], self.worker
        mine = self.valid_rows[sampling.rank_slice(len(self.valid_rows), worker.rank, worker.world)]
        found = validation.rank_logits(
            self.ema.module if self.ema else self.model,
            self.source,
            mine,
            size=stage.size,
            batch=max(1, 2 * recipe.batch_size(stage) // worker.world),
            normalize=recipe.data.normalize,
            precision=recipe.train.precision,
            on_batch=lambda i, tensors: self._on_batch(Batch("valid", number, epoch, i, tensors)),
        )
        rows, logits = validation.gather_logits(mine, found, worker)
        names = tuple(self.dataset.table["image_name"].iloc[rows])
        validation.prove_cover(names, len(self.valid_rows))
        if not np.isfinite(logits).all():
            raise GroupDiverged(
                f"the network answers with values that are not finite after stage {number} epoch {epoch}",
                "its weights are useless; no checkpoint of this epoch was written",
                f"lower the peak lr of stage {number}, then start a new run with --init-from the last checkpoint",
            )
        target = self.dataset.targets[rows]
        return validation.Judged(self.task.metrics(logits, target), names, logits, target)

    def keep(
        self,
        number: int,
        epoch: int,
        record: EpochRecord,
        paces: pace.Paces,
        judged: validation.Judged,
        optimizer: torch.optim.Optimizer,
        *,
        save: bool,
    ) -> None:
        """Writes the epoch into the record and says its line. Checkpoints are written where they are due or a stage ends.

        Until then the best weights are kept in memory: a run of short epochs would otherwise spend its time on files.
        """
        stage, metrics = self.recipe.stages[number - 1], judged.metrics
        best, ends = metrics["f2"] > self.history.best, epoch == stage.epochs
        save = save or ends
        row = EpochRow(
            stage=number,
            size=stage.size,
            epoch=epoch,
            lr=record.rates[-1][0][-1],
            train_loss=smoothed(self._losses(number) + record.losses),
            valid_loss=metrics["valid_loss"],
            accuracy=metrics["accuracy"],
            f2=metrics["f2"],
            f2_best=max(self.history.best, metrics["f2"]),
            images_per_s=record.tiles / record.seconds,
            seconds=time.monotonic() - record.began,
        )
        self.last = self._row_metrics(row)
        self.history.add(row, record.rows(self.history.step), paces.rows)
        if self.leads:
            self.saver.check_claim()
            self._write_predictions(number, epoch, judged, durable=save)
            # Before the checkpoint: a crash in between leaves a row too many, which a resumed run drops, never one too few.
            self.history.write(durable=save)
            meta = self._meta(number, epoch)
            if save:
                # `best` comes before `last` for the same reason: without `last` the epoch is done again, and so is `best`.
                names = [layout.BEST, layout.LAST] if best else [layout.LAST]
                names += [self.recipe.stage_names[number - 1]] if ends else []
                self._save(names, meta, {"optimizer": optimizer.state_dict()})
            elif best:
                self.saver.keep_best(
                    writing.snapshot(self.model, meta, None, self.ema.module if self.ema else None)
                )
            left = self._remaining_seconds(number, epoch, row)
            frozen = stage.frozen_groups == LAYER_GROUPS - 1
            line = epoch_line(
                row,
                stages=len(self.recipe.stages),
                epochs=stage.epochs,
                frozen=frozen,
                remaining_s=left,
            )
            contention = waits.sentence(paces.waits)
            logger.info(f"{line}\n  {contention}" if contention else line)
        self.hooks.report(self.last)
        if save:
            self.hooks.saved(self.last)

    def _losses(self, number: int) -> list[float]:
        """Losses of the stage's steps before this epoch: fastai starts its smoothed loss anew at each `fit`, not epoch."""
        return [step.loss for step in self.history.steps if step.stage == number]

    def end_stage(self, number: int) -> None:
        """Writes the checkpoint under the lesson's name where a crash came just before it; else the last epoch has."""
        if self.leads and self.start.unnamed == number:
            meta = self._meta(number, self.recipe.stages[number - 1].epochs)
            self._save([self.recipe.stage_names[number - 1]], meta, None)
        self.hooks.on_stage_end(number, self.model)

    def end(self) -> Metrics:
        """Waits for the last checkpoint and writes the TensorBoard events. Returns the metrics of the last epoch."""
        if self.leads:
            self.saver.wait()
            writing.thin(self.saver.directory, 0, keep=0)
            self.history.write_events()
        return self.last

    def stopped(self) -> Metrics:
        """Waits for the checkpoint of a run that stops. Returns the metrics of the last epoch, the reason, the place."""
        self.saver.wait()
        return self.last | {"stopped": self.reason, "checkpoint": self.newest}

    def range_test(self, number: int) -> lr_find.Curve:
        """Runs the range test of a stage, at its last size, and restores the weights; rank 0 leaves it in `lr-find/`.

        Raises:
            DivergedError: on every rank, where the curve is too short to be read.
        """
        # A graph of the stage before knows which weights were frozen then.
        execution.run_eagerly(self.model)
        with lr_find.weights_restored(self.model):
            step = self._stepper(
                self.recipe.at_last_sizes(), number, self.recipe.stages[number - 1].lr, None
            )
            self.model.train()
            outcomes = self._endless(step, number)

            def loss(t: int) -> float:
                total = next(outcomes).values[0]
                if self.worker.world > 1:
                    dist.all_reduce(total)
                if self.decisions.after_step() is Action.STOP:
                    raise lr_find.Stopped
                return float(total)

            curve = lr_find.range_test(loss, step.optimizer)
        found = lr_find.suggestions(curve)
        if self.leads:
            lr_find.write(
                storage.join(self.run, "lr-find"), self.recipe.stage_names[number - 1], curve, found
            )
        return curve

    def _endless(self, step: Stepper, number: int) -> Iterator[Outcome]:
        for epoch in itertools.count(1):
            yield from step.epoch(self.batches(number, epoch), epoch)

    def _peak(self, number: int) -> float | tuple[float, float]:
        """The stage's peak rate as the recipe says, or as the range test finds it."""
        stage = self.recipe.stages[number - 1]
        if self.recipe.lr != "auto":
            return stage.lr
        peak, sentence = lr_find.peak(self.range_test(number), stage.lr)
        logger.info(f"stage {number}: {sentence}")
        return peak

    def _stepper(
        self, recipe: Recipe, number: int, lr: float | tuple[float, float], ema: Ema | None
    ) -> Stepper:
        stage, train = recipe.stages[number - 1], recipe.train
        layer_groups.set_frozen(self.model, stage.frozen_groups)
        rates = optim.group_rates(lr, LAYER_GROUPS, train.schedule)
        optimizer = optim.make_optimizer(self.model, rates, train.wd)
        network = ddp.wrapped(
            self.model, self.worker, train.accumulate, stage.size, train.precision
        )
        return Stepper(
            recipe, number, network, optimizer, self.source, self.worker, self._on_batch, ema
        )

    def _set_execution(self, number: int, batches: list[sampling.Rows]) -> None:
        stage, worker, train = self.recipe.stages[number - 1], self.worker, self.recipe.train
        layer_groups.set_frozen(self.model, stage.frozen_groups)
        how = execution.chosen(
            train.execution, worker.device, stage.epochs * len(batches), worker.world
        )
        part = sampling.pass_slices(len(batches[0]), worker.rank, worker.world, train.accumulate)[0]
        shape = (part.stop - part.start, 3, stage.size, stage.size)
        execution.set_execution(self.model, how, shape, train.precision, worker.device)

    def _place_tiles(self) -> Tiles:
        recipe = self.recipe
        size = stored_size(self.dataset.tile_size, [stage.size for stage in recipe.stages])
        return open_tiles(
            self.dataset,
            size,
            self.worker,
            choice=recipe.tiles,
            window_gb=recipe.data.window_gb,
            resumed=self.start.order,
        )

    def _write_predictions(
        self, number: int, epoch: int, judged: validation.Judged, *, durable: bool
    ) -> None:
        meta = {
            "task": self.task.name,
            "split": self.recipe.data.split,
            "part": "valid",
            "dataset": self.dataset.path,
            "checkpoint": storage.join(self.run, "checkpoints", "last"),
            "stage": str(number),
            "epoch": str(epoch),
        }
        logits = judged.logits.astype("float32")
        outcome = predictions.Predictions(
            judged.names, logits, judged.target, tuple(self.dataset.classes), meta
        )
        predictions.write(storage.join(self.run, "predictions.parquet"), outcome, durable=durable)

    def _is_end(self, number: int, epoch: int) -> bool:
        return (number, epoch) == (
            self.recipe.selected[1],
            self.recipe.stages[self.recipe.selected[1] - 1].epochs,
        )

    def _save(self, names: list[str], meta: Metrics, train_state: dict[str, Any] | None) -> None:
        """Copies the state of training for the saver; the names that training goes on from get `train_state` too."""
        self.saver.settle()
        began = time.monotonic()
        state = writing.snapshot(
            self.model, meta, train_state, self.ema.module if self.ema else None
        )
        entries = [
            (name, state if layout.goes_on_within(name) else state.finished) for name in names
        ]
        self.saver.save(entries, began)
        self.newest = next(
            (
                storage.join(self.saver.directory, name)
                for name in names
                if layout.goes_on_within(name)
            ),
            self.newest,
        )

    def _meta(self, number: int, epoch: int, steps: int = 0) -> Metrics:
        """What a checkpoint is, after whole epochs of a stage and some steps of the next one."""
        recipe = self.recipe
        return {
            "recipe": recipe.model_dump(mode="json"),
            "stage": number,
            "epoch": epoch,
            "stage_name": recipe.stage_names[number - 1],
            "size": recipe.stages[number - 1].size,
            "epoch_steps": steps,
            "step": self.history.step + steps,
            "arch": recipe.model.arch,
            "classes": self.dataset.classes,
            "task": self.task.name,
            "normalize": recipe.data.normalize,
            "precision": recipe.train.precision,
            "window": self.placed.window,
            "resize": {"stored_size": self.placed.size, "rule": transforms.RESIZE_RULE},
            "thresholds": {"default": 0.2},
            "dataset": self.dataset.path,
            "dataset_hash": self.dataset.hash,
            "split": recipe.data.split,
            "split_hash": self.dataset.split_hash(recipe.data.split),
            "parent": self.start.parent,
            "f2": None if steps else self.last["f2"],
            "lr": self.lr,
            "lr_scale": self.lr_scale,
            "ema_updates": self.ema.updates if self.ema else 0,
            "world": self.worker.world,
            "threads": torch.get_num_threads(),
            "versions": {"torch": torch.__version__},
        }

    def _row_metrics(self, row: EpochRow) -> Metrics:
        path = storage.join(self.run, "checkpoints", "last")
        return {
            "stage": row.stage,
            "epoch": row.epoch,
            "f2": row.f2,
            "valid_loss": row.valid_loss,
            "accuracy": row.accuracy,
            "train_loss": row.train_loss,
            "checkpoint": path,
        }

    def _remaining_seconds(self, number: int, epoch: int, row: EpochRow) -> float:
        """The epochs to come, each at this epoch's seconds times the ratio of pixels."""
        stages = list(enumerate(self.recipe.stages, 1))[number - 1 : self.recipe.selected[1]]
        epochs = sum(
            (stage.epochs - (epoch if n == number else 0)) * stage.size**2 for n, stage in stages
        )
        return row.seconds * epochs / row.size**2
