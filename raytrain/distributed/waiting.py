"""`--wait SECONDS`: waits until a cluster has room for a command.

A placement group that has no room yet is what makes Ray's autoscaler start machines. So the room is
asked for as one group, which is given back once it is there.
"""

from __future__ import annotations

import logging
import time

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from raytrain.config import Recipe
from raytrain.errors import ResourceError
from raytrain.log import duration

logger = logging.getLogger(__name__)

# Seconds between two lines about what is missing.
TOLD_EVERY_S = 15.0
# Seconds of one wait inside Ray, which no signal can end.
LOOK_EVERY_S = 1.0


def wait_for_room(recipe: Recipe, seconds: float) -> None:
    """Waits until the connected cluster has room for the workers of a recipe, if told to.

    Args:
        recipe: of the command; for a range of workers, room for the smallest number is enough.
        seconds: the longest wait; 0 does nothing.

    Raises:
        ResourceError: there was no room within that time.
    """
    if seconds <= 0:
        return
    each = {"CPU": 1.0}
    if recipe.use_gpu:
        # Its share of the CPUs is known only once its machine is there.
        each = {"CPU": 0.01, "GPU": 1.0}
    group = placement_group([each] * recipe.num_workers, strategy="PACK")
    end = time.monotonic() + seconds
    told = time.monotonic()
    try:
        while not group.wait(LOOK_EVERY_S):
            now = time.monotonic()
            if now > end:
                raise ResourceError(
                    f"{missing(recipe)}; --wait {seconds:g} is over",
                    "no worker can start before",
                    "ray status shows the machines and what the autoscaler waits for; "
                    "then the same command again",
                )
            if now - told >= TOLD_EVERY_S:
                told = now
                logger.info(f"waiting for room: {missing(recipe)}; {duration(end - now)} left")
    finally:
        remove_placement_group(group)


def missing(recipe: Recipe) -> str:
    """Returns what the workers of a recipe need, and what the connected cluster has."""
    kind = "GPU" if recipe.use_gpu else "CPU"
    needed = recipe.num_workers
    declared = ray.cluster_resources().get(kind, 0.0)
    free = ray.available_resources().get(kind, 0.0)
    noun = "worker takes" if needed == 1 else "workers take"
    return (
        f"{needed} {noun} {needed} {kind}s, the cluster declares {declared:g}, "
        f"and {free:g} of them are free"
    )
