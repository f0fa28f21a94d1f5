"""Pictures of how labels are decided: they differ when the data differ, and survive odd data."""

import warnings

import numpy as np
import pytest

from raytrain.evaluation.calibration import reliability
from raytrain.report import canvas, curves

LABELS = ["_cloud", "$water$", "road", "x" * 90, "mine", "bare"]
OWN = np.array([0.1, 0.3, 0.5, 0.7, 0.9, 0.2])
PROBABILITY = np.random.default_rng(0).random((50, 6))
TARGET = (PROBABILITY > 0.5).astype(np.uint8)


def curves_of(seed):
    generator = np.random.default_rng(seed)
    found = {label: (generator.random(9), np.linspace(0, 1, 9)) for label in LABELS}
    return found, {label: 0.1 * i for i, label in enumerate(LABELS)}


@pytest.mark.parametrize("theme", [canvas.LIGHT, canvas.DARK])
def test_pictures_differ_when_the_data_differ(theme):
    good, bad = reliability(PROBABILITY, TARGET), reliability(1 - PROBABILITY, TARGET)
    draws = {
        curves.thresholds: ((LABELS, OWN, OWN / 2, 0.4), (LABELS, OWN / 2, OWN, 0.4)),
        curves.reliability: ((good, bad), (bad, good)),
        curves.precision_recall: (curves_of(0), curves_of(1)),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a label without its name in the legend, among others
        for draw, (first, other) in draws.items():
            content = draw(*first, theme)
            assert content.startswith(b"\x89PNG") and len(content) > 5000
            assert content == draw(*first, theme) != draw(*other, theme)


def test_a_label_alone_and_no_curve_at_all_are_drawn():
    one, averages = curves_of(0)
    assert curves.precision_recall({"_cloud": one["_cloud"]}, averages)
    assert curves.precision_recall({}, {})
    assert curves.thresholds(["_cloud"], OWN[:1], OWN[:1], 0.2)
    empty = reliability(np.zeros((3, 2)), np.zeros((3, 2)))
    assert curves.reliability(empty, empty)
