"""Measures of decided labels against scikit-learn, with rows and columns without any label."""

import warnings

import numpy as np
import pytest
from sklearn import metrics as sklearn

from raytrain.evaluation import measures, metrics

AVERAGES = {"tiles": "samples", "micro": "micro", "macro": "macro"}


@pytest.fixture(params=range(6))
def case(request):
    generator = np.random.default_rng(request.param)
    rows, labels = int(generator.integers(2, 60)), int(generator.integers(2, 20))
    target = (generator.random((rows, labels)) < generator.random(labels)).astype(np.uint8)
    predicted = generator.random((rows, labels)) < 0.4
    target[0] = 0  # an empty row on both sides, and one on each
    predicted[0] = False
    target[-1] = 0
    target[:, 0] = 0  # likewise of columns
    predicted[:, 0] = False
    predicted[:, -1] = False
    return predicted, target


@pytest.mark.parametrize("beta", [0.5, 1, 2, 3.7])
@pytest.mark.parametrize("average", AVERAGES)
def test_f_beta_is_that_of_scikit_learn(case, beta, average):
    predicted, target = case
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = sklearn.fbeta_score(
            target, predicted, beta=beta, average=AVERAGES[average], zero_division=0
        )
    assert measures.fbeta(predicted, target, beta, average) == pytest.approx(expected, abs=1e-9)


def test_the_other_measures_are_those_of_scikit_learn(case):
    predicted, target = case
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jaccard = sklearn.jaccard_score(target, predicted, average="samples", zero_division=0)
    assert measures.jaccard(predicted, target) == pytest.approx(jaccard, abs=1e-9)
    assert measures.hamming_loss(predicted, target) == pytest.approx(
        sklearn.hamming_loss(target, predicted), abs=1e-9
    )
    assert measures.exact_match(predicted, target) == pytest.approx(
        sklearn.accuracy_score(target, predicted), abs=1e-9
    )


def test_the_curve_of_a_label_is_that_of_scikit_learn():
    generator = np.random.default_rng(0)
    scores = np.round(generator.normal(size=200), 1)  # with ties
    true = generator.random(200) < 0.3
    precision, recall = metrics.precision_recall(scores, true)
    expected_precision, expected_recall, _ = sklearn.precision_recall_curve(true, scores)
    # Theirs ends with precision 1 at recall 0, and goes the other way.
    np.testing.assert_allclose(precision, expected_precision[::-1][1:], atol=1e-12)
    np.testing.assert_allclose(recall, expected_recall[::-1][1:], atol=1e-12)


def test_every_measure_has_a_name():
    names = measures.all_of(np.ones((2, 3), bool), np.ones((2, 3), np.uint8))
    assert set(names) == {
        *("f1_tiles", "f1_micro", "f1_macro", "f2_tiles", "f2_micro", "f2_macro"),
        *("jaccard", "hamming_loss", "exact_match"),
    }
