"""The network: a torchvision ResNet body with the lesson's head, its layer groups, freezing and initial weights.

Structure and numbers: fastai 1.0.21 vision/learner.py:34-44, layers.py:29-35 and 61-68, torch_core.py:177-191.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from urllib.error import URLError

import torch
import torchvision
from torch import nn

from raytrain.errors import ConfigError, RemoteError, did_you_mean

HIDDEN = 512
_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


class ConcatPool(nn.Module):
    """(B, C, H, W) to (B, 2C): maximum and mean over the picture, so any size of tile gives the same head."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Pools in float32: a mean over thousands of bf16 values would lose its last digits."""
        features = features.float()
        return torch.cat([features.amax((2, 3)), features.mean((2, 3))], 1)


def build(arch: str, outputs: int, dropout: float) -> nn.Sequential:
    """A network of two children, `body` and `head`, with random weights from torch's global generator.

    Raises:
        ConfigError: `arch` is not a torchvision ResNet.
    """
    body, channels = _body(arch)
    return nn.Sequential(OrderedDict(body=body, head=_head(channels, outputs, dropout)))


def _body(arch: str) -> tuple[nn.Sequential, int]:
    resnets = [
        name for name in torchvision.models.list_models() if name.startswith(("resnet", "resnext", "wide_resnet"))
    ]
    if arch not in resnets:
        raise ConfigError(
            f'model.arch = "{arch}" is not a torchvision ResNet.{did_you_mean(arch, resnets)}',
            "the layer groups and the head are defined for ResNets",
            f"one of: {', '.join(resnets)}",
        )
    network = torchvision.models.get_model(arch, weights=None)
    children = OrderedDict(list(network.named_children())[:-2])
    return nn.Sequential(children), network.fc.in_features


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


def layer_groups(model: nn.Sequential) -> list[nn.Module]:
    """Three groups from input to output: stem to layer2, layer3 and layer4, head (fastai 1 splits `m[0][6], m[1]`)."""
    body, head = model
    children = list(body.children())
    return [nn.ModuleList(children[:6]), nn.ModuleList(children[6:]), head]


def set_frozen(model: nn.Sequential, frozen: bool) -> None:
    """Freezes or unfreezes the body; its BatchNorm stays trainable and its statistics keep moving (train_bn=True)."""
    for module in model[0].modules():
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(not frozen or isinstance(module, _BATCH_NORM))


def body_weights(arch: str, weights: str) -> dict[str, torch.Tensor] | None:
    """Initial weights of the body from `imagenet` (downloaded once, hash checked), a file, or None for `none`.

    A file is a torchvision ResNet state dict; its classifier is dropped.

    Raises:
        ConfigError: no such file, or not the weights of this architecture.
        RemoteError: the download failed.
    """
    if weights == "none":
        return None
    state = _imagenet(arch) if weights == "imagenet" else _file(weights)
    # torchvision appends the number of batches seen to newer files only; it plays no part without cumulative averages.
    return {key: value for key, value in state.items() if not key.startswith("fc.")}


def load_body(model: nn.Sequential, state: dict[str, torch.Tensor], source: str) -> None:
    """Loads body weights in place.

    Raises:
        ConfigError: keys or shapes differ.
    """
    wanted = model[0].state_dict()
    wrong = sorted(wanted.keys() ^ state.keys() - {k for k in wanted.keys() ^ state.keys() if "num_batches" in k})
    wrong += [key for key in wanted.keys() & state.keys() if wanted[key].shape != state[key].shape]
    if wrong:
        raise ConfigError(
            f"{source} does not hold weights of this architecture: {len(wrong)} tensors differ, such as {wrong[0]}",
            "a body with part of its weights would start from noise",
            "give the --model.arch that the file was made for, or --model.weights none",
        )
    model[0].load_state_dict(state, strict=False)


def _imagenet(arch: str) -> dict[str, torch.Tensor]:
    weights = torchvision.models.get_model_weights(arch)
    entry = next((w for w in weights if w.name == "IMAGENET1K_V1"), None)
    if entry is None:
        raise ConfigError(
            f"torchvision has no IMAGENET1K_V1 weights for {arch}", "", "--model.weights none, or a file of weights"
        )
    try:
        state: dict[str, torch.Tensor] = entry.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        raise RemoteError(
            f"the ImageNet weights of {arch} could not be downloaded ({error})",
            "training starts from them",
            f"fetch {entry.url} on a machine with internet access and give --model.weights FILE, "
            "or train from scratch with --model.weights none",
        ) from None
    return state


def _file(weights: str) -> dict[str, torch.Tensor]:
    path = Path(weights).expanduser()
    if not path.is_file():
        raise ConfigError(
            f'model.weights = "{weights}" is neither "imagenet", "none" nor a file',
            "training would start from noise without saying so",
            "--model.weights imagenet, none, or the path of a torchvision state dict",
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
            raise ValueError("it holds no state dict")
    except Exception as error:  # torch raises many types, some without text, for files that are not its own
        raise ConfigError(
            f"{weights} cannot be read as weights: {type(error).__name__} {str(error).splitlines()[:1]}",
            "only plain tensors are loaded (weights_only), never code",
            "save it with torch.save(model.state_dict(), FILE)",
        ) from None
    return state


def parameter_count(module: nn.Module) -> int:
    """Number of parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in module.parameters())
