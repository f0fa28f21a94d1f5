"""Exponential moving average of weights, for judging and inference."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Ema:
    """m <- d m + (1 - d) w after every step; BatchNorm statistics are averaged alike.

    d = min(decay, (1 + n) / (10 + n)) after n updates (the `num_updates` rule of TensorFlow's ExponentialMovingAverage), so
    that a short run does not remember its random start.
    """

    def __init__(self, model: nn.Module, decay: float, updates: int = 0) -> None:
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.decay, self.updates = decay, updates
        self.averaged, self.counted = _tensors(self.module)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Takes in the weights of `model` after a step."""
        weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        new, counts = _tensors(model)
        torch._foreach_lerp_(self.averaged, new, weight)
        if counts:
            torch._foreach_copy_(self.counted, counts)
        self.updates += 1


def _tensors(model: nn.Module) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What is averaged, and what is copied: numbers of batches."""
    tensors = list(model.state_dict().values())
    return [t for t in tensors if t.is_floating_point()], [
        t for t in tensors if not t.is_floating_point()
    ]
