"""Judges one decision rule on many random halvings of the tiles. No torch, no ray.

`judgement.judge` divides the tiles once. Another division gives a fitted rule other numbers and
another score. The mean over many halvings depends less on chance. Every rule is judged on the same
halvings, so that rules are compared on the same tiles under the same division.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from raytrain.evaluation import judgement, metrics, rules
from raytrain.evaluation.conditions import Conditions
from raytrain.evaluation.judgement import Tiles
from raytrain.evaluation.metrics import Array
from raytrain.evaluation.predictions import Predictions


def halving(predictions: Predictions, seed: int) -> Tiles:
    """Sorts the judged tiles by name and divides them into two random halves.

    Whole folds are dealt to the halves where the file has them: so no network is judged under
    numbers that were fitted on its own predictions. Seed 0 gives the halves of `evaluate` where it
    has no folds.

    Raises:
        DataError: there are no targets, or fewer than two tiles.
    """
    tiles = judgement.tiles_of(predictions, Conditions(seed=seed))
    parts = int(tiles.part.max()) + 1
    if parts == 2:
        return tiles
    half_of_fold = judgement.halves(parts, seed)
    return replace(tiles, part=half_of_fold[tiles.part])


def tile_scores(predictions: Predictions, rule: str, halvings: int) -> Array:
    """Computes the held-out F2 of each tile under one rule, the mean over halvings.

    In each halving the rule is fitted on one half and read on the other, both ways.

    Args:
        predictions: with known targets of at least two tiles.
        rule: one of `rules.RULES`.
        halvings: number of random halvings, at least 1.

    Returns:
        float64 (N,), the tiles sorted by name.

    Raises:
        DataError: there are no targets, or fewer than two tiles.
    """
    found = []
    for seed in range(halvings):
        tiles = halving(predictions, seed)
        found.append(_held_out_f2(tiles, rule))
    mean: Array = np.mean(found, axis=0)
    return mean


def _held_out_f2(tiles: Tiles, rule: str) -> Array:
    """F2 of each tile under the rule as the other half fits it, float64 (N,)."""
    labels = np.zeros(tiles.target.shape, np.bool_)
    for half in (0, 1):
        held_out = tiles.part == half
        decision = rules.fit_one(rule, tiles.logits[~held_out], tiles.target[~held_out])
        labels[held_out] = decision.labels(tiles.logits[held_out])
    return metrics.f2_per_tile(labels, tiles.target)
