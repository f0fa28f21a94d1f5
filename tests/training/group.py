"""Runs `fit` in a gloo group of processes and records what each step really saw, from inside the step."""

import csv
import hashlib
import json
import multiprocessing
import os
import signal
import tempfile
import uuid
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from batches import Batch, batches_seen, ignored

from raytrain.checkpoints.saver import Saver
from raytrain.config import Recipe
from raytrain.data.dataset import open_dataset
from raytrain.training import saving
from raytrain.training.loop import fit
from raytrain.training.services import Hooks
from raytrain.worker import Worker

TIMES = ("seconds", "images_per_s")
# One server imports torch and the network's library, and forks the members: a spawned one would take 5 to 10 seconds of a core.
multiprocessing.set_forkserver_preload(["raytrain.training.loop", "timm"])


def run_group(
    recipe: Recipe, run: Path, world: int, record: bool = True, kill: tuple[int, int] | None = None
) -> None:
    """Trains in `world` processes; leaves parameters-<stage>-<rank>.json and batches-<rank>.jsonl in `run`.

    With kill = (rank, n) that rank gets SIGKILL as its n-th batch of this attempt begins (from 0, validation included);
    torch ends the others and raises ProcessExitedException.
    """
    try:
        _start_group(recipe, run, world, record, kill)
    except mp.ProcessRaisedException as error:
        # The others may be heard first: their connection to the killed one is gone.
        if kill is None or "gloo" not in str(error):
            raise
        raise mp.ProcessExitedException(str(error), kill[0], 0, -signal.SIGKILL) from None


def _start_group(
    recipe: Recipe, run: Path, world: int, record: bool, kill: tuple[int, int] | None
) -> None:
    run.mkdir(parents=True, exist_ok=True)
    group = f"file://{run}/group-{uuid.uuid4().hex}"
    arguments = (recipe.model_dump_json(), str(run), world, record, group, kill)
    if world == 1 and kill is None:
        _member(0, *arguments)
    else:
        try:
            mp.start_processes(_member, arguments, nprocs=world, start_method="forkserver")
        finally:
            # torch never removes what a member said that failed.
            for said in Path(tempfile.gettempdir()).glob("pytorch-errorfile-*"):
                said.unlink()


def run_alone(recipe: Recipe, run: Path, on_batch=ignored, backoff=False, **hooks) -> dict:
    """Trains in this process; `on_batch` gets each `Batch`."""
    with batches_seen(on_batch):
        return fit(
            recipe,
            open_dataset(recipe.dataset),
            str(run),
            Worker(),
            Hooks(**hooks),
            backoff=backoff,
        )


def save_at_once(patch=setattr) -> None:
    """Makes every save wait until it is written: a run that ends after a step has the checkpoint of that step."""
    save = Saver.save

    def waiting(self, entries, began):
        save(self, entries, began)
        self.pending.exception()

    patch(Saver, "save", waiting)


def trace(run):
    """All that must not depend on where a run was stopped: sha256 of weights and averages of each stage, the record."""
    hashes = {}
    for path in sorted((run / "checkpoints").iterdir()):
        manifest = json.loads((path / "MANIFEST.json").read_text())
        hashes[path.name] = {
            name: value for name, value in manifest.items() if name.endswith(".safetensors")
        }
    rows = [
        {k: v for k, v in row.items() if k not in TIMES}
        for row in csv.DictReader((run / "history.csv").open())
    ]
    return hashes, rows, (run / "metrics.jsonl").read_text()


def tile_hash(image: torch.Tensor) -> str:
    """A tile known by its pixels: no index computed by the loop takes part."""
    return hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()[:16]


def _member(
    rank: int,
    recipe_json: str,
    run: str,
    world: int,
    record: bool,
    group: str,
    kill: tuple[int, int] | None,
) -> None:
    recipe = Recipe.model_validate_json(recipe_json)
    if world > 1:
        dist.init_process_group("gloo", init_method=group, rank=rank, world_size=world)
    if kill is not None:
        save_at_once()
    batches, seen = Path(run) / f"batches-{rank}.jsonl", iter(range(10**6))

    def on_batch(batch: Batch) -> None:
        if kill == (rank, next(seen)):
            os.kill(os.getpid(), signal.SIGKILL)
        if not record:
            return
        names = [tile_hash(image) for image in batch.tensors["image"]]
        line = {
            "part": batch.part,
            "stage": batch.stage,
            "epoch": batch.epoch,
            "number": batch.number,
            "tiles": names,
        }
        with batches.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def end_stage(job, state, services, number) -> None:
        real_end(job, state, services, number)
        hashes = {
            k: hashlib.sha256(v.numpy().tobytes()).hexdigest()
            for k, v in state.model.state_dict().items()
        }
        (Path(run) / f"parameters-{number}-{rank}.json").write_text(json.dumps(hashes))

    real_end = saving.end_stage
    worker = Worker(rank, world, rank, world)
    with patch.object(saving, "end_stage", end_stage), batches_seen(on_batch):
        fit(recipe, open_dataset(recipe.dataset), run, worker, Hooks())
    if world > 1:
        dist.destroy_process_group()
