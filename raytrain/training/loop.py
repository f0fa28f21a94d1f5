"""The algorithm: a run trains its stages, a stage its epochs, an epoch its steps, and each epoch is
judged.

`fit` trains the stages of a recipe in one process of a group (or alone) and leaves a run directory
behind: checkpoints under the lesson's names, history, predictions of the validation part.
`find_rates` runs the range test instead. Neither knows Ray: messages go through the logger, and
metrics through `Hooks`.

What is given (`Job`), what training changes (`TrainState`) and what serves it (`Services`) are
apart; `setup.opened` makes them.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch.distributed as dist

from raytrain.config import Recipe
from raytrain.data.dataset import Dataset
from raytrain.evaluation import own_metrics
from raytrain.models.networks import running_statistics
from raytrain.tiles import sampling
from raytrain.training import lr_find, optim, pace, saving, validation
from raytrain.training.decision import Action
from raytrain.training.epoch import EpochRecord, GroupDiverged, Rates
from raytrain.training.inference import Inference
from raytrain.training.job import Job
from raytrain.training.rank_state import restore
from raytrain.training.services import Hooks, Services
from raytrain.training.setup import opened
from raytrain.training.stage import begin_stage, range_test
from raytrain.training.state import Metrics, TrainState, last_metrics
from raytrain.training.step import Outcome, Stepper
from raytrain.worker import Worker

logger = logging.getLogger(__name__)

# On the peak rates of a run that diverged, from the checkpoint on that it returns to.
BACKOFF = 0.5


def train_run(job: Job, state: TrainState, services: Services) -> Metrics:
    """Trains the stages that are left, epoch by epoch. Returns the metrics of the last epoch, see
    `fit`.
    """
    services.watchdog.start()
    if job.worker.leads:
        services.saver.claim()
    for number in job.stages_left():
        try:
            stepper = begin_stage(job, state, services, number)
        except lr_find.Stopped:
            return _stopped(job, state, services)
        for epoch in job.epochs_left(number):
            record = train_epoch(job, state, services, stepper, epoch)
            if record is None:
                return _stopped(job, state, services)
            share_statistics(job, state)
            paces = _gather_paces(job, services, stepper, epoch)
            judged = validate(job, state, services, number, epoch)
            action = _after_epoch(job, services, number, epoch)
            result = saving.EpochResult(record, paces, judged)
            save = action is not Action.GO_ON
            saving.save_epoch(job, state, services, stepper.optimizer, result, save=save)
            if action is Action.STOP:
                return _stopped(job, state, services)
        # Its DDP holds autograd's nodes of the weights, which would refuse a capture on another
        # stream.
        del stepper
        saving.end_stage(job, state, services, number)
    if job.worker.leads:
        saving.finish(state, services)
    return last_metrics(job, state)


def train_epoch(
    job: Job, state: TrainState, services: Services, stepper: Stepper, epoch: int
) -> EpochRecord | None:
    """Trains on every global batch of an epoch, once.

    Returns:
        What its steps left behind; None where the run stops within the epoch.

    Raises:
        GroupDiverged: a loss or a gradient is not finite.
    """
    record, steps = begin_epoch(job, state, stepper, epoch)
    while record.steps_left:
        train_step(job, state, stepper, record, steps)
        if record.steps_left and between_steps(job, state, services, stepper, record):
            return None
    record.finish()
    return record


def train_step(
    job: Job, state: TrainState, stepper: Stepper, record: EpochRecord, steps: Iterator[Outcome]
) -> None:
    """Takes the next step of an epoch with the rates that the schedule gives it."""
    rates = _set_rates(job, stepper, record.epoch, record.done, record.batches)
    record.add(next(steps), rates)
    if not state.stepped:
        state.stepped = True
        record.log_first_step()


def validate(
    job: Job, state: TrainState, services: Services, number: int, epoch: int
) -> validation.Judged:
    """Judges every validation tile exactly once. All ranks get the same metrics.

    Raises:
        GroupDiverged: a logit is not finite.
    """
    recipe, worker = job.recipe, job.worker
    stage = job.stage(number)
    mine = job.valid_rows[sampling.rank_slice(len(job.valid_rows), worker.rank, worker.world)]
    found = validation.rank_logits(
        state.judged_model,
        job.source,
        mine,
        Inference(stage.size, recipe.data.normalize, recipe.train.precision),
        # Without a backward pass twice the tiles find room.
        batch=max(1, 2 * recipe.batch_size(stage) // worker.world),
        beat=services.watchdog.beat,
    )
    judged = validation.Judged({}, (), found[:0], np.zeros(found[:0].shape, np.uint8))
    metrics = None
    gathered = validation.gathered_logits(mine, found, worker)
    if gathered is not None and np.isfinite(gathered[1]).all():
        judged = _judged(job, *gathered)
        metrics = judged.metrics
    metrics = validation.shared_metrics(metrics, worker)
    if metrics is None:
        raise GroupDiverged(
            f"the network answers with values that are not finite after stage {number} epoch "
            f"{epoch}",
            "its weights are useless; no checkpoint of this epoch was written",
            f"lower the peak lr of stage {number}, then start a new run with --init-from the last "
            "checkpoint",
        )
    return replace(judged, metrics=metrics)


def _judged(job: Job, rows: sampling.Rows, logits: validation.Logits) -> validation.Judged:
    """Judges the validation tiles on rank 0.

    Args:
        job: of this process.
        rows: int64 (N,) those of `valid_rows`, in any order.
        logits: (N, K), all finite.
    """
    validation.prove_cover(rows, job.valid_rows)
    assert job.valid_names is not None  # this is rank 0
    position = np.searchsorted(job.valid_rows, rows)
    names = tuple(job.valid_names.take(pa.array(position)).to_pylist())
    target = job.dataset.targets[rows]
    metrics = job.task.epoch_metrics(logits, target)
    if job.own_metrics:
        probabilities = job.task.probabilities(logits)
        metrics |= own_metrics.values(job.own_metrics, probabilities, target)
    return validation.Judged(metrics, names, logits, target)


def begin_epoch(
    job: Job, state: TrainState, stepper: Stepper, epoch: int
) -> tuple[EpochRecord, Iterator[Outcome]]:
    """The record of an epoch and its steps to come, each of which is taken when it is asked for.

    In the epoch that a run resumes in, the record holds the steps that were done before.
    """
    batches = job.batches(stepper.number, epoch)
    record = EpochRecord(stepper.number, epoch, len(batches), job.worker.world)
    # With more workers than before an epoch may have a batch less.
    done = min(job.start.steps_done(stepper.number, epoch), len(batches))
    if done:
        outcomes = restore(job.start.ranks, state.model, state.ema, job.worker)
        record.restore(outcomes[:done], _rates_before(job, stepper, epoch, done, len(batches)))
    state.model.train()
    return record, stepper.epoch(batches, epoch, done)


def between_steps(
    job: Job, state: TrainState, services: Services, stepper: Stepper, record: EpochRecord
) -> bool:
    """Writes a checkpoint where rank 0 decides so. Returns whether the run stops."""
    action = services.decisions.after_step()
    if action is not Action.GO_ON:
        saving.save_steps(job, state, services, stepper.optimizer, record)
    return action is Action.STOP


def share_statistics(job: Job, state: TrainState) -> None:
    """Gives all ranks the mean of their BatchNorm statistics, so that validation does not depend on
    who computes it.

    The mean, not rank 0's alone: each rank saw only its slice of every batch. Normalisation in
    training uses the batch's own statistics, so nothing else changes.
    """
    world = job.worker.world
    if world == 1 or job.recipe.model.batch_norm == "fixed":
        return
    statistics = running_statistics(state.model)
    if state.ema:
        statistics += running_statistics(state.ema.module)
    for buffer in statistics:
        dist.all_reduce(buffer)
        buffer /= world


def _set_rates(job: Job, stepper: Stepper, epoch: int, step: int, steps: int) -> Rates:
    """Sets the rates of a step of an epoch, which has `steps` of them."""
    position = (epoch - 1) * steps + step
    whole = job.stage(stepper.number).epochs * steps
    return optim.set_step(stepper.optimizer, position, whole, job.recipe.train.schedule)


def _rates_before(job: Job, stepper: Stepper, epoch: int, done: int, steps: int) -> list[Rates]:
    """Rates of the steps of an epoch that were done before this process began."""
    known = list(job.start.rates[:done])
    if known:
        return known
    # The earliest checkpoints within an epoch do not hold them: they are what the schedule says.
    return [_set_rates(job, stepper, epoch, step, steps) for step in range(done)]


def _gather_paces(job: Job, services: Services, stepper: Stepper, epoch: int) -> pace.Paces:
    """The paces of all ranks in an epoch; a slow one is logged."""
    group = services.decisions.group
    paces = pace.of_ranks(stepper.pace, stepper.number, epoch, job.worker, group)
    for sentence in pace.slow_ranks(paces.rows):
        logger.warning(sentence)
    return paces


def _after_epoch(job: Job, services: Services, number: int, epoch: int) -> Action:
    """What is decided after an epoch. A run that is complete has nothing to stop."""
    if job.ends_with(number, epoch):
        return Action.SAVE
    return services.decisions.now()


def _stopped(job: Job, state: TrainState, services: Services) -> Metrics:
    """Waits for the checkpoint of a run that stops. Returns its last metrics, the reason, and that
    checkpoint.
    """
    services.saver.wait()
    stopped = {"stopped": services.wishes.reason, "checkpoint": state.newest}
    return last_metrics(job, state) | stopped


def fit(
    recipe: Recipe,
    dataset: Dataset,
    run: str,
    worker: Worker,
    hooks: Hooks,
    *,
    backoff: bool = False,
) -> Metrics:
    """Trains the selected stages of a recipe, from the run's latest checkpoint if it has one.

    Args:
        recipe: complete, with absolute paths.
        dataset: opened.
        run: its directory.
        worker: this process.
        hooks: see there.
        backoff: a run that diverges returns to its latest checkpoint, once, and resumes with half
            the peak rates.

    Returns:
        The metrics of the last validation: stage, epoch, valid_loss, scores of the task,
        checkpoint.
        Where `hooks.stop` gave a reason, also `stopped` with it; then `checkpoint` is where the run
        resumes from.

    Raises:
        ConfigError, DataError, DivergedError, StorageError: see their sentences.
    """
    with opened(recipe, dataset, run, worker, hooks) as (job, state, services):
        try:
            return train_run(job, state, services)
        except GroupDiverged as error:
            if not backoff or state.lr_scale < 1:
                raise
            logger.warning(
                f"{error.what}: the run returns to its latest checkpoint and resumes with half "
                "the learning rates"
            )
    # The parts refer to each other, and hold network and tiles in the GPU's memory.
    del job, state, services
    gc.collect()
    if worker.world > 1:
        dist.barrier()  # rank 0 may have been writing what all are about to read
    with opened(recipe, dataset, run, worker, hooks, BACKOFF) as (job, state, services):
        return train_run(job, state, services)


def find_rates(
    recipe: Recipe, dataset: Dataset, run: str, worker: Worker, hooks: Hooks
) -> dict[int, lr_find.Curve]:
    """Runs the range test for each selected stage, every time from the same weights. Returns its
    curve by stage.

    Raises:
        As `fit`.
    """
    with opened(recipe, dataset, run, worker, hooks) as (job, state, services):
        curves = {}
        for number in job.stages_left():
            curves[number] = range_test(job, state, services, number)
        return curves
