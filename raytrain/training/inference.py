"""From stored pixels to logits without training: validation and `predict` compute alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from raytrain.config import Normalization
from raytrain.models.precision import autocast, dtype_of
from raytrain.tasks.classification import unchanged
from raytrain.training import transforms


@dataclass(frozen=True)
class Inference:
    """How tiles become logits.

    Args:
        size: side of the network's pixels.
        normalize: a name of `transforms.NORMALIZE`, or mean and deviation of each channel.
        precision: fp64, fp32 or bf16.
        symmetries: of the square, over which the logits are averaged; 1 for the tile as it is, 8
            for all.
        undone: turns the outputs of a symmetry back into those of the tile, see `raytrain.tasks`.
    """

    size: int
    normalize: Normalization
    precision: str
    symmetries: int = 1
    undone: Callable[[torch.Tensor, int], torch.Tensor] = unchanged

    @property
    def dtype(self) -> torch.dtype:
        """Type of pixels and logits."""
        return dtype_of(self.precision)


def logits_of(model: nn.Module, images: torch.Tensor, how: Inference) -> torch.Tensor:
    """Logits of some tiles.

    Args:
        model: in evaluation mode, without DDP: no collective may depend on how many batches a rank
            has.
        images: uint8 or uint16 (B, C, H, W), on the network's device.
        how: see there.

    Returns:
        (B, K), float64 in fp64, else float32.
    """
    pixels = transforms.valid_pixels(images, how.size, how.normalize, how.dtype)
    with torch.inference_mode(), autocast(how.precision, images.device):
        if how.symmetries == 1:
            logits: torch.Tensor = model(pixels)
            return logits.to(how.dtype)
        views = []
        for number in range(how.symmetries):
            view = transforms.symmetry(pixels, number)
            # A symmetry is a view with other strides. Convolutions are fast on channels-last.
            view = view.contiguous(memory_format=torch.channels_last)
            views.append(how.undone(model(view).to(how.dtype), number))
        return torch.stack(views).mean(0)
