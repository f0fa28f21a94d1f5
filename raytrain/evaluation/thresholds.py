"""From probabilities to labels: thresholds fitted on one half of the tiles and judged on the other.

    judge(predictions) -> Judgement      F2 at 0.2, at the best global and best per-class thresholds; per-label table
    write(judgement, out)                out/thresholds.json, out/metrics.json, out/per_label.csv
    read_thresholds(place, classes)      the recommended thresholds, (K,)

thresholds.json: {"default": 0.2, "global": t, "per_class": {label: t}, "recommended": "default" | "global" |
"per_class"}. Neither torch nor ray.
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
RULES = (
    "default",
    "global",
    "per_class",
)  # from the one that fits nothing to the one that fits most
RESAMPLES = 1000
TIE = 1e-12  # means of F2 that differ by less are equal but for the order of summation


@dataclass(frozen=True, eq=False)
class Fitted:
    """The best thresholds for some tiles: one for all labels, and float64 (K,)."""

    best_global: float
    per_class: Array


@dataclass(frozen=True)
class Score:
    """A mean F2 over tiles with its 95 % bootstrap interval."""

    f2: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Judgement:
    """What predictions are worth, and the thresholds to use with them.

    Attributes:
        scores: Score of each rule. "default" is 0.2 for all; "global" and "per_class" are held out: every tile is
            judged by thresholds fitted on the half that it is not in.
        halves: thresholds fitted on the first and on the second half.
        fitted: thresholds fitted on all tiles, the ones to use.
        recommended: the rule to use: a rule that fits more must be better than a simpler one by more than the noise.
        mean_average_precision: over the labels that any tile has; NaN if none.
        per_label: `metrics.per_label` at 0.2, a threshold that was fitted on nothing.
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

    @property
    def f2(self) -> float:
        """F2 of all tiles at threshold 0.2."""
        return self.scores["default"].f2


def best_global(logits: Array, target: Array) -> tuple[float, float]:
    """The threshold of 0.01, 0.02 ... 0.99 with the highest F2, and that F2; of equal ones the nearest to 0.2."""
    probability = metrics.sigmoid(logits)
    scores = np.array([metrics.f2_per_tile(probability > t, target).mean() for t in _grid()])
    best = _nearest_best(scores, DEFAULT)
    return float(_grid()[best]), float(scores[best])


def best_per_class(
    logits: Array, target: Array, start: float | Array = DEFAULT, seed: int = 0
) -> tuple[Array, float]:
    """One threshold a class by coordinate ascent on F2, until a pass over all classes gains nothing.

    A class's label changes only the counts of its own tile: so the F2 of every tile with and without the label give the
    score of all 99 thresholds by one cumulative sum of gains over the tiles in order of probability.

    Args:
        start: threshold, or (K,), to start from; a class moves only if that gains, and as little as it can.
        seed: draws the order of classes of every pass.

    Returns:
        float64 (K,) thresholds, and their F2 on these tiles.
    """
    probability, true = metrics.sigmoid(logits), target != 0
    cuts = np.broadcast_to(start, probability.shape[1]).astype(np.float64)
    # How many thresholds of the grid each probability is strictly above.
    above = np.searchsorted(_grid(), probability, side="left")
    order = np.random.default_rng(seed)
    best, before = metrics.f2(logits, target, cuts), -math.inf
    while best > before + TIE:
        before = best
        for k in order.permutation(len(cuts)):
            scores = _scores_of_class(probability > cuts, true, above[:, k], k)
            found = _nearest_best(scores, cuts[k])
            if scores[found] > best + TIE:
                cuts[k], best = _grid()[found], scores[found]
    return cuts, metrics.f2(logits, target, cuts)


def fit(logits: Array, target: Array, seed: int = 0) -> Fitted:
    """Both kinds of thresholds; the classes start from the best global one."""
    threshold, _ = best_global(logits, target)
    return Fitted(threshold, best_per_class(logits, target, threshold, seed)[0])


