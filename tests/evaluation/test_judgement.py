import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from worlds import CLASSES, calibrated, some

from raytrain.errors import ConfigError, DataError
from raytrain.evaluation import judgement, measures, metrics, rules, thresholds
from raytrain.evaluation.conditions import Conditions
from raytrain.evaluation.predictions import Predictions
from raytrain.evaluation.rules import Exclusive


def halves(p):
    """Rows of the two halves that judge makes of 600 tiles."""
    order = np.argsort(p.names)
    first = np.random.default_rng(0).permutation(600)[:300]
    return order[first], np.delete(order, first)


def test_judged_tiles_are_never_seen_by_the_fit():
    p = some()
    before = judgement.judge(p)
    for changed, half in enumerate(halves(p)):
        target = p.target.copy()
        target[half] = np.random.default_rng(1).permutation(target[half])
        after = judgement.judge(replace(p, target=target))
        same, other = after.fits[changed], after.fits[1 - changed]
        for name in rules.RULES:
            # Part `changed` is judged by a fit without it, which must not notice.
            assert same[name].words == before.fits[changed][name].words
        assert (
            other["per_class"].cuts.tolist() != before.fits[1 - changed]["per_class"].cuts.tolist()
        )
        assert other["expected"].temperature != before.fits[1 - changed]["expected"].temperature


def test_every_tile_is_judged_by_the_rules_of_the_other_half():
    p = some()
    a, b = halves(p)
    found = judgement.judge(p)
    for name in rules.RULES:
        scores = []
        for fitting, judging in ((a, b), (b, a)):
            decision = rules.fit(p.logits[fitting], p.target[fitting])[name]
            scores.append(
                metrics.f2_per_tile(decision.labels(p.logits[judging]), p.target[judging])
            )
        assert found.scores[name].value == pytest.approx(np.concatenate(scores).mean(), abs=1e-12)


def test_out_of_fold_predictions_are_judged_fold_by_fold():
    p = some()
    fold = (np.arange(600) % 5).astype(np.int32)
    found = judgement.judge(replace(p, fold=fold))
    assert found.folds == len(found.fits) == 5
    decision = rules.fit(p.logits[fold != 3], p.target[fold != 3])["per_class"]
    assert found.fits[3]["per_class"].cuts.tolist() == decision.cuts.tolist()
    assert "each of 5 folds" in judgement.table(found)


def test_tiles_of_a_group_are_in_one_half_and_resampled_together():
    p = some()
    # 60 scenes of ten equal tiles: ten times the tiles, but no more to know.
    logits, target = np.repeat(p.logits[:60], 10, 0), np.repeat(p.target[:60], 10, 0)
    copies = Predictions(p.names, logits, target, CLASSES, {})
    group_of = {name: f"scene {row // 10}" for row, name in enumerate(p.names)}
    tiles = judgement.tiles_of(copies, Conditions(group_of))
    assert all(len(set(tiles.part[tiles.groups == g])) == 1 for g in set(tiles.groups))
    # Also where the file has folds.
    folds = replace(copies, fold=(np.arange(600) % 5).astype(np.int32))
    tiles = judgement.tiles_of(folds, Conditions(group_of))
    assert set(tiles.part) == set(range(5))
    assert all(len(set(tiles.part[tiles.groups == g])) == 1 for g in set(tiles.groups))
    alone = judgement.judge(copies).scores["default"]
    grouped = judgement.judge(copies, Conditions(group_of)).scores["default"]
    assert grouped.value == alone.value
    assert grouped.high - grouped.low == pytest.approx(
        np.sqrt(10) * (alone.high - alone.low), rel=0.15
    )


def test_what_a_fit_gains_on_noise_does_not_reach_the_judged_score():
    """Where logits know nothing of the labels, a fit gains where it is fitted and not where it is judged."""
    p = some(60)
    noise = replace(
        p, logits=np.random.default_rng(5).normal(-1.0, 0.6, p.logits.shape).astype(np.float32)
    )
    found = judgement.judge(noise)
    fitted = metrics.f2(noise.logits, noise.target, found.fitted["per_class"].cuts)
    assert found.scores["per_class"].value < fitted - 0.02


def test_the_default_is_recommended_where_others_gain_only_noise():
    found = judgement.judge(some(300, noise=0.2))
    assert found.recommended == "default"
    assert {gain.verdict for gain in found.gains.values()} <= {"no difference", "worse"}


def test_a_shift_of_all_logits_is_met_by_the_global_threshold():
    found = judgement.judge(calibrated())
    assert found.fitted["global"].cuts[0] > 0.6
    assert found.gains["global"].verdict == "better"
    assert found.scores["global"].value > found.f2 + 0.05
    assert found.recommended != "default"


def test_classes_of_their_own_calibration_are_met_by_thresholds_of_their_own():
    p = some(1500)
    p.logits[:] += np.array([-3, 3, -3, 3, -3, 3], np.float32)
    found = judgement.judge(p)
    assert found.recommended in ("per_class", "shrunk")
    assert found.scores["per_class"].value > found.scores["global"].value + 0.05


