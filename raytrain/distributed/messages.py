"""What the driver and the workers tell each other: an actor beside the driver holds lines, and the reason to stop.

`ray job stop` and `kill` reach the driver's process alone: workers run elsewhere, often on other machines. Rank 0 hears of
the reason from the actor and stops after its next step. Both sides wait in the actor for what comes: asking again and again
would take the cores of the step.
"""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raytrain.distributed.stop_signals import handled, stopping_signals
from raytrain.errors import Interrupted
from raytrain.training.watchdog import Saves

logger = logging.getLogger(__name__)

# Seconds between two deliveries of a signal that was caught.
DELIVER_EVERY_S = 0.5
# Seconds between two looks at the machines that will be taken away: the notice of a cloud is half a minute or more.
NODES_EVERY_S = 2.0
# A signal that comes as often as this is the same one, sent to a process and to the one that started it.
SAME_SIGNAL_S = 2.0
# Seconds within which the mailbox answers; it stands on the driver's machine.
ANSWERS_S = 10.0


class Unstarted(Interrupted):
    """Ended by a first signal while no step of training was under way: nothing is lost that a checkpoint could keep."""


class Mailbox:
    """The actor: lines for the driver, the reason to stop, whether steps are under way, when a checkpoint was last written."""

    def __init__(self) -> None:
        self.lines: asyncio.Queue[tuple[int, str] | None] = asyncio.Queue()
        self.reason: str | None = None
        self.stopping = asyncio.Event()
        self.stepping, self.writing = False, False
        self.written: float | None = None

    async def log(self, message: tuple[int, str] | None) -> None:
        """Leaves a message for the driver, its level and text; None: there will be no more."""
        self.lines.put_nowait(message)

    async def next_line(self) -> tuple[int, str] | None:
        """The next message, when there is one; None after the last one."""
        return await self.lines.get()

    async def put(self, reason: str) -> bool:
        """Leaves a reason to stop. Returns whether steps are under way, after one of which rank 0 will stop."""
        self.reason = reason
        self.stopping.set()
        return self.stepping

    async def reason_to_stop(self) -> str | None:
        """The reason, when there is one."""
        await self.stopping.wait()
        return self.reason

    async def step(self, stepping: bool) -> None:
        """Rank 0 has begun to look for a reason between its steps, or its group has ended, with what it was writing."""
        self.stepping = stepping
        self.writing = self.writing and stepping

    async def write(self, writing: bool) -> None:
        """Rank 0 begins to write a checkpoint, or has written it."""
        self.writing, self.written = writing, time.monotonic()

    async def since_written(self) -> float:
        """Seconds since a checkpoint was being written: 0 for now, infinite for never."""
        if self.writing:
            return 0.0
        return math.inf if self.written is None else time.monotonic() - self.written


def beside_driver() -> dict[str, Any]:
    """Options of an actor on the driver's machine: on another one it would die with a worker's, and the run with it."""
    here = ray.get_runtime_context().get_node_id()
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False)}


@contextmanager
def mailbox() -> Iterator[Any]:
    """A handle of a new mailbox, which is gone at the end. Its messages are logged in this process, in their order.

    Worker output through Ray's log would be prefixed and doubled.
    """
    handle = ray.remote(Mailbox).options(**beside_driver()).remote()
    thread = threading.Thread(target=_log_messages, args=(handle,), daemon=True)
    thread.start()
    try:
        yield handle
    finally:
        with suppress(ray.exceptions.RayError):
            handle.log.remote(None)
            thread.join(timeout=ANSWERS_S)
            ray.kill(handle)


def _log_messages(handle: Any) -> None:
    with suppress(ray.exceptions.RayError):  # the mailbox is gone
        while (message := ray.get(handle.next_line.remote())) is not None:
            logger.log(*message)


def _tell(method: Any, value: bool) -> None:
    """Returns when the mailbox has it: Ray keeps no order among calls of an actor whose methods wait."""
    with suppress(ray.exceptions.RayError):  # the driver is gone, or does not answer
        ray.get(method.remote(value), timeout=ANSWERS_S)


def log_in_driver(handle: Any, level: int, text: str) -> None:
    """Logs a message in the driver's process; returns when the mailbox has it."""
    ray.get(handle.log.remote((level, text)))


