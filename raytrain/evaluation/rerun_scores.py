"""Scores of reruns whose decision was fitted elsewhere. No torch, no ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from raytrain import registry
from raytrain.evaluation import judgement, metrics, thresholds
from raytrain.evaluation.conditions import PLAIN, Conditions
from raytrain.evaluation.judgement import Tiles
from raytrain.evaluation.metrics import Array
from raytrain.evaluation.predictions import Predictions


def by_seed(predictions: Mapping[int, Predictions], how: Conditions = PLAIN) -> dict[int, Array]:
    """Reads the predictions of one finalist's reruns.

    Where a label is decided by a threshold, the threshold for all labels is fitted on the
    predictions of the other seeds, on the other half of the tiles (or the other folds). So neither
    the tile nor the network that is read has chosen it. With one seed it is fitted on the other
    half alone, as `evaluate` does. Tasks without thresholds have nothing to fit.

    Args:
        predictions: of the same tiles, by seed; at least one.
        how: what is stated about the tiles.

    Returns:
        By seed, the score of each tile, float64 (N,), sorted by name: F2, or what the task has.

    Raises:
        ConfigError, DataError: as the task's `tile_scores`.
        ValueError: the seeds have different tiles.
    """
    task = registry.evaluation(next(iter(predictions.values())).task)
    if not task.HAS_THRESHOLDS:
        scores = {}
        for seed, found in predictions.items():
            scores[seed] = task.tile_scores(found, how)[task.SCORE.key]
        return scores
    tiles = {seed: judgement.tiles_of(found, how) for seed, found in predictions.items()}
    _check_same([found.target for found in tiles.values()])
    scores = {}
    for seed, read in tiles.items():
        fitted_on = [found for other, found in tiles.items() if other != seed]
        if not fitted_on:
            fitted_on = [read]
        scores[seed] = _f2_per_tile(read, fitted_on)
    return scores


def _check_same(targets: Sequence[Array]) -> None:
    for target in targets:
        if not np.array_equal(target, targets[0]):
            raise ValueError("the reruns predict different tiles, or tiles with different labels")


def _f2_per_tile(read: Tiles, fitted_on: Sequence[Tiles]) -> Array:
    """F2 of each tile, each part under the threshold of the other parts, float64 (N,)."""
    scores = np.zeros(len(read.target))
    for part in range(int(read.part.max()) + 1):
        held_out = read.part == part
        logits = np.concatenate([tiles.logits[~held_out] for tiles in fitted_on])
        target = np.concatenate([tiles.target[~held_out] for tiles in fitted_on])
        threshold, _ = thresholds.best_global(logits, target)
        labels = metrics.sigmoid(read.logits[held_out]) > threshold
        scores[held_out] = metrics.f2_per_tile(labels, read.target[held_out])
    return scores
