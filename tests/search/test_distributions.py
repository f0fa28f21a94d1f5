import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytrain.errors import ConfigError
from raytrain.search import distributions

ENDS = st.floats(0.001, 1000, allow_nan=False)


def read(how, path="train.wd"):
    return distributions.read(path, how)


def values_of(found):
    return [found.value(place) for place in np.linspace(0, 1, found.levels)]


def test_a_choice_of_numbers_stands_at_the_quantile_of_its_rank():
    found = read({"choice": [0.03, "3e-3", 0.01]})
    assert found.ordered and found.levels == 3
    assert [found.coordinate(value) for value in (0.003, 0.01, 0.03)] == [0, 0.5, 1]
    assert values_of(found) == [0.003, 0.01, 0.03]
    assert found.coordinate(0.02) is None and found.coordinate("0.01") is None


@pytest.mark.parametrize(
    "choice", [["none", "dihedral"], [True, False], [None, 0.1], [[1e-5, 2e-3], [1e-4, 2e-3]]]
)
def test_other_choices_stand_at_their_number_and_have_no_order(choice):
    found = read({"choice": choice})
    assert not found.ordered
    assert [found.coordinate(value) for value in choice] == [0, 1]
    assert [found.value(number) for number in (0.0, 1.0)] == choice


def test_true_is_not_the_number_one():
    assert read({"choice": [0, 1, 2]}).coordinate(True) is None
    assert read({"choice": [True, 2]}).coordinate(1) is None
    assert read({"uniform": [0, 2]}).coordinate(True) is None


def test_grids_hold_both_ends_at_equal_distances_or_ratios():
    assert values_of(read({"grid": [0.1, 0.3, 3]})) == [0.1, 0.2, 0.3]
    assert values_of(read({"loggrid": [0.001, 0.1, 3]})) == [0.001, 0.01, 0.1]
    assert values_of(read({"loggrid": ["1e-4", 0.01, 5]})) == [
        0.0001,
        0.000316228,
        0.001,
        0.00316228,
        0.01,
    ]


def test_a_grid_of_whole_numbers_draws_whole_numbers():
    sizes = values_of(read({"grid": [64, 128, 3]}))
    assert sizes == [64, 96, 128] and all(type(size) is int for size in sizes)


def test_the_upper_end_of_randint_is_exclusive():
    found = read({"randint": [2, 5]})
    assert found.levels == 3 and values_of(found) == [2, 3, 4] and found.to_check() == (2, 4)
    assert found.coordinate(5) is None and found.coordinate(2.5) is None
    assert type(found.value(0.5)) is int


def test_a_range_has_the_quantiles_of_its_distribution():
    assert read({"uniform": [1, 3]}).value(0.25) == 1.5
    assert read({"loguniform": [0.001, 0.1]}).value(0.5) == 0.01
    assert read({"loguniform": [0.001, 0.1]}).coordinate(0.01) == pytest.approx(0.5)
    assert read({"uniform": [1, 3]}).levels is None
    assert read({"uniform": [1, 3]}).coordinate(3.1) is None


def test_a_ratio_gives_a_pair_of_rates():
    found = read({"loggrid": [0.0005, 0.008, 5], "ratio": "5e-2"}, "stages.2.lr")
    assert found.value(0.5) == [0.0001, 0.002] and found.ordered and found.levels == 5
    assert found.coordinate([0.0001, 0.002]) == 0.5
    assert found.coordinate([0.0002, 0.002]) is None and found.coordinate(0.002) is None
    assert found.to_check()[-1] == [0.0004, 0.008]


@given(low=ENDS, high=ENDS, place=st.floats(0, 1), log=st.booleans())
def test_the_value_of_a_coordinate_has_this_coordinate(low, high, place, log):
    low, high = sorted((low, high))
    if high < 1.001 * low:  # six digits would tell few values apart
        high = 2 * low
    found = distributions.Interval(low, high, log)
    value = found.value(place)
    assert low <= value <= high
    # Rounding to six digits moves a number by at most 5 of a million.
    width = math.log(high / low) if log else (high - low) / high
    assert found.coordinate(value) == pytest.approx(place, abs=5.1e-6 / width)
    assert found.value(found.coordinate(value)) == value
    assert json.loads(json.dumps(value)) == value


@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=30, unique=True))
def test_each_level_has_its_own_coordinate(numbers):
    found = read({"choice": numbers})
    places = [found.coordinate(number) for number in sorted(numbers)]
    assert places == sorted(set(places)) and places[0] == 0
    assert [found.value(place) for place in places] == sorted(numbers)


