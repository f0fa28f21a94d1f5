"""Judges predictions of several labels per tile under every decision rule. No torch, no ray.

    judge(predictions) -> Judgement   F2 of every rule with its interval, measures, calibration, and
                                      a table by label
    write(judgement, out)             out/thresholds.json, out/metrics.json, out/per_label.csv
    table(judgement)                  text for the terminal

A rule is judged on tiles that did not fit it: on the other half, or on the other folds where the
file has them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from raytrain import storage
from raytrain.data.splits import group_folds
from raytrain.errors import DataError
from raytrain.evaluation import (
    calibration,
    intervals,
    measures,
    metrics,
    rule_files,
    rules,
)
from raytrain.evaluation.calibration import Reliability
from raytrain.evaluation.conditions import PLAIN, Conditions, by_name
from raytrain.evaluation.intervals import Comparison, Estimate
from raytrain.evaluation.metrics import Array
from raytrain.evaluation.predictions import Predictions
from raytrain.evaluation.rules import DEFAULT, Decision, Exclusive

_WEAKEST = 4  # labels that `table` names


@dataclass(frozen=True, eq=False)
class Tiles:
    """The tiles that are judged, sorted by name.

    Attributes:
        logits: float32 (N, K).
        target: uint8 (N, K) of 0 and 1.
        part: int64 (N,): tiles of one part are judged by what was fitted on all others.
        groups: (N,) group of each tile, or None.
    """

    logits: Array
    target: Array
    part: Array
    groups: Array | None = None


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What rules decide on tiles that did not fit them.

    Attributes:
        fits: every rule fitted on all tiles but those of one part, by part.
        labels: by rule, bool (N, K): each tile decided by the fit without its part.
        probability: calibrated by the temperature of the fit without the tile's part, (N, K).
    """

    fits: tuple[Mapping[str, Decision], ...]
    labels: Mapping[str, Array]
    probability: Array


@dataclass(frozen=True)
class RuleScores:
    """Decision rules compared on the same tiles.

    Attributes:
        scores: held-out F2 by rule.
        gains: of each rule but the default, over the default one.
        recommended: the rule to use. A rule that fits more is recommended only if it is better
            than a simpler one by more than the noise.
    """

    scores: Mapping[str, Estimate]
    gains: Mapping[str, Comparison]
    recommended: str


@dataclass(frozen=True, eq=False)
class Judgement:
    """The evaluation of predictions, and the decision rule to use with them.

    Attributes:
        classes: names of the K classes.
        tiles: number of tiles.
        scores: held-out F2 by rule.
        gains: of each rule but the default, over the default one.
        fits: see `HeldOut`.
        fitted: the rules fitted on all tiles, the ones to use.
        recommended: the rule to use, see `RuleScores`.
        exclusive: the group of labels that was stated, or None.
        bce: binary cross entropy.
        accuracy: share of right decisions at 0.2.
        mean_average_precision: over the labels that any tile has; NaN if there are none.
        measures: `measures.all_of` at 0.2, and under the recommended rule where it is another.
        reliability: of the probabilities as they are, and of the calibrated ones, held out.
        per_label: `metrics.per_label` at 0.2, and columns own_threshold and gain: the label's own
            threshold fitted on all tiles, and what it alone gains in held-out F2.
        unknown: number of tiles that were left out because their labels are unknown.
    """

    classes: tuple[str, ...]
    tiles: int
    scores: Mapping[str, Estimate]
    gains: Mapping[str, Comparison]
    fits: tuple[Mapping[str, Decision], ...]
    fitted: Mapping[str, Decision]
    recommended: str
    exclusive: Exclusive | None
    bce: float
    accuracy: float
    mean_average_precision: float
    measures: Mapping[str, Mapping[str, float]]
    reliability: tuple[Reliability, Reliability]
    per_label: pd.DataFrame
    unknown: int = 0

    @property
    def folds(self) -> int:
        """Into how many parts the tiles were divided for fitting and judging."""
        return len(self.fits)

    @property
    def f2(self) -> float:
        """F2 of all tiles at the threshold 0.2."""
        return self.scores[DEFAULT].value


