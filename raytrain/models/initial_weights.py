"""Initial weights: from ImageNet, from a file, or from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import torch
import torchvision
from torch import nn

from raytrain.errors import ConfigError, RemoteError
from raytrain.models.bodies import TIMM, first_line, timm_network, timm_package

CLASSIFIERS = ("fc.", "classifier.", "head.", "head_dist.", "last_linear.")


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
    state = (
        _file(weights)
        if weights != "imagenet"
        else _timm_weights(arch)
        if prefix
        else _imagenet(arch)
    )
    return {prefix + key: value for key, value in state.items()}


def load_body(model: nn.Sequential, state: dict[str, torch.Tensor], source: str) -> None:
    """Loads what `body_weights` gave in place; the classifier among it is dropped.

    Raises:
        ConfigError: keys or shapes differ.
    """
    wanted = model[0].state_dict()
    # By what the body wants and not by name alone: the `head` of timm's ConvNeXt holds the body's last norm too.
    kept = {
        k: v
        for k, v in state.items()
        if k in wanted or not k.removeprefix("network.").startswith(CLASSIFIERS)
    }
    # ImageNet's first files of ResNet lack the number of batches seen; it plays no part without cumulative averages.
    wrong = sorted(
        key for key in wanted.keys() ^ kept.keys() if not key.endswith("num_batches_tracked")
    )
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
            f"torchvision has no IMAGENET1K_V1 weights for {arch}",
            "",
            "--model.weights none, or a file of weights",
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
    if not timm_package().is_model_pretrained(name):
        raise ConfigError(
            f"timm has no weights for {name}", "", "--model.weights none, or a file of weights"
        )
    try:
        state: dict[str, torch.Tensor] = timm_network(name, pretrained=True).state_dict()
    except (OSError, RuntimeError) as error:
        raise RemoteError(
            f"the weights of timm's {name} could not be downloaded ({type(error).__name__}: {first_line(error)})",
            "training starts from them",
            "fetch its state dict on a machine with internet access and give --model.weights FILE, "
            "or train from scratch with --model.weights none",
        ) from None
    return state


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
        if not isinstance(state, dict) or not all(
            isinstance(v, torch.Tensor) for v in state.values()
        ):
            raise ValueError("it holds no state dict")
    except (
        Exception
    ) as error:  # torch raises many types, some without text, for files that are not its own
        raise ConfigError(
            f"{weights} cannot be read as weights: {type(error).__name__} {first_line(error)}",
            "only plain tensors are loaded (weights_only), never code",
            "save it with torch.save(model.state_dict(), FILE)",
        ) from None
    return state


def load_weights(model: nn.Module, state: dict[str, torch.Tensor], path: str) -> None:
    """Gives a network the weights of a checkpoint at a place.

    Raises:
        ConfigError: they are those of another one, whatever its meta.json says.
    """
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        found = str(error).splitlines()
        raise ConfigError(
            f"the weights of the checkpoint {path} do not fit the network that its meta.json names: {found[1].strip()[:200]}",
            "one of the two is of another checkpoint",
            "give another checkpoint; raytrain runs show RUN lists those of a run",
        ) from None
