"""Training on Ray: starts one worker group per run, which works through all stages.

This is the only module that makes a `TorchTrainer`. `raytrain.training.loop` does the training and
knows nothing about Ray. Here each worker gets what connects that loop to its group: rank and
device, reports to Ray, messages to the driver, and the signal to stop.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from raytrain import registry, runs, storage, tracking
from raytrain.checkpoints import layout, reading
from raytrain.checkpoints.history import read_epochs
from raytrain.config import Recipe, overridden, validate
from raytrain.data.dataset import Dataset, open_dataset
from raytrain.distributed.gauges import Gauges
from raytrain.distributed.memory import check_memory
from raytrain.distributed.messages import (
    GroupSaves,
    Inbox,
    Outbox,
    Stop,
    Unstarted,
    interruptible,
    log_in_driver,
    mailbox,
    relayed,
)
from raytrain.distributed.nodes import software_of, working_nodes
from raytrain.distributed.orphaned_groups import FreesOrphaned
from raytrain.distributed.preflight import check_cluster, check_group, check_recipe, use_gpu
from raytrain.distributed.process_group import OverNetworkOfRay
from raytrain.distributed.restarts import restarts
from raytrain.distributed.session import cpus, own_cause, session
from raytrain.distributed.slots import cpus_of_gpu_worker, cpus_of_worker
from raytrain.distributed.unused_actors import leave_unused_actors_out
from raytrain.distributed.waiting import wait_for_room
from raytrain.errors import (
    ConfigError,
    Interrupted,
    NoRoomError,
    StorageError,
    UnfinishedError,
    exit_code_of,
    masked,
)
from raytrain.evaluation.own_metrics import Metric, combined
from raytrain.log import send_messages
from raytrain.machine import usable_cpus
from raytrain.runlock import held
from raytrain.tiles.rows import with_mapped_rows
from raytrain.training import loop, stages
from raytrain.training.lr_find import Curve
from raytrain.training.services import Hooks
from raytrain.training.state import Metrics
from raytrain.worker import Worker, compute_device

logger = logging.getLogger(__name__)


# Exit code of a worker that ends itself because it hangs. Ray then starts the group again.
STALLED = 70
# How many times Ray waits for the CPUs or GPUs of a worker group, and the seconds of one wait. A
# machine that replaces a lost one needs several minutes until it has joined the cluster.
START_ATTEMPTS = 5
RAY_WAITS_S = 60
# Seconds between two looks for room for more workers.
GROWS_EVERY_S = 30.0
# Seconds of one wait for a group that may be smaller: Ray counts the CPUs of a lost machine until
# it notices the loss. The waits take as long together as those of a group of fixed size.
SMALLER_AFTER_S = 30
SMALLER_AFTER = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"


@dataclass(frozen=True)
class Trained:
    """A finished run and the metrics of its last epoch."""

    run: runs.Run
    metrics: Metrics


def train(
    recipe: Recipe,
    *,
    name: str,
    metrics: Sequence[Metric] = (),
    stop: Stop | None = None,
    wait_s: float = 0.0,
) -> Trained:
    """Trains a new run.

    Args:
        recipe: its `dataset` is set; paths may be relative.
        name: of the run directory under `recipe.storage`.
        metrics: further functions on (probabilities, targets), beside those that the recipe names.
            No file holds them: resuming asks for them again.
        stop: tells of signals, where a command trains several runs at once. That command gets the
            signals, and has counted the memory of all its runs.
        wait_s: seconds to wait for room in the cluster; 0 for none.

    Returns:
        The run and the metrics of its last epoch.

    Raises:
        RaytrainError: the class that fits the failure. Nothing has been started where the failure
            could be known before.
    """
    runs.check_name(name)
    check_group(recipe)
    recipe, dataset = check_recipe(recipe)
    if stop is None:
        check_memory(recipe, len(dataset.classes), dataset.tile_format.channels)
    _end_if_asked(stop)
    with held(storage.join(recipe.storage, name)):
        # With the lock held: of two commands that start at the same time, one is refused.
        runs.refuse_taken(name, recipe.storage)
        with session():
            wait_for_room(recipe, wait_s)
            answers = check_cluster(recipe)
            run = runs.create(recipe, name, dataset, software_of(answers))
            logger.info(f"run {run.name} in {run.path}")
            return _attempt(run, recipe, metrics, stop)


def resume(
    run: runs.Run,
    overrides: dict[str, Any],
    *,
    metrics: Sequence[Metric] = (),
    stop: Stop | None = None,
    wait_s: float = 0.0,
) -> Trained:
    """Resumes a run from its latest checkpoint.

    Args:
        run: an existing run.
        overrides: nested values of the fields that may change, `runs.PLACEMENT`: the workers, where
            tiles are kept, how often checkpoints are written.
        metrics: the functions that `train` was given.
        stop: as for `train`.
        wait_s: as for `train`.

    Returns:
        The run and the metrics of its last epoch.

    Raises:
        ConfigError: another field would change, or the metrics are not those of the run.
        DataError: the dataset is not the one that the run was trained on.
        RaytrainError: as `train`.
    """
    changed = overridden(run.recipe.model_dump(), runs.placement(run, overrides))
    recipe = validate(changed, "the command line")
    check_group(recipe)
    # The run directory may have been moved since its recipe was written.
    recipe = recipe.model_copy(update={"storage": storage.parent(run.path)})
    recipe, dataset = check_recipe(recipe, run)
    if stop is None:
        check_memory(recipe, len(dataset.classes), dataset.tile_format.channels)
    _check_metrics(run, recipe, dataset, metrics)
    _end_if_asked(stop)
    with held(run.path), session():
        wait_for_room(recipe, wait_s)
        answers = check_cluster(recipe, started=bool(run.checkpoints))
        runs.write_paths(run, recipe)
        runs.write_attempt(run, software_of(answers))
        storage.remove(storage.join(run.path, "failure.json"))
        logger.info(f"run {run.name} in {run.path}")
        return _attempt(run, recipe, metrics, stop)


def _end_if_asked(stop: Stop | None) -> None:
    """Ends a run that has not begun, or waits for room, where the command was asked to stop.

    Raises:
        Unstarted: it was.
    """
    if stop is None:
        return
    name = stop.reason()
    if name is not None:
        raise Unstarted(signal.Signals[name])


def _check_metrics(
    run: runs.Run, recipe: Recipe, dataset: Dataset, metrics: Sequence[Metric]
) -> None:
    """Refuses other metrics than those whose values the run has recorded so far."""
    given = set(combined(recipe.metrics, metrics, dataset.task))
    rows = read_epochs(run.path)
    if not rows:
        return
    task = registry.evaluation(dataset.task)
    recorded = set(rows[-1].scores) - {*task.METRICS, task.SCORE.best_key}
    missing = sorted(recorded ^ given)
    if missing:
        raise ConfigError(
            f"{run.name} was trained with other metrics: {', '.join(missing)} differ",
            "a metric that was given in Python is in no file, and its column would have gaps",
            f"from raytrain.distributed.train import resume; resume(run, {{}}, metrics=[...]) with "
            f"{', '.join(sorted(recorded)) or 'none'}",
        )


def _attempt(
    run: runs.Run, recipe: Recipe, own: Sequence[Metric] = (), stop: Stop | None = None
) -> Trained:
    """Trains a run to its end. Writes failure.json into its directory if it fails or is stopped."""
    try:
        tracking.begin(run.path, recipe)
        metrics = _train_while_progressing(run, recipe, own, stop)
        signal_name = metrics.get("stopped")
        if signal_name:
            raise _stopped(run, signal.Signals[signal_name], metrics["checkpoint"])
        tracking.end(run.path, recipe, tracking.FINISHED)
        return Trained(run, metrics)
    except BaseException as raised:
        error = _final_error(run, raised, stop)
        # The storage may be what failed. The user needs the error itself, not this second one.
        with suppress(StorageError):
            runs.write_failure(run, error, exit_code_of(error))
        status = tracking.FAILED
        if isinstance(error, UnfinishedError | Interrupted):
            status = tracking.STOPPED
        tracking.end(run.path, recipe, status)
        if error is raised:
            raise
        raise error from None


def _train_while_progressing(
    run: runs.Run, recipe: Recipe, own: Sequence[Metric], stop: Stop | None = None
) -> Metrics:
    """Trains, again after waits for free CPUs or GPUs as long as each start gets the run further.

    Ray counts such waits over the whole run, and ends it after `START_ATTEMPTS` of them. A long run
    that loses a machine now and then would reach that number although nothing is wrong.

    Raises:
        NoRoomError: the group found no room, and the run has no newer checkpoint since its start.
        Unstarted: the group found no room, and the command was asked to stop meanwhile.
    """
    checkpoints = storage.join(run.path, "checkpoints")
    while True:
        reached = reading.furthest(checkpoints)
        try:
            metrics: Metrics = _group(train_worker, run.path, recipe, own, stop)
            return metrics
        except NoRoomError as error:
            _end_if_asked(stop)
            if reading.furthest(checkpoints) == reached:
                raise
            logger.info(f"{error.what}; waiting again, since the run got further")


def _final_error(run: runs.Run, raised: BaseException, stop: Stop | None = None) -> BaseException:
    """The error that a run ends with.

    A first signal that reached the driver while no step was under way has lost nothing. It ends the
    run in the same way as a signal after whose step a checkpoint was written.
    """
    number = None if stop is None else stop.number()
    if number is not None:
        # What was raised is only how this thread has learned of it.
        return Interrupted(number)
    if isinstance(raised.__context__, Interrupted):
        # A further signal came while an earlier one was ending the run in the middle of a step.
        return raised
    if isinstance(raised, Unstarted):
        return _stopped(run, signal.Signals(raised.number))
    # Not `isinstance`: `Interrupted` is a KeyboardInterrupt too, and has lost steps.
    if type(raised) is KeyboardInterrupt:
        return _stopped(run, signal.SIGINT)
    return raised


def _stopped(
    run: runs.Run, number: signal.Signals, newest: str | None = None
) -> UnfinishedError | Interrupted:
    """The error of a run that a first signal has stopped.

    Args:
        run: the run.
        number: of the signal.
        newest: path of the checkpoint that was written after the signal, if any.

    Returns:
        UnfinishedError where there is a checkpoint, which holds all that was trained. Interrupted
        where there is none, since nothing was trained.
    """
    resume_command = runs.resume_command(run.name, storage.parent(run.path))
    checkpoints = storage.join(run.path, "checkpoints")
    if reading.furthest(checkpoints) == layout.BEGINNING:
        return Interrupted(
            number, f" before its first step: there is nothing to keep\n  next: {resume_command}"
        )
    return UnfinishedError(
        f"stopped by {number.name}, with everything kept in {newest or checkpoints}",
        "",
        resume_command,
    )


def find_rates(recipe: Recipe, name: str, *, wait_s: float = 0.0) -> dict[int, Curve]:
    """Runs the learning-rate range test for the selected stages.

    Args:
        recipe: its `dataset` is set; paths may be relative.
        name: of the directory under `recipe.storage`, whose `lr-find` gets the curves.
        wait_s: as for `train`.

    Returns:
        The curve of each stage by its number, which counts from 1.

    Raises:
        RaytrainError: as `train`.
    """
    check_group(recipe)
    recipe, dataset = check_recipe(tracking.unrecorded(recipe, "a range test"))
    check_memory(recipe, len(dataset.classes), dataset.tile_format.channels)
    path = storage.join(recipe.storage, name)
    with session():
        wait_for_room(recipe, wait_s)
        check_cluster(recipe)
        curves: dict[int, Curve] = _group(lr_find_worker, path, recipe)
    return curves


def _group(
    function: Callable[[dict[str, Any]], Any],
    path: str,
    recipe: Recipe,
    own: Sequence[Metric] = (),
    stop: Stop | None = None,
) -> Any:
    """Starts the worker group and runs a function in every worker.

    Args:
        function: `train_worker`, `stage_worker` or `lr_find_worker`.
        path: the run directory.
        recipe: complete, with absolute paths.
        own: metrics that were given in Python.
        stop: tells of signals, where this thread or process gets none.

    Returns:
        What the function returned on rank 0.

    Raises:
        NoRoomError: the cluster had no room for the group.
        Interrupted: a signal ended the group, see `messages.interruptible`.
        BaseException: what a worker raised.
    """
    gpu = use_gpu(recipe)
    kind = "GPU" if gpu else "CPU"
    workers = f"1 {kind} worker"
    if recipe.max_workers is not None:
        workers = f"{recipe.num_workers} to {recipe.max_workers} {kind} workers"
    elif recipe.num_workers > 1:
        workers = f"{recipe.num_workers} {kind} workers"
    logger.info(f"starting {workers} (about 15 seconds)")
    with mailbox() as box, _waits(recipe) as attempts:
        config = {
            "recipe": recipe.model_dump(mode="json"),
            "run": path,
            "mailbox": box,
            "device": compute_device(gpu).type,
            "metrics": tuple(own),
        }
        # Not as `train_loop_config`: Ray shows and exports that, with keys that URIs may hold.
        trainer = ray.train.torch.TorchTrainer(
            lambda: function(config),
            torch_config=OverNetworkOfRay(),
            scaling_config=_scaling(recipe, gpu),
            run_config=_run_config(path, box, attempts),
        )
        leave_unused_actors_out(trainer)
        # A range test writes no checkpoint, so a signal ends it at once.
        deliver = None
        if function is not lr_find_worker:
            # Whoever gets the signals has said what follows from them.
            deliver = Outbox(box, announced=stop is not None).deliver
        with relayed(stop, deliver):
            return _result(trainer, deliver, recipe.num_workers)


@contextmanager
def _waits(recipe: Recipe) -> Iterator[int]:
    """Sets how long Ray waits for room for a group. Yields how many times it does."""
    if recipe.max_workers is None or SMALLER_AFTER in os.environ:
        yield START_ATTEMPTS
        return
    os.environ[SMALLER_AFTER] = str(SMALLER_AFTER_S)
    try:
        yield START_ATTEMPTS * RAY_WAITS_S // SMALLER_AFTER_S
    finally:
        del os.environ[SMALLER_AFTER]


def _scaling(recipe: Recipe, gpu: bool) -> ray.train.ScalingConfig:
    """How many workers there are, and what each of them takes.

    Args:
        recipe: complete.
        gpu: whether each worker has a GPU.
    """
    workers: int | tuple[int, int] = recipe.num_workers
    if recipe.max_workers is not None:
        workers = (recipe.num_workers, recipe.max_workers)
    return ray.train.ScalingConfig(
        num_workers=workers,
        # A new machine is noticed after this time, and costs a new start of the group.
        elastic_resize_monitor_interval_s=GROWS_EVERY_S,
        use_gpu=gpu,
        resources_per_worker=resources_of_worker(recipe, gpu),
        # GPUs of one machine are connected faster than those of two. CPUs of two machines do not
        # share memory and caches.
        placement_strategy="PACK" if gpu else "SPREAD",
    )


def _run_config(path: str, box: Any, attempts: int) -> ray.train.RunConfig:
    """Where Ray keeps files of its own, and what it does when workers fail.

    Args:
        path: the run directory.
        box: handle of the mailbox.
        attempts: how many times Ray waits for room for the group.
    """
    filesystem, ray_path = storage.filesystem(storage.join(path, "ray"))
    return ray.train.RunConfig(
        # A fresh name for every attempt: under a known name Ray would restore its own snapshot of
        # the run, but our checkpoints alone decide where a run resumes.
        # It begins with the run's own, which Ray's dashboard shows.
        name=f"{storage.name_of(path)}-{time.strftime('%Y%m%d-%H%M%S')}",
        storage_path=ray_path,
        storage_filesystem=filesystem if storage.is_uri(path) else None,
        # The callback `restarts` decides when to give up. A number for the whole run would end one
        # that gets further between its failures.
        failure_config=ray.train.FailureConfig(max_failures=-1, controller_failure_limit=attempts),
        # At INFO, Ray prints a line for each report of each rank.
        logging_config=ray.train.LoggingConfig("ERROR"),
        callbacks=[restarts(path, box), FreesOrphaned()],
    )


def _result(
    trainer: ray.train.torch.TorchTrainer,
    deliver: Callable[[str], bool] | None,
    workers: int,
) -> Any:
    """Runs the trainer until its group has ended. Returns what rank 0 returned.

    Args:
        trainer: ready to start.
        deliver: passes the name of a first signal on to the group; None ends the group at once.
        workers: number of workers, for the error message.
    """
    # (number, monotonic time) of each signal so far.
    caught: list[tuple[int, float]] = []
    try:
        return interruptible(trainer.fit, deliver, caught).return_value
    except ray.train.TrainingFailedError as error:
        no_room = not_placed(error, workers)
        if no_room is None:
            raise own_cause(error) from None
        if caught:
            # The signal came just as this wait for room ended. The next wait would not know of it.
            raise Unstarted(caught[0][0]) from None
        raise no_room from None


def not_placed(error: ray.train.TrainingFailedError, workers: int) -> NoRoomError | None:
    """The error of a group that found no room in the cluster; None where another failure ended it.

    Args:
        error: what `TorchTrainer.fit` raised.
        workers: number of workers of the group.
    """
    cause = getattr(error, "controller_failure", None)
    # By its name: the class is internal to Ray, and its module may move with any release.
    if type(cause).__name__ != "WorkerGroupStartupTimeoutError":
        return None
    return NoRoomError(
        f"{workers} workers found no room in the cluster within "
        f"{START_ATTEMPTS * RAY_WAITS_S // 60} minutes",
        "it declares enough CPUs or GPUs, but others use them or one of its machines is missing",
        "ray status shows who uses what; the same command, or --resume, once there is room",
    )


def train_stage(recipe: Recipe, path: str, reason: Callable[[], str | None]) -> Metrics:
    """Trains the one selected stage of a recipe in a worker group, for a search.

    A divergence is an outcome there, so the group does not go on with half the rates.

    Args:
        recipe: complete, with absolute paths.
        path: the run directory.
        reason: asked again and again for a reason to stop.

    Returns:
        The metrics of the last epoch, with `machine`, see `stages.machine_of`.

    Raises:
        RaytrainError: as `train`.
    """
    metrics: Metrics = _group(stage_worker, path, recipe, stop=Stop(reason))
    return metrics


def train_worker(config: dict[str, Any]) -> Metrics:
    """Trains in a worker of the group. Also runs in Ray's local mode (0 workers).

    Args:
        config: as `_group` makes it.

    Returns:
        The metrics of the last epoch.
    """
    recipe, dataset, path, worker, hooks = _set_up_worker(config)
    if recipe.mlflow is None or worker.rank > 0:
        return loop.fit(recipe, dataset, path, worker, hooks, backoff=True)
    with tracking.Epochs(path, recipe) as epochs:
        hooks = _with_report(hooks, epochs.report)
        return loop.fit(recipe, dataset, path, worker, hooks, backoff=True)


def _with_report(hooks: Hooks, report: Callable[[Metrics], None]) -> Hooks:
    """The hooks, with one more function that hears of each epoch."""

    def both(metrics: Metrics) -> None:
        hooks.report(metrics)
        report(metrics)

    return replace(hooks, report=both)


def stage_worker(config: dict[str, Any]) -> Metrics:
    """Trains a stage of a search in a worker of the group.

    Args:
        config: as `_group` makes it.

    Returns:
        The metrics of the last epoch, with `machine`.
    """
    recipe, dataset, path, worker, hooks = _set_up_worker(config)
    metrics = loop.fit(recipe, dataset, path, worker, hooks)
    return metrics | {"machine": stages.machine_of(worker.device)}


def lr_find_worker(config: dict[str, Any]) -> dict[int, Curve]:
    """Runs the learning-rate range test in a worker of the group.

    Args:
        config: as `_group` makes it.

    Returns:
        The curve of each stage by its number.
    """
    recipe, dataset, path, worker, hooks = _set_up_worker(config)
    return loop.find_rates(recipe, dataset, path, worker, hooks)


def _set_up_worker(config: dict[str, Any]) -> tuple[Recipe, Dataset, str, Worker, Hooks]:
    """What the training loop needs in this worker process: recipe, dataset, run, worker, hooks."""
    context = ray.train.get_context()
    recipe = Recipe.model_validate(config["recipe"])
    rank = context.get_world_rank()
    device = torch.device("cpu")
    # As the driver has decided. A worker on CPUs may still see GPUs that others use.
    if config.get("device") == "cuda":
        device = ray.train.torch.get_device()
    worker = Worker(
        rank=rank,
        world=context.get_world_size(),
        local_rank=context.get_local_rank(),
        local_world=context.get_local_world_size(),
        device=device,
        # A container may have fewer than its machine.
        cpus=usable_cpus(),
    )
    # First the hooks, so that messages of all that follows reach the driver.
    hooks = _hooks(config, rank)
    assert recipe.dataset is not None
    dataset = open_dataset(recipe.dataset)
    if config["mailbox"] is not None:
        score = registry.evaluation(dataset.task).SCORE
        gauges = Gauges(storage.name_of(config["run"]), rank, score)
        hooks = replace(hooks, report=gauges.update)
    if recipe.max_workers is not None:
        noun = "worker" if worker.world == 1 else "workers"
        logger.info(f"training with {worker.world} {noun}")
    dataset = with_mapped_rows(dataset, recipe.data.split)
    return recipe, dataset, config["run"], worker, hooks


def _hooks(config: dict[str, Any], rank: int) -> Hooks:
    """Connects the training loop of this worker to Ray and to the driver.

    Also sends the messages of this process to the driver from now on.
    """
    # Ray hears of an epoch only when its checkpoint is written. A report takes 7 ms, but a second
    # one waits until Ray next looks at the group.
    hooks = Hooks(saved=_report, metrics=config.get("metrics", ()))
    box = config["mailbox"]
    if box is None:
        # Ray's local mode: this process is the driver as well.
        return hooks
    send_messages(partial(log_in_driver, box), rank)
    hooks = replace(hooks, stalled=_end_process, saves=GroupSaves(box))
    if rank > 0:
        return hooks
    # Rank 0 decides for all ranks, which stop together after the same step.
    inbox = Inbox(box)
    return replace(hooks, stop=inbox.stop, keep=inbox.keep)


def _report(metrics: Metrics) -> None:
    """Reports the metrics of an epoch to Ray, without the keys of URIs: Ray logs what it gets."""
    shown = {}
    for name, value in metrics.items():
        if isinstance(value, str):
            value = masked(value)
        shown[name] = value
    ray.train.report(shown)


def _end_process() -> None:
    """Ends this worker. Nothing is cleaned up, since its main thread hangs."""
    os._exit(STALLED)


def resources_of_worker(recipe: Recipe, gpu: bool) -> dict[str, float]:
    """Returns what each worker asks Ray for.

    A worker with a GPU takes its share of the CPUs of its machine. A worker on CPUs takes a whole
    one where there are several machines, or may be: parts of CPUs would fit onto one machine, while
    the others are idle. On a single machine one CPU is left to Ray Data and the driver, and workers
    share the others.

    Args:
        recipe: complete.
        gpu: whether each worker has a GPU.
    """
    if gpu:
        return {"CPU": cpus_of_gpu_worker(), "GPU": 1}
    several = ray.is_initialized() and len(working_nodes()) > 1
    if several or recipe.max_workers is not None:
        return {"CPU": 1}
    return {"CPU": cpus_of_worker(recipe.num_workers, cpus())}