def judge(predictions: Predictions, how: Conditions = PLAIN) -> Judgement:
    """Evaluates predictions with known targets; those without one are left out and counted.

    The order of rows does not matter, and equal seeds give equal judgements.

    Raises:
        ConfigError: the exclusive group has labels that the predictions have not.
        DataError: there are no targets, fewer than two tiles, or fewer than two groups.
    """
    classes = predictions.classes
    tiles = tiles_of(predictions, how)
    logits = tiles.logits
    target = tiles.target
    held_out = hold_out(tiles, how, classes)
    compared = compare_rules(_f2_by_rule(held_out, target), tiles.groups, how.seed)
    fitted = rules.with_group(rules.fit(logits, target, how.seed), how.exclusive, classes)
    per_label = _per_label(tiles, held_out, fitted, classes)
    return Judgement(
        classes=classes,
        tiles=len(logits),
        scores=compared.scores,
        gains=compared.gains,
        fits=held_out.fits,
        fitted=fitted,
        recommended=compared.recommended,
        exclusive=how.exclusive,
        bce=metrics.bce(logits, target),
        accuracy=metrics.accuracy_thresh(logits, target),
        mean_average_precision=float(per_label["average_precision"].mean()),
        measures=_measures(held_out, compared.recommended, target),
        reliability=(
            calibration.reliability(metrics.sigmoid(logits), target),
            calibration.reliability(held_out.probability, target),
        ),
        per_label=per_label,
        unknown=int((~predictions.is_known).sum()),
    )


def tiles_of(predictions: Predictions, how: Conditions) -> Tiles:
    """Sorts the judged tiles by name and divides them into parts.

    The parts are the folds of the file, or else two random halves. Where groups are stated, they
    are dealt to as many parts, and each is in one of them.

    Raises:
        ConfigError: the exclusive group has labels that the predictions have not.
        DataError: there are no targets, fewer than two tiles, or fewer groups than parts.
    """
    if how.exclusive is not None:
        how.exclusive.check(predictions.classes)
    judged = by_name(predictions)
    if judged.target is None:
        raise DataError(
            "the predictions have no targets",
            "without them nothing shows which labels are right",
            "predict a part of a labelled --dataset",
        )
    count = len(judged.names)
    if count < 2:
        raise DataError(
            f"the predictions have {count} tiles",
            "thresholds are fitted on one half and evaluated on the other",
            "predict at least two tiles",
        )
    groups = how.groups(judged.names)
    folds = np.zeros(count)
    if judged.fold is not None:
        folds = judged.fold
    known, part = np.unique(folds, return_inverse=True)
    if groups is not None:
        part = group_folds(groups.tolist(), max(2, len(known)), how.seed)
    elif len(known) < 2:
        part = halves(count, how.seed)
    return Tiles(judged.logits, judged.target, part, groups)


