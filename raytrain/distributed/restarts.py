"""Which failures of a worker group are worth another start: the death of a process, not a mistake that comes again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
import ray.train
from ray.util.queue import Queue

from raytrain.distributed.cluster import own_cause
from raytrain.errors import RaytrainError, ResourceError

# What the others raise when a rank has died speaks of what connected them; torch gives it no type of its own.
CONNECTIONS = ("gloo", "NCCL", "CUDA error")
# Another process may have taken the memory once; twice, the run itself needs more than there is.
MOST_OUT_OF_MEMORY = 2


def restarts(lines: Queue) -> Any:
    """A callback for Ray's controller: ends the run at a failure that another start would only repeat.

    Args:
        lines: hears why the workers start again.
    """

    out_of_memory = 0

    def after_exception(self: Any, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        nonlocal out_of_memory
        permanent = permanent_failure(worker_exceptions)
        killed = [rank for rank, failure in worker_exceptions.items() if _is_out_of_memory(failure)]
        out_of_memory += bool(killed)
        if out_of_memory == MOST_OUT_OF_MEMORY:
            permanent = too_little_memory(killed[0])
        if permanent is not None:
            raise permanent  # Ray starts nothing again after an error of a callback
        ranks = ", ".join(map(str, sorted(worker_exceptions)))
        lines.put(f"rank {ranks} failed ({_first_line(worker_exceptions)}); the workers start again")

    # Made here, since the base has no type that mypy would let a class have.
    return type("Restarts", (ray.train.UserCallback,), {"after_exception": after_exception})()


def permanent_failure(failures: Mapping[int, BaseException]) -> BaseException | None:
    """The failure that would come again: our own errors, a missing module, a fault in the code; None if none would."""
    for failure in failures.values():
        own = own_cause(failure)
        if isinstance(own, RaytrainError):
            return own
    return next((failure for failure in failures.values() if not _passes(failure)), None)


def too_little_memory(rank: int) -> ResourceError:
    """The error of a run whose worker Ray has ended for want of memory as often as is allowed."""
    return ResourceError(
        f"Ray ended the worker of rank {rank} since the machine ran out of memory, for the {MOST_OUT_OF_MEMORY}nd time",
        "it would happen again; every checkpoint is kept",
        "raytrain train --resume RUN with fewer --num-workers, or a smaller --data.window-gb where tiles are streamed",
    )


def _is_out_of_memory(failure: BaseException) -> bool:
    return isinstance(failure, ray.exceptions.OutOfMemoryError) or "OutOfMemoryError" in str(failure)


def _passes(failure: BaseException) -> bool:
    if isinstance(failure, RuntimeError):
        return any(word in str(failure) for word in CONNECTIONS) or isinstance(failure, ray.exceptions.RayError)
    return isinstance(failure, ray.exceptions.RayError | OSError) or "HealthCheck" in type(failure).__name__


def _first_line(failures: Mapping[int, BaseException]) -> str:
    failure = next(iter(failures.values()))
    return next(iter(str(failure).strip().splitlines()), type(failure).__name__)
