"""What the task of a dataset makes of a recipe, before anything starts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from raytrain import registry
from raytrain.config import Recipe
from raytrain.data.dataset import Dataset
from raytrain.errors import ConfigError, did_you_mean
from raytrain.models.precision import dtype_of
from raytrain.registry import Loss

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]


def resolved(recipe: Recipe, task: str) -> Recipe:
    """Returns a recipe whose loss is the task's own where the recipe leaves it out.

    Raises:
        ConfigError: the task has no such loss.
    """
    module = registry.training(task)
    chosen = recipe.train.loss
    if chosen is None:
        train = recipe.train.model_copy(update={"loss": module.OWN_LOSS})
        return recipe.model_copy(update={"train": train})
    if chosen in module.LOSSES:
        return recipe
    known = ", ".join(module.LOSSES)
    raise ConfigError(
        f'train.loss = "{chosen}" is no loss of the task {task}.'
        f"{did_you_mean(chosen, module.LOSSES)}",
        f"the dataset states the task, and {task} has: {known}",
        f"--train.loss {module.OWN_LOSS}, or leave it out",
    )


def class_weights(recipe: Recipe, dataset: Dataset) -> Array | None:
    """Returns the factor of each class in the loss, float64 (K,), or None for 1.

    Args:
        recipe: its loss is resolved.
        dataset: whose training part balanced weights are computed from. `data.repeat` does not
            count: both together would count twice.

    Raises:
        ConfigError: the loss takes no weights, or a label is no class.
    """
    chosen = recipe.train.class_weights
    if chosen == "none":
        return None
    module = registry.training(dataset.task)
    if recipe.train.loss not in module.WEIGHTED:
        raise ConfigError(
            f"train.class_weights with train.loss = {recipe.train.loss}",
            "that loss has no term of a single class that a weight could change",
            f"--train.class-weights none, or --train.loss {module.WEIGHTED[0]}",
        )
    if isinstance(chosen, Mapping):
        return _listed(chosen, dataset.classes)
    rows = dataset.part_rows(recipe.data.split, "train")
    return registry.targets(dataset.task).balanced_weights(dataset.targets[rows])


def loss_of(recipe: Recipe, dataset: Dataset, device: torch.device) -> Loss:
    """Returns the loss that a recipe asks for, with its class weights on a device.

    Args:
        recipe: its loss and its precision are resolved.
        dataset: opened.
        device: that trains.

    Raises:
        ConfigError: see `class_weights`.
    """
    weights = class_weights(recipe, dataset)
    on_device = None
    if weights is not None:
        logger.info(weights_in_words(weights, dataset.classes))
        on_device = torch.tensor(weights, dtype=dtype_of(recipe.train.precision), device=device)
    return registry.training(dataset.task).batch_loss(recipe.train, on_device)


def _listed(chosen: Mapping[str, float], classes: list[str]) -> Array:
    """The weights that a recipe lists; 1 for every class that it leaves out."""
    weights = np.ones(len(classes))
    for label, weight in chosen.items():
        if label not in classes:
            raise ConfigError(
                f'train.class_weights has "{label}", which is no class of the dataset.'
                f"{did_you_mean(label, classes)}",
                "its weight would change nothing",
                f"labels of the dataset: {', '.join(classes)}",
            )
        weights[classes.index(label)] = weight
    return weights


def weights_in_words(weights: Array, classes: list[str]) -> str:
    """Returns a line for the log, such as `class weights: cloudy 3.2, haze 12`."""
    parts = [f"{label} {weight:.3g}" for label, weight in zip(classes, weights, strict=True)]
    return f"class weights: {', '.join(parts)}"
