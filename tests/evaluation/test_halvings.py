"""Decision rules judged on many random halvings of the tiles."""

from dataclasses import replace

import numpy as np
import pytest
from worlds import some

from raytrain.errors import DataError
from raytrain.evaluation import halvings, judgement, metrics, rules


@pytest.mark.parametrize("rule", rules.RULES)
def test_one_halving_has_the_scores_of_evaluate(rule):
    p = some()
    assert halvings.tile_scores(p, rule, 1).tolist() == judgement.tile_scores(p)[rule].tolist()


def test_evaluate_and_one_halving_compare_the_rules_alike():
    p = some(rows=200)
    by_rule = {rule: halvings.tile_scores(p, rule, 1) for rule in rules.RULES}
    compared = judgement.compare_rules(by_rule)
    judged = judgement.judge(p)
    assert compared.scores == judged.scores
    assert compared.gains == judged.gains
    assert compared.recommended == judged.recommended


def test_several_halvings_are_averaged_tile_by_tile():
    p = some(rows=100)
    halves = [halvings.halving(p, seed) for seed in range(3)]
    assert not np.array_equal(halves[0].part, halves[1].part)
    expected = np.zeros(100)
    for tiles in halves:
        for half in (0, 1):
            held_out = tiles.part == half
            fitted = rules.fit(tiles.logits[~held_out], tiles.target[~held_out])["global"]
            labels = fitted.labels(tiles.logits[held_out])
            expected[held_out] += metrics.f2_per_tile(labels, tiles.target[held_out]) / 3
    assert halvings.tile_scores(p, "global", 3) == pytest.approx(expected)


def test_the_rule_that_fits_nothing_is_the_same_in_every_halving():
    p = some(rows=100)
    assert halvings.tile_scores(p, "default", 4).tolist() == pytest.approx(
        halvings.tile_scores(p, "default", 1).tolist()
    )


def test_the_order_of_a_file_does_not_matter():
    p = some(rows=100)
    turned = p.taken(np.arange(100)[::-1])
    assert halvings.tile_scores(p, "shrunk", 2).tolist() == (
        halvings.tile_scores(turned, "shrunk", 2).tolist()
    )


def test_folds_are_never_torn():
    fold = np.arange(100, dtype=np.int32) % 5
    p = replace(some(rows=100), fold=fold)
    by_name = fold[np.argsort(p.names)]
    divisions = set()
    for seed in range(20):
        part = halvings.halving(p, seed).part
        halves = [set(by_name[part == half].tolist()) for half in (0, 1)]
        assert not halves[0] & halves[1] and {len(half) for half in halves} == {2, 3}
        divisions.add(frozenset(halves[0]))
    assert len(divisions) > 5


def test_predictions_that_cannot_be_judged_are_refused():
    p = some(rows=100)
    with pytest.raises(DataError, match="no targets"):
        halvings.halving(replace(p, target=None), 0)
    with pytest.raises(DataError, match="1 tiles"):
        halvings.halving(p.taken(np.array([0])), 0)
