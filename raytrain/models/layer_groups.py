"""Layer groups of a network, and which of them train.

fastai 1.0.21 torch_core.py:177-191.
"""

from __future__ import annotations

from typing import Any

from torch import nn

_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


def layer_groups(model: nn.Sequential) -> list[list[nn.Parameter]]:
    """Parameters of the body's first part, of the rest of it, and of the head.

    Of a torchvision network the first part ends at an eighth of the tile's size, of a ResNet it is conv1 to layer2
    (fastai 1 splits `m[0][6], m[1]`); of a timm network it is the first half of its stages.
    """
    body: Any
    body, head = model
    named = list(body.named_parameters())
    early, late = (
        [p for name, p in named if (name in body.early) is first] for first in (True, False)
    )
    return [early, late, list(head.parameters())]


def set_frozen(model: nn.Sequential, groups: int) -> None:
    """Freezes the first `groups` layer groups except BatchNorm, which stays trainable (fastai 1's train_bn=True).

    Everything else trains.
    """
    norms = {
        id(p)
        for m in model.modules()
        if isinstance(m, _BATCH_NORM)
        for p in m.parameters(recurse=False)
    }
    for number, group in enumerate(layer_groups(model)):
        for parameter in group:
            parameter.requires_grad_(number >= groups or id(parameter) in norms)
