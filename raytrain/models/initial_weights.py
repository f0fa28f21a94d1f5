"""Initial weights of a network: from ImageNet, from a file, or from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import torchvision
from torch import nn

from raytrain.errors import ConfigError, RemoteError
from raytrain.models.bodies import RGB_CHANNELS, TIMM, first_line, timm_network, timm_package
from raytrain.models.networks import in_channels

# Name of the child of a body that holds a whole timm network.
TIMM_PREFIX = "network."
# Weights of classifiers of torchvision and timm have names that begin with one of these.
CLASSIFIERS = ("fc.", "classifier.", "head.", "head_dist.", "last_linear.")


def body_weights(arch: str, weights: str) -> dict[str, torch.Tensor] | None:
    """Returns the initial weights of a body, for `load_body`.

    Args:
        arch: a torchvision network, or timm:NAME.
        weights: `imagenet` for torchvision's IMAGENET1K_V1 or timm's default weights, which are
            downloaded once and verified by their hash; `none`; or the path of a state dict of
            torchvision (of timm for timm:NAME).

    Returns:
        Tensors by name, or None for `none`.

    Raises:
        ConfigError: there is no such file, it is not a state dict, or there are no such weights.
        RemoteError: the download failed.
    """
    if weights == "none":
        return None
    state = _state(arch, weights)
    if not arch.startswith(TIMM):
        return state
    return {TIMM_PREFIX + key: value for key, value in state.items()}


def _state(arch: str, weights: str) -> dict[str, torch.Tensor]:
    if weights != "imagenet":
        return _from_file(weights)
    if arch.startswith(TIMM):
        return _from_timm(arch.removeprefix(TIMM))
    return _from_torchvision(arch)


def load_body(model: nn.Sequential, state: dict[str, torch.Tensor], source: str) -> None:
    """Loads initial weights into the body of a network, in place. Drops those of a classifier.

    Where the network takes other than three channels, the first layer of RGB weights is spread
    over them, see `spread`.

    Args:
        model: the network; its first child is the body.
        state: tensors by name, from `body_weights`.
        source: where the weights are from, for the error message.

    Raises:
        ConfigError: names or shapes differ from those of the body.
    """
    wanted = model[0].state_dict()
    kept = {}
    for key, value in state.items():
        # Not by name alone: the `head` of timm's ConvNeXt also holds the last norm of the body.
        if key in wanted or not key.removeprefix(TIMM_PREFIX).startswith(CLASSIFIERS):
            kept[key] = value
    channels = in_channels(model)
    if channels != RGB_CHANNELS:
        kept = _with_first_layer(kept, wanted, channels)
    differing = _differing(wanted, kept)
    if differing:
        raise ConfigError(
            f"{source} does not hold weights of this architecture: "
            f"{len(differing)} tensors differ, such as {differing[0]}",
            "a body with only part of its weights would start from noise",
            "give the --model.arch that the file was made for, or --model.weights none",
        )
    # Not strict: the number of batches seen may be missing.
    model[0].load_state_dict(kept, strict=False)


def spread(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """Returns the weight of a first convolution for another number of channels.

    Added channels begin as the mean of red, green and blue; fewer than three all do. Then all is
    scaled by 3 / channels. So the weights of a filter keep their sum, and a picture whose channels
    are all equal gets the response of the RGB network.

    Args:
        weight: float (F, 3, H, W).
        channels: their new number.

    Returns:
        float (F, channels, H, W).
    """
    exact = weight.double()
    mean = exact.mean(1, keepdim=True)
    added = channels - RGB_CHANNELS
    parts = [exact, mean.expand(-1, max(added, 0), -1, -1)]
    if added < 0:
        parts = [mean.expand(-1, channels, -1, -1)]
    return (torch.cat(parts, 1) * RGB_CHANNELS / channels).to(weight.dtype)


def _with_first_layer(
    found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], channels: int
) -> dict[str, torch.Tensor]:
    """The same weights with a first layer of RGB spread over the channels of the network."""
    changed = {}
    for key, value in found.items():
        if key in wanted and _is_rgb_of(value, wanted[key], channels):
            value = spread(value, channels)
        changed[key] = value
    return changed


def _is_rgb_of(found: torch.Tensor, wanted: torch.Tensor, channels: int) -> bool:
    """Whether two weights are of convolutions that differ only in their input channels."""
    if found.ndim != 4 or wanted.ndim != 4:
        return False
    filters, inputs, *kernel = wanted.shape
    return inputs == channels and tuple(found.shape) == (filters, RGB_CHANNELS, *kernel)


def _differing(wanted: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of tensors that only one of two state dicts has, then of those that differ in shape."""
    names = []
    for key in sorted(wanted.keys() ^ found.keys()):
        # torchvision's first ImageNet files of ResNet lack the number of batches seen. BatchNorm
        # uses it for cumulative averages only, which no network here has.
        if not key.endswith("num_batches_tracked"):
            names.append(key)
    for key in sorted(wanted.keys() & found.keys()):
        if wanted[key].shape != found[key].shape:
            names.append(key)
    return names


