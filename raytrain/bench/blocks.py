"""Competing sides train in turn, a few steps at a time. No Ray.

Short alternating blocks matter because the speed of a machine drifts: whatever slows it down for a
while slows down all sides, so the ratio of their rates stays meaningful.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from raytrain.log import duration

logger = logging.getLogger(__name__)


# How long a process of a group may take for one block, or for its start with all imports.
TIMEOUT_S = 1800.0
# How long a process of a group may take to end after it was asked to.
END_TIMEOUT_S = 60.0


class Side(Protocol):
    """One of the competitors: something that trains in blocks of steps."""

    def block(self, steps: int) -> float:
        """Trains for some steps, continuing where the last block ended.

        Args:
            steps: number of optimiser steps.

        Returns:
            Tiles per second.
        """

    def close(self) -> None:
        """Stops the background work of this side, such as threads and processes."""


def alternate(
    sides: Mapping[str, Side], *, pairs: int, steps: int, warmup: int = 3
) -> dict[str, list[float]]:
    """Lets the sides train in turn and measures each block.

    Args:
        sides: the competitors by name.
        pairs: number of rounds; in each round every side trains one block.
        steps: optimiser steps of a block.
        warmup: optimiser steps of a first block of each side, which is not counted.

    Returns:
        Tiles per second of each side, one value per round.
    """
    # The first steps pay for memory, threads and compiled kernels that later steps find ready.
    for side in sides.values():
        side.block(warmup)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    began = time.monotonic()
    for number in range(pairs):
        for name in _order(sides, number):
            rates[name].append(sides[name].block(steps))
        seconds_per_round = (time.monotonic() - began) / (number + 1)
        remaining_s = seconds_per_round * (pairs - number - 1)
        _log_round(rates, number + 1, pairs, remaining_s)
    return rates


def _order(sides: Mapping[str, Side], number: int) -> list[str]:
    """The names of the sides in the order in which they train in a round (counted from 0)."""
    names = list(sides)
    if number % 2 == 1:
        # With one fixed order a steady drift of the machine would always favour the same side.
        names.reverse()
    return names


def _log_round(
    rates: Mapping[str, list[float]], number: int, rounds: int, remaining_s: float
) -> None:
    latest = ", ".join(f"{name} {found[-1]:.1f}" for name, found in rates.items())
    remaining = duration(remaining_s)
    logger.info(f"  round {number} of {rounds}: {latest} tiles/s, {remaining} to go")


def ratios(above: list[float], below: list[float]) -> tuple[float, ...]:
    """Divides the rates of one side by those of another, round by round.

    Raises:
        ValueError: the lists differ in length.
    """
    return tuple(a / b for a, b in zip(above, below, strict=True))


@contextmanager
def children_stopped() -> Iterator[None]:
    """Pauses the child processes of this process, such as the workers of a data loader.

    Otherwise they would prepare batches meanwhile and take CPU time from the side that trains.
    """
    # Children that start later are not paused, so they must not be resumed either.
    children = multiprocessing.active_children()
    _send(signal.SIGSTOP, children)
    try:
        yield
    finally:
        _send(signal.SIGCONT, children)


def _send(number: signal.Signals, processes: Iterable[BaseProcess]) -> None:
    for process in processes:
        if process.pid is not None:
            os.kill(process.pid, number)


class Group:
    """A side that consists of several processes, each of which has a side of its own.

    Each process builds its side with `make(rank, *arguments)`. The rate of the group is the sum of
    the rates of its processes, each of which counts only its own share of the tiles.
    """

    def __init__(self, world: int, make: Callable[..., Side], *arguments: Any) -> None:
        """Starts the processes and waits until all sides are built.

        Args:
            world: number of processes.
            make: a function at module level, since the processes are spawned and import it.
            arguments: further arguments of `make`, which must be picklable.

        Raises:
            RuntimeError: a process ended while it built its side.
            TimeoutError: a process did not answer in time.
        """
        # Not forked: a forked process would inherit torch's threads in an unusable state.
        context = multiprocessing.get_context("spawn")
        self.pipes: list[Connection] = []
        self.processes: list[BaseProcess] = []
        for rank in range(world):
            here, there = context.Pipe()
            # Not a daemon, because daemons may not start the workers of a data loader.
            process = context.Process(
                target=_serve, args=(there, make, rank, arguments), daemon=False
            )
            process.start()
            # With a copy of the child's end open here, its death would not end `recv`.
            there.close()
            self.pipes.append(here)
            self.processes.append(process)
        try:
            self._answers()
        except BaseException:
            self.close()
            raise

    def block(self, steps: int) -> float:
        """See `Side.block`."""
        # All processes get their order first, so that they train at the same time.
        for pipe in self.pipes:
            pipe.send(steps)
        return sum(self._answers())

    def close(self) -> None:
        """Ends the processes, by force if they do not end in time."""
        for pipe in self.pipes:
            try:
                pipe.send(None)
            except OSError:
                # The process has already ended and has printed the reason.
                continue
        for process in self.processes:
            process.join(timeout=END_TIMEOUT_S)
            process.kill()
            process.join()

    def _answers(self) -> list[float]:
        """The next number of each process: 0.0 after its start, tiles per second after a block."""
        answers = []
        for pipe in self.pipes:
            if not pipe.poll(TIMEOUT_S):
                raise TimeoutError(f"a process of the bench did not answer for {TIMEOUT_S:.0f} s")
            try:
                answers.append(pipe.recv())
            except EOFError:
                raise RuntimeError(
                    "a process of the bench ended; its own message is printed above"
                ) from None
        return answers


def _serve(
    pipe: Connection, make: Callable[..., Side], rank: int, arguments: tuple[Any, ...]
) -> None:
    """Runs in each process of a group: trains a block for each number of steps, ends at None."""
    # The side is closed on errors too: it may hold paused processes, which would never end.
    with closing(make(rank, *arguments)) as side:
        pipe.send(0.0)
        steps = pipe.recv()
        while steps is not None:
            pipe.send(side.block(steps))
            steps = pipe.recv()
