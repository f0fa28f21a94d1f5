"""The first steps of the lesson's recipe, beside the same steps written out with torch primitives alone."""

import math

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from raytrain.config import load_recipe
from raytrain.tiles import sampling
from raytrain.tiles.cache import open_store
from raytrain.training import optim, transforms
from raytrain.training.services import Hooks
from raytrain.training.setup import opened
from raytrain.training.stage import begin_stage
from raytrain.worker import Worker

STEPS, LESSON_STEPS, BATCH, SIZE = 3, 2530, 8, 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RATES = {1: [0.01 / 3, 0.01 / 3, 0.01], 2: [1e-5, math.sqrt(1e-5 * 0.002), 0.002]}


class Reference(nn.Module):
    """torchvision's ResNet-50 without its classifier, and the lesson's head."""

    def __init__(self, outputs):
        super().__init__()
        net = torchvision.models.resnet50(weights=None)
        self.stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        self.layers = nn.Sequential(net.layer1, net.layer2, net.layer3, net.layer4)
        self.norm1, self.norm2 = nn.BatchNorm1d(4096), nn.BatchNorm1d(512)
        self.linear1, self.linear2 = nn.Linear(4096, 512), nn.Linear(512, outputs)

    def forward(self, x):
        x = self.layers(self.stem(x))
        x = torch.cat([F.adaptive_max_pool2d(x, 1), F.adaptive_avg_pool2d(x, 1)], 1).flatten(1)
        x = F.dropout(self.norm1(x), 0.25, self.training)
        return self.linear2(F.dropout(self.norm2(F.relu(self.linear1(x))), 0.5, self.training))

    def groups(self):
        early = [self.stem, self.layers[0], self.layers[1]]
        late = [self.layers[2], self.layers[3]]
        head = [self.norm1, self.linear1, self.norm2, self.linear2]
        return [[p for m in part for p in m.parameters()] for part in (early, late, head)]

    def freeze(self, frozen):
        for module in (*self.stem.modules(), *self.layers.modules()):
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(not frozen or isinstance(module, nn.BatchNorm2d))


def reference_from(model, dtype):
    """The reference with the values of our network, parameter by parameter in order."""
    reference = Reference(model.head[-1].out_features).to(dtype, memory_format=torch.channels_last)
    # `net.layer1..4` come after the stem in both; the head's tensors by their shapes' order.
    ours = [*model.body.state_dict().values(), *model.head.state_dict().values()]
    names = ["norm1", "linear1", "norm2", "linear2"]
    theirs = [*reference.stem.state_dict().values(), *reference.layers.state_dict().values()]
    theirs += [value for name in names for value in getattr(reference, name).state_dict().values()]
    for to, value in zip(theirs, ours, strict=True):
        to.copy_(value)
    return reference


def reference_pixels(images, draws, dtype):
    x = images.to(dtype) / 255
    grid = F.affine_grid(draws.affine.to(dtype), [len(x), 3, SIZE, SIZE], align_corners=True)
    x = F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=True)
    p = x.clamp(1e-7, 1 - 1e-7)
    brightness, contrast = (
        v.to(dtype)[:, None, None, None] for v in (draws.brightness, draws.contrast)
    )
    x = torch.sigmoid((torch.log(p / (1 - p)) + brightness) * contrast)
    mean, std = (torch.tensor(v, dtype=dtype).view(1, 3, 1, 1) for v in (MEAN, STD))
    return ((x - mean) / std).contiguous(memory_format=torch.channels_last)


def one_cycle(step):
    """Linear warm-up over 759 of 2,530 steps: the first ones are on the straight line."""
    share = step / int(0.3 * LESSON_STEPS)
    return 1 / 25 + (1 - 1 / 25) * share, 0.95 - 0.1 * share


