"""Augmentation and normalisation of whole batches, on the device that trains.

Dihedral flip, rotation, zoom, perspective warp and the resize are one matrix per tile and one
`grid_sample`; brightness and contrast follow in logit space. Numbers and formulas: fastai 1.0.21
`get_transforms(flip_vert=True, max_lighting=.1, max_zoom=1.05, max_warp=0.)` (vision/transform.py,
vision/image.py), bilinear, no antialias, align_corners, reflection.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from raytrain.config import Augment, Normalization, Statistics
from raytrain.data.tile_format import LARGEST

# Uniform numbers for each tile.
DRAWS = 10
# Further ones where tiles are warped.
WARP_DRAWS = 5
# Of a tile, in the order of fastai 1.0.21's `_orig_pts`: (x, y).
CORNERS = ((-1.0, -1.0), (-1.0, 1.0), (1.0, -1.0), (1.0, 1.0))
# Stored with checkpoints: how pixels of the stored tile become pixels of the network.
RESIZE_RULE = "bilinear, align_corners, no antialias"
NORMALIZE = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "none": ((0.0,), (1.0,)),  # for any number of channels
}
# The value of a stored pixel that becomes 1.
SCALE = {torch.uint8: LARGEST["uint8"], torch.uint16: LARGEST["uint16"]}


@dataclass(frozen=True)
class Draws:
    """Draws of a batch: affine float64 (B, 2, 3), brightness and contrast float64 (B,).

    Where tiles are warped, `affine` is (B, 3, 3): a homography, whose third row is not (0, 0, 1).
    """

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
        parts = [self.affine.flatten(1), self.brightness[:, None], self.contrast[:, None]]
        # (B, 8), or (B, 11) where tiles are warped: one copy instead of three
        packed = torch.cat(parts, 1)
        packed = packed.pin_memory().to(device, non_blocking=True)
        affine = packed[:, :-2].unflatten(1, self.affine.shape[1:])
        return Draws(affine, packed[:, -2], packed[:, -1])


def draw(augment: Augment, count: int, generator: torch.Generator) -> Draws:
    """Draws the augmentation of a global batch of `count` tiles from a CPU generator.

    Always the same number of draws in the same order, so that switching one change off leaves the
    others as they were.
    """
    uniform = torch.rand(DRAWS, count, generator=generator, dtype=torch.float64)
    affine = _dihedral(augment.flip, uniform[0])
    affine = affine @ _rotation(augment, uniform[1], uniform[2])
    affine = affine @ _zoom(augment, uniform[3], uniform[4], uniform[5:7])
    brightness = _brightness(augment, uniform[7], uniform[8])
    contrast = _contrast(augment, uniform[9])
    if not augment.warp:
        # The last row of each matrix is (0, 0, 1), which `affine_grid` leaves out.
        return Draws(affine[:, :2], brightness, contrast)
    # After all others, which a warp leaves as they are.
    uniform = torch.rand(WARP_DRAWS, count, generator=generator, dtype=torch.float64)
    # fastai moves the points of the output by the warp first, since its order (4) is below that of
    # affine transforms (5).
    return Draws(affine @ _warp(augment, uniform[0], uniform[1:]), brightness, contrast)


def train_pixels(
    images: torch.Tensor,
    draws: Draws,
    size: int,
    normalize: Normalization,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """uint8 or uint16 (B, C, H, W) to augmented, normalised `dtype` (B, C, size, size)."""
    pixels = images.to(dtype).div_(SCALE[images.dtype])
    grid = _grid(draws.affine.to(dtype), size)
    pixels = F.grid_sample(
        pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=True
    )
    pixels = _lit(pixels, draws.brightness.to(dtype), draws.contrast.to(dtype))
    return _normalized(pixels, normalize)


def valid_pixels(
    images: torch.Tensor, size: int, normalize: Normalization, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """uint8 or uint16 (B, C, H, W) to resized, normalised `dtype` (B, C, size, size); nothing
    random.
    """
    pixels = images.to(dtype).div_(SCALE[images.dtype])
    if pixels.shape[-2:] != (size, size):
        pixels = F.interpolate(
            pixels, (size, size), mode="bilinear", align_corners=True, antialias=False
        )
    return _normalized(pixels, normalize)


def examples(
    images: np.ndarray[Any, Any], augment: Augment, count: int, size: int, seed: int
) -> np.ndarray[Any, Any]:
    """What training makes of some tiles, for people to look at.

    Args:
        images: uint8 (B, H, W, 3).
        augment: the augmentation.
        count: pictures of each tile.
        size: their side, pixels.
        seed: of the draws.

    Returns:
        uint8 (B, count, size, size, 3).
    """
    batch = torch.tensor(images).permute(0, 3, 1, 2).repeat(count, 1, 1, 1)
    draws = draw(augment, len(batch), torch.Generator().manual_seed(seed))
    pixels = train_pixels(batch, draws, size, "none")
    pixels = (pixels * 255).round().byte().permute(0, 2, 3, 1)
    pictures = pixels.reshape(count, len(images), size, size, 3)
    return pictures.transpose(0, 1).numpy()


def symmetry(pixels: torch.Tensor, number: int) -> torch.Tensor:
    """One of the 8 symmetries of the square (0 is the identity) of (B, C, S, S), exact."""
    turned = torch.rot90(pixels, number % 4, (-2, -1))
    if number < 4:
        return turned
    return turned.flip(-1)


# The matrices below are float64 (B, 3, 3) and map a point of the output to a point of the input,
# both in [-1, 1].


def _dihedral(flip: str, u: torch.Tensor) -> torch.Tensor:
    # fastai 1.0.21 draws from 0 to 8; its last value is the identity a second time (8 & 7 = 0).
    choices = {"dihedral": 8, "dihedral-2018": 9, "horizontal": 2, "none": 1}
    k = (u * choices[flip]).long()
    # Bit 0 mirrors x, bit 1 mirrors y, bit 2 swaps them.
    x = torch.where(k & 1 > 0, -1.0, 1.0).double()
    y = torch.where(k & 2 > 0, -1.0, 1.0).double()
    swap = (k & 4 > 0).double()
    zero = torch.zeros_like(x)
    top = (x * (1 - swap), x * swap, zero)
    middle = (y * swap, y * (1 - swap), zero)
    return _matrix(top, middle)


def _rotation(augment: Augment, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    largest = math.radians(augment.rotate)
    angle = torch.where(u < augment.p_affine, (2 * v - 1) * largest, 0.0)
    zero = torch.zeros_like(angle)
    cosine = angle.cos()
    sine = angle.sin()
    return _matrix((cosine, -sine, zero), (sine, cosine, zero))


def _zoom(augment: Augment, u: torch.Tensor, v: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    scale = torch.where(u < augment.p_affine, 1 + v * (augment.zoom - 1), 1.0)
    # The centre is drawn so that the enlarged tile still covers the whole output.
    shift = (1 - 1 / scale) * (2 * centre - 1)  # (2, B)
    zero = torch.zeros_like(scale)
    return _matrix((1 / scale, zero, shift[0]), (zero, 1 / scale, shift[1]))


def _warp(augment: Augment, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """fastai 1.0.21's `symmetric_warp`, which moves the corners of a tile.

    Args:
        augment: its warp is the largest shift of a corner.
        u: coin of each tile, (B,).
        v: four shifts for each tile, (4, B): of the right and the left edge along y, and of the
            lower and the upper edge along x. Both ends of an edge move apart, or closer.
    """
    right, left, lower, upper = torch.where(u < augment.p_affine, (2 * v - 1) * augment.warp, 0.0)
    x = torch.stack((-1 - upper, -1 - lower, 1 + upper, 1 + lower), -1)
    y = torch.stack((-1 - left, 1 + left, -1 - right, 1 + right), -1)
    corners = torch.tensor(CORNERS, dtype=torch.float64).expand(len(u), 4, 2)
    # A corner of the input is seen at its moved place in the output.
    return _homography(torch.stack((x, y), -1), corners)


def _homography(points: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """The matrices (B, 3, 3) that map four points (x, y) to their images (X, Y), both (B, 4, 2).

    The last number of a matrix is 1. The other eight solve two linear equations for each point:
    a x + b y + c - X (g x + h y) = X and d x + e y + f - Y (g x + h y) = Y, as fastai 1.0.21's
    `_find_coeffs` does.
    """
    x, y = points.unbind(-1)
    to_x, to_y = images.unbind(-1)
    one = torch.ones_like(x)
    zero = torch.zeros_like(x)
    for_x = torch.stack((x, y, one, zero, zero, zero, -to_x * x, -to_x * y), -1)  # (B, 4, 8)
    for_y = torch.stack((zero, zero, zero, x, y, one, -to_y * x, -to_y * y), -1)
    equations = torch.cat((for_x, for_y), 1)
    solved = torch.linalg.solve(equations, torch.cat((to_x, to_y), 1))  # (B, 8)
    numbers = torch.cat((solved, one[:, :1]), 1)
    return numbers.view(-1, 3, 3)


def _grid(affine: torch.Tensor, size: int) -> torch.Tensor:
    """The point of the input that each pixel of the output shows, (B, size, size, 2).

    Args:
        affine: (B, 2, 3), or homographies (B, 3, 3).
        size: side of the output, pixels.
    """
    if affine.shape[1] == 2:
        return F.affine_grid(affine, [len(affine), 3, size, size], align_corners=True)
    line = torch.linspace(-1, 1, size, dtype=affine.dtype, device=affine.device)
    y, x = torch.meshgrid(line, line, indexing="ij")
    points = torch.stack((x, y, torch.ones_like(x)), -1).view(1, size * size, 3)
    moved = points @ affine.transpose(1, 2)  # (B, size * size, 3)
    grid = moved[..., :2] / moved[..., 2:]
    return grid.view(-1, size, size, 2)


def _matrix(top: tuple[torch.Tensor, ...], middle: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Two rows of numbers (B,) and (0, 0, 1) below them."""
    one = torch.ones_like(top[0])
    zero = torch.zeros_like(one)
    rows = [torch.stack(row, -1) for row in (top, middle, (zero, zero, one))]
    return torch.stack(rows, -2)


