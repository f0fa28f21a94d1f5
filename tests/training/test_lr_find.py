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