ALL = [
    {"choice": [1, 2, 5, 9]},
    {"choice": ["a", "b", "c"]},
    {"randint": [3, 8]},
    {"loggrid": [0.001, 0.1, 6]},
]


@pytest.mark.parametrize("how", ALL)
def test_draws_are_uniform_over_levels(how):
    found = read(how)
    rng = np.random.default_rng(0)
    places = [found.draw(rng) for _ in range(6000)]
    _, counts = np.unique(places, return_counts=True)
    expected = 6000 / found.levels
    assert len(counts) == found.levels
    # 4 standard deviations of a binomial count.
    assert np.abs(counts - expected).max() < 4 * np.sqrt(expected)


@pytest.mark.parametrize("how", [*ALL, {"uniform": [0, 1]}, {"loguniform": [0.01, 1]}])
def test_a_neighbour_is_another_value_that_is_drawn(how):
    found = read(how)
    rng = np.random.default_rng(1)
    for _ in range(300):
        place = found.draw(rng)
        moved = found.near(place, rng)
        assert moved != place and found.coordinate(found.value(moved)) is not None
        assert 0 <= moved <= (1 if found.ordered else found.levels - 1)


def test_a_neighbour_of_a_number_is_one_or_two_levels_away():
    found = read({"choice": list(range(10))})
    rng = np.random.default_rng(2)
    moved = {found.value(found.near(found.coordinate(5), rng)) for _ in range(200)}
    assert moved == {3, 4, 6, 7}
    assert {found.value(found.near(0.0, rng)) for _ in range(200)} == {1, 2}


def test_the_only_value_is_its_own_neighbour():
    rng = np.random.default_rng(3)
    for choice in ([0.01], ["a"]):
        found = read({"choice": choice})
        assert found.levels == 1 and found.near(0.0, rng) == 0.0
        assert found.value(found.draw(rng)) == choice[0]


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        (0.01, "gives train.wd the value 0.01, and no distribution"),
        ({}, "by nothing"),
        ({"normal": [0, 1]}, 'by "normal".*uniform'),
        ({"uniform": [0, 1], "loguniform": [1, 2]}, "uniform and loguniform"),
        ({"choice": []}, "an empty choice"),
        ({"choice": {"a": 1}}, "not a list"),
        ({"choice": [0.01, "1e-2"]}, "train.wd = 0.01 twice"),
        ({"choice": [1, 1.0]}, "twice"),
        ({"choice": ["a", "a"]}, "train.wd = a twice"),
        ({"uniform": [0.1]}, "takes 2 finite numbers"),
        ({"uniform": [0.1, float("inf")]}, "takes 2 finite numbers"),
        ({"uniform": [True, 2]}, "takes 2 finite numbers"),
        ({"uniform": ["low", 2]}, "takes 2 finite numbers"),
        ({"uniform": [0.2, 0.1]}, "the lower end stands first"),
        ({"loguniform": [0, 0.1]}, "a lower end above 0"),
        ({"randint": [2, 2]}, "draws nothing.*\n.*upper end of randint is exclusive"),
        ({"randint": [2.5, 4]}, "whole ends"),
        ({"grid": [0, 1]}, "takes 3 finite numbers"),
        ({"grid": [0, 1, 1]}, "a grid of 1 values"),
        ({"grid": [0, 1, 2.5]}, "a grid of 2.5 values"),
        ({"grid": [0, 1, 5000]}, "at most 1,000 values"),
        ({"grid": [1, 1.00001, 900]}, "some are equal"),
        ({"choice": [0.01, 0.02], "ratio": 0.1}, "the pair"),
    ],
)
def test_what_draws_nothing_is_refused(how, sentence):
    with pytest.raises(ConfigError, match=f"(?s){sentence}"):
        read(how)


@pytest.mark.parametrize("ratio", [0, -1, "half", True, float("inf")])
def test_a_ratio_is_a_number_above_0(ratio):
    with pytest.raises(ConfigError, match="a number above 0"):
        read({"choice": [0.01, 0.02], "ratio": ratio}, "stages.1.lr")


def test_a_ratio_needs_the_rate_of_a_stage():
    with pytest.raises(ConfigError, match=r"the space draws stages.1.lr.1 with a ratio"):
        read({"choice": [0.01, 0.02], "ratio": 0.1}, "stages.1.lr.1")
    with pytest.raises(ConfigError, match=r"the space draws stages.1.lr with a ratio"):
        read({"choice": [[0.1, 0.2], 0.02], "ratio": 0.1}, "stages.1.lr")
