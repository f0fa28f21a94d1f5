"""How a signal to the driver stops a run: the driver tells an actor, rank 0 asks it, and stops after its next step.

`ray job stop` and `kill` reach the driver's process alone: workers run elsewhere, often on other machines.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raytrain.errors import Interrupted

# Seconds between two looks of rank 0 at the actor.
LOOK_EVERY_S = 0.5
# Seconds between two looks at the machines that will be taken away: the notice of a cloud is half a minute or more.
NODES_EVERY_S = 2.0
# A signal that comes as often as this is the same one, sent to a process and to the one that started it.
SAME_SIGNAL_S = 2.0
STOPPING = (signal.SIGTERM, signal.SIGINT)


class Mailbox:
    """The actor: holds the reason to stop."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def put(self, reason: str) -> None:
        """Leaves a reason."""
        self.reason = reason

    def read(self) -> str | None:
        """The reason, if there is one."""
        return self.reason


def beside_driver() -> dict[str, Any]:
    """Options of an actor on the driver's machine: on another one it would die with a worker's, and the run with it."""
    here = ray.get_runtime_context().get_node_id()
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False)}


@contextmanager
def mailbox() -> Iterator[Any]:
    """A handle of a new mailbox, which is gone at the end."""
    handle = ray.remote(Mailbox).options(**beside_driver()).remote()
    try:
        yield handle
    finally:
        with suppress(ray.exceptions.RayError):
            ray.kill(handle)


class Inbox:
    """Rank 0's side: threads ask the mailbox and look at the cluster's machines, so that no step waits for an answer."""

    def __init__(self, handle: Any, say: Callable[[str], None]) -> None:
        self.handle, self.say = handle, say
        self.reason: str | None = None
        self.leaving: set[str] = set()
        self.noticed = False
        for function in (self._look, self._watch_nodes):
            threading.Thread(target=function, daemon=True).start()

    def stop(self) -> str | None:
        """The reason to stop, if there is one."""
        return self.reason

    def keep(self) -> bool:
        """Whether a machine was announced to go since this was asked last."""
        noticed, self.noticed = self.noticed, False
        return noticed

    def _look(self) -> None:
        while self.reason is None:
            try:
                self.reason = ray.get(self.handle.read.remote())
            except ray.exceptions.RayError:  # the driver is gone, and with it the run
                return
            time.sleep(LOOK_EVERY_S)

    def _watch_nodes(self) -> None:
        while self.reason is None:
            try:
                leaving = set(draining_nodes())
            except (ray.exceptions.RayError, RuntimeError):  # the cluster's head does not answer now
                leaving = self.leaving
            if leaving - self.leaving:
                self.say("a machine of the cluster will be taken away: a checkpoint follows after the next step")
                self.noticed = True
            self.leaving = leaving
            time.sleep(NODES_EVERY_S)


def draining_nodes() -> dict[str, int]:
    """Node ids that the cluster has announced to go, as a cloud does with spot machines, and their deadlines in ms."""
    # What Ray Train's own watcher asks; its public face, ray.train.get_preemption_info, is a barrier over all ranks.
    nodes: dict[str, int] = ray._private.state.state.get_draining_nodes()
    return nodes


def interruptible(function: Callable[[], Any], deliver: Callable[[str], None] | None) -> Any:
    """Runs a function in a thread while this one, the main thread, waits for signals.

    Args:
        function: whose result is returned.
        deliver: hears of the first signal; the function should then come to an end by itself. None: it cannot.

    Raises:
        Interrupted: a second signal came, or the first one where nothing can be delivered.
        What the function raises.
    """
    if threading.current_thread() is not threading.main_thread():
        return function()
    outcome: list[Callable[[], Any]] = []
    thread = threading.Thread(target=lambda: outcome.append(_outcome(function)), daemon=True)
    caught: list[tuple[int, float]] = []
    delivered = False
    with _handled(lambda number, frame: caught.append((number, time.monotonic()))):
        thread.start()
        while thread.is_alive():
            thread.join(0.1)
            if not caught:
                continue
            if deliver is None or caught[-1][1] - caught[0][1] > SAME_SIGNAL_S:
                raise Interrupted(caught[-1][0])
            if not delivered:
                delivered = True
                deliver(signal.Signals(caught[0][0]).name)
    return outcome[0]()


def terminates_as_interrupt() -> None:
    """Makes SIGTERM end this process as Ctrl-C does, with everything closed: Ray's own handler exits with code 15."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _raise)


def _raise(number: int, frame: Any) -> None:
    raise Interrupted(number)


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


@contextmanager
def _handled(handler: Callable[[int, Any], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in STOPPING}
    try:
        yield
    finally:
        for number, handling in before.items():
            signal.signal(number, handling)
