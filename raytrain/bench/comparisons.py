"""Parts of the bench that compare the training loop with other ways of training. No Ray.

These are two workers, streamed tiles, a plain PyTorch loop, and training with checkpoints.
"""

from __future__ import annotations

import logging
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from raytrain.bench.blocks import Group, Side, alternate, ratios
from raytrain.bench.figures import Figure
from raytrain.bench.files import write_jpegs
from raytrain.bench.measurement import TILES_PER_S, Measurement
from raytrain.bench.peer import PlainLoop, PlainSettings
from raytrain.bench.sides import Loop, Resting, Saving, alone
from raytrain.checkpoints.layout import STEP
from raytrain.config import Recipe
from raytrain.data.dataset import open_dataset
from raytrain.machine import usable_cpus
from raytrain.models.bodies import TIMM
from raytrain.worker import Worker

logger = logging.getLogger(__name__)


# Workers of the plain loop's DataLoader.
PEER_LOADERS = 2


def workers(measured: Measurement) -> list[Figure]:
    """Compares two workers with half of the CPUs each to one worker with all of them.

    Two processes that exchange nothing show what two workers could reach at most. On a GPU there
    is nothing to divide, and no figure.
    """
    recipe = measured.recipe
    worker = alone(recipe)
    if worker.device.type != "cpu" or worker.cpus < 2:
        return []
    logger.info(
        "one worker with all CPUs, two workers with half of them each, and two processes that "
        "exchange nothing, in turn"
    )
    dataset = measured.dataset
    # As JSON and as a path: both are sent to other processes.
    arguments = (2, recipe.model_dump_json(), dataset.path, measured.number, measured.run)
    with (
        closing(Loop(recipe, dataset, measured.number, worker, measured.run)) as one,
        closing(Group(2, member, *arguments)) as two,
        closing(Group(2, stranger, *arguments)) as apart,
    ):
        sides: dict[str, Side] = {"one": one, "two": two, "apart": apart}
        rates = alternate(sides, pairs=measured.pairs, steps=measured.block)
    about = one.about
    ratio = ratios(rates["two"], rates["one"])
    limit = ratios(rates["apart"], rates["one"])
    return [
        Figure("workers.one", "one worker", TILES_PER_S, tuple(rates["one"]), about),
        Figure("workers.two", "two workers", TILES_PER_S, tuple(rates["two"]), about),
        Figure("workers.ratio", "two workers / one", "", ratio, about),
        Figure("workers.apart", "two that exchange nothing / one", "", limit, about),
    ]


def member(rank: int, world: int, recipe_json: str, dataset: str, number: int, run: str) -> Loop:
    """Builds the side of one worker of a group, which exchanges gradients through gloo.

    Args:
        rank: of this worker.
        world: number of workers.
        recipe_json: the recipe.
        dataset: path of the dataset.
        number: of the stage, from 1.
        run: directory for the files of the group.
    """
    # Processes of a group find each other through a file, which needs no free port.
    meeting_point = f"file://{run}/group-{world}"
    dist.init_process_group("gloo", init_method=meeting_point, rank=rank, world_size=world)
    worker = Worker(rank, world, rank, world, cpus=usable_cpus())
    recipe = Recipe.model_validate_json(recipe_json)
    return Loop(recipe, open_dataset(dataset), number, worker, f"{run}/{rank}")


def stranger(rank: int, world: int, recipe_json: str, dataset: str, number: int, run: str) -> Loop:
    """Builds the side of a process that trains a network of its own and exchanges nothing.

    It has the threads of one worker of a group, and batches of the size of one worker's share.

    Args:
        rank, world, recipe_json, dataset, number, run: as those of `member`.
    """
    recipe = Recipe.model_validate_json(recipe_json)
    # Alone in its world, but one of several processes on this machine: that sets its threads.
    worker = Worker(0, 1, rank, world, cpus=usable_cpus())
    stages = []
    for stage in recipe.stages:
        share = recipe.batch_size(stage) // world
        stages.append(stage.model_copy(update={"batch_size": share}))
    recipe = recipe.model_copy(update={"stages": tuple(stages)})
    return Loop(recipe, open_dataset(dataset), number, worker, f"{run}/apart-{rank}")


def streamed(measured: Measurement) -> list[Figure]:
    """Compares tiles that are streamed from the shards to cached ones."""
    logger.info("cached and streamed tiles in turn")
    worker = alone(measured.recipe)
    with (
        closing(_loop_with_tiles(measured, "cache", worker)) as cached,
        # The decoders of a stream would otherwise work during the blocks of the other side.
        closing(Resting(_loop_with_tiles(measured, "stream", worker))) as stream,
    ):
        sides: dict[str, Side] = {"cached": cached, "streamed": stream}
        rates = alternate(sides, pairs=measured.pairs, steps=measured.block)
    about = cached.about
    values = tuple(rates["streamed"])
    ratio = ratios(rates["streamed"], rates["cached"])
    return [
        Figure("stream.loop", "training on streamed tiles", TILES_PER_S, values, about),
        Figure("stream.ratio", "streamed / cached", "", ratio, about),
    ]


def _loop_with_tiles(measured: Measurement, tiles: str, worker: Worker) -> Loop:
    recipe = measured.recipe.model_copy(update={"tiles": tiles})
    return Loop(recipe, measured.dataset, measured.number, worker, measured.run)


