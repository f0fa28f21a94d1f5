"""Decision rules as a search over saved predictions has judged them. No torch, no ray.

conclude(predictions, by_rule, number)   compares the rules and fits them on all tiles
write(found, out)                        out/trials.csv, out/thresholds.json
table(found)                             text for the terminal
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from raytrain import storage
from raytrain.evaluation import halvings, judgement, rule_files, rules
from raytrain.evaluation.judgement import RuleScores
from raytrain.evaluation.metrics import Array
from raytrain.evaluation.predictions import Predictions
from raytrain.evaluation.rules import Decision


@dataclass(frozen=True, eq=False)
class RuleSearch:
    """The result of the search.

    Attributes:
        classes: names of the K classes.
        compared: the scores of the rules, and the one to use.
        fitted: the rules fitted on all tiles.
        tiles: number of tiles.
        halvings: number of random halvings.
        folds: number of folds of the file, or 0 if it has none.
    """

    classes: tuple[str, ...]
    compared: RuleScores
    fitted: Mapping[str, Decision]
    tiles: int
    halvings: int
    folds: int


def conclude(predictions: Predictions, by_rule: Mapping[str, Array], number: int) -> RuleSearch:
    """Compares the rules and fits them on all tiles, as `judgement.judge` does.

    Args:
        predictions: that were judged.
        by_rule: `halvings.tile_scores` of every rule, in the order of `rules.RULES`.
        number: of halvings.

    Raises:
        DataError: there are no targets, or fewer than two tiles.
    """
    tiles = halvings.halving(predictions, seed=0)
    folds = 0
    if predictions.fold is not None:
        folds = len(np.unique(predictions.fold[predictions.is_known]))
    return RuleSearch(
        classes=predictions.classes,
        compared=judgement.compare_rules(by_rule),
        fitted=rules.fit(tiles.logits, tiles.target),
        tiles=len(tiles.target),
        halvings=number,
        folds=folds,
    )


def rows(found: RuleSearch) -> pd.DataFrame:
    """Returns a table with one row per rule, the simplest first.

    Returns:
        Columns rule, f2 with its 95 % interval low and high, gain over 0.2 with gain_low and
        gain_high, verdict on that gain, and recommended. The rule that fits nothing has no gain.
    """
    lines = []
    for rule, score in found.compared.scores.items():
        line: dict[str, Any] = {
            "rule": rule,
            "f2": score.value,
            "low": score.low,
            "high": score.high,
            "gain": None,
            "gain_low": None,
            "gain_high": None,
            "verdict": None,
            "recommended": rule == found.compared.recommended,
        }
        gain = found.compared.gains.get(rule)
        if gain is not None:
            line["gain"] = gain.difference.value
            line["gain_low"] = gain.difference.low
            line["gain_high"] = gain.difference.high
            line["verdict"] = gain.verdict
        lines.append(line)
    return pd.DataFrame(lines)


def write(found: RuleSearch, out: str) -> None:
    """Writes trials.csv, and thresholds.json with the recommended rule, into a directory.

    Raises:
        StorageError: it cannot be written.
    """
    storage.write_text(storage.join(out, "trials.csv"), rows(found).to_csv(index=False))
    rule_files.write(
        storage.join(out, rule_files.NAME),
        found.fitted,
        found.compared.recommended,
        found.classes,
    )


def table(found: RuleSearch) -> str:
    """Returns plain text for the terminal: every rule, and which one is recommended."""
    rule = found.compared.recommended
    lines = [judgement.table_of_rules(found.compared, found.fitted, found.tiles)]
    divided = f"{found.halvings} random halvings"
    if found.folds:
        divided += f" of the {found.folds} folds"
    lines.append(
        f"recommended: {rules.title(rule)} ({found.fitted[rule].words}); "
        f"every rule is fitted on one half and judged on the other, in {divided}"
    )
    if rule == rules.DEFAULT:
        lines.append("no fitted rule is better by more than the noise")
    return "\n".join(lines)
