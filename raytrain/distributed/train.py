"""The only TorchTrainer: one worker group per run, started once, works through all stages."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from raytrain import runs, storage
from raytrain.checkpoints import layout, reading
from raytrain.config import Recipe, merge
from raytrain.data.dataset import Dataset, open_dataset
from raytrain.distributed import gpus
from raytrain.distributed.cluster import cpus, own_cause, session
from raytrain.distributed.memory import check_memory
from raytrain.distributed.messages import (
    GroupSaves,
    Inbox,
    Outbox,
    Unstarted,
    interruptible,
    log_in_driver,
    mailbox,
)
from raytrain.distributed.preflight import check_cluster, check_group, check_recipe, use_gpu
from raytrain.distributed.restarts import restarts
from raytrain.distributed.unused_actors import leave_unused_actors_out
from raytrain.errors import Interrupted, NoRoomError, StorageError, UnfinishedError, exit_code_of
from raytrain.log import send_messages
from raytrain.runlock import held
from raytrain.training import loop
from raytrain.training.lr_find import Curve
from raytrain.training.services import Hooks
from raytrain.training.state import Metrics
from raytrain.worker import Worker

logger = logging.getLogger(__name__)


# The exit code of a worker that ends itself since it hangs; Ray starts the group again.
STALLED = 70
# Starts of a minute each that a worker group is waited for: a machine that replaces a lost one needs some of them.
START_ATTEMPTS = 5


@dataclass(frozen=True)
class Trained:
    """A finished run and the metrics of its last epoch."""

    run: runs.Run
    metrics: Metrics


def train(recipe: Recipe, *, name: str) -> Trained:
    """Trains a new run.

    Args:
        recipe: its `dataset` is set; places may be relative.
        name: of the run directory under `recipe.storage`.

    Raises:
        RaytrainError: of the kind that fits, with nothing started where that can be known before.
    """
    runs.check_name(name)
    check_group(recipe)
    recipe, dataset = check_recipe(recipe)
    check_memory(recipe, len(dataset.classes))
    with held(storage.join(recipe.storage, name)):
        runs.refuse_taken(name, recipe.storage)
        with session():
            check_cluster(recipe)
            run = runs.create(recipe, name, dataset)
            logger.info(f"run {run.name} in {run.path}")
            return _attempt(run, recipe)


def resume(run: runs.Run, overrides: dict[str, Any]) -> Trained:
    """Goes on with a run from its latest checkpoint.

    Args:
        run: an existing run.
        overrides: nested values of fields that may change, `runs.PLACEMENT`: workers, where tiles are, how often it saves.

    Raises:
        ConfigError: another field would change.
        DataError: the dataset is not the one that the run was trained on.
    """
    recipe = Recipe.model_validate(merge(run.recipe.model_dump(), runs.placement(run, overrides)))
    check_group(recipe)
    recipe = recipe.model_copy(update={"storage": storage.parent(run.path)})
    recipe, dataset = check_recipe(recipe, run)
    check_memory(recipe, len(dataset.classes))
    with held(run.path), session():
        check_cluster(recipe)
        runs.write_paths(run, recipe)
        storage.remove(storage.join(run.path, "failure.json"))
        logger.info(f"run {run.name} in {run.path}")
        return _attempt(run, recipe)


def _attempt(run: runs.Run, recipe: Recipe) -> Trained:
    try:
        metrics = _while_it_gets_on(run, recipe)
        if name := metrics.get("stopped"):
            raise _stopped(run, signal.Signals[name], metrics["checkpoint"])
        return Trained(run, metrics)
    except BaseException as raised:
        error = _ended(run, raised)
        with suppress(StorageError):  # which may be what ails; the error itself is the one to tell
            runs.write_failure(run, error, exit_code_of(error))
        if error is raised:
            raise
        raise error from None


def _while_it_gets_on(run: runs.Run, recipe: Recipe) -> Metrics:
    """Trains. Ray counts waits for room over its whole run: they end one only where it got no further since its start."""
    checkpoints = storage.join(run.path, "checkpoints")
    while True:
        reached = reading.furthest(checkpoints)
        try:
            metrics: Metrics = _group(train_worker, run.path, recipe)
            return metrics
        except NoRoomError as error:
            if reading.furthest(checkpoints) == reached:
                raise
            logger.info(f"{error.what}; they are waited for again, since the run got further")


def _ended(run: runs.Run, raised: BaseException) -> BaseException:
    """The error that a run ends with. A first signal beside a worker group, or before its steps, has cost nothing."""
    if isinstance(raised.__context__, Interrupted):  # it came while another one ended the run
        return raised
    if isinstance(raised, Unstarted):
        return _stopped(run, signal.Signals(raised.number))
    if type(raised) is KeyboardInterrupt:
        return _stopped(run, signal.SIGINT)
    return raised


def _stopped(
    run: runs.Run, number: signal.Signals, newest: str | None = None
) -> UnfinishedError | Interrupted:
    """How a run ends that a first signal has stopped: nothing is lost, and without a checkpoint nothing was trained."""
    again = runs.resume_command(run.name, storage.parent(run.path))
    checkpoints = storage.join(run.path, "checkpoints")
    if reading.furthest(checkpoints) == layout.BEGINNING:
        return Interrupted(
            number, f" before its first step: there is nothing to keep\n  next: {again}"
        )
    return UnfinishedError(
        f"stopped by {number.name}, with everything kept in {newest or checkpoints}", "", again
    )


def find_rates(recipe: Recipe, name: str) -> dict[int, Curve]:
    """Runs the range test for the selected stages. Returns its curve by stage; `<storage>/<name>/lr-find` holds them too.

    Raises:
        RaytrainError: as `train`.
    """
    check_group(recipe)
    recipe, dataset = check_recipe(recipe)
    check_memory(recipe, len(dataset.classes))
    with session():
        check_cluster(recipe)
        curves: dict[int, Curve] = _group(
            lr_find_worker, storage.join(recipe.storage, name), recipe
        )
    return curves


def _group(
    function: Callable[[dict[str, Any]], Any],
    path: str,
    recipe: Recipe,
) -> Any:
    """Starts the worker group, runs the function in every worker. Returns what rank 0 returned."""
    gpu = use_gpu(recipe)
    logger.info(
        f"starting {recipe.num_workers} {'GPU' if gpu else 'CPU'} workers (about 15 seconds)"
    )
    with mailbox() as box:
        config = {
            "recipe": recipe.model_dump(mode="json"),
            "run": path,
            "mailbox": box,
            "device": gpus.device(gpu).type,
        }
        fs, ray_path = storage.filesystem(storage.join(path, "ray"))
        trainer = ray.train.torch.TorchTrainer(
            # Not as `train_loop_config`: Ray shows that, and exports it, with the keys that places may hold.
            lambda: function(config),
            scaling_config=ray.train.ScalingConfig(
                num_workers=recipe.num_workers,
                use_gpu=gpu,
                resources_per_worker=_resources(recipe.num_workers, gpu),
            ),
            # Ray's own snapshot decides nothing: a fresh name for every attempt.
            run_config=ray.train.RunConfig(
                name=f"attempt-{time.strftime('%Y%m%d-%H%M%S')}",
                storage_path=ray_path,
                storage_filesystem=fs if storage.is_uri(path) else None,
                # `restarts` decides: a number for the whole run would end one that gets further between its failures.
                failure_config=ray.train.FailureConfig(
                    max_failures=-1, controller_failure_limit=START_ATTEMPTS
                ),
                logging_config=ray.train.LoggingConfig("ERROR"),
                callbacks=[restarts(path, box)],
            ),
        )

        leave_unused_actors_out(trainer)
        outbox, caught = Outbox(box), list[tuple[int, float]]()
        try:
            # A range test keeps nothing that a signal could wait for.
            deliver = outbox.deliver if function is train_worker else None
            return interruptible(trainer.fit, deliver, caught).return_value
        except ray.train.TrainingFailedError as error:
            no_room = not_placed(error, recipe.num_workers)
            if (
                no_room and caught
            ):  # it came while this wait for room ended; another one would not hear of it
                raise Unstarted(caught[0][0]) from None
            raise no_room or own_cause(error) from None


def not_placed(error: ray.train.TrainingFailedError, workers: int) -> NoRoomError | None:
    """The error of a group that found no room in the cluster; None where another failure ended it."""
    if (
        type(getattr(error, "controller_failure", None)).__name__
        != "WorkerGroupStartupTimeoutError"
    ):
        return None
    return NoRoomError(
        f"{workers} workers found no room in the cluster, in {START_ATTEMPTS} waits for it",
        "it declares enough CPUs or GPUs; others hold them, or a machine of it does not come",
        "ray status shows who holds what; the same command, or --resume, once there is room",
    )


def train_worker(config: dict[str, Any]) -> Metrics:
    """What every worker runs: builds its place in the group and fits. Also runs in Ray's local mode (0 workers)."""
    return loop.fit(*_place_in_group(config), backoff=True)


