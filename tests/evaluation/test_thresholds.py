import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from raytrain.errors import DataError
from raytrain.evaluation import metrics, thresholds
from raytrain.evaluation.predictions import Predictions

CLASSES = ("clear", "water", "road", "haze", "mine", "bare")


def some(rows=600, noise=1.5, seed=0):
    """Tiles whose logits say the truth, apart from noise."""
    generator = np.random.default_rng(seed)
    target = (generator.random((rows, 6)) < np.geomspace(0.8, 0.05, 6)).astype(np.uint8)
    logits = np.where(target, 2.0, -2.0) + generator.normal(size=target.shape) * noise
    return Predictions(
        tuple(f"t{i}" for i in range(rows)), logits.astype(np.float32), target, CLASSES, {}
    )


def calibrated(rows=2000, shift=3.0, seed=0):
    """Labels drawn with the probabilities that the logits had before they were shifted: one threshold suits all."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(-1.0, 3.0, size=(rows, 6))
    target = (generator.random(logits.shape) < metrics.sigmoid(logits)).astype(np.uint8)
    return Predictions(
        tuple(f"t{i}" for i in range(rows)),
        (logits + shift).astype(np.float32),
        target,
        CLASSES,
        {},
    )


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


def test_the_score_of_every_threshold_of_a_class_equals_the_plain_computation():
    p = some(80)
    cuts = np.full(6, 0.2)
    grid = np.arange(1, 100) / 100
    above = np.searchsorted(grid, p.probability, side="left")
    found = thresholds._scores_of_class(p.probability > cuts, p.target != 0, above[:, 3], 3)
    plain = [metrics.f2(p.logits, p.target, np.where(np.arange(6) == 3, t, cuts)) for t in grid]
    np.testing.assert_allclose(found, plain, atol=1e-13)


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


def test_judged_tiles_are_never_seen_by_the_fit():
    p = some()
    order = np.argsort(p.names)
    first = np.zeros(600, bool)
    first[order[np.random.default_rng(0).permutation(600)[:300]]] = True
    before = thresholds.judge(p)
    for judged, kept, changed in ((~first, 0, 1), (first, 1, 0)):
        target = p.target.copy()
        target[judged] = np.random.default_rng(1).permutation(target[judged])
        after = thresholds.judge(replace(p, target=target))
        assert after.halves[kept].best_global == before.halves[kept].best_global
        assert after.halves[kept].per_class.tolist() == before.halves[kept].per_class.tolist()
        assert after.halves[changed].per_class.tolist() != before.halves[changed].per_class.tolist()


def test_every_tile_is_judged_by_the_thresholds_of_the_other_half():
    p = some()
    order = np.argsort(p.names)
    first = np.random.default_rng(0).permutation(600)[:300]
    a, b = order[first], np.delete(order, first)
    fitted = [thresholds.best_global(p.logits[half], p.target[half])[0] for half in (a, b)]
    expected = np.mean(
        [
            metrics.f2(p.logits[b], p.target[b], fitted[0]),
            metrics.f2(p.logits[a], p.target[a], fitted[1]),
        ]
    )
    judgement = thresholds.judge(p)
    assert [half.best_global for half in judgement.halves] == fitted
    assert judgement.scores["global"].f2 == pytest.approx(expected, abs=1e-12)


def test_what_a_fit_gains_on_noise_does_not_reach_the_judged_score():
    """Where logits know nothing of the labels, a fit gains where it is fitted and not where it is judged."""
    p = some(60)
    noise = replace(
        p, logits=np.random.default_rng(5).normal(-1.0, 0.6, p.logits.shape).astype(np.float32)
    )
    judgement = thresholds.judge(noise)
    fitted = metrics.f2(noise.logits, noise.target, judgement.fitted.per_class)
    assert judgement.scores["per_class"].f2 < fitted - 0.02


def test_the_default_is_recommended_where_others_gain_only_noise():
    good = some(300, noise=0.2)
    assert thresholds.judge(good).recommended == "default"


def test_a_shift_of_all_logits_is_met_by_the_global_threshold():
    judgement = thresholds.judge(calibrated())
    assert judgement.recommended == "global"
    assert judgement.fitted.best_global > 0.6
    assert judgement.scores["global"].f2 > judgement.f2 + 0.05


def test_classes_of_their_own_calibration_are_met_by_thresholds_of_their_own():
    p = some(1500)
    p.logits[:] += np.array([-3, 3, -3, 3, -3, 3], np.float32)
    judgement = thresholds.judge(p)
    assert judgement.recommended == "per_class"
    assert judgement.scores["per_class"].f2 > judgement.scores["global"].f2 + 0.05


def test_the_judgement_holds_the_metrics_of_all_tiles():
    p = some()
    judgement = thresholds.judge(p)
    assert judgement.f2 == pytest.approx(metrics.f2(p.logits, p.target), abs=1e-12)
    assert judgement.bce == pytest.approx(metrics.bce(p.logits, p.target))
    assert judgement.accuracy == pytest.approx(metrics.accuracy_thresh(p.logits, p.target))
    assert judgement.mean_average_precision == pytest.approx(
        metrics.average_precision(p.logits, p.target).mean()
    )
    assert judgement.fitted.best_global == thresholds.best_global(p.logits, p.target)[0]
    pd.testing.assert_frame_equal(
        judgement.per_label, metrics.per_label(p.logits, p.target, CLASSES, 0.2)
    )


def test_the_order_of_rows_does_not_matter():
    p = some(101)
    order = np.random.default_rng(9).permutation(101)
    mixed = Predictions(
        tuple(p.names[i] for i in order), p.logits[order], p.target[order], CLASSES, {}
    )
    assert thresholds.to_json(thresholds.judge(p)) == thresholds.to_json(thresholds.judge(mixed))


def test_bootstrap_intervals_have_the_width_of_the_standard_error():
    values = np.random.default_rng(0).normal(size=(400, 1))
    low, high = np.quantile(thresholds.bootstrap(values, 0), (0.025, 0.975))
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_bootstrap_resamples_all_columns_together():
    values = np.random.default_rng(0).normal(size=(50, 1))
    means = thresholds.bootstrap(np.hstack([values, values + 1]), 0)
    assert means.shape == (1000, 2)
    np.testing.assert_allclose(means[:, 1] - means[:, 0], 1.0)
    assert means[:, 0].std() > 0.05


def test_predictions_without_targets_or_with_one_tile_cannot_be_judged():
    p = some(2)
    with pytest.raises(DataError, match="no targets"):
        thresholds.judge(replace(p, target=None))
    with pytest.raises(DataError, match="1 tiles"):
        thresholds.judge(Predictions(p.names[:1], p.logits[:1], p.target[:1], CLASSES, {}))


def test_tiles_without_a_target_are_left_out_and_counted(tmp_path):
    whole = some(40)
    known = np.arange(40) % 3 != 0
    # What stands where the target is unknown must not matter.
    target = np.where(known[:, None], whole.target, 1).astype(np.uint8)
    mixed = thresholds.judge(replace(whole, target=target, known=known))
    alone = thresholds.judge(
        Predictions(
            tuple(np.array(whole.names)[known]),
            whole.logits[known],
            whole.target[known],
            CLASSES,
            {},
        )
    )
    assert (mixed.tiles, mixed.unknown, alone.unknown) == (26, 14, 0)
    assert mixed.scores == alone.scores and mixed.bce == alone.bce
    assert thresholds.to_json(mixed) == thresholds.to_json(alone) | {"tiles_without_target": 14}
    assert "tiles_without_target" not in thresholds.to_json(alone)
    assert thresholds.table(mixed) == (
        thresholds.table(alone) + "\n14 tiles without a target were left out"
    )


def test_predictions_of_which_no_target_is_known_cannot_be_judged():
    p = replace(some(4), known=np.zeros(4, bool))
    with pytest.raises(DataError, match="the predictions have no targets"):
        thresholds.judge(p)


def test_labels_that_no_tile_has_are_null_and_not_nan_in_json(tmp_path):
    p = some(4)
    judgement = thresholds.judge(replace(p, target=np.zeros_like(p.target)))
    thresholds.write(judgement, str(tmp_path))
    assert json.loads((tmp_path / "metrics.json").read_text())["map"] is None
    assert "no tile has a label" in thresholds.table(judgement)


def test_three_files_are_written_and_agree_with_the_judgement(tmp_path):
    judgement = thresholds.judge(some())
    thresholds.write(judgement, str(tmp_path / "out"))
    cuts = json.loads((tmp_path / "out/thresholds.json").read_text())
    assert cuts == {
        "default": 0.2,
        "global": judgement.fitted.best_global,
        "per_class": dict(zip(CLASSES, judgement.fitted.per_class, strict=True)),
        "recommended": judgement.recommended,
    }
    assert json.loads((tmp_path / "out/metrics.json").read_text()) == thresholds.to_json(judgement)
    table = pd.read_csv(tmp_path / "out/per_label.csv")
    pd.testing.assert_frame_equal(table, judgement.per_label, check_dtype=False)


def test_the_table_shows_scores_and_what_to_use():
    judgement = thresholds.judge(calibrated())
    lines = thresholds.table(judgement).splitlines()
    assert f"{judgement.f2:.4f}" in lines[1] and "recommended" not in lines[1]
    assert f"{judgement.scores['global'].f2:.4f}" in lines[2] and lines[2].endswith("recommended")
    assert max(map(len, lines)) < 120 and "\n".join(lines).isascii()


@pytest.mark.parametrize("rule", ["default", "global", "per_class"])
def test_the_recommended_thresholds_are_read_in_class_order(tmp_path, rule):
    judgement = replace(thresholds.judge(some()), recommended=rule)
    thresholds.write(judgement, str(tmp_path))
    read = thresholds.read_thresholds(str(tmp_path / "thresholds.json"), CLASSES[::-1])
    fitted = judgement.fitted
    expected = {
        "default": [0.2] * 6,
        "global": [fitted.best_global] * 6,
        "per_class": fitted.per_class[::-1].tolist(),
    }
    assert (read.dtype, read.tolist()) == (np.float64, expected[rule])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "there is no thresholds file"),
        ("{", "not a thresholds file"),
        ("[0.2]", "not a thresholds file"),
        ('{"per_class": {"a": 0.1, "b": 0.1}}', "not a thresholds file"),
        ('{"recommended": "best", "per_class": {"a": 0.1, "b": 0.1}}', "not a thresholds file"),
        (
            '{"recommended": "per_class", "per_class": {"a": null, "b": 0.1}}',
            "not a thresholds file",
        ),
        ('{"recommended": "per_class", "per_class": {"a": 0.1}}', '"b" is missing'),
        ('{"recommended": "default", "default": 0.2, "per_class": {"a": 0.1}}', '"b" is missing'),
        (
            '{"recommended": "per_class", "per_class": {"a": 0.1, "b": 0.1, "c": 0.1}}',
            '"c" is unknown',
        ),
        ('{"recommended": "per_class", "per_class": {"a": 0.1, "b": 7}}', "outside 0 to 1"),
        ('{"recommended": "per_class", "per_class": {"a": 0.1, "b": NaN}}', "outside 0 to 1"),
    ],
)
def test_a_thresholds_file_that_cannot_be_used_is_a_data_error(tmp_path, content, sentence):
    path = tmp_path / "thresholds.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=sentence):
        thresholds.read_thresholds(str(path), ["a", "b"])
