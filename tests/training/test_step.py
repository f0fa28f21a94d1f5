"""One step: passes, mixup, clipping, averaging, depths of freezing, each against what it should be."""

import numpy as np
import pytest
import torch

from raytrain.config import LAYER_GROUPS, load_recipe
from raytrain.training import checkpoint, models, optim, tiles, transforms
from raytrain.training.ema import Ema
from raytrain.training.step import Source, Stepper, Worker

ROWS = np.arange(12)
CHANCE = np.random.default_rng(0)
SOURCE = Source(
    CHANCE.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8), CHANCE.integers(0, 2, (12, 5), dtype=np.uint8)
)
STAGE = {"size": 32, "epochs": 3, "freeze": False, "lr": 0.01}


def stepper(stage=STAGE, model=None, worker=None, ema=None, **train):
    """A step of a ResNet-18 in fp64, without anything that depends on the tiles of a pass: no dropout, fixed statistics."""
    settings = {"precision": "fp64", "batch_size": 12, **train}
    architecture = {"arch": "resnet18", "dropout": 0.0, "batch_norm": "fixed"}
    recipe = load_recipe("smoke", {"model": architecture, "train": settings, "stages": [stage]})
    torch.manual_seed(0)
    model = model or models.build("resnet18", 5, 0.0, "fixed").double()
    models.set_frozen(model, recipe.stages[0].frozen_groups)
    optimizer = optim.make_optimizer(model, [0.01] * LAYER_GROUPS, recipe.train.wd)
    return Stepper(recipe, 1, model.train(), optimizer, SOURCE, worker or Worker(), ema=ema)


def gradients(one, rows=ROWS, epoch=1):
    """Gradients at the moment of the update."""
    found = []
    one.optimizer.register_step_pre_hook(
        lambda *args: found.extend(p.grad.clone() for p in one.network.parameters() if p.grad is not None)
    )
    one(rows, epoch, 0)
    return found


def largest(tensors):
    return max(float(t.abs().max()) for t in tensors)


@pytest.mark.parametrize("passes", [2, 3, 5])
def test_accumulated_passes_give_the_gradient_of_the_whole_batch(passes):
    whole, parts = gradients(stepper()), gradients(stepper(accumulate=passes))
    assert largest([a - b for a, b in zip(whole, parts, strict=True)]) < 1e-12 * largest(whole)


@pytest.mark.parametrize("world", [2, 5])
def test_the_ranks_shares_add_up_to_the_loss_of_one_worker(world):
    alone = stepper()(ROWS, 1, 0)
    shares = [stepper(worker=Worker(rank, world))(ROWS, 1, 0) for rank in range(world)]
    torch.testing.assert_close(torch.stack(shares).sum(), alone, rtol=1e-12, atol=0)


def test_clipping_limits_the_norm_of_the_whole_gradient_and_keeps_its_direction():
    free, clipped = gradients(stepper()), gradients(stepper(clip_norm=0.01))
    norm = torch.stack([g.norm() for g in clipped]).norm()
    torch.testing.assert_close(norm, torch.tensor(0.01, dtype=torch.float64), rtol=1e-4, atol=0)
    factor = 0.01 / torch.stack([g.norm() for g in free]).norm()
    assert factor < 1
    assert largest([a * factor - b for a, b in zip(free, clipped, strict=True)]) < 1e-6 * largest(clipped)


def test_mixup_mixes_pixels_and_targets_of_two_tiles_by_the_same_share(monkeypatch):
    seen = {}
    one = stepper(mixup=0.4)
    monkeypatch.setattr(
        one.task, "loss_sum", lambda logits, target: seen.setdefault("target", target).sum() * logits.sum()
    )
    one.network.register_forward_pre_hook(lambda module, inputs: seen.setdefault("pixels", inputs[0].clone()))
    one(ROWS, 1, 0)
    draws = one._draw(12, (42, 1, 1, 0))
    share = draws.share[:, None]
    assert bool(((share >= 0.5) & (share <= 1)).all()) and share.std() > 0.05
    target = torch.from_numpy(SOURCE.targets).double()
    wanted = share * target + (1 - share) * target[draws.partner]
    torch.testing.assert_close(seen["target"], wanted)
    images = torch.from_numpy(SOURCE.pixels).permute(0, 3, 1, 2)
    plain = transforms.train_pixels(images, draws.augment, 32, "imagenet", torch.float64)
    share = share[..., None, None]
    torch.testing.assert_close(seen["pixels"], share * plain + (1 - share) * plain[draws.partner])


def test_mixup_does_not_depend_on_the_number_of_workers():
    alone = stepper(mixup=0.4)(ROWS, 1, 0)
    shares = [stepper(mixup=0.4, worker=Worker(rank, 3))(ROWS, 1, 0) for rank in range(3)]
    torch.testing.assert_close(torch.stack(shares).sum(), alone, rtol=1e-12, atol=0)


