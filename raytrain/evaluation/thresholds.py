"""Where to cut probabilities: thresholds are fitted on one half of the tiles and judged on the other.

`judge` gives the whole judgement of a predictions file; `write` leaves thresholds.json, metrics.json and per_label.csv.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from raytrain import storage
from raytrain.errors import DataError
from raytrain.evaluation import metrics
from raytrain.evaluation.metrics import THRESHOLD, Array
from raytrain.evaluation.predictions import Predictions

GRID = np.arange(1, 100) / 100
RESAMPLES = 1000


@dataclass(frozen=True)
class Score:
    """A mean F2 with its 95 % interval over resampled tiles."""

    f2: float
    low: float
    high: float


@dataclass(frozen=True)
class Judgement:
    """What predictions are worth.

    Attributes:
        tiles: how many were judged.
        scores: by rule: `default` (0.2), `global`, `per_class`; fitted on one half, judged on the other, both ways.
        map: mean average precision over labels with a positive.
        global_threshold: fitted on all tiles.
        class_thresholds: label to threshold, fitted on all tiles.
        recommended: the rule whose judged F2 beats the default's upper limit, else `default`.
        per_label: the table of `metrics.per_label` at 0.2.
    """

    tiles: int
    scores: dict[str, Score]
    map: float
    global_threshold: float
    class_thresholds: dict[str, float]
    recommended: str
    per_label: pd.DataFrame


def best_global(logits: Array, target: Array) -> tuple[float, float]:
    """The threshold of the grid 0.01, 0.02 ... 0.99 with the highest mean F2, and that F2."""
    values = [metrics.f2(logits, target, threshold) for threshold in GRID]
    best = int(np.argmax(values))
    return float(GRID[best]), float(values[best])


def best_per_class(logits: Array, target: Array, start: float = THRESHOLD, seed: int = 0) -> tuple[Array, float]:
    """Thresholds (K,) by coordinate ascent on the mean F2, classes in a random order, until nothing improves.

    Changing one class changes only a tile's hits and number of predicted labels, so a class costs O(N x grid).
    """
    probability, target = metrics.sigmoid(logits), np.asarray(target, bool)
    thresholds = np.full(target.shape[1], start)
    best = metrics.f2(logits, target, thresholds)
    generator = np.random.default_rng(seed)
    while True:
        before = best
        for k in generator.permutation(target.shape[1]):
            thresholds[k], best = _best_of_class(probability, target, thresholds, int(k), best)
        if best <= before + 1e-12:
            return thresholds, best


def _best_of_class(probability: Array, target: Array, thresholds: Array, k: int, best: float) -> tuple[float, float]:
    predicted = probability > thresholds
    predicted[:, k] = False
    hits, count, truth = (predicted & target).sum(1), predicted.sum(1), target.sum(1)
    without = _f2(hits, count, truth)
    with_k = _f2(hits + target[:, k], count + 1, truth)
    gain, base = with_k - without, without.mean()
    # Tiles sorted by probability: above each threshold of the grid a suffix of them predicts the class.
    order = np.argsort(probability[:, k], kind="stable")
    suffix = np.append(np.cumsum(gain[order][::-1])[::-1], 0.0)
    above = np.searchsorted(probability[order, k], GRID, side="right")
    values = base + suffix[above] / len(probability)
    found = int(np.argmax(values))
    return (float(GRID[found]), float(values[found])) if values[found] > best + 1e-12 else (float(thresholds[k]), best)


def _f2(hits: Array, count: Array, truth: Array) -> Array:
    # Closed form of 5 P R / (4 P + R) in counts.
    score: Array = 5 * hits / np.maximum(4 * truth + count, 1)
    return score


def judge(predictions: Predictions, seed: int = 0) -> Judgement:
    """Judges predictions whose labels are known.

    Raises:
        DataError: the labels are unknown, or there are fewer than 2 tiles.
    """
    logits, target = predictions.logits, predictions.known_target()
    if len(logits) < 2:
        raise DataError(f"{len(logits)} predictions cannot be halved", "thresholds are judged on tiles they never saw")
    generator = np.random.default_rng(seed)
    half = np.array_split(generator.permutation(len(logits)), 2)
    per_tile = {"default": metrics.f2_per_tile(metrics.sigmoid(logits) > THRESHOLD, target)}
    per_tile |= {name: np.zeros(len(logits)) for name in ("global", "per_class")}
    for fit, held in (half, half[::-1]):
        cuts = {"global": best_global(logits[fit], target[fit])[0], "per_class": best_per_class(logits[fit], target[fit])[0]}
        for name, cut in cuts.items():
            per_tile[name][held] = metrics.f2_per_tile(metrics.sigmoid(logits[held]) > cut, target[held])
    scores = {name: _interval(values, generator) for name, values in per_tile.items()}
    recommended = max(scores, key=lambda name: scores[name].f2)
    return Judgement(
        tiles=len(logits),
        scores=scores,
        map=float(np.nanmean(metrics.average_precision(logits, target))),
        global_threshold=best_global(logits, target)[0],
        class_thresholds=dict(zip(predictions.classes, best_per_class(logits, target)[0].tolist(), strict=True)),
        recommended=recommended if scores[recommended].f2 > scores["default"].high else "default",
        per_label=metrics.per_label(logits, target, predictions.classes),
    )


def _interval(per_tile: Array, generator: np.random.Generator) -> Score:
    means = [per_tile[generator.integers(0, len(per_tile), len(per_tile))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return Score(float(per_tile.mean()), float(low), float(high))


def to_json(judgement: Judgement) -> dict[str, Any]:
    """The content of thresholds.json."""
    return {
        "default": THRESHOLD,
        "global": judgement.global_threshold,
        "per_class": judgement.class_thresholds,
        "recommended": judgement.recommended,
    }


def write(judgement: Judgement, out: str) -> None:
    """Writes thresholds.json, metrics.json and per_label.csv into a directory."""
    scores = {name: asdict(score) for name, score in judgement.scores.items()}
    content = {"tiles": judgement.tiles, "f2": scores, "map": judgement.map}
    storage.write_json(storage.join(out, "thresholds.json"), to_json(judgement))
    storage.write_json(storage.join(out, "metrics.json"), content)
    storage.write_text(storage.join(out, "per_label.csv"), judgement.per_label.to_csv(index=False))


def table(judgement: Judgement) -> str:
    """The judgement as plain text for the terminal."""
    lines = [f"F2 on {judgement.tiles} tiles (95 % interval over tiles), mAP {judgement.map:.4f}"]
    names = {
        "default": f"threshold {THRESHOLD}",
        "global": f"best threshold (all tiles: {judgement.global_threshold})",
        "per_class": "best threshold per class",
    }
    for key, score in judgement.scores.items():
        mark = "  <- recommended" if key == judgement.recommended else ""
        lines.append(f"  {score.f2:.4f}  [{score.low:.4f}, {score.high:.4f}]  {names[key]}{mark}")
    columns = ["label", "count", "precision", "recall", "f2", "average_precision"]
    lines.append(judgement.per_label[columns].to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    return "\n".join(lines)


def read_thresholds(place: str, classes: tuple[str, ...]) -> Array:
    """The recommended thresholds (K,) of a thresholds.json, in the order of `classes`.

    Raises:
        DataError: missing, damaged, or for other classes.
    """
    try:
        content = storage.read_json(place)
        rule = content["recommended"]
        values = content["per_class"] if rule == "per_class" else dict.fromkeys(content["per_class"], content[rule])
        if set(values) != set(classes):
            raise DataError(
                f"{place} holds thresholds for other classes than the predictions",
                "labels would be cut at each other's thresholds",
                "raytrain evaluate P.parquet --out DIR on predictions of the same checkpoint",
            )
        return np.array([float(values[name]) for name in classes])
    except FileNotFoundError:
        raise DataError(f"the thresholds file {place} does not exist", "", "raytrain evaluate writes one") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{place} is not a thresholds file: {error}", "", "raytrain evaluate writes one") from None
