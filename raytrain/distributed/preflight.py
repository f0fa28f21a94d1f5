"""Checks what can be known before a worker starts: resources, storage, checkpoints, weights."""

from __future__ import annotations

import logging
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import ray
import torch

from raytrain import registry, runs, storage, tracking
from raytrain.checkpoints import fitting, layout
from raytrain.config import NAMED_WEIGHTS, Recipe
from raytrain.data import bands
from raytrain.data.dataset import Array, Dataset, open_dataset
from raytrain.data.splits import only_in_valid
from raytrain.distributed import environment, gpus
from raytrain.distributed.network import check_interfaces, network, only_here, unknown_interface
from raytrain.distributed.nodes import Answer, Places, check_machines, facts_of
from raytrain.distributed.session import cpus
from raytrain.errors import ConfigError, DataError, ResourceError, StorageError
from raytrain.evaluation import own_metrics
from raytrain.models import initial_weights, networks
from raytrain.tasks.choice import class_weights, resolved
from raytrain.tiles.cache import kept_size
from raytrain.tiles.sampling import check_batches, training_rows
from raytrain.training import normalization
from raytrain.training.start import initial

logger = logging.getLogger(__name__)

# A checkpoint holds weights and buffers in fp32, and both of Adam's moments of each weight.
BYTES_PER_WEIGHT = 4
ADAM_MOMENTS = 2
# Checkpoints to resume from that exist at the same time: the one of the last epoch, those within
# an epoch, and the one that is being written.
FULL_CHECKPOINTS = 2 + layout.KEPT_STEPS


def check_recipe(recipe: Recipe, run: runs.Run | None = None) -> tuple[Recipe, Dataset]:
    """Makes the paths of a recipe absolute and checks everything that needs no cluster.

    Args:
        recipe: as the user gave it.
        run: the run that is resumed, if any. Once it has checkpoints of its own, it needs neither
            the checkpoint it was started from nor pretrained weights.

    Returns:
        The recipe with absolute paths and the numbers of its normalisation, and its dataset.

    Raises:
        ConfigError, DataError, StorageError, RemoteError: what is wrong with the recipe.
    """
    if recipe.dataset is None:
        raise ConfigError(
            "no dataset is given",
            "there is nothing to train on",
            "--dataset DIR, as written by raytrain ingest --out DIR",
        )
    if run is None:
        dataset = open_dataset(recipe.dataset)
    else:
        dataset = _dataset_of(run, recipe, recipe.dataset)
    if recipe.mlflow is not None:
        tracking.check_form(recipe.mlflow)
    split = recipe.data.split
    train_rows = training_rows(recipe, dataset)
    valid_rows = dataset.part_rows(split, "valid")
    check_batches(recipe, len(train_rows), len(valid_rows))
    _warn_of_unlearned(dataset, train_rows, valid_rows)
    recipe = resolved(recipe, dataset.task)
    class_weights(recipe, dataset)
    own_metrics.combined(recipe.metrics, (), dataset.task)
    tiles = dataset.tile_format
    if not tiles.is_plain:
        bands.reader()  # refuses where the package is missing
    normalization.check(recipe, tiles)
    kept_size(recipe, dataset)  # refuses a size that the tiles do not have
    model = registry.training(dataset.task).network(
        recipe.model, len(dataset.classes), tiles.channels
    )
    networks.check_sizes(model, recipe.model.arch, _image_sizes(recipe))
    recipe = normalization.resolved(recipe, dataset)
    if run is None or not run.checkpoints:
        recipe = _check_start(recipe, dataset, model)
    # After the checks, whose messages show paths as the user has typed them.
    recipe = _with_absolute_paths(recipe, dataset)
    storage.probe(recipe.storage)
    check_disk(recipe, recipe.storage, networks.parameter_count(model), run)
    return recipe, dataset


