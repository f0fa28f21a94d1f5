"""How the driver and the workers exchange messages, and how a signal stops a run.

`ray job stop` and `kill` reach only the driver's process, but the workers run in other processes,
often on other machines. A `Mailbox` actor on the driver's machine connects them:

- Workers leave log messages there, which the driver logs (`mailbox`, `log_in_driver`).
- The driver leaves a reason to stop there (`Outbox`). Rank 0 learns of it (`Inbox`), saves a
  checkpoint after its next step and stops.
- Ranks note there when a checkpoint is being written (`GroupSaves`).

Both sides wait inside the actor for what comes. Polling would take CPU time from the training step.
"""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raytrain.distributed.stop_signals import handled, stopping_signals
from raytrain.errors import Interrupted
from raytrain.log import current_label, labelled
from raytrain.training.watchdog import Saves

logger = logging.getLogger(__name__)

# Seconds between two deliveries of a signal that was caught.
DELIVER_EVERY_S = 0.5
# Seconds between two checks for machines that will be taken away. Clouds announce that half a
# minute or more before.
NODES_EVERY_S = 2.0
# Two signals within these seconds are one: a terminal or a job manager may send it both to this
# process and to its parent, which forwards it.
SAME_SIGNAL_S = 2.0
# Seconds to wait for an answer of the mailbox.
ANSWERS_S = 10.0
# Seconds between two looks for caught signals.
LOOK_EVERY_S = 0.1
# So many answers in a row that no step is under way mean that none will save a checkpoint.
IDLE_ANSWERS = 2


def _no_number() -> None:
    """There is no signal."""


@dataclass(frozen=True)
class Stop:
    """How a run learns of signals that another thread or process gets.

    Attributes:
        reason: returns the name of the signal that asks it to stop after its next step; None as
            long as there is none.
        number: returns the number of a further signal, for which whoever gets it ends the run at
            once; None as long as there is none.
    """

    reason: Callable[[], str | None]
    number: Callable[[], int | None] = _no_number


class Unstarted(Interrupted):
    """A first signal ended the command while no training step was under way.

    Nothing is lost, since there is nothing that a new checkpoint would save.
    """


class Mailbox:
    """The actor that connects the driver with the workers. Its methods are called remotely."""

    def __init__(self) -> None:
        # (level, text) of log messages for the driver. None is the end.
        self.lines: asyncio.Queue[tuple[int, str] | None] = asyncio.Queue()
        self.reason: str | None = None
        self.stopping = asyncio.Event()
        # Whether rank 0 trains, and so stops after its next step if it is asked to.
        self.stepping = False
        # Whether a checkpoint is being written, and when (time.monotonic) that last began or ended.
        self.writing = False
        self.written: float | None = None

    async def log(self, message: tuple[int, str] | None) -> None:
        """Leaves a log message, its level and text, for the driver; None after the last one."""
        self.lines.put_nowait(message)

    async def next_line(self) -> tuple[int, str] | None:
        """Waits for the next log message and returns it; None after the last one."""
        return await self.lines.get()

    async def put(self, reason: str) -> bool:
        """Leaves a reason to stop.

        Returns:
            Whether steps are under way. If so, rank 0 will stop after the next one.
        """
        self.reason = reason
        self.stopping.set()
        return self.stepping

    async def reason_to_stop(self) -> str | None:
        """Waits until there is a reason to stop and returns it."""
        await self.stopping.wait()
        return self.reason

    async def step(self, stepping: bool) -> None:
        """Notes whether rank 0 trains from now on.

        False comes when a group starts and when one has failed. A checkpoint that the failed group
        was writing will not be finished.
        """
        self.stepping = stepping
        if not stepping:
            self.writing = False

    async def write(self, writing: bool) -> None:
        """Notes that a checkpoint begins to be written, or that it is complete."""
        self.writing = writing
        self.written = time.monotonic()

    async def since_written(self) -> float:
        """Returns the seconds since a checkpoint was being written.

        0 if that is so now, infinity if no checkpoint has been written yet.
        """
        if self.writing:
            return 0.0
        if self.written is None:
            return math.inf
        return time.monotonic() - self.written


def _on_drivers_machine() -> dict[str, Any]:
    """Returns options that start an actor on the driver's machine.

    On another machine it would die with that machine, and the run with it.
    """
    node = ray.get_runtime_context().get_node_id()
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}


