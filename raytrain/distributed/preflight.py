"""What can be known before a worker starts: resources, storage, checkpoint, weights."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as NodeAffinity

from raytrain import runs, storage
from raytrain.checkpoints import fitting, layout
from raytrain.config import Recipe
from raytrain.data.dataset import Dataset, open_dataset
from raytrain.distributed import environment, gpus
from raytrain.distributed.cluster import cpus
from raytrain.distributed.network import check_interfaces, network, only_here, unknown_interface
from raytrain.distributed.nodes import NODE_ANSWERS_S, check_reach, working_nodes
from raytrain.errors import ConfigError, DataError, ResourceError, StorageError
from raytrain.models import initial_weights, networks
from raytrain.tiles.sampling import check_batches
from raytrain.training.start import initial

# fp32 weights and buffers, and two moments of Adam for each weight.
BYTES_PER_WEIGHT = 4
ADAM_MOMENTS = 2
# The last epoch's, those within an epoch, and the one that is being written.
FULL_CHECKPOINTS = 2 + layout.KEPT_STEPS


def check_recipe(recipe: Recipe, run: runs.Run | None = None) -> tuple[Recipe, Dataset]:
    """Resolves the places of a recipe and checks all that needs no cluster.

    Args:
        recipe: as the user gave it.
        run: that goes on; with checkpoints of its own it needs neither its old starting point nor weights.

    Returns:
        The recipe with absolute places, and its dataset.

    Raises:
        ConfigError, DataError, StorageError, RemoteError: each with its sentence.
    """
    if recipe.dataset is None:
        raise ConfigError(
            "no dataset is given",
            "there is nothing to train on",
            "--dataset DIR, as written by raytrain ingest --out DIR",
        )
    starts = run is None or not run.checkpoints
    dataset = (
        open_dataset(recipe.dataset) if run is None else _dataset_of(run, recipe, recipe.dataset)
    )
    check_batches(
        recipe, *(len(dataset.part_rows(recipe.data.split, part)) for part in ("train", "valid"))
    )
    paths = {"dataset": dataset.path, "storage": storage.absolute(recipe.storage)}
    model = networks.build(
        recipe.model.arch, len(dataset.classes), recipe.model.dropout, recipe.model.batch_norm
    )
    sizes = (
        stage.size_at(epoch) for stage in recipe.stages for epoch in range(1, stage.epochs + 1)
    )
    networks.check_sizes(model, recipe.model.arch, sizes)
    if starts and recipe.init_from is not None:
        paths["init_from"] = runs.find_checkpoint(recipe.init_from, recipe.storage)
        source = initial(recipe.model_copy(update=paths), dataset)
        assert source is not None
        fitting.check_fits(source, dataset.classes, recipe.model.arch, recipe.data.normalize)
        initial_weights.load_weights(model, source.weights(), source.path)
    elif starts:
        state = initial_weights.body_weights(recipe.model.arch, recipe.model.weights)
        if state is not None:
            initial_weights.load_body(model, state, recipe.model.weights)
    if recipe.model.weights not in ("imagenet", "none"):
        weights = storage.absolute(recipe.model.weights)
        recipe = recipe.model_copy(
            update={"model": recipe.model.model_copy(update={"weights": weights})}
        )
    storage.probe(paths["storage"])
    check_disk(recipe, paths["storage"], networks.parameter_count(model), run)
    return recipe.model_copy(update=paths), dataset


def _dataset_of(run: runs.Run, recipe: Recipe, path: str) -> Dataset:
    """The dataset of a run that goes on, at its old place or at another.

    Raises:
        DataError: there is none, or it is another one.
    """
    again = runs.resume_command(run.name, storage.parent(run.path))
    if path == run.recipe.dataset and not storage.exists(storage.join(path, "dataset.json")):
        raise DataError(
            f"the dataset of the run {run.name} is not at {path} any more",
            "its tiles were moved, or lie on a disk that is not there now",
            f"{again} --dataset NEW, with the place where it is now",
        )
    dataset = open_dataset(path)
    dataset.split(recipe.data.split)  # there is such a split
    found = {"dataset_hash": dataset.hash, "split_hash": dataset.split_hash(recipe.data.split)}
    other = [key for key, known in runs.trained_on(run).items() if found[key] != known]
    if other:
        what = (
            "tiles or labels"
            if "dataset_hash" in other
            else f"rows in the parts of its split {recipe.data.split}"
        )
        raise DataError(
            f"the dataset {dataset.path} is not the one that the run {run.name} was trained on: it has other {what}",
            "validation tiles could have been trained on",
            f"{again} --dataset PLACE of the same dataset; or start a new run with --init-from {shlex.quote(run.name)}",
        )
    return dataset


def check_disk(recipe: Recipe, path: str, weights: int, run: runs.Run | None = None) -> None:
    """Compares the free disk under a storage path with the checkpoints of a run, of which one that goes on has some.

    Raises:
        StorageError: they will not fit.
    """
    named, full = checkpoint_bytes(recipe, weights)
    first, last = recipe.selected
    needed, free = named * (last - first + 2) + full * FULL_CHECKPOINTS, free_bytes(path)
    if free is not None and free < needed - (held_bytes(run.path) if run else 0):
        raise StorageError(
            f"the checkpoints of this run need {needed / 1e6:,.0f} MB, {path} has {free / 1e6:,.0f} MB free",
            "the disk would be full in the middle of training",
            "free some, or give another --storage",
        )


def checkpoint_bytes(recipe: Recipe, weights: int) -> tuple[int, int]:
    """Bytes of a checkpoint by the number of weights: one under a stage's name, and one to go on from."""
    copies = 2 if recipe.train.ema else 1
    return weights * BYTES_PER_WEIGHT * copies, weights * BYTES_PER_WEIGHT * (copies + ADAM_MOMENTS)