def judge(predictions: Predictions, seed: int = 0) -> Judgement:
    """Judges predictions with known targets; the order of rows does not matter, equal seeds give equal judgements.

    Raises:
        DataError: no targets, or fewer than two tiles.
    """
    logits, target = _by_name(predictions)
    first = np.zeros(len(logits), np.bool_)
    first[np.random.default_rng(seed).permutation(len(logits))[: len(logits) // 2]] = True
    halves = (fit(logits[first], target[first], seed), fit(logits[~first], target[~first], seed))
    per_tile = np.stack(
        list(_held_out(metrics.sigmoid(logits), target, first, halves).values()), axis=1
    )
    resampled = bootstrap(per_tile, seed)
    low, high = np.quantile(resampled, (0.025, 0.975), axis=0)
    scores = (
        Score(*map(float, values)) for values in zip(per_tile.mean(axis=0), low, high, strict=True)
    )
    labels = metrics.per_label(logits, target, predictions.classes, DEFAULT)
    return Judgement(
        classes=predictions.classes,
        tiles=len(logits),
        scores=dict(zip(RULES, scores, strict=True)),
        halves=halves,
        fitted=fit(logits, target, seed),
        recommended=RULES[_recommended(resampled)],
        bce=metrics.bce(logits, target),
        accuracy=metrics.accuracy_thresh(logits, target, DEFAULT),
        mean_average_precision=float(labels["average_precision"].mean()),
        per_label=labels,
    )


def bootstrap(per_tile: Array, seed: int) -> Array:
    """Means over resampled tiles: (N, M) to (RESAMPLES, M). Columns share each resample, so they can be compared."""
    generator, rows = np.random.default_rng(seed), len(per_tile)
    draws = (generator.integers(rows, size=rows) for _ in range(RESAMPLES))
    return np.stack([np.bincount(draw, minlength=rows) @ per_tile for draw in draws]) / rows


def to_json(judgement: Judgement) -> dict[str, Any]:
    """The content of metrics.json; a score that nothing can be said about is null."""
    average = judgement.mean_average_precision
    return {
        "tiles": judgement.tiles,
        "f2": judgement.f2,
        "bce": judgement.bce,
        "accuracy": judgement.accuracy,
        "map": None if math.isnan(average) else average,
        "thresholds": {
            rule: {
                "f2": score.f2,
                "low": score.low,
                "high": score.high,
                "held_out": rule != "default",
            }
            for rule, score in judgement.scores.items()
        },
        "recommended": judgement.recommended,
    }


def write(judgement: Judgement, out: str) -> None:
    """Writes thresholds.json, metrics.json and per_label.csv into a directory.

    Raises:
        StorageError: it cannot be written.
    """
    fitted = judgement.fitted
    content = {
        "default": DEFAULT,
        "global": fitted.best_global,
        "per_class": dict(zip(judgement.classes, fitted.per_class.tolist(), strict=True)),
        "recommended": judgement.recommended,
    }
    storage.write_json(storage.join(out, "thresholds.json"), content)
    storage.write_json(storage.join(out, "metrics.json"), to_json(judgement))
    storage.write_text(
        storage.join(out, "per_label.csv"),
        judgement.per_label.to_csv(index=False, lineterminator="\n"),
    )


def table(judgement: Judgement) -> str:
    """Plain text for the terminal: the three rules, the other measures, the weakest labels."""
    fitted = judgement.fitted
    cuts = {
        "default": f"{DEFAULT:.2f}",
        "global": f"{fitted.best_global:.2f}",
        "per_class": f"{fitted.per_class.min():.2f}-{fitted.per_class.max():.2f}",
    }
    lines = [f"{f'F2 of {judgement.tiles:,} tiles':22}{'threshold':>10}{'F2':>9}   95 % interval"]
    for rule, score in judgement.scores.items():
        name = rule if rule == "default" else f"{rule}, held out"
        mark = "   recommended" if rule == judgement.recommended else ""
        lines.append(
            f"{name:22}{cuts[rule]:>10}{score.f2:9.4f}   {score.low:.4f}-{score.high:.4f}{mark}"
        )
    lines.append(
        f"mAP {judgement.mean_average_precision:.4f}   accuracy {judgement.accuracy:.4f}   loss {judgement.bce:.4f}"
    )
    weak = judgement.per_label[judgement.per_label["count"] > 0].nsmallest(4, "f2")
    worst = [
        f"{row.label} {row.f2:.2f} ({row.count:,} tiles)"
        for row in weak.itertuples(index=False, name="Row")
    ]
    return "\n".join(
        [*lines, f"weakest labels, F2: {', '.join(worst)}" if worst else "no tile has a label"]
    )


def read_thresholds(path: str, classes: Sequence[str]) -> Array:
    """The recommended thresholds of a thresholds.json, float64 (K,) in the order of `classes`.

    Raises:
        DataError: no such file, not written by raytrain, or fitted for other classes.
    """
    fix = "raytrain evaluate P.parquet --out DIR writes DIR/thresholds.json"
    try:
        content = storage.read_json(path)
        rule, per_class = str(content["recommended"]), dict(content["per_class"])
        chosen = per_class if rule == "per_class" else dict.fromkeys(per_class, content[rule])
        cuts = {label: float(threshold) for label, threshold in chosen.items()}
    except FileNotFoundError:
        raise DataError(f"there is no thresholds file {path}", "", fix) from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is not a thresholds file ({error!r})", "no label could be decided", fix
        ) from None
    other = sorted(set(cuts).symmetric_difference(classes))
    if other:
        found = f'"{other[0]}" is {"unknown to the predictions" if other[0] in cuts else "missing"}'
        raise DataError(
            f"{path} was fitted for other classes: {found}",
            "labels would be cut at the wrong places",
            fix,
        )
    if not all(0.0 <= cut <= 1.0 for cut in cuts.values()):
        raise DataError(
            f"{path} has a threshold outside 0 to 1", "a label would come always or never", fix
        )
    return np.array([cuts[label] for label in classes], np.float64)


def _grid() -> Array:
    return np.arange(1, 100) / 100


def _nearest_best(scores: Array, current: float) -> int:
    """Index of the best score on the grid; of equal ones the nearest to the current threshold."""
    equal = np.flatnonzero(scores >= scores.max() - TIE)
    return int(equal[np.abs(_grid()[equal] - current).argmin()])


def _scores_of_class(predicted: Array, true: Array, above: Array, k: int) -> Array:
    """Mean F2 for every threshold of class k, (99,), all other labels staying as they are predicted."""
    others = predicted.copy()
    others[:, k] = False
    tp, chosen, count = (np.count_nonzero(which, axis=1) for which in (others & true, others, true))
    without = metrics.f2_of_counts(tp, chosen, count)
    gain = metrics.f2_of_counts(tp + true[:, k], chosen + 1, count) - without
    # A tile above exactly j thresholds has the label at the first j of them: sum the gains from the far end.
    by_step = np.bincount(above, weights=gain, minlength=100)[1:]
    return np.asarray(without.sum() + by_step[::-1].cumsum()[::-1]) / len(true)


def _by_name(predictions: Predictions) -> tuple[Array, Array]:
    """Logits and target in the order of names, so that halves do not depend on who wrote the file."""
    if predictions.target is None:
        raise DataError(
            "the predictions have no targets",
            "nothing says which labels are right",
            "predict a part of a labelled --dataset",
        )
    if len(predictions.names) < 2:
        raise DataError(
            f"the predictions have {len(predictions.names)} tiles",
            "thresholds are fitted on one half and judged on the other",
            "predict at least two tiles",
        )
    order = np.argsort(np.array(predictions.names), kind="stable")
    return predictions.logits[order], predictions.target[order]


def _held_out(
    probability: Array, target: Array, first: Array, halves: tuple[Fitted, Fitted]
) -> dict[str, Array]:
    """F2 of each tile under each rule, (N,), by thresholds of the half that the tile is not in."""
    on_first, on_second = halves
    k = probability.shape[1]
    cuts = {
        "default": np.full(probability.shape, DEFAULT),
        "global": np.where(first, on_second.best_global, on_first.best_global)[:, None].repeat(
            k, axis=1
        ),
        "per_class": np.where(first[:, None], on_second.per_class, on_first.per_class),
    }
    return {rule: metrics.f2_per_tile(probability > cuts[rule], target) for rule in RULES}


def _recommended(resampled: Array) -> int:
    """Column of the rule to use: the simplest, unless one that fits more gains in 97.5 % of the resamples."""
    chosen = 0
    for rule in range(1, resampled.shape[1]):
        if np.quantile(resampled[:, rule] - resampled[:, chosen], 0.025) > 0:
            chosen = rule
    return chosen
