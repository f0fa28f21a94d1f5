"""Estimates before anything starts whether a run fits into the memory of this machine.

Only a local session is checked. On a cluster, Ray watches the memory of its machines itself.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace

import torch

from raytrain import machine, memory
from raytrain.config import Recipe
from raytrain.errors import ResourceError
from raytrain.machine import usable_cpus
from raytrain.models.precision import agreed_precision
from raytrain.training.footprint import footprint

# Measured on two cores with torch 2.15 and Ray 2.60, as proportional set sizes
# (docs/speed.md, Memory).
WORKER_BYTES = 800_000_000  # Python, torch and Ray, before there is a network
RAY_BYTES = 1_900_000_000  # this command, Ray's servers and the controller of the run
# What each group of workers has beside them: a controller, a mailbox, and the actor at which its
# workers wait for each other. The ones of a single run are part of RAY_BYTES.
CONTROLLER_BYTES = 650_000_000
# Largest number of passes per step that is recommended to a user.
MOST_ACCUMULATE = 64
# Seconds that Ray's processes may take to end after their session.
ENDING_S = 10.0
# Seconds between two looks at the free memory.
LOOK_EVERY_S = 0.2


@dataclass(frozen=True)
class Need:
    """The memory that a run needs.

    Attributes:
        workers: number of worker processes.
        worker: bytes of one worker.
    """

    workers: int
    worker: int

    @property
    def total(self) -> int:
        """Bytes of all processes together."""
        return RAY_BYTES + self.workers * self.worker

    def __str__(self) -> str:
        noun = "worker" if self.workers == 1 else "workers"
        return (
            f"{self.total / 1e9:.1f} GB: {self.workers} {noun} of {self.worker / 1e9:.1f} GB and "
            f"{RAY_BYTES / 1e9:.1f} GB for Ray and this command"
        )


def needed(recipe: Recipe, classes: int, channels: int = 3) -> Need:
    """The memory that a run needs on this machine.

    Args:
        recipe: complete.
        classes: number of classes of the dataset.
        channels: of its tiles.
    """
    cpu = torch.device("cpu")
    precision = agreed_precision(recipe.train.precision, cpu, world=1)
    train = recipe.train.model_copy(update={"precision": precision})
    found = footprint(recipe.model_copy(update={"train": train}), classes, cpu, channels)
    if recipe.use_gpu is not False and machine.seen_gpus().count > 0:
        # Activations stay on the GPU. The host holds the copies that a checkpoint is written from,
        # which are no larger than the state.
        worker = WORKER_BYTES + found.state
    else:
        worker = WORKER_BYTES + found.total
    # A local session has no room for more workers than CPUs.
    workers = max(recipe.num_workers, min(recipe.most_workers, usable_cpus()))
    return Need(workers, worker)


def available() -> memory.Memory | None:
    """The memory that a run may use, or None where the system does not report it.

    What this process already holds counts as available, because `RAY_BYTES` includes it.
    """
    found = memory.left()
    if found is None:
        return None
    return replace(found, free=min(found.whole, found.free + memory.resident()))


def check_memory(recipe: Recipe, classes: int, channels: int = 3) -> None:
    """Refuses a run that cannot fit into the memory of this machine.

    Args:
        recipe: complete.
        classes: number of classes of the dataset.
        channels: of its tiles.

    Raises:
        ResourceError: with flags under which the run would fit, if there are some.
    """
    if _uses_cluster():
        return
    need = needed(recipe, classes, channels)
    bound = _available_after_wait(need.total)
    if bound is None or need.total <= bound.free:
        return
    fix = _smaller_run(recipe, classes, channels, bound.free)
    if not fix:
        fix = f"a machine or a container with {need.total / 1e9:.0f} GB"
    raise ResourceError(
        f"this run needs {need}; {bound.free / 1e9:.1f} GB are {bound.bound}",
        "the kernel would kill a worker again and again",
        fix,
    )


def _uses_cluster() -> bool:
    """Whether the command connects to a cluster, whose machines have memory of their own."""
    return "RAY_ADDRESS" in os.environ


def _local_bound() -> memory.Memory | None:
    """`available`, or None where the run uses a cluster."""
    if _uses_cluster():
        return None
    return available()


def _available_after_wait(total: int) -> memory.Memory | None:
    """`available`, read again for some seconds as long as it is smaller than `total` bytes.

    The processes of a session that has just ended hold memory until they are gone.
    """
    deadline = time.monotonic() + ENDING_S
    bound = available()
    # Waiting does not help where the whole machine is too small.
    while bound is not None and bound.free < total <= bound.whole:
        if time.monotonic() >= deadline:
            break
        time.sleep(LOOK_EVERY_S)
        bound = available()
    return bound


def workers_that_fit(recipe: Recipe, classes: int) -> int:
    """The largest number of workers, at most the recipe's, that fits into this machine's memory.

    Args:
        recipe: complete.
        classes: number of classes of the dataset.

    Returns:
        0 where not even one fits. The recipe's number where the memory is unknown or a cluster
        is used.
    """
    bound = _local_bound()
    if bound is None:
        return recipe.num_workers
    for workers in range(recipe.num_workers, 0, -1):
        if _fits(recipe, classes, 3, bound.free, workers):
            return workers
    return 0


def groups_that_fit(recipe: Recipe, classes: int, channels: int = 3) -> int | None:
    """How many worker groups of a recipe fit into this machine's memory at the same time.

    Args:
        recipe: complete, with the number of workers of each group.
        classes: number of classes of the dataset.
        channels: of its tiles.

    Returns:
        At least 1: `check_memory` is what refuses. None where the memory is unknown or a cluster is
        used.
    """
    need = needed(recipe, classes, channels)
    each = CONTROLLER_BYTES + need.workers * need.worker
    return _at_once(each, RAY_BYTES - CONTROLLER_BYTES)


def trials_that_fit(recipe: Recipe, classes: int, channels: int = 3) -> int | None:
    """How many trials of a search fit into this machine's memory at the same time.

    Args:
        recipe: complete. A trial of several workers is a process that has a group of them.
        classes: number of classes of the dataset.
        channels: of its tiles.

    Returns:
        None where the memory is unknown or a cluster is used.

    Raises:
        ResourceError: not even one trial fits.
    """
    check_memory(recipe, classes, channels)
    need = needed(recipe, classes, channels)
    if need.workers == 1:
        return _at_once(need.worker, RAY_BYTES)
    each = WORKER_BYTES + CONTROLLER_BYTES + need.workers * need.worker
    return _at_once(each, RAY_BYTES - CONTROLLER_BYTES)


def _at_once(each: int, once: int) -> int | None:
    """How many of something fit into the memory of this machine; at least 1.

    Args:
        each: bytes of each of them.
        once: bytes that are needed once for all.

    Returns:
        None where the memory is unknown or a cluster is used.
    """
    bound = _local_bound()
    if bound is None:
        return None
    return max(1, (bound.free - once) // each)


def _smaller_run(recipe: Recipe, classes: int, channels: int, free: int) -> str:
    """Flags under which the run fits into `free` bytes, or an empty string where none are found.

    Fewer workers are tried first, because each one holds all weights. A single worker can save
    memory only by splitting its batch into more passes.
    """
    for workers in range(recipe.num_workers - 1, 0, -1):
        if _fits(recipe, classes, channels, free, workers):
            return f"--num-workers {workers}"
    # A pass of a single tile has no statistics for BatchNorm, so 2 tiles are the smallest.
    most = min(MOST_ACCUMULATE, recipe.train.batch_size // 2)
    passes = 2 * recipe.train.accumulate
    while passes <= most:
        train = recipe.train.model_copy(update={"accumulate": passes})
        if _fits(recipe.model_copy(update={"train": train}), classes, channels, free, workers=1):
            return f"--num-workers 1 --train.accumulate {passes}"
        passes *= 2
    return ""


def _fits(recipe: Recipe, classes: int, channels: int, free: int, workers: int) -> bool:
    """Whether the recipe with this number of workers needs at most `free` bytes."""
    need = needed(recipe.model_copy(update={"num_workers": workers}), classes, channels)
    return need.total <= free