def halves(count: int, seed: int) -> Array:
    """Returns the random half of each of some tiles or folds, 0 or 1, int64 (count,)."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(count)
    half = np.ones(count, np.int64)
    half[order[: count // 2]] = 0
    return half


def hold_out(tiles: Tiles, how: Conditions, classes: tuple[str, ...]) -> HeldOut:
    """Decides every tile by rules that were fitted without its part.

    Args:
        tiles: in at least two parts.
        how: group of labels, and seed.
        classes: names of the K labels.
    """
    shape = tiles.target.shape
    labels: dict[str, Array] = {}
    probability = np.zeros(shape)
    fits = []
    for part in range(int(tiles.part.max()) + 1):
        left_out = tiles.part == part
        fitted = rules.fit(tiles.logits[~left_out], tiles.target[~left_out], how.seed)
        decisions = rules.with_group(fitted, how.exclusive, classes)
        for name, decision in decisions.items():
            decided = labels.setdefault(name, np.zeros(shape, np.bool_))
            decided[left_out] = decision.labels(tiles.logits[left_out])
        probability[left_out] = rules.calibrated(fitted, tiles.logits[left_out])
        fits.append(decisions)
    return HeldOut(tuple(fits), labels, probability)


def tile_scores(predictions: Predictions, how: Conditions = PLAIN) -> dict[str, Array]:
    """Returns the held-out F2 of every tile by rule, float64 (N,), the tiles sorted by name.

    Errors are those of `judge`.
    """
    tiles = tiles_of(predictions, how)
    held_out = hold_out(tiles, how, predictions.classes)
    return _f2_by_rule(held_out, tiles.target)


def _f2_by_rule(held_out: HeldOut, target: Array) -> dict[str, Array]:
    """F2 of each tile by rule, float64 (N,)."""
    found = {}
    for name, labels in held_out.labels.items():
        found[name] = metrics.f2_per_tile(labels, target)
    return found


def compare_rules(
    by_rule: Mapping[str, Array], groups: Array | None = None, seed: int = 0
) -> RuleScores:
    """Compares rules by their scores of the same tiles, and recommends one.

    Args:
        by_rule: held-out F2 of each tile by rule, float64 (N,); the default rule first, and rules
            that fit more behind simpler ones.
        groups: see `intervals.resampled_means`.
        seed: of the resamples.

    Raises:
        DataError: fewer than two tiles or groups.
    """
    names = list(by_rule)
    per_tile = np.stack(list(by_rule.values()), axis=1)
    resampled = intervals.resampled_means(per_tile, groups, seed)
    return RuleScores(
        scores=_scores(names, per_tile, resampled),
        gains=_gains(names, per_tile, resampled),
        recommended=_recommended(names, resampled),
    )


def _scores(names: list[str], per_tile: Array, resampled: Array) -> dict[str, Estimate]:
    scores = {}
    for column, name in enumerate(names):
        low, high = intervals.interval(resampled[:, column])
        scores[name] = Estimate(float(per_tile[:, column].mean()), low, high)
    return scores


def _gains(names: list[str], per_tile: Array, resampled: Array) -> dict[str, Comparison]:
    gains = {}
    for column, name in enumerate(names):
        if name == DEFAULT:
            continue
        gains[name] = intervals.comparison(
            per_tile[:, 0], per_tile[:, column], resampled[:, column] - resampled[:, 0]
        )
    return gains


def _recommended(names: list[str], resampled: Array) -> str:
    """The rule to use.

    It is the simplest one, unless a rule that fits more gains in 97.5 % of the resamples.
    """
    chosen = 0
    for column in range(1, len(names)):
        gain = resampled[:, column] - resampled[:, chosen]
        if intervals.interval(gain)[0] > 0:
            chosen = column
    return names[chosen]


def _measures(held_out: HeldOut, recommended: str, target: Array) -> dict[str, dict[str, float]]:
    found = {}
    for name in dict.fromkeys([DEFAULT, recommended]):
        found[name] = measures.all_of(held_out.labels[name], target)
    return found


def _per_label(
    tiles: Tiles, held_out: HeldOut, fitted: Mapping[str, Decision], classes: tuple[str, ...]
) -> pd.DataFrame:
    """The table of labels, see `Judgement.per_label`."""
    found = metrics.per_label(tiles.logits, tiles.target, classes)
    found["own_threshold"] = rules.cuts_of(fitted, "per_class")
    found["gain"] = _gain_by_label(
        held_out.labels[DEFAULT], held_out.labels["per_class"], tiles.target
    )
    return found


def _gain_by_label(before: Array, after: Array, target: Array) -> Array:
    """Mean F2 gained where a single label is decided as in `after`, float64 (K,).

    Args:
        before: labels by one rule, bool (N, K).
        after: by another one, bool (N, K).
        target: (N, K) of 0 and 1.
    """
    true = target != 0
    count = np.count_nonzero(true, axis=1)[:, None]
    predicted = np.count_nonzero(before, axis=1)[:, None]
    tp = np.count_nonzero(before & true, axis=1)[:, None]
    # int (N, K): by how much the number of labels of a tile changes with label k.
    change = after.astype(np.int64) - before
    scores = metrics.f2_of_counts(tp + change * true, predicted + change, count)
    gains = scores - metrics.f2_of_counts(tp, predicted, count)
    mean: Array = gains.mean(axis=0)
    return mean


def to_json(judgement: Judgement) -> dict[str, Any]:
    """Returns the content of metrics.json; an undefined score is null."""
    average: float | None = judgement.mean_average_precision
    # JSON has no NaN.
    if math.isnan(judgement.mean_average_precision):
        average = None
    scores: dict[str, Any] = {}
    for name, score in judgement.scores.items():
        scores[name] = {
            "f2": score.value,
            "low": score.low,
            "high": score.high,
            "held_out": name.removesuffix(rules.EXACTLY_ONE) != DEFAULT,
        }
    for name, gain in judgement.gains.items():
        scores[name]["gain"] = asdict(gain.difference) | {"verdict": gain.verdict}
    before, after = judgement.reliability
    content = {
        "tiles": judgement.tiles,
        "f2": judgement.f2,
        "bce": judgement.bce,
        "accuracy": judgement.accuracy,
        "map": average,
        "measures": judgement.measures,
        "calibration_error": {"as_predicted": before.error, "calibrated": after.error},
        "thresholds": scores,
        "recommended": judgement.recommended,
        "folds": judgement.folds,
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
    rule_files.write(
        storage.join(out, rule_files.NAME),
        judgement.fitted,
        judgement.recommended,
        judgement.classes,
        judgement.exclusive,
    )
    storage.write_json(storage.join(out, "metrics.json"), to_json(judgement))
    labels = judgement.per_label.to_csv(index=False, lineterminator="\n")
    storage.write_text(storage.join(out, "per_label.csv"), labels)


def table(judgement: Judgement) -> str:
    """Returns plain text for the terminal: every rule, other metrics, the weakest labels."""
    compared = RuleScores(judgement.scores, judgement.gains, judgement.recommended)
    lines = [table_of_rules(compared, judgement.fitted, judgement.tiles)]
    lines.append(f"recommended: {rules.title(judgement.recommended)}; {judged_on(judgement)}")
    before, after = judgement.reliability
    lines.append(
        f"mAP {judgement.mean_average_precision:.4f}   accuracy {judgement.accuracy:.4f}   "
        f"loss {judgement.bce:.4f}   calibration error {before.error:.4f}, "
        f"with a temperature {after.error:.4f}"
    )
    lines.append(_weakest_labels(judgement.per_label))
    if judgement.unknown:
        lines.append(f"{judgement.unknown:,} tiles without a target were left out")
    return "\n".join(lines)


def table_of_rules(compared: RuleScores, fitted: Mapping[str, Decision], tiles: int) -> str:
    """Returns plain text with a line for every rule.

    Args:
        compared: the rules.
        fitted: with their numbers, as they were fitted on all tiles.
        tiles: number of tiles.
    """
    heading = f"F2 of {tiles:,} tiles"
    lines = [f"{heading:38}{'decided by':>12}{'F2':>9}   {'95 % interval':16}gain over 0.2"]
    for name, score in compared.scores.items():
        words = fitted[name].words
        interval = f"{score.low:.4f}-{score.high:.4f}"
        gain = gain_in_words(compared.gains.get(name))
        line = f"{rules.title(name):38}{words:>12}{score.value:9.4f}   {interval:16}{gain}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def gain_in_words(gain: Comparison | None) -> str:
    """Returns a gain with its interval, or that there is none; nothing for None."""
    if gain is None:
        return ""
    if gain.verdict == "no difference":
        return gain.verdict
    difference = gain.difference
    return f"{difference.value:+.4f} ({difference.low:+.4f} to {difference.high:+.4f})"


def judged_on(judgement: Judgement) -> str:
    """Returns a clause on how fitting and judging were kept apart."""
    if judgement.folds == 2:
        return "every rule is fitted on one half of the tiles and judged on the other"
    return f"every rule is judged on each of {judgement.folds} folds and fitted on the others"


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
