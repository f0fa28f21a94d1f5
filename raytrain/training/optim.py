"""Optimiser, layer-group learning rates and the one-cycle schedule, as pure functions of the step.

Numbers: fastai 1.0.21 / 1.0.61 (callback.py:31-40, basic_train.py:185-190, callbacks/one_cycle.py:10-36).
"""

from __future__ import annotations

import math

import torch
from torch import nn

from raytrain.models.layer_groups import layer_groups

BETA2 = 0.99
START_DIVISOR = 25.0
END_DIVISOR = 25.0 * 1e4
WARMUP_SHARE = 0.3
MOMENTUM_HIGH, MOMENTUM_LOW = 0.95, 0.85
# Share of the head's rate that earlier groups get when a stage names one number.
EARLIER_GROUPS = {"one-cycle-2018": 1 / 3, "one-cycle-2019": 1 / 10}


def group_rates(lr: float | tuple[float, float], groups: int, schedule: str) -> list[float]:
    """Peak learning rate of each layer group, from the input to the head.

    A number is the head's, the others get a third (2018) or a tenth (2019) of it; a pair is spread geometrically:
    lr_i = a (b/a)^(i/(groups-1)).
    """
    if isinstance(lr, tuple):
        low, high = lr
        return [low * (high / low) ** (i / (groups - 1)) for i in range(groups)]
    return [lr * EARLIER_GROUPS[schedule]] * (groups - 1) + [lr]


def one_cycle(step: int, steps: int, schedule: str) -> tuple[float, float]:
    """Learning rate as a share of its peak, and momentum (beta1), of batch `step` of `steps`.

    Warm-up over int(0.3 steps) batches from 1/25 of the peak, linear (2018) or cosine (2019); then a cosine to
    1/250,000 of it. Momentum goes 0.95, 0.85, 0.95 along the same curves.
    """
    warmup = int(steps * WARMUP_SHARE)
    top = max(
        1, warmup
    )  # fastai 1 takes a first batch at 1/25 of the peak also where the warm-up rounds to none
    if step <= top:
        done = step / top
        share = done if schedule == "one-cycle-2018" else (1 - math.cos(math.pi * done)) / 2
        start, end, first, last = 1 / START_DIVISOR, 1.0, MOMENTUM_HIGH, MOMENTUM_LOW
    else:
        done = (step - top) / (steps - warmup)
        share = (1 - math.cos(math.pi * done)) / 2
        start, end, first, last = 1.0, 1 / END_DIVISOR, MOMENTUM_LOW, MOMENTUM_HIGH
    return start + (end - start) * share, first + (last - first) * share


def make_optimizer(model: nn.Sequential, rates: list[float], wd: float) -> torch.optim.AdamW:
    """AdamW with one parameter group per layer group, decoupled decay on everything trainable, BatchNorm included."""
    groups = [
        {"params": [p for p in group if p.requires_grad], "lr": rate, "peak_lr": rate}
        for group, rate in zip(layer_groups(model), rates, strict=True)
    ]
    return torch.optim.AdamW(
        groups, betas=(MOMENTUM_HIGH, BETA2), eps=1e-8, weight_decay=wd, fused=True
    )


def times(lr: float | tuple[float, float], factor: float) -> float | tuple[float, float]:
    """The peak of a stage times a factor."""
    return (lr[0] * factor, lr[1] * factor) if isinstance(lr, tuple) else lr * factor


def scale_peaks(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Multiplies the peak rates of all layer groups by a factor."""
    for group in optimizer.param_groups:
        group["peak_lr"] *= factor


def set_step(
    optimizer: torch.optim.Optimizer, step: int, steps: int, schedule: str
) -> tuple[list[float], float]:
    """Sets learning rates and momentum of a batch. Returns (rate per group, momentum)."""
    share, momentum = one_cycle(step, steps, schedule)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * share
        group["betas"] = (momentum, BETA2)
    return [group["lr"] for group in optimizer.param_groups], momentum