def free_bytes(path: str) -> int | None:
    """Free bytes of the disk that a directory is on; None for an object store."""
    return None if storage.is_uri(path) else shutil.disk_usage(Path(storage.absolute(path))).free


def held_bytes(run: str) -> int:
    """Bytes of the checkpoints in a local run directory."""
    return sum(
        path.stat().st_size for path in Path(run, "checkpoints").rglob("*") if path.is_file()
    )


def check_group(recipe: Recipe) -> None:
    """Refuses what is known of a worker group before Ray starts: as `check_workers`, and the network where it is local.

    Raises:
        ConfigError: a variable names a network interface that is not there.
        ResourceError: as `check_workers`.
    """
    check_workers(recipe.num_workers)
    if not environment.connects():
        check_interfaces(gpu=recipe.use_gpu is not False and torch.cuda.is_available())


def check_workers(num_workers: int) -> None:
    """Refuses more workers than the CPUs of the connected cluster, or of this machine where a local one will start.

    Raises:
        ConfigError: the environment is not one in which Ray starts.
        ResourceError: too many workers, or no cluster answers.
    """
    if not ray.is_initialized() and environment.check():
        return
    if num_workers > cpus():
        raise ResourceError(
            f"{num_workers} workers are asked for, there are {cpus()} CPUs",
            "Ray would wait for them for ever",
            f"--num-workers {cpus()}, or set RAY_ADDRESS to a larger cluster"
            if cpus()
            else "add a machine to the cluster, or set RAY_ADDRESS to another",
        )


def check_cluster(recipe: Recipe) -> None:
    """Compares a recipe with the connected cluster.

    Raises:
        ConfigError, ResourceError: as `check_workers`, `use_gpu` and `check_networks`.
        StorageError: a node cannot use the storage path.
    """
    check_workers(recipe.num_workers)
    gpu = use_gpu(recipe)
    check_reach(recipe.storage)
    if environment.connects():
        check_networks(recipe.num_workers, gpu)


def check_networks(num_workers: int, gpu: bool) -> None:
    """Asks every node of the connected cluster by which network interfaces workers there would meet the others.

    Raises:
        ConfigError: a variable names none that is there, or workers on several machines would not find each other.
        ResourceError: a node does not answer.
    """
    nodes = working_nodes()
    ask = ray.remote(num_cpus=0)(network)
    asked = [
        ask.options(scheduling_strategy=NodeAffinity(node["NodeID"], soft=False)) for node in nodes
    ]
    answers = [one.remote(gpu) for one in asked]
    # Ray packs workers where there is room, but does not promise it.
    several = len(nodes) > 1 and num_workers > 1
    for node, answer in zip(nodes, answers, strict=True):
        where = f"the node {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        try:
            found = ray.get(answer, timeout=NODE_ANSWERS_S)
        except ray.exceptions.RayError as error:
            raise ResourceError(
                f"{where} does not answer: {str(error).splitlines()[0]}",
                "a worker there would not start",
                "ray status shows the cluster's nodes; then the same command again",
            ) from None
        if found.unknown:
            raise unknown_interface(found, where, " there, before ray start")
        if several and found.alone:
            raise only_here(found, where)


def use_gpu(recipe: Recipe) -> bool:
    """Whether workers get a GPU each, on the connected cluster, or on this machine where none is connected.

    Args:
        recipe: with what is wanted.

    Raises:
        ConfigError: synchronised BatchNorm was asked for and workers have no GPU.
        ResourceError: GPUs were asked for and there are too few, or torch does not see them.
    """
    count = gpus.count(gpus.usable(recipe.use_gpu))
    wanted = recipe.use_gpu if recipe.use_gpu is not None else count > 0
    if wanted and recipe.num_workers > count:
        path = "the cluster declares" if ray.is_initialized() else "this machine has"
        raise ResourceError(
            f"{recipe.num_workers} workers with a GPU each are asked for, {path} {count} GPUs",
            "Ray would wait for them for ever",
            f"--num-workers {count}" if count else "--no-use-gpu, or a cluster with GPUs",
        )
    networks.check_batch_norm(recipe.model.batch_norm, "cuda" if wanted else "cpu")
    return wanted
