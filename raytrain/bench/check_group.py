"""A part of the check: several processes on one GPU against one process, and NCCL alone. No Ray.

The processes communicate through gloo, since NCCL refuses several ranks on one GPU.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from raytrain.bench.check_common import opened_stage, temporary_directory
from raytrain.bench.stage import OpenStage
from raytrain.bench.verdicts import Found, Setting, Verdict, need_gpu, tried, within
from raytrain.data.dataset import open_dataset
from raytrain.worker import Worker

# Numbers of processes that are tried.
WORLDS = (2, 3)
# Steps whose losses are compared.
STEPS = 4
# Limit of a relative difference: sums over ranks have another order than those over one batch.
ROUNDING = 5e-3
# Values of a tensor that NCCL sums up.
ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Ended:
    """A group of processes that has ended.

    Attributes:
        directory: where its rank 0 left the losses.
        world: number of processes.
        error: last line of the error of one of them, or None.
    """

    directory: str
    world: int
    error: str | None


def processes(setting: Setting) -> Iterator[Verdict]:
    """Compares the losses of two and three processes, with graphs and without, to those of one."""
    ways: tuple[str, ...] = ("eager",)
    if setting.on_gpu:
        ways = ("eager", "graphs")
    with temporary_directory() as directory:
        losses = _losses(setting, "eager", setting.worker, f"{directory}/alone")
        for world in WORLDS:
            group = _run_group(setting, world, ways, directory)
            for how in ways:
                name = f"{world} processes, {how}"
                yield tried("processes", name, partial(_compared, group, how, losses))
    yield tried("processes", "NCCL alone, then graphs", partial(_nccl, setting))


def _run_group(setting: Setting, world: int, ways: tuple[str, ...], directory: str) -> Ended:
    """Runs a group of processes until it ends."""
    try:
        # Spawned and not forked, because a CUDA context does not survive a fork.
        spawn(member, (world, asdict(setting), ways, directory), nprocs=world)
    except Exception as error:
        return Ended(directory, world, _last_line(error))
    return Ended(directory, world, None)


def _last_line(error: Exception) -> str:
    """The last line of an error's text that is not empty, which in a traceback is the error."""
    for line in reversed(str(error).strip().splitlines()):
        if line:
            return line
    return type(error).__name__


def member(
    rank: int, world: int, settings: dict[str, Any], ways: tuple[str, ...], directory: str
) -> None:
    """Runs in each process of a group; rank 0 leaves the losses of each way in a file.

    Args:
        rank: of this process.
        world: number of processes.
        settings: fields of a `Setting`.
        ways: how the network is executed, one after the other.
        directory: for the files of the group.
    """
    setting = Setting(**settings)
    # Processes of a group find each other through a file, which needs no free port.
    meeting_point = f"file://{directory}/group-{world}"
    dist.init_process_group("gloo", init_method=meeting_point, rank=rank, world_size=world)
    worker = Worker(rank, world, rank, world, device=torch.device(setting.device))
    for how in ways:
        losses = _losses(setting, how, worker, f"{directory}/{world}-{how}-{rank}")
        if rank == 0:
            _losses_file(directory, world, how).write_text(json.dumps(losses))
    dist.destroy_process_group()


def _losses_file(directory: str, world: int, how: str) -> Path:
    return Path(directory, f"losses-{world}-{how}.json")


def _losses(setting: Setting, how: str, worker: Worker, run: str) -> list[float]:
    """The mean losses of some global batches; all processes of a group call it together."""
    # Off is what depends on the tiles of one rank: dropout and the statistics of BatchNorm.
    recipe = setting.recipe(dropout=0.0, batch_norm="fixed", execution=how)
    with closing(OpenStage(recipe, open_dataset(setting.dataset), 1, worker, run)) as opened:
        opened.model.train()
        batches = opened.batches(1)
        shares = []
        for number in range(STEPS):
            outcome = opened.train_on(batches[number % len(batches)], number)
            shares.append(outcome.values[0])
        # Each rank has its share of the mean, so the sum over the ranks is the mean.
        total = torch.stack(shares)
        if worker.world > 1:
            dist.all_reduce(total)
        losses: list[float] = total.tolist()
        return losses


def _compared(group: Ended, how: str, losses_of_one: list[float]) -> Found:
    """Compares the losses of a group to those of one process."""
    file = _losses_file(group.directory, group.world, how)
    if not file.exists():
        return Found(False, group.error or "no losses", {})
    losses = json.loads(file.read_text())
    differences = []
    for right, found in zip(losses_of_one, losses, strict=True):
        differences.append(abs(right - found) / abs(right))
    what = f"losses of {STEPS} steps differ from those of one process by"
    return within(max(differences), ROUNDING, what)


def _nccl(setting: Setting) -> Found:
    """Runs collectives of a group of one, and captures a graph while the group exists."""
    need_gpu(setting)
    # NCCL in newer releases of torch binds to the device of this rank, which Ray sets as well.
    with mock.patch.dict(os.environ, LOCAL_RANK="0"), temporary_directory() as directory:
        meeting_point = f"file://{directory}/group"
        dist.init_process_group("nccl", init_method=meeting_point, rank=0, world_size=1)
        try:
            values = torch.ones(ELEMENTS, device=setting.device)
            dist.all_reduce(values)
            dist.broadcast(values, 0)
            dist.barrier()
            with opened_stage(setting, "graphs", [{}]) as opened:
                opened.model.train()
                outcome = opened.train_on(opened.batches(1)[0], 0)
                loss = float(outcome.values[0])
                # Shows that the capture has not damaged the group.
                dist.all_reduce(values)
            # All sums of a group of one leave the values at 1.
            right = float(values.sum()) == ELEMENTS
        finally:
            dist.destroy_process_group()
    sums = "right" if right else "wrong"
    detail = f"sums are {sums}, a graphed step gives {loss:.3f}"
    return Found(right and loss > 0, detail, {})
