"""Builds the network: a body without its classifier, and the head of the lesson.

Structure and numbers: fastai 1.0.21 vision/learner.py:34-44, layers.py:29-35 and 61-68.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from raytrain.errors import ConfigError
from raytrain.models.bodies import (
    RGB_CHANNELS,
    TIMM,
    Body,
    first_line,
    timm_body,
    timm_package,
    torchvision_body,
)

# Units of the hidden layer of the head.
HIDDEN = 512


class Network(nn.Sequential):
    """A network of two children, `body` and `head`.

    With `fixed_statistics`, BatchNorm normalises by its running statistics and never updates them.
    `in_channels` are the channels of its pictures.
    """

    fixed_statistics = False
    in_channels = RGB_CHANNELS

    def train(self, mode: bool = True) -> Network:
        """Sets training mode. With fixed statistics, normalisation stays in evaluation mode."""
        super().train(mode)
        if not self.fixed_statistics:
            return self
        for module in self.modules():
            # By the buffer and not by the class: timm has layers with running statistics that are
            # not subclasses of BatchNorm.
            if hasattr(module, "running_var"):
                module.eval()
        return self


class ConcatPool(nn.Module):
    """Pools (B, C, H, W) to (B, 2C): the maximum and the mean of each channel.

    The output does not depend on H and W, so the head fits tiles of any size.
    """

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Pools in float32 at least."""
        # The mean over thousands of bf16 values would lose its last digits.
        dtype = torch.promote_types(features.dtype, torch.float32)
        features = features.to(dtype)
        maximum = features.amax((2, 3))
        mean = features.mean((2, 3))
        return torch.cat([maximum, mean], 1)


def build(
    arch: str,
    outputs: int,
    dropout: float,
    batch_norm: str = "worker",
    channels: int = RGB_CHANNELS,
) -> Network:
    """Builds a network with random weights from torch's global generator.

    Its state dict has the same keys for every value of `batch_norm`.

    Args:
        arch: a torchvision ResNet, ConvNeXt, EfficientNet or Swin, or timm:NAME.
        outputs: number of logits.
        dropout: probability before the last layer; half of it is used before the first layer.
        batch_norm: worker (statistics of each rank), sync (statistics over all ranks) or fixed
            (running statistics, never updated).
        channels: of the pictures.

    Raises:
        ConfigError: `arch` is unknown, or its output is not a feature map.
    """
    body = _body(arch, channels)
    head = _head(body.channels, outputs, dropout)
    model = Network(OrderedDict(body=body, head=head))
    if batch_norm == "sync":
        model = _synchronised(model, arch)
    model.fixed_statistics = batch_norm == "fixed"
    model.in_channels = channels
    return model.train()


def _body(arch: str, channels: int) -> Body:
    if arch.startswith(TIMM):
        return timm_body(arch.removeprefix(TIMM), channels)
    return torchvision_body(arch, channels)


def in_channels(model: nn.Module) -> int:
    """Returns the channels of a network's pictures; three where it does not say."""
    found: int = getattr(model, "in_channels", RGB_CHANNELS)
    return found


def check_batch_norm(batch_norm: str, device_type: str) -> None:
    """Checks that torch can compute this kind of BatchNorm on a device.

    Args:
        batch_norm: worker, sync or fixed.
        device_type: cpu or cuda.

    Raises:
        ConfigError: synchronised BatchNorm without a GPU.
    """
    if batch_norm == "sync" and device_type != "cuda":
        raise ConfigError(
            "model.batch_norm = sync needs GPUs, but the workers have none",
            "torch synchronises BatchNorm on GPUs only",
            "--model.batch-norm worker, or fixed",
        )


def _synchronised(model: Network, arch: str) -> Network:
    converter: Any = nn.SyncBatchNorm
    if arch.startswith(TIMM):
        # timm's BatchNorm includes the activation, which torch's converter would silently drop.
        converter = timm_package().layers
    converted: Network = converter.convert_sync_batchnorm(model)
    return converted


def _head(channels: int, outputs: int, dropout: float) -> nn.Sequential:
    head = nn.Sequential(
        ConcatPool(),
        nn.BatchNorm1d(2 * channels),
        nn.Dropout(dropout / 2),
        nn.Linear(2 * channels, HIDDEN),
        nn.ReLU(inplace=True),
        nn.BatchNorm1d(HIDDEN),
        nn.Dropout(dropout),
        nn.Linear(HIDDEN, outputs),
    )
    for layer in head:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    return head


def to_device(
    model: nn.Sequential, device: torch.device, dtype: torch.dtype = torch.float32
) -> nn.Sequential:
    """Moves a network to a device and a type, in place. Returns the same network.

    The weights of its convolutions become channels-last, the memory format of the pictures.
    """
    return model.to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]  # torch's stubs


def running_statistics(model: nn.Module) -> list[torch.Tensor]:
    """Returns the running mean and variance of every BatchNorm, each of shape (C,)."""
    statistics = []
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            statistics.append(buffer)
    return statistics


def check_sizes(model: nn.Sequential, arch: str, sizes: Iterable[int]) -> None:
    """Runs the network on an empty tile of every size.

    Args:
        model: the network, on the CPU.
        arch: its name for the error message.
        sizes: sides of tiles, pixels.

    Raises:
        ConfigError: the network cannot take one of the sizes.
    """
    # Evaluation mode: running statistics must not move, and BatchNorm needs more than one tile.
    model.eval()
    try:
        for size in sorted(set(sizes)):
            _check_size(model, arch, size)
    finally:
        model.train()


def _check_size(model: nn.Sequential, arch: str, size: int) -> None:
    try:
        with torch.no_grad():
            model(torch.zeros(1, in_channels(model), size, size))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"{arch} cannot take tiles of {size} px ({first_line(error)})",
            "a stage of the recipe has this size",
            "give its stage another size (or start_size); "
            "multiples of 32 from 64 on suit every network here",
        ) from None


def parameter_count(model: nn.Module) -> int:
    """Returns the number of parameters, including frozen ones."""
    return sum(parameter.numel() for parameter in model.parameters())
