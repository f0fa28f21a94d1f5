"""The Gaussian process over chains, against formulas written out by hand."""

import math

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from raytrain.search import kernel, scores
from raytrain.search.chains import Axes, Axis, Chain
from raytrain.search.fitting import fitted
from raytrain.search.kernel import Hyperparameters
from raytrain.search.model import Fit, Model
from raytrain.search.points import Encoder, Point, end
from raytrain.search.regression import log_likelihood

OF = Hyperparameters(
    list=0.5, level=0.3, shared=0.7, rate=1.1, mix=0.4, length=0.6, carry=0.8, noise=0.2
)
# Two lists: one of two stages with a rate each, and one of three stages whose last one has two fields.
AXES = Axes(
    shared=(Axis("train.wd"), Axis("model.arch", ordered=False)),
    stages={
        "short": ((Axis("stages.1.lr"),), (Axis("stages.2.lr"),)),
        "long": (
            (Axis("stages.1.lr"),),
            (Axis("stages.2.lr"),),
            (Axis("stages.3.lr"), Axis("stages.3.freeze", ordered=False)),
        ),
    },
)
# No fit is due after it.
FIXED = Fit(10**6, OF)


def chain(schedule, *stages, shared=(0.5, 0.0), begun=None):
    """A chain whose keys tell its values. Lists with the same word in `begun` share their first stage."""
    keys = []
    for done in range(1, len(stages) + 1):
        name = begun if begun and done == 1 else schedule
        keys.append(f"{name} {shared} {stages[:done]}")
    return Chain(schedule, shared, stages, tuple(keys), (1.0,) * len(stages))


def short(first, second, **more):
    return chain("short", (first,), (second,), **more)


def long(first, second, third, frozen=0.0, **more):
    return chain("long", (first,), (second,), (third, frozen), **more)


def by_hand(one, other):
    """The covariance of two points of different lists or the same one, from its formula, term by term."""
    a, b = one.chain, other.chain
    total = 0.0
    wd = math.exp(-0.5 * ((a.shared[0] - b.shared[0]) / 0.6) ** 2)
    arch = 1.0 if a.shared[1] == b.shared[1] else math.exp(-0.5 / 0.6**2)
    total += 0.7**2 * (wd + arch)
    if a.schedule != b.schedule:
        return total
    total += 0.5**2
    if one.stages == other.stages:
        total += 0.3**2
    squares = 0.0
    for stage in range(min(one.stages, other.stages)):
        own = 0.0
        for field, (x, y) in enumerate(zip(a.stages[stage], b.stages[stage], strict=True)):
            square = (x - y) ** 2 if field == 0 else float(x != y)
            squares += square
            own += 1.1**2 * math.exp(-0.5 * square / 0.6**2)
        own += 0.4**2 * math.exp(-0.5 * squares / 0.6**2)
        total += 0.8 ** (one.stages - stage - 1) * 0.8 ** (other.stages - stage - 1) * own
    return total


POINTS = [
    Point(short(0.1, 0.9), 1),
    Point(short(0.1, 0.9), 2),
    Point(short(0.4, 0.2, shared=(0.0, 1.0)), 2),
    Point(long(0.3, 0.6, 0.5), 1),
    Point(long(0.3, 0.6, 0.5), 3),
    Point(long(0.7, 0.6, 0.2, frozen=1.0), 3),
    Point(long(0.7, 0.1, 0.2, shared=(1.0, 2.0)), 2),
]


def test_the_covariance_is_the_sum_that_its_formula_says():
    encoder = Encoder(AXES)
    rows = encoder.rows(POINTS)
    found = kernel.covariance(encoder.gaps(rows, rows), OF)
    expected = [[by_hand(one, other) for other in POINTS] for one in POINTS]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(kernel.variance(rows, OF), np.diag(expected), rtol=1e-12)


