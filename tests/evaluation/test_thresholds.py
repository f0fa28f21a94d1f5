import numpy as np
import pytest
from worlds import calibrated, some

from raytrain.evaluation import metrics, thresholds


def test_best_global_is_the_best_of_the_grid():
    p = some()
    threshold, f2 = thresholds.best_global(p.logits, p.target)
    every = {t: metrics.f2(p.logits, p.target, t) for t in np.arange(1, 100) / 100}
    assert f2 == max(every.values()) == every[threshold]


def test_best_global_takes_the_nearest_to_02_of_equal_thresholds():
    logits, target = np.array([[3.0, -3.0], [-3.0, 3.0]]), np.eye(2, dtype=np.uint8)
    assert thresholds.best_global(logits, target)[0] == 0.2


@pytest.mark.parametrize(("rows", "seed"), [(60, 1), (40, 2)])  # both need a second pass
def test_best_per_class_cannot_be_improved_by_moving_one_class(rows, seed):
    p = some(rows, noise=3.0, seed=seed)
    cuts, f2 = thresholds.best_per_class(p.logits, p.target)
    assert f2 == metrics.f2(p.logits, p.target, cuts)
    for k in range(6):
        for t in np.arange(1, 100) / 100:
            moved = cuts.copy()
            moved[k] = t
            assert metrics.f2(p.logits, p.target, moved) <= f2 + 1e-12


def test_a_wrong_label_at_exactly_one_half_is_cut_by_the_threshold_of_one_half():
    logits, target = np.array([[0.0, 9.0], [1.0, 9.0]]), np.array([[0, 1], [1, 1]], np.uint8)
    assert thresholds.best_per_class(logits, target, start=0.4)[0].tolist() == [0.5, 0.4]


def test_best_per_class_is_at_least_as_good_as_where_it_starts():
    p = calibrated(600)
    for start in (0.2, 0.137, np.linspace(0.1, 0.6, 6)):
        assert thresholds.best_per_class(p.logits, p.target, start)[1] >= metrics.f2(
            p.logits, p.target, start
        )


def test_a_class_that_gains_nothing_stays_where_it_was():
    logits, target = np.array([[3.0, -3.0], [-3.0, 3.0]]), np.eye(2, dtype=np.uint8)
    assert thresholds.best_per_class(logits, target, 0.137)[0].tolist() == [0.137, 0.137]


def test_best_per_class_finds_a_class_with_its_own_calibration():
    p = some()
    p.logits[:, 1] += 2.5
    assert np.argmax(thresholds.best_per_class(p.logits, p.target)[0]) == 1


def test_equal_seeds_give_equal_thresholds():
    p = some()
    first, again = (thresholds.best_per_class(p.logits, p.target, seed=3)[0] for _ in range(2))
    assert first.tolist() == again.tolist()


def test_shrinking_leaves_frequent_labels_and_pulls_rare_ones_to_the_common_threshold():
    own = np.array([0.6, 0.6, 0.6])
    count = np.array([0, thresholds.SHRINKAGE, 1_000_000])
    found = thresholds.shrunk(own, 0.2, count)
    np.testing.assert_allclose(found, [0.2, 0.4, 0.6], atol=1e-4)
