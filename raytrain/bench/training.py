"""What `raytrain bench` measures of training: the loop against its own ceiling, workers, streams and a plain loop.

Knows no Ray, and runs where there is none, on a machine with torch, torchvision, numpy, pandas, pyarrow, pillow and
pydantic (`python -m raytrain.bench`).
"""

from __future__ import annotations

import logging
import os
import resource
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from raytrain.bench import gpu
from raytrain.bench.blocks import Group, Side, alternate, ratios
from raytrain.bench.figures import Figure
from raytrain.bench.files import write_jpegs
from raytrain.bench.peer import PlainLoop
from raytrain.bench.profiles import profiled
from raytrain.bench.sides import Ceiling, Loop, Resting, Saving, alone, wait_for
from raytrain.bench.variants import variants
from raytrain.checkpoints.layout import STEP
from raytrain.config import Recipe
from raytrain.data.dataset import Dataset, open_dataset
from raytrain.models.bodies import TIMM
from raytrain.models.precision import dtype_of
from raytrain.worker import Worker

logger = logging.getLogger(__name__)


TILES = "tiles/s"
PEER_LOADERS = 2
# Whole epochs: so many, or fewer once they have taken so many seconds.
EPOCHS, EPOCHS_S = 3, 60.0
PARTS = ("train", "workers", "stream", "peer", "variants", "profile", "checkpoints")


def measure(
    recipe: Recipe, dataset: Dataset, *, pairs: int, block: int, parts: Collection[str]
) -> list[Figure]:
    """Measures the selected stages of a recipe; the network has random weights.

    Args:
        recipe: with `model.weights` none.
        dataset: an opened dataset with the recipe's split.
        pairs: rounds of the sides that train in turn.
        block: optimiser steps before the other side's turn.
        parts: some of `PARTS`. train looks at every selected stage; the others at the first of them that is not frozen,
            or at the first.
    """
    figures: list[Figure] = []
    first, last = recipe.selected
    one = next((n for n in range(first, last + 1) if not recipe.stages[n - 1].freeze), first)
    with tempfile.TemporaryDirectory(prefix="raytrain-bench-") as run:
        for number in range(first, last + 1) if "train" in parts else ():
            figures += stage_figures(recipe, dataset, number, run, pairs, block)
        # Before the other parts, which hold several networks at once.
        figures += memory(alone(recipe).device) if "train" in parts else []
        for part, find in OTHERS.items():
            figures += find(recipe, dataset, one, run, pairs, block) if part in parts else []
    return figures


def stage_figures(
    recipe: Recipe, dataset: Dataset, number: int, run: str, pairs: int, block: int
) -> list[Figure]:
    """Loop, ceiling and their ratio; batches, validation and an epoch of one stage."""
    loop = Loop(recipe, dataset, number, alone(recipe), run)
    name, about = loop.name, loop.about
    logger.info(f"{about}: the loop and its ceiling in turn")
    with closing(loop):
        rates = alternate({"loop": loop, "ceiling": Ceiling.of(loop)}, pairs=pairs, steps=block)
        return [
            Figure(
                f"{name}.ceiling", "step only, one batch", TILES, tuple(rates["ceiling"]), about
            ),
            Figure(f"{name}.loop", "training, whole loop", TILES, tuple(rates["loop"]), about),
            Figure(
                f"{name}.ratio",
                "training / step only",
                "",
                ratios(rates["loop"], rates["ceiling"]),
                about,
            ),
            *_batches(loop, pairs),
            *_epochs(loop, min(pairs, EPOCHS)),
            *gpu.figures(loop, rates["loop"], pairs=pairs, block=block),
        ]


def _batches(loop: Loop, rounds: int) -> Iterator[Figure]:
    """Tiles from where they lie to a batch on the device, and the same with augmentation."""
    trainer, step = loop.trainer, loop.step
    dtype = dtype_of(loop.recipe.train.precision)
    gathered, augmented = [], []
    for epoch in range(1, rounds + 1):
        batches = trainer.batches(loop.number, epoch)
        began = time.perf_counter()
        for _ in trainer.source.batches(iter(batches), dtype):
            pass
        wait_for(loop.device)
        gathered.append(sum(map(len, batches)) / (time.perf_counter() - began))
        began = time.perf_counter()
        for i, batch in enumerate(trainer.source.batches(iter(batches), dtype)):
            step.augmented(
                batch["image"], step.plan(batches[i], epoch, i).draws.augment, loop.stage.epochs
            )
        wait_for(loop.device)
        augmented.append(sum(map(len, batches)) / (time.perf_counter() - began))
    yield Figure(f"{loop.name}.cache", "cache to batch", TILES, tuple(gathered), loop.about)
    yield Figure(
        f"{loop.name}.augmented", "cache to augmented batch", TILES, tuple(augmented), loop.about
    )


