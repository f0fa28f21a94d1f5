"""How a stage begins: which weights train, their rates, how the network runs, and the range test
that finds rates.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn

from raytrain import storage
from raytrain.config import LAYER_GROUPS, Recipe
from raytrain.models import layer_groups, networks
from raytrain.tiles import sampling
from raytrain.training import ddp, execution, lr_find, optim
from raytrain.training.decision import Action
from raytrain.training.job import Job
from raytrain.training.optim import Rate
from raytrain.training.services import Services
from raytrain.training.state import TrainState
from raytrain.training.step import Outcome, Stepper
from raytrain.training.trained import Trained
from raytrain.worker import Worker

logger = logging.getLogger(__name__)


def begin_stage(job: Job, state: TrainState, services: Services, number: int) -> Stepper:
    """Freezes, makes a new optimiser and DDP anew.

    The optimiser's state is restored only where the run resumes in the middle of the stage.

    Raises:
        lr_find.Stopped: the run was stopped during the range test of the stage.
    """
    resumed = job.start.resumes(number)
    if resumed and job.start.lr is not None:
        state.lr = optim.times(job.start.lr, job.backoff)
    else:
        state.lr = optim.times(_peak(job, state, services, number), state.lr_scale)
    batches = job.batches(number, 1)
    choose_execution(job, state, number, batches)
    network, optimizer = stage_network(job.recipe, number, state.model, state.lr, job.worker)
    stepper = Stepper(
        job.recipe,
        number,
        Trained(network, optimizer, state.ema),
        job.source,
        job.loss,
        job.worker,
        services.watchdog.beat,
    )
    dropped = len(job.train_rows) - sum(len(rows) for rows in batches)
    if dropped:
        logger.info(
            f"stage {number}: the last {dropped} tiles of an epoch make no full batch and are "
            "dropped"
        )
    if resumed and job.start.optimizer:
        optimizer.load_state_dict(job.start.optimizer)
        optim.scale_peaks(optimizer, job.backoff)
    return stepper


def stage_network(
    recipe: Recipe, number: int, model: nn.Sequential, lr: Rate, worker: Worker
) -> tuple[nn.Module, torch.optim.AdamW]:
    """The network of a stage, frozen as it says and wrapped for several ranks, and a new optimiser.

    Args:
        recipe: of the run.
        number: of the stage, from 1.
        model: of this rank; its weights and what is frozen of them change in place.
        lr: peak rate.
        worker: this process; all ranks call this together.
    """
    stage = recipe.stage(number)
    layer_groups.set_frozen(model, stage.frozen_groups)
    rates = optim.group_rates(lr, LAYER_GROUPS, recipe.train.schedule)
    optimizer = optim.make_optimizer(model, rates, recipe.train.wd)
    # After freezing: DDP never synchronises weights that were frozen when it was made.
    network = ddp.wrapped(
        model, worker, recipe.train.accumulate, stage.size, recipe.train.precision
    )
    return network, optimizer


def _peak(job: Job, state: TrainState, services: Services, number: int) -> Rate:
    """The stage's peak rate as the recipe says, or as the range test finds it."""
    stage = job.stage(number)
    if job.recipe.lr is None:
        return stage.lr
    curve = range_test(job, state, services, number)
    if job.recipe.lr == "auto":
        peak, sentence = lr_find.peak(curve, stage.lr)
    elif stage.frozen_groups:
        peak, sentence = lr_find.peak(curve, stage.lr, lr_find.STEEPEST_RULE)
    else:
        peak, sentence = lr_find.unfrozen_peak(curve, stage.lr, _frozen_lr(job, state, number))
    logger.info(f"stage {number}: {sentence}")
    return peak


def _frozen_lr(job: Job, state: TrainState, number: int) -> float | None:
    """The peak rate of the head before a stage that unfreezes, without `lr_scale`; None for a stage
    that is frozen itself or follows one that was not.
    """
    if job.stage(number).frozen_groups:
        return None
    if state.lr is None:
        # The first stage of this process: the checkpoint knows it.
        return job.start.frozen_lr
    if not job.stage(number - 1).frozen_groups:
        return None
    return optim.head_rate(state.lr) / state.lr_scale


def choose_execution(
    job: Job, state: TrainState, number: int, batches: list[sampling.Rows]
) -> None:
    """Lets the network run eagerly, as graphs or compiled, as suits the stage."""
    stage = job.stage(number)
    train = job.recipe.train
    worker = job.worker
    layer_groups.set_frozen(state.model, stage.frozen_groups)
    steps = stage.epochs * len(batches)
    how = execution.chosen(train.execution, worker.device, steps, worker.world)
    passes = sampling.pass_slices(len(batches[0]), worker.rank, worker.world, train.accumulate)
    tiles = passes[0].stop - passes[0].start
    shape = (tiles, networks.in_channels(state.model), stage.size, stage.size)
    execution.set_execution(state.model, how, shape, train.precision, worker.device)


def range_test(job: Job, state: TrainState, services: Services, number: int) -> lr_find.Curve:
    """Runs the range test of a stage, at its last size, and restores the weights; rank 0 writes it
    to `lr-find/`.

    Raises:
        DivergedError: on every rank, where the curve is too short to be read.
        lr_find.Stopped: the run is to stop.
    """
    # A graph of the stage before knows which weights were frozen then.
    execution.run_eagerly(state.model)
    recipe = job.recipe.at_last_sizes()
    with lr_find.weights_restored(state.model):
        planned = job.stage(number).lr
        network, optimizer = stage_network(recipe, number, state.model, planned, job.worker)
        trained = Trained(network, optimizer)
        beat = services.watchdog.beat
        stepper = Stepper(recipe, number, trained, job.source, job.loss, job.worker, beat)
        state.model.train()
        outcomes = _endless(job, stepper)

        def loss(t: int) -> float:
            total = next(outcomes).values[0]
            if job.worker.world > 1:
                dist.all_reduce(total)
            if services.decisions.after_step() is Action.STOP:
                raise lr_find.Stopped
            return float(total)

        curve = lr_find.range_test(loss, optimizer)
    found = lr_find.suggestions(curve)
    frozen_lr = _frozen_lr(job, state, number)
    if frozen_lr is not None:
        found[lr_find.HIGH_RULE] = frozen_lr / lr_find.HIGH_DIVISOR
    if job.worker.leads:
        directory = storage.join(job.path, "lr-find")
        lr_find.write(directory, job.recipe.stage_names[number - 1], curve, found)
    return curve


def _endless(job: Job, stepper: Stepper) -> Iterator[Outcome]:
    """Steps of one epoch after the other."""
    for epoch in itertools.count(1):
        yield from stepper.epoch(job.batches(stepper.number, epoch), epoch)
