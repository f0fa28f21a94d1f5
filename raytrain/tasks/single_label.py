"""Single label: a softmax over the classes.

Losses take logits (N, K) and targets (N, K), one-hot before mixup and smoothing, and give the loss
of each tile, (N,). Weights (K,) are factors on the loss of a tile, by its class.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from raytrain.config import Train
from raytrain.tasks.classification import BatchLoss, LossOfTile, built, targets_on, unchanged

network = built
device_targets = targets_on
undone = unchanged


def cross_entropy(
    logits: torch.Tensor, target: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Cross entropy of the softmax, -sum(w t log p): (N, K) to (N,)."""
    if weights is not None:
        target = weights * target
    return -(target * F.log_softmax(logits, dim=1)).sum(1)


LOSSES: dict[str, LossOfTile] = {"cross-entropy": cross_entropy}
# What `train.loss` means where it is left out.
OWN_LOSS = "cross-entropy"
WEIGHTED = ("cross-entropy",)


def smoothed(target: torch.Tensor, share: float) -> torch.Tensor:
    """Moves every target towards 1/K: t (1 - s) + s / K.

    Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7.
    """
    return target * (1 - share) + share / target.shape[1]


def batch_loss(settings: Train, weights: torch.Tensor | None = None) -> BatchLoss:
    """Returns the loss that a recipe asks for.

    Args:
        settings: `loss`, which must be one of `LOSSES`, and `label_smoothing`.
        weights: factor of each class, (K,), on the device that trains and in its type; None for 1.
    """
    return BatchLoss(LOSSES[settings.loss or OWN_LOSS], smoothed, settings.label_smoothing, weights)
