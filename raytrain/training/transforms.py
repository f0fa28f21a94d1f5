"""Augmentation and normalisation of whole batches, on the device that trains.

Dihedral flip, rotation, zoom and the resize are one affine matrix per tile and one `grid_sample`; brightness and
contrast follow in logit space. Numbers and formulas: fastai 1.0.21 `get_transforms(flip_vert=True, max_lighting=.1,
max_zoom=1.05, max_warp=0.)` (vision/transform.py, vision/image.py), bilinear, no antialias, align_corners, reflection.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from raytrain.config import Augment

# Stored with checkpoints: how pixels of the stored tile become pixels of the network.
RESIZE_RULE = "bilinear, align_corners, no antialias"
NORMALIZE = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


@dataclass(frozen=True)
class Draws:
    """What was drawn for a batch: affine float64 (B, 2, 3), brightness and contrast float64 (B,)."""

    affine: torch.Tensor
    brightness: torch.Tensor
    contrast: torch.Tensor

    def rows(self, part: slice | torch.Tensor) -> Draws:
        """The draws of a part of the batch, given as a slice or as indices."""
        return Draws(self.affine[part], self.brightness[part], self.contrast[part])

    def to(self, device: torch.device) -> Draws:
        """The draws on a device, in one copy."""
        if device.type == "cpu":
            return self
        packed = torch.cat(
            [self.affine.flatten(1), self.brightness[:, None], self.contrast[:, None]], 1
        )
        packed = packed.pin_memory().to(device, non_blocking=True)
        return Draws(packed[:, :6].unflatten(1, (2, 3)), packed[:, 6], packed[:, 7])


def draw(augment: Augment, count: int, generator: torch.Generator) -> Draws:
    """Draws the augmentation of a global batch of `count` tiles from a CPU generator.

    Always the same number of draws in the same order, so that switching one change off leaves the others as they were.
    """
    uniform = torch.rand(10, count, generator=generator, dtype=torch.float64)
    affine = _dihedral(augment.flip, uniform[0])
    affine = affine @ _rotation(augment, uniform[1], uniform[2])
    affine = affine @ _zoom(augment, uniform[3], uniform[4], uniform[5:7])
    brightness, contrast = _lighting(augment, uniform[7:9], uniform[9])
    return Draws(affine[:, :2], brightness, contrast)


def train_pixels(
    images: torch.Tensor,
    draws: Draws,
    size: int,
    normalize: str,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """uint8 (B, 3, H, W) to augmented, normalised `dtype` (B, 3, size, size)."""
    pixels = images.to(dtype).div_(255)
    grid = F.affine_grid(draws.affine.to(dtype), [len(images), 3, size, size], align_corners=True)
    pixels = F.grid_sample(
        pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=True
    )
    return _normalized(
        _lit(pixels, draws.brightness.to(dtype), draws.contrast.to(dtype)), normalize
    )


def valid_pixels(
    images: torch.Tensor, size: int, normalize: str, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """uint8 (B, 3, H, W) to resized, normalised `dtype` (B, 3, size, size); nothing random."""
    pixels = images.to(dtype).div_(255)
    if pixels.shape[-2:] != (size, size):
        pixels = F.interpolate(
            pixels, (size, size), mode="bilinear", align_corners=True, antialias=False
        )
    return _normalized(pixels, normalize)


def examples(
    images: np.ndarray[Any, Any], augment: Augment, count: int, size: int, seed: int
) -> np.ndarray[Any, Any]:
    """What training makes of some tiles, for people to look at: uint8 (B, H, W, 3) to uint8 (B, count, size, size, 3)."""
    batch = torch.tensor(images).permute(0, 3, 1, 2).repeat(count, 1, 1, 1)
    draws = draw(augment, len(batch), torch.Generator().manual_seed(seed))
    pixels = (train_pixels(batch, draws, size, "none") * 255).round().byte().permute(0, 2, 3, 1)
    return pixels.reshape(count, len(images), size, size, 3).transpose(0, 1).numpy()


def symmetry(pixels: torch.Tensor, number: int) -> torch.Tensor:
    """One of the 8 symmetries of the square (0 is the identity) of (B, C, S, S), exact."""
    turned = torch.rot90(pixels, number % 4, (-2, -1))
    return turned.flip(-1) if number >= 4 else turned


def _dihedral(flip: str, u: torch.Tensor) -> torch.Tensor:
    # fastai 1.0.21 draws from 0 to 8; its last value is the identity once more (8 & 7 = 0).
    choices = {"dihedral": 8, "dihedral-2018": 9, "horizontal": 2, "none": 1}
    k = (u * choices[flip]).long()
    x = torch.where(k & 1 > 0, -1.0, 1.0).double()
    y = torch.where(k & 2 > 0, -1.0, 1.0).double()
    swap = (k & 4 > 0).double()
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    return _matrix((x * (1 - swap), x * swap, zero), (y * swap, y * (1 - swap), zero), one)


def _rotation(augment: Augment, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    angle = torch.where(u < augment.p_affine, (2 * v - 1) * math.radians(augment.rotate), 0.0)
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    return _matrix((angle.cos(), -angle.sin(), zero), (angle.sin(), angle.cos(), zero), one)


def _zoom(augment: Augment, u: torch.Tensor, v: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    scale = torch.where(u < augment.p_affine, 1 + v * (augment.zoom - 1), 1.0)
    shift = (1 - 1 / scale) * (2 * centre - 1)
    zero, one = torch.zeros_like(scale), torch.ones_like(scale)
    return _matrix((1 / scale, zero, shift[0]), (zero, 1 / scale, shift[1]), one)


def _matrix(
    top: tuple[torch.Tensor, ...], middle: tuple[torch.Tensor, ...], one: torch.Tensor
) -> torch.Tensor:
    zero = torch.zeros_like(one)
    rows = [torch.stack(row, -1) for row in (top, middle, (zero, zero, one))]
    return torch.stack(rows, -2)


def _lighting(
    augment: Augment, u: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    # One uniform per value serves both the coin and the amount: u below p is uniform in [0, p).
    p, amount = augment.p_lighting, augment.lighting
    change = 0.5 + amount * (u[0] - 0.5)
    brightness = torch.where(u[1] < p, torch.logit(change), 0.0)
    share = (v / max(p, 1e-12)).clamp(max=1)
    log_scale = (1 - 2 * share) * math.log(1 - amount)
    contrast = torch.where(v < p, log_scale.exp(), 1.0)
    return brightness, contrast


def _lit(pixels: torch.Tensor, brightness: torch.Tensor, contrast: torch.Tensor) -> torch.Tensor:
    # sigmoid((logit(p) + logit(c)) * s): fastai 1 adds brightness and scales contrast on the logits of the pixels.
    # In place: a batch of pixels is as large as any activation, and new memory costs as much as the arithmetic.
    logits = torch.logit_(pixels, eps=1e-7)
    return (
        logits.add_(brightness[:, None, None, None]).mul_(contrast[:, None, None, None]).sigmoid_()
    )


def _normalized(pixels: torch.Tensor, normalize: str) -> torch.Tensor:
    mean, std = _constants(normalize, pixels.dtype, pixels.device)
    return pixels.sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)


@functools.cache
def _constants(
    normalize: str, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, ...]:
    """Mean and deviation (1, 3, 1, 1), kept: to make them for every batch, the host would wait for a GPU."""
    return tuple(
        torch.tensor(v, dtype=dtype, device=device).view(1, 3, 1, 1) for v in NORMALIZE[normalize]
    )
