"""What a task is: its loss, the outputs of the network, and the metrics of its logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from raytrain.config import Train
from raytrain.evaluation import metrics
from raytrain.training.losses import LOSSES


class MultiLabel:
    """Several labels per tile: sigmoid outputs, a loss per tile, F2 per tile."""

    name = "multi-label"

    def __init__(self, settings: Train) -> None:
        self.loss = LOSSES[settings.loss]
        self.smoothing = settings.label_smoothing

    def loss_sum(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Sum over tiles of the loss of logits (N, K) against target (N, K), so that unequal shares
        of a batch add up.

        Computed in the type of the target. Label smoothing moves every target to t (1 - s) + s / 2.
        """
        if self.smoothing:
            target = target * (1 - self.smoothing) + self.smoothing / 2
        return self.loss(logits.to(target.dtype), target).sum()

    def metrics(
        self, logits: np.ndarray[Any, Any], target: np.ndarray[Any, Any]
    ) -> dict[str, float]:
        """Metrics of float (N, K) logits and uint8 (N, K) targets: cross entropy, accuracy, and F2
        at threshold 0.2.
        """
        return {
            "valid_loss": metrics.bce(logits, target),
            "accuracy": metrics.accuracy_thresh(logits, target),
            "f2": metrics.f2(logits, target),
        }
