import numpy as np
import pytest

from raytrain.errors import DataError
from raytrain.evaluation import intervals


def test_intervals_have_the_width_of_the_standard_error():
    values = np.random.default_rng(0).normal(size=400)
    found = intervals.estimate(values)
    assert found.low < found.value == values.mean() < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_all_columns_are_resampled_together():
    values = np.random.default_rng(0).normal(size=(50, 1))
    means = intervals.resampled_means(np.hstack([values, values + 1]))
    assert means.shape == (1000, 2)
    np.testing.assert_allclose(means[:, 1] - means[:, 0], 1.0)
    assert means[:, 0].std() > 0.05


def test_groups_of_one_tile_are_tiles():
    values = np.random.default_rng(0).normal(size=(80, 2))
    names = np.array([f"{i:03}" for i in range(80)])  # in the order of the tiles
    np.testing.assert_array_equal(
        intervals.resampled_means(values, names), intervals.resampled_means(values)
    )


def test_copies_in_a_group_say_nothing_new():
    values = np.random.default_rng(0).normal(size=60)
    single = intervals.estimate(values)
    copies = intervals.estimate(np.repeat(values, 9), np.repeat(np.arange(60), 9))
    assert (copies.low, copies.high) == pytest.approx((single.low, single.high), abs=1e-12)


def test_groups_of_different_size_give_the_error_of_a_ratio():
    """Standard error of sum / size over groups: sd of (sum - mean · size) / mean size / sqrt(groups)."""
    generator = np.random.default_rng(2)
    sizes = generator.integers(1, 12, 200)
    groups = np.repeat(np.arange(200), sizes)
    values = np.repeat(generator.normal(size=200), sizes) + generator.normal(size=sizes.sum())
    sums = np.bincount(groups, weights=values)
    rest = sums - values.mean() * sizes
    error = rest.std() / sizes.mean() / np.sqrt(200)
    assert intervals.resampled_means(values[:, None], groups).std() == pytest.approx(error, rel=0.1)


def test_one_unit_has_no_interval():
    with pytest.raises(DataError, match="3 tiles in 1 groups"):
        intervals.estimate(np.ones(3), np.zeros(3))


def test_a_constant_difference_is_certain():
    values = np.random.default_rng(0).random(50)
    found = intervals.compare(values, values + 0.25)
    assert found.difference.value == pytest.approx(0.25)
    assert (found.verdict, found.share_better) == ("better", 1.0)
    assert intervals.compare(values + 0.25, values).verdict == "worse"


def test_a_score_that_falls_turns_the_verdict_round():
    values = np.random.default_rng(0).random(50)
    found = intervals.compare(values, values + 0.25, higher_is_better=False)
    assert (found.verdict, found.share_better) == ("worse", 0.0)


def test_equal_files_have_no_difference_and_nothing_to_settle():
    values = np.random.default_rng(0).random(50)
    found = intervals.compare(values, values)
    assert (found.verdict, found.needed, found.share_better) == ("no difference", None, 0.0)


def test_as_many_tiles_as_said_settle_a_difference_in_four_of_five_samples():
    generator = np.random.default_rng(5)
    differences = generator.normal(0.1, 1.0, size=2000)
    needed = intervals.compare(np.zeros(2000), differences).needed
    mean, deviation = differences.mean(), differences.std()
    # Of the estimated mean and deviation: (1.96 + 0.84)² · variance / mean².
    assert needed == pytest.approx((2.8016 * deviation / mean) ** 2, rel=0.15)
    settled = [
        intervals.compare(np.zeros(needed), generator.normal(mean, deviation, needed)).verdict
        == "better"
        for _ in range(200)
    ]
    assert 0.7 < np.mean(settled) < 0.9
