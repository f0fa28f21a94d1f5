"""How cost grows: seconds per epoch with the number of tiles, memory with the number of epochs. No ray.

On tiny generated tiles and a small network, so that what is not the step weighs most.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from raytrain.bench.figures import Figure
from raytrain.bench.generate import workplace, write_tiles
from raytrain.bench.sides import Loop, alone
from raytrain.bench.training import epoch_seconds
from raytrain.config import Model, Recipe, Stage, Train
from raytrain.data.dataset import Dataset, open_dataset
from raytrain.log import duration
from raytrain.training.hooks import Hooks
from raytrain.training.loop import fit

logger = logging.getLogger(__name__)


TILES, FACTORS = 200, (1, 4, 16)
SIDE, BATCH = 64, 16
EPOCHS, LAST_EPOCHS = 100, 50
ABOUT = f"resnet18 {SIDE // 2} px batch {BATCH}"


def recipe_of(epochs: int) -> Recipe:
    """A small network, one stage, tiles of half the size that they are stored at."""
    stage = Stage(size=SIDE // 2, epochs=epochs, freeze=False, lr=1e-4)
    return Recipe(
        model=Model(weights="none", arch="resnet18"), train=Train(batch_size=BATCH), stages=(stage,)
    )


def growth(rounds: int, tiles: int = TILES, epochs: int = EPOCHS) -> list[Figure]:
    """Epoch time at 1, 4 and 16 times the tiles, and memory over many epochs.

    Args:
        rounds: epochs at each size that count, in turn.
        tiles: at 1 times.
        epochs: of the run whose memory is watched.
    """
    with (
        workplace(None, tiles, SIDE) as least,
        tempfile.TemporaryDirectory(prefix="raytrain-bench-") as run,
    ):
        return [*_times(least, run, rounds), *_memory(least, run, epochs)]


def _times(least: Dataset, run: str, rounds: int) -> list[Figure]:
    recipe, seconds = recipe_of(1), {factor: list[float]() for factor in FACTORS}
    with ExitStack() as stack:
        loops = {}
        for factor in FACTORS:
            data = (
                write_tiles(f"{run}/{factor}", factor * least.rows, SIDE) if factor > 1 else least
            )
            loops[factor] = stack.enter_context(closing(Loop(recipe, data, 1, alone(recipe), run)))
            loops[factor].block(2)
        for number in range(rounds):
            for factor, loop in loops.items():
                # As many steps at every size, so that a moment of a slow machine is as long for each.
                epochs = [epoch_seconds(loop, 1) for _ in range(max(FACTORS) // factor)]
                seconds[factor].append(sum(epochs) / len(epochs) / len(loop.trainer.train_rows))
            logger.info(f"  growth with tiles: round {number + 1} of {rounds}")
    return [*_per_tile(seconds, least), *_linear(seconds)]


def _per_tile(seconds: dict[int, list[float]], least: Dataset) -> list[Figure]:
    return [
        Figure(
            f"growth.tiles.{factor}x",
            f"training per tile, {factor}x",
            "ms",
            tuple(1000 * s for s in found),
            f"{ABOUT}, {factor * least.rows} tiles",
        )
        for factor, found in seconds.items()
    ]


def _linear(seconds: dict[int, list[float]]) -> list[Figure]:
    once = seconds[FACTORS[0]]
    return [
        Figure(
            f"growth.linear.{factor}x",
            f"epoch time at {factor}x / {factor} epochs at 1x",
            "",
            tuple(many / one for many, one in zip(seconds[factor], once, strict=True)),
            ABOUT,
        )
        for factor in FACTORS[1:]
    ]


def _memory(dataset: Dataset, run: str, epochs: int) -> list[Figure]:
    """Memory of a process of its own that fits, after each of its epochs."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_fit, args=(there, dataset.path, f"{run}/run", epochs))
    process.start()
    there.close()
    found: list[int] = []
    began = said = time.monotonic()
    try:
        while len(found) < epochs:
            found.append(here.recv())
            if time.monotonic() - said > 10:
                said = time.monotonic()
                left = (said - began) / len(found) * (epochs - len(found))
                logger.info(
                    f"  growth with epochs: {len(found)} of {epochs}, {duration(left)} to go"
                )
        process.join()
    except EOFError:
        raise RuntimeError("the process that trains ended; what it said stands above") from None
    finally:
        process.kill()
    return memory_figures(found)


def memory_figures(resident: Sequence[int], who: str = "worker") -> list[Figure]:
    """Resident bytes of a process after each epoch, and their slope over the second half (at most the last 50)."""
    last = np.asarray(resident[-min(LAST_EPOCHS, len(resident) // 2) :]) / 1000
    slope = float(np.polyfit(np.arange(len(last)), last, 1)[0])
    about = f"{ABOUT}, {len(resident)} epochs"
    return [
        Figure(
            f"growth.{who}",
            f"memory of a {who}, by epoch",
            "MB",
            tuple(b / 1e6 for b in resident),
            about,
        ),
        Figure(
            f"growth.{who}.slope",
            f"memory of a {who}, growth per epoch",
            "kB",
            (slope,),
            f"{about}, last {len(last)}",
        ),
    ]


def _fit(pipe: Connection, path: str, run: str, epochs: int) -> None:
    recipe = recipe_of(epochs)
    hooks = Hooks(report=lambda metrics: pipe.send(resident_bytes()))
    fit(recipe, open_dataset(path), run, alone(recipe), hooks)


def resident_bytes() -> int:
    """Memory of this process, mapped files included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