def _epochs(loop: Loop, rounds: int) -> Iterator[Figure]:
    """Whole epochs with their validation, as `fit` has them, without its files."""
    trainer, seconds, judged = loop.trainer, [], []
    for n in range(rounds):
        trained = epoch_seconds(loop, n % loop.stage.epochs + 1)
        began = time.perf_counter()
        trainer.validate(loop.number, 1)
        judged.append(time.perf_counter() - began)
        seconds.append(trained + judged[-1])
        logger.info(f"  epoch {n + 1} of {rounds}: {seconds[-1]:.1f} s")
        if sum(seconds) > EPOCHS_S:
            break
    tiles = len(trainer.valid_rows)
    yield Figure(
        f"{loop.name}.validation", "validation", TILES, tuple(tiles / s for s in judged), loop.about
    )
    about = f"{loop.about}, {len(trainer.train_rows)} + {tiles} tiles"
    yield Figure(f"{loop.name}.epoch", "an epoch with validation", "s", tuple(seconds), about)


def epoch_seconds(loop: Loop, epoch: int) -> float:
    """Seconds of an epoch's training."""
    began = time.perf_counter()
    for record in loop.trainer.steps(loop.step, loop.number, epoch):
        last = record
    last.finish()
    return time.perf_counter() - began


def member(rank: int, world: int, recipe_json: str, dataset: str, number: int, run: str) -> Loop:
    """A worker of a group on this machine's CPUs: one core or more for each."""
    dist.init_process_group(
        "gloo", init_method=f"file://{run}/group-{world}", rank=rank, world_size=world
    )
    worker = Worker(rank, world, rank, world, cpus=len(os.sched_getaffinity(0)))
    return Loop(
        Recipe.model_validate_json(recipe_json),
        open_dataset(dataset),
        number,
        worker,
        f"{run}/{rank}",
    )


