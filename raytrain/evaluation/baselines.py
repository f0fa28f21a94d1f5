"""Answers that need no network, to be printed beside one: a constant label set, a logistic regression on colours."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from raytrain.evaluation.metrics import Array, f2_per_tile, sigmoid


def best_constant(target: Array) -> tuple[Array, float]:
    """The constant answer, bool (K,), with the highest mean F2 found by flipping one label at a time, and that F2."""
    answer, best = np.zeros(target.shape[1], bool), -1.0
    while True:
        flips = answer ^ np.eye(len(answer), dtype=bool)
        scores = [float(f2_per_tile(np.broadcast_to(flip, target.shape), target).mean()) for flip in flips]
        found = int(np.argmax(scores))
        if scores[found] <= best:
            return answer, best
        answer, best = flips[found], scores[found]


def colour_features(images: Iterable[Array]) -> Array:
    """Mean and deviation of each colour channel, in units of 255: uint8 (H, W, 3) each, to float64 (N, 6)."""
    rows = [np.concatenate([image.mean((0, 1)), image.std((0, 1))]) / 255 for image in images]
    return np.stack(rows)


@dataclass(frozen=True)
class LogisticRegression:
    """One logistic regression per label on standardised features."""

    mean: Array
    deviation: Array
    weights: Array

    def logits(self, features: Array) -> Array:
        """float64 (N, F) to float64 (N, K)."""
        scaled = (features - self.mean) / self.deviation
        values: Array = np.column_stack([scaled, np.ones(len(scaled))]) @ self.weights
        return values


def logistic_regression(features: Array, target: Array, l2: float = 1e-3) -> LogisticRegression:
    """Fits all labels at once by L-BFGS: mean cross entropy per label plus l2/2 times the squared weights (not the bias)."""
    mean, deviation = features.mean(0), features.std(0) + 1e-12
    inputs = np.column_stack([(features - mean) / deviation, np.ones(len(features))])
    shape = (inputs.shape[1], target.shape[1])
    penalty = np.append(np.full(shape[0] - 1, l2), 0.0)[:, None]

    def loss_and_gradient(flat: Array) -> tuple[float, Array]:
        weights = flat.reshape(shape)
        x = inputs @ weights
        loss = (np.logaddexp(0, x) - target * x).mean(0).sum() + (penalty * weights**2).sum() / 2
        gradient = inputs.T @ (sigmoid(x) - target) / len(inputs) + penalty * weights
        return float(loss), gradient.reshape(-1)

    found = minimize(loss_and_gradient, np.zeros(shape[0] * shape[1]), jac=True, method="L-BFGS-B")
    return LogisticRegression(mean, deviation, found.x.reshape(shape))
