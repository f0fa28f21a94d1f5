"""Judges the decision rules of several labels over saved predictions, one Tune trial per rule.

Nothing is trained. Each rule is judged on the same random halvings of the tiles, see
`raytrain.evaluation.halvings`. `judgement.compare_rules` takes the simplest one within the noise,
as it does for `evaluate`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import ray.tune

from raytrain import registry, storage
from raytrain.distributed.tune import Trials, run_trials
from raytrain.errors import ConfigError, RaytrainError, typed
from raytrain.evaluation import halvings, judgement, predictions, rule_files, rules
from raytrain.evaluation.judgement import RuleScores
from raytrain.evaluation.metrics import Array
from raytrain.evaluation.predictions import Predictions
from raytrain.evaluation.rules import Decision
from raytrain.worker import Worker

# Random halvings that each rule is judged on where the user names no number.
HALVINGS = 10


@dataclass(frozen=True, eq=False)
class Given:
    """What is the same for all trials.

    Attributes:
        predictions: of tiles with known labels. The file may exist on the driver's machine only.
        halvings: number of random halvings.
        directory: of the search.
    """

    predictions: Predictions
    halvings: int
    directory: str


@dataclass(frozen=True, eq=False)
class RuleSearch:
    """The decision rules as the trials have judged them.

    Attributes:
        compared: their scores, and the rule to use.
        fitted: the rules fitted on all tiles.
        tiles: number of tiles.
        halvings: number of random halvings.
        folds: number of folds of the file, or 0 if it has none.
    """

    compared: RuleScores
    fitted: Mapping[str, Decision]
    tiles: int
    halvings: int
    folds: int

    @property
    def table(self) -> pd.DataFrame:
        """One row per rule, the simplest first.

        Columns rule, f2 with its 95 % interval low and high, gain over 0.2 with gain_low and
        gain_high, verdict on that gain, and recommended. The default rule has no gain.
        """
        rows = []
        for rule, score in self.compared.scores.items():
            row: dict[str, Any] = {
                "rule": rule,
                "f2": score.value,
                "low": score.low,
                "high": score.high,
                "gain": None,
                "gain_low": None,
                "gain_high": None,
                "verdict": None,
                "recommended": rule == self.compared.recommended,
            }
            gain = self.compared.gains.get(rule)
            if gain is not None:
                row["gain"] = gain.difference.value
                row["gain_low"] = gain.difference.low
                row["gain_high"] = gain.difference.high
                row["verdict"] = gain.verdict
            rows.append(row)
        return pd.DataFrame(rows)

    @property
    def words(self) -> str:
        """Plain text for the terminal: every rule, and which one is recommended."""
        rule = self.compared.recommended
        lines = [judgement.table_of_rules(self.compared, self.fitted, self.tiles)]
        divided = f"{self.halvings} random halvings"
        if self.folds:
            divided += f" of the {self.folds} folds"
        lines.append(
            f"recommended: {rules.title(rule)} ({self.fitted[rule].words}); "
            f"every rule is fitted on one half and judged on the other, in {divided}"
        )
        if rule == rules.DEFAULT:
            lines.append("no fitted rule is better by more than the noise")
        return "\n".join(lines)


def search_rules(path: str, out: str, *, number: int = HALVINGS) -> RuleSearch:
    """Judges every rule in a Tune trial of its own and recommends one.

    Writes trials.csv with a row per rule, thresholds.json with the rules fitted on all tiles and
    the recommended one, and the scores of single tiles under trials/.

    Args:
        path: predictions file with targets.
        out: directory for the results.
        number: of random halvings.

    Raises:
        ConfigError: the task of the predictions has no thresholds.
        DataError: not a predictions file, one without targets, or one with fewer than two tiles.
        RaytrainError: a trial failed.
    """
    everything = predictions.read(path)
    task = registry.evaluation(everything.task)
    if not task.HAS_THRESHOLDS:
        raise ConfigError(
            f"{path} holds predictions of the task {everything.task}, which has no thresholds",
            "a search would fit numbers that decide nothing",
            f"raytrain evaluate {typed(path)} --out evaluation",
        )
    # Refuses what cannot be judged before any trial starts.
    tiles = halvings.halving(everything, seed=0)
    trials = Trials(
        function=trial,
        given=Given(everything.judged(), number, out),
        space={"rule": ray.tune.grid_search(list(rules.RULES))},
        directory=out,
        num_samples=1,
        variants=len(rules.RULES),
        # NumPy on some thousand rows: a GPU has nothing to do.
        use_gpu=False,
        score=task.SCORE,
    )
    run_trials(trials)
    found = RuleSearch(
        compared=judgement.compare_rules(_per_tile(out)),
        fitted=rules.fit(tiles.logits, tiles.target),
        tiles=len(tiles.target),
        halvings=number,
        folds=_number_of_folds(everything),
    )
    storage.write_text(storage.join(out, "trials.csv"), found.table.to_csv(index=False))
    rule_files.write(
        storage.join(out, rule_files.NAME),
        found.fitted,
        found.compared.recommended,
        everything.classes,
    )
    return found


def trial(config: Mapping[str, Any], worker: Worker, given: Given) -> dict[str, float]:
    """Judges one rule and writes the score of each tile; needs no Ray.

    Args:
        config: the name of the `rule`.
        worker: unused; every trial gets one.
        given: predictions, number of halvings, and directory of the search.

    Returns:
        The held-out F2 by its key, which Tune takes as the trial's result.
    """
    rule = config["rule"]
    per_tile = halvings.tile_scores(given.predictions, rule, given.halvings)
    file = io.BytesIO()
    np.save(file, per_tile)
    storage.write_bytes(_file_of(given.directory, rule), file.getvalue())
    key = registry.evaluation(given.predictions.task).SCORE.key
    return {key: float(per_tile.mean())}


def _file_of(directory: str, rule: str) -> str:
    """The file with the held-out F2 of each tile, float64 (N,), the tiles sorted by name."""
    return storage.join(directory, "trials", f"{rule}.npy")


def _per_tile(directory: str) -> dict[str, Array]:
    """The scores of single tiles by rule, as the trials have written them."""
    found = {}
    for rule in rules.RULES:
        path = _file_of(directory, rule)
        if not storage.exists(path):
            raise RaytrainError(
                f"the trial of the rule {rule} failed",
                "the simplest rule within the noise is chosen among all of them",
                "the warning above has the reason; then the same command with another --name",
            )
        found[rule] = np.load(io.BytesIO(storage.read_bytes(path)))
    return found


def _number_of_folds(predictions: Predictions) -> int:
    if predictions.fold is None:
        return 0
    return len(np.unique(predictions.fold[predictions.is_known]))
