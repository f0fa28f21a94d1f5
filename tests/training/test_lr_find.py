"""The range test and its rules, on curves whose answer is known."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from raytrain.errors import DivergedError
from raytrain.training import lr_find


def curve(losses):
    steps = len(losses)
    lr = [1e-7 * 1e8 ** (t / 100) for t in range(steps)]
    return lr_find.Curve(lr, list(losses), list(losses))


def optimizer():
    return torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=1.0, betas=(0.95, 0.99))


def test_the_rate_rises_geometrically_from_1e7th_to_10_over_100_steps():
    seen, sgd = [], optimizer()

    def step(t):
        seen.append((sgd.param_groups[0]["lr"], sgd.param_groups[0]["betas"]))
        return 1.0

    found = lr_find.range_test(step, sgd)
    assert len(found.lr) == 100 and [lr for lr, _ in seen] == found.lr
    assert found.lr[0] == pytest.approx(1e-7) and found.lr[50] == pytest.approx(1e-3)
    assert found.lr[99] == pytest.approx(10 / 1e8**0.01)
    assert {betas for _, betas in seen} == {(0.9, 0.99)}


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e6])
def test_it_stops_where_the_loss_diverges(bad):
    found = lr_find.range_test(lambda t: 1.0 if t < 60 else bad, optimizer())
    assert len(found.lr) == 61


def test_it_stops_at_four_times_the_lowest_smoothed_loss():
    found = lr_find.range_test(lambda t: 1.0 if t < 60 else 40.0, optimizer())
    assert found.smoothed[-1] > 4 * min(found.smoothed) >= found.smoothed[-2]
    assert len(found.lr) < 70


def test_the_rules_read_the_rates_they_are_named_after():
    # Flat, then falling fastest at step 60, lowest at step 75, rising after.
    t = np.arange(100)
    losses = 1 - 0.5 / (1 + np.exp(-(t - 60) / 3.0)) + np.where(t > 75, (t - 75) * 0.05, 0)
    lr = curve(losses).lr
    found = lr_find.suggestions(curve(losses))
    assert found["steepest"] == pytest.approx(lr[60], rel=1e-9)
    assert found["minimum/10"] == pytest.approx(lr[75] / 10, rel=1e-9)
    # The whole fall, from the first step kept (10) to the lowest (75), has its middle at about 42.
    assert lr[41] <= found["valley"] <= lr[44]


def risen_from(path, factor, lowest=0.5):
    """Falls to `lowest` at a step, then rises by a factor with each step."""
    t = np.arange(100)
    return np.where(t <= path, 1 - (1 - lowest) * t / path, lowest * factor ** (t - path))


@pytest.mark.parametrize(
    ("factor", "steps"),
    # The smallest n with factor^n above 1.1.
    [(1.5, 1), (1.05, 2), (1.03, 4), (1.02, 5), (1.01, 10)],
)
def test_the_rise_is_the_first_rate_whose_loss_exceeds_the_minimum_by_a_tenth(factor, steps):
    found = curve(risen_from(60, factor))
    assert lr_find.rise(found) == found.lr[60 + steps]
    assert lr_find.suggestions(found)["rise/10"] == pytest.approx(found.lr[60 + steps] / 10)


def test_a_tenth_above_the_minimum_itself_is_no_rise_yet():
    losses = np.where(np.arange(100) < 80, 2.0, 2.0 * 1.1)
    losses[50] = 2.0 * 0.9999999
    assert lr_find.rise(curve(losses)) == curve(losses).lr[80]
    losses[50] = 2.0
    assert lr_find.rise(curve(losses)) is None


def test_what_rises_before_the_minimum_is_no_rise():
    losses = risen_from(60, 1.001)
    losses[20:30] = 5.0
    assert lr_find.rise(curve(losses)) is None
    assert "rise/10" not in lr_find.suggestions(curve(losses))


@pytest.mark.parametrize("end", [math.nan, math.inf, 1.0])
def test_a_loss_that_explodes_at_the_very_end_has_risen(end):
    losses = np.linspace(1.0, 0.5, 70)
    losses[-5:] = losses[-6]
    losses[-1] = end
    found = curve(losses)
    assert lr_find.rise(found) == found.lr[69]


def test_the_lessons_rule_of_a_frozen_stage_is_the_steepest_fall():
    t = np.arange(100)
    losses = 1 - 0.5 / (1 + np.exp(-(t - 60) / 3.0)) + np.where(t > 75, (t - 75) * 0.05, 0)
    found = curve(losses)
    chosen, sentence = lr_find.peak(found, 0.01, lr_find.STEEPEST_RULE)
    assert chosen == pytest.approx(found.lr[60]) and "(steepest) instead of 1.0e-02" in sentence
    auto, _ = lr_find.peak(found, 0.01)
    assert auto == pytest.approx(found.lr[75] / 10)
    flat = curve(0.9 + 0.1 * losses)
    stays, sentence = lr_find.peak(flat, 0.01, lr_find.STEEPEST_RULE)
    assert stays == 0.01 and "peak lr stays 1.0e-02" in sentence


def test_after_unfreezing_the_pair_is_a_tenth_of_the_rise_and_a_fifth_of_the_frozen_rate():
    found = curve(risen_from(40, 1.5))
    chosen, sentence = lr_find.unfrozen_peak(found, (1e-5, 2e-3), 0.01)
    assert chosen == pytest.approx((found.lr[41] / 10, 0.002))
    assert f"rises at {found.lr[41]:.1e}" in sentence and "frozen with lr 1.0e-02" in sentence
    # The lesson's own numbers: the loss rises at 1e-4, the frozen stage had 0.01.
    assert lr_find.unfrozen_peak(
        lr_find.Curve([1e-5] * 20 + [1e-4] * 20, [1.0] * 40, [1.0] * 20 + [1.2] * 20), 0.1, 0.01
    )[0] == pytest.approx((1e-5, 0.002))


@pytest.mark.parametrize(
    ("losses", "frozen_lr", "words"),
    [
        (risen_from(40, 1.5), None, "no frozen stage comes before this one"),
        (risen_from(40, 1.001), 0.01, "never rises by 10% above its minimum"),
        (risen_from(80, 1.5), 0.01, "is not below a fifth of the other, 2.0e-03"),
    ],
)
def test_where_the_lesson_has_no_pair_the_planned_rates_stay_and_a_sentence_says_why(
    losses, frozen_lr, words
):
    for planned, written in (((1e-5, 2e-3), "1.0e-05 to 2.0e-03"), (0.004, "4.0e-03")):
        chosen, sentence = lr_find.unfrozen_peak(curve(losses), planned, frozen_lr)
        assert chosen == planned
        assert words in sentence and f"peak lr stays {written}" in sentence


def test_the_first_ten_and_the_last_five_steps_play_no_part():
    plain = np.linspace(1.0, 0.9, 100)
    wanted = lr_find.suggestions(curve(plain))
    for path in (0, 9, 95, 99):
        losses = plain.copy()
        losses[path] = -5.0
        assert lr_find.suggestions(curve(losses)) == wanted
    for path in (10, 94):
        losses = plain.copy()
        losses[path] = -5.0
        assert lr_find.suggestions(curve(losses))["minimum/10"] == pytest.approx(
            curve(losses).lr[path] / 10
        )


def test_how_far_the_loss_falls_is_told_from_the_steps_that_count():
    losses = np.full(100, 0.2)
    losses[:10], losses[60], losses[70:] = 9.0, 0.19, 0.4
    assert lr_find.fall(curve(losses)) == pytest.approx(0.05)
    assert lr_find.fall(curve(np.linspace(1.0, 2.0, 100))) == 0


def test_a_curve_that_diverged_at_once_suggests_nothing():
    with pytest.raises(DivergedError, match="diverged after 20 of 100 steps"):
        lr_find.suggestions(curve(np.ones(20)))


def test_a_pair_keeps_its_ratio_and_a_number_is_replaced():
    assert lr_find.scaled(0.01, 0.004) == 0.004
    assert lr_find.scaled((1e-5, 0.002), 0.004) == pytest.approx((2e-5, 0.004))


def test_weights_and_statistics_come_back():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with lr_find.weights_restored(model):
        model(torch.randn(8, 3))
        nn.init.ones_(model[0].weight)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
