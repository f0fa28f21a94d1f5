"""Runs `fit` in a gloo group of processes and records what each step really saw, from inside the step."""

import hashlib
import json
import multiprocessing
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from raytrain.config import Recipe
from raytrain.data.dataset import open_dataset
from raytrain.training.loop import Hooks, fit
from raytrain.training.step import Batch, Worker


def run_group(recipe: Recipe, run: Path, world: int, record: bool = True) -> None:
    """Trains in `world` processes; leaves parameters-<stage>-<rank>.json and batches-<rank>.jsonl in `run`."""
    run.mkdir(parents=True, exist_ok=True)
    arguments = (recipe.model_dump_json(), str(run), world, record)
    if world == 1:
        _member(0, *arguments)
    else:
        # One server imports torch and forks the members: a spawned one would take 5 to 10 seconds of a core.
        multiprocessing.set_forkserver_preload(["raytrain.training.loop"])
        mp.start_processes(_member, arguments, nprocs=world, start_method="forkserver")


def run_alone(recipe: Recipe, run: Path, **hooks) -> dict:
    """Trains in this process."""
    return fit(recipe, open_dataset(recipe.dataset), str(run), Worker(), Hooks(say=lambda line: None, **hooks))


def tile_hash(image: torch.Tensor) -> str:
    """A tile known by its pixels: no index computed by the loop takes part."""
    return hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()[:16]


def _member(rank: int, recipe_json: str, run: str, world: int, record: bool) -> None:
    recipe = Recipe.model_validate_json(recipe_json)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{run}/group", rank=rank, world_size=world)
    batches = Path(run) / f"batches-{rank}.jsonl"

    def on_batch(batch: Batch) -> None:
        names = [tile_hash(image) for image in batch.tensors["image"]]
        line = {"part": batch.part, "stage": batch.stage, "epoch": batch.epoch, "number": batch.number, "tiles": names}
        with batches.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def on_stage_end(stage: int, model: torch.nn.Module) -> None:
        state = {k: hashlib.sha256(v.numpy().tobytes()).hexdigest() for k, v in model.state_dict().items()}
        (Path(run) / f"parameters-{stage}-{rank}.json").write_text(json.dumps(state))

    hooks = Hooks(say=lambda line: None, on_stage_end=on_stage_end, **({"on_batch": on_batch} if record else {}))
    fit(recipe, open_dataset(recipe.dataset), run, Worker(rank, world, rank, world), hooks)
    if world > 1:
        dist.destroy_process_group()
