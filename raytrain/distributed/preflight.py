"""What can be known before a worker starts: resources, storage, checkpoint, weights."""

from __future__ import annotations

import os

import ray

from raytrain import runs, storage
from raytrain.config import Recipe
from raytrain.data.dataset import Dataset, open_dataset
from raytrain.distributed.cluster import cpus
from raytrain.errors import ConfigError, ResourceError
from raytrain.training import checkpoint, models
from raytrain.training.start import initial
from raytrain.training.tiles import check_batches


def check_recipe(recipe: Recipe, *, starts: bool = True) -> tuple[Recipe, Dataset]:
    """Resolves the places of a recipe and checks all that needs no cluster.

    Args:
        recipe: as the user gave it.
        starts: False for a run with checkpoints of its own, which needs neither its old starting point nor weights.

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
    dataset = open_dataset(recipe.dataset)
    check_batches(recipe, *(len(dataset.part_rows(recipe.data.split, part)) for part in ("train", "valid")))
    places = {"dataset": dataset.place, "storage": storage.absolute(recipe.storage)}
    model = models.build(recipe.model.arch, len(dataset.classes), recipe.model.dropout, recipe.model.batch_norm)
    sizes = (stage.size_at(epoch) for stage in recipe.stages for epoch in range(1, stage.epochs + 1))
    models.check_sizes(model, recipe.model.arch, sizes)
    if starts and recipe.init_from is not None:
        places["init_from"] = runs.find_checkpoint(recipe.init_from, recipe.storage)
        source = initial(recipe.model_copy(update=places), dataset)
        assert source is not None
        checkpoint.check_fits(source, dataset.classes, recipe.model.arch, recipe.data.normalize)
    elif starts:
        state = models.body_weights(recipe.model.arch, recipe.model.weights)
        if state is not None:
            models.load_body(model, state, recipe.model.weights)
    if recipe.model.weights not in ("imagenet", "none"):
        weights = storage.absolute(recipe.model.weights)
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"weights": weights})})
    storage.probe(places["storage"])
    return recipe.model_copy(update=places), dataset


def check_workers(num_workers: int) -> None:
    """Refuses more workers than the CPUs of the connected cluster, or of this machine where a local one will start.

    Raises:
        ResourceError: too many workers.
    """
    if "RAY_ADDRESS" in os.environ and not ray.is_initialized():
        return
    if num_workers > cpus():
        raise ResourceError(
            f"{num_workers} workers are asked for, there are {cpus()} CPUs",
            "Ray would wait for them for ever",
            f"--num-workers {cpus()}, or set RAY_ADDRESS to a larger cluster",
        )


def check_cluster(recipe: Recipe) -> None:
    """Compares a recipe with the connected cluster.

    Raises:
        ConfigError, ResourceError: as `check_workers` and `use_gpu`.
    """
    check_workers(recipe.num_workers)
    use_gpu(recipe)


def use_gpu(recipe: Recipe) -> bool:
    """Whether workers get a GPU each, on the connected cluster.

    Raises:
        ConfigError: synchronised BatchNorm was asked for and workers have no GPU.
        ResourceError: GPUs were asked for and there are too few.
    """
    gpus = int(ray.cluster_resources().get("GPU", 0))
    wanted = recipe.use_gpu if recipe.use_gpu is not None else gpus > 0
    if wanted and recipe.num_workers > gpus:
        raise ResourceError(
            f"{recipe.num_workers} workers with a GPU each are asked for, the cluster declares {gpus} GPUs",
            "Ray would wait for them for ever",
            f"--num-workers {gpus}" if gpus else "--no-use-gpu, or a cluster with GPUs",
        )
    models.check_batch_norm(recipe.model.batch_norm, "cuda" if wanted else "cpu")
    return wanted
