"""Judges decision rules over saved predictions, one Tune trial per rule.

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
import ray.tune

from raytrain import registry, storage
from raytrain.distributed.tune import Trials, run_trials
from raytrain.errors import ConfigError, RaytrainError, typed
from raytrain.evaluation import halvings, predictions, rule_search, rules
from raytrain.evaluation.metrics import Array
from raytrain.evaluation.predictions import Predictions
from raytrain.evaluation.rule_search import RuleSearch
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
    halvings.halving(everything, seed=0)
    trials = Trials(
        function=trial,
        given=Given(everything.judged(), number, out),
        space={"rule": ray.tune.grid_search(list(rules.RULES))},
        directory=out,
        variants=len(rules.RULES),
        score=task.SCORE,
    )
    run_trials(trials)
    found = rule_search.conclude(everything, _per_tile(out), number)
    rule_search.write(found, out)
    return found


def trial(config: Mapping[str, Any], worker: Worker, given: Given) -> dict[str, float]:
    """Judges one rule and writes the score of each tile; needs no Ray.

    Args:
        config: the name of the `rule`.
        worker: unused; every trial gets one.
        given: predictions, number of halvings, and directory of the search.

    Returns:
        The held-out score by its key, which Tune takes as the trial's result.
    """
    rule = config["rule"]
    per_tile = halvings.tile_scores(given.predictions, rule, given.halvings)
    file = io.BytesIO()
    np.save(file, per_tile)
    storage.write_bytes(_file_of(given.directory, rule), file.getvalue())
    key = registry.evaluation(given.predictions.task).SCORE.key
    return {key: float(per_tile.mean())}


def _file_of(directory: str, rule: str) -> str:
    """The file with the held-out score of each tile, float64 (N,), the tiles sorted by name."""
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