class GroupSaves(Saves):
    """What the ranks of a group know of each other's checkpoints: rank 0 tells the mailbox, the others ask there."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle

    def note(self, writing: bool) -> None:
        """This process begins to write a checkpoint, or has written it."""
        _tell(self.handle.write, writing)

    def ago(self) -> float:
        """Seconds since some process was writing one."""
        try:
            seconds: float = ray.get(self.handle.since_written.remote(), timeout=ANSWERS_S)
        except ray.exceptions.RayError:  # the driver is gone, or does not answer: no news
            return math.inf
        return seconds


class Outbox:
    """The driver's side: leaves the reason to stop, and learns whether steps are under way that end in a checkpoint."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.told, self.idle = False, 0

    def deliver(self, name: str) -> bool:
        """Leaves the name of a signal, again and again. Returns whether the run comes to an end by itself.

        It takes two answers that no step is under way: the first step may have ended just before.
        """
        try:
            stepping = ray.get(self.handle.put.remote(name), timeout=ANSWERS_S)
        except ray.exceptions.RayError:
            return True
        self.idle = 0 if stepping else self.idle + 1
        if stepping and not self.told:
            self.told = True
            logger.info(
                f"{name}: a checkpoint follows after the next step, then the run stops; once more stops it at once"
            )
        return self.idle < 2


class Inbox:
    """Rank 0's side: threads wait at the mailbox and look at the cluster's machines, so that no step waits for an answer."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.reason: str | None = None
        self.leaving: set[str] = set()
        self.noticed, self.asked = False, False
        _tell(handle.step, False)
        for function in (self._wait_for_reason, self._watch_nodes):
            threading.Thread(target=function, daemon=True).start()

    def stop(self) -> str | None:
        """The reason to stop, if there is one. Rank 0 asks between its steps, from the first one on."""
        if not self.asked:
            self.asked = True
            _tell(self.handle.step, True)
        return self.reason

    def keep(self) -> bool:
        """Whether a machine was announced to go since this was asked last."""
        noticed, self.noticed = self.noticed, False
        return noticed

    def _wait_for_reason(self) -> None:
        with suppress(ray.exceptions.RayError):  # the driver is gone, and with it the run
            self.reason = ray.get(self.handle.reason_to_stop.remote())

    def _watch_nodes(self) -> None:
        while self.reason is None:
            try:
                leaving = set(draining_nodes())
            except (
                ray.exceptions.RayError,
                RuntimeError,
            ):  # the cluster's head does not answer now
                leaving = self.leaving
            if leaving - self.leaving:
                logger.info(
                    "a machine of the cluster will be taken away: a checkpoint follows after the next step"
                )
                self.noticed = True
            self.leaving = leaving
            time.sleep(NODES_EVERY_S)


def draining_nodes() -> dict[str, int]:
    """Node ids that the cluster has announced to go, as a cloud does with spot machines, and their deadlines in ms."""
    # What Ray Train's own watcher asks; its public face, ray.train.get_preemption_info, is a barrier over all ranks.
    nodes: dict[str, int] = ray._private.state.state.get_draining_nodes()
    return nodes


def interruptible(
    function: Callable[[], Any],
    deliver: Callable[[str], bool] | None,
    caught: list[tuple[int, float]] | None = None,
) -> Any:
    """Runs a function in a thread while this one, the main thread, waits for signals.

    Args:
        function: whose result is returned.
        deliver: hears of the first signal, twice a second from then on. True: the function will come to an end by itself;
            False: it does nothing that would have to be kept. None: it cannot be told.
        caught: gets (number, monotonic time) of each signal.

    Raises:
        Interrupted: a second signal came, or the first one where nothing can be delivered.
        Unstarted: the first one came where nothing has to be kept.
        What the function raises.
    """
    if threading.current_thread() is not threading.main_thread():
        return function()
    outcome: list[Callable[[], Any]] = []
    thread = threading.Thread(target=lambda: outcome.append(_outcome(function)), daemon=True)
    caught = [] if caught is None else caught
    delivered = -math.inf
    with handled(lambda number, frame: caught.append((number, time.monotonic()))):
        thread.start()
        while thread.is_alive():
            thread.join(0.1)
            if not caught or not thread.is_alive():
                continue
            if deliver is None or caught[-1][1] - caught[0][1] > SAME_SIGNAL_S:
                raise Interrupted(caught[-1][0])
            if time.monotonic() - delivered < DELIVER_EVERY_S:
                continue
            delivered = time.monotonic()
            if not deliver(signal.Signals(caught[0][0]).name):
                raise Unstarted(caught[0][0])
    return outcome[0]()


def terminates_as_interrupt() -> None:
    """Makes SIGTERM and a closed terminal end this process as Ctrl-C does, with everything closed.

    Ray's own handler of SIGTERM exits with code 15.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in stopping_signals():
        if number != signal.SIGINT:
            signal.signal(number, _raise)


def _raise(number: int, frame: Any) -> None:
    raise Unstarted(number)


def _outcome(function: Callable[[], Any]) -> Callable[[], Any]:
    """What gives the result of a function, or raises its error, in another thread."""
    try:
        result = function()
    except BaseException as error:
        raised = error

        def fail() -> Any:
            raise raised

        return fail
    return lambda: result
