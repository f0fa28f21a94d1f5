"""What tasks share that give a tile a number for each class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch

from raytrain.config import Model
from raytrain.models import networks


class LossOfTile(Protocol):
    """A loss by the name that a recipe gives it."""

    def __call__(
        self, logits: torch.Tensor, target: torch.Tensor, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Returns the loss of each tile, (N,), of logits (N, K), targets (N, K), weights (K,)."""


# Targets (N, K) and the share of smoothing to smoothed targets (N, K).
Smoothing = Callable[[torch.Tensor, float], torch.Tensor]


class BatchLoss:
    """The loss of a batch: a sum over its tiles, so that unequal shares of a batch add up.

    Args:
        loss: of a tile.
        smoothing: how targets are smoothed.
        share: of label smoothing; 0 for none.
        weights: factor of each class, (K,), on the device that trains and in its type; None for 1.
    """

    def __init__(
        self,
        loss: LossOfTile,
        smoothing: Smoothing,
        share: float = 0.0,
        weights: torch.Tensor | None = None,
    ) -> None:
        self.loss = loss
        self.smoothing = smoothing
        self.share = share
        self.weights = weights

    def __call__(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Sum over tiles of the loss of logits (N, K) against target (N, K).

        Computed in the type of the target.
        """
        if self.share:
            target = self.smoothing(target, self.share)
        return self.loss(logits.to(target.dtype), target, self.weights).sum()


def built(settings: Model, classes: int, channels: int = 3) -> networks.Network:
    """Returns a network with one output for each class and random weights.

    The weights come from torch's global generator.

    Args:
        settings: of the recipe.
        classes: number of classes, K.
        channels: of the tiles.

    Raises:
        ConfigError: there is no such architecture.
    """
    return networks.build(settings.arch, classes, settings.dropout, settings.batch_norm, channels)


def targets_on(targets: np.ndarray[Any, Any], device: torch.device) -> torch.Tensor:
    """Returns the targets of all rows of a dataset, uint8 (N, K), on a device."""
    return torch.from_numpy(targets).to(device)


def unchanged(logits: torch.Tensor, symmetry: int) -> torch.Tensor:
    """Returns the logits of a turned or mirrored tile as those of the tile: they have no place."""
    return logits
