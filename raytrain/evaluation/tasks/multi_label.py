"""Multi-label: several labels per tile, judged by the mean F2 over tiles. No torch, no ray."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import compress
from typing import Any

import numpy as np

from raytrain.errors import ConfigError, DataError
from raytrain.evaluation import judgement as judgements
from raytrain.evaluation import metrics, rule_files, rules
from raytrain.evaluation.conditions import PLAIN, Conditions
from raytrain.evaluation.judgement import Judgement
from raytrain.evaluation.metrics import Array
from raytrain.evaluation.predictions import Predictions
from raytrain.evaluation.rule_files import Chosen
from raytrain.evaluation.score import Score

SCORE = Score("f2", "F2")
# Metrics of an epoch beside the loss, by their column in history.csv, with their names for people.
METRICS = {"accuracy": "accuracy", "f2": "F2"}
# The competition's file: image_name,tags.
ANSWER_COLUMN = "tags"
# Whether a label is decided by a threshold that can be fitted.
HAS_THRESHOLDS = True
# What meta.json of a checkpoint says of this task alone: thresholds are fitted on predictions
# later, so the lesson's own stands there.
CHECKPOINT_FACTS: dict[str, Any] = {"thresholds": {"default": metrics.THRESHOLD}}


def epoch_metrics(logits: Array, target: Array) -> dict[str, float]:
    """Computes the metrics of a validation.

    Args:
        logits: float (N, K).
        target: uint8 (N, K) of 0 and 1.

    Returns:
        valid_loss (binary cross entropy), accuracy (share of right decisions at 0.2) and f2 at 0.2.
    """
    return {
        "valid_loss": metrics.bce(logits, target),
        "accuracy": metrics.accuracy_thresh(logits, target),
        "f2": metrics.f2(logits, target),
    }


def probabilities(logits: Array) -> Array:
    """Returns the probability of each label, float64 (N, K)."""
    return metrics.sigmoid(logits)


def judge(predictions: Predictions, how: Conditions = PLAIN) -> Judgement:
    """Evaluates predictions, and fits decision rules on them; see `judgement.judge`."""
    return judgements.judge(predictions, how)


def tile_scores(predictions: Predictions, how: Conditions = PLAIN) -> dict[str, Array]:
    """Returns the held-out F2 of every tile by decision rule; see `judgement.tile_scores`."""
    return judgements.tile_scores(predictions, how)


def score_title(name: str) -> str:
    """Returns the name of a decision rule for people."""
    return rules.title(name)


def table(judgement: Judgement) -> str:
    """Returns the judgement as text for the terminal."""
    return judgements.table(judgement)


def write(judgement: Judgement, out: str) -> None:
    """Writes thresholds.json, metrics.json and per_label.csv into a directory."""
    judgements.write(judgement, out)


def check_answers(classes: tuple[str, ...]) -> None:
    """Refuses labels that the competition's file cannot hold.

    Raises:
        DataError: a label has a space, or is empty.
    """
    for label in classes:
        if not label or re.search(r"\s", label):
            raise DataError(
                f'the label "{label}" has a space, or is empty',
                "spaces separate the tags of a tile in the competition's file",
                "rename it in the labels, then ingest and train again",
            )


def decision(path: str | None, rule: str | None, classes: tuple[str, ...]) -> Chosen:
    """Returns how labels are decided.

    Args:
        path: of a thresholds.json, or None for 0.2.
        rule: name of a rule in it, or None for the one that it recommends.
        classes: names of the K labels.

    Raises:
        ConfigError: there is no such rule, or what it needs was fitted in no given file.
        DataError: the file cannot be used.
    """
    if rule is not None:
        rule = rules.check_name(rule)
    if path is not None:
        return rule_files.read(path, classes, rule)
    if rule not in (None, rules.DEFAULT):
        raise ConfigError(
            f"--rule {rule} without --thresholds",
            "its numbers are fitted on predictions with labels, and stand in a file",
            f"--thresholds DIR/{rule_files.NAME}; raytrain evaluate P.parquet --out DIR writes it",
        )
    why = "as no --thresholds is given"
    if rule is not None:
        why = "as --rule asks"
    return Chosen(rules.DEFAULT, rules.default(len(classes)), why)


def decided(logits: Array, chosen: Chosen) -> Array:
    """Returns the labels of tiles, bool (N, K). Every tile gets at least its most probable label.

    Args:
        logits: (N, K).
        chosen: how labels are decided.
    """
    predicted: Array = chosen.decision.labels(logits)
    # argmax fails for a part without tiles.
    if len(predicted):
        empty = ~predicted.any(axis=1)
        predicted[empty, np.argmax(logits[empty], axis=1)] = True
    return predicted


def answers(predictions: Predictions, chosen: Chosen) -> Iterator[str]:
    """Yields the answer for each tile: its labels in class order, separated by spaces.

    Every tile gets at least its most probable label, because an empty field scores 0.

    Args:
        predictions: of N tiles.
        chosen: how labels are decided.
    """
    for row in decided(predictions.logits, chosen).tolist():
        yield " ".join(compress(predictions.classes, row))
