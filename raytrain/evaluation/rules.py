"""Decision rules: what turns the logits of a tile into labels. No torch, no ray.

    RULES                    their names, from the one that fits nothing to the one that fits most
    fit(logits, target)      every rule, fitted on some tiles; fit_one fits a single one
    with_group(decisions)    also every rule with a group of labels of which a tile has exactly one

A decision is a rule with its fitted numbers. `judgement` judges it on tiles that did not fit it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from raytrain.errors import ConfigError, did_you_mean
from raytrain.evaluation import calibration, decoding, metrics, thresholds
from raytrain.evaluation.metrics import Array

DEFAULT = "default"
# Names in thresholds.json and for --rule, with their names for people. The order is that of the
# numbers that are fitted: none, one, one, and one for each label.
RULES = {
    DEFAULT: "0.2 for every label",
    "global": "one threshold",
    "expected": "expected F2",
    "shrunk": "one per label, shrunk",
    "per_class": "one per label",
}
# Ends the name of a rule that decides an exclusive group, too.
EXACTLY_ONE = "+exactly-one"
BETA = 2.0


class Decision(Protocol):
    """A rule with its numbers."""

    def labels(self, logits: Array) -> Array:
        """Returns the labels of logits (N, K), bool (N, K)."""

    @property
    def words(self) -> str:
        """The fitted numbers, for a table."""

    def to_json(self, classes: tuple[str, ...]) -> Any:
        """Returns what thresholds.json holds of it."""


@dataclass(frozen=True, eq=False)
class Thresholds:
    """A label is predicted where its probability is above its threshold.

    Attributes:
        cuts: float64 (K,).
    """

    cuts: Array

    def labels(self, logits: Array) -> Array:
        """Returns the labels of logits (N, K), bool (N, K)."""
        return np.asarray(metrics.sigmoid(logits) > self.cuts)

    @property
    def words(self) -> str:
        """The threshold, or the lowest and the highest one."""
        lowest = self.cuts.min()
        highest = self.cuts.max()
        if lowest == highest:
            return f"{lowest:.2f}"
        return f"{lowest:.2f}-{highest:.2f}"

    def to_json(self, classes: tuple[str, ...]) -> dict[str, float]:
        """Returns the threshold of each label."""
        return dict(zip(classes, self.cuts.tolist(), strict=True))


@dataclass(frozen=True)
class ExpectedFbeta:
    """The labels of a tile are those with the highest expected F-beta, see `decoding`.

    Attributes:
        temperature: that the logits are divided by, so that probabilities mean what they say.
    """

    temperature: float = 1.0

    def probabilities(self, logits: Array) -> Array:
        """Returns calibrated probabilities of logits (N, K), float64 (N, K)."""
        return metrics.sigmoid(np.asarray(logits, np.float64) / self.temperature)

    def labels(self, logits: Array) -> Array:
        """Returns the labels of logits (N, K), bool (N, K)."""
        return decoding.best_sets(self.probabilities(logits), BETA)

    @property
    def words(self) -> str:
        """The temperature."""
        return f"T {self.temperature:.2f}"

    def to_json(self, classes: tuple[str, ...]) -> dict[str, float]:
        """Returns the temperature."""
        return {"temperature": self.temperature}


@dataclass(frozen=True)
class Exclusive:
    """Labels of which a tile has exactly one, such as the weather of Planet's tiles.

    Attributes:
        labels: of the group.
        alone: those of them that allow no other label, such as cloudy.
    """

    labels: tuple[str, ...]
    alone: tuple[str, ...] = ()

    def check(self, classes: tuple[str, ...]) -> None:
        """Refuses labels that are no classes, and lone labels that are not in the group.

        Raises:
            ConfigError: there is such a label, or fewer than two labels are in the group.
        """
        fix = "--exactly-one clear,cloudy,haze,partly_cloudy --alone cloudy"
        if len(set(self.labels)) < 2:
            raise ConfigError(
                f"--exactly-one {','.join(self.labels)} names fewer than two labels",
                "a tile gets the most probable one of them",
                fix,
            )
        for label in self.labels:
            if label not in classes:
                raise ConfigError(
                    f'--exactly-one names "{label}", which is no label of the predictions.'
                    f"{did_you_mean(label, classes)}",
                    "the group would not be the one that you meant",
                    fix,
                )
        for label in self.alone:
            if label not in self.labels:
                raise ConfigError(
                    f'--alone names "{label}", which is not in --exactly-one.'
                    f"{did_you_mean(label, self.labels)}",
                    "only a label of the group can stand alone",
                    fix,
                )

    def apply(self, decided: Array, logits: Array, classes: tuple[str, ...]) -> Array:
        """Gives each tile the most probable label of the group, and no other one of it.

        Args:
            decided: labels by another rule, bool (N, K).
            logits: float (N, K).
            classes: names of the K labels.

        Returns:
            bool (N, K).
        """
        group = np.array([classes.index(label) for label in self.labels])
        alone = [classes.index(label) for label in self.alone]
        chosen = group[logits[:, group].argmax(axis=1)]
        rows = np.arange(len(logits))
        found = decided.copy()
        found[np.isin(chosen, alone)] = False
        found[:, group] = False
        found[rows, chosen] = True
        return found


@dataclass(frozen=True, eq=False)
class WithGroup:
    """Another decision, after which the labels of an exclusive group are set.

    Attributes:
        decision: the other one.
        exclusive: the group.
        classes: names of the K labels.
    """

    decision: Decision
    exclusive: Exclusive
    classes: tuple[str, ...]

    def labels(self, logits: Array) -> Array:
        """Returns the labels of logits (N, K), bool (N, K)."""
        return self.exclusive.apply(self.decision.labels(logits), logits, self.classes)

    @property
    def words(self) -> str:
        """Those of the other decision."""
        return self.decision.words

    def to_json(self, classes: tuple[str, ...]) -> Any:
        """Returns that of the other decision."""
        return self.decision.to_json(classes)


def default(classes: int) -> Thresholds:
    """Returns the rule that fits nothing: 0.2 for each of K labels."""
    return Thresholds(np.full(classes, metrics.THRESHOLD))


class _Fitting:
    """Fits rules on some tiles; the thresholds that several of them need are fitted once."""

    def __init__(self, logits: Array, target: Array, seed: int) -> None:
        self.logits = logits
        self.target = target
        self.seed = seed

    @cached_property
    def common(self) -> float:
        """The best threshold for all labels."""
        found, _ = thresholds.best_global(self.logits, self.target)
        return found

    @cached_property
    def own(self) -> Array:
        """The best threshold of each label, float64 (K,)."""
        found, _ = thresholds.best_per_class(self.logits, self.target, self.common, self.seed)
        return found

    def decision(self, rule: str) -> Decision:
        """A rule of RULES with its fitted numbers."""
        labels = self.target.shape[1]
        if rule == DEFAULT:
            return default(labels)
        if rule == "global":
            return Thresholds(np.full(labels, self.common))
        if rule == "expected":
            return ExpectedFbeta(calibration.temperature(self.logits, self.target))
        if rule == "shrunk":
            count = np.count_nonzero(self.target, axis=0)
            return Thresholds(thresholds.shrunk(self.own, self.common, count))
        return Thresholds(self.own)


def fit(logits: Array, target: Array, seed: int = 0) -> dict[str, Decision]:
    """Fits every rule of RULES on some tiles.

    Args:
        logits: float (N, K).
        target: (N, K) of 0 and 1.
        seed: of the order in which thresholds of labels are moved.

    Returns:
        The decisions by the name of their rule, in the order of RULES.
    """
    fitting = _Fitting(logits, target, seed)
    return {rule: fitting.decision(rule) for rule in RULES}


def fit_one(rule: str, logits: Array, target: Array, seed: int = 0) -> Decision:
    """Fits one rule of RULES as `fit` does."""
    return _Fitting(logits, target, seed).decision(rule)


def cuts_of(decisions: Mapping[str, Decision], name: str) -> Array:
    """Returns the thresholds of a rule that has some, float64 (K,)."""
    decision = decisions[name]
    assert isinstance(decision, Thresholds)
    return decision.cuts


def calibrated(decisions: Mapping[str, Decision], logits: Array) -> Array:
    """Returns the probabilities of logits (N, K) at the fitted temperature, float64 (N, K)."""
    decision = decisions["expected"]
    assert isinstance(decision, ExpectedFbeta)
    return decision.probabilities(logits)


def with_group(
    decisions: dict[str, Decision], exclusive: Exclusive | None, classes: tuple[str, ...]
) -> dict[str, Decision]:
    """Adds to each decision the same one with an exclusive group; none is added without a group."""
    found = dict(decisions)
    if exclusive is None:
        return found
    for name, decision in decisions.items():
        found[name + EXACTLY_ONE] = WithGroup(decision, exclusive, classes)
    return found


def title(name: str) -> str:
    """Returns the name of a rule for people."""
    if name.endswith(EXACTLY_ONE):
        return f"{RULES[name.removesuffix(EXACTLY_ONE)]}, exactly one"
    return RULES[name]


def check_name(name: str) -> str:
    """Returns the name of a rule as files have it; a hyphen may stand for the underscore.

    Raises:
        ConfigError: there is no such rule.
    """
    base = name.removesuffix(EXACTLY_ONE).replace("-", "_")
    if base in RULES:
        return base + name[len(base) :]
    raise ConfigError(
        f"--rule {name}: there is no such decision rule.{did_you_mean(name, RULES)}",
        "it decides which labels a tile gets",
        f"one of {', '.join(RULES)}; {EXACTLY_ONE} behind it takes the group of the file, too",
    )
