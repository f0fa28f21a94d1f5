from itertools import product

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from raytrain.evaluation import baselines, metrics, thresholds


def labels(rows=400, seed=0):
    """Targets with co-occurrence: the third label comes only with the second."""
    generator = np.random.default_rng(seed)
    target = (generator.random((rows, 6)) < [0.9, 0.6, 0.7, 0.35, 0.15, 0.05]).astype(np.uint8)
    target[:, 2] &= target[:, 1]
    return target


def constant_f2(answer, target):
    return metrics.f2_per_tile(np.broadcast_to(np.array(answer, bool), target.shape), target).mean()


@pytest.mark.parametrize("seed", range(5))
def test_the_best_constant_is_the_best_of_all_sets(seed):
    target = labels(seed=seed)
    answer, f2 = baselines.best_constant(target)
    assert f2 == pytest.approx(constant_f2(answer, target), abs=1e-12)
    assert f2 == pytest.approx(
        max(constant_f2(said, target) for said in product([0, 1], repeat=6)), abs=1e-12
    )


def test_no_single_flip_improves_the_best_constant():
    target = (np.random.default_rng(0).random((60, 17)) < 0.3).astype(np.uint8)
    answer, f2 = baselines.best_constant(target)
    for k in range(17):
        flipped = answer.copy()
        flipped[k] ^= True
        assert constant_f2(flipped, target) <= f2 + 1e-12


def test_tiles_without_labels_have_the_empty_answer():
    answer, f2 = baselines.best_constant(np.zeros((3, 4), np.uint8))
    assert (answer.tolist(), f2) == ([False] * 4, 0.0)


def test_colour_features_are_mean_and_deviation_of_each_channel():
    image = np.zeros((2, 2, 3), np.uint8)
    image[..., 0], image[0, :, 1] = 255, 255
    np.testing.assert_allclose(
        baselines.colour_features(iter([image, image])), [[1, 0.5, 0, 0, 0.5, 0]] * 2
    )
    assert baselines.colour_features([]).shape == (0, 6)


def task(rows=500, seed=0):
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(rows, 6)) * [1, 2, 3, 0.1, 1, 1] + 5
    chance = metrics.sigmoid((features - 5) @ generator.normal(size=(6, 4)) - 0.5)
    return features, (generator.random(chance.shape) < chance).astype(np.uint8)


@pytest.mark.parametrize("l2", [1e-3, 1e-1])
def test_logistic_regression_equals_sklearns(l2):
    features, target = task()
    found = baselines.logistic_regression(features, target, l2).logits(features)
    scaled = StandardScaler().fit_transform(features)
    for k in range(4):
        oracle = LogisticRegression(C=1 / (l2 * len(features)), tol=1e-10, max_iter=5000).fit(
            scaled, target[:, k]
        )
        np.testing.assert_allclose(found[:, k], oracle.decision_function(scaled), atol=2e-4)


def test_a_class_without_positives_and_a_constant_feature_give_finite_logits():
    features, target = task()
    features[:, 2], target[:, 0], target[:, 1] = 0.5, 0, 1
    logits = baselines.logistic_regression(features, target).logits(features)
    assert np.isfinite(logits).all()
    assert logits[:, 0].max() < -5 and logits[:, 1].min() > 5


def test_compare_fits_on_train_and_judges_on_valid():
    train, valid = task(seed=0), task(seed=1)
    found = baselines.compare(train, valid, ["a", "b", "c", "d"])
    answer, _ = baselines.best_constant(train[1])
    assert found["constant"]["labels"] == [
        c for c, said in zip("abcd", answer, strict=True) if said
    ]
    assert found["constant"]["f2"] == pytest.approx(constant_f2(answer, valid[1]))
    model = baselines.logistic_regression(*train)
    threshold, _ = thresholds.best_global(model.logits(train[0]), train[1])
    expected = {
        "threshold": threshold,
        "f2": metrics.f2(model.logits(valid[0]), valid[1], threshold),
    }
    assert found["logistic"] == expected
