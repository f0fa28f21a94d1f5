"""The network: a body without its classifier, and the lesson's head.

Structure and numbers: fastai 1.0.21 vision/learner.py:34-44, layers.py:29-35 and 61-68.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from raytrain.errors import ConfigError
from raytrain.models.bodies import TIMM, first_line, timm_body, timm_package, torchvision_body

HIDDEN = 512


class Network(nn.Sequential):
    """`body` and `head`. With fixed statistics BatchNorm normalises by its running ones and never moves them."""

    fixed_statistics = False

    def train(self, mode: bool = True) -> Network:
        """Sets training mode, in which a norm with fixed statistics stays as it is in evaluation."""
        super().train(mode)
        for module in self.modules() if self.fixed_statistics else ():
            # By the buffer and not by the class: timm has norms with running statistics that are no BatchNorm.
            if hasattr(module, "running_var"):
                module.eval()
        return self


class ConcatPool(nn.Module):
    """(B, C, H, W) to (B, 2C): maximum and mean over the picture, so any size of tile gives the same head."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Pools in float32 at least: a mean over thousands of bf16 values would lose its last digits."""
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        return torch.cat([features.amax((2, 3)), features.mean((2, 3))], 1)


def build(arch: str, outputs: int, dropout: float, batch_norm: str = "worker") -> Network:
    """A network of two children, `body` and `head`, with random weights from torch's global generator.

    Its state dict has the same keys whatever `batch_norm` is.

    Args:
        arch: a torchvision ResNet, ConvNeXt, EfficientNet or Swin, or timm:NAME.
        outputs: number of logits.
        dropout: before the last layer; half of it before the first.
        batch_norm: worker, sync (statistics over all ranks) or fixed (running statistics, never moved).

    Raises:
        ConfigError: `arch` is unknown, or gives no map of features.
    """
    body = timm_body(arch.removeprefix(TIMM)) if arch.startswith(TIMM) else torchvision_body(arch)
    model = Network(OrderedDict(body=body, head=_head(body.channels, outputs, dropout)))
    if batch_norm == "sync":
        model = _synchronised(model, arch)
    model.fixed_statistics = batch_norm == "fixed"
    return model.train()


def check_batch_norm(batch_norm: str, device_type: str) -> None:
    """Refuses synchronised BatchNorm where torch cannot compute it.

    Raises:
        ConfigError: anything but a GPU.
    """
    if batch_norm == "sync" and device_type != "cuda":
        raise ConfigError(
            "model.batch_norm = sync needs GPUs, the workers have none",
            "torch synchronises BatchNorm on GPUs only",
            "--model.batch-norm worker, or fixed",
        )


def _synchronised(model: Network, arch: str) -> Network:
    # timm's BatchNorm holds the activation too, which torch's converter would lose without a word.
    converter: Any = timm_package().layers if arch.startswith(TIMM) else nn.SyncBatchNorm
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


def placed(
    model: nn.Sequential, device: torch.device, dtype: torch.dtype = torch.float32
) -> nn.Sequential:
    """The same network, moved to a device and type, with its convolutions' weights in channels-last order."""
    return model.to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]  # torch's stubs


def running_statistics(model: nn.Module) -> list[torch.Tensor]:
    """Running mean and variance of every BatchNorm."""
    return [
        b for name, b in model.named_buffers() if name.endswith(("running_mean", "running_var"))
    ]


def check_sizes(model: nn.Sequential, arch: str, sizes: Iterable[int]) -> None:
    """Shows the network an empty tile of every size.

    Raises:
        ConfigError: it cannot take one.
    """
    for size in sorted(set(sizes)):
        try:
            with torch.no_grad():
                model.eval()(torch.zeros(1, 3, size, size))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"{arch} cannot take tiles of {size} px ({first_line(error)})",
                "a stage of the recipe has this size",
                "give its stage another size (or start_size); multiples of 32 from 64 on suit every network here",
            ) from None
        finally:
            model.train()


def parameter_count(model: nn.Module) -> int:
    """Number of parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in model.parameters())