def against_plain(measured: Measurement) -> list[Figure]:
    """Compares our loop to a plain PyTorch loop.

    The plain loop trains twice: as people write it, and with our network and number formats.
    """
    recipe = measured.recipe
    stage = measured.stage
    arch = recipe.model.arch
    if arch.startswith(TIMM) or stage.freeze:
        logger.info(
            "no plain loop: it trains whole networks of torchvision only; "
            "select a stage that is not frozen"
        )
        return []
    logger.info("our loop, a plain PyTorch loop, and that with our network and formats, in turn")
    loop = Loop(recipe, measured.dataset, measured.number, alone(recipe), measured.run)
    with closing(loop) as ours:
        rows = ours.opened.train_rows.tolist()
        files, targets = write_jpegs(measured.dataset, rows, Path(measured.run) / "jpegs")
        usual = PlainSettings(arch, stage.size, measured.batch_size, PEER_LOADERS)
        like_ours = PlainSettings(
            arch,
            stage.size,
            measured.batch_size,
            PEER_LOADERS,
            precision=ours.recipe.train.precision,
            channels_last=True,
            our_network=True,
        )
        with (
            closing(Group(1, plain, files, targets, usual)) as written,
            closing(Group(1, plain, files, targets, like_ours)) as formats,
        ):
            sides: dict[str, Side] = {"ours": ours, "plain": written, "plain, our formats": formats}
            rates = alternate(sides, pairs=measured.pairs, steps=measured.block)
    return _plain_figures(ours, rates)


def plain(
    rank: int, files: list[Path], targets: np.ndarray[Any, Any], settings: PlainSettings
) -> Resting:
    """Builds a plain loop in a process of its own, where torch has its default threads.

    Args:
        rank: of the process, always 0; `Group` passes it.
        files: the tiles.
        targets: their labels, uint8 (n, K).
        settings: of the plain loop.
    """
    # Its loader would otherwise prepare batches during the blocks of the other sides.
    return Resting(PlainLoop(files, targets, settings))


def _plain_figures(ours: Loop, rates: dict[str, list[float]]) -> list[Figure]:
    about = ours.about
    usual = tuple(rates["plain"])
    ratio = ratios(rates["ours"], rates["plain"])
    formats = tuple(rates["plain, our formats"])
    input_ratio = ratios(rates["ours"], rates["plain, our formats"])
    label = "plain loop, our network and formats"
    return [
        Figure("plain.loop", "plain PyTorch loop", TILES_PER_S, usual, ours.about_in("fp32")),
        Figure("plain.ratio", "ours / plain loop", "", ratio, about),
        Figure("plain.formats", label, TILES_PER_S, formats, about),
        Figure("plain.input", "ours / that: the input alone", "", input_ratio, about),
    ]


def checkpointed(measured: Measurement) -> list[Figure]:
    """Compares training with checkpoints within epochs to training without.

    Checkpoints come at the default interval, and a block takes as long as one interval.
    """
    recipe = measured.recipe
    dataset = measured.dataset
    number = measured.number
    worker = alone(recipe)
    with (
        closing(Loop(recipe, dataset, number, worker, f"{measured.run}/without")) as without,
        closing(Saving(recipe, dataset, number, worker, f"{measured.run}/with")) as saving,
    ):
        saving.block_with_save(measured.block)
        # The interval depends on what the first checkpoint cost, so it is known only now.
        interval_s = saving.saver.interval_s
        first_cost_s = saving.saver.cost_s
        steps = _steps_in(interval_s, without, measured.block)
        logger.info(
            f"{saving.about}: with a checkpoint every {interval_s:.0f} s and without, "
            f"{steps} steps in turn"
        )
        saving.saves = 0
        sides: dict[str, Side] = {"with": saving, "without": without}
        rates = alternate(sides, pairs=measured.pairs, steps=steps)
        saving.saver.wait()
        megabytes = _newest_checkpoint_bytes(f"{measured.run}/with") / 1e6
    about = f"{saving.about}, every {interval_s:.0f} s"
    cost = (saving.saver.cost_s,)
    cost_about = f"{megabytes:.0f} MB; {first_cost_s:.1f} s for the first, which sets the interval"
    saving_rates = tuple(rates["with"])
    plain_rates = tuple(rates["without"])
    ratio = ratios(rates["with"], rates["without"])
    saves = (float(saving.saves),)
    return [
        Figure("checkpoints.loop", "training with checkpoints", TILES_PER_S, saving_rates, about),
        Figure("checkpoints.without", "training without", TILES_PER_S, plain_rates, about),
        Figure("checkpoints.ratio", "with checkpoints / without", "", ratio, about),
        Figure("checkpoints.saves", "checkpoints in all rounds", "", saves, about),
        Figure("checkpoints.cost", "one checkpoint, beside training", "s", cost, cost_about),
    ]


def _steps_in(seconds: float, loop: Loop, block: int) -> int:
    """About as many steps as a loop trains in some seconds, but at least a block."""
    # The first step pays for fetching ahead and would make the others look slow.
    loop.block(1)
    began = time.perf_counter()
    loop.block(block)
    seconds_per_block = time.perf_counter() - began
    return max(block, round(seconds * block / seconds_per_block))


def _newest_checkpoint_bytes(run: str) -> int:
    """The size of a run's newest checkpoint within an epoch."""
    # Names of checkpoints in order are steps in order.
    checkpoints = sorted(Path(run, "checkpoints").glob(f"{STEP}*"))
    return sum(file.stat().st_size for file in checkpoints[-1].iterdir())