def test_averaged_weights_follow_the_closed_form():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    ema = Ema(model, 0.6)
    average = 0.0
    for n in range(12):
        torch.nn.init.constant_(model.weight, n + 1.0)
        ema.update(model)
        decay = min(0.6, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * (n + 1)
        assert ema.module.weight.item() == pytest.approx(average, rel=1e-6)
    assert ema.updates == 12


def test_a_step_moves_the_averages_statistics_included():
    model = models.build("resnet18", 5, 0.0).double()
    ema = Ema(model, 0.9)
    before = {key: value.clone() for key, value in ema.module.state_dict().items()}
    stepper(model=model, ema=ema)(ROWS, 1, 0)
    for key, value in ema.module.state_dict().items():
        if value.is_floating_point():
            # The first update weighs the new values by 1 - 1/10.
            torch.testing.assert_close(value, 0.1 * before[key] + 0.9 * model.state_dict()[key])
    assert not torch.equal(ema.module.body.bn1.running_mean, before["body.bn1.running_mean"])


def test_a_checkpoint_keeps_the_averages_beside_the_weights_and_inference_takes_them(tmp_path):
    model = models.build("resnet18", 5, 0.0)
    ema = Ema(models.build("resnet18", 5, 0.0), 0.9)
    place = str(tmp_path / "c")
    checkpoint.save(place, model, {"stage": 1, "epoch": 1}, averaged=ema.module)
    found = checkpoint.load(place)
    assert torch.equal(found.weights()["body.conv1.weight"], model.body.conv1.weight)
    assert torch.equal(found.judged_weights()["body.conv1.weight"], ema.module.body.conv1.weight)
    checkpoint.save(place, model, {"stage": 1, "epoch": 1})
    assert torch.equal(checkpoint.load(place).judged_weights()["body.conv1.weight"], model.body.conv1.weight)


@pytest.mark.parametrize("freeze", [False, 1, 2, True])
def test_a_depth_of_freezing_moves_the_later_groups_and_batch_norm_alone(freeze):
    model = models.build("resnet18", 5, 0.0).double()
    before = [[p.detach().clone() for p in group] for group in models.layer_groups(model)]
    stepper(stage=STAGE | {"freeze": freeze}, model=model)(ROWS, 1, 0)
    norms = {id(p) for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d) for p in m.parameters()}
    for number, (old, new) in enumerate(zip(before, models.layer_groups(model), strict=True)):
        moved = {id(p) for o, p in zip(old, new, strict=True) if not torch.equal(o, p)}
        expected = (
            {id(p) for p in new}
            if number >= int(freeze) * (2 if freeze is True else 1)
            else norms & {id(p) for p in new}
        )
        assert moved == expected


def test_tiles_grow_inside_a_stage_from_its_first_to_its_last_epoch():
    one = stepper(stage=STAGE | {"size": 96, "start_size": 32})
    sizes = []
    one.network.register_forward_pre_hook(lambda module, inputs: sizes.append(inputs[0].shape[-1]))
    for epoch in (1, 2, 3):
        one(ROWS, epoch, 0)
    assert sizes == [32, 64, 96]


def test_a_stage_can_have_its_own_augmentation():
    still = {"flip": "none", "rotate": 0, "zoom": 1, "lighting": 0}
    one = stepper(stage=STAGE | {"augment": still})
    seen = []
    one.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    one(ROWS, 1, 0)
    images = torch.from_numpy(SOURCE.pixels).permute(0, 3, 1, 2)
    torch.testing.assert_close(
        seen[0], transforms.valid_pixels(images, 32, "imagenet", torch.float64), rtol=0, atol=1e-6
    )


def test_passes_cut_a_ranks_share_without_loss():
    parts = [tiles.pass_slices(23, rank, 3, 2) for rank in range(3)]
    rows = [row for passes in parts for part in passes for row in range(part.start, part.stop)]
    assert rows == list(range(23)) and all(len(passes) == 2 for passes in parts)
    # A last, smaller batch takes fewer passes, as many on every rank: 7 tiles are 3 + 2 + 2.
    short = [tiles.pass_slices(7, rank, 3, 4) for rank in range(3)]
    assert [[part.stop - part.start for part in passes] for passes in short] == [[3], [2], [2]]


def test_dropout_differs_between_ranks_and_passes_and_repeats_for_a_position():
    assert tiles.seed_of(42, 1, 1, 0, 0, 0) == tiles.seed_of(42, 1, 1, 0, 0, 0)
    assert len({tiles.seed_of(42, 1, 1, 0, rank, n) for rank in range(3) for n in range(3)}) == 9