def test_the_judgement_holds_the_metrics_of_all_tiles():
    p = some()
    found = judgement.judge(p)
    assert found.f2 == pytest.approx(metrics.f2(p.logits, p.target), abs=1e-12)
    assert found.bce == pytest.approx(metrics.bce(p.logits, p.target))
    assert found.accuracy == pytest.approx(metrics.accuracy_thresh(p.logits, p.target))
    assert found.mean_average_precision == pytest.approx(
        metrics.average_precision(p.logits, p.target).mean()
    )
    assert found.fitted["global"].cuts[0] == thresholds.best_global(p.logits, p.target)[0]
    assert found.measures["default"] == pytest.approx(
        measures.all_of(p.probability > 0.2, p.target)
    )
    table = metrics.per_label(p.logits, p.target, CLASSES, 0.2)
    pd.testing.assert_frame_equal(found.per_label[table.columns], table)
    assert found.per_label["own_threshold"].tolist() == found.fitted["per_class"].cuts.tolist()


def test_the_gain_of_a_label_is_that_of_its_own_threshold_alone():
    p = some()
    p.logits[:, 2] += 4  # its own threshold gains much
    found = judgement.judge(p)
    a, b = halves(p)
    gains = []
    for fitting, judging in ((a, b), (b, a)):
        own = rules.fit(p.logits[fitting], p.target[fitting])["per_class"].cuts
        cuts = np.full(6, 0.2)
        cuts[2] = own[2]
        gains.append(
            metrics.f2(p.logits[judging], p.target[judging], cuts)
            - metrics.f2(p.logits[judging], p.target[judging])
        )
    assert found.per_label["gain"][2] == pytest.approx(np.mean(gains), abs=1e-9)
    assert found.per_label["gain"].idxmax() == 2


def test_an_exclusive_group_is_judged_with_every_rule():
    p = some()
    exclusive = Exclusive(("clear", "haze"), ("haze",))
    found = judgement.judge(p, Conditions(exclusive=exclusive))
    assert list(found.scores) == [*rules.RULES, *(f"{name}+exactly-one" for name in rules.RULES)]
    labels = found.fitted["default+exactly-one"].labels(p.logits)
    weather = labels[:, [0, 3]]
    assert (weather.sum(axis=1) == 1).all()
    assert (labels[weather[:, 1]].sum(axis=1) == 1).all()  # haze stands alone
    assert found.scores["default"] == judgement.judge(p).scores["default"]
    with pytest.raises(ConfigError, match=r'--exactly-one names "hase".*Did you mean'):
        judgement.judge(p, Conditions(exclusive=Exclusive(("clear", "hase"))))


def test_the_order_of_rows_does_not_matter():
    p = some(101)
    mixed = p.taken(np.random.default_rng(9).permutation(101))
    assert judgement.to_json(judgement.judge(p)) == judgement.to_json(judgement.judge(mixed))


def test_predictions_without_targets_or_with_one_tile_cannot_be_judged():
    p = some(2)
    with pytest.raises(DataError, match="no targets"):
        judgement.judge(replace(p, target=None))
    with pytest.raises(DataError, match="1 tiles"):
        judgement.judge(p.taken(np.array([0])))


def test_tiles_without_a_target_are_left_out_and_counted():
    whole = some(40)
    known = np.arange(40) % 3 != 0
    # What stands where the target is unknown must not matter.
    target = np.where(known[:, None], whole.target, 1).astype(np.uint8)
    mixed = judgement.judge(replace(whole, target=target, known=known))
    alone = judgement.judge(whole.taken(np.flatnonzero(known)))
    assert (mixed.tiles, mixed.unknown, alone.unknown) == (26, 14, 0)
    assert mixed.scores == alone.scores and mixed.bce == alone.bce
    assert judgement.to_json(mixed) == judgement.to_json(alone) | {"tiles_without_target": 14}
    assert judgement.table(mixed) == (
        judgement.table(alone) + "\n14 tiles without a target were left out"
    )


def test_predictions_of_which_no_target_is_known_cannot_be_judged():
    p = replace(some(4), known=np.zeros(4, bool))
    with pytest.raises(DataError, match="the predictions have no targets"):
        judgement.judge(p)


def test_labels_that_no_tile_has_are_null_and_not_nan_in_json(tmp_path):
    p = some(4)
    found = judgement.judge(replace(p, target=np.zeros_like(p.target)))
    judgement.write(found, str(tmp_path))
    assert json.loads((tmp_path / "metrics.json").read_text())["map"] is None
    assert "no tile has a label" in judgement.table(found)


def test_three_files_are_written_and_agree_with_the_judgement(tmp_path):
    found = judgement.judge(some())
    judgement.write(found, str(tmp_path / "out"))
    fitted = found.fitted
    content = json.loads((tmp_path / "out/thresholds.json").read_text())
    assert content == {
        "default": 0.2,
        "global": fitted["global"].cuts[0],
        "expected": {"temperature": fitted["expected"].temperature},
        "shrunk": dict(zip(CLASSES, fitted["shrunk"].cuts, strict=True)),
        "per_class": dict(zip(CLASSES, fitted["per_class"].cuts, strict=True)),
        "recommended": found.recommended,
    }
    assert json.loads((tmp_path / "out/metrics.json").read_text()) == judgement.to_json(found)
    table = pd.read_csv(tmp_path / "out/per_label.csv")
    pd.testing.assert_frame_equal(table, found.per_label, check_dtype=False)


def test_the_table_shows_scores_gains_and_what_to_use():
    found = judgement.judge(calibrated())
    lines = judgement.table(found).splitlines()
    assert f"{found.f2:.4f}" in lines[1] and lines[1].startswith("0.2 for every label")
    assert f"{found.scores['global'].value:.4f}" in lines[2] and "+0." in lines[2]
    assert lines[6].startswith(f"recommended: {rules.title(found.recommended)}; every rule")
    assert max(map(len, lines)) < 120 and "\n".join(lines).isascii()
