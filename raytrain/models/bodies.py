"""Bodies by name: torchvision's and timm's networks without their classifiers."""

from __future__ import annotations

import contextlib
import functools
from collections import OrderedDict
from typing import Any

import torch
import torchvision
from torch import nn

from raytrain.errors import ConfigError, did_you_mean

FAMILIES = ("resnet", "resnext", "wide_resnet", "convnext", "efficientnet", "swin_")


TIMM = "timm:"


# Where the map has an eighth of the tile's size: children of a ResNet, blocks of the other families' `features`.
EARLY_CHILDREN, EARLY_FEATURES = 6, 4


PROBE_SIZE = 64


Child = tuple[str, nn.Module]


class Body(nn.Sequential):
    """(B, 3, S, S) to a map of features (B, `channels`, H, W); `early` names the parameters of the first layer group."""

    channels: int
    early: frozenset[str]


class ChannelsFirst(nn.Module):
    """(B, H, W, C) to (B, C, H, W)."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Permutes the axes."""
        return features.permute(0, 3, 1, 2)


def torchvision_body(arch: str) -> Body:
    """The body of a torchvision network, with random weights.

    Raises:
        ConfigError: the architecture is unknown.
    """
    known = [name for name in torchvision.models.list_models() if name.startswith(FAMILIES)]
    if arch not in known:
        raise ConfigError(
            f'model.arch = "{arch}" is not known.{did_you_mean(arch, known)}',
            "layer groups are defined for torchvision's ResNet, ConvNeXt, EfficientNet and Swin, and for timm",
            f"one of: {', '.join(known)}; or timm:NAME",
        )
    network: Any = torchvision.models.get_model(arch, weights=None)
    return _resnet_body(network) if hasattr(network, "fc") else _features_body(network)


def _resnet_body(network: Any) -> Body:
    children = list(network.named_children())[:-2]
    return _body(children, network.fc.in_features, children[:EARLY_CHILDREN])


def _features_body(network: Any) -> Body:
    parts = [
        (name, part)
        for name, part in network.named_children()
        if name in ("features", "norm", "permute")
    ]
    last = network.head if hasattr(network, "head") else network.classifier[-1]
    early = [(f"features.{i}", network.features[i]) for i in range(EARLY_FEATURES)]
    return _body(parts, last.in_features, early)


def _body(children: list[Child], channels: int, early: list[Child]) -> Body:
    body = Body(OrderedDict(children))
    body.channels = channels
    body.early = frozenset(
        f"{name}.{inner}" for name, part in early for inner, _ in part.named_parameters()
    )
    return body


def timm_package() -> Any:
    """The module timm.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import timm
    except ModuleNotFoundError:
        raise ConfigError(
            f"model.arch = {TIMM}NAME needs the package timm",
            "it is an extra",
            "pip install 'raytrain[timm]'",
        ) from None
    return timm


def timm_body(name: str) -> Body:
    """The body of a timm network, with random weights.

    Raises:
        ConfigError: there is no such network, or it gives no map of features.
    """
    network = timm_network(name)
    shape = _probed_shape(network, name)
    # The tile is square, so the axis that differs from the other two is the channels.
    channels_last = shape[1] == shape[2] != shape[3]
    children: list[Child] = [("network", network)] + [("permute", ChannelsFirst())] * channels_last
    body = _body(children, shape[3 if channels_last else 1], [])
    body.early = frozenset(f"network.{inner}" for inner in _early_names(network, name))
    return body


def _early_names(network: Any, name: str) -> list[str]:
    """Parameters of the first half of timm's coarse groups, in a network of four stages the stem and two of them."""
    try:
        groups = timm_package().models.group_parameters(network, network.group_matcher(coarse=True))
    except (AssertionError, AttributeError) as error:
        raise ConfigError(
            f"timm defines no layer groups for {name} ({first_line(error)})",
            "the rates and the freezing of a stage need them",
            "another network, such as --model.arch timm:convnext_atto",
        ) from None
    return [
        inner for number, names in groups.items() if number <= max(groups) // 2 for inner in names
    ]


def timm_network(name: str, pretrained: bool = False) -> Any:
    """The network without classifier and pooling, for tiles of any size where timm offers that."""
    timm = timm_package()
    known = [*timm.list_models(), *timm.list_pretrained()]
    if name not in known:
        raise ConfigError(
            f'timm has no model "{name}".{did_you_mean(name, known)}',
            "",
            "a name of timm.list_models()",
        )
    create = functools.partial(
        timm.create_model, name, pretrained=pretrained, num_classes=0, global_pool=""
    )
    try:
        # Swin takes other sizes than that of its training only with this option, which most networks do not know.
        with contextlib.suppress(TypeError):
            return create(strict_img_size=False)
        return create()
    except (AssertionError, TypeError, ValueError) as error:
        raise _no_map(name, f"cannot be built without its pooling ({first_line(error)})") from None


def _probed_shape(network: nn.Module, name: str) -> tuple[int, ...]:
    """Shape of the features of one small tile: four numbers."""
    try:
        with torch.no_grad():
            features = network.eval()(torch.zeros(1, 3, PROBE_SIZE, PROBE_SIZE))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise _no_map(
            name, f"does not take tiles of {PROBE_SIZE} px ({first_line(error)})"
        ) from None
    network.train()
    if not isinstance(features, torch.Tensor) or features.ndim != 4:
        raise _no_map(
            name, f"gives {tuple(getattr(features, 'shape', ()))} for a tile, not a map of features"
        )
    return tuple(features.shape)


def _no_map(name: str, what: str) -> ConfigError:
    return ConfigError(
        f"timm's {name} {what}",
        "the head pools maximum and mean over a map of features, and stages may differ in size",
        "a network of that kind, such as --model.arch timm:convnext_atto or swin_t",
    )


def first_line(error: Exception) -> str:
    """What an error says, which is its type where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)
