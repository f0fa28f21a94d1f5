"""What is known of a global batch before its tiles are there: its rows, its random draws, and each
rank's share.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from raytrain.config import Recipe
from raytrain.tiles import sampling
from raytrain.training import transforms
from raytrain.worker import Worker

# Of the generator of mixup, so that switching it on leaves the augmentation as it was.
MIXUP_STREAM = 1


@dataclass(frozen=True)
class Draws:
    """All random draws of a global batch.

    Args:
        augment: augmentation of each tile.
        partner: int64 (B,), the tile of the batch that each one is mixed with.
        weight: float64 (B,), weight of the tile itself in the mixture; None without mixup.
    """

    augment: transforms.Draws
    partner: sampling.Rows
    weight: torch.Tensor | None


@dataclass(frozen=True)
class BatchPlan:
    """A global batch before its tiles are there.

    Args:
        epoch, number: its position in the stage, epochs from 1 and batches from 0.
        key: (seed, stage, epoch, batch), from which all its generators are seeded.
        rows: int64 (B,) rows of the dataset.
        draws: for the whole batch, so that they do not depend on the number of workers.
        passes: slices of the batch that this rank computes, one after the other.
    """

    epoch: int
    number: int
    key: tuple[int, int, int, int]
    rows: sampling.Rows
    draws: Draws
    passes: list[slice]

    def wanted(self) -> Iterator[sampling.Rows]:
        """Rows of each pass; after them those of their partners, where tiles are mixed."""
        for part in self.passes:
            yield self.rows[part]
            if self.draws.weight is not None:
                # A partner may belong to the share of another rank.
                yield self.rows[self.draws.partner[part]]


def plan_batch(
    recipe: Recipe, stage: int, worker: Worker, rows: sampling.Rows, epoch: int, number: int
) -> BatchPlan:
    """The plan of the global batch `number` of an epoch, for a rank."""
    key = (recipe.train.seed, stage, epoch, number)
    passes = sampling.pass_slices(len(rows), worker.rank, worker.world, recipe.train.accumulate)
    return BatchPlan(epoch, number, key, rows, _draw(recipe, stage, len(rows), key), passes)


def _draw(recipe: Recipe, stage: int, count: int, key: tuple[int, ...]) -> Draws:
    generator = torch.Generator().manual_seed(sampling.seed_of(*key))
    augment = recipe.augment(recipe.stage(stage))
    augmentation = transforms.draw(augment, count, generator)
    alpha = recipe.train.mixup
    if not alpha:
        return Draws(augmentation, np.arange(count), None)
    chance = np.random.default_rng((*key, MIXUP_STREAM))
    weight = chance.beta(alpha, alpha, count)
    partner = chance.permutation(count)
    # The tile itself weighs at least half.
    weight = np.maximum(weight, 1 - weight)
    return Draws(augmentation, partner, torch.from_numpy(weight))
