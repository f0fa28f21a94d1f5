"""Schedule, rates and the update, against fastai 1.0.21 and 1.0.61, torch's own schedule and a scalar Adam.

fastai 1 counts a1 = int(0.3 n) batches up from 1/25 of the peak and n - a1 down to 1/(25e4) of it, along
cos(s, e, p) = e + (s - e)/2 (cos(pi p) + 1); beta1 goes 0.95, 0.85, 0.95. Its warm-up is linear in 1.0.21.
"""

import math

import numpy as np
import pytest
import torch

from raytrain.config import Train
from raytrain.models import layer_groups, networks
from raytrain.training import optim

PRESETS = ("one-cycle-2018", "one-cycle-2019")
# Five epochs of the lesson: 506 batches of 64 tiles each. Warm-up: int(0.3 · 2530) = 759 batches.
LESSON_STEPS, LESSON_WARMUP = 2530, 759
# (lr, beta1) at a peak of 0.01, as both versions of fastai compute them with the formulas above, to the printed digits.
EARLY_2018 = {100: (0.0016648221, 0.936825), 379: (0.0051936759, 0.900066)}
EARLY_2019 = {100: (0.00080533879, 0.945778), 379: (0.0051900661, 0.900103)}
BOTH = {
    0: (0.0004, 0.95),
    759: (0.01, 0.85),
    1000: (0.0095500023, 0.8545),
    1500: (0.006267675, 0.887323),
    2000: (0.0020517851, 0.929482),
    2529: (4.7866848e-8, 0.95),
}


def schedule_of(steps, preset):
    """Share of the peak and beta1 of every batch, as the implementation gives them: (steps, 2)."""
    return np.array([optim.one_cycle(step, steps, preset) for step in range(steps)])


def closed_form(steps, warmup, preset):
    """The same from fastai's formulas, for all batches at once."""

    def cosine(s, e, p):
        return e + (s - e) / 2 * (np.cos(np.pi * p) + 1)

    def linear(s, e, p):
        return s + p * (e - s)

    t = np.arange(steps)
    up, rise, fall = (
        linear if preset == PRESETS[0] else cosine,
        t / warmup,
        (t - warmup) / (steps - warmup),
    )
    share = np.where(t <= warmup, up(1 / 25, 1, rise), cosine(1, 1 / (25 * 1e4), fall))
    return np.stack(
        [share, np.where(t <= warmup, up(0.95, 0.85, rise), cosine(0.85, 0.95, fall))], 1
    )


@pytest.mark.parametrize(
    ("preset", "golden"), [(PRESETS[0], EARLY_2018 | BOTH), (PRESETS[1], EARLY_2019 | BOTH)]
)
def test_one_cycle_meets_the_points_of_the_lesson(preset, golden):
    for step, (lr, momentum) in golden.items():
        share, beta1 = optim.one_cycle(step, LESSON_STEPS, preset)
        assert float(f"{0.01 * share:.8g}") == lr, step
        assert round(beta1, 6) == momentum, step


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    ("steps", "warmup"), [(LESSON_STEPS, LESSON_WARMUP), (4, 1), (7, 2), (10, 3), (101, 30)]
)
def test_one_cycle_is_fastais_formula_at_every_batch(preset, steps, warmup):
    wanted = closed_form(steps, warmup, preset)
    np.testing.assert_allclose(schedule_of(steps, preset), wanted, rtol=1e-12, atol=1e-15)
    assert wanted[warmup].tolist() == pytest.approx([1, 0.85])


@pytest.mark.parametrize("preset", PRESETS)
def test_a_stage_too_short_for_a_warmup_starts_below_its_peak_all_the_same(preset):
    # int(0.3 n) = 0: fastai 1 takes one batch from 1/25 to the peak, then cos(1, 1/(25e4), p) at p = 1/n.
    points = [[1 / 25, 0.95], [1, 0.85], [0.75 + 0.25 / 25e4, 0.875]]
    for steps in (1, 2, 3):
        np.testing.assert_allclose(
            schedule_of(steps, preset), points[:steps], rtol=1e-12, atol=1e-15
        )


@pytest.mark.parametrize(
    ("preset", "strategy", "until"), [(PRESETS[0], "linear", 760), (PRESETS[1], "cos", 2530)]
)
def test_one_cycle_is_torchs_where_the_two_agree(preset, strategy, until):
    # torch's phases end at batches pct_start · total - 1 and total - 1, so that the last batch is at the floor; fastai
    # would reach it in batch n, which it does not run. With total = n + 1 and pct_start · total = a1 + 1 the phases
    # coincide. torch's "linear" is linear on the way down too, so that only its warm-up is 1.0.21's.
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        1.0,
        total_steps=LESSON_STEPS + 1,
        pct_start=(LESSON_WARMUP + 1) / (LESSON_STEPS + 1),
        anneal_strategy=strategy,
        cycle_momentum=True,
        base_momentum=0.85,
        max_momentum=0.95,
        div_factor=25.0,
        final_div_factor=1e4,
        three_phase=False,
    )
    wanted = []
    for _ in range(until):
        wanted.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"][0]))
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose(
        schedule_of(LESSON_STEPS, preset)[:until], wanted, rtol=1e-9, atol=1e-12
    )


