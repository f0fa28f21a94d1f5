"""Which signals stop a command, and how a supervised process ends with its supervisor. Imports neither torch nor ray."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# Its value is the number of the process that supervises; the supervised one takes it out of its environment.
SUPERVISOR = "RAYTRAIN_SUPERVISOR"
# From linux/prctl.h.
PR_SET_PDEATHSIG = 1


def stopping_signals() -> list[signal.Signals]:
    """Ctrl-C, SIGTERM, and the SIGHUP of a closed terminal, unless it is ignored already: nohup does so."""
    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return numbers


@contextmanager
def handled(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Gives the stopping signals this handler until the end."""
    before = {number: signal.signal(number, handler) for number in stopping_signals()}
    try:
        yield
    finally:
        for number, handling in before.items():
            signal.signal(number, handling)


@contextmanager
def hangups_blocked() -> Iterator[None]:
    """Keeps SIGHUP from the processes that are started here, and gives it to this one at the end.

    A terminal that is closed sends it to all processes of the command. Ray's would die of it, before a checkpoint is
    written. The mask of blocked signals is inherited, also by what those processes start.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_supervisor() -> None:
    """Lets Linux send SIGTERM to this process when the one that supervises it dies; nothing where none does."""
    supervisor = os.environ.pop(SUPERVISOR, None)
    if supervisor is None:
        return
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is None:  # no Linux
        return
    # The kernel watches the thread that started this process: the supervisor's main thread, which ends with its process.
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(supervisor):  # it died before the kernel was asked
        os.kill(os.getpid(), signal.SIGTERM)