def _from_torchvision(arch: str) -> dict[str, torch.Tensor]:
    entry: Any = None
    for weights in torchvision.models.get_model_weights(arch):
        if weights.name == "IMAGENET1K_V1":
            entry = weights
    if entry is None:
        raise ConfigError(
            f"torchvision has no IMAGENET1K_V1 weights for {arch}",
            "",
            "--model.weights none, or a file of weights",
        )
    try:
        state: dict[str, torch.Tensor] = entry.get_state_dict(progress=False, check_hash=True)
    # A RuntimeError is a wrong hash.
    except (URLError, OSError, RuntimeError) as error:
        raise RemoteError(
            f"the ImageNet weights of {arch} could not be downloaded ({error})",
            "training starts from them",
            f"fetch {entry.url} on a machine with internet access and give --model.weights FILE, "
            "or train from scratch with --model.weights none",
        ) from None
    return state


def _from_timm(name: str) -> dict[str, torch.Tensor]:
    if not timm_package().is_model_pretrained(name):
        raise ConfigError(
            f"timm has no weights for {name}", "", "--model.weights none, or a file of weights"
        )
    try:
        state: dict[str, torch.Tensor] = timm_network(name, pretrained=True).state_dict()
    except (OSError, RuntimeError) as error:
        raise RemoteError(
            f"the weights of timm's {name} could not be downloaded "
            f"({type(error).__name__}: {first_line(error)})",
            "training starts from them",
            "fetch its state dict on a machine with internet access and give --model.weights FILE, "
            "or train from scratch with --model.weights none",
        ) from None
    return state


def _from_file(weights: str) -> dict[str, torch.Tensor]:
    path = Path(weights).expanduser()
    if not path.is_file():
        raise ConfigError(
            f'model.weights = "{weights}" is neither "imagenet", "none" nor a file',
            "training would silently start from noise",
            "--model.weights imagenet, none, or the path of a state dict",
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        _check_tensors(state)
    # torch raises many types of errors, some without a message, for files that it did not write.
    except Exception as error:
        raise ConfigError(
            f"{weights} cannot be read as weights: {type(error).__name__} {first_line(error)}",
            "only plain tensors are loaded (weights_only), never code",
            "save it with torch.save(model.state_dict(), FILE)",
        ) from None
    loaded: dict[str, torch.Tensor] = state
    return loaded


def _check_tensors(state: Any) -> None:
    if not isinstance(state, dict):
        raise ValueError("it holds no state dict")
    for value in state.values():
        if not isinstance(value, torch.Tensor):
            raise ValueError("it holds no state dict")


def load_weights(model: nn.Module, state: dict[str, torch.Tensor], path: str) -> None:
    """Loads the weights of a checkpoint into a network, in place.

    Args:
        model: the network that the meta.json of the checkpoint names.
        state: tensors by name.
        path: the checkpoint, for the error message.

    Raises:
        ConfigError: the weights belong to another network.
    """
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        # torch's first line names the class of the network, the second one a tensor.
        detail = str(error).splitlines()[1].strip()[:200]
        raise ConfigError(
            f"the weights of the checkpoint {path} do not fit the network that its meta.json "
            f"names: {detail}",
            "one of the two belongs to another checkpoint",
            "give another checkpoint; raytrain runs show RUN lists those of a run",
        ) from None
