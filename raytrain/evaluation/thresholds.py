"""Fits thresholds that turn probabilities into labels, and evaluates predictions with them.

    judge(predictions) -> Judgement   F2 at 0.2, at the best global and at the best per-class
                                      thresholds, and a table by label
    write(judgement, out)             out/thresholds.json, out/metrics.json, out/per_label.csv
    read_thresholds(path, classes)    the recommended thresholds, (K,)

Thresholds are fitted on one half of the tiles and evaluated on the other. thresholds.json holds
{"default": 0.2, "global": t, "per_class": {label: t}, "recommended": "default" | "global" |
"per_class"}. Imports neither torch nor ray.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from raytrain import storage
from raytrain.errors import DataError
from raytrain.evaluation import metrics
from raytrain.evaluation.metrics import Array
from raytrain.evaluation.predictions import Predictions

DEFAULT = metrics.THRESHOLD
# From the rule that fits nothing to the one that fits most.
RULES = ("default", "global", "per_class")
# Thresholds that are tried: 0.01, 0.02 ... 0.99.
GRID_SIZE = 99
RESAMPLES = 1000
# The ends of a 95 % interval.
_INTERVAL = (0.025, 0.975)
# Means of F2 that differ by less are equal except for the order of summation.
TIE = 1e-12
_WEAKEST = 4  # labels that `table` names


@dataclass(frozen=True, eq=False)
class Fitted:
    """The best thresholds for some tiles.

    Attributes:
        best_global: one threshold for all labels.
        per_class: one for each label, float64 (K,).
    """

    best_global: float
    per_class: Array


@dataclass(frozen=True)
class Score:
    """A mean F2 over tiles.

    Attributes:
        f2: the mean.
        low: lower end of the 95 % bootstrap interval.
        high: upper end of it.
    """

    f2: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Judgement:
    """The evaluation of predictions, and the thresholds to use with them.

    Attributes:
        classes: names of the K classes.
        tiles: number of tiles.
        scores: by rule. "default" is 0.2 for all labels. "global" and "per_class" are held out:
            every tile is evaluated with thresholds that were fitted on the half without it.
        halves: thresholds fitted on the first and on the second half.
        fitted: thresholds fitted on all tiles, the ones to use.
        recommended: the rule to use. A rule that fits more is recommended only if it is better
            than a simpler one by more than the noise.
        bce: binary cross entropy.
        accuracy: share of right decisions at 0.2.
        mean_average_precision: over the labels that any tile has; NaN if there are none.
        per_label: `metrics.per_label` at 0.2, which was fitted on nothing.
        unknown: number of tiles that were left out because their labels are unknown.
    """

    classes: tuple[str, ...]
    tiles: int
    scores: Mapping[str, Score]
    halves: tuple[Fitted, Fitted]
    fitted: Fitted
    recommended: str
    bce: float
    accuracy: float
    mean_average_precision: float
    per_label: pd.DataFrame
    unknown: int = 0

    @property
    def f2(self) -> float:
        """F2 of all tiles at the threshold 0.2."""
        return self.scores["default"].f2


def best_global(logits: Array, target: Array) -> tuple[float, float]:
    """Finds the threshold of 0.01, 0.02 ... 0.99 with the highest F2.

    Returns:
        The threshold, the one nearest to 0.2 of equally good ones, and its F2.
    """
    probability = metrics.sigmoid(logits)
    grid = _grid()
    means = []
    for threshold in grid:
        per_tile = metrics.f2_per_tile(probability > threshold, target)
        means.append(per_tile.mean())
    scores = np.array(means)
    best = _nearest_best(scores, DEFAULT)
    return float(grid[best]), float(scores[best])


def best_per_class(
    logits: Array, target: Array, start: float | Array = DEFAULT, seed: int = 0
) -> tuple[Array, float]:
    """Finds one threshold for each class by coordinate ascent on F2.

    It stops when a pass over all classes gains nothing. The label of a class changes only the
    counts of its own tile. So the F2 of every tile with and without the label give the scores of
    all 99 thresholds: by one cumulative sum of gains over the tiles in order of probability.

    Args:
        logits: float (N, K).
        target: (N, K) of 0 and 1.
        start: threshold, or (K,), to start from. A class moves only if that gains, and as little
            as it can.
        seed: of the order of classes in every pass.

    Returns:
        float64 (K,) thresholds, and their F2 on these tiles.
    """
    probability = metrics.sigmoid(logits)
    true = target != 0
    grid = _grid()
    cuts = np.broadcast_to(start, probability.shape[1]).astype(np.float64)
    # int (N, K): the number of thresholds that each probability is strictly above.
    above = np.searchsorted(grid, probability, side="left")
    rng = np.random.default_rng(seed)
    best = metrics.f2(logits, target, cuts)
    before = -math.inf
    while best > before + TIE:
        before = best
        for k in rng.permutation(len(cuts)):
            predicted = probability > cuts
            scores = _scores_of_class(predicted, true, above[:, k], k)
            found = _nearest_best(scores, cuts[k])
            if scores[found] > best + TIE:
                cuts[k] = grid[found]
                best = scores[found]
    # Computed anew: the scores above differ from it by rounding.
    return cuts, metrics.f2(logits, target, cuts)


def score(logits: Array, target: Array, cuts: Array) -> float:
    """Returns the F2 of some tiles with thresholds (K,): what searches compare."""
    return metrics.f2(logits, target, cuts)


def fit(logits: Array, target: Array, seed: int = 0) -> Fitted:
    """Fits both kinds of thresholds; the classes start from the best global one."""
    threshold, _ = best_global(logits, target)
    per_class, _ = best_per_class(logits, target, threshold, seed)
    return Fitted(threshold, per_class)


def judge(predictions: Predictions, seed: int = 0) -> Judgement:
    """Evaluates predictions with known targets; those without one are left out and counted.

    The order of rows does not matter, and equal seeds give equal judgements.

    Raises:
        DataError: there are no targets, or fewer than two tiles.
    """
    unknown = int((~predictions.is_known).sum())
    logits, target = _by_name(predictions.judged())
    first = _first_half(len(logits), seed)
    second = ~first
    on_first = fit(logits[first], target[first], seed)
    on_second = fit(logits[second], target[second], seed)
    halves = (on_first, on_second)
    probability = metrics.sigmoid(logits)
    per_tile = _held_out(probability, target, first, halves)
    resampled = bootstrap(per_tile, seed)
    per_label = metrics.per_label(logits, target, predictions.classes, DEFAULT)
    return Judgement(
        classes=predictions.classes,
        tiles=len(logits),
        scores=_scores(per_tile, resampled),
        halves=halves,
        fitted=fit(logits, target, seed),
        recommended=RULES[_recommended(resampled)],
        bce=metrics.bce(logits, target),
        accuracy=metrics.accuracy_thresh(logits, target, DEFAULT),
        mean_average_precision=float(per_label["average_precision"].mean()),
        per_label=per_label,
        unknown=unknown,
    )


def _first_half(tiles: int, seed: int) -> Array:
    """bool (tiles,), True for a random half."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(tiles)
    chosen = order[: tiles // 2]
    first = np.zeros(tiles, np.bool_)
    first[chosen] = True
    return first


def _scores(per_tile: Array, resampled: Array) -> dict[str, Score]:
    """The score of each rule.

    Args:
        per_tile: F2 of each tile, (N, rules).
        resampled: see `bootstrap`.
    """
    mean = per_tile.mean(axis=0)
    low, high = np.quantile(resampled, _INTERVAL, axis=0)
    scores = {}
    for column, rule in enumerate(RULES):
        scores[rule] = Score(
            f2=float(mean[column]),
            low=float(low[column]),
            high=float(high[column]),
        )
    return scores


def bootstrap(per_tile: Array, seed: int) -> Array:
    """Computes the means over resampled tiles.

    All columns share each resample, so that they can be compared.

    Args:
        per_tile: float64 (N, M).
        seed: of the resamples.

    Returns:
        float64 (RESAMPLES, M).
    """
    rng = np.random.default_rng(seed)
    rows = len(per_tile)
    sums = []
    for _ in range(RESAMPLES):
        draw = rng.integers(rows, size=rows)
        # How often each tile was drawn; the product sums over the drawn tiles.
        counts = np.bincount(draw, minlength=rows)
        sums.append(counts @ per_tile)
    return np.stack(sums) / rows


def to_json(judgement: Judgement) -> dict[str, Any]:
    """Returns the content of metrics.json; an undefined score is null."""
    average: float | None = judgement.mean_average_precision
    # JSON has no NaN.
    if math.isnan(judgement.mean_average_precision):
        average = None
    scores = {}
    for rule, score in judgement.scores.items():
        scores[rule] = {
            "f2": score.f2,
            "low": score.low,
            "high": score.high,
            "held_out": rule != "default",
        }
    content = {
        "tiles": judgement.tiles,
        "f2": judgement.f2,
        "bce": judgement.bce,
        "accuracy": judgement.accuracy,
        "map": average,
        "thresholds": scores,
        "recommended": judgement.recommended,
    }
    # Only where there are any: the file of other predictions keeps its bytes.
    if judgement.unknown:
        content["tiles_without_target"] = judgement.unknown
    return content


def write(judgement: Judgement, out: str) -> None:
    """Writes thresholds.json, metrics.json and per_label.csv.

    Args:
        judgement: to write.
        out: path or URI of a directory.

    Raises:
        StorageError: it cannot be written.
    """
    fitted = judgement.fitted
    per_class = dict(zip(judgement.classes, fitted.per_class.tolist(), strict=True))
    content = {
        "default": DEFAULT,
        "global": fitted.best_global,
        "per_class": per_class,
        "recommended": judgement.recommended,
    }
    storage.write_json(storage.join(out, "thresholds.json"), content)
    storage.write_json(storage.join(out, "metrics.json"), to_json(judgement))
    labels = judgement.per_label.to_csv(index=False, lineterminator="\n")
    storage.write_text(storage.join(out, "per_label.csv"), labels)


def table(judgement: Judgement) -> str:
    """Returns plain text for the terminal: the three rules, other metrics, the weakest labels."""
    fitted = judgement.fitted
    lowest = fitted.per_class.min()
    highest = fitted.per_class.max()
    cuts = {
        "default": f"{DEFAULT:.2f}",
        "global": f"{fitted.best_global:.2f}",
        "per_class": f"{lowest:.2f}-{highest:.2f}",
    }
    title = f"F2 of {judgement.tiles:,} tiles"
    lines = [f"{title:22}{'threshold':>10}{'F2':>9}   95 % interval"]
    for rule, score in judgement.scores.items():
        name = rule
        if rule != "default":
            name = f"{rule}, held out"
        mark = ""
        if rule == judgement.recommended:
            mark = "   recommended"
        interval = f"{score.low:.4f}-{score.high:.4f}"
        lines.append(f"{name:22}{cuts[rule]:>10}{score.f2:9.4f}   {interval}{mark}")
    lines.append(
        f"mAP {judgement.mean_average_precision:.4f}   accuracy {judgement.accuracy:.4f}   "
        f"loss {judgement.bce:.4f}"
    )
    lines.append(_weakest_labels(judgement.per_label))
    if judgement.unknown:
        lines.append(f"{judgement.unknown:,} tiles without a target were left out")
    return "\n".join(lines)


def _weakest_labels(per_label: pd.DataFrame) -> str:
    """A line with the labels of the lowest F2."""
    # F2 of a label that no tile has means nothing.
    present = per_label[per_label["count"] > 0]
    weakest = []
    lowest = present.nsmallest(_WEAKEST, "f2")
    for row in lowest.itertuples(index=False, name="Row"):
        weakest.append(f"{row.label} {row.f2:.2f} ({row.count:,} tiles)")
    if not weakest:
        return "no tile has a label"
    return f"weakest labels, F2: {', '.join(weakest)}"


def read_thresholds(path: str, classes: Sequence[str]) -> Array:
    """Reads the recommended thresholds of a thresholds.json.

    Args:
        path: path or URI.
        classes: names of the K classes of the predictions.

    Returns:
        float64 (K,) in the order of `classes`.

    Raises:
        DataError: the file is missing, was not written by raytrain, or was fitted for other
            classes.
    """
    fix = "raytrain evaluate P.parquet --out DIR writes DIR/thresholds.json"
    cuts = _read_cuts(path, fix)
    other = sorted(set(cuts).symmetric_difference(classes))
    if other:
        found = "missing"
        if other[0] in cuts:
            found = "unknown to the predictions"
        raise DataError(
            f'{path} was fitted for other classes: "{other[0]}" is {found}',
            "labels would be decided by the wrong thresholds",
            fix,
        )
    # NaN is outside too.
    if not all(0.0 <= cut <= 1.0 for cut in cuts.values()):
        raise DataError(
            f"{path} has a threshold outside 0 to 1",
            "a label would be predicted always or never",
            fix,
        )
    return np.array([cuts[label] for label in classes], np.float64)


def _read_cuts(path: str, fix: str) -> dict[str, float]:
    """The recommended threshold of every label of a thresholds.json, not yet checked."""
    try:
        content = storage.read_json(path)
        rule = str(content["recommended"])
        per_class = dict(content["per_class"])
        chosen = per_class
        if rule != "per_class":
            chosen = dict.fromkeys(per_class, content[rule])
        return {label: float(threshold) for label, threshold in chosen.items()}
    except FileNotFoundError:
        raise DataError(f"there is no thresholds file {path}", "", fix) from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is not a thresholds file ({error!r})", "no label could be decided", fix
        ) from None


