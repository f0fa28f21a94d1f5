"""The Ray session that a command runs in, and what commands ask of its cluster.

The session is on an existing cluster if RAY_ADDRESS names one, and on a new local one otherwise.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pandas as pd
import ray
import ray.data

from raytrain.distributed import environment
from raytrain.distributed.messages import terminates_as_interrupt
from raytrain.distributed.stop_signals import hangups_blocked
from raytrain.errors import RaytrainError, ResourceError
from raytrain.log import duration
from raytrain.machine import usable_cpus
from raytrain.output import outlive_reader

logger = logging.getLogger(__name__)

# Seconds that a command waits for its pool of processes. A busy cluster frees CPUs, and a new
# machine of the autoscaler has joined after several minutes.
POOL_PATIENCE = 1800
# Seconds until the user is told about that wait.
POOL_REMINDER = 60


@contextmanager
def session() -> Iterator[None]:
    """Connects to Ray, and disconnects at the end. Inside an open session it does nothing.

    Without RAY_ADDRESS it starts a new local cluster. By itself Ray would also connect to a cluster
    of another user that happens to run on this machine.

    Raises:
        ConfigError: Ray would not start with a variable of the environment.
        ResourceError: the cluster at RAY_ADDRESS cannot be reached.
    """
    outlive_reader()
    if ray.is_initialized():
        yield
        return
    _connect(is_running=environment.check())
    terminates_as_interrupt()
    try:
        yield
    finally:
        ray.shutdown()


def _connect(is_running: bool) -> None:
    """Connects to the cluster at RAY_ADDRESS if one is running, else starts a local one."""
    options: dict[str, Any] = {}
    if not is_running:
        # A session that ends with its command needs no dashboard, which takes memory and CPU time.
        # By itself Ray would count CPUs that this process may not use (taskset, Slurm).
        options = {"address": "local", "include_dashboard": False, "num_cpus": usable_cpus()}
    try:
        with _native_stderr_muted(), hangups_blocked():
            ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
            if not is_running:
                _end_idle_processes()
    except ConnectionError as error:
        first_line = str(error).splitlines()[0]
        raise ResourceError(
            f"no Ray cluster answers at {os.environ['RAY_ADDRESS']}: {first_line}",
            "RAY_ADDRESS names the cluster to use",
            "ray status; or unset RAY_ADDRESS to run on this machine; "
            "with token authentication: export RAY_AUTH_MODE=token",
        ) from None
    except Exception as error:
        # Ray raises a plain Exception where its own processes have not answered for half a minute.
        if "timed out during startup" not in str(error):
            raise
        raise ResourceError(
            "Ray did not start within 30 seconds",
            "its processes got too little of the CPUs, which other programs use",
            "the same command again when the machine is less busy (uptime shows its load)",
        ) from None


def _end_idle_processes() -> None:
    """Ends two processes of a new session that poll although they have nothing to do.

    They are the log monitor, which forwards logs to the driver, and the autoscaler's monitor.
    `ray.init` has no option to leave them out.
    """
    node = ray._private.worker._global_node
    node.kill_log_monitor(check_alive=False)
    node.kill_monitor(check_alive=False)


@contextmanager
def _native_stderr_muted() -> Iterator[None]:
    """Hides what Ray's C++ code writes to standard error: it prints its own log level at the start.

    That code writes to file descriptor 2, so replacing sys.stderr would not be enough.
    """
    sys.stderr.flush()
    original = os.dup(2)
    with open(os.devnull, "wb") as null:
        os.dup2(null.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(original, 2)
        os.close(original)


def own_cause(error: BaseException) -> BaseException:
    """Returns the RaytrainError inside Ray's wrappers, or the given error if there is none."""
    failures = getattr(error, "worker_failures", {})
    for failure in [*failures.values(), error]:
        cause: BaseException | None = failure
        while cause is not None:
            # Ray raises an instance of a class that inherits from both the original error's class
            # and its own. The original error is in its `cause`.
            if isinstance(cause, RaytrainError) and not isinstance(cause, ray.exceptions.RayError):
                return cause
            cause = _wrapped_in(cause)
    return error


def _log_wait() -> None:
    """Says that a pool of processes has not started yet."""
    logger.info("waiting for free CPUs or GPUs: ray status shows who uses them")


def _wrapped_in(error: BaseException) -> BaseException | None:
    """Returns the error inside an error: in one of Ray's attributes, or as Python's cause."""
    inner: BaseException | None = getattr(error, "cause", None)
    return inner or getattr(error, "controller_failure", None) or error.__cause__


def blocks_of(data: ray.data.Dataset) -> Iterator[pd.DataFrame]:
    """Yields the results of a Ray Data dataset, one table per block, as they arrive.

    Raises:
        RaytrainError: raised by our own code in a worker; without Ray's wrappers.
        ResourceError: no process could start within `POOL_PATIENCE`.
        RayError: any other failure.
    """
    reminder = threading.Timer(POOL_REMINDER, _log_wait)
    reminder.daemon = True
    reminder.start()
    try:
        for block in data.iter_batches(batch_size=None, batch_format="pandas"):
            reminder.cancel()
            yield block
        return
    except ray.exceptions.GetTimeoutError:
        raise ResourceError(
            f"the cluster started no process for this command within {duration(POOL_PATIENCE)}",
            "other commands hold its CPUs or GPUs, or its machines are overloaded",
            "ray status shows who uses them; then give the same command again",
        ) from None
    except ray.exceptions.RayError as error:
        cause = own_cause(error)
        if cause is error:
            raise
    finally:
        reminder.cancel()
    # Ray's error and the pool of actors refer to each other. Until the garbage collector has
    # removed both, the pool keeps its CPUs.
    gc.collect()
    raise cause


def cpus() -> int:
    """Returns the number of CPUs of the cluster, or of this machine outside a session."""
    if ray.is_initialized():
        return int(ray.cluster_resources().get("CPU", 0))
    return usable_cpus()


def quiet_dataset(blocks: list[pd.DataFrame]) -> ray.data.Dataset:
    """Returns a Ray Data dataset with one block per table. It prints no progress bars or logs."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Otherwise Ray wraps the error into one of its own, which loses the original error when it is
    # passed between processes.
    context.raise_original_map_exception = True
    # The pool has a fixed size, and without this wait a short job may use only the first actors
    # that have started.
    context.wait_for_min_actors_s = POOL_PATIENCE
    # Errors are raised. If Ray logged them as well, the user would see a traceback.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    # Not `from_pandas`: its tasks only count rows, and would wait for a free CPU without a word.
    return ray.data.from_blocks(blocks)


def to_go(done: int, total: int, began: float) -> str:
    """Returns the estimated remaining time as text, such as `0:42 to go`.

    Args:
        done: number of finished items, at least 1.
        total: number of all items.
        began: when the first item was started, by `time.monotonic()`.
    """
    seconds_per_item = (time.monotonic() - began) / done
    return f"{duration(seconds_per_item * (total - done))} to go"


def actors(blocks: int) -> ray.data.ActorPoolStrategy:
    """Returns a pool with one process per CPU of the cluster, but no more than there are blocks."""
    size = max(1, min(cpus(), blocks))
    # While an actor works on one block, its next one is already sent to it.
    return ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=2)
