"""Counts the operations of a network, to compare what stages of training cost.

torch counts them on the meta device, where tensors have shapes and no values: nothing is computed.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from raytrain.config import LAYER_GROUPS
from raytrain.models import layer_groups, networks
from raytrain.models.bodies import RGB_CHANNELS, first_line

logger = logging.getLogger(__name__)

# Side of the counted tile, pixels: a multiple of the stride of all networks, and of Swin's windows.
SIZE = 224
# BatchNorm of the head needs two tiles to train.
TILES = 2
# What is assumed of a network that cannot be counted: the backward pass computes the gradients of
# the inputs and of the weights, and each takes as much as the forward pass.
FORWARD = 1.0
BACKWARD = 2.0


@functools.lru_cache(maxsize=100)
def per_pixel(arch: str, frozen: int, channels: int = RGB_CHANNELS) -> float:
    """Returns the operations of a training step for each pixel of a tile.

    A frozen layer group has no gradients of weights. The gradient still passes through it where
    BatchNorm layers below train, as in the frozen body of a ResNet; a body without BatchNorm takes
    the forward pass alone. The optimiser is left out: its share is small.

    Where torch cannot count a network, a forward pass counts 1 and a backward pass 2, and the log
    says so. Such numbers compare the stages of one network only.

    Args:
        arch: a torchvision network, or timm:NAME.
        frozen: number of layer groups, from the input on, that do not train.
        channels: of the tiles.

    Raises:
        ConfigError: the architecture is unknown.
    """
    model = _network(arch, channels)
    layer_groups.set_frozen(model, frozen)
    try:
        return _counted(model, channels)
    # A network of timm may fail in any way where tensors have no values.
    except Exception as error:
        logger.warning(
            f"the operations of {arch} cannot be counted ({first_line(error)}); "
            f"costs assume {FORWARD:g} for a forward pass and {BACKWARD:g} for a backward pass"
        )
        return _assumed(frozen)


# A few architectures at most stand in one search. On the meta device they take no memory.
@functools.lru_cache(maxsize=8)
def _network(arch: str, channels: int) -> networks.Network:
    with torch.device("meta"):
        return networks.build(arch, outputs=1, dropout=0.0, channels=channels)


def _counted(model: nn.Module, channels: int) -> float:
    """Operations of a forward and a backward pass for each pixel of a tile."""
    tiles = torch.empty(TILES, channels, SIZE, SIZE, device="meta")
    counter = FlopCounterMode(
        display=False,
        custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward},
    )
    with counter:
        model(tiles).sum().backward()
    return float(counter.get_total_flops()) / (TILES * SIZE**2)


def _assumed(frozen: int) -> float:
    if frozen == LAYER_GROUPS - 1:
        return FORWARD
    return FORWARD + BACKWARD


def _convolution_backward(
    grad_shape: Any, input_shape: Any, weight_shape: Any, *settings: Any, **kwargs: Any
) -> int:
    """Operations of the backward pass of a convolution.

    The gradient of the input and that of the weight each take as much as the forward pass. torch's
    own count ignores groups (pytorch pull request 183405): it has 40 times the forward pass for
    an EfficientNet.

    Args:
        grad_shape: of the gradient of the output, (B, F, H, W).
        input_shape: (B, C, H, W).
        weight_shape: (F, C / groups, kernel, kernel).
        settings: of the convolution; the fifth says whether it is transposed, and the last one
            which gradients are wanted: of the input, the weight and the bias.
        kwargs: unused; torch passes the shapes of the output.
    """
    transposed = settings[4]
    of_input, of_weight, _ = settings[-1]
    forward: int = conv_flop_count(input_shape, weight_shape, grad_shape, transposed)
    return forward * (int(of_input) + int(of_weight))
