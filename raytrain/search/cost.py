"""What a chain of stages costs before it is trained: the given recipe costs 1.

Cost of a stage = sum over its epochs of pixels of a tile x operations per pixel. An epoch shows as
many tiles in all recipes, so their number cancels. No torch: the operations come from the caller,
who has them from `models.operations`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from raytrain.config import Recipe, Stage

# Architecture and number of frozen layer groups -> operations of a training step for each pixel.
Operations = Callable[[str, int], float]


@dataclass(frozen=True)
class Costs:
    """Costs of stages.

    Attributes:
        operations: of each network.
        whole: operations of the given recipe for one tile of the dataset in each epoch.
    """

    operations: Operations
    whole: float

    @classmethod
    def relative_to(cls, given: Recipe, operations: Operations) -> Self:
        """Returns costs where all stages of a recipe together cost 1."""
        return cls(operations, sum(_operations_of_stages(given, operations)))

    def of(self, recipe: Recipe) -> tuple[float, ...]:
        """Returns the cost of each stage that a recipe trains."""
        return tuple(work / self.whole for work in _operations_of_stages(recipe, self.operations))


def pixels(stage: Stage) -> int:
    """Returns the pixels of one tile in all epochs of a stage, which may grow."""
    return sum(stage.size_at(epoch) ** 2 for epoch in range(1, stage.epochs + 1))


def _operations_of_stages(recipe: Recipe, operations: Operations) -> list[float]:
    """Operations of each stage for one tile of the dataset in each epoch."""
    found = []
    for _, stage in recipe.selected_stages():
        per_pixel = operations(recipe.model.arch, stage.frozen_groups)
        found.append(pixels(stage) * per_pixel)
    return found