def test_the_posterior_is_that_of_three_scores_by_hand():
    heard = [
        (end(short(0.1, 0.9)), 0.90),
        (end(short(0.4, 0.2)), 0.94),
        (end(long(0.3, 0.6, 0.5)), 0.92),
    ]
    asked = short(0.3, 0.3)
    model = Model(AXES, seed=0)
    model.restore(FIXED)
    for point, score in heard:
        model.hear(point, score)
    found = model.posterior().ends([asked])

    values = np.array([0.90, 0.94, 0.92])
    spread = values.std()
    points = [point for point, _ in heard]
    prior = np.array([[by_hand(one, other) for other in points] for one in points])
    prior += 0.2**2 * np.eye(3)
    cross = np.array([by_hand(end(asked), point) for point in points])
    mean = 0.92 + spread * (cross @ np.linalg.solve(prior, (values - 0.92) / spread))
    variance = by_hand(end(asked), end(asked)) - cross @ np.linalg.solve(prior, cross)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-7)
    np.testing.assert_allclose(found.sd, spread * np.sqrt(variance), rtol=1e-6)


def test_the_errors_of_two_ends_have_the_covariance_of_the_posterior():
    model = Model(AXES, seed=0)
    for number, point in enumerate(POINTS):
        model.hear(point, 0.9 + 0.01 * number)
    posterior = model.posterior()
    asked = [short(0.3, 0.3), short(0.3, 0.35), long(0.3, 0.3, 0.1)]
    errors = posterior.covariance(asked)
    np.testing.assert_allclose(np.sqrt(np.diag(errors)), posterior.ends(asked).sd, rtol=1e-4)
    assert np.linalg.eigvalsh(errors).min() > -1e-9
    # Near chains err together.
    assert errors[0, 1] / errors[0, 0] > 0.9


def test_the_marginal_likelihood_is_the_density_of_a_normal_distribution():
    encoder = Encoder(AXES)
    rows = encoder.rows(POINTS)
    gaps = encoder.gaps(rows, rows)
    values = np.linspace(-1, 2, len(POINTS))
    covariance = kernel.covariance(gaps, OF) + 0.2**2 * np.eye(len(POINTS))
    expected = multivariate_normal(cov=covariance).logpdf(values)
    assert log_likelihood(gaps, values, OF) == pytest.approx(expected, rel=1e-6)


def test_a_fit_is_never_worse_than_the_last_winner_and_finds_the_noise():
    rng = np.random.default_rng(1)
    encoder = Encoder(AXES)
    points = [end(short(*rng.random(2))) for _ in range(80)]
    rows = encoder.rows(points)
    gaps = encoder.gaps(rows, rows)
    truth = np.array([-3 * (p.chain.stages[1][0] - 0.4) ** 2 for p in points])
    quiet = (truth - truth.mean()) / truth.std()
    loud = rng.normal(size=80)

    def worth(values, of):
        return log_likelihood(gaps, values, of) + kernel.log_prior(of)

    small = fitted(gaps, quiet, OF, rng)
    assert worth(quiet, small) >= worth(quiet, OF)
    large = fitted(gaps, loud, OF, rng)
    assert small.noise < 0.2 < 0.6 < large.noise


def test_two_choices_without_an_order_are_equal_or_different_whatever_their_numbers():
    model = Model(AXES, seed=0)
    model.restore(FIXED)
    for choice, score in ((0.0, 0.90), (3.0, 0.95)):
        for second in (0.1, 0.5, 0.9):
            model.hear(end(short(0.5, second, shared=(0.5, choice))), score)
    near, far, same = (short(0.5, 0.5, shared=(0.5, choice)) for choice in (1.0, 9.0, 3.0))
    means = model.posterior().ends([near, far, same]).mean
    assert means[0] == pytest.approx(means[1])
    assert means[2] > means[0]


