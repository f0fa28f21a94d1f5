"""One step: passes, mixup, clipping, averaging, depths of freezing, each against what it should be."""

import numpy as np
import pytest
import torch
from handmade import NETWORK
from torch.utils._python_dispatch import TorchDispatchMode

from raytrain.checkpoints import reading, writing
from raytrain.config import LAYER_GROUPS, load_recipe
from raytrain.errors import ResourceError
from raytrain.models import layer_groups, networks
from raytrain.tasks.multi_label import batch_loss
from raytrain.tiles import sampling
from raytrain.tiles.feeds import CacheFeed, Source
from raytrain.training import optim, step, transforms
from raytrain.training.ema import Ema
from raytrain.training.step import Stepper
from raytrain.training.trained import Trained
from raytrain.worker import Worker

ROWS = np.arange(12)
CHANCE = np.random.default_rng(0)
PIXELS = CHANCE.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
TARGETS = torch.from_numpy(CHANCE.integers(0, 2, (12, 5), dtype=np.uint8))
SOURCE = Source(CacheFeed(PIXELS, torch.device("cpu")), TARGETS)
STAGE = {"size": 32, "epochs": 3, "freeze": False, "lr": 0.01}


def stepper(stage=STAGE, model=None, worker=None, ema=None, **train):
    """A step of a small network in fp64, without anything that depends on the tiles of a pass: no dropout, fixed statistics."""
    settings = {"precision": "fp64", "batch_size": 12, **train}
    architecture = {"arch": NETWORK, "dropout": 0.0, "batch_norm": "fixed"}
    recipe = load_recipe("smoke", {"model": architecture, "train": settings, "stages": [stage]})
    torch.manual_seed(0)
    model = model or networks.build(NETWORK, 5, 0.0, "fixed").double()
    layer_groups.set_frozen(model, recipe.stages[0].frozen_groups)
    optimizer = optim.make_optimizer(model, [0.01] * LAYER_GROUPS, recipe.train.wd)
    trained = Trained(model.train(), optimizer, ema)
    return Stepper(recipe, 1, trained, SOURCE, batch_loss(recipe.train), worker or Worker())


def gradients(one, rows=ROWS, epoch=1):
    """Gradients at the moment of the update."""
    found = []
    one.optimizer.register_step_pre_hook(
        lambda *args: found.extend(
            p.grad.clone() for p in one.network.parameters() if p.grad is not None
        )
    )
    one(rows, epoch, 0)
    return found


def loss_of(one):
    """This rank's share of the loss of a step."""
    return one(ROWS, 1, 0).values[0]


def largest(tensors):
    return max(float(t.abs().max()) for t in tensors)


@pytest.mark.parametrize("passes", [2, 3, 5])
def test_accumulated_passes_give_the_gradient_of_the_whole_batch(passes):
    whole, parts = gradients(stepper()), gradients(stepper(accumulate=passes))
    assert largest([a - b for a, b in zip(whole, parts, strict=True)]) < 1e-12 * largest(whole)


@pytest.mark.parametrize("world", [2, 5])
def test_the_ranks_shares_add_up_to_the_loss_of_one_worker(world):
    alone = loss_of(stepper())
    shares = [loss_of(stepper(worker=Worker(rank, world))) for rank in range(world)]
    torch.testing.assert_close(torch.stack(shares).sum(), alone, rtol=1e-12, atol=0)


def test_clipping_limits_the_norm_of_the_whole_gradient_and_keeps_its_direction():
    free, clipped = gradients(stepper()), gradients(stepper(clip_norm=0.01))
    norm = torch.stack([g.norm() for g in clipped]).norm()
    torch.testing.assert_close(norm, torch.tensor(0.01, dtype=torch.float64), rtol=1e-4, atol=0)
    # torch divides by the norm and 1e-6.
    factor = 0.01 / (torch.stack([g.norm() for g in free]).norm() + 1e-6)
    assert factor < 1
    assert largest([a * factor - b for a, b in zip(free, clipped, strict=True)]) < 1e-12 * largest(
        clipped
    )


def test_mixup_mixes_pixels_and_targets_of_two_tiles_by_the_same_share(monkeypatch):
    seen = {}
    one = stepper(mixup=0.4)
    monkeypatch.setattr(
        one,
        "loss",
        lambda logits, target: seen.setdefault("target", target).sum() * logits.sum(),
    )
    one.network.register_forward_pre_hook(
        lambda module, inputs: seen.setdefault("pixels", inputs[0].clone())
    )
    one(ROWS, 1, 0)
    draws = one.plan(ROWS, 1, 0).draws
    share = draws.weight[:, None]
    assert bool(((share >= 0.5) & (share <= 1)).all()) and share.std() > 0.05
    target = TARGETS.double()
    wanted = share * target + (1 - share) * target[draws.partner]
    torch.testing.assert_close(seen["target"], wanted)
    images = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)
    plain = transforms.train_pixels(images, draws.augment, 32, "imagenet", torch.float64)
    share = share[..., None, None]
    torch.testing.assert_close(seen["pixels"], share * plain + (1 - share) * plain[draws.partner])


def test_mixup_does_not_depend_on_the_number_of_workers():
    alone = loss_of(stepper(mixup=0.4))
    shares = [loss_of(stepper(mixup=0.4, worker=Worker(rank, 3))) for rank in range(3)]
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
    model = networks.build(NETWORK, 5, 0.0).double()
    ema = Ema(model, 0.9)
    before = {key: value.clone() for key, value in ema.module.state_dict().items()}
    stepper(model=model, ema=ema)(ROWS, 1, 0)
    for key, value in ema.module.state_dict().items():
        if value.is_floating_point():
            # The first update weighs the new values by 1 - 1/10.
            torch.testing.assert_close(value, 0.1 * before[key] + 0.9 * model.state_dict()[key])
    assert not torch.equal(
        ema.module.body.network.bn1.running_mean, before["body.network.bn1.running_mean"]
    )


