"""Losses against closed forms and the formulas of their papers."""

import math

import numpy as np
import pytest
import torch

from raytrain.config import Train
from raytrain.data.targets.multi_label import balanced_weights
from raytrain.tasks.multi_label import LOSSES, asymmetric, batch_loss, bce, soft_f2

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [-3.0, 0.0, 1.0]], dtype=torch.float64)
TARGET = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]], dtype=torch.float64)


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def per_tile(term):
    return [
        sum(term(sigmoid(logit), t) for logit, t in zip(row, targets, strict=True)) / len(row)
        for row, targets in zip(LOGITS.tolist(), TARGET.tolist(), strict=True)
    ]


def test_cross_entropy_is_the_closed_form():
    wanted = per_tile(lambda p, t: -(t * math.log(p) + (1 - t) * math.log(1 - p)))
    assert bce(LOGITS, TARGET).tolist() == pytest.approx(wanted, rel=1e-12)


def test_asymmetric_loss_is_the_papers_formula():
    def term(p, t):
        q = max(p - 0.05, 0)
        return -(t * math.log(p) + (1 - t) * q**4 * math.log(1 - q))

    assert asymmetric(LOGITS, TARGET).tolist() == pytest.approx(per_tile(term), rel=1e-12)


def test_asymmetric_loss_forgets_negatives_below_the_margin():
    logits = torch.tensor([[-3.0]], requires_grad=True)  # p = 0.047
    asymmetric(logits, torch.zeros(1, 1)).sum().backward()
    assert logits.grad.item() == 0


def test_soft_f2_of_certain_outputs_is_one_minus_f2():
    from raytrain.evaluation import metrics

    target = torch.randint(0, 2, (40, 6), generator=torch.Generator().manual_seed(0))
    target[:, 0] = 1
    decided = torch.randint(0, 2, (40, 6), generator=torch.Generator().manual_seed(1))
    decided[:, 1] = 1
    f2 = metrics.f2_per_tile(decided.numpy().astype(bool), target.numpy().astype(np.uint8))
    found = soft_f2((decided.double() * 2 - 1) * 60, target.double())
    np.testing.assert_allclose(found.numpy(), 1 - f2, atol=1e-8)


def test_label_smoothing_moves_targets_towards_one_half():
    loss_sum = batch_loss(Train(label_smoothing=0.2))
    wanted = bce(LOGITS, TARGET * 0.8 + 0.1).sum()
    torch.testing.assert_close(loss_sum(LOGITS, TARGET), wanted)
    assert loss_sum(LOGITS, TARGET) != batch_loss(Train())(LOGITS, TARGET)


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_of_a_batch_is_the_sum_over_its_tiles_whatever_the_split(name):
    loss_sum = batch_loss(Train(loss=name))
    whole = loss_sum(LOGITS, TARGET)
    torch.testing.assert_close(
        loss_sum(LOGITS[:1], TARGET[:1]) + loss_sum(LOGITS[1:], TARGET[1:]), whole
    )


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_down_the_gradient_lowers_the_loss(name):
    logits = LOGITS.clone().requires_grad_()
    loss = LOSSES[name](logits, TARGET).sum()
    loss.backward()
    assert LOSSES[name](LOGITS - 0.05 * logits.grad, TARGET).sum() < loss
    assert bool(torch.autograd.gradcheck(lambda x: LOSSES[name](x, TARGET), (logits,)))


def test_low_precision_logits_are_lifted_to_the_type_of_the_target():
    loss_sum = batch_loss(Train())
    assert loss_sum(LOGITS.bfloat16(), TARGET.float()).dtype == torch.float32
    assert loss_sum(LOGITS.float(), TARGET).dtype == torch.float64


def test_soft_f2_of_a_tile_without_labels_and_certain_of_it_is_a_number():
    logits = torch.full((1, 3), -1000.0, dtype=torch.float64, requires_grad=True)
    loss = soft_f2(logits, torch.zeros(1, 3, dtype=torch.float64))
    loss.sum().backward()
    assert loss.item() == 1 and bool(logits.grad.isfinite().all())


def test_weights_are_a_factor_on_the_positive_term():
    weights = torch.tensor([1.0, 5.0, 20.0], dtype=torch.float64)
    one = torch.ones(3, dtype=torch.float64)
    for loss in (bce, asymmetric):
        assert torch.equal(loss(LOGITS, TARGET, one), loss(LOGITS, TARGET))
    absent = torch.zeros_like(TARGET)
    assert torch.equal(bce(LOGITS, absent, weights), bce(LOGITS, absent))
    present = torch.ones_like(TARGET)
    each = torch.nn.functional.softplus(-LOGITS)  # -log p
    torch.testing.assert_close(bce(LOGITS, present, weights), (weights * each).mean(1))
    torch.testing.assert_close(asymmetric(LOGITS, present, weights), (weights * each).mean(1))


def test_balanced_weights_are_negatives_by_positives_up_to_a_limit():
    target = np.zeros((100, 4), np.uint8)
    target[:50, 0] = target[:10, 1] = target[:1, 2] = 1
    assert balanced_weights(target).tolist() == [1, 9, 20, 20]
