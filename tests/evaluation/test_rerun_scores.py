"""Scores of reruns under a decision that was fitted elsewhere."""

import numpy as np
import pytest
from worlds import CLASSES, some

from raytrain.evaluation import judgement, metrics, thresholds
from raytrain.evaluation.predictions import Predictions
from raytrain.evaluation.rerun_scores import by_seed


def rerun(first, seed):
    """Another network's logits for the same tiles."""
    noise = np.random.default_rng(seed).normal(size=first.logits.shape)
    return Predictions(
        first.names, (first.logits + noise).astype(np.float32), first.target, CLASSES, {}
    )


def test_one_seed_is_read_as_evaluate_reads_it():
    p = some()
    assert by_seed({7: p})[7].tolist() == judgement.tile_scores(p)["global"].tolist()


def test_the_threshold_of_a_half_is_fitted_on_the_other_half_of_the_other_seeds():
    first = some()
    both = {1: first, 2: rerun(first, 2)}
    found = by_seed(both)
    tiles = {seed: judgement.tiles_of(p, judgement.PLAIN) for seed, p in both.items()}
    part = tiles[1].part
    for half in (0, 1):
        cut, _ = thresholds.best_global(
            tiles[2].logits[part != half], tiles[2].target[part != half]
        )
        labels = metrics.sigmoid(tiles[1].logits[part == half]) > cut
        expected = metrics.f2_per_tile(labels, tiles[1].target[part == half])
        assert found[1][part == half].tolist() == expected.tolist()


def test_shifted_logits_of_one_seed_are_not_healed_by_a_threshold_of_their_own():
    first = some()
    second = rerun(first, 2)
    before = by_seed({1: first, 2: second})
    shifted = Predictions(first.names, first.logits + 3, first.target, CLASSES, {})
    after = by_seed({1: shifted, 2: second})
    # Each is read under the threshold that suits the other one.
    assert after[1].mean() < before[1].mean()
    assert after[2].mean() < before[2].mean()


def test_tasks_without_thresholds_are_read_as_they_are():
    logits = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
    target = np.eye(3, dtype=np.uint8)[[0, 1, 1, 0]]
    p = Predictions(tuple("abcd"), logits, target, ("x", "y", "z"), {"task": "single-label"})
    assert by_seed({3: p})[3].tolist() == [1.0, 1.0, 0.0, 1.0]


def test_reruns_of_other_tiles_are_refused():
    with pytest.raises(ValueError, match="different tiles"):
        by_seed({1: some(rows=600), 2: some(rows=500)})