def _grid() -> Array:
    """The thresholds that are tried, float64 (99,)."""
    return np.arange(1, GRID_SIZE + 1) / 100


def _nearest_best(scores: Array, current: float) -> int:
    """Index of the best score on the grid; of equal ones the nearest to the current threshold."""
    equal = np.flatnonzero(scores >= scores.max() - TIE)
    distance = np.abs(_grid()[equal] - current)
    return int(equal[distance.argmin()])


def _scores_of_class(predicted: Array, true: Array, above: Array, k: int) -> Array:
    """Mean F2 for every threshold of class k, while all other labels stay as they are predicted.

    Args:
        predicted: bool (N, K).
        true: bool (N, K).
        above: int (N,), number of thresholds that the probability of class k is above.
        k: column of the class.

    Returns:
        float64 (99,).
    """
    others = predicted.copy()
    others[:, k] = False
    has_label = true[:, k]
    tp = np.count_nonzero(others & true, axis=1)
    chosen = np.count_nonzero(others, axis=1)
    count = np.count_nonzero(true, axis=1)
    without = metrics.f2_of_counts(tp, chosen, count)
    with_label = metrics.f2_of_counts(tp + has_label, chosen + 1, count)
    gain = with_label - without
    # A tile above exactly j thresholds has the label at the first j of them: so the gain at a
    # threshold is the sum over the tiles above it, counted from the far end.
    by_count = np.bincount(above, weights=gain, minlength=GRID_SIZE + 1)
    # A tile above no threshold gains nothing.
    by_step = by_count[1:]
    gains = by_step[::-1].cumsum()[::-1]
    sums = np.asarray(without.sum() + gains)
    return sums / len(true)


