"""The network: a body without its classifier, the lesson's head, layer groups, freezing and initial weights.

Structure and numbers: fastai 1.0.21 vision/learner.py:34-44, layers.py:29-35 and 61-68, torch_core.py:177-191.
"""

from __future__ import annotations

import contextlib
import functools
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import torchvision
from torch import nn

from raytrain.errors import ConfigError, RemoteError, did_you_mean

HIDDEN = 512
FAMILIES = ("resnet", "resnext", "wide_resnet", "convnext", "efficientnet", "swin_")
TIMM = "timm:"
# Where the map has an eighth of the tile's size: children of a ResNet, blocks of the other families' `features`.
EARLY_CHILDREN, EARLY_FEATURES = 6, 4
CLASSIFIERS = ("fc.", "classifier.", "head.", "head_dist.", "last_linear.")
PROBE_SIZE = 64
Child = tuple[str, nn.Module]
_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


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


class Body(nn.Sequential):
    """(B, 3, S, S) to a map of features (B, `channels`, H, W); `early` names the parameters of the first layer group."""

    channels: int
    early: frozenset[str]


class ConcatPool(nn.Module):
    """(B, C, H, W) to (B, 2C): maximum and mean over the picture, so any size of tile gives the same head."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Pools in float32 at least: a mean over thousands of bf16 values would lose its last digits."""
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        return torch.cat([features.amax((2, 3)), features.mean((2, 3))], 1)


class ChannelsFirst(nn.Module):
    """(B, H, W, C) to (B, C, H, W)."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Permutes the axes."""
        return features.permute(0, 3, 1, 2)


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
    body = _timm_body(arch.removeprefix(TIMM)) if arch.startswith(TIMM) else _torchvision_body(arch)
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
    converter: Any = _timm().layers if arch.startswith(TIMM) else nn.SyncBatchNorm
    converted: Network = converter.convert_sync_batchnorm(model)
    return converted


def _torchvision_body(arch: str) -> Body:
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
    parts = [(name, part) for name, part in network.named_children() if name in ("features", "norm", "permute")]
    last = network.head if hasattr(network, "head") else network.classifier[-1]
    early = [(f"features.{i}", network.features[i]) for i in range(EARLY_FEATURES)]
    return _body(parts, last.in_features, early)


def _body(children: list[Child], channels: int, early: list[Child]) -> Body:
    body = Body(OrderedDict(children))
    body.channels = channels
    body.early = frozenset(f"{name}.{inner}" for name, part in early for inner, _ in part.named_parameters())
    return body


def _timm() -> Any:
    try:
        import timm
    except ModuleNotFoundError:
        raise ConfigError(
            f"model.arch = {TIMM}NAME needs the package timm", "it is an extra", "pip install 'raytrain[timm]'"
        ) from None
    return timm


def _timm_body(name: str) -> Body:
    network = _timm_network(name)
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
        groups = _timm().models.group_parameters(network, network.group_matcher(coarse=True))
    except (AssertionError, AttributeError) as error:
        raise ConfigError(
            f"timm defines no layer groups for {name} ({_first_line(error)})",
            "the rates and the freezing of a stage need them",
            "another network, such as --model.arch timm:convnext_atto",
        ) from None
    return [inner for number, names in groups.items() if number <= max(groups) // 2 for inner in names]


def _timm_network(name: str, pretrained: bool = False) -> Any:
    """The network without classifier and pooling, for tiles of any size where timm offers that."""
    timm = _timm()
    known = [*timm.list_models(), *timm.list_pretrained()]
    if name not in known:
        raise ConfigError(f'timm has no model "{name}".{did_you_mean(name, known)}', "", "a name of timm.list_models()")
    create = functools.partial(timm.create_model, name, pretrained=pretrained, num_classes=0, global_pool="")
    try:
        # Swin takes other sizes than that of its training only with this option, which most networks do not know.
        with contextlib.suppress(TypeError):
            return create(strict_img_size=False)
        return create()
    except (AssertionError, TypeError, ValueError) as error:
        raise _no_map(name, f"cannot be built without its pooling ({_first_line(error)})") from None


def _probed_shape(network: nn.Module, name: str) -> tuple[int, ...]:
    """Shape of the features of one small tile: four numbers."""
    try:
        with torch.no_grad():
            features = network.eval()(torch.zeros(1, 3, PROBE_SIZE, PROBE_SIZE))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise _no_map(name, f"does not take tiles of {PROBE_SIZE} px ({_first_line(error)})") from None
    network.train()
    if not isinstance(features, torch.Tensor) or features.ndim != 4:
        raise _no_map(name, f"gives {tuple(getattr(features, 'shape', ()))} for a tile, not a map of features")
    return tuple(features.shape)


def _no_map(name: str, what: str) -> ConfigError:
    return ConfigError(
        f"timm's {name} {what}",
        "the head pools maximum and mean over a map of features, and stages may differ in size",
        "a network of that kind, such as --model.arch timm:convnext_atto or swin_t",
    )


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


def placed(model: nn.Sequential, device: torch.device, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """The same network, moved to a device and type, with its convolutions' weights in channels-last order."""
    return model.to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]  # torch's stubs


def running_statistics(model: nn.Module) -> list[torch.Tensor]:
    """Running mean and variance of every BatchNorm."""
    return [b for name, b in model.named_buffers() if name.endswith(("running_mean", "running_var"))]


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
                f"{arch} cannot take tiles of {size} px ({_first_line(error)})",
                "a stage of the recipe has this size",
                "give its stage another size (or start_size); multiples of 32 from 64 on suit every network here",
            ) from None
        finally:
            model.train()