def _warn_of_unlearned(dataset: Dataset, train_rows: Array, valid_rows: Array) -> None:
    """Says which labels validation has and training has not."""
    parts = np.full(dataset.rows, "", dtype=object)
    parts[train_rows] = "train"
    parts[valid_rows] = "valid"
    missing = only_in_valid(parts.tolist(), dataset.targets, dataset.classes)
    if missing:
        logger.warning(
            f"no training tile has the label {', '.join(missing)}: "
            "the network cannot learn it, which lowers the validation score"
        )


def _image_sizes(recipe: Recipe) -> list[int]:
    """Side in pixels of the tiles in every epoch of every stage."""
    sizes = []
    for stage in recipe.stages:
        for epoch in range(1, stage.epochs + 1):
            sizes.append(stage.size_at(epoch))
    return sizes


def _warn_of_frozen_random_body(recipe: Recipe) -> None:
    """Says which stages train a head on features that are random."""
    if recipe.model.weights != "none":
        return
    first, last = recipe.selected
    for number in range(first, last + 1):
        if recipe.stages[number - 1].freeze:
            logger.warning(
                f"stage {number} freezes a network of random weights, and trains only its head: "
                f"--set stages.{number}.freeze=false trains all of it"
            )
        else:
            # From here on its weights are trained ones.
            return


def _check_start(recipe: Recipe, dataset: Dataset, model: networks.Network) -> Recipe:
    """Loads the weights that a new run starts from into `model`, as each worker will do.

    Returns:
        The recipe with the path of the checkpoint to start from, if it names one.

    Raises:
        ConfigError, RemoteError: the weights are missing or do not fit.
    """
    if recipe.init_from is None:
        _warn_of_frozen_random_body(recipe)
        body = initial_weights.body_weights(recipe.model.arch, recipe.model.weights)
        if body is not None:
            initial_weights.load_body(model, body, recipe.model.weights)
        return recipe
    path = runs.find_checkpoint(recipe.init_from, recipe.storage)
    recipe = recipe.model_copy(update={"init_from": path})
    source = initial(recipe, dataset)
    assert source is not None
    fitting.check_start(source, recipe, dataset)
    initial_weights.load_weights(model, source.weights(), source.path)
    return recipe


def _with_absolute_paths(recipe: Recipe, dataset: Dataset) -> Recipe:
    """The recipe for workers, which have other working directories than this process."""
    update = {"dataset": dataset.path, "storage": storage.absolute(recipe.storage)}
    recipe = recipe.model_copy(update=update)
    if recipe.model.weights in NAMED_WEIGHTS:
        return recipe
    weights = storage.absolute(recipe.model.weights)
    model = recipe.model.model_copy(update={"weights": weights})
    return recipe.model_copy(update={"model": model})


def _dataset_of(run: runs.Run, recipe: Recipe, path: str) -> Dataset:
    """The dataset of a run that is resumed, at the path where it was or at another one.

    Raises:
        DataError: there is no dataset, or it is not the one that the run was trained on.
    """
    resume = runs.resume_command(run.name, storage.parent(run.path))
    if path == run.recipe.dataset and not storage.exists(storage.join(path, "dataset.json")):
        raise DataError(
            f"the dataset of the run {run.name} is not at {path} any more",
            "its tiles were moved, or are on a disk that is not mounted now",
            f"{resume} --dataset NEW, with the path where it is now",
        )
    dataset = open_dataset(path)
    # Raises where the dataset has no such split; reading its hash alone would not.
    dataset.split(recipe.data.split)
    found = {"dataset_hash": dataset.hash, "split_hash": dataset.split_hash(recipe.data.split)}
    different = [key for key, known in runs.trained_on(run).items() if found[key] != known]
    if not different:
        return dataset
    if "dataset_hash" in different:
        what = "tiles or labels"
    else:
        what = f"rows in the parts of its split {recipe.data.split}"
    raise DataError(
        f"the dataset {dataset.path} is not the one that the run {run.name} was trained on: "
        f"it has other {what}",
        "validation tiles could have been trained on",
        f"{resume} --dataset PATH of the same dataset; "
        f"or start a new run with --init-from {shlex.quote(run.name)}",
    )


