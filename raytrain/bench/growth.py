"""How the cost of training grows: time with more tiles, and memory with more epochs. No Ray.

Tiny generated tiles and a small network make everything but the step weigh as much as possible.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from raytrain.bench.figures import Figure
from raytrain.bench.generate import workplace, write_tiles
from raytrain.bench.sides import Loop, alone
from raytrain.config import Model, Recipe, Stage, Train
from raytrain.data.dataset import Dataset, open_dataset
from raytrain.log import duration
from raytrain.training.loop import fit
from raytrain.training.services import Hooks
from raytrain.training.state import Metrics

logger = logging.getLogger(__name__)


# Number of tiles at 1x, and the multiples of it that are compared.
TILES = 200
FACTORS = (1, 4, 16)
# Stored side of a tile, pixels; training halves it.
SIDE = 64
BATCH = 16
# Epochs of the run whose memory is watched. Only the last ones enter the slope: caches and memory
# pools still fill up at the beginning.
EPOCHS = 100
LAST_EPOCHS = 50
# Between two messages about progress.
PROGRESS_EVERY_S = 10.0
ABOUT = f"resnet18 {SIDE // 2} px batch {BATCH}"


def recipe_of(epochs: int) -> Recipe:
    """A recipe with a small network and one stage, in which tiles have half their stored size."""
    stage = Stage(size=SIDE // 2, epochs=epochs, freeze=False, lr=1e-4)
    return Recipe(
        model=Model(weights="none", arch="resnet18"),
        train=Train(batch_size=BATCH),
        stages=(stage,),
    )


def growth(rounds: int, tiles: int = TILES, epochs: int = EPOCHS) -> list[Figure]:
    """Measures epochs of 1, 4 and 16 times the tiles, and the memory over many epochs.

    Args:
        rounds: number of values at each number of tiles, measured in turn.
        tiles: number of tiles at 1x.
        epochs: of the run whose memory is watched.
    """
    with (
        workplace(None, tiles, SIDE) as smallest,
        tempfile.TemporaryDirectory(prefix="raytrain-bench-") as run,
    ):
        time_figures = _times(smallest, run, rounds)
        return time_figures + _memory(smallest, run, epochs)


def _times(smallest: Dataset, run: str, rounds: int) -> list[Figure]:
    """Seconds of training per tile at each number of tiles."""
    seconds: dict[int, list[float]] = {factor: [] for factor in FACTORS}
    with ExitStack() as stack:
        loops = {}
        for factor in FACTORS:
            loop = _loop(smallest, factor, run)
            stack.callback(loop.close)
            # The first steps take longer and are not counted.
            loop.block(2)
            loops[factor] = loop
        for number in range(rounds):
            for factor, loop in loops.items():
                seconds[factor].append(_seconds_per_tile(loop, factor))
            logger.info(f"  growth with tiles: round {number + 1} of {rounds}")
    return _per_tile(seconds, smallest) + _linear(seconds)


def _loop(smallest: Dataset, factor: int, run: str) -> Loop:
    """The loop on `factor` times as many tiles as the smallest dataset has."""
    dataset = smallest
    if factor > 1:
        dataset = write_tiles(f"{run}/{factor}", factor * smallest.rows, SIDE)
    recipe = recipe_of(1)
    return Loop(recipe, dataset, 1, alone(recipe), run)


def _seconds_per_tile(loop: Loop, factor: int) -> float:
    # As many steps at every number of tiles: a slow moment of the machine then weighs the same.
    epochs = max(FACTORS) // factor
    seconds = [loop.epoch_seconds(1) for _ in range(epochs)]
    return sum(seconds) / epochs / len(loop.opened.train_rows)


def _per_tile(seconds: dict[int, list[float]], smallest: Dataset) -> list[Figure]:
    figures = []
    for factor, found in seconds.items():
        milliseconds = tuple(1000 * value for value in found)
        label = f"training per tile, {factor}x"
        about = f"{ABOUT}, {factor * smallest.rows} tiles"
        figures.append(Figure(f"growth.tiles.{factor}x", label, "ms", milliseconds, about))
    return figures


def _linear(seconds: dict[int, list[float]]) -> list[Figure]:
    """The time of a large epoch over that of many small ones; 1 where the growth is linear."""
    figures = []
    for factor in FACTORS[1:]:
        pairs = zip(seconds[factor], seconds[FACTORS[0]], strict=True)
        values = tuple(large / small for large, small in pairs)
        label = f"epoch time at {factor}x / {factor} epochs at 1x"
        figures.append(Figure(f"growth.linear.{factor}x", label, "", values, ABOUT))
    return figures


def _memory(dataset: Dataset, run: str, epochs: int) -> list[Figure]:
    """The memory after each epoch of a run in a process of its own."""
    # A new process, since this one already holds what the measurements before have left behind.
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_fit, args=(there, dataset.path, f"{run}/run", epochs))
    process.start()
    # With a copy of the child's end open here, its death would not end `recv`.
    there.close()
    try:
        found = _received(here, epochs)
        process.join()
    except EOFError:
        raise RuntimeError(
            "the process that trains ended; its own message is printed above"
        ) from None
    finally:
        process.kill()
    return memory_figures(found)


def _received(pipe: Connection, epochs: int) -> list[int]:
    """Receives a number of bytes after each epoch, and logs the progress.

    Raises:
        EOFError: the process ended before.
    """
    found: list[int] = []
    began = time.monotonic()
    logged = began
    while len(found) < epochs:
        found.append(pipe.recv())
        now = time.monotonic()
        if now - logged > PROGRESS_EVERY_S:
            logged = now
            seconds_per_epoch = (now - began) / len(found)
            remaining = duration(seconds_per_epoch * (epochs - len(found)))
            logger.info(f"  growth with epochs: {len(found)} of {epochs}, {remaining} to go")
    return found


def memory_figures(resident: Sequence[int], who: str = "worker") -> list[Figure]:
    """Figures of the memory of a process, and of its growth per epoch.

    The growth is the slope of a straight line through the second half of the epochs, at most the
    last 50 (least squares).

    Args:
        resident: bytes of the process after each epoch.
        who: what the process is called in the figures.
    """
    count = min(LAST_EPOCHS, len(resident) // 2)
    kilobytes = np.asarray(resident[-count:]) / 1000
    slope = float(np.polyfit(np.arange(len(kilobytes)), kilobytes, 1)[0])
    megabytes = tuple(value / 1e6 for value in resident)
    about = f"{ABOUT}, {len(resident)} epochs"
    label = f"memory of a {who}, by epoch"
    slope_label = f"memory of a {who}, growth per epoch"
    slope_about = f"{about}, last {len(kilobytes)}"
    return [
        Figure(f"growth.{who}", label, "MB", megabytes, about),
        Figure(f"growth.{who}.slope", slope_label, "kB", (slope,), slope_about),
    ]


def _fit(pipe: Connection, path: str, run: str, epochs: int) -> None:
    """Trains in the other process. Sends its memory after each epoch."""

    def send_memory(metrics: Metrics) -> None:
        pipe.send(resident_bytes())

    recipe = recipe_of(epochs)
    fit(recipe, open_dataset(path), run, alone(recipe), Hooks(report=send_memory))


def resident_bytes() -> int:
    """The memory of this process in bytes, mapped files included."""
    # The second number of statm is the resident size in pages: man 5 proc.
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
