"""What the task of a dataset makes of a recipe, before anything starts."""

from __future__ import annotations

from raytrain import registry
from raytrain.config import Recipe
from raytrain.errors import ConfigError, did_you_mean


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
