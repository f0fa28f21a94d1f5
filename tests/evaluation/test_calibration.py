import numpy as np
import pytest

from raytrain.evaluation import calibration, metrics


def world(tiles, temperature, seed=0):
    """Logits whose labels are drawn with the probabilities of logits / temperature."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(-1.0, 3.0, size=(tiles, 5))
    true = generator.random(logits.shape) < metrics.sigmoid(logits / temperature)
    return logits, true.astype(np.uint8)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_of_a_known_world_is_found(temperature):
    logits, target = world(20_000, temperature)
    assert calibration.temperature(logits, target) == pytest.approx(temperature, rel=0.03)


def test_no_other_temperature_has_a_lower_cross_entropy():
    logits, target = world(300, 1.7)
    best = calibration.temperature(logits, target)
    at_best = metrics.bce(logits / best, target)
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert at_best < metrics.bce(logits / (best * factor), target)


def test_of_two_logits_the_temperature_has_a_closed_form():
    """Three of four labels with logit x are true, and one of four with -x: at T = x / ln 3 the probability is 3/4."""
    x = 2.0
    logits = np.array([[x], [x], [x], [x], [-x], [-x], [-x], [-x]])
    target = np.array([[1], [1], [1], [0], [0], [0], [0], [1]])
    assert calibration.temperature(logits, target) == pytest.approx(x / np.log(3), rel=1e-5)


def test_labels_without_a_fault_or_without_sense_end_at_the_limits():
    logits = np.array([[4.0], [-4.0]])
    assert calibration.temperature(logits, np.array([[1], [0]])) == calibration.LOWEST
    assert calibration.temperature(logits, np.array([[0], [1]])) == calibration.HIGHEST


def test_reliability_of_hand_counted_bins():
    probability = np.array([[0.05, 0.05, 0.95, 1.0]])
    found = calibration.reliability(probability, np.array([[0, 1, 1, 1]]))
    assert found.count.tolist() == [2, *[0] * 13, 2]
    assert found.predicted[0] == pytest.approx(0.05)
    assert found.observed[0] == pytest.approx(0.5)
    assert np.isnan(found.predicted[1])
    # |0.5 - 0.05| and |1 - 0.975|, half of the decisions each.
    assert found.error == pytest.approx((0.45 + 0.025) / 2)


def test_calibration_mends_the_error():
    logits, target = world(20_000, 2.0)
    before = calibration.reliability(metrics.sigmoid(logits), target)
    found = calibration.temperature(logits, target)
    after = calibration.reliability(metrics.sigmoid(logits / found), target)
    assert before.error > 0.05 > 0.01 > after.error