def stranger(rank: int, world: int, recipe_json: str, dataset: str, number: int, run: str) -> Loop:
    """A process with the threads and the slice of a worker which trains a network of its own: nothing is exchanged."""
    recipe, worker = (
        Recipe.model_validate_json(recipe_json),
        Worker(0, 1, rank, world, cpus=len(os.sched_getaffinity(0))),
    )
    stages = [
        stage.model_copy(update={"batch_size": recipe.batch_size(stage) // world})
        for stage in recipe.stages
    ]
    recipe = recipe.model_copy(update={"stages": tuple(stages)})
    return Loop(recipe, open_dataset(dataset), number, worker, f"{run}/apart-{rank}")


def scaling(
    recipe: Recipe, dataset: Dataset, number: int, run: str, pairs: int, block: int
) -> list[Figure]:
    """Two workers with half the CPUs each against one worker with all of them. On GPUs there is nothing to divide.

    Two processes that exchange nothing show what two workers could reach at most.
    """
    worker = alone(recipe)
    if worker.device.type != "cpu" or worker.cpus < 2:
        return []
    logger.info(
        "one worker with all CPUs, two workers with half of them each, and two that exchange nothing, in turn"
    )
    arguments = (2, recipe.model_dump_json(), dataset.path, number, run)
    with (
        closing(Loop(recipe, dataset, number, worker, run)) as one,
        closing(Group(2, member, *arguments)) as two,
        closing(Group(2, stranger, *arguments)) as apart,
    ):
        rates = alternate({"one": one, "two": two, "apart": apart}, pairs=pairs, steps=block)
    return [
        Figure("workers.one", "one worker", TILES, tuple(rates["one"]), one.about),
        Figure("workers.two", "two workers", TILES, tuple(rates["two"]), one.about),
        Figure(
            "workers.ratio", "two workers / one", "", ratios(rates["two"], rates["one"]), one.about
        ),
        Figure(
            "workers.apart",
            "two that exchange nothing / one",
            "",
            ratios(rates["apart"], rates["one"]),
            one.about,
        ),
    ]


def streamed(
    recipe: Recipe, dataset: Dataset, number: int, run: str, pairs: int, block: int
) -> list[Figure]:
    """Tiles streamed from the shards against cached ones."""
    logger.info("cached and streamed tiles in turn")
    worker = alone(recipe)
    with (
        closing(
            Loop(recipe.model_copy(update={"tiles": "cache"}), dataset, number, worker, run)
        ) as cached,
        closing(
            Resting(
                Loop(recipe.model_copy(update={"tiles": "stream"}), dataset, number, worker, run)
            )
        ) as stream,
    ):
        rates = alternate({"cached": cached, "streamed": stream}, pairs=pairs, steps=block)
    return [
        Figure(
            "stream.loop",
            "training on streamed tiles",
            TILES,
            tuple(rates["streamed"]),
            cached.about,
        ),
        Figure(
            "stream.ratio",
            "streamed / cached",
            "",
            ratios(rates["streamed"], rates["cached"]),
            cached.about,
        ),
    ]


def plain(
    rank: int,
    files: list[Path],
    targets: np.ndarray[Any, Any],
    arch: str,
    size: int,
    batch: int,
    options: dict[str, Any],
) -> Resting:
    """A plain loop in a process of its own, with torch's default threads; its loader rests between blocks."""
    return Resting(PlainLoop(files, targets, arch, size, batch, PEER_LOADERS, **options))


def against_plain(
    recipe: Recipe, dataset: Dataset, number: int, run: str, pairs: int, block: int
) -> list[Figure]:
    """Our loop against a plain PyTorch loop, as people write it and with our network and formats."""
    stage = recipe.stages[number - 1]
    if recipe.model.arch.startswith(TIMM) or stage.freeze:
        logger.info(
            "no plain loop: it knows torchvision's networks, whole; select a stage that is not frozen"
        )
        return []
    logger.info("our loop, a plain PyTorch loop, and that with our network and formats, in turn")
    with closing(Loop(recipe, dataset, number, alone(recipe), run)) as ours:
        files, targets = write_jpegs(dataset, ours.trainer.train_rows.tolist(), Path(run) / "jpegs")
        common = (files, targets, recipe.model.arch, stage.size, recipe.batch_size(stage))
        equal = {
            "precision": ours.recipe.train.precision,
            "channels_last": True,
            "our_network": True,
        }
        with (
            closing(Group(1, plain, *common, {})) as written,
            closing(Group(1, plain, *common, equal)) as formats,
        ):
            sides: dict[str, Side] = {"ours": ours, "plain": written, "plain, our formats": formats}
            rates = alternate(sides, pairs=pairs, steps=block)
    about, alike = ours.about, "plain, our formats"
    return [
        Figure(
            "plain.loop", "plain PyTorch loop", TILES, tuple(rates["plain"]), ours.about_in("fp32")
        ),
        Figure(
            "plain.ratio", "ours / plain loop", "", ratios(rates["ours"], rates["plain"]), about
        ),
        Figure(
            "plain.formats",
            "plain loop, our network and formats",
            TILES,
            tuple(rates[alike]),
            about,
        ),
        Figure(
            "plain.input",
            "ours / that: the input alone",
            "",
            ratios(rates["ours"], rates[alike]),
            about,
        ),
    ]


def choices(
    recipe: Recipe, dataset: Dataset, number: int, run: str, pairs: int, block: int
) -> list[Figure]:
    """What each choice of the step is worth, on a CPU."""
    if alone(recipe).device.type != "cpu":
        return []
    return variants(recipe, len(dataset.classes), number, pairs, block)


def profile(
    recipe: Recipe, dataset: Dataset, number: int, run: str, pairs: int, block: int
) -> list[Figure]:
    """Where the time of the loop's steps goes, on a CPU."""
    worker = alone(recipe)
    if worker.device.type != "cpu":
        return []
    with closing(Loop(recipe, dataset, number, worker, run)) as loop:
        logger.info(f"{loop.about}: where the time of its steps goes")
        return profiled(loop, pairs, block)


def checkpointed(
    recipe: Recipe, dataset: Dataset, number: int, run: str, pairs: int, block: int
) -> list[Figure]:
    """The loop with checkpoints within epochs at their default interval, and without; a block lasts for one interval."""
    worker = alone(recipe)
    with (
        closing(Loop(recipe, dataset, number, worker, f"{run}/without")) as without,
        closing(Saving(recipe, dataset, number, worker, f"{run}/with")) as saving,
    ):
        saving.block_with_save(block)
        interval, first = saving.saver.interval_s, saving.saver.cost_s
        without.block(1)
        began = time.perf_counter()
        without.block(block)
        steps = max(block, round(interval * block / (time.perf_counter() - began)))
        logger.info(
            f"{saving.about}: with a checkpoint every {interval:.0f} s and without, {steps} steps in turn"
        )
        saving.saves = 0
        rates = alternate({"with": saving, "without": without}, pairs=pairs, steps=steps)
        saving.saver.wait()
        names = sorted(Path(run, "with", "checkpoints").glob(f"{STEP}*"))
        size = sum(file.stat().st_size for file in names[-1].iterdir())
    about = f"{saving.about}, every {interval:.0f} s"
    return [
        Figure("checkpoints.loop", "training with checkpoints", TILES, tuple(rates["with"]), about),
        Figure("checkpoints.without", "training without", TILES, tuple(rates["without"]), about),
        Figure(
            "checkpoints.ratio",
            "with checkpoints / without",
            "",
            ratios(rates["with"], rates["without"]),
            about,
        ),
        Figure("checkpoints.saves", "checkpoints in all rounds", "", (float(saving.saves),), about),
        Figure(
            "checkpoints.cost",
            "one checkpoint, beside training",
            "s",
            (saving.saver.cost_s,),
            f"{size / 1e6:.0f} MB; {first:.1f} s for the first, which sets the interval",
        ),
    ]


OTHERS = {
    "workers": scaling,
    "stream": streamed,
    "peer": against_plain,
    "variants": choices,
    "profile": profile,
    "checkpoints": checkpointed,
}


def memory(device: torch.device) -> list[Figure]:
    """The most memory that this process has had."""
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    about = "with the pages of mapped tiles"
    figures = [
        Figure("memory.host", "host memory of the process, at most", "GB", (host / 1e9,), about)
    ]
    if device.type == "cuda":
        used = torch.cuda.max_memory_allocated(device)
        figures.append(Figure("memory.gpu", "GPU memory, at most", "GB", (used / 1e9,)))
    return figures
