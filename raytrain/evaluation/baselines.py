"""What needs no network: the best constant answer, and a logistic regression on the colours of a tile.

A network that is not clearly better has learned nothing about the pictures. Both are fitted on the training part and
judged on the validation part. In: features float64 (N, F), target (N, K) of 0 and 1. Neither torch nor ray.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize

from raytrain.evaluation import metrics, thresholds
from raytrain.evaluation.metrics import Array


def best_constant(target: Array) -> tuple[Array, float]:
    """The set of labels that is the best answer for every tile: bool (K,), and its mean F2 over the tiles.

    Greedy: from the empty set, puts in or takes out the label that gains most, until none does.
    """
    true = (target != 0).astype(np.float64)
    answer, best = np.zeros(true.shape[1], np.bool_), 0.0
    while True:
        sign = np.where(answer, -1.0, 1.0)
        tp = (true @ answer)[:, None] + true * sign
        scores = metrics.f2_of_counts(
            tp, answer.sum() + sign, true.sum(axis=1, keepdims=True)
        ).mean(axis=0)
        chosen = int(scores.argmax())
        if scores[chosen] <= best + thresholds.TIE:
            return answer, best
        answer[chosen] ^= True
        best = float(scores[chosen])


def colour_features(images: Iterable[Array]) -> Array:
    """Mean and deviation of each channel: float64 (N, 6) between 0 and 1, of uint8 (H, W, 3) pictures."""
    rows = [[*image.mean(axis=(0, 1)), *image.std(axis=(0, 1))] for image in images]
    return np.array(rows, np.float64).reshape(-1, 6) / 255.0


@dataclass(frozen=True, eq=False)
class LogisticRegression:
    """One logistic regression a class, over features standardised by the training part.

    mean, scale (F,); weights (F, K); bias (K,).
    """

    mean: Array
    scale: Array
    weights: Array
    bias: Array

    def logits(self, features: Array) -> Array:
        """float64 (N, K) of features (N, F)."""
        return (features - self.mean) / self.scale @ self.weights + self.bias


def logistic_regression(features: Array, target: Array, l2: float = 1e-3) -> LogisticRegression:
    """Minimises mean cross entropy + l2 / 2 · |weights|² for every class; the bias is free.

    The same optimum as sklearn's LogisticRegression(C = 1 / (l2 · N)) on standardised features.
    """
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    scale = np.where(deviation > 1e-12, deviation, 1.0)
    x = np.column_stack([(features - mean) / scale, np.ones(len(features))])
    true = (target != 0).astype(np.float64)
    # The bias is the last row; a class that all or no tiles have still ends, since its gradient fades.
    decay = np.full((x.shape[1], 1), l2)
    decay[-1] = 0.0

    def loss(flat: Array) -> tuple[float, Array]:
        weights = flat.reshape(x.shape[1], -1)
        logits = x @ weights
        gradient = x.T @ (metrics.sigmoid(logits) - true) / len(x) + decay * weights
        return metrics.bce(logits, true) * true.shape[1] + float(
            (decay * weights**2).sum()
        ) / 2, gradient.ravel()

    start = np.zeros(x.shape[1] * true.shape[1])
    options = {"maxiter": 2000, "gtol": 1e-7, "ftol": 1e-13}
    weights = minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x.reshape(
        x.shape[1], -1
    )
    return LogisticRegression(mean, scale, weights[:-1], weights[-1])


def compare(
    train: tuple[Array, Array], valid: tuple[Array, Array], classes: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Both baselines, fitted on `train` and judged on `valid`, as baselines.json holds them.

    Args:
        train, valid: (features, target) of a part.

    Returns:
        {"constant": {"labels", "f2"}, "logistic": {"threshold", "f2"}}; the threshold is the best one for `train`.
    """
    answer, _ = best_constant(train[1])
    constant = metrics.f2_per_tile(np.broadcast_to(answer, valid[1].shape), valid[1]).mean()
    model = logistic_regression(*train)
    threshold, _ = thresholds.best_global(model.logits(train[0]), train[1])
    return {
        "constant": {
            "labels": [c for c, said in zip(classes, answer, strict=True) if said],
            "f2": float(constant),
        },
        "logistic": {
            "threshold": threshold,
            "f2": metrics.f2(model.logits(valid[0]), valid[1], threshold),
        },
    }
