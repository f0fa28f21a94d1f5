"""Multi-label: a sigmoid output and a loss of its own for each label.

Losses take logits (N, K) and targets (N, K), which mixup and smoothing make numbers between 0 and
1, and give the loss of each tile, (N,). Weights (K,) are factors on the positive term of a label.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from raytrain.config import Train
from raytrain.tasks.classification import BatchLoss, LossOfTile, built, targets_on, unchanged

# Ridnik et al. 2021, "Asymmetric Loss for Multi-Label Classification", section 3: focusing of
# negatives and margin.
ASYMMETRIC_GAMMA, ASYMMETRIC_MARGIN = 4, 0.05
BETA_SQUARED = 4

network = built
device_targets = targets_on
undone = unchanged


def bce(
    logits: torch.Tensor, target: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Binary cross entropy, mean over labels: (N, K) to (N,)."""
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none", pos_weight=weights)
    return each.mean(1)


def asymmetric(
    logits: torch.Tensor, target: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Asymmetric loss, mean over labels: (N, K) to (N,).

    -t log p - (1 - t) q^4 log(1 - q) with q = max(p - 0.05, 0), Ridnik et al. 2021.
    """
    q = (logits.sigmoid() - ASYMMETRIC_MARGIN).clamp(min=0)
    positive = F.logsigmoid(logits)
    if weights is not None:
        positive = weights * positive
    negative = q**ASYMMETRIC_GAMMA * torch.log1p(-q)
    return -(target * positive + (1 - target) * negative).mean(1)


def soft_f2(
    logits: torch.Tensor, target: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """1 - F2 with probabilities in place of decisions: (N, K) to (N,).

    1 - 5 sum(t p) / (4 sum(t) + sum(p)). It has no positive term that weights could change.
    """
    assert weights is None
    p = logits.sigmoid()
    size = BETA_SQUARED * target.sum(1) + p.sum(1)
    # A tile without labels and a network that is sure of it would give 0 / 0. The square of the
    # bound, in the gradient, is a float32 too.
    size = size.clamp(min=1e-8)
    return 1 - (1 + BETA_SQUARED) * (target * p).sum(1) / size


LOSSES: dict[str, LossOfTile] = {
    "bce": bce,
    "asymmetric": asymmetric,
    "soft-f2": soft_f2,
}
# What `train.loss` means where it is left out.
OWN_LOSS = "bce"
WEIGHTED = ("bce", "asymmetric")


def smoothed(target: torch.Tensor, share: float) -> torch.Tensor:
    """Moves every target towards 1/2: t (1 - s) + s / 2."""
    return target * (1 - share) + share / 2


def batch_loss(settings: Train, weights: torch.Tensor | None = None) -> BatchLoss:
    """Returns the loss that a recipe asks for.

    Args:
        settings: `loss`, which must be one of `LOSSES`, and `label_smoothing`.
        weights: factor of each class, (K,), on the device that trains and in its type; None for 1.
    """
    return BatchLoss(LOSSES[settings.loss or OWN_LOSS], smoothed, settings.label_smoothing, weights)
