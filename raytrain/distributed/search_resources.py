"""What the trials of a search get of the cluster, and what its machines decide about training."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import ray

from raytrain.config import Recipe
from raytrain.data.dataset import Dataset, open_dataset
from raytrain.distributed import environment, gpus, slots
from raytrain.distributed.memory import trials_that_fit
from raytrain.distributed.messages import interruptible
from raytrain.distributed.nodes import Answer
from raytrain.distributed.planner import PATIENCE_S, WAIT_TOLD_S, wait_in_words
from raytrain.distributed.preflight import check_workers, refuse_range
from raytrain.distributed.search_setup import Options
from raytrain.distributed.slots import Share
from raytrain.distributed.train import resources_of_worker
from raytrain.errors import ResourceError
from raytrain.machine import usable_cpus
from raytrain.training import stage_keys
from raytrain.training.stage_keys import Facts
from raytrain.worker import Worker, compute_device

logger = logging.getLogger(__name__)


def share_of(recipe: Recipe, options: Options, answers: Sequence[Answer] = ()) -> Share:
    """What a trial takes of the connected cluster, or of this machine where Ray will run locally.

    Args:
        recipe: that the trials vary.
        options: of the search.
        answers: of the machines of the cluster; empty to ask them now.

    Raises:
        ConfigError: a share that Ray cannot give.
        ResourceError: the cluster has too little.
    """
    refuse_range(recipe, "a search")
    check_workers(recipe.num_workers)
    machines = gpus.needed(recipe.use_gpu, answers)
    each_gpu = 0.0
    each_cpu = 1.0
    if machines:
        each_gpu = 1.0 if options.trial_gpus is None else options.trial_gpus
        each_cpu = gpus.cpus_of_each(machines)
        if each_gpu < 1:
            each_cpu = max(1.0, float(int(each_cpu * each_gpu)))
    elif options.trial_gpus:
        raise ResourceError(
            f"--trial-gpus {options.trial_gpus:g} is asked for, and no GPUs are used",
            "Ray would wait for one forever",
            "leave --trial-gpus out, or a cluster with GPUs",
        )
    if recipe.num_workers > 1:
        each_cpu = resources_of_worker(recipe, gpu=bool(machines))["CPU"]
    if options.trial_cpus is not None:
        each_cpu = options.trial_cpus
    share = Share(recipe.num_workers, each_cpu, each_gpu)
    slots.check(share)
    slots.check_room(share)
    return share


def slots_of(recipe: Recipe, dataset: Dataset, share: Share) -> Callable[[], int]:
    """Returns a function that counts how many trials can run at once; a cluster may grow.

    Raises:
        ResourceError: not even one trial fits into the memory of this machine.
    """
    most = trials_that_fit(recipe, len(dataset.classes), dataset.tile_format.channels)
    return partial(slots.count, share, most)


def worker_of(share: Share) -> Worker:
    """Returns the worker that a trial is or, of a group, its rank 0 on this machine."""
    device = compute_device(share.gpus > 0)
    if share.workers == 1:
        return Worker(device=device, cpus=max(1, int(share.cpus)))
    here = usable_cpus()
    local = min(share.workers, here)
    return Worker(world=share.workers, local_world=local, device=device, cpus=here)


def facts_of(recipe: Recipe, share: Share) -> Facts:
    """Returns what a machine that trains decides, asked once for all trials.

    Raises:
        Interrupted: a signal came meanwhile.
        ResourceError: no machine had room for the question.
    """
    worker = worker_of(share)
    if not environment.connects() and share.gpus == 0:
        return facts_here(recipe, worker)
    task = ray.remote(num_cpus=share.cpus, num_gpus=share.gpus)(facts_here)
    answer = task.remote(recipe, worker)
    try:
        with _wait_told(share):
            # In the main thread Ray would take every signal for Ctrl-C.
            found: Facts = interruptible(partial(ray.get, answer, timeout=PATIENCE_S), None)
        return found
    except ray.exceptions.GetTimeoutError:
        raise ResourceError(
            f"no trial could start within {PATIENCE_S:.0f} seconds: {slots.lacking(share)}",
            "others use the cluster",
            "ray status shows who uses what; then the same command again",
        ) from None


@contextmanager
def _wait_told(share: Share) -> Iterator[None]:
    """Says what is lacking if the work inside has to wait for a CPU or a GPU."""

    def tell() -> None:
        # Otherwise a process is starting, which takes longer on a busy machine.
        if not slots.is_free(share):
            logger.info(wait_in_words(slots.lacking(share)))

    reminder = threading.Timer(WAIT_TOLD_S, tell)
    reminder.daemon = True
    reminder.start()
    try:
        yield
    finally:
        reminder.cancel()


def facts_here(recipe: Recipe, worker: Worker) -> Facts:
    """Returns what this machine would decide about a trial.

    Args:
        recipe: complete.
        worker: of the trial. The CPUs of a group are those of the machine that it runs on.
    """
    assert recipe.dataset is not None  # check_recipe has seen it
    if worker.world > 1:
        worker = replace(worker, cpus=usable_cpus())
    return stage_keys.facts(recipe, open_dataset(recipe.dataset), worker)
