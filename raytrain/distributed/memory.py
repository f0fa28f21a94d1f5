"""Whether a run fits into this machine's memory, known before anything starts.

Only a session on this machine is judged: what the machines of a cluster have, their own Ray watches.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace

import torch

from raytrain import machine
from raytrain.config import Recipe
from raytrain.distributed import gpus
from raytrain.errors import ResourceError
from raytrain.models.precision import agreed_precision
from raytrain.training.footprint import footprint

# Measured on two cores with torch 2.15 and Ray 2.60, as proportional set sizes (docs/speed.md, Memory).
WORKER_BYTES = 800_000_000  # Python, torch, Ray: before there is a network
RAY_BYTES = 1_900_000_000  # this command, Ray's servers and the run's controller
MOST_ACCUMULATE = 64
# What Ray's processes take to end after their session.
ENDING_S = 10.0


@dataclass(frozen=True)
class Need:
    """Bytes that a run needs: of a worker, and of all its processes."""

    workers: int
    worker: int

    @property
    def total(self) -> int:
        """Bytes of all processes."""
        return RAY_BYTES + self.workers * self.worker

    def __str__(self) -> str:
        noun = "worker" if self.workers == 1 else "workers"
        return (
            f"{self.total / 1e9:.1f} GB: {self.workers} {noun} of {self.worker / 1e9:.1f} GB and "
            f"{RAY_BYTES / 1e9:.1f} GB for Ray and this command"
        )


def needed(recipe: Recipe, classes: int) -> Need:
    """The memory that a run needs on this machine; workers on GPUs hold the copies of a save there, and no step.

    Args:
        recipe: complete.
        classes: of the dataset.
    """
    on_gpu = recipe.use_gpu is not False and gpus.seen().count > 0
    device = torch.device("cpu")
    precision = agreed_precision(recipe.train.precision, device, world=1)
    recipe = recipe.model_copy(
        update={"train": recipe.train.model_copy(update={"precision": precision})}
    )
    found = footprint(recipe, classes, device)
    return Need(recipe.num_workers, WORKER_BYTES + (found.state if on_gpu else found.total))


def available() -> machine.Memory | None:
    """The memory that a run may use; what this process holds already is part of what the run needs."""
    found = machine.memory()
    if found is None:
        return None
    return replace(found, free=min(found.whole, found.free + machine.resident()))


def check_memory(recipe: Recipe, classes: int) -> None:
    """Refuses a run that cannot fit into this machine; one on a cluster is not judged.

    Raises:
        ResourceError: with the command that fits, where one does.
    """
    if "RAY_ADDRESS" in os.environ:
        return
    need = needed(recipe, classes)
    bound = _awaited(need.total)
    if bound is None or need.total <= bound.free:
        return
    raise ResourceError(
        f"this run needs {need}; {bound.free / 1e9:.1f} GB are {bound.bound}",
        "the kernel would kill a worker again and again",
        _smaller(recipe, classes, bound.free)
        or f"a machine or a container with {need.total / 1e9:.0f} GB",
    )


def _awaited(total: int) -> machine.Memory | None:
    """The memory that there is; where it is too little, after the processes of a session that has just ended are gone."""
    end = time.monotonic() + ENDING_S
    while (bound := available()) and bound.free < total <= bound.whole and time.monotonic() < end:
        time.sleep(0.2)
    return bound


def workers_that_fit(recipe: Recipe, classes: int) -> int:
    """The number of workers, at most the recipe's, that this machine's memory has room for; 0 where not one fits."""
    bound = available() if "RAY_ADDRESS" not in os.environ else None
    workers = recipe.num_workers
    while bound and workers and not _fits(recipe, classes, bound.free, num_workers=workers):
        workers -= 1
    return workers


def trials_that_fit(recipe: Recipe, classes: int) -> int | None:
    """How many trials of one worker each this machine's memory has room for at a time; None where that is not known.

    Raises:
        ResourceError: not even one fits.
    """
    alone = recipe.model_copy(update={"num_workers": 1})
    check_memory(alone, classes)
    bound = available() if "RAY_ADDRESS" not in os.environ else None
    if bound is None:
        return None
    return max(1, (bound.free - RAY_BYTES) // needed(alone, classes).worker)


def _smaller(recipe: Recipe, classes: int, free: int) -> str:
    """Flags with which the run would fit; empty where none were found."""
    for workers in range(recipe.num_workers - 1, 0, -1):
        if _fits(recipe, classes, free, num_workers=workers):
            return f"--num-workers {workers}"
    passes = 2 * recipe.train.accumulate
    while passes <= min(MOST_ACCUMULATE, recipe.train.batch_size // 2):
        train = recipe.train.model_copy(update={"accumulate": passes})
        if _fits(recipe.model_copy(update={"train": train}), classes, free, num_workers=1):
            return f"--num-workers 1 --train.accumulate {passes}"
        passes *= 2
    return ""


def _fits(recipe: Recipe, classes: int, free: int, *, num_workers: int) -> bool:
    return needed(recipe.model_copy(update={"num_workers": num_workers}), classes).total <= free
