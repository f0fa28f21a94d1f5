"""How wide intervals are when several finalists are compared at once, against published distributions."""

import numpy as np
import pytest
from scipy import stats

from raytrain.search.simultaneous import quantile


@pytest.mark.parametrize("df", [2, 4, 12, 60])
def test_two_finalists_give_the_one_sided_quantile_of_students_t(df):
    assert quantile(0.95, 2, 1, df) == pytest.approx(stats.t.ppf(0.95, df), rel=5e-4)


@pytest.mark.parametrize(("finalists", "df"), [(2, 4), (3, 4), (4, 4), (4, 8), (5, 30)])
def test_all_as_controls_give_the_studentized_range(finalists, df):
    expected = stats.studentized_range.ppf(0.95, finalists, df) / np.sqrt(2)
    assert quantile(0.95, finalists, finalists, df) == pytest.approx(expected, rel=3e-3)


@pytest.mark.parametrize(
    ("finalists", "df", "expected"), [(3, 5, 2.44), (4, 5, 2.68), (4, 10, 2.34), (5, 20, 2.30)]
)
def test_one_control_gives_the_table_of_dunnett(finalists, df, expected):
    """One-sided 5 % points of C. W. Dunnett 1955, table 1a."""
    assert quantile(0.95, finalists, 1, df) == pytest.approx(expected, abs=0.011)


def test_two_controls_of_four_agree_with_draws():
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(200_000, 4))
    deviation = np.sqrt(generator.chisquare(4, size=200_000) / 4)
    worst = (scores.max(axis=1) - scores[:, :2].min(axis=1)) / (np.sqrt(2) * deviation)
    assert np.mean(worst > quantile(0.95, 4, 2, 4.0)) == pytest.approx(0.05, abs=0.002)


def test_more_comparisons_and_less_knowledge_of_the_noise_widen_it():
    assert quantile(0.95, 4, 2, 4.0) > quantile(0.95, 4, 1, 4.0) > quantile(0.95, 3, 1, 4.0)
    assert quantile(0.95, 4, 2, 4.0) > quantile(0.95, 4, 2, 8.0) > quantile(0.95, 4, 2, 1e6)
