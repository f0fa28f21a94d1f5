"""Optimiser, learning rates of the layer groups and the one-cycle schedule, as pure functions of
the step.

Numbers: fastai 1.0.21 / 1.0.61 (callback.py:31-40, basic_train.py:185-190,
callbacks/one_cycle.py:10-36).
"""

from __future__ import annotations

import math

import torch
from torch import nn

from raytrain.models.layer_groups import layer_groups

# A peak learning rate: of the head, or of the first and the last layer group.
Rate = float | tuple[float, float]

BETA2 = 0.99
EPSILON = 1e-8
# The schedule starts at 1/25 of the peak and ends at 1/250,000 of it.
START_DIVISOR = 25.0
END_DIVISOR = 25.0 * 1e4
WARMUP_FRACTION = 0.3
MOMENTUM_HIGH = 0.95
MOMENTUM_LOW = 0.85
# Fraction of the head's rate that earlier groups get when a stage names one number.
EARLIER_GROUPS = {"one-cycle-2018": 1 / 3, "one-cycle-2019": 1 / 10}


def group_rates(lr: Rate, groups: int, schedule: str) -> list[float]:
    """Peak learning rate of each layer group, from the input to the head.

    A number is the head's, the others get a third (2018) or a tenth (2019) of it; a pair is spread
    geometrically: lr_i = a (b/a)^(i/(groups-1)).
    """
    if isinstance(lr, tuple):
        low, high = lr
        return [low * (high / low) ** (i / (groups - 1)) for i in range(groups)]
    earlier = lr * EARLIER_GROUPS[schedule]
    return [earlier] * (groups - 1) + [lr]


def one_cycle(step: int, steps: int, schedule: str) -> tuple[float, float]:
    """Learning rate as a fraction of its peak, and momentum (beta1), of batch `step` of `steps`.

    Warm-up over int(0.3 steps) batches from 1/25 of the peak, linear (2018) or cosine (2019); then
    a cosine to 1/250,000 of it. Momentum goes 0.95, 0.85, 0.95 along the same curves.
    """
    warmup = int(steps * WARMUP_FRACTION)
    # fastai 1 takes a first batch at 1/25 of the peak also where the warm-up rounds to none.
    top = max(1, warmup)
    if step <= top:
        done = step / top
        if schedule == "one-cycle-2019":
            done = _cosine(done)
        rate = _between(1 / START_DIVISOR, 1.0, done)
        momentum = _between(MOMENTUM_HIGH, MOMENTUM_LOW, done)
        return rate, momentum
    done = _cosine((step - top) / (steps - warmup))
    rate = _between(1.0, 1 / END_DIVISOR, done)
    momentum = _between(MOMENTUM_LOW, MOMENTUM_HIGH, done)
    return rate, momentum


def _cosine(done: float) -> float:
    """Half a cosine from 0 to 1."""
    return (1 - math.cos(math.pi * done)) / 2


def _between(start: float, end: float, done: float) -> float:
    return start + (end - start) * done


def make_optimizer(model: nn.Sequential, rates: list[float], wd: float) -> torch.optim.AdamW:
    """AdamW with one parameter group for each layer group.

    Weight decay is decoupled and applies to everything trainable, BatchNorm included.

    Args:
        model: with its parameters frozen as in the stage.
        rates: peak learning rate of each layer group; kept in the groups as `peak_lr`.
        wd: weight decay.
    """
    groups = []
    for parameters, rate in zip(layer_groups(model), rates, strict=True):
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        groups.append({"params": trained, "lr": rate, "peak_lr": rate})
    return torch.optim.AdamW(
        groups, betas=(MOMENTUM_HIGH, BETA2), eps=EPSILON, weight_decay=wd, fused=True
    )


def head_rate(lr: Rate) -> float:
    """The rate of the head in the peak of a stage."""
    if isinstance(lr, tuple):
        return lr[1]
    return lr


def times(lr: Rate, factor: float) -> Rate:
    """The peak of a stage times a factor."""
    if isinstance(lr, tuple):
        return lr[0] * factor, lr[1] * factor
    return lr * factor


def scale_peaks(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Multiplies the peak rates of all layer groups by a factor."""
    for group in optimizer.param_groups:
        group["peak_lr"] *= factor


def set_step(
    optimizer: torch.optim.Optimizer, step: int, steps: int, schedule: str
) -> tuple[list[float], float]:
    """Sets learning rates and momentum of batch `step` of `steps`. Returns (rate of each group,
    momentum).
    """
    fraction, momentum = one_cycle(step, steps, schedule)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * fraction
        group["betas"] = (momentum, BETA2)
    return [group["lr"] for group in optimizer.param_groups], momentum
