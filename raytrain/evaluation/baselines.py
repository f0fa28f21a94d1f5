"""Baselines without a network: the best constant answer, and a logistic regression on colours.

A network that is not clearly better has learned nothing about the pictures. Both baselines are
fitted on the training part and evaluated on the validation part. They take features float64 (N, F)
and targets (N, K) of 0 and 1. Imports neither torch nor ray.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize

from raytrain.evaluation import metrics, thresholds
from raytrain.evaluation.metrics import Array
from raytrain.evaluation.predictions import Predictions

# Rows and columns of a picture.
_PIXELS = (0, 1)
# A feature of smaller deviation is constant; dividing by it would only scale up rounding errors.
_MIN_DEVIATION = 1e-12


def best_constant(target: Array) -> tuple[Array, float]:
    """Finds the set of labels that is the best answer for every tile.

    The search is greedy. It begins with the empty set and adds or removes the label that gains
    most, until none does.

    Args:
        target: (N, K) of 0 and 1.

    Returns:
        The set as bool (K,), and its mean F2 over the tiles.
    """
    true = (target != 0).astype(np.float64)
    true_count = true.sum(axis=1, keepdims=True)  # (N, 1)
    answer = np.zeros(true.shape[1], np.bool_)
    best = 0.0
    while True:
        # Column k of everything below: the answer with label k added, or removed if it is in.
        sign = np.where(answer, -1.0, 1.0)
        right = (true @ answer)[:, None]
        tp = right + true * sign
        predicted = answer.sum() + sign
        scores = metrics.f2_of_counts(tp, predicted, true_count).mean(axis=0)
        chosen = int(scores.argmax())
        if scores[chosen] <= best + thresholds.TIE:
            return answer, best
        answer[chosen] = not answer[chosen]
        best = float(scores[chosen])


def colour_features(images: Iterable[Array]) -> Array:
    """Computes mean and deviation of each colour channel.

    Args:
        images: uint8 (H, W, 3) each, of any size.

    Returns:
        float64 (N, 6) between 0 and 1: three means, then three deviations.
    """
    rows = []
    for image in images:
        mean = image.mean(axis=_PIXELS)
        deviation = image.std(axis=_PIXELS)
        rows.append([*mean, *deviation])
    # The reshape gives (0, 6) where there are no images.
    features = np.array(rows, np.float64).reshape(-1, 6)
    return features / 255.0


@dataclass(frozen=True, eq=False)
class LogisticRegression:
    """One logistic regression for each class, on features standardised by the training part.

    Attributes:
        mean: of the features in the training part, (F,).
        scale: what they are divided by, (F,).
        weights: (F, K).
        bias: (K,).
    """

    mean: Array
    scale: Array
    weights: Array
    bias: Array

    def logits(self, features: Array) -> Array:
        """Returns float64 (N, K) for features (N, F)."""
        standardised = (features - self.mean) / self.scale
        return standardised @ self.weights + self.bias


def logistic_regression(features: Array, target: Array, l2: float = 1e-3) -> LogisticRegression:
    """Fits a logistic regression by minimising mean cross entropy + l2 / 2 · |weights|².

    The bias is not penalised. The optimum is that of sklearn's
    LogisticRegression(C = 1 / (l2 · N)) on standardised features.

    Args:
        features: float64 (N, F).
        target: (N, K) of 0 and 1.
        l2: weight of the penalty.
    """
    mean = features.mean(axis=0)
    deviation = features.std(axis=0)
    scale = np.where(deviation > _MIN_DEVIATION, deviation, 1.0)
    standardised = (features - mean) / scale
    # The last column belongs to the bias.
    ones = np.ones(len(features))
    x = np.column_stack([standardised, ones])
    true = (target != 0).astype(np.float64)
    weights = _minimum(x, true, l2)
    return LogisticRegression(
        mean=mean,
        scale=scale,
        weights=weights[:-1],
        bias=weights[-1],
    )


def _minimum(x: Array, true: Array, l2: float) -> Array:
    """The weights at the minimum of the loss, (F + 1, K); the bias is the last row.

    It also ends for a class that all or no tiles have: the best bias is infinite, but the gradient
    fades.

    Args:
        x: standardised features and a column of ones, (N, F + 1).
        true: float64 (N, K) of 0 and 1.
        l2: weight of the penalty.
    """
    tiles, inputs = x.shape
    classes = true.shape[1]
    # No penalty on the bias.
    decay = np.full((inputs, 1), l2)
    decay[-1] = 0.0

    def loss(flat: Array) -> tuple[float, Array]:
        """The loss, summed over classes, and its gradient."""
        weights = flat.reshape(inputs, classes)
        logits = x @ weights
        error = metrics.sigmoid(logits) - true
        gradient = x.T @ error / tiles + decay * weights
        squares = decay * weights**2
        penalty = float(squares.sum()) / 2
        # bce is the mean over classes, which do not influence each other here.
        cross_entropy = metrics.bce(logits, true) * classes
        return cross_entropy + penalty, gradient.ravel()

    found = minimize(
        loss,
        np.zeros(inputs * classes),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 2000, "gtol": 1e-7, "ftol": 1e-13},
    )
    weights: Array = found.x.reshape(inputs, classes)
    return weights


def compare(
    train: tuple[Array, Array], valid: tuple[Array, Array], classes: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Fits both baselines on `train` and evaluates them on `valid`.

    Args:
        train: (features, target) of the training part.
        valid: (features, target) of the validation part.
        classes: names of the K classes.

    Returns:
        The content of baselines.json, {"constant": {"labels", "f2"}, "logistic": {"threshold",
        "f2"}}. The threshold is the best one for `train`.
    """
    train_features, train_target = train
    valid_features, valid_target = valid
    answer, _ = best_constant(train_target)
    answers = np.broadcast_to(answer, valid_target.shape)
    constant_f2 = metrics.f2_per_tile(answers, valid_target).mean()
    labels = []
    for label, is_in_answer in zip(classes, answer, strict=True):
        if is_in_answer:
            labels.append(label)

    model = logistic_regression(train_features, train_target)
    train_logits = model.logits(train_features)
    threshold, _ = thresholds.best_global(train_logits, train_target)
    valid_logits = model.logits(valid_features)
    logistic_f2 = metrics.f2(valid_logits, valid_target, threshold)
    constant = {"labels": labels, "f2": float(constant_f2)}
    logistic = {"threshold": threshold, "f2": logistic_f2}
    return {"constant": constant, "logistic": logistic}


def of_model(predictions: Predictions) -> dict[str, dict[str, float]]:
    """Returns what baselines.json holds of the network: its F2 at 0.2.

    Args:
        predictions: of the validation part, with targets.
    """
    assert predictions.target is not None  # a run's own predictions have targets
    return {"model": {"f2": metrics.f2(predictions.logits, predictions.target)}}


def summary(scores: Mapping[str, Mapping[str, Any]], tiles: int) -> list[str]:
    """Returns lines for the terminal that compare the network with both baselines.

    Args:
        scores: content of baselines.json.
        tiles: number of validation tiles.
    """
    network = scores["model"]["f2"]
    constant = scores["constant"]["f2"]
    logistic = scores["logistic"]["f2"]
    labels = " ".join(scores["constant"]["labels"])
    # What the network gains over each baseline is in brackets.
    return [
        f"F2 on {tiles} synthetic validation tiles (no Planet result):",
        f"  {network:.4f}  the network, threshold 0.2",
        f"  {logistic:.4f}  logistic regression on colour mean and deviation "
        f"({network - logistic:+.4f})",
        f"  {constant:.4f}  always {labels} ({network - constant:+.4f})",
    ]
