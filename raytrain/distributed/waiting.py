"""`--wait SECONDS`: waits until a cluster has room for a command.

A placement group that has no room yet is what makes Ray's autoscaler start machines. So the room is
asked for as one group, which is given back once it is there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from raytrain.config import Recipe
from raytrain.distributed import gpus
from raytrain.distributed.session import session
from raytrain.distributed.slots import cpus_of_gpu_worker
from raytrain.errors import ResourceError
from raytrain.log import duration

logger = logging.getLogger(__name__)

# Seconds between two lines about what is missing.
TOLD_EVERY_S = 15.0
# Seconds of one wait inside Ray, which no signal can end.
LOOK_EVERY_S = 1.0
# What a worker with a GPU asks for until its machine is there, whose CPUs it will share.
ANY_GPU = {"CPU": 0.01, "GPU": 1.0}


def wait_for_room(recipe: Recipe, seconds: float, *, worker_cpus: float | None = None) -> None:
    """Waits until the connected cluster has room for the workers of a recipe, if told to.

    Args:
        recipe: of the command; for a range of workers, room for the smallest number is enough.
        seconds: the longest wait; 0 does nothing.
        worker_cpus: CPUs of each worker; None where the command leaves them open.

    Raises:
        ResourceError: there was no room within that time, or GPUs that are there cannot be used.
    """
    if seconds <= 0:
        return
    workers = recipe.num_workers
    end = time.monotonic() + seconds
    if recipe.use_gpu is not True:
        _wait(workers, {"CPU": worker_cpus or 1.0}, seconds, end)
    # Whether GPUs are used by default is known only once machines are there.
    if recipe.use_gpu is False or (recipe.use_gpu is None and not gpus.usable(None)):
        return
    _wait(workers, ANY_GPU, seconds, end)
    _wait(workers, {"CPU": worker_cpus or cpus_of_gpu_worker(), "GPU": 1.0}, seconds, end)


@contextmanager
def with_machine(seconds: float) -> Iterator[None]:
    """A session with Ray that begins once there is a machine with a free CPU.

    For commands that use as many processes as there are CPUs when they start.

    Args:
        seconds: the longest wait; with 0, the command opens its session by itself.

    Raises:
        ResourceError: there was no machine within that time.
    """
    if seconds <= 0:
        yield
        return
    with session():
        _wait(1, {"CPU": 1.0}, seconds, time.monotonic() + seconds)
        yield


def _wait(workers: int, each: Mapping[str, float], seconds: float, end: float) -> None:
    """Waits for room for some workers.

    Args:
        workers: their number.
        each: what each of them takes of Ray.
        seconds: that the user gave, for the message.
        end: when to give up, by the monotonic clock.
    """
    group = placement_group([dict(each)] * workers, strategy="PACK")
    told = time.monotonic()
    try:
        while not group.wait(LOOK_EVERY_S):
            now = time.monotonic()
            lacking = missing(workers, each)
            if now > end:
                raise ResourceError(
                    f"{lacking}; --wait {seconds:g} is over",
                    "no worker can start before",
                    "ray status shows the machines and what the autoscaler waits for; "
                    "then the same command again",
                )
            if now - told >= TOLD_EVERY_S:
                told = now
                logger.info(f"waiting for room: {lacking}; {duration(end - now)} left")
    finally:
        remove_placement_group(group)


def missing(workers: int, each: Mapping[str, float]) -> str:
    """Returns what some workers need, and what the connected cluster has.

    Args:
        workers: their number.
        each: what each of them takes of Ray.
    """
    who = f"{workers} workers take"
    if workers == 1:
        who = "1 worker takes"
    declared = ray.cluster_resources()
    free = ray.available_resources()
    found = []
    for kind in sorted(each, reverse=True):  # GPUs first
        if each[kind] == ANY_GPU["CPU"]:
            continue  # so little that it is never what is missing
        count = workers * each[kind]
        plural = "" if count == 1 else "s"
        found.append(
            f"{who} {count:g} {kind}{plural}, the cluster declares {declared.get(kind, 0.0):g}, "
            f"and {free.get(kind, 0.0):g} of them are free"
        )
    return "; ".join(found)
