"""How much memory a worker needs, from the recipe alone: no tile is read, nothing computed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from raytrain import registry
from raytrain.config import Recipe, Stage
from raytrain.models import layer_groups, networks
from raytrain.models.precision import autocast, dtype_of
from raytrain.tiles import sampling

# Adam keeps two moments of each weight that trains.
ADAM_MOMENTS = 2


@dataclass(frozen=True)
class Footprint:
    """Bytes of a worker: `state` of training with the copy that a save makes of it, `step` for the
    largest pass.
    """

    state: int
    step: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.state + self.step


def footprint(recipe: Recipe, classes: int, device: torch.device, channels: int = 3) -> Footprint:
    """The memory of a worker at its largest stage.

    Args:
        recipe: complete, with its precision resolved.
        classes: of the dataset.
        device: that trains.
        channels: of the tiles.
    """
    with torch.device("meta"):
        # Heads of other tasks differ by little.
        model = registry.training(registry.DEFAULT).network(recipe.model, classes, channels)
    model.to(dtype_of(recipe.train.precision))
    first, last = recipe.selected
    stages = recipe.stages[first - 1 : last]
    return Footprint(
        max(_state_bytes(model, stage, recipe) for stage in stages),
        max(_step_bytes(model, stage, recipe, device) for stage in stages),
    )


def _state_bytes(model: nn.Sequential, stage: Stage, recipe: Recipe) -> int:
    """Weights, gradients, moments and averages, and the copies of a save and of the best epoch."""
    layer_groups.set_frozen(model, stage.frozen_groups)
    weights = _bytes([*model.parameters(), *model.buffers()])
    gradients = _bytes([weight for weight in model.parameters() if weight.requires_grad])
    moments = ADAM_MOMENTS * gradients
    if recipe.train.ema:
        weights *= 2  # the averages are as large
    saved = weights + moments
    best = weights  # waits in memory until it is written
    return weights + gradients + moments + saved + best


def _step_bytes(model: nn.Sequential, stage: Stage, recipe: Recipe, device: torch.device) -> int:
    """What the forward pass of a rank keeps for the backward pass, and the pixels of its batch."""
    layer_groups.set_frozen(model, stage.frozen_groups)
    model.train()
    passes = sampling.pass_slices(
        recipe.batch_size(stage), 0, recipe.num_workers, recipe.train.accumulate
    )
    share = passes[0]  # no other is larger
    dtype = dtype_of(recipe.train.precision)
    shape = (share.stop - share.start, networks.in_channels(model), stage.size, stage.size)
    pixels = torch.empty(shape, dtype=dtype, device="meta")
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    largest = 0

    def observe(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        nonlocal largest
        largest = max(largest, output.numel() * output.element_size())

    hooks = [module.register_forward_hook(observe) for module in model.modules()]
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        autocast(recipe.train.precision, device),
    ):
        model(pixels.contiguous(memory_format=torch.channels_last))
    for hook in hooks:
        hook.remove()
    weights = {weight.untyped_storage()._cdata for weight in model.parameters()}
    saved = sum(
        tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in weights
    )
    # The backward pass holds the gradients of two neighbouring layers; augmentation holds the batch
    # three times.
    return saved + 2 * largest + 3 * pixels.numel() * pixels.element_size()


def _bytes(tensors: list[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