def _by_name(predictions: Predictions) -> tuple[Array, Array]:
    """Logits and target sorted by name, so that halves do not depend on the order of the file."""
    if predictions.target is None:
        raise DataError(
            "the predictions have no targets",
            "without them nothing shows which labels are right",
            "predict a part of a labelled --dataset",
        )
    if len(predictions.names) < 2:
        raise DataError(
            f"the predictions have {len(predictions.names)} tiles",
            "thresholds are fitted on one half and evaluated on the other",
            "predict at least two tiles",
        )
    names = np.array(predictions.names)
    order = np.argsort(names, kind="stable")
    return predictions.logits[order], predictions.target[order]


def _held_out(
    probability: Array, target: Array, first: Array, halves: tuple[Fitted, Fitted]
) -> Array:
    """F2 of each tile under each rule, with thresholds of the half that the tile is not in.

    Args:
        probability: float64 (N, K).
        target: (N, K) of 0 and 1.
        first: bool (N,), True for tiles of the first half.
        halves: thresholds fitted on the first and on the second half.

    Returns:
        float64 (N, rules), columns in the order of RULES.
    """
    on_first, on_second = halves
    is_first = first[:, None]
    # (N, 1) and (N, K); one threshold of a row applies to all its labels.
    of_global = np.where(is_first, on_second.best_global, on_first.best_global)
    per_class = np.where(is_first, on_second.per_class, on_first.per_class)
    cuts = {"default": DEFAULT, "global": of_global, "per_class": per_class}
    columns = [metrics.f2_per_tile(probability > cuts[rule], target) for rule in RULES]
    return np.stack(columns, axis=1)


def _recommended(resampled: Array) -> int:
    """Column of the rule to use.

    It is the simplest one, unless a rule that fits more gains in 97.5 % of the resamples.
    """
    chosen = 0
    for rule in range(1, resampled.shape[1]):
        gain = resampled[:, rule] - resampled[:, chosen]
        if np.quantile(gain, _INTERVAL[0]) > 0:
            chosen = rule
    return chosen
