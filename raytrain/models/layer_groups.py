"""Divides the parameters of a network into layer groups, and freezes the first of them.

Source: fastai 1.0.21 torch_core.py:177-191.
"""

from __future__ import annotations

from typing import Any

from torch import nn

_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


def layer_groups(model: nn.Sequential) -> list[list[nn.Parameter]]:
    """Returns the parameters of the three layer groups.

    They are the first part of the body, the rest of the body, and the head. In a torchvision
    network, the first part ends where the feature map has an eighth of the size of the tile. For a
    ResNet that is conv1 to layer2 (fastai 1 splits at `m[0][6], m[1]`). In a timm network, the
    first part is the first half of the stages.
    """
    body: Any
    body, head = model
    early, late = [], []
    for name, parameter in body.named_parameters():
        if name in body.early:
            early.append(parameter)
        else:
            late.append(parameter)
    return [early, late, list(head.parameters())]


def set_frozen(model: nn.Sequential, groups: int) -> None:
    """Freezes the first `groups` layer groups, except their BatchNorm. Everything else trains.

    BatchNorm stays trainable as with train_bn=True of fastai 1.
    """
    norms = _batch_norm_ids(model)
    for number, group in enumerate(layer_groups(model)):
        for parameter in group:
            trains = number >= groups or id(parameter) in norms
            parameter.requires_grad_(trains)


def _batch_norm_ids(model: nn.Module) -> set[int]:
    """The ids of the weights and biases of all BatchNorm layers.

    By id, because comparing tensors with == compares their elements.
    """
    ids = set()
    for module in model.modules():
        if isinstance(module, _BATCH_NORM):
            for parameter in module.parameters(recurse=False):
                ids.add(id(parameter))
    return ids
