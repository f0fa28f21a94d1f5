"""`--wait SECONDS`: waits until a cluster has room for a command.

A placement group that has no room yet is what makes Ray's autoscaler start machines. So the room is
asked for as one group, which is given back once it is there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from raytrain.config import Recipe
from raytrain.distributed import gpus
from raytrain.distributed.session import session
from raytrain.errors import ResourceError
from raytrain.log import duration

logger = logging.getLogger(__name__)

# Seconds between two lines about what is missing.
TOLD_EVERY_S = 15.0
# Seconds of one wait inside Ray, which no signal can end.
LOOK_EVERY_S = 1.0
# What a worker with a GPU asks for. Its share of the CPUs is known only once its machine is there.
WITH_GPU = {"CPU": 0.01, "GPU": 1.0}
WITH_CPU = {"CPU": 1.0}


def wait_for_room(recipe: Recipe, seconds: float) -> None:
    """Waits until the connected cluster has room for the workers of a recipe, if told to.

    Args:
        recipe: of the command; for a range of workers, room for the smallest number is enough.
        seconds: the longest wait; 0 does nothing.

    Raises:
        ResourceError: there was no room within that time, or GPUs that are there cannot be used.
    """
    if seconds <= 0:
        return
    began = time.monotonic()
    with_gpus = recipe.use_gpu is True
    _wait(recipe.num_workers, seconds, began, with_gpus=with_gpus)
    # Whether GPUs are used by default is known only once machines are there.
    if recipe.use_gpu is None and gpus.usable(None):
        _wait(recipe.num_workers, seconds, began, with_gpus=True)


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
        _wait(1, seconds, time.monotonic(), with_gpus=False)
        yield


def _wait(workers: int, seconds: float, began: float, *, with_gpus: bool) -> None:
    each = WITH_GPU if with_gpus else WITH_CPU
    group = placement_group([each] * workers, strategy="PACK")
    end = began + seconds
    told = time.monotonic()
    try:
        while not group.wait(LOOK_EVERY_S):
            now = time.monotonic()
            lacking = missing(workers, with_gpus=with_gpus)
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


def missing(workers: int, *, with_gpus: bool) -> str:
    """Returns what some workers need, and what the connected cluster has."""
    kind = "GPU" if with_gpus else "CPU"
    declared = ray.cluster_resources().get(kind, 0.0)
    free = ray.available_resources().get(kind, 0.0)
    needed = f"{workers} workers take {workers} {kind}s"
    if workers == 1:
        needed = f"1 worker takes 1 {kind}"
    return f"{needed}, the cluster declares {declared:g}, and {free:g} of them are free"