def test_a_stage_that_two_lists_share_is_one_observation_for_both():
    one = short(0.5, 0.5, begun="same")
    other = long(0.5, 0.2, 0.2, begun="same")
    model = Model(AXES, seed=0)
    model.restore(FIXED)
    for first, score in ((0.1, 0.7), (0.9, 0.8)):
        model.hear(Point(short(first, 0.5), 1), score)
    model.hear(Point(one, 1), 0.9)
    # The same training, told again by a chain of the other list, says nothing new.
    model.hear(Point(other, 1), 0.9)
    posterior = model.posterior([other])
    assert len(posterior.evidence.points) == 4
    at = posterior.at([Point(one, 1), Point(other, 1)])
    # Both are the same number, with one noise.
    assert at.mean[0] == pytest.approx(at.mean[1], rel=1e-5)
    assert at.sd[0] == pytest.approx(at.sd[1], rel=1e-3)
    # Without that key, the score of the other list would say less about the end.
    assert posterior.ends([other]).sd[0] < model.posterior().ends([other]).sd[0]


def test_the_end_of_a_list_may_be_a_stage_of_a_longer_one():
    model = Model(AXES, seed=0)
    model.restore(FIXED)
    keys = ("begin 0.5", "begin 0.5 0.5", "begin 0.5 0.5 0.5")
    whole = Chain("long", (0.5, 0.0), ((0.5,), (0.5,), (0.5, 0.0)), keys, (1.0,) * 3)
    part = Chain("short", (0.5, 0.0), ((0.5,), (0.5,)), keys[:2], (1.0,) * 2)
    for first, score in ((0.1, 0.90), (0.3, 0.92), (0.9, 0.91)):
        model.hear(end(short(first, 0.5)), score)
    model.hear(Point(whole, 2), 0.96)
    before = model.posterior().ends([part])
    after = model.posterior([part]).ends([part])
    assert after.mean[0] > before.mean[0] + 0.01
    assert after.sd[0] < 0.7 * before.sd[0]


def test_a_belief_in_the_mean_changes_no_mean_and_makes_its_neighbours_surer():
    model = Model(AXES, seed=0)
    for number, point in enumerate(POINTS):
        model.hear(point, 0.9 + 0.01 * number)
    under_way = short(0.6, 0.6)
    asked = [short(0.6, 0.65), long(0.2, 0.2, 0.2)]
    plain = model.posterior().ends(asked)
    believing = model.posterior(believed=[under_way]).ends(asked)
    np.testing.assert_allclose(believing.mean, plain.mean, rtol=1e-6)
    assert believing.sd[0] < 0.9 * plain.sd[0]


def test_scores_of_each_level_are_in_units_of_its_spread_and_ends_share_one():
    values = [0.1, 0.3, 0.90, 0.92, 0.94]
    scales = scores.scales_of(values, ["early", "early", "ends", "ends", "ends"], "ends")
    assert scales["ends"].units(0.92) == pytest.approx(0)
    assert scales["ends"].units(0.94) == pytest.approx(math.sqrt(1.5))
    # Two scores say little about their spread: it counts with that of the ends, which weighs as two more.
    own = math.sqrt((2 * 0.1**2 + 2 * np.std([0.90, 0.92, 0.94]) ** 2) / 4)
    assert scales["early"].units(0.3) == pytest.approx(0.1 / own)


def test_a_collapsed_chain_is_the_worst_but_does_not_outweigh_all_others():
    usual = [0.90, 0.91, 0.92, 0.93, 0.94, 0.95]
    scale = scores.scales_of([*usual, 0.0, None, -math.inf], ["ends"] * 9, "ends")["ends"]
    collapsed = scale.units(0.0)
    assert collapsed == scale.units(None) == scale.units(-math.inf)
    assert collapsed < scale.units(0.90)
    # The others keep most of the spread.
    assert scale.units(0.95) - scale.units(0.90) > 0.5


def test_all_scores_equal_is_no_error():
    model = Model(AXES, seed=0)
    for second in np.linspace(0, 1, 8):
        model.hear(end(short(0.5, float(second))), 0.5)
    ends = model.posterior().ends([short(0.2, 0.2)])
    assert ends.mean[0] == pytest.approx(0.5)
    assert np.isfinite(ends.sd[0])
