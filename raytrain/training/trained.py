"""What a step moves: a network, its optimiser and its averages."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from raytrain.training.ema import Ema


@dataclass(frozen=True)
class Trained:
    """What a step moves.

    Args:
        network: of this rank, wrapped by DDP where there are several.
        optimizer: of its trainable weights.
        ema: averages of its weights, or None.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    ema: Ema | None = None

    @property
    def model(self) -> nn.Module:
        """The network without DDP around it."""
        if isinstance(self.network, DistributedDataParallel):
            module: nn.Module = self.network.module
            return module
        return self.network

    @property
    def weights(self) -> list[nn.Parameter]:
        """The weights that the optimiser trains."""
        found = []
        for group in self.optimizer.param_groups:
            found += group["params"]
        return found
