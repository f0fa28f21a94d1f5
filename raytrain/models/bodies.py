"""Builds bodies by name: the networks of torchvision and timm without their classifiers."""

from __future__ import annotations

import contextlib
import functools
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import torch
import torchvision
from torch import nn

from raytrain.errors import ConfigError, did_you_mean

# Names of the torchvision networks that layer groups are defined for begin with one of these.
FAMILIES = ("resnet", "resnext", "wide_resnet", "convnext", "efficientnet", "swin_")
# Prefix of the name of a timm network.
TIMM = "timm:"
# The first layer group ends where the feature map has an eighth of the size of the tile. In a
# ResNet that is after six children (conv1 to layer2), elsewhere after four blocks of `features`.
EARLY_CHILDREN = 6
EARLY_FEATURES = 4
# Channels of the pictures that torchvision's and timm's weights were trained on.
RGB_CHANNELS = 3
# Side in pixels of the tile that shows the output shape of a timm network.
PROBE_SIZE = 64
# Name of a part of a network, and the part.
Child = tuple[str, nn.Module]


class Body(nn.Sequential):
    """Turns pictures (B, C, S, S) into a feature map (B, `channels`, H, W).

    Attributes:
        channels: channels of the feature map.
        early: names of the parameters of the first layer group.
    """

    channels: int
    early: frozenset[str]


class ChannelsFirst(nn.Module):
    """Permutes (B, H, W, C) to (B, C, H, W)."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Permutes the axes."""
        return features.permute(0, 3, 1, 2)


def torchvision_body(arch: str, inputs: int = RGB_CHANNELS) -> Body:
    """Builds the body of a torchvision network with random weights.

    Args:
        arch: name of the network.
        inputs: channels of its pictures.

    Raises:
        ConfigError: the architecture is unknown.
    """
    known = [name for name in torchvision.models.list_models() if name.startswith(FAMILIES)]
    if arch not in known:
        raise ConfigError(
            f'model.arch = "{arch}" is not known.{did_you_mean(arch, known)}',
            "layer groups are defined for torchvision's ResNet, ConvNeXt, EfficientNet and Swin, "
            "and for timm",
            f"one of: {', '.join(known)}; or timm:NAME",
        )
    network: Any = torchvision.models.get_model(arch, weights=None)
    if inputs != RGB_CHANNELS:
        _take_channels(network, inputs)
    # Only the ResNets, with ResNeXt and Wide ResNet, have a layer of this name.
    if hasattr(network, "fc"):
        return _resnet_body(network)
    return _features_body(network)


def _take_channels(network: nn.Module, inputs: int) -> None:
    """Replaces the first convolution by one of so many input channels, in place.

    Its random weights have the deviation that torchvision gives the layer.
    """
    name, layer = _first_convolution(network)
    fresh = nn.Conv2d(
        inputs,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        bias=layer.bias is not None,
    )
    with torch.no_grad():
        fresh.weight.copy_(torch.randn_like(fresh.weight) * layer.weight.std())
        if fresh.bias is not None:
            fresh.bias.copy_(layer.bias)
    network.set_submodule(name, fresh)


def _first_convolution(network: nn.Module) -> tuple[str, Any]:
    """The name of the layer that sees the pictures, and the layer."""
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d):
            return name, layer
    raise TypeError(f"{type(network).__name__} has no convolution")


def _resnet_body(network: Any) -> Body:
    # Without the last two children, the pooling and the classifier.
    children = list(network.named_children())[:-2]
    early = _parameter_names(children[:EARLY_CHILDREN])
    return _body(children, network.fc.in_features, early)


def _features_body(network: Any) -> Body:
    children = []
    for name, child in network.named_children():
        # Only Swin has `norm` and `permute`.
        if name in ("features", "norm", "permute"):
            children.append((name, child))
    early = [(f"features.{i}", network.features[i]) for i in range(EARLY_FEATURES)]
    return _body(children, _classifier(network).in_features, _parameter_names(early))


def _classifier(network: Any) -> Any:
    """The last linear layer of a ConvNeXt, an EfficientNet or a Swin."""
    if hasattr(network, "head"):
        return network.head
    return network.classifier[-1]


def _parameter_names(children: Iterable[Child]) -> list[str]:
    """The names of all parameters of some parts, as the whole network names them."""
    names = []
    for child_name, child in children:
        for name, _ in child.named_parameters():
            names.append(f"{child_name}.{name}")
    return names


