"""Decides after each failure of the workers whether they start again or the run ends.

The death of a process is worth another start. An error that the next start would only repeat is
not.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import ray
import ray.train
from torch.distributed import DistError

from raytrain import memory, storage
from raytrain.checkpoints import layout, reading
from raytrain.distributed.session import own_cause
from raytrain.errors import RaytrainError, ResourceError

# When one rank dies, the errors of the others name what connected them to it. torch has an error
# class of its own (DistError) only for some of these, and raises RuntimeError for the rest.
CONNECTIONS = ("gloo", "NCCL", "CUDA error")
# Starts that may fail in a row without a newer checkpoint. More mean that the fault comes again.
MOST_IN_VAIN = 5
# Another process may have used up the memory once. The second time without a newer checkpoint, the
# run itself needs more than there is.
MOST_OUT_OF_MEMORY = 2
# The same number as the messages write it.
TIMES_OUT_OF_MEMORY = "for the 2nd time"
# How many processes the message of a kill by the kernel names.
NAMED_HOLDERS = 4

# What failed in each failed rank.
Failures = Mapping[int, BaseException]


class Judge:
    """Decides after each failure of the group, by the failures since the last progress."""

    def __init__(self, directory: str) -> None:
        """Starts to count.

        Args:
            directory: the run's `checkpoints` directory.
        """
        self.directory = directory
        # How far the newest checkpoint is.
        self.reached = layout.BEGINNING
        # Failures, and those of them for lack of memory, since then.
        self.failures = 0
        self.out_of_memory = 0
        # The kernel's counter of kills when it was last read.
        self.kills = memory.kills()
        # (name, bytes) of the processes when they were seen to use most memory together.
        self.held: list[tuple[str, int]] = []

    def look(self) -> None:
        """Notes how much memory each process uses, if it is more than ever before in total.

        It is called while the group runs. After a kill the largest process is gone.
        """
        now = memory.holders()
        if _total_bytes(now) > _total_bytes(self.held):
            self.held = now

    def verdict(self, failures: Failures) -> BaseException | None:
        """Returns the error that ends the run, or None if the workers shall start again.

        Args:
            failures: what failed in each failed rank; not empty.
        """
        reached = reading.furthest(self.directory)
        if reached > self.reached:
            self.reached = reached
            self.failures = 0
            self.out_of_memory = 0
        self.failures += 1
        error = self._out_of_memory(failures) or permanent_failure(failures)
        if error is not None:
            return error
        if self.failures > MOST_IN_VAIN:
            return _first(failures)
        return None

    def _out_of_memory(self, failures: Failures) -> ResourceError | None:
        """Counts a failure for lack of memory. Returns the error if there were too many."""
        self.look()
        # Ray ends a worker before the memory is used up, and says so.
        by_ray = [rank for rank, failure in failures.items() if _is_out_of_memory(failure)]
        # The kernel kills without a trace in the worker's error, which is that of any dead process.
        # Its counter tells the difference.
        kills = memory.kills()
        by_kernel = []
        if kills > self.kills:
            by_kernel = [rank for rank, failure in failures.items() if _is_dead(failure)]
        self.kills = kills
        if by_ray or by_kernel:
            self.out_of_memory += 1
        if self.out_of_memory < MOST_OUT_OF_MEMORY:
            return None
        if by_ray:
            return too_little_memory(by_ray[0])
        if by_kernel:
            return killed_by_kernel(by_kernel[0], self.held)
        return None


def restarts(run: str, mailbox: Any) -> Any:
    """Returns a callback for Ray Train that ends the run at a failure that would only be repeated.

    Ray calls it in the process of its controller.

    Args:
        run: the run's directory.
        mailbox: handle of the mailbox. It gets a message when the workers start again.
    """
    judge = Judge(storage.join(run, "checkpoints"))

    def after_report(self: Any, run_context: Any, metrics: Any, checkpoint: Any) -> None:
        judge.look()

    def after_exception(
        self: Any, run_context: Any, worker_exceptions: Mapping[int, Exception]
    ) -> None:
        # The group has ended. Until the next one trains, a signal ends the run at once.
        mailbox.step.remote(False)
        permanent = judge.verdict(worker_exceptions)
        if permanent is not None:
            # After an error of a callback Ray starts nothing again.
            raise permanent
        ranks = ", ".join(str(rank) for rank in sorted(worker_exceptions))
        text = f"rank {ranks} failed ({_first_line(worker_exceptions)}); the workers start again"
        mailbox.log.remote((logging.WARNING, text))

    # `type()` in place of a class statement: mypy does not know the type of the base class.
    methods = {"after_report": after_report, "after_exception": after_exception}
    return type("Restarts", (ray.train.UserCallback,), methods)()


def permanent_failure(failures: Failures) -> BaseException | None:
    """Returns the failure that the next start would repeat; None if there is none.

    These are our own errors, missing modules and faults in the code. If a rank has died, the errors
    of the others may be its consequence, so only our own errors count.
    """
    for failure in failures.values():
        own = own_cause(failure)
        if isinstance(own, RaytrainError):
            return own
    if any(_is_dead(failure) for failure in failures.values()):
        return None
    for failure in failures.values():
        if not _may_pass(failure):
            return failure
    return None


def too_little_memory(rank: int) -> ResourceError:
    """Returns the error of a run whose worker Ray has ended for lack of memory too often."""
    return ResourceError(
        f"Ray ended the worker of rank {rank} since the machine ran out of memory, "
        f"{TIMES_OUT_OF_MEMORY}",
        "it would happen again; every checkpoint is kept",
        "raytrain train --resume RUN with fewer --num-workers, "
        "or a smaller --data.window-gb where tiles are streamed",
    )


def killed_by_kernel(rank: int, held: list[tuple[str, int]]) -> ResourceError:
    """Returns the error of a run whose worker the kernel has killed for lack of memory too often.

    Args:
        rank: of the worker.
        held: (name, bytes) of the processes that used memory before the kill, the largest first.
    """
    left = "0.0 GB are free"
    bound = memory.left()
    if bound is not None:
        left = f"{bound.free / 1e9:.1f} GB are {bound.bound}"
    names = ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in held[:NAMED_HOLDERS])
    return ResourceError(
        f"the kernel killed the worker of rank {rank} since the memory was used up, "
        f"{TIMES_OUT_OF_MEMORY}; {left}",
        f"it would happen again; every checkpoint is kept. What used most memory: {names}",
        "raytrain train --resume RUN with fewer --num-workers; --dry-run says what a run needs",
    )


def _total_bytes(held: list[tuple[str, int]]) -> int:
    return sum(size for _, size in held)


def _is_dead(failure: BaseException) -> bool:
    """Returns whether the worker's process has ended, for whatever reason."""
    return isinstance(failure, ray.exceptions.RayActorError)


def _is_out_of_memory(failure: BaseException) -> bool:
    # An error that wraps it shows the name of the class only in its text.
    is_direct = isinstance(failure, ray.exceptions.OutOfMemoryError)
    return is_direct or "OutOfMemoryError" in str(failure)


def _may_pass(failure: BaseException) -> bool:
    """Returns whether another start may succeed after this failure."""
    if isinstance(failure, ray.exceptions.RayError | DistError):
        return True
    # Other RuntimeErrors are mostly faults in the code, such as wrong shapes.
    if isinstance(failure, RuntimeError):
        return any(word in str(failure) for word in CONNECTIONS)
    # The names of Ray's internal errors for a worker that does not answer contain "HealthCheck".
    return isinstance(failure, OSError) or "HealthCheck" in type(failure).__name__


def _first(failures: Failures) -> BaseException:
    return next(iter(failures.values()))


def _first_line(failures: Failures) -> str:
    failure = _first(failures)
    lines = str(failure).strip().splitlines()
    if not lines:
        return type(failure).__name__
    return lines[0]