def test_rates_spread_over_the_layer_groups_as_the_lesson_did():
    # A number: the others get a third in 1.0.21 and a tenth in 1.0.61. A pair: a (b/a)^(i/2) in both.
    assert optim.group_rates(0.03, 3, PRESETS[0]) == pytest.approx([0.01, 0.01, 0.03], rel=1e-12)
    assert optim.group_rates(0.03, 3, PRESETS[1]) == pytest.approx([0.003, 0.003, 0.03], rel=1e-12)
    for preset in PRESETS:
        rates = [optim.group_rates(pair, 3, preset) for pair in ((1e-5, 0.002), (1e-5, 0.001))]
        assert [[float(f"{rate:.6g}") for rate in r] for r in rates] == [
            [1e-5, 1.41421e-4, 2e-3],
            [1e-5, 1e-4, 1e-3],
        ]


def test_the_optimizer_holds_only_what_trains():
    model = networks.build("resnet18", 3, 0.5)
    layer_groups.set_frozen(model, 2)
    optimizer = optim.make_optimizer(model, [0.1, 0.2, 0.3], wd=0.01)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("preset", PRESETS)
def test_each_batch_scales_every_groups_peak_and_moves_beta1_alone(preset):
    peaks = [1e-5, 1.4e-4, 2e-3]
    optimizer = optim.make_optimizer(networks.build("resnet18", 3, 0.5), peaks, wd=0.01)
    for step, (share, momentum) in enumerate(closed_form(40, 12, preset)):
        returned = optim.set_step(optimizer, step, 40, preset)
        groups = optimizer.param_groups
        assert [group["lr"] for group in groups] == pytest.approx(
            [peak * share for peak in peaks], rel=1e-12
        )
        assert returned == ([group["lr"] for group in groups], groups[0]["betas"][0])
        assert [group["betas"] for group in groups] == [
            (pytest.approx(momentum, rel=1e-12), 0.99)
        ] * 3


def test_weight_decay_is_decoupled_and_covers_batch_norm():
    model = networks.build("resnet18", 3, 0.5)
    optimizer = optim.make_optimizer(model, [0.1, 0.1, 0.1], wd=0.5)
    weight = model.body.bn1.weight
    before = weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), before * (1 - 0.1 * 0.5))


@pytest.mark.parametrize("preset", PRESETS)
def test_steps_are_adam_with_decoupled_decay_of_the_lesson(preset):
    # Loshchilov & Hutter 2019 in scalars: p <- p (1 - lr wd), then Adam with the batch's own beta1, also in its bias
    # correction; beta2 0.99, eps 1e-8, wd 0.01. Gradients of 1e-8 are of the size of eps, so that it shows.
    steps, warmup, peaks = 12, 3, [0.001, 0.003, 0.01]
    model = networks.build("resnet18", 3, 0.5).double()
    optimizer = optim.make_optimizer(model, peaks, wd=Train().wd)
    # The last parameter of a group is a bias; the first ones are of a convolution, or of BatchNorm in the head.
    watched = [
        p for group in optimizer.param_groups for p in (group["params"][0], group["params"][-1])
    ]
    values = [p.flatten()[0].item() for p in watched]
    first, second = [0.0] * 6, [0.0] * 6
    for step, (share, beta1) in enumerate(closed_form(steps, warmup, preset).tolist()):
        optim.set_step(optimizer, step, steps, preset)
        for i, p in enumerate(watched):
            gradient = math.cos(3 * step + i) * (1, 1e-8)[i % 2]
            p.grad = torch.full_like(p, gradient)
            first[i] = beta1 * first[i] + (1 - beta1) * gradient
            second[i] = 0.99 * second[i] + (1 - 0.99) * gradient**2
            lr, mean, square = (
                peaks[i // 2] * share,
                first[i] / (1 - beta1 ** (step + 1)),
                second[i] / (1 - 0.99 ** (step + 1)),
            )
            values[i] = values[i] * (1 - lr * 0.01) - lr * mean / (math.sqrt(square) + 1e-8)
        optimizer.step()
        assert [p.flatten()[0].item() for p in watched] == pytest.approx(
            values, rel=1e-11, abs=1e-13
        )
