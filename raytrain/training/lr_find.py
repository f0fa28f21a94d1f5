"""The learning-rate range test, and rules that read a peak learning rate off its curve.

Leslie Smith 2017, "Cyclical Learning Rates"; numbers of fastai 1.0.21 (callbacks/lr_finder.py,
train.py `lr_find`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import torch
from torch import nn

from raytrain import storage
from raytrain.checkpoints.history import smoothed
from raytrain.errors import DivergedError
from raytrain.training.optim import BETA2, Rate

STEPS = 100
FIRST_LR, LAST_LR = 1e-7, 10.0
MOMENTUM = 0.9
DIVERGED = 4.0  # times the lowest smoothed loss
SKIPPED_START, SKIPPED_END = 10, 5
# Of the loss: the curve of a network that is trained already is flat before it rises, and its
# minimum is chance.
CLEAR_FALL = 0.2
# Of the suggestions, the one that `--lr auto` takes.
AUTO_RULE = "minimum/10"
# Those of the lesson: the peak of a frozen stage, then both ends of the pair after unfreezing.
STEEPEST_RULE = "steepest"
LOW_RULE = "rise/10"
HIGH_RULE = "frozen/5"
# By so much of its minimum the smoothed loss has risen clearly.
CLEAR_RISE = 0.1
LOW_DIVISOR = 10
HIGH_DIVISOR = 5

Values = np.ndarray[tuple[int], np.dtype[np.float64]]


class Stopped(Exception):
    """A range test was stopped before its end; the weights are those from before it."""


@dataclass(frozen=True)
class Curve:
    """Learning rate, loss of the global batch and smoothed loss of every step of a range test."""

    lr: list[float]
    loss: list[float]
    smoothed: list[float]


def range_test(
    step: Callable[[int], float],
    optimizer: torch.optim.Optimizer,
    *,
    steps: int = STEPS,
    last_lr: float = LAST_LR,
) -> Curve:
    """Trains while the rate of all layer groups rises, lr_t = first (last / first)^(t / steps),
    until the loss diverges.

    Args:
        step: trains on batch t and returns the loss of the global batch, equal on all ranks.
        optimizer: its rates and momentum are set here.
        steps: at most so many.
        last_lr: the rate that step `steps` would have.
    """
    curve = Curve([], [], [])
    for t in range(steps):
        lr = FIRST_LR * (last_lr / FIRST_LR) ** (t / steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
            group["betas"] = (MOMENTUM, BETA2)
        curve.loss.append(step(t))
        curve.lr.append(lr)
        curve.smoothed.append(smoothed(curve.loss))
        if not math.isfinite(curve.loss[-1]) or curve.smoothed[-1] > DIVERGED * min(curve.smoothed):
            break
    return curve


def write(directory: str, stage_name: str, curve: Curve, found: dict[str, float]) -> None:
    """Writes `<stage>.csv` (step, lr, loss, smoothed) and `<stage>.json` (rule: rate)."""
    table = pd.DataFrame(asdict(curve))
    path = storage.join(directory, f"{stage_name}.csv")
    storage.write_text(path, table.to_csv(index_label="step"))
    storage.write_json(storage.join(directory, f"{stage_name}.json"), found)


@contextmanager
def weights_restored(model: nn.Module) -> Iterator[None]:
    """Gives parameters and buffers their values back at the end."""
    before = copy.deepcopy(model.state_dict())
    try:
        yield
    finally:
        model.load_state_dict(before)


def suggestions(curve: Curve) -> dict[str, float]:
    """Peak learning rates by rule.

    steepest: where the smoothed loss falls fastest per step. valley: the middle of its longest
    fall. minimum/10: a tenth of the rate where it is lowest. The first 10 and the last 5 steps play
    no part, as in fastai's picture. rise/10: a tenth of `rise`; left out where there is none.

    Raises:
        DivergedError: the loss diverged before a curve could be seen.
    """
    lr = _kept(curve.lr)
    loss = _kept(curve.smoothed)
    if len(lr) < SKIPPED_START:
        raise DivergedError(
            f"the range test diverged after {len(curve.lr)} of {STEPS} steps",
            "no learning rate can be read off so short a curve",
            "check the labels and weights, or give the rates of the stages by hand",
        )
    found = {
        STEEPEST_RULE: float(lr[np.gradient(loss).argmin()]),
        "valley": float(lr[_valley(loss)]),
        AUTO_RULE: float(lr[loss.argmin()]) / 10,
    }
    risen = rise(curve)
    if risen is not None:
        found[LOW_RULE] = risen / LOW_DIVISOR
    return found


def rise(curve: Curve) -> float | None:
    """The first rate after the lowest smoothed loss where the loss is 10 % higher; None if there is
    none.

    The last steps play no part in the minimum, but they may show the rise: a loss that explodes has
    risen.
    """
    kept = _kept(curve.smoothed)
    lowest = SKIPPED_START + int(kept.argmin())
    limit = (1 + CLEAR_RISE) * kept.min()
    for lr, loss in zip(curve.lr[lowest:], curve.smoothed[lowest:], strict=True):
        # Also true of a loss that is not a number.
        if not loss <= limit:
            return lr
    return None


def fall(curve: Curve) -> float:
    """How far the smoothed loss falls from the first step that counts to its minimum, as a fraction
    of the former.
    """
    loss = _kept(curve.smoothed)
    return float(1 - loss.min() / loss[0])


def peak(curve: Curve, planned: Rate, rule: str = AUTO_RULE) -> tuple[Rate, str]:
    """The peak rate that a range test finds for a stage, or the planned one where it says nothing;
    and why.

    Args:
        curve: of the range test.
        planned: the recipe's peak rate of the stage.
        rule: of the suggestions.
    """
    found = suggestions(curve)
    known = ", ".join(f"{rule} {lr:.1e}" for rule, lr in found.items())
    depth = fall(curve)
    if depth < CLEAR_FALL:
        sentence = (
            f"in the range test the loss falls by {depth:.0%} only, which says nothing about "
            f"rates ({known}); "
            f"peak lr stays {_readable(planned)}"
        )
        return planned, sentence
    chosen = scaled(planned, found[rule])
    sentence = (
        f"the range test suggests {known}; "
        f"peak lr {_readable(chosen)} ({rule}) instead of {_readable(planned)}"
    )
    return chosen, sentence


def unfrozen_peak(curve: Curve, planned: Rate, frozen_lr: float | None) -> tuple[Rate, str]:
    """The pair of rates that fast.ai's lesson takes after unfreezing, or the planned peak where it
    has none; and why.

    The earliest layer group gets a tenth of the rate where the loss rises, the head a fifth of the
    rate that it was trained with while the rest was frozen.

    Args:
        curve: of the range test.
        planned: the recipe's peak rate of the stage.
        frozen_lr: peak rate of the head in the stage before, if that one was frozen.
    """
    stays = f"peak lr stays {_readable(planned)}"
    if frozen_lr is None:
        return (
            planned,
            f"no frozen stage comes before this one, whose rate could be divided; {stays}",
        )
    risen = rise(curve)
    if risen is None:
        sentence = f"in the range test the loss never rises by {CLEAR_RISE:.0%} above its minimum"
        return planned, f"{sentence}; {stays}"
    low = risen / LOW_DIVISOR
    high = frozen_lr / HIGH_DIVISOR
    reasons = (
        f"in the range test the loss rises at {risen:.1e}, the stage before was frozen "
        f"with lr {frozen_lr:.1e}"
    )
    if low >= high:
        sentence = f"a tenth of the first, {low:.1e}, is not below a fifth of the other, {high:.1e}"
        return planned, f"{reasons}; {sentence}; {stays}"
    chosen = (low, high)
    return chosen, f"{reasons}; peak lr {_readable(chosen)} instead of {_readable(planned)}"


def _readable(lr: Rate) -> str:
    if isinstance(lr, tuple):
        return f"{lr[0]:.1e} to {lr[1]:.1e}"
    return f"{lr:.1e}"


def scaled(lr: Rate, suggestion: float) -> Rate:
    """The stage's peak with the suggestion as the head's rate; a pair keeps its ratio."""
    if isinstance(lr, tuple):
        return suggestion * lr[0] / lr[1], suggestion
    return suggestion


def _kept(values: list[float]) -> Values:
    """Without the first steps, whose loss is that of the untrained head, and the last ones, where
    it explodes.
    """
    return np.array(values[SKIPPED_START : len(values) - SKIPPED_END])


def _valley(loss: Values) -> int:
    """Half the length of the longest falling subsequence before its end (fastai 2's `valley`, to
    within a step).
    """
    # Of the longest falling subsequence that ends with each step.
    length = np.ones(len(loss), int)
    for i in range(1, len(loss)):
        higher = length[:i][loss[:i] > loss[i]]
        length[i] = 1 + higher.max(initial=0)
    end = int(length.argmax())
    return end - int(length[end]) // 2
