"""What a part of the bench measures: one stage, on which tiles, over how many rounds. No Ray."""

from __future__ import annotations

from dataclasses import dataclass

from raytrain.config import Recipe, Stage
from raytrain.data.dataset import Dataset

# Unit of most figures.
TILES_PER_S = "tiles/s"


@dataclass(frozen=True)
class Measurement:
    """One stage to measure, and how thoroughly.

    Attributes:
        recipe: with `model.weights` none: the speed of a network does not depend on its weights.
        dataset: opened; it has the recipe's split.
        number: of the stage in the recipe, from 1.
        run: directory for the files of the runs that are measured.
        pairs: number of rounds in which the sides train in turn.
        block: optimiser steps of a side before it is the next one's turn.
    """

    recipe: Recipe
    dataset: Dataset
    number: int
    run: str
    pairs: int
    block: int

    @property
    def stage(self) -> Stage:
        """The settings of the stage."""
        return self.recipe.stage(self.number)

    @property
    def batch_size(self) -> int:
        """Tiles of a global batch."""
        return self.recipe.batch_size(self.stage)