@contextmanager
def mailbox() -> Iterator[Any]:
    """Starts a mailbox and yields its handle. Ends it at the end.

    Messages that workers leave there are logged in this process, in their order, with the label of
    this thread (`log.labelled`). Ray's own forwarding of logs would add prefixes and duplicates.
    """
    handle = ray.remote(Mailbox).options(**_on_drivers_machine()).remote()
    thread = threading.Thread(target=_log_messages, args=(handle, current_label()), daemon=True)
    thread.start()
    try:
        yield handle
    finally:
        with suppress(ray.exceptions.RayError):
            # Ends the thread, after it has logged all messages that are left.
            handle.log.remote(None)
            thread.join(timeout=ANSWERS_S)
            ray.kill(handle)


def _log_messages(handle: Any, label: str) -> None:
    # The mailbox may be gone.
    with suppress(ray.exceptions.RayError), labelled(label):
        while True:
            message = ray.get(handle.next_line.remote())
            if message is None:
                return
            level, text = message
            logger.log(level, text)


def _note(method: Any, value: bool) -> None:
    """Calls a method of the mailbox and waits until it is done.

    Without the wait, calls could overtake each other: Ray keeps no order among calls of an actor
    with async methods.
    """
    # The driver may be gone, or not answer in time.
    with suppress(ray.exceptions.RayError):
        ray.get(method.remote(value), timeout=ANSWERS_S)


def log_in_driver(handle: Any, level: int, text: str) -> None:
    """Sends a message to the driver, which logs it. Returns when it has arrived in the mailbox."""
    ray.get(handle.log.remote((level, text)))


class GroupSaves(Saves):
    """What the ranks of a group know of each other's checkpoints, through the mailbox."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle

    def note(self, writing: bool) -> None:
        """Notes that this process begins to write a checkpoint, or that it is complete."""
        _note(self.handle.write, writing)

    def ago(self) -> float:
        """Returns the seconds since any process was writing a checkpoint.

        0 if one is now, infinity if none has yet or if the driver does not answer.
        """
        try:
            seconds: float = ray.get(self.handle.since_written.remote(), timeout=ANSWERS_S)
        except ray.exceptions.RayError:
            return math.inf
        return seconds


class Outbox:
    """The driver's side of the mailbox, for reasons to stop."""

    def __init__(self, handle: Any, *, announced: bool = False) -> None:
        """Starts.

        Args:
            handle: of the mailbox.
            announced: whether somebody else announces the checkpoint.
        """
        self.handle = handle
        # Whether a message has announced the checkpoint.
        self.announced = announced
        # How many of the last answers said that no step is under way.
        self.idle = 0

    def deliver(self, name: str) -> bool:
        """Leaves the name of a signal in the mailbox. It may be called again and again.

        Returns:
            Whether the run will end by itself, with a checkpoint. It takes several answers that no
            step is under way before this is False: the first step may have ended just before.
        """
        try:
            stepping = ray.get(self.handle.put.remote(name), timeout=ANSWERS_S)
        except ray.exceptions.RayError:
            # No answer says nothing about the steps.
            return True
        if stepping:
            self.idle = 0
        else:
            self.idle += 1
        if stepping and not self.announced:
            self.announced = True
            logger.info(
                f"{name}: a checkpoint follows after the next step, then the run stops; "
                "once more stops it at once"
            )
        return self.idle < IDLE_ANSWERS


class Inbox:
    """Rank 0's side of the mailbox: reasons to stop, and machines that will be taken away.

    Two threads wait for these, so that no training step waits for an answer.
    """

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.reason: str | None = None
        # Ids of the nodes that are known to be taken away.
        self.leaving: set[str] = set()
        # Whether another such node was announced since `keep` was last called.
        self.noticed = False
        # Whether `stop` has been called, which means that training has begun.
        self.asked = False
        _note(handle.step, False)
        for function in (self._wait_for_reason, self._watch_nodes):
            threading.Thread(target=function, daemon=True).start()

    def stop(self) -> str | None:
        """Returns the reason to stop, if there is one. Rank 0 calls this between its steps."""
        if not self.asked:
            self.asked = True
            _note(self.handle.step, True)
        return self.reason

    def keep(self) -> bool:
        """Returns whether a machine was announced to be taken away since the last call.

        A checkpoint is worth its time then.
        """
        noticed = self.noticed
        self.noticed = False
        return noticed

    def _wait_for_reason(self) -> None:
        # If the driver is gone, the run ends with it.
        with suppress(ray.exceptions.RayError):
            self.reason = ray.get(self.handle.reason_to_stop.remote())

    def _watch_nodes(self) -> None:
        while self.reason is None:
            leaving = self._leaving_now()
            if leaving - self.leaving:
                logger.info(
                    "a machine of the cluster will be taken away: "
                    "a checkpoint follows after the next step"
                )
                self.noticed = True
            self.leaving = leaving
            time.sleep(NODES_EVERY_S)

    def _leaving_now(self) -> set[str]:
        try:
            return set(draining_nodes())
        except (ray.exceptions.RayError, RuntimeError):
            # The head of the cluster does not answer. What was known before still holds.
            return self.leaving


