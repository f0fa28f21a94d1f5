"""Single label: every tile has exactly one, judged by the accuracy. No torch, no ray.

All functions take `logits` float (N, K) and one-hot `target` (N, K) of 0 and 1, for N tiles and K
classes, and compute in float64. The predicted class is the one with the largest logit, the first of
equal ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from raytrain import storage
from raytrain.errors import ConfigError, DataError
from raytrain.evaluation import intervals
from raytrain.evaluation.conditions import PLAIN, Conditions, by_name
from raytrain.evaluation.metrics import Array
from raytrain.evaluation.predictions import Predictions
from raytrain.evaluation.score import Score

SCORE = Score("accuracy", "accuracy")
METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "top5": "top-5 accuracy",
}
ANSWER_COLUMN = "label"
HAS_THRESHOLDS = False
CHECKPOINT_FACTS: dict[str, Any] = {}
# The true class must be among so many predicted ones.
TOP = 5
# The normal distribution's quantile of 97.5 %, for 95 % intervals.
Z = 1.959963984540054
_WEAKEST = 4  # classes that `table` names


@dataclass(frozen=True, eq=False)
class Judgement:
    """The evaluation of predictions.

    Attributes:
        classes: names of the K classes.
        tiles: number of tiles that were judged.
        accuracy: share of tiles whose class is right.
        low, high: ends of its 95 % interval, see `wilson`.
        balanced_accuracy: see there.
        top5: see `top_accuracy`.
        cross_entropy: mean over tiles.
        confusion: int64 (K, K), tiles by true class (row) and predicted class (column).
        per_class: see there.
        unknown: number of tiles that were left out because their class is unknown.
    """

    classes: tuple[str, ...]
    tiles: int
    accuracy: float
    low: float
    high: float
    balanced_accuracy: float
    top5: float
    cross_entropy: float
    confusion: Array
    per_class: pd.DataFrame
    unknown: int = 0


def cross_entropy(logits: Array, target: Array) -> float:
    """Returns the cross entropy of the softmax, the mean over tiles.

    Equals torch's `cross_entropy`.
    """
    log_probability = _log_softmax(logits)
    each = -(log_probability * (target != 0)).sum(axis=1)
    return float(each.mean())


def accuracy(logits: Array, target: Array) -> float:
    """Returns the share of tiles whose class is right."""
    return float(_is_right(logits, target).mean())


def confusion_matrix(logits: Array, target: Array) -> Array:
    """Counts tiles by their true class (row) and their predicted class (column), int64 (K, K)."""
    classes = target.shape[1]
    cells = _classes_of(target) * classes + _classes_of(logits)
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def balanced_accuracy(confusion: Array) -> float:
    """Returns the mean over classes of their recall; a class without tiles is left out.

    Equals sklearn's `balanced_accuracy_score`.
    """
    tiles = confusion.sum(axis=1)
    recall = np.diag(confusion)[tiles > 0] / tiles[tiles > 0]
    return float(recall.mean())


def top_accuracy(logits: Array, target: Array, top: int = TOP) -> float:
    """Returns the share of tiles whose class is among the `top` largest logits.

    A class whose logit equals the last of them counts only if it comes before it, so that constant
    logits do not score 1. With at most `top` classes it is 1.
    """
    ranked = np.argsort(-logits, axis=1, kind="stable")[:, :top]
    found = ranked == _classes_of(target)[:, None]
    return float(found.any(axis=1).mean())


def wilson(share: float, tiles: int) -> tuple[float, float]:
    """Returns the 95 % interval of a share of independent tiles.

    (p + z²/2n ± z sqrt(p (1 - p)/n + z²/4n²)) / (1 + z²/n), E. B. Wilson 1927, "Probable
    Inference, the Law of Succession, and Statistical Inference". It holds for few tiles and near 1
    too.
    """
    square = Z**2 / tiles
    middle = share + square / 2
    half = Z * math.sqrt(share * (1 - share) / tiles + square / (4 * tiles))
    low = (middle - half) / (1 + square)
    high = (middle + half) / (1 + square)
    return max(0.0, low), min(1.0, high)


def per_class(confusion: Array, classes: tuple[str, ...]) -> pd.DataFrame:
    """Computes a table with one row for each class, in class order.

    Returns:
        Columns label, count (tiles that have the class), precision, recall and f1. A score that
        would be 0 / 0 is NaN.
    """
    right = np.diag(confusion)
    count = confusion.sum(axis=1)
    predicted = confusion.sum(axis=0)
    # 0 / 0 gives the NaN that is wanted here.
    with np.errstate(invalid="ignore"):
        precision = right / predicted
        recall = right / count
        f1 = 2 * right / (count + predicted)
    return pd.DataFrame(
        {
            "label": list(classes),
            "count": count,
            "precision": precision,
            "recall": recall,
            "f1": f1,
        }
    )


def epoch_metrics(logits: Array, target: Array) -> dict[str, float]:
    """Computes the metrics of a validation.

    Returns:
        valid_loss (cross entropy), accuracy, balanced_accuracy and top5.
    """
    return {
        "valid_loss": cross_entropy(logits, target),
        "accuracy": accuracy(logits, target),
        "balanced_accuracy": balanced_accuracy(confusion_matrix(logits, target)),
        "top5": top_accuracy(logits, target),
    }


def probabilities(logits: Array) -> Array:
    """Returns the probability of each class, float64 (N, K); a row sums to 1."""
    return np.exp(_log_softmax(logits))


def judge(predictions: Predictions, how: Conditions = PLAIN) -> Judgement:
    """Evaluates the predictions whose targets are known.

    The interval of the accuracy is `wilson`'s for independent tiles, and that of the bootstrap over
    groups where they are stated.

    Raises:
        ConfigError: an exclusive group is stated.
        DataError: there are no targets, no tiles, or a tile without exactly one label.
    """
    unknown = int((~predictions.is_known).sum())
    predictions = _checked(by_name(predictions), how)
    target = predictions.target
    assert target is not None  # as _checked has seen
    logits = predictions.logits
    confusion = confusion_matrix(logits, target)
    share = accuracy(logits, target)
    low, high = wilson(share, len(target))
    groups = how.groups(predictions.names)
    if groups is not None:
        right = _is_right(logits, target)
        over_groups = intervals.estimate(right, groups, how.seed)
        low, high = over_groups.low, over_groups.high
    return Judgement(
        classes=predictions.classes,
        tiles=len(target),
        accuracy=share,
        low=low,
        high=high,
        balanced_accuracy=balanced_accuracy(confusion),
        top5=top_accuracy(logits, target),
        cross_entropy=cross_entropy(logits, target),
        confusion=confusion,
        per_class=per_class(confusion, predictions.classes),
        unknown=unknown,
    )


def tile_scores(predictions: Predictions, how: Conditions = PLAIN) -> dict[str, Array]:
    """Returns whether the class of each tile is right, 0.0 or 1.0, the tiles sorted by name.

    Raises:
        ConfigError, DataError: as `judge`.
    """
    predictions = _checked(by_name(predictions), how)
    assert predictions.target is not None  # as _checked has seen
    return {SCORE.key: _is_right(predictions.logits, predictions.target)}


def score_title(name: str) -> str:
    """Returns the name of the score for people."""
    return SCORE.name


def _checked(predictions: Predictions, how: Conditions) -> Predictions:
    """The same predictions; refuses those whose tiles do not have exactly one label each, and
    conditions that mean nothing then."""
    if how.exclusive is not None:
        raise ConfigError(
            f"--exactly-one {','.join(how.exclusive.labels)} for the task single-label",
            "every tile has exactly one label of all",
            "leave --exactly-one out",
        )
    target = predictions.target
    if target is None or len(target) == 0:
        raise DataError(
            "the predictions have no targets",
            "without them nothing shows which classes are right",
            "predict a part of a labelled --dataset",
        )
    several = np.flatnonzero(target.sum(axis=1) != 1)
    if len(several):
        raise DataError(
            f"the tile {predictions.names[several[0]]} does not have exactly one label",
            "the predictions are those of the task single-label",
            "predict the dataset that was ingested with --task single-label",
        )
    return predictions


def to_json(judgement: Judgement) -> dict[str, Any]:
    """Returns the content of metrics.json."""
    content: dict[str, Any] = {
        "tiles": judgement.tiles,
        "accuracy": judgement.accuracy,
        "low": judgement.low,
        "high": judgement.high,
        "balanced_accuracy": judgement.balanced_accuracy,
        "top5": judgement.top5,
        "cross_entropy": judgement.cross_entropy,
    }
    if judgement.unknown:
        content["tiles_without_target"] = judgement.unknown
    return content


def write(judgement: Judgement, out: str) -> None:
    """Writes metrics.json, per_label.csv and confusion.csv (rows: true class) into a directory.

    Raises:
        StorageError: it cannot be written.
    """
    storage.write_json(storage.join(out, "metrics.json"), to_json(judgement))
    classes = judgement.per_class.to_csv(index=False, lineterminator="\n")
    storage.write_text(storage.join(out, "per_label.csv"), classes)
    names = list(judgement.classes)
    confusion = pd.DataFrame(judgement.confusion, index=names, columns=names)
    text = confusion.to_csv(index_label="true", lineterminator="\n")
    storage.write_text(storage.join(out, "confusion.csv"), text)


def table(judgement: Judgement) -> str:
    """Returns the judgement as text for the terminal."""
    lines = [
        f"accuracy of {judgement.tiles:,} tiles: {judgement.accuracy:.4f}   "
        f"95 % interval {judgement.low:.4f}-{judgement.high:.4f}",
        f"balanced accuracy {judgement.balanced_accuracy:.4f}   "
        f"top-{TOP} {judgement.top5:.4f}   loss {judgement.cross_entropy:.4f}",
    ]
    present = judgement.per_class[judgement.per_class["count"] > 0]
    weakest = []
    for row in present.nsmallest(_WEAKEST, "recall").itertuples(index=False, name="Row"):
        weakest.append(f"{row.label} {row.recall:.2f} ({row.count:,} tiles)")
    lines.append(f"weakest classes, recall: {', '.join(weakest)}")
    if judgement.unknown:
        lines.append(f"{judgement.unknown:,} tiles without a target were left out")
    return "\n".join(lines)


def check_answers(classes: tuple[str, ...]) -> None:
    """Does nothing: the whole cell is the label, whatever characters it has."""


def decision(path: str | None, rule: str | None, classes: tuple[str, ...]) -> None:
    """Refuses thresholds and rules: the most probable class is the answer.

    Raises:
        ConfigError: one is given.
    """
    given = {"--thresholds": path, "--rule": rule}
    for flag, value in given.items():
        if value is not None:
            raise ConfigError(
                f"{flag} {value} for predictions of the task single-label",
                "every tile has exactly one label: the most probable class",
                f"leave {flag} out",
            )


def decided(logits: Array, chosen: None) -> Array:
    """Returns the labels of tiles, bool (N, K): the most probable class of each."""
    found = np.zeros(logits.shape, np.bool_)
    found[np.arange(len(logits)), _classes_of(logits)] = True
    return found


def answers(predictions: Predictions, chosen: None) -> Iterator[str]:
    """Yields the answer for each tile: its most probable class. Nothing else can be chosen."""
    for index in _classes_of(predictions.logits).tolist():
        yield predictions.classes[index]


def _is_right(logits: Array, target: Array) -> Array:
    """1.0 for each tile whose class is right, else 0.0, float64 (N,)."""
    right = _classes_of(logits) == _classes_of(target)
    return np.asarray(right, np.float64)


def _classes_of(values: Array) -> Array:
    """The column of the largest value of each row, int64 (N,)."""
    return np.asarray(values.argmax(axis=1), np.int64)


def _log_softmax(logits: Array) -> Array:
    """Logarithms of the probabilities, float64 (N, K), without overflow.

    Not SciPy's: the bench trains on machines that lack it.
    """
    x = np.asarray(logits, np.float64)
    shifted = x - x.max(axis=1, keepdims=True)
    total: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return total
