"""The winner of a search, decided by reruns alone."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from raytrain.evaluation.score import Score
from raytrain.search import differences, finals
from raytrain.search.finalists import Finalist, Rerun, rerun_of
from raytrain.search.reruns import Reading, still_to_train

F2 = Score("f2", "F2")
LOSS = Score("valid_loss", "loss", higher_is_better=False)
HOW = Reading(F2, (10, 11))


def finalist(number, scores, cost=1.0, given=False, diverged=()):
    """A finalist whose tiles are all alike in each rerun: there is no noise of tiles."""
    name = "the given recipe" if given else f"trial {number}"
    reruns = {}
    for seed, score in zip(HOW.seeds, scores, strict=False):
        reruns[seed] = rerun_of(np.full(50, score))
    return Finalist(number, name, cost, given, reruns, frozenset(diverged))


# Intervals


def test_without_noise_of_tiles_the_interval_of_two_finalists_is_the_classical_one():
    first = finalist(0, [0.90, 0.92], given=True)
    second = finalist(1, [0.95, 0.96])
    noise = differences.noise_of([first, second], controls=1)
    found = differences.difference(noise, 0, 1)
    expected = stats.ttest_ind([0.95, 0.96], [0.90, 0.92]).confidence_interval(0.95)
    assert found.value == pytest.approx(0.045)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_the_noise_of_a_seed_is_pooled_over_all_finalists():
    scores = [[0.90, 0.92], [0.95, 0.96], [0.93, 0.97]]
    noise = differences.noise_of([finalist(n, each) for n, each in enumerate(scores)], 1)
    assert noise.seed_df == 3
    assert noise.seed_variance == pytest.approx(np.var(scores, axis=1, ddof=1).mean())


def test_what_seeds_and_tiles_scatter_adds_up():
    generator = np.random.default_rng(0)
    tiles = generator.normal(0.9, 0.1, size=(2, 3000))
    reruns = []
    for per_tile, shifts in zip(tiles, ([0, 0.01], [0, 0.012]), strict=True):
        reruns.append({seed: rerun_of(per_tile + s) for seed, s in enumerate(shifts)})
    both = [Finalist(n, f"trial {n}", 1.0, n == 0, each) for n, each in enumerate(reruns)]
    noise = differences.noise_of(both, controls=1)
    found = differences.difference(noise, 0, 1)
    of_seeds = noise.seed_variance
    of_tiles = (tiles[1] - tiles[0]).var() / 3000
    df = (of_seeds + of_tiles) ** 2 / (of_seeds**2 / 2 + of_tiles**2 / 2999)
    half = stats.t.ppf(0.975, df) * math.sqrt(of_seeds + of_tiles)
    # 1,000 resamples know a variance to 4 %.
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.06)


def test_groups_of_alike_tiles_widen_the_interval():
    generator = np.random.default_rng(0)
    scenes = np.repeat(np.arange(20), 50)
    own = generator.normal(0, 0.05, 20)[scenes]
    first = Finalist(0, "", 1.0, True, {10: rerun_of(np.full(1000, 0.9))})
    second = Finalist(1, "", 1.0, False, {10: rerun_of(0.9 + own)})
    for each in (first, second):
        each.reruns[11] = rerun_of(each.reruns[10].per_tile + 0.001)
    alone = differences.noise_of([first, second], 1)
    grouped = differences.noise_of([first, second], 1, scenes)
    widths = [differences.difference(noise, 0, 1).high for noise in (alone, grouped)]
    assert grouped.tile_df == 19 and widths[1] > 2 * widths[0]


def test_a_score_that_is_no_mean_over_tiles_has_intervals_over_seeds_alone():
    finalists = []
    for number, scores in enumerate([[0.80, 0.81], [0.90, 0.91]]):
        reruns = {seed: Rerun(score) for seed, score in enumerate(scores)}
        finalists.append(Finalist(number, f"trial {number}", 1.0, number == 0, reruns))
    verdict = finals.decide(finalists, Reading(Score("map", "mAP"), (0, 1)))
    assert verdict.winner == 1
    assert verdict.covers == "the intervals cover seeds alone, since mAP is no mean over tiles"


# The winner


def test_equal_finalists_leave_the_cheapest():
    verdict = finals.decide(
        [
            finalist(4, [0.931, 0.930], cost=1.2),
            finalist(7, [0.929, 0.930], cost=0.8),
            finalist(0, [0.930, 0.929], given=True),
        ],
        HOW,
    )
    assert verdict.winner == 7
    assert verdict.reason == (
        "no finalist is better than trial 7 beyond the noise, and none is cheaper (cost 0.80)"
    )
    assert [standing.verdict for standing in verdict.standings] == ["equal", "equal", None]


def test_equal_and_equally_dear_finalists_leave_the_given_recipe():
    verdict = finals.decide(
        [finalist(4, [0.931, 0.930]), finalist(0, [0.930, 0.929], given=True)], HOW
    )
    assert verdict.winner == 0


def test_a_dearer_finalist_wins_only_if_it_is_better_beyond_the_noise():
    verdict = finals.decide(
        [
            finalist(4, [0.951, 0.950], cost=1.2),
            finalist(0, [0.930, 0.929], given=True),
        ],
        HOW,
    )
    assert verdict.winner == 4
    assert verdict.reason.startswith("trial 4 is better than the given recipe beyond the noise")
    assert verdict.standings[0].difference.low > 0 and verdict.standings[0].verdict == "better"


def test_of_two_that_are_better_and_equal_the_cheaper_wins():
    verdict = finals.decide(
        [
            finalist(4, [0.951, 0.950], cost=1.4),
            finalist(5, [0.950, 0.951], cost=1.2),
            finalist(0, [0.930, 0.929], cost=1.0, given=True),
        ],
        HOW,
    )
    assert verdict.winner == 5


def test_the_winner_beats_every_cheaper_one_it_replaces():
    verdict = finals.decide(
        [
            finalist(4, [0.971, 0.970], cost=1.4),
            finalist(5, [0.950, 0.951], cost=1.2),
            finalist(0, [0.930, 0.929], cost=1.0, given=True),
        ],
        HOW,
    )
    assert verdict.winner == 4
    assert verdict.reason.startswith("trial 4 is better than the cheaper trial 5")


def test_a_lower_loss_is_better():
    how = Reading(LOSS, HOW.seeds)
    low = finalist(4, [0.080, 0.081], cost=1.2)
    high = finalist(0, [0.120, 0.121], given=True)
    verdict = finals.decide([low, high], how)
    assert verdict.winner == 4
    assert verdict.standings[0].verdict == "better" and verdict.standings[0].difference.high < 0
    # At each seed trial 4 is read, since it is best at the other one.
    assert verdict.score == pytest.approx(0.0805)


def test_the_score_of_the_choice_is_read_at_seeds_that_did_not_choose():
    finalists = [finalist(1, [0.95, 0.90]), finalist(0, [0.91, 0.94], given=True)]
    verdict = finals.decide(finalists, HOW)
    # The first seed chooses trial 1, which has 0.90 at the second; that one chooses 0, with 0.91.
    assert verdict.score == pytest.approx((0.90 + 0.91) / 2)
    assert [standing.score for standing in verdict.standings] == pytest.approx([0.925, 0.925])


def test_one_rerun_each_calls_none_better():
    verdict = finals.decide([finalist(1, [0.99]), finalist(0, [0.90], given=True)], HOW)
    assert verdict.winner == 0 and verdict.score is None
    assert verdict.standings[0].difference.low == -math.inf
    assert "one rerun each does not show the noise of seeds" in verdict.covers


def test_a_finalist_that_diverges_is_out():
    verdict = finals.decide(
        [
            finalist(1, [0.99], cost=0.5, diverged=[11]),
            finalist(2, [0.92, 0.93]),
            finalist(0, [0.90, 0.91], given=True),
        ],
        HOW,
    )
    assert verdict.winner == 0
    assert verdict.standings[0].out == "a rerun diverged"
    assert verdict.standings[0].difference is None


def test_without_the_given_recipe_the_others_are_compared_with_the_cheapest():
    verdict = finals.decide(
        [
            finalist(1, [0.95, 0.951], cost=1.3),
            finalist(2, [0.90, 0.901], cost=0.9),
            finalist(0, [0.90], given=True, diverged=[11]),
        ],
        HOW,
    )
    assert verdict.winner == 1
    assert [standing.difference for standing in verdict.standings] == [None, None, None]


def test_without_a_complete_rerun_the_best_score_of_the_search_stands():
    third = replace(finalist(3, [], diverged=[10]), first=0.91)
    given = replace(finalist(0, [], given=True, diverged=[10]), first=0.92)
    verdict = finals.decide([third, given], HOW)
    assert verdict.winner == 0
    assert "no rerun is complete" in verdict.reason and "may be luck" in verdict.reason


def test_where_the_given_recipe_alone_is_complete_nothing_is_said_of_reruns():
    verdict = finals.decide([replace(finalist(0, [], given=True), first=0.92)], HOW)
    assert verdict.winner == 0 and verdict.reason == "no other trial is complete"


# What is still to be trained


def test_all_get_a_first_rerun_and_the_recipe_and_the_cheapest_get_all():
    finalists = [
        finalist(1, [], cost=1.1),
        finalist(2, [], cost=0.7),
        finalist(3, [], cost=1.2),
        finalist(0, [], given=True),
    ]
    assert still_to_train(finalists, HOW) == [(1, 10), (2, 10), (3, 10), (0, 10), (2, 11), (0, 11)]


def after_first(*scores):
    costs = (1.1, 0.7, 1.2, 1.0)
    numbers = (1, 2, 3, 0)
    found = []
    for number, score, cost in zip(numbers, scores, costs, strict=True):
        found.append(finalist(number, [score], cost, given=number == 0))
    return found


@pytest.mark.parametrize(("score", "goes_on"), [(0.9249, False), (0.9252, True), (0.940, True)])
def test_a_finalist_that_is_clearly_worse_gets_no_second_rerun(score, goes_on):
    # The others have the mean 0.930 and scatter by 0.001: 0.930 - 4.303 · 0.001 · √(4/3) = 0.92503.
    needed = still_to_train(after_first(score, 0.930, 0.931, 0.929), HOW)
    assert ((1, 11) in needed) == goes_on
    assert {(2, 11), (3, 11), (0, 11)} <= set(needed)


def test_the_recipe_and_the_cheapest_are_never_dropped():
    for scores in ((0.930, 0.5, 0.931, 0.929), (0.930, 0.931, 0.929, 0.5)):
        needed = still_to_train(after_first(*scores), HOW)
        assert {(2, 11), (0, 11)} <= set(needed)


def test_a_dropped_finalist_cannot_win_and_says_why():
    finalists = after_first(0.90, 0.930, 0.931, 0.929)
    for each in finalists[1:]:
        each.reruns[11] = rerun_of(np.full(50, 0.930))
    assert still_to_train(finalists, HOW) == []
    verdict = finals.decide(finalists, HOW)
    assert verdict.winner == 2
    assert verdict.standings[0].out == "it was clearly worse after its first rerun"


def test_no_rerun_is_needed_after_one_diverged():
    finalists = [finalist(1, [], diverged=[10]), finalist(0, [0.9, 0.91], given=True)]
    assert still_to_train(finalists, HOW) == []
