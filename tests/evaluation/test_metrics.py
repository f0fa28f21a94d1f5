import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import (
    average_precision_score,
    fbeta_score,
    log_loss,
    precision_recall_fscore_support,
)

from raytrain.evaluation import metrics

BITS = st.integers(1, 12).flatmap(
    lambda k: st.integers(1, 20).flatmap(
        lambda n: st.tuples(*[arrays(np.uint8, (n, k), elements=st.integers(0, 1))] * 2)
    )
)


def draw(rows=200, classes=17, seed=0):
    generator = np.random.default_rng(seed)
    target = (generator.random((rows, classes)) < np.geomspace(0.9, 0.02, classes)).astype(np.uint8)
    logits = generator.normal(size=target.shape) + np.where(target, 1.0, -2.0)
    return logits.astype(np.float32), target


def bits(word):
    return np.array([[int(bit) for bit in word]])


@pytest.mark.parametrize(
    ("target", "predicted", "expected"),
    [
        ("110", "101", 0.5),
        ("110", "111", 0.909091),
        ("1110", "1100", 0.714286),
        ("10", "00", 0.0),
        ("00", "00", 0.0),
    ],
)
def test_f2_of_a_tile_has_the_values_that_fastai_gives(target, predicted, expected):
    assert metrics.f2_per_tile(bits(predicted) == 1, bits(target)) == pytest.approx(
        [expected], abs=1e-6
    )


@settings(deadline=None)  # the machine may be busy
@given(BITS)
def test_f2_equals_sklearns_mean_over_samples(pair):
    predicted, target = pair
    expected = fbeta_score(
        np.c_[target, target * 0],
        np.c_[predicted, predicted * 0],
        beta=2,
        average="samples",
        zero_division=0,
    )
    assert metrics.f2_per_tile(predicted == 1, target).mean() == pytest.approx(expected, abs=1e-8)


def test_f2_is_the_closed_form_of_counts():
    logits, target = draw()
    predicted = metrics.sigmoid(logits) > 0.2
    tp = (predicted & (target == 1)).sum(1)
    expected = (5 * tp / (4 * target.sum(1) + predicted.sum(1)).clip(1)).mean()
    assert metrics.f2(logits, target) == pytest.approx(expected, abs=1e-8)


def test_a_probability_that_equals_the_threshold_is_negative():
    target = np.array([[1]])
    at = np.zeros((1, 1), np.float32)
    assert metrics.sigmoid(at)[0, 0] == 0.5
    assert metrics.f2(at, target, 0.5) == 0
    assert metrics.accuracy_thresh(at, target, 0.5) == 0
    assert metrics.f2(at, target, np.nextafter(0.5, 0)) == pytest.approx(1)


def test_the_threshold_is_02_unless_given():
    target, above, below = (
        np.array([[1]]),
        np.full((1, 1), -1.38),
        np.full((1, 1), -1.39),
    )  # sigmoid(-1.3863) = 0.2
    assert (metrics.f2(above, target), metrics.f2(below, target)) == pytest.approx((1, 0))
    assert (metrics.accuracy_thresh(above, target), metrics.accuracy_thresh(below, target)) == (
        1,
        0,
    )


def test_every_class_has_its_own_threshold():
    logits, target = draw()
    cuts = np.linspace(0.05, 0.6, 17)
    expected = metrics.f2_per_tile(
        np.stack([metrics.sigmoid(logits[:, k]) > cuts[k] for k in range(17)], 1), target
    ).mean()
    assert metrics.f2(logits, target, cuts) == expected
    assert metrics.f2(logits, target, cuts) != metrics.f2(logits, target, cuts[::-1])


def test_logits_passed_as_predictions_are_refused():
    logits, target = draw()
    with pytest.raises(TypeError, match="float32, not bool"):
        metrics.f2_per_tile(logits, target)


def test_sigmoid_is_exact_and_silent_at_both_ends():
    with np.errstate(all="raise", under="ignore"):
        assert metrics.sigmoid(np.array([-1e4, -40.0, 0.0, 1e4])) == pytest.approx(
            [0, np.exp(-40), 0.5, 1], rel=1e-12
        )


def test_sigmoid_of_float32_is_computed_in_float64():
    x = np.array([-1.3862944], np.float32)
    assert metrics.sigmoid(x).dtype == np.float64
    assert metrics.sigmoid(x)[0] == pytest.approx(1 / (1 + np.exp(-float(x[0]))), rel=1e-15)


def test_bce_equals_the_mean_log_loss_of_each_class():
    logits, target = draw()
    expected = np.mean(
        [log_loss(target[:, k], metrics.sigmoid(logits[:, k]), labels=[0, 1]) for k in range(17)]
    )
    assert metrics.bce(logits, target) == pytest.approx(expected, rel=1e-9)


def test_bce_stays_finite_where_the_network_is_sure_and_wrong():
    assert metrics.bce(np.array([[1000.0, -1000.0]]), np.array([[0, 0]])) == 500


def test_accuracy_is_the_share_of_right_decisions():
    logits = np.array([[3.0, -3.0, -3.0], [3.0, 3.0, -3.0]])
    assert metrics.accuracy_thresh(logits, np.array([[1, 0, 1], [1, 0, 0]])) == pytest.approx(4 / 6)


def test_average_precision_equals_sklearns_ties_included():
    logits, target = draw()
    for scores in (logits, logits.round(0)):
        expected = [average_precision_score(target[:, k], scores[:, k]) for k in range(17)]
        assert metrics.average_precision(scores, target) == pytest.approx(expected, abs=1e-12)


def test_average_precision_is_nan_for_a_class_without_a_positive():
    logits, target = draw(classes=3)
    target[:, 1] = 0
    assert np.isnan(metrics.average_precision(logits, target)).tolist() == [False, True, False]


def test_per_label_equals_sklearns_report():
    logits, target = draw()
    cuts = np.linspace(0.1, 0.4, 17)
    table = metrics.per_label(logits, target, [f"label{k}" for k in range(17)], cuts)
    precision, recall, f2, count = precision_recall_fscore_support(
        target, metrics.sigmoid(logits) > cuts, beta=2
    )
    assert list(table) == [
        "label",
        "count",
        "precision",
        "recall",
        "f2",
        "average_precision",
        "threshold",
    ]
    assert list(table["label"])[:2] == ["label0", "label1"]
    assert list(table["count"]) == list(count)
    expected = np.stack([precision, recall, f2, metrics.average_precision(logits, target), cuts], 1)
    np.testing.assert_allclose(table.iloc[:, 2:].to_numpy(float), expected, atol=1e-12)


def test_per_label_says_nothing_about_a_label_that_nobody_named():
    table = metrics.per_label(np.full((4, 1), -9.0), np.zeros((4, 1), np.uint8), ["absent"])
    assert table[["precision", "recall", "f2", "average_precision"]].isna().all(axis=None)


def test_a_label_that_is_never_found_has_f2_zero():
    row = metrics.per_label(np.full((4, 1), -9.0), np.ones((4, 1), np.uint8), ["missed"]).iloc[0]
    assert (row["recall"], row["f2"], row["count"]) == (0, 0, 4)