def check_disk(recipe: Recipe, path: str, weights: int, run: runs.Run | None = None) -> None:
    """Compares the free disk space under a storage path with the checkpoints of a run.

    Args:
        recipe: complete.
        path: storage path or URI. Object stores have no known limit and always pass.
        weights: number of parameters of the network.
        run: the run that is resumed, if any. Its checkpoints count as part of what it needs.

    Raises:
        StorageError: the checkpoints will not fit.
    """
    named, full = checkpoint_bytes(recipe, weights)
    first, last = recipe.selected
    # One named checkpoint for each stage, and the best one.
    named_checkpoints = (last - first + 1) + 1
    needed = named * named_checkpoints + full * FULL_CHECKPOINTS
    free = free_bytes(path)
    if free is None:
        return
    already_written = held_bytes(run.path) if run else 0
    if free < needed - already_written:
        raise StorageError(
            f"the checkpoints of this run need {needed / 1e6:,.0f} MB,"
            f" {path} has {free / 1e6:,.0f} MB free",
            "the disk would be full in the middle of training",
            "free some, or give another --storage",
        )


def checkpoint_bytes(recipe: Recipe, weights: int) -> tuple[int, int]:
    """The sizes of both kinds of checkpoints.

    Args:
        recipe: complete.
        weights: number of parameters of the network.

    Returns:
        Bytes of a checkpoint that is named after a stage, which holds weights only, and of one to
        resume from, which also holds the state of the optimiser.
    """
    # With `ema` a checkpoint holds the averaged weights as well.
    copies = 2 if recipe.train.ema else 1
    named = weights * BYTES_PER_WEIGHT * copies
    full = weights * BYTES_PER_WEIGHT * (copies + ADAM_MOMENTS)
    return named, full


def free_bytes(path: str) -> int | None:
    """Free bytes of the disk that a directory is on, or None for an object store."""
    if storage.is_uri(path):
        return None
    return shutil.disk_usage(Path(storage.absolute(path))).free


def held_bytes(run: str) -> int:
    """Bytes of the checkpoints in a local run directory."""
    files = (path for path in Path(run, "checkpoints").rglob("*") if path.is_file())
    return sum(file.stat().st_size for file in files)


def check_group(recipe: Recipe) -> None:
    """Checks what is known about a worker group before Ray starts: workers, network interfaces.

    Raises:
        ConfigError: an environment variable names a network interface that does not exist.
        ResourceError: as `check_workers`.
    """
    check_workers(recipe.num_workers)
    # On a cluster, `check_networks` looks at each machine instead, once Ray is connected.
    if not environment.connects():
        check_interfaces(gpu=recipe.use_gpu is not False and torch.cuda.is_available())


def check_workers(num_workers: int) -> None:
    """Refuses more workers than CPUs, which Ray would wait for without an end.

    The CPUs are those of the connected cluster, or of this machine where Ray will run locally.

    Raises:
        ConfigError: Ray would not start in this environment.
        ResourceError: too many workers, or no cluster answers.
    """
    # With a cluster that is not connected yet, its CPUs are unknown until `check_cluster`.
    if not ray.is_initialized() and environment.check():
        return
    limit = cpus()
    if num_workers <= limit:
        return
    if limit:
        fix = f"--num-workers {limit}, or set RAY_ADDRESS to a larger cluster"
    else:
        fix = "add a machine to the cluster, or set RAY_ADDRESS to another"
    if environment.connects():
        fix += "; --wait 600 where an autoscaler adds machines"
    raise ResourceError(
        f"{num_workers} workers are asked for, there are {limit} CPUs",
        "Ray would wait for them forever",
        fix,
    )