def layer_groups(model: nn.Sequential) -> list[list[nn.Parameter]]:
    """Parameters of the body's first part, of the rest of it, and of the head.

    Of a torchvision network the first part ends at an eighth of the tile's size, of a ResNet it is conv1 to layer2
    (fastai 1 splits `m[0][6], m[1]`); of a timm network it is the first half of its stages.
    """
    body: Any
    body, head = model
    named = list(body.named_parameters())
    early, late = ([p for name, p in named if (name in body.early) is first] for first in (True, False))
    return [early, late, list(head.parameters())]


def set_frozen(model: nn.Sequential, groups: int) -> None:
    """Freezes the first `groups` layer groups except BatchNorm, which stays trainable (fastai 1's train_bn=True).

    Everything else trains.
    """
    norms = {id(p) for m in model.modules() if isinstance(m, _BATCH_NORM) for p in m.parameters(recurse=False)}
    for number, group in enumerate(layer_groups(model)):
        for parameter in group:
            parameter.requires_grad_(number >= groups or id(parameter) in norms)


def body_weights(arch: str, weights: str) -> dict[str, torch.Tensor] | None:
    """Initial weights from `imagenet` (downloaded once, hash checked), a file, or None for `none`; for `load_body`.

    `imagenet` is torchvision's IMAGENET1K_V1, or timm's default weights. A file is a state dict of torchvision (of timm
    for timm:NAME).

    Raises:
        ConfigError: no such file, no state dict, or there are no such weights.
        RemoteError: the download failed.
    """
    if weights == "none":
        return None
    prefix = "network." if arch.startswith(TIMM) else ""
    state = _file(weights) if weights != "imagenet" else _timm_weights(arch) if prefix else _imagenet(arch)
    return {prefix + key: value for key, value in state.items()}


def load_body(model: nn.Sequential, state: dict[str, torch.Tensor], source: str) -> None:
    """Loads what `body_weights` gave in place; the classifier among it is dropped.

    Raises:
        ConfigError: keys or shapes differ.
    """
    wanted = model[0].state_dict()
    # By what the body wants and not by name alone: the `head` of timm's ConvNeXt holds the body's last norm too.
    kept = {k: v for k, v in state.items() if k in wanted or not k.removeprefix("network.").startswith(CLASSIFIERS)}
    # ImageNet's first files of ResNet lack the number of batches seen; it plays no part without cumulative averages.
    wrong = sorted(key for key in wanted.keys() ^ kept.keys() if not key.endswith("num_batches_tracked"))
    wrong += [key for key in wanted.keys() & kept.keys() if wanted[key].shape != kept[key].shape]
    if wrong:
        raise ConfigError(
            f"{source} does not hold weights of this architecture: {len(wrong)} tensors differ, such as {wrong[0]}",
            "a body with part of its weights would start from noise",
            "give the --model.arch that the file was made for, or --model.weights none",
        )
    model[0].load_state_dict(kept, strict=False)


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


def _timm_weights(arch: str) -> dict[str, torch.Tensor]:
    name = arch.removeprefix(TIMM)
    if not _timm().is_model_pretrained(name):
        raise ConfigError(f"timm has no weights for {name}", "", "--model.weights none, or a file of weights")
    try:
        state: dict[str, torch.Tensor] = _timm_network(name, pretrained=True).state_dict()
    except (OSError, RuntimeError) as error:
        raise RemoteError(
            f"the weights of timm's {name} could not be downloaded ({type(error).__name__}: {_first_line(error)})",
            "training starts from them",
            "fetch its state dict on a machine with internet access and give --model.weights FILE, "
            "or train from scratch with --model.weights none",
        ) from None
    return state


def _first_line(error: Exception) -> str:
    """What an error says, which is its type where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _file(weights: str) -> dict[str, torch.Tensor]:
    path = Path(weights).expanduser()
    if not path.is_file():
        raise ConfigError(
            f'model.weights = "{weights}" is neither "imagenet", "none" nor a file',
            "training would start from noise without saying so",
            "--model.weights imagenet, none, or the path of a state dict",
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
            raise ValueError("it holds no state dict")
    except Exception as error:  # torch raises many types, some without text, for files that are not its own
        raise ConfigError(
            f"{weights} cannot be read as weights: {type(error).__name__} {_first_line(error)}",
            "only plain tensors are loaded (weights_only), never code",
            "save it with torch.save(model.state_dict(), FILE)",
        ) from None
    return state


def load_weights(model: nn.Module, state: dict[str, torch.Tensor], place: str) -> None:
    """Gives a network the weights of a checkpoint at a place.

    Raises:
        ConfigError: they are those of another one, whatever its meta.json says.
    """
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        found = str(error).splitlines()
        raise ConfigError(
            f"the weights of the checkpoint {place} do not fit the network that its meta.json names: {found[1].strip()[:200]}",
            "one of the two is of another checkpoint",
            "give another checkpoint; raytrain runs show RUN lists those of a run",
        ) from None


def parameter_count(model: nn.Module) -> int:
    """Number of parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in model.parameters())