def _body(children: list[Child], channels: int, early: Iterable[str]) -> Body:
    body = Body(OrderedDict(children))
    body.channels = channels
    body.early = frozenset(early)
    return body


def timm_package() -> Any:
    """Imports timm, an optional dependency.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import timm
    except ModuleNotFoundError:
        raise ConfigError(
            f"model.arch = {TIMM}NAME needs the package timm",
            "it is an optional dependency",
            "pip install 'raytrain[timm]'",
        ) from None
    return timm


def timm_body(name: str, inputs: int = RGB_CHANNELS) -> Body:
    """Builds the body of a timm network with random weights.

    Args:
        name: its name in timm.
        inputs: channels of its pictures.

    Raises:
        ConfigError: there is no such network, or its output is not a feature map.
    """
    network = timm_network(name, inputs=inputs)
    children: list[Child] = [("network", network)]
    _, first, second, third = _probed_shape(network, name, inputs)
    channels = first
    # Tiles are square, so the axis whose length differs from the other two is the channels.
    if first == second != third:
        children.append(("permute", ChannelsFirst()))
        channels = third
    early = [f"network.{inner}" for inner in _early_names(network, name)]
    return _body(children, channels, early)


def _early_names(network: Any, name: str) -> list[str]:
    """Returns the parameters of the first half of timm's coarse groups.

    In a network of four stages, these are the stem and two stages.
    """
    try:
        groups = timm_package().models.group_parameters(network, network.group_matcher(coarse=True))
    except (AssertionError, AttributeError) as error:
        raise ConfigError(
            f"timm defines no layer groups for {name} ({first_line(error)})",
            "the learning rates of a stage and its freezing need them",
            "another network, such as --model.arch timm:convnext_atto",
        ) from None
    last_early = max(groups) // 2
    early = []
    for number, names in groups.items():
        if number <= last_early:
            early.extend(names)
    return early


def timm_network(name: str, pretrained: bool = False, inputs: int = RGB_CHANNELS) -> Any:
    """Builds a timm network without classifier and pooling.

    It takes tiles of any size if timm offers that for the network.

    Args:
        name: its name in timm.
        pretrained: whether to download timm's default weights.
        inputs: channels of its pictures.

    Raises:
        ConfigError: there is no such network, or it cannot be built without its pooling.
    """
    timm = timm_package()
    known = [*timm.list_models(), *timm.list_pretrained()]
    if name not in known:
        raise ConfigError(
            f'timm has no model "{name}".{did_you_mean(name, known)}',
            "",
            "a name of timm.list_models()",
        )
    create = functools.partial(
        timm.create_model,
        name,
        pretrained=pretrained,
        num_classes=0,
        global_pool="",
        in_chans=inputs,
    )
    try:
        # Swin takes tiles of another size than it was trained on only with this option. Most other
        # networks do not have the option, and raise a TypeError.
        with contextlib.suppress(TypeError):
            return create(strict_img_size=False)
        return create()
    except (AssertionError, TypeError, ValueError) as error:
        what = f"cannot be built without its pooling ({first_line(error)})"
        raise _not_a_feature_map(name, what) from None


def _probed_shape(network: nn.Module, name: str, inputs: int) -> tuple[int, ...]:
    """Returns the shape of the feature map of one small tile: four numbers."""
    # Evaluation mode, so that the probe does not move running statistics.
    network.eval()
    try:
        with torch.no_grad():
            features = network(torch.zeros(1, inputs, PROBE_SIZE, PROBE_SIZE))
    except (AssertionError, RuntimeError, ValueError) as error:
        what = f"does not take tiles of {PROBE_SIZE} px ({first_line(error)})"
        raise _not_a_feature_map(name, what) from None
    network.train()
    if not isinstance(features, torch.Tensor) or features.ndim != 4:
        shape = tuple(getattr(features, "shape", ()))
        raise _not_a_feature_map(name, f"gives {shape} for a tile, not a feature map")
    return tuple(features.shape)


def _not_a_feature_map(name: str, what: str) -> ConfigError:
    return ConfigError(
        f"timm's {name} {what}",
        "the head pools the maximum and the mean of a feature map, and stages may differ in size",
        "a convolutional network or Swin, such as --model.arch timm:convnext_atto or swin_t",
    )


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, or its type if the message is empty."""
    lines = str(error).splitlines()
    if not lines:
        return type(error).__name__
    return lines[0]