def refuse_range(recipe: Recipe, what: str) -> None:
    """Refuses a number of workers that may change.

    Args:
        recipe: of the command.
        what: the command trains, for the message.

    Raises:
        ConfigError: the recipe has a range.
    """
    if recipe.max_workers is None:
        return
    raise ConfigError(
        f"--num-workers {recipe.num_workers}:{recipe.max_workers} is a range, "
        f"and {what} takes one number",
        "its runs could not be compared: the sum over workers is rounded in another order",
        f"--num-workers {recipe.num_workers}",
    )


def check_cluster(recipe: Recipe, *, started: bool = False) -> list[Answer]:
    """Compares a recipe with the connected cluster.

    Args:
        recipe: of `check_recipe`.
        started: as for `places_of`.

    Returns:
        The answers of its machines, as `check_machines`.

    Raises:
        ConfigError, ResourceError: as `check_workers`, `use_gpu` and `check_networks`.
        DataError, ResourceError, StorageError: as `check_machines`.
    """
    check_workers(recipe.num_workers)
    answers = check_machines(places_of(recipe, started=started), gpus=recipe.use_gpu is not False)
    gpu = use_gpu(recipe, answers)
    check_networks(answers, recipe.most_workers, gpu)
    return answers


def places_of(recipe: Recipe, *, started: bool = False) -> Places:
    """Returns the paths that workers of a recipe use on their machines.

    Args:
        recipe: of `check_recipe`.
        started: whether the run has a checkpoint, and so needs no weights to start from.
    """
    assert recipe.dataset is not None  # check_recipe has seen it
    read = {"--dataset": [storage.join(recipe.dataset, "dataset.json")]}
    if not started and recipe.model.weights not in NAMED_WEIGHTS:
        read["--model.weights"] = [recipe.model.weights]
    if not started and recipe.init_from is not None:
        read["--init-from"] = [storage.join(recipe.init_from, "MANIFEST.json")]
    written = {"--storage": recipe.storage}
    tracked = tracking.folder(recipe.mlflow)
    if tracked is not None:
        written["--mlflow"] = tracked
    return Places(written, read)


def check_networks(answers: Sequence[Answer], num_workers: int, gpu: bool) -> None:
    """Checks which network interfaces workers would use on each machine.

    Args:
        answers: of the machines.
        num_workers: largest number of workers of the run.
        gpu: whether they use GPUs and so connect through NCCL.

    Raises:
        ConfigError: an environment variable names no interface of a machine, or workers on several
            machines would not find each other.
    """
    # Ray may put any two workers onto two machines.
    several = len(answers) > 1 and num_workers > 1
    for answer in answers:
        facts = facts_of(answer)
        found = network(gpu, facts.interfaces, facts.interface_variables)
        name = f"the machine {answer.name}"
        if found.unknown:
            raise unknown_interface(found, name, " there, before ray start")
        if several and found.alone:
            raise only_here(found, name)


def use_gpu(recipe: Recipe, answers: Sequence[Answer] = ()) -> bool:
    """Whether each worker gets a GPU.

    The GPUs are those of the connected cluster, or of this machine where none is connected.

    Args:
        recipe: its `use_gpu` is None where GPUs are used if there are any.
        answers: of the machines of the cluster; empty to ask them now.

    Raises:
        ConfigError: synchronised BatchNorm is asked for and workers have no GPU.
        ResourceError: GPUs are asked for, and there are too few or torch does not see them.
    """
    count = gpus.count(gpus.usable(recipe.use_gpu, answers))
    wanted = recipe.use_gpu
    if wanted is None:
        wanted = count > 0
    if wanted and recipe.num_workers > count:
        owner = "the cluster declares" if ray.is_initialized() else "this machine has"
        fix = f"--num-workers {count}" if count else "--no-use-gpu, or a cluster with GPUs"
        raise ResourceError(
            f"{recipe.num_workers} workers with a GPU each are asked for, {owner} {count} GPUs",
            "Ray would wait for them forever",
            fix,
        )
    networks.check_batch_norm(recipe.model.batch_norm, "cuda" if wanted else "cpu")
    return wanted
