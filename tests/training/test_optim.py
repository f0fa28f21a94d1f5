"""Schedule and rates against the numbers of fastai 1.0.21 and 1.0.61."""

import pytest
import torch

from raytrain.training import models, optim

LESSON_STEPS = 2530
GOLDEN_2018 = {
    0: (0.0004, 0.95), 100: (0.0016648221, 0.936825), 379: (0.0051936759, 0.900066), 759: (0.01, 0.85),
    1000: (0.0095500023, 0.8545), 1500: (0.006267675, 0.887323), 2000: (0.0020517851, 0.929482),
    2529: (4.7866848e-8, 0.95),
}  # fmt: skip
GOLDEN_2019 = {100: (0.00080533879, 0.945778), 379: (0.0051900661, 0.900103), 759: (0.01, 0.85)}


@pytest.mark.parametrize(("schedule", "golden"), [("one-cycle-2018", GOLDEN_2018), ("one-cycle-2019", GOLDEN_2019)])
def test_one_cycle_meets_the_points_of_the_lesson(schedule, golden):
    for step, (lr, momentum) in golden.items():
        share, beta1 = optim.one_cycle(step, LESSON_STEPS, schedule)
        assert 0.01 * share == pytest.approx(lr, rel=1e-6)
        assert beta1 == pytest.approx(momentum, abs=1e-6)


def test_rates_spread_over_the_layer_groups_as_the_lesson_did():
    assert optim.group_rates((1e-5, 0.002), 3, "one-cycle-2018") == pytest.approx([1e-5, 1.41421e-4, 2e-3], rel=1e-5)
    assert optim.group_rates((1e-5, 0.001), 3, "one-cycle-2019") == pytest.approx([1e-5, 1e-4, 1e-3])
    assert optim.group_rates(0.03, 3, "one-cycle-2018") == pytest.approx([0.01, 0.01, 0.03])
    assert optim.group_rates(0.03, 3, "one-cycle-2019") == pytest.approx([0.003, 0.003, 0.03])


def test_the_optimizer_holds_only_what_trains_and_follows_the_schedule():
    model = models.build("resnet18", 3, 0.5)
    models.set_frozen(model, True)
    optimizer = optim.make_optimizer(model, [0.1, 0.2, 0.3], wd=0.01)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}
    lrs, momentum = optim.set_step(optimizer, 0, 100, "one-cycle-2018")
    assert lrs == pytest.approx([0.1 / 25, 0.2 / 25, 0.3 / 25])
    assert momentum == 0.95 and optimizer.param_groups[0]["betas"] == (0.95, 0.99)


def test_weight_decay_is_decoupled_and_covers_batch_norm():
    model = models.build("resnet18", 3, 0.5)
    optimizer = optim.make_optimizer(model, [0.1, 0.1, 0.1], wd=0.5)
    weight = model.body.bn1.weight
    before = weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), before * (1 - 0.1 * 0.5))
