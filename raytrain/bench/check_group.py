"""Of a check: several processes on the one GPU against one, over gloo; and NCCL with a group of one. No ray."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from raytrain.bench.check_numbers import in_stage, need_gpu
from raytrain.bench.verdicts import Found, Setting, Verdict, close, tried
from raytrain.data.dataset import open_dataset
from raytrain.training.hooks import Hooks
from raytrain.training.loop import Trainer
from raytrain.training.step import Stepper
from raytrain.worker import Worker

WORLDS = (2, 3)
STEPS = 4
# Sums over ranks have another order than over one batch.
ROUNDING = 5e-3
ELEMENTS = 1 << 20


def processes(setting: Setting) -> Iterator[Verdict]:
    """Losses of some steps of two and three processes, with graphs and without, against those of one process."""
    ways = ("eager", "graphs") if setting.on_gpu else ("eager",)
    with tempfile.TemporaryDirectory(prefix="raytrain-check-") as directory:
        alone = _losses_of_one(setting, directory)
        for world in WORLDS:
            said: str | None = None
            try:
                # A CUDA context does not survive a fork.
                spawn(member, (world, asdict(setting), ways, directory), nprocs=world)
            except Exception as error:
                said = next(
                    (line for line in reversed(str(error).strip().splitlines()) if line),
                    type(error).__name__,
                )
            for how in ways:
                yield tried(
                    "processes",
                    f"{world} processes, {how}",
                    partial(_compared, directory, world, how, alone, said),
                )
    yield tried("processes", "NCCL alone, then graphs", lambda: _nccl(setting))


def _recipe(setting: Setting, how: str) -> Any:
    # Whatever depends on a rank's own tiles is off.
    return setting.recipe(dropout=0.0, batch_norm="fixed", execution=how)


def _losses(setting: Setting, how: str, worker: Worker, run: str) -> list[float]:
    """Global losses of some steps; all ranks call it together."""
    trainer = Trainer(
        _recipe(setting, how),
        open_dataset(setting.dataset),
        run,
        worker,
        Hooks(),
    )
    with closing(trainer.placed.feed), closing(trainer.saver):
        step, found = trainer.start_stage(1), list[torch.Tensor]()
        trainer.model.train()
        batches = trainer.batches(1, 1)
        for number in range(STEPS):
            found.append(step(batches[number % len(batches)], 1, number).values[0])
        total = torch.stack(found)
        if worker.world > 1:
            dist.all_reduce(total)
        values: list[float] = total.tolist()
        return values


def _losses_of_one(setting: Setting, directory: str) -> list[float]:
    return _losses(setting, "eager", setting.worker, f"{directory}/alone")


def member(
    rank: int, world: int, settings: dict[str, Any], ways: tuple[str, ...], directory: str
) -> None:
    """One process of a group; rank 0 leaves the losses of each way in a file."""
    setting = Setting(**settings)
    dist.init_process_group(
        "gloo", init_method=f"file://{directory}/group-{world}", rank=rank, world_size=world
    )
    worker = Worker(rank, world, rank, world, device=torch.device(setting.device))
    for how in ways:
        found = _losses(setting, how, worker, f"{directory}/{world}-{how}-{rank}")
        if rank == 0:
            Path(directory, f"losses-{world}-{how}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def _compared(directory: str, world: int, how: str, alone: list[float], said: str | None) -> Found:
    file = Path(directory, f"losses-{world}-{how}.json")
    if not file.exists():
        return False, said or "no losses", {}
    found = json.loads(file.read_text())
    difference = max(abs(a - b) / abs(a) for a, b in zip(alone, found, strict=True))
    return close(
        difference, ROUNDING, f"losses of {STEPS} steps differ from those of one process by"
    )


def _nccl(setting: Setting) -> Found:
    """Collectives of a group of one, and a graph that is captured while the group lives."""
    need_gpu(setting)
    # torch's newer NCCL binds to the device of this rank, which Ray names too.
    with (
        mock.patch.dict(os.environ, LOCAL_RANK="0"),
        tempfile.TemporaryDirectory(prefix="raytrain-check-") as directory,
    ):
        dist.init_process_group(
            "nccl", init_method=f"file://{directory}/group", rank=0, world_size=1
        )
        try:
            values = torch.ones(ELEMENTS, device=setting.device)
            dist.all_reduce(values)
            dist.broadcast(values, 0)
            dist.barrier()
            losses = list[float]()

            def work(trainer: Trainer, step: Stepper) -> None:
                trainer.model.train()
                losses.append(float(step(trainer.batches(1, 1)[0], 1, 0).values[0]))
                dist.all_reduce(values)

            in_stage(setting, "graphs", [{}], {}, work)
            right = float(values.sum()) == ELEMENTS
        finally:
            dist.destroy_process_group()
    return (
        right and losses[0] > 0,
        f"sums are {'right' if right else 'wrong'}, a graphed step gives {losses[0]:.3f}",
        {},
    )