class Adam:
    """Decoupled weight decay on everything that trains, then Adam, as fastai 1 does it: p <- p (1 - lr wd) first."""

    def __init__(self, groups):
        self.groups = [[p for p in group if p.requires_grad] for group in groups]
        self.state = {
            p: (torch.zeros_like(p), torch.zeros_like(p)) for group in self.groups for p in group
        }
        self.updates = 0

    @torch.no_grad()
    def step(self, rates, beta1, beta2=0.99, wd=0.01, eps=1e-8):
        self.updates += 1
        for group, lr in zip(self.groups, rates, strict=True):
            for p in group:
                first, second = self.state[p]
                p.mul_(1 - lr * wd)
                first.mul_(beta1).add_(p.grad, alpha=1 - beta1)
                second.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                corrected = second.div(1 - beta2**self.updates).sqrt_().add_(eps)
                p.addcdiv_(first, corrected, value=-lr / (1 - beta1**self.updates))


def worst(found, wanted):
    """Largest difference of a tensor relative to the norm of the tensor it should be."""
    pairs = zip(found, wanted, strict=True)
    return max(((a - b).norm() / b.norm().clamp(min=1e-30)).item() for a, b in pairs)


def parameters(model):
    return [*model.body.parameters(), *model.head.parameters()]


def reference_parameters(reference):
    return [p for group in reference.groups() for p in group]


@pytest.fixture
def trainer(own_network, dataset, tmp_path, request):
    """The lesson's recipe at 64 px with batches of 8."""
    recipe = load_recipe(
        "planet-resnet50-2018", {"dataset": dataset.path, "model": {"weights": "none"}}
    )
    stages = tuple(stage.model_copy(update={"size": SIZE}) for stage in recipe.stages)
    train = recipe.train.model_copy(
        update={"batch_size": BATCH, "precision": request.param, "threads": 2}
    )
    recipe = recipe.model_copy(update={"stages": stages, "train": train})
    with opened(recipe, dataset, str(tmp_path / "run"), Worker(), Hooks()) as parts:
        yield parts


@pytest.mark.parametrize("trainer", ["fp64", "fp32"], indirect=True)
def test_the_first_steps_agree_frozen_and_unfrozen(trainer, dataset):
    job, state, services = trainer
    fp64 = job.recipe.train.precision == "fp64"
    dtype = torch.float64 if fp64 else torch.float32
    reference = reference_from(state.model, dtype)
    store = open_store(dataset, 64)
    differences = []
    for number, frozen in ((1, True), (2, False)):
        ours = begin_stage(job, state, services, number)
        state.model.train()
        reference.train().freeze(frozen)
        adam = Adam(reference.groups())
        grads = []
        ours.optimizer.register_step_pre_hook(
            lambda *args, into=grads: into.extend(
                p.grad.clone() for p in parameters(state.model) if p.grad is not None
            )
        )
        for i, rows in enumerate(job.batches(number, 1)[:STEPS]):
            optim.set_step(ours.optimizer, i, LESSON_STEPS, "one-cycle-2018")
            loss = ours(rows, 1, i).values[0]
            key = (42, number, 1, i)
            draws = transforms.draw(
                job.recipe.data.augment,
                BATCH,
                torch.Generator().manual_seed(sampling.seed_of(*key)),
            )
            torch.manual_seed(sampling.seed_of(*key, 0, 0))
            images = torch.from_numpy(store.pixels[rows]).permute(0, 3, 1, 2)
            target = torch.from_numpy(dataset.targets[rows]).to(dtype)
            wanted = F.binary_cross_entropy_with_logits(
                reference(reference_pixels(images, draws, dtype)), target
            )
            reference.zero_grad()
            wanted.backward()
            expected = [p.grad for p in reference_parameters(reference) if p.grad is not None]
            if fp64:
                assert loss.item() == pytest.approx(wanted.item(), rel=1e-12)
            else:
                differences.append(worst(grads, expected))
            share, beta1 = one_cycle(i)
            adam.step([rate * share for rate in RATES[number]], beta1)
            if not fp64:
                # Each step is judged by itself: Adam would turn rounding of tiny gradients into whole steps.
                for p, value in zip(
                    reference_parameters(reference), parameters(state.model), strict=True
                ):
                    p.data.copy_(value.data)
            grads.clear()
        if fp64:
            differences.append(worst(parameters(state.model), reference_parameters(reference)))
    print(f"{job.recipe.train.precision}: largest relative difference {max(differences):.1e}")
    assert max(differences) < (1e-9 if fp64 else 1e-5)
