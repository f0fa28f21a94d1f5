"""Two or more sides train in turn, a few steps each, so that what slows the machine slows all of them alike. No ray."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from multiprocessing.connection import Connection
from typing import Any, Protocol

from raytrain.log import duration

logger = logging.getLogger(__name__)


TIMEOUT_S, END_TIMEOUT_S = 1800.0, 60.0


class Side(Protocol):
    """Something that trains."""

    def block(self, steps: int) -> float:
        """Trains so many steps, going on where the last block ended. Returns tiles per second."""

    def close(self) -> None:
        """Ends what works in the background."""


def alternate(
    sides: Mapping[str, Side], *, pairs: int, steps: int, warmup: int = 3
) -> dict[str, list[float]]:
    """Rates (tiles per second) of each side in each round; every second round goes in the other order.

    Args:
        sides: by name.
        pairs: rounds.
        steps: optimiser steps of a block.
        warmup: steps of a first block of each side, which does not count.
    """
    for side in sides.values():
        side.block(warmup)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    began = time.monotonic()
    for done in range(pairs):
        names = list(sides) if done % 2 == 0 else list(reversed(list(sides)))
        for name in names:
            rates[name].append(sides[name].block(steps))
        left = (time.monotonic() - began) / (done + 1) * (pairs - done - 1)
        shown = ", ".join(f"{name} {found[-1]:.1f}" for name, found in rates.items())
        logger.info(f"  round {done + 1} of {pairs}: {shown} tiles/s, {duration(left)} to go")
    return rates


def ratios(above: list[float], below: list[float]) -> tuple[float, ...]:
    """Of the rates of each round."""
    return tuple(a / b for a, b in zip(above, below, strict=True))


@contextmanager
def children_stopped() -> Iterator[None]:
    """Stops this process's other processes, such as a loader's: at work they would take cores from the other side."""
    before = multiprocessing.active_children()
    for child in before:
        os.kill(child.pid or 0, signal.SIGSTOP)
    try:
        yield
    finally:
        for child in before:
            os.kill(child.pid or 0, signal.SIGCONT)


class Group:
    """A side of `world` processes of their own, each of which makes its side by `make(rank, *arguments)`.

    Its rate is the sum over its processes, each with its own share of the tiles.
    """

    def __init__(self, world: int, make: Callable[..., Side], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = [], []
        for rank in range(world):
            here, there = context.Pipe()
            process = context.Process(
                target=_serve, args=(there, make, rank, arguments), daemon=False
            )
            process.start()
            there.close()
            self.pipes.append(here)
            self.processes.append(process)
        try:
            self._answers()
        except BaseException:
            self.close()
            raise

    def block(self, steps: int) -> float:
        """See `Side`."""
        for pipe in self.pipes:
            pipe.send(steps)
        return sum(self._answers())

    def close(self) -> None:
        """Ends the processes."""
        for pipe in self.pipes:
            try:
                pipe.send(None)
            except OSError:  # it ended by itself, and said why
                continue
        for process in self.processes:
            process.join(timeout=END_TIMEOUT_S)
            process.kill()
            process.join()

    def _answers(self) -> list[float]:
        found = []
        for pipe in self.pipes:
            if not pipe.poll(TIMEOUT_S):
                raise TimeoutError(f"a process of the bench did not answer for {TIMEOUT_S:.0f} s")
            try:
                found.append(pipe.recv())
            except EOFError:
                raise RuntimeError(
                    "a process of the bench ended; what it said stands above"
                ) from None
        return found


def _serve(
    pipe: Connection, make: Callable[..., Side], rank: int, arguments: tuple[Any, ...]
) -> None:
    # Closed also where the bench was stopped: a side may hold processes that rest, and they would rest for ever.
    with closing(make(rank, *arguments)) as side:
        pipe.send(0.0)
        while (steps := pipe.recv()) is not None:
            pipe.send(side.block(steps))
