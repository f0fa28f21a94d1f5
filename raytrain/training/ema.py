"""Exponential moving average of weights, for validation and inference."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Ema:
    """m <- d m + (1 - d) w after every step; BatchNorm statistics are averaged too.

    d = min(decay, (1 + n) / (10 + n)) after n updates (the `num_updates` rule of TensorFlow's
    ExponentialMovingAverage), so that a short run does not remember its random start.
    """

    def __init__(self, model: nn.Module, decay: float, updates: int = 0) -> None:
        """Begins with the weights of a model.

        Args:
            model: without DDP.
            decay: the largest d.
            updates: n so far, for averages that are resumed.
        """
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.updates = updates
        self.averaged, self.counted = _tensors(self.module)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Takes in the weights of `model` after a step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        new, counts = _tensors(model)
        # m + (1 - d) (w - m), in one kernel for all tensors.
        torch._foreach_lerp_(self.averaged, new, 1 - decay)
        if counts:
            torch._foreach_copy_(self.counted, counts)
        self.updates += 1


def _tensors(model: nn.Module) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What is averaged, and what is copied: BatchNorm's numbers of batches, which are integers."""
    averaged, copied = [], []
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            averaged.append(tensor)
        else:
            copied.append(tensor)
    return averaged, copied
