"""The Ray session that a command runs in: an existing cluster where RAY_ADDRESS names one, else a local one."""

from __future__ import annotations

import gc
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pandas as pd
import ray
import ray.data

from raytrain.distributed import environment
from raytrain.distributed.messages import terminates_as_interrupt
from raytrain.distributed.stop_signals import hangups_blocked
from raytrain.errors import RaytrainError, ResourceError
from raytrain.log import duration
from raytrain.output import outlive_reader


@contextmanager
def session() -> Iterator[None]:
    """Connects to Ray, and ends the session again if this call started it.

    Without RAY_ADDRESS the cluster is a new, local one: an accidental hit on a stranger's cluster would run there.

    Raises:
        ConfigError: a variable of the environment is one with which Ray would not start.
        ResourceError: the cluster at RAY_ADDRESS cannot be reached.
    """
    outlive_reader()
    if ray.is_initialized():
        yield
        return
    remote = environment.check()
    try:
        with _native_stderr_muted(), hangups_blocked():
            # A session that ends with its command needs no dashboard, which takes memory and a part of a core.
            local = {} if remote else {"address": "local", "include_dashboard": False}
            ray.init(**local, log_to_driver=False, logging_level=logging.ERROR)
            if not remote:
                _end_idle_processes()
    except ConnectionError as error:
        raise ResourceError(
            f"no Ray cluster answers at {os.environ['RAY_ADDRESS']}: {str(error).splitlines()[0]}",
            "RAY_ADDRESS names the cluster to use",
            "ray status; or unset RAY_ADDRESS to run on this machine; with token authentication: export RAY_AUTH_MODE=token",
        ) from None
    terminates_as_interrupt()
    try:
        yield
    finally:
        ray.shutdown()


def _end_idle_processes() -> None:
    """Ends two processes of a new session, which poll for nothing: one forwards logs to the driver, one asks for machines.

    `ray.init` has no setting for them.
    """
    node = ray._private.worker._global_node
    node.kill_log_monitor(check_alive=False)
    node.kill_monitor(check_alive=False)


@contextmanager
def _native_stderr_muted() -> Iterator[None]:
    """Mutes what Ray's C++ part writes while it starts: it announces its own log level on the terminal."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def own_cause(error: BaseException) -> BaseException:
    """Our own error inside Ray's wrappers, or Ray's where it is none of ours."""
    failures = getattr(error, "worker_failures", {})
    for failure in [*failures.values(), error]:
        seen: BaseException | None = failure
        while seen is not None:
            # Ray makes an error that is of both kinds; its `cause` is the one that was raised.
            if isinstance(seen, RaytrainError) and not isinstance(seen, ray.exceptions.RayError):
                return seen
            seen = (
                getattr(seen, "cause", None)
                or getattr(seen, "controller_failure", None)
                or seen.__cause__
            )
    return error


def blocks_of(data: ray.data.Dataset) -> Iterator[pd.DataFrame]:
    """The results of a Ray Data dataset, block by block as they come; our own errors without Ray's wrapping."""
    try:
        yield from data.iter_batches(batch_size=None, batch_format="pandas")
        return
    except ray.exceptions.RayError as error:
        cause = own_cause(error)
        if cause is error:
            raise
    # Ray's error and the pool of actors refer to each other: while either is known, the pool keeps its CPUs.
    gc.collect()
    raise cause


def cpus() -> int:
    """CPUs the cluster declares, or this machine has where no cluster is connected."""
    if ray.is_initialized():
        return int(ray.cluster_resources().get("CPU", 0))
    return len(os.sched_getaffinity(0))


def quiet_dataset(blocks: list[pd.DataFrame]) -> ray.data.Dataset:
    """A Ray Data dataset with one block per table, without bars and banners."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Otherwise Ray wraps it into an error of its own that forgets, on its way between processes, what it wrapped.
    context.raise_original_map_exception = True
    # The pool is fixed; waiting for all of it makes even a short job use every process.
    context.wait_for_min_actors_s = 60
    # What goes wrong is raised; logged as well, it would be a traceback on the user's screen.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    return ray.data.from_pandas(blocks)


def to_go(done: int, total: int, began: float) -> str:
    """`0:42 to go`, from the share that is done since the monotonic time `began`."""
    return f"{duration((time.monotonic() - began) / done * (total - done))} to go"


def actors(blocks: int) -> ray.data.ActorPoolStrategy:
    """A pool of one process per CPU of the cluster, but not more than there are blocks; a second block waits at each."""
    return ray.data.ActorPoolStrategy(
        size=max(1, min(cpus(), blocks)), max_tasks_in_flight_per_actor=2
    )
