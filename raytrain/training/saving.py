"""What a run writes down: the rows and the line of an epoch, predictions, and checkpoints."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

import torch

from raytrain import storage
from raytrain.checkpoints import layout, writing
from raytrain.checkpoints.history import EpochRow, smoothed
from raytrain.evaluation import predictions
from raytrain.training.best import is_best
from raytrain.training.checkpoint_meta import checkpoint_meta
from raytrain.training.epoch import EpochRecord
from raytrain.training.epoch_line import line_of_epoch
from raytrain.training.job import Job
from raytrain.training.pace import Paces
from raytrain.training.rank_state import gathered, rank_state
from raytrain.training.services import Services
from raytrain.training.state import Metrics, TrainState, epoch_metrics
from raytrain.training.validation import Judged

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EpochResult:
    """An epoch that was trained and judged."""

    record: EpochRecord
    paces: Paces
    judged: Judged


def save_epoch(
    job: Job,
    state: TrainState,
    services: Services,
    optimizer: torch.optim.Optimizer,
    result: EpochResult,
    *,
    save: bool,
) -> None:
    """Adds an epoch to the history, and writes its line, its predictions and the checkpoints that
    are due.

    A checkpoint is written where `save` says so or the stage ends. Until then the best weights are
    kept in memory: a run of short epochs would otherwise spend its time on files.
    """
    record = result.record
    best = is_best(result.judged.metrics, state.history, job.task.SCORE)
    stage_ends = record.epoch == job.stage(record.number).epochs
    save = save or stage_ends
    row = _epoch_row(job, state, result)
    state.history.add(row, record.rows(state.history.step), result.paces.rows)
    metrics = epoch_metrics(job, row)
    if job.worker.leads:
        services.saver.check_claim()
        _write_predictions(job, record, result.judged, durable=save)
        # Before the checkpoint: a crash in between leaves a row too many, which a resumed run
        # drops, never one too few.
        state.history.write(durable=save)
        if save:
            names = _names_of_epoch(job, record.number, best=best, stage_ends=stage_ends)
            train_state = {"optimizer": optimizer.state_dict()}
            meta = checkpoint_meta(job, state, record.number, record.epoch)
            _save(state, services, names, meta, train_state)
        elif best:
            meta = checkpoint_meta(job, state, record.number, record.epoch)
            snapshot = writing.snapshot(state.model, meta, None, state.averages)
            services.saver.keep_best(snapshot)
        logger.info(line_of_epoch(job, row, result.paces))
    services.hooks.report(metrics | _speeds(row, result))
    if save:
        services.hooks.saved(metrics)


def _speeds(row: EpochRow, result: EpochResult) -> Metrics:
    """How fast this rank has trained in an epoch, for whoever watches the run."""
    record = result.record
    return {
        "images_per_s": row.images_per_s,
        "step_s": record.seconds / max(1, record.done - record.steps_before),
        "data_wait_s": result.paces.data_wait_s,
    }


def save_steps(
    job: Job,
    state: TrainState,
    services: Services,
    optimizer: torch.optim.Optimizer,
    record: EpochRecord,
) -> None:
    """Writes a checkpoint within an epoch; all ranks call it together.

    Raises:
        GroupDiverged: a step has broken the weights, which reach no checkpoint.
    """
    began = time.monotonic()
    record.check()
    mine = rank_state(state.model, state.ema, record.outcomes)
    ranks = gathered(mine, job.worker, services.decisions.group)
    if job.worker.leads:
        meta = checkpoint_meta(job, state, record.number, record.epoch - 1, record.done)
        train_state = {
            "optimizer": optimizer.state_dict(),
            "ranks": ranks,
            "rates": record.rates,
        }
        _save(state, services, [layout.step_name(meta["step"])], meta, train_state)
    record.paused += time.monotonic() - began


def end_stage(job: Job, state: TrainState, services: Services, number: int) -> None:
    """Writes the checkpoint under the stage's name where a crash came just before it; else the last
    epoch has.
    """
    if job.worker.leads and job.start.unnamed == number:
        meta = checkpoint_meta(job, state, number, job.stage(number).epochs)
        _save(state, services, [job.recipe.stage_names[number - 1]], meta, None)


def finish(state: TrainState, services: Services) -> None:
    """On rank 0: waits for the last checkpoint, removes those within epochs, writes the TensorBoard
    events.
    """
    services.saver.wait()
    writing.thin(services.saver.directory, 0, keep=0)
    state.history.write_events()


def _names_of_epoch(job: Job, number: int, *, best: bool, stage_ends: bool) -> list[str]:
    """Names of the checkpoints of an epoch, in the order in which they are written.

    `best` comes before `last`: without `last` the epoch is trained again after a crash, and so is
    `best`.
    """
    names = [layout.LAST]
    if best:
        names.insert(0, layout.BEST)
    if stage_ends:
        names.append(job.recipe.stage_names[number - 1])
    return names


def _save(
    state: TrainState,
    services: Services,
    names: list[str],
    meta: Metrics,
    train_state: dict[str, Any] | None,
) -> None:
    """Copies the state of training for the saver; the names that training resumes from get
    `train_state` too.
    """
    saver = services.saver
    saver.settle()
    began = time.monotonic()
    snapshot = writing.snapshot(state.model, meta, train_state, state.averages)
    entries = []
    for name in names:
        if layout.goes_on_within(name):
            entries.append((name, snapshot))
        else:
            entries.append((name, snapshot.finished))
    saver.save(entries, began)
    resumable = [name for name in names if layout.goes_on_within(name)]
    if resumable:
        state.newest = storage.join(saver.directory, resumable[0])


def _epoch_row(job: Job, state: TrainState, result: EpochResult) -> EpochRow:
    record = result.record
    metrics = result.judged.metrics
    # fastai starts its smoothed loss anew at each `fit`, that is at each stage, not at each epoch.
    losses = [step.loss for step in state.history.steps if step.stage == record.number]
    return EpochRow(
        stage=record.number,
        size=job.stage(record.number).size,
        epoch=record.epoch,
        lr=record.rates[-1][0][-1],  # the head's, at the last step
        train_loss=smoothed(losses + record.losses),
        valid_loss=metrics["valid_loss"],
        scores=_scores(job, state, metrics),
        images_per_s=record.tiles / record.seconds,
        seconds=time.monotonic() - record.began,
    )


def _scores(job: Job, state: TrainState, metrics: Metrics) -> dict[str, float]:
    """The scores of an epoch by their column in history.csv, with the best one so far."""
    score = job.task.SCORE
    scores = {key: metrics[key] for key in job.task.METRICS}
    best = score.best([*state.history.values(score.key), metrics[score.key]])
    assert best is not None  # this epoch has one
    own = {name: metrics[name] for name in job.own_metrics}
    return scores | {score.best_key: best} | own


def _write_predictions(job: Job, record: EpochRecord, judged: Judged, *, durable: bool) -> None:
    """Writes the logits of the validation part, the very ones that were judged."""
    meta = {
        "task": job.dataset.task,
        "split": job.recipe.data.split,
        "part": "valid",
        "dataset": job.dataset.path,
        "checkpoint": storage.join(job.path, "checkpoints", layout.LAST),
        "stage": str(record.number),
        "epoch": str(record.epoch),
    }
    found = predictions.Predictions(
        judged.names,
        judged.logits.astype("float32"),
        judged.target,
        tuple(job.dataset.classes),
        meta,
    )
    predictions.write(storage.join(job.path, "predictions.parquet"), found, durable=durable)
