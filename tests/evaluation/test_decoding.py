"""Expected-F decoding against exhaustive search over all label sets."""

from itertools import product

import numpy as np
import pytest
from sklearn.metrics import fbeta_score

from raytrain.evaluation import decoding, measures


def sets(labels):
    """Every set of labels, bool (2^K, K)."""
    return np.array(list(product((False, True), repeat=labels)))


def expected(probability, beta):
    """Expected F-beta of every answer, (2^K,): over all truths, of independent labels (K,)."""
    everything = sets(len(probability))
    chance = np.where(everything, probability, 1 - probability).prod(axis=1)
    tp = everything.astype(np.int64) @ everything.T
    size = everything.sum(axis=1)
    scores = measures.fbeta_of_counts(tp, size[:, None], size[None, :], beta)  # answer, truth
    return scores @ chance


@pytest.mark.parametrize("labels", [1, 2, 3, 5, 8, 10])
@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_it_equals_exhaustive_search(labels, beta):
    generator = np.random.default_rng(labels)
    everything = sets(labels)
    for power in (0.5, 3.0):
        probability = generator.random((4, labels)) ** power
        found = decoding.best_sets(probability, beta)
        by_size = decoding.expected_by_size(-np.sort(-probability, axis=1), beta)
        for row in range(4):
            scores = expected(probability[row], beta)
            chosen = int(np.flatnonzero((everything == found[row]).all(axis=1))[0])
            assert scores[chosen] == pytest.approx(scores.max(), abs=1e-12)
            assert by_size[row].max() == pytest.approx(scores.max(), abs=1e-12)


def test_it_never_lowers_the_expected_f2():
    generator = np.random.default_rng(1)
    everything = sets(7)
    probability = generator.random((40, 7)) ** 2
    found = decoding.best_sets(probability)
    for row in range(40):
        scores = expected(probability[row], 2.0)
        of = {
            tuple(answer): score for answer, score in zip(everything.tolist(), scores, strict=True)
        }
        for threshold in (0.1, 0.2, 0.5):
            assert of[tuple(found[row])] >= of[tuple(probability[row] > threshold)] - 1e-12


def test_a_certain_label_set_is_its_own_answer():
    truth = np.array([[1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    assert (decoding.best_sets(truth) == (truth > 0)).all()


def test_the_expectation_is_that_of_drawn_tiles():
    generator = np.random.default_rng(3)
    ranked = -np.sort(-generator.random(6))
    truth = generator.random((200_000, 6)) < ranked
    for size in (1, 3, 6):
        answer = np.broadcast_to(np.arange(6) < size, truth.shape)
        drawn = fbeta_score(truth, answer, beta=2, average="samples", zero_division=0)
        assert decoding.expected_by_size(ranked[None], 2.0)[0, size] == pytest.approx(
            drawn, abs=0.003
        )


def test_many_labels_are_decoded_in_blocks_alike(monkeypatch):
    probability = np.random.default_rng(4).random((50, 30)) ** 4
    whole = decoding.best_sets(probability)
    monkeypatch.setattr(decoding, "_BLOCK", 7 * 31**2)
    assert (decoding.best_sets(probability) == whole).all()


def test_no_tiles_and_no_chance():
    assert decoding.best_sets(np.zeros((0, 4))).shape == (0, 4)
    assert not decoding.best_sets(np.zeros((2, 4))).any()