def test_a_checkpoint_keeps_the_averages_beside_the_weights_and_inference_takes_them(tmp_path):
    model = networks.build(NETWORK, 5, 0.0)
    ema = Ema(networks.build(NETWORK, 5, 0.0), 0.9)
    path, meta = (
        str(tmp_path / "c"),
        {"stage": 1, "epoch": 1, "classes": list("abcde"), "arch": NETWORK},
    )
    writing.save(path, model, meta, averaged=ema.module)
    found = reading.load(path)
    assert torch.equal(
        found.weights()["body.network.conv1.0.weight"], model.body.network.conv1[0].weight
    )
    assert torch.equal(
        found.judged_weights()["body.network.conv1.0.weight"],
        ema.module.body.network.conv1[0].weight,
    )
    writing.save(path, model, meta)
    assert torch.equal(
        reading.load(path).judged_weights()["body.network.conv1.0.weight"],
        model.body.network.conv1[0].weight,
    )


@pytest.mark.parametrize("freeze", [False, 1, 2, True])
def test_a_depth_of_freezing_moves_the_later_groups_and_batch_norm_alone(freeze):
    model = networks.build(NETWORK, 5, 0.0).double()
    before = [[p.detach().clone() for p in group] for group in layer_groups.layer_groups(model)]
    one = stepper(stage=STAGE | {"freeze": freeze}, model=model)
    # timm begins the last scale of a block with 0: before it, a bias of 0 does not move in the first step.
    for number in range(2):
        one(ROWS, 1, number)
    norms = {
        id(p)
        for m in model.modules()
        if isinstance(m, torch.nn.BatchNorm2d)
        for p in m.parameters()
    }
    for number, (old, new) in enumerate(zip(before, layer_groups.layer_groups(model), strict=True)):
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
    images = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)
    torch.testing.assert_close(
        seen[0], transforms.valid_pixels(images, 32, "imagenet", torch.float64), rtol=0, atol=1e-6
    )


def test_passes_cut_a_ranks_share_without_loss():
    parts = [sampling.pass_slices(23, rank, 3, 2) for rank in range(3)]
    rows = [row for passes in parts for part in passes for row in range(part.start, part.stop)]
    assert rows == list(range(23)) and all(len(passes) == 2 for passes in parts)
    # A last, smaller batch takes fewer passes, as many on every rank: 7 tiles are 3 + 2 + 2.
    short = [sampling.pass_slices(7, rank, 3, 4) for rank in range(3)]
    assert [[part.stop - part.start for part in passes] for passes in short] == [[3], [2], [2]]


def test_dropout_differs_between_ranks_and_passes_and_repeats_for_a_position():
    assert sampling.seed_of(42, 1, 1, 0, 0, 0) == sampling.seed_of(42, 1, 1, 0, 0, 0)
    assert len({sampling.seed_of(42, 1, 1, 0, rank, n) for rank in range(3) for n in range(3)}) == 9


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_gradient_that_is_not_finite_moves_nothing_and_is_told(clip):
    one = stepper(clip_norm=clip)
    assert one(ROWS, 1, 0).values[1] == 0
    before = [p.detach().clone() for p in one.weights]
    moments = [one.optimizer.state[p]["exp_avg"].clone() for p in one.weights]
    one.network.head[-1].bias.register_hook(lambda gradient: gradient * float("inf"))
    assert one(ROWS, 1, 1).values[1] == 1
    assert all(torch.equal(a, b) for a, b in zip(before, one.weights, strict=True))
    after = [one.optimizer.state[p]["exp_avg"] for p in one.weights]
    assert all(torch.equal(a, b) for a, b in zip(moments, after, strict=True))


class HostReads(TorchDispatchMode):
    """Notes the operations for which the host would wait for a device: it reads a value or asks which ones there are."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket._qualified_op_name in (
            "aten::_local_scalar_dense",
            "aten::nonzero",
            "aten::is_nonzero",
        ):
            self.found.append(function)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("settings", [{}, {"mixup": 0.4, "clip_norm": 1.0, "accumulate": 2}])
def test_between_two_steps_the_host_reads_nothing_from_the_device(settings, monkeypatch):
    one = stepper(**settings, ema=None)
    outcomes = one.epoch([ROWS, ROWS, ROWS], 1)
    next(outcomes)
    # Operations that hold no tensor of a GPU, such as drawing the augmentation, may read.
    watch = HostReads()
    planned = step.plan_batch
    monkeypatch.setattr(step, "plan_batch", lambda *args: paused(watch, planned, *args))
    with watch:
        assert len(list(outcomes)) == 2
    assert watch.found == []


def paused(watch, function, *args):
    kept = list(watch.found)
    result = function(*args)
    watch.found = kept
    return result


@pytest.mark.parametrize(
    "most, wanted", [(3, "--train.accumulate 4"), (6, "--train.accumulate 2"), (1, "a smaller")]
)
def test_too_small_a_gpu_is_told_with_batch_size_and_the_setting_that_fits(most, wanted):
    one = stepper()

    def full(module, inputs):
        if len(inputs[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nmore")

    one.network.register_forward_pre_hook(full)
    with pytest.raises(ResourceError) as caught:
        one(ROWS, 1, 0)
    assert "12 tiles of 32 px" in caught.value.what and "global batch 12" in caught.value.what
    assert caught.value.fix.startswith(wanted) and "\n" not in caught.value.what
