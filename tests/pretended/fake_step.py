"""A whole step on pretended CUDA tensors, which hold no values: a read by the host, or a mixture of devices, raises.

A program of its own, which takes a list of settings of `train`, and of the warp, and prints what it saw of each as JSON.
"""

import collections
import json
import os
import sys

import numpy as np
import torch
from handmade import NETWORK
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from raytrain.config import LAYER_GROUPS, load_recipe
from raytrain.models import networks
from raytrain.tasks.multi_label import batch_loss
from raytrain.tiles import feeds
from raytrain.training import optim, step
from raytrain.training.ema import Ema
from raytrain.training.trained import Trained

GPU = torch.device("cuda")
COPIES = ("aten::_to_copy", "aten::copy_")


class Event:
    """A time that nobody reads."""

    def __init__(self, **options):
        pass

    def record(self):
        pass


class Copies(TorchDispatchMode):
    """Counts copies between devices: (from, to, whether the host goes on at once)."""

    def __init__(self):
        super().__init__()
        self.found = collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket._qualified_op_name
        if name in COPIES:
            source, target = (args[1], args[0]) if name == COPIES[1] else (args[0], result)
            at_once = bool((kwargs or {}).get("non_blocking") or (len(args) > 2 and args[2]))
            if isinstance(source, torch.Tensor) and source.device.type != target.device.type:
                self.found[source.device.type, target.device.type, at_once] += 1
        return result


def backward(tensor):
    """Leaves gradients: autograd's engine wants a device."""
    for weight in backward.weights:
        weight.grad = torch.empty_like(weight)


def copies_of(settings):
    """Devices of the outcomes of two steps; copies in them as [from, to, whether the host goes on at once, how many]."""
    values = {
        "model": {"arch": NETWORK, "weights": "none"},
        "data": {"augment": {"warp": settings.pop("warp", 0.0)}},
        "train": {"batch_size": 12, "precision": "bf16", **settings},
        "stages": [{"size": 32, "epochs": 2, "freeze": False, "lr": 0.01}],
    }
    recipe = load_recipe("smoke", values)
    with FakeTensorMode(allow_non_fake_inputs=True):
        with GPU:
            model = networks.build(NETWORK, 5, 0.5)
            pixels = torch.empty(24, 32, 32, 3, dtype=torch.uint8)
            targets = torch.empty(24, 5, dtype=torch.uint8)
        backward.weights = list(model.parameters())
        optimizer = optim.make_optimizer(model, [0.01] * LAYER_GROUPS, 0.01)
        # What its `__init__` does is upload tiles.
        tiles = feeds.DeviceFeed.__new__(feeds.DeviceFeed)
        tiles.device, tiles.pixels = GPU, pixels
        averages = Ema(model, 0.9) if "ema" in settings else None
        worker = step.Worker(device=GPU)
        trained = Trained(model.train(), optimizer, averages)
        source = feeds.Source(tiles, targets)
        one = step.Stepper(recipe, 1, trained, source, batch_loss(recipe.train), worker)
        outcomes = one.epoch([np.arange(12)] * 3, 1)
        next(outcomes)
        with Copies() as copies:
            rest = list(outcomes)
    left = sum(weight.grad is not None for weight in model.parameters())
    counts = [[*key, count] for key, count in copies.found.items()]
    return {
        "outcomes": [outcome.values.device.type for outcome in rest],
        "copies": counts,
        "gradients left": left,
    }


if __name__ == "__main__":
    torch.cuda.Event = Event
    torch.Tensor.pin_memory = lambda tensor: tensor
    torch.Tensor.backward = backward
    print(json.dumps([copies_of(settings) for settings in json.loads(sys.argv[1])]), flush=True)
    # Where there is no driver, Python's end trips over fake CUDA tensors.
    os._exit(0)
