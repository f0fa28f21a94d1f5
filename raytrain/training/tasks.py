"""What a task is: its loss, the outputs of the network, and the metrics of its logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from raytrain.evaluation import metrics


class MultiLabel:
    """Several labels per tile: sigmoid outputs, binary cross entropy, F2 per tile."""

    name = "multi-label"

    def loss_sum(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Sum over tiles of the mean binary cross entropy over labels, so that ranks with unequal shares add up."""
        return F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none").mean(1).sum()

    def metrics(self, logits: np.ndarray[Any, Any], target: np.ndarray[Any, Any]) -> dict[str, float]:
        """valid_loss, accuracy and f2 (both at threshold 0.2) of float32 (N, K) logits and uint8 (N, K) targets."""
        return {
            "valid_loss": metrics.bce(logits, target),
            "accuracy": metrics.accuracy_thresh(logits, target),
            "f2": metrics.f2(logits, target),
        }
