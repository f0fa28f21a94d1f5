"""Which failures of a worker group are worth another start: the death of a process, not a mistake that comes again."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import ray
import ray.train
from torch.distributed import DistError

from raytrain import machine, storage
from raytrain.checkpoints import layout, reading
from raytrain.distributed.cluster import own_cause
from raytrain.errors import RaytrainError, ResourceError

# What the others raise when a rank has died speaks of what connected them; torch has a type of its own only for some of it.
CONNECTIONS = ("gloo", "NCCL", "CUDA error")
# Starts of the group that may fail one after the other without a newer checkpoint: some fault that comes again.
MOST_IN_VAIN = 5
# Another process may have taken the memory once; twice at the same place, the run itself needs more than there is.
MOST_OUT_OF_MEMORY = 2
NAMED_HOLDERS = 4


class Judge:
    """Decides after each failure of the group; counts those that came since the run got further."""

    def __init__(self, directory: str) -> None:
        """Takes the run's `checkpoints` folder."""
        self.directory, self.reached = directory, layout.BEGINNING
        self.failures, self.out_of_memory = 0, 0
        self.kills = machine.kills()
        self.held: list[tuple[str, int]] = []

    def look(self) -> None:
        """Notes which processes hold how much memory; asked after a kill, the largest of them is gone."""
        now = machine.holders()
        if _sum(now) > _sum(self.held):
            self.held = now

    def verdict(self, failures: Mapping[int, BaseException]) -> BaseException | None:
        """What the run ends with, or None where the workers shall start again."""
        reached = reading.furthest(self.directory)
        if reached > self.reached:
            self.reached, self.failures, self.out_of_memory = reached, 0, 0
        self.failures += 1
        if (error := self._out_of_memory(failures)) is not None:
            return error
        in_vain = next(iter(failures.values())) if self.failures > MOST_IN_VAIN else None
        return permanent_failure(failures) or in_vain

    def _out_of_memory(self, failures: Mapping[int, BaseException]) -> ResourceError | None:
        """The error to end with where a worker was killed for want of memory as often as is allowed."""
        self.look()
        by_ray = [rank for rank, failure in failures.items() if _is_out_of_memory(failure)]
        kills = machine.kills()
        dead = [
            rank
            for rank, failure in failures.items()
            if isinstance(failure, ray.exceptions.RayActorError)
        ]
        by_kernel = dead if kills > self.kills else []
        self.kills = kills
        self.out_of_memory += bool(by_ray or by_kernel)
        if self.out_of_memory < MOST_OUT_OF_MEMORY:
            return None
        if by_ray:
            return too_little_memory(by_ray[0])
        return killed_by_kernel(by_kernel[0], self.held) if by_kernel else None


def restarts(run: str, mailbox: Any) -> Any:
    """A callback for Ray's controller: ends the run at a failure that another start would only repeat.

    Args:
        run: its directory.
        mailbox: hears why the workers start again, and that no step is under way until they have.
    """
    judge = Judge(storage.join(run, "checkpoints"))

    def after_report(self: Any, run_context: Any, metrics: Any, checkpoint: Any) -> None:
        judge.look()

    def after_exception(
        self: Any, run_context: Any, worker_exceptions: Mapping[int, Exception]
    ) -> None:
        mailbox.step.remote(False)
        permanent = judge.verdict(worker_exceptions)
        if permanent is not None:
            raise permanent  # Ray starts nothing again after an error of a callback
        ranks = ", ".join(map(str, sorted(worker_exceptions)))
        text = f"rank {ranks} failed ({_first_line(worker_exceptions)}); the workers start again"
        mailbox.log.remote((logging.WARNING, text))

    # Made here, since the base has no type that mypy would let a class have.
    methods = {"after_report": after_report, "after_exception": after_exception}
    return type("Restarts", (ray.train.UserCallback,), methods)()


def permanent_failure(failures: Mapping[int, BaseException]) -> BaseException | None:
    """The failure that would come again: our own errors, a missing module, a fault in the code; None if none would.

    Where a rank has died, whatever the others raise may come of that.
    """
    for failure in failures.values():
        own = own_cause(failure)
        if isinstance(own, RaytrainError):
            return own
    if any(isinstance(failure, ray.exceptions.RayActorError) for failure in failures.values()):
        return None
    return next((failure for failure in failures.values() if not _passes(failure)), None)


def too_little_memory(rank: int) -> ResourceError:
    """The error of a run whose worker Ray has ended for want of memory as often as is allowed."""
    return ResourceError(
        f"Ray ended the worker of rank {rank} since the machine ran out of memory, for the {MOST_OUT_OF_MEMORY}nd time",
        "it would happen again; every checkpoint is kept",
        "raytrain train --resume RUN with fewer --num-workers, or a smaller --data.window-gb where tiles are streamed",
    )


def killed_by_kernel(rank: int, held: list[tuple[str, int]]) -> ResourceError:
    """The error of a run whose worker the kernel has killed for want of memory as often as is allowed.

    Args:
        rank: of the worker.
        held: name and bytes of the processes that held memory before, the largest first.
    """
    bound = machine.memory()
    names = ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in held[:NAMED_HOLDERS])
    return ResourceError(
        f"the kernel killed the worker of rank {rank} for want of memory, for the {MOST_OUT_OF_MEMORY}nd time; "
        f"{bound.free / 1e9 if bound else 0:.1f} GB are {bound.bound if bound else 'free'}",
        f"it would happen again; every checkpoint is kept. What held most: {names}",
        "raytrain train --resume RUN with fewer --num-workers; --dry-run says what a run needs",
    )


def _sum(held: list[tuple[str, int]]) -> int:
    return sum(size for _, size in held)


def _is_out_of_memory(failure: BaseException) -> bool:
    return isinstance(failure, ray.exceptions.OutOfMemoryError) or "OutOfMemoryError" in str(
        failure
    )


def _passes(failure: BaseException) -> bool:
    if isinstance(failure, RuntimeError) and not isinstance(failure, DistError):
        return any(word in str(failure) for word in CONNECTIONS) or isinstance(
            failure, ray.exceptions.RayError
        )
    return (
        isinstance(failure, ray.exceptions.RayError | OSError | DistError)
        or "HealthCheck" in type(failure).__name__
    )


def _first_line(failures: Mapping[int, BaseException]) -> str:
    failure = next(iter(failures.values()))
    return next(iter(str(failure).strip().splitlines()), type(failure).__name__)