def _brightness(augment: Augment, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """What is added to the logits of the pixels, (B,)."""
    change = 0.5 + augment.lighting * (u - 0.5)
    return torch.where(v < augment.p_lighting, torch.logit(change), 0.0)


def _contrast(augment: Augment, v: torch.Tensor) -> torch.Tensor:
    """What the logits of the pixels are multiplied by, (B,).

    One uniform serves both the coin and the amount: below p it is uniform in [0, p).
    """
    p = augment.p_lighting
    fraction = (v / max(p, 1e-12)).clamp(max=1)
    log_scale = (1 - 2 * fraction) * math.log(1 - augment.lighting)
    return torch.where(v < p, log_scale.exp(), 1.0)


def _lit(pixels: torch.Tensor, brightness: torch.Tensor, contrast: torch.Tensor) -> torch.Tensor:
    # sigmoid((logit(p) + logit(c)) * s): fastai 1 adds brightness and scales contrast on the logits
    # of the pixels. In place: a batch of pixels is as large as any activation, and new memory costs
    # as much as the arithmetic.
    logits = torch.logit_(pixels, eps=1e-7)
    logits.add_(brightness[:, None, None, None])
    logits.mul_(contrast[:, None, None, None])
    return logits.sigmoid_()


def _normalized(pixels: torch.Tensor, normalize: Normalization) -> torch.Tensor:
    mean, std = _constants(normalize, pixels.dtype, pixels.device)
    return pixels.sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)


@functools.cache
def _constants(
    normalize: Normalization, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation (1, C, 1, 1), kept: to make them for every batch, the host would wait for
    a GPU.
    """
    mean: tuple[float, ...]
    std: tuple[float, ...]
    if isinstance(normalize, Statistics):
        mean, std = normalize.mean, normalize.std
    else:
        mean, std = NORMALIZE[normalize]
    shape = (1, len(mean), 1, 1)
    return (
        torch.tensor(mean, dtype=dtype, device=device).view(shape),
        torch.tensor(std, dtype=dtype, device=device).view(shape),
    )