def draining_nodes() -> dict[str, int]:
    """Returns the nodes that will be taken away, such as spot machines of a cloud.

    Returns:
        For each node id the deadline, in milliseconds since 1970.
    """
    # Ray Train's own watcher calls this internal function. The public one,
    # ray.train.get_preemption_info, is a barrier over all ranks.
    nodes: dict[str, int] = ray._private.state.state.get_draining_nodes()
    return nodes


def interruptible(
    function: Callable[[], Any],
    deliver: Callable[[str], bool] | None,
    caught: list[tuple[int, float]] | None = None,
) -> Any:
    """Runs a function in a thread while the main thread waits for signals.

    In another thread than the main one, which gets no signals, the function is simply called.

    Args:
        function: its result is returned, and its error raised.
        deliver: called with the name of the first signal, repeatedly. It returns whether the
            function will end by itself. None if the function cannot be told to stop.
        caught: every signal is appended to this list, as (number, time by `time.monotonic`).

    Raises:
        Interrupted: a second signal came, or a first one and `deliver` is None.
        Unstarted: a first signal came, and the function does nothing that has to be saved.
    """
    if threading.current_thread() is not threading.main_thread():
        return function()
    if caught is None:
        caught = []
    outcome: Future[Any] = Future()

    def work() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:
            outcome.set_exception(error)

    thread = threading.Thread(target=work, daemon=True)
    with handled(partial(_note_signal, caught)):
        thread.start()
        _wait_for(thread, deliver, caught)
    return outcome.result()


def _note_signal(caught: list[tuple[int, float]], number: int, frame: Any) -> None:
    caught.append((number, time.monotonic()))


def _wait_for(
    thread: threading.Thread,
    deliver: Callable[[str], bool] | None,
    caught: list[tuple[int, float]],
) -> None:
    """Waits for the end of a thread and reacts to the signals that are caught meanwhile."""
    delivered_at = -math.inf
    while thread.is_alive():
        # With a timeout, since a signal runs its handler but does not end the wait.
        thread.join(LOOK_EVERY_S)
        if not caught or not thread.is_alive():
            continue
        first_number, first_time = caught[0]
        last_number, last_time = caught[-1]
        if deliver is None or last_time - first_time > SAME_SIGNAL_S:
            raise Interrupted(last_number)
        if time.monotonic() - delivered_at < DELIVER_EVERY_S:
            continue
        # Repeatedly, since the workers may fail and start again, which nobody else reports here.
        delivered_at = time.monotonic()
        if not deliver(signal.Signals(first_number).name):
            raise Unstarted(first_number)


@contextmanager
def relayed(stop: Stop | None, deliver: Callable[[str], bool] | None) -> Iterator[None]:
    """Passes a reason to stop on to a group that this process has started, while it runs.

    Args:
        stop: its reason is asked for again and again; None where there never is one.
        deliver: called with the reason, again and again.
    """
    if stop is None or deliver is None:
        yield
        return
    ended = threading.Event()

    def relay() -> None:
        while not ended.wait(DELIVER_EVERY_S):
            found = stop.reason()
            if found is not None:
                deliver(found)

    thread = threading.Thread(target=relay, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=ANSWERS_S)


def terminates_as_interrupt() -> None:
    """Makes SIGTERM and SIGHUP end this process as Ctrl-C does, so that everything is closed.

    Ray's own handler of SIGTERM exits with code 15 at once.
    """
    # Python allows only the main thread to set handlers.
    if threading.current_thread() is not threading.main_thread():
        return
    for number in stopping_signals():
        if number != signal.SIGINT:
            signal.signal(number, _raise)


def _raise(number: int, frame: Any) -> None:
    raise Unstarted(number)