def lr_find_worker(config: dict[str, Any]) -> dict[int, Curve]:
    """As `train_worker`, for the range test."""
    return loop.find_rates(*_place_in_group(config))


def _place_in_group(config: dict[str, Any]) -> tuple[Recipe, Dataset, str, Worker, Hooks]:
    context = ray.train.get_context()
    recipe = Recipe.model_validate(config["recipe"])
    rank = context.get_world_rank()
    box = config["mailbox"]
    worker = Worker(
        rank,
        context.get_world_size(),
        context.get_local_rank(),
        context.get_local_world_size(),
        ray.train.torch.get_device() if config.get("device") == "cuda" else torch.device("cpu"),
        len(os.sched_getaffinity(0)),
    )
    # Ray hears of an epoch where its checkpoint is written: a report takes 7 ms, or the time to Ray's next look at the group.
    hooks = Hooks(saved=ray.train.report)
    if box is not None:  # not in Ray's local mode, where this process is the driver's
        send_messages(partial(log_in_driver, box), rank)
        hooks = replace(hooks, stalled=lambda: os._exit(STALLED), saves=GroupSaves(box))
        if rank == 0:
            inbox = Inbox(box)
            hooks = replace(hooks, stop=inbox.stop, keep=inbox.keep)
    assert recipe.dataset is not None
    return recipe, open_dataset(recipe.dataset), config["run"], worker, hooks


def _resources(workers: int, gpu: bool) -> dict[str, float]:
    """Leaves a CPU to Ray Data and to the driver; a GPU worker asks for one GPU beside it."""
    share = max(0.01, min(1.0, (cpus() - 1) / workers))
    return {"CPU": share, "GPU": 1} if gpu else {"CPU": share}
