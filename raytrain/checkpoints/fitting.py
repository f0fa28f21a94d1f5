"""Checks that a checkpoint fits a dataset and a network, and reorders its classes."""

from __future__ import annotations

from dataclasses import replace

from raytrain import registry
from raytrain.checkpoints.reading import Checkpoint
from raytrain.config import Normalization, Recipe, normalization
from raytrain.data.dataset import Dataset
from raytrain.data.tile_format import TileFormat
from raytrain.errors import ConfigError, typed

# Classes that an error message names.
NAMED_CLASSES = 3


def remapped(checkpoint: Checkpoint, classes: list[str]) -> Checkpoint:
    """Returns the same checkpoint with its classes in another order.

    The rows of the last layer of the head are reordered when the weights are read. A checkpoint of
    other classes is returned unchanged, for `check_fits` to refuse.

    Args:
        checkpoint: a checkpoint that was read.
        classes: its classes in the order of the dataset.
    """
    trained = checkpoint.meta["classes"]
    if trained == classes or sorted(trained) != sorted(classes):
        return checkpoint
    rows = tuple(trained.index(name) for name in classes)
    return replace(checkpoint, meta=checkpoint.meta | {"classes": classes}, rows=rows)


def check_fits(
    checkpoint: Checkpoint,
    classes: list[str],
    arch: str,
    normalize: Normalization | None = None,
    tiles: TileFormat | None = None,
    task: str = registry.DEFAULT,
) -> None:
    """Compares what a checkpoint was made for with what is wanted, before any weight is loaded.

    Args:
        checkpoint: a checkpoint that was read.
        classes: the classes of the dataset, in order.
        arch: the architecture of the configuration.
        normalize: the normalisation of the configuration; None to leave it unchecked.
        tiles: format of the dataset's tiles; None for RGB of 8 bits.
        task: of the dataset.

    Raises:
        ConfigError: another task, other classes, another order of them, another architecture,
            other tiles, or another normalisation.
    """
    meta = checkpoint.meta
    trained_for = meta.get("task", registry.DEFAULT)
    if trained_for != task:
        raise ConfigError(
            f"the checkpoint {checkpoint.path} was trained for the task {trained_for}, "
            f"the dataset is of the task {task}",
            "its outputs mean something else",
            f"use a checkpoint of the task {task}, or start from --model.weights imagenet",
        )
    _check_classes(checkpoint, classes)
    if meta["arch"] != arch:
        raise ConfigError(
            f"the checkpoint {checkpoint.path} is a {meta['arch']}, the configuration says {arch}",
            "its weights do not fit",
            f"--model.arch {meta['arch']}",
        )
    _check_tiles(checkpoint, tiles or TileFormat())
    if normalize is None:
        return
    trained_on = normalization(meta["normalize"])
    if trained_on != normalize:
        raise ConfigError(
            f"the checkpoint {checkpoint.path} was trained on pixels normalised by "
            f"{trained_on}, the configuration says {normalize}",
            "its weights expect pixels in another range",
            f"--data.normalize {typed(str(trained_on))}",
        )


def check_start(checkpoint: Checkpoint, recipe: Recipe, dataset: Dataset) -> None:
    """Checks that a run can start from a checkpoint; raises as `check_fits`.

    Args:
        checkpoint: a checkpoint that was read.
        recipe: of the run.
        dataset: that it trains on.
    """
    check_fits(
        checkpoint,
        dataset.classes,
        recipe.model.arch,
        recipe.data.normalize,
        dataset.tile_format,
        dataset.task,
    )


def _check_tiles(checkpoint: Checkpoint, tiles: TileFormat) -> None:
    trained_on = checkpoint.tile_format
    if trained_on == tiles:
        return
    fix = "a dataset of such tiles"
    if trained_on.bands is not None:
        listed = ",".join(str(band) for band in trained_on.bands)
        fix = f"raytrain ingest --bands {listed} makes a dataset of such tiles"
    raise ConfigError(
        f"the checkpoint {checkpoint.path} was trained on tiles of {trained_on}, "
        f"the dataset holds {tiles}",
        "its first layer would read other values than it was trained on",
        f"{fix}; or start from --model.weights imagenet",
    )


def _check_classes(checkpoint: Checkpoint, classes: list[str]) -> None:
    trained = checkpoint.meta["classes"]
    if trained == classes:
        return
    if sorted(trained) == sorted(classes):
        difference = "the same classes in another order"
        fix = (
            "--remap-labels with --init-from puts the rows of its head into the order of the "
            "dataset"
        )
    else:
        difference = _difference(trained, classes)
        fix = "use a checkpoint of the same classes, or start from --model.weights imagenet"
    raise ConfigError(
        f"the checkpoint {checkpoint.path} was trained for {difference}",
        "its outputs would be read as other labels",
        fix,
    )


def _difference(trained: list[str], wanted: list[str]) -> str:
    """Describes how two lists of classes differ."""
    only = sorted(set(trained) - set(wanted))
    missing = sorted(set(wanted) - set(trained))
    parts = [f"{len(trained)} other classes than the {len(wanted)} of this dataset"]
    if only:
        parts.append(f"it alone has {', '.join(only[:NAMED_CLASSES])}")
    if missing:
        parts.append(f"it lacks {', '.join(missing[:NAMED_CLASSES])}")
    return "; ".join(parts)
