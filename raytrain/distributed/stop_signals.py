"""Which signals stop a command, and how a supervised process ends with its supervisor.

Imports neither torch nor ray.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# Environment variable with the process id of the supervisor. The supervised process removes it from
# its environment, so that its own children do not take themselves for supervised.
SUPERVISOR = "RAYTRAIN_SUPERVISOR"
# From linux/prctl.h: which signal this process gets when its parent dies (man 2 prctl).
PR_SET_PDEATHSIG = 1


def stopping_signals() -> list[signal.Signals]:
    """Returns the signals that stop a command: SIGTERM, SIGINT (Ctrl-C) and SIGHUP.

    A terminal sends SIGHUP when it is closed. If the signal is ignored already, as under nohup, it
    is not in the list.
    """
    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return numbers


@contextmanager
def handled(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Sets a handler for all stopping signals, and restores the previous handlers at the end."""
    before = {number: signal.signal(number, handler) for number in stopping_signals()}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextmanager
def hangups_blocked() -> Iterator[None]:
    """Blocks SIGHUP for the processes that are started inside; this one gets it at the end.

    A terminal that is closed sends SIGHUP to all processes of the command. Ray's processes would
    die of it before a checkpoint is written. Child processes inherit the mask of blocked signals,
    and so do their own children (man 7 signal).
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_supervisor() -> None:
    """Makes Linux send SIGTERM to this process when its supervisor dies.

    Does nothing if this process has no supervisor, or on another system than Linux.
    """
    supervisor = os.environ.pop(SUPERVISOR, None)
    if supervisor is None:
        return
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is None:  # not Linux
        return
    # The kernel watches the thread that has started this process, not the whole parent process.
    # Here that is the supervisor's main thread, which lives as long as its process.
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    # If the supervisor died before the call above, the kernel sends nothing. This process has
    # another parent then.
    if os.getppid() != int(supervisor):
        os.kill(os.getpid(), signal.SIGTERM)
