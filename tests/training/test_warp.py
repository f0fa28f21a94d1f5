"""The perspective warp against torchvision's, against fastai's formula, and backwards.

The reference is fastai 1.0.21's `symmetric_warp(magnitude=(-max_warp, max_warp), p=0.75)`: four numbers m for each tile, and
the corners of the tile come to lie at (-1 - m3, -1 - m1), (-1 - m2, 1 + m1), (1 + m3, -1 - m0) and (1 + m2, 1 + m0).
"""

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms.v2 import functional as vision

from raytrain.config import Augment, load_recipe
from raytrain.training import transforms
from raytrain.training.batch_plan import plan_batch
from raytrain.worker import Worker

SIZE = 64
CORNERS = np.array([(-1, -1), (-1, 1), (1, -1), (1, 1)], float)
ONLY = Augment(flip="none", rotate=0, zoom=1, lighting=0, warp=0.2, p_affine=1)
# Corners move by 0.2 apart and by 0.1, 0.05 closer; the left edge keeps its length.
KNOWN = (0.2, 0.0, -0.1, -0.05)


def drawn(augment, count=24, seed=0):
    return transforms.draw(augment, count, torch.Generator().manual_seed(seed))


def moved_corners(m):
    return np.array(
        [(-1 - m[3], -1 - m[1]), (-1 - m[2], 1 + m[1]), (1 + m[3], -1 - m[0]), (1 + m[2], 1 + m[0])]
    )


def of_shifts(shifts):
    """Draws of warps with known shifts, (B, 4); the coin falls on yes."""
    v = (torch.tensor(shifts, dtype=torch.float64).T / 0.2 + 1) / 2
    count = v.shape[1]
    matrix = transforms._warp(ONLY, torch.zeros(count, dtype=torch.float64), v)
    return transforms.Draws(matrix, torch.zeros(count).double(), torch.ones(count).double())


def mapped(matrix, points):
    """Points (N, 2) through one homography (3, 3)."""
    homogeneous = np.concatenate([points, np.ones((len(points), 1))], 1) @ matrix.T
    return homogeneous[:, :2] / homogeneous[:, 2:]


def pixel(points):
    """Points in [-1, 1] as torchvision writes them: a pixel's centre lies at its number plus 0.5."""
    return ((points + 1) / 2 * (SIZE - 1) + 0.5).tolist()


def smooth(count=1):
    """uint8 (B, 3, S, S) without an edge: bilinear sampling hardly changes it."""
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    planes = [np.sin(4 * x + y), np.cos(3 * y - x), np.sin(2 * x + 5 * y)]
    picture = (127.5 + 100 * np.stack(planes)).round().astype(np.uint8)
    return torch.from_numpy(np.broadcast_to(picture, (count, *picture.shape)).copy())


def test_the_corners_come_to_lie_where_fastai_puts_them():
    matrix = of_shifts([KNOWN]).affine[0].numpy()
    half = (SIZE - 1) / 2  # pixels for 1
    assert np.abs(mapped(matrix, moved_corners(KNOWN)) - CORNERS).max() * half < 1e-9
    # An edge of 1.2 on the right and one of 0.8 on the left: the diagonals, whose crossing is the
    # centre of the tile, are y = x + 0.2 and y = -x - 0.2.
    growing = of_shifts([(0.2, -0.2, 0, 0)]).affine[0].numpy()
    np.testing.assert_allclose(mapped(growing, np.array([(-0.2, 0.0)])), [(0, 0)], atol=1e-12)


def test_every_pixel_within_a_hundredth_is_torchvisions():
    shifts = np.random.default_rng(3).uniform(-0.2, 0.2, (12, 4))
    # The value of a pixel is four times its column, or its row: what is sampled says from where.
    line = np.arange(0, 4 * SIZE, 4, dtype=np.uint8)
    columns, rows = np.meshgrid(line, line)
    planes = torch.from_numpy(np.stack([columns, rows, np.full_like(columns, 255)]))
    images = planes.expand(len(shifts), 3, SIZE, SIZE)
    ours = transforms.train_pixels(images, of_shifts(shifts), SIZE, "none", torch.float64) * 255
    for found, m in zip(ours, shifts, strict=True):
        wanted = vision.perspective(
            planes.double(), pixel(CORNERS), pixel(moved_corners(m)), fill=0
        )
        # Beyond the tile we reflect and torchvision fills.
        inside = wanted[2] > 255 - 1e-6
        assert inside.float().mean() > 0.6
        assert (found - wanted)[:2, inside].abs().max() / 4 < 0.01


def test_a_warp_and_its_inverse_bring_the_pixels_back():
    shifts = np.random.default_rng(5).uniform(-0.2, 0.2, (8, 4))
    draws = of_shifts(shifts)
    back = transforms.Draws(torch.linalg.inv(draws.affine), draws.brightness, draws.contrast)
    images = smooth(8)
    there = transforms.train_pixels(images, draws, SIZE, "none", torch.float64)
    again = transforms.train_pixels((there * 255).round().byte(), back, SIZE, "none", torch.float64)
    interior = slice(SIZE // 4, -SIZE // 4)  # of which all was seen in between
    difference = (again * 255 - images)[..., interior, interior].abs()
    assert difference.max() < 2
    assert (there * 255 - images)[..., interior, interior].abs().max() > 10


@pytest.mark.parametrize("augment", [Augment(), Augment(flip="dihedral-2018", rotate=45, zoom=2)])
def test_a_warp_leaves_every_other_draw_as_it_was(augment):
    plain = drawn(augment)
    assert plain.affine.shape == (24, 2, 3)
    warped = drawn(augment.model_copy(update={"warp": 0.2}))
    assert warped.affine.shape == (24, 3, 3)
    assert torch.equal(warped.brightness, plain.brightness)
    assert torch.equal(warped.contrast, plain.contrast)
    last = torch.tensor([[[0.0, 0.0, 1.0]]]).double().expand(24, 1, 3)
    alone = torch.linalg.inv(torch.cat((plain.affine, last), 1)) @ warped.affine
    # What is left is the warp: the corners of the tile, moved by 0.2 at most along each axis.
    for matrix in alone.numpy():
        corners = mapped(np.linalg.inv(matrix), CORNERS)
        assert np.abs(corners - CORNERS).max() <= 0.2 + 1e-9


def test_without_a_warp_the_generator_is_left_where_it_was():
    after = []
    for augment in (Augment(), Augment(warp=0.2)):
        generator = torch.Generator().manual_seed(1)
        transforms.draw(augment, 6, generator)
        after.append(torch.rand(1, generator=generator))
    ten = torch.Generator().manual_seed(1)
    torch.rand(10, 6, generator=ten, dtype=torch.float64)
    assert torch.equal(after[0], torch.rand(1, generator=ten))
    assert not torch.equal(*after)


def test_shifts_have_fastais_law():
    draws = drawn(Augment(flip="none", rotate=0, zoom=1, warp=0.2), 2000)
    shifts = []
    for matrix in draws.affine.numpy():
        corners = mapped(np.linalg.inv(matrix), CORNERS) - CORNERS
        shifts.append((corners[3, 1], corners[1, 1], corners[3, 0], corners[2, 0]))
    shifts = np.array(shifts)
    warped = np.abs(shifts).max(1) > 1e-9
    assert warped.mean() == pytest.approx(0.75, abs=0.03)
    for values in shifts[warped].T:
        assert stats.kstest(values, "uniform", args=(-0.2, 0.4)).pvalue > 0.01
    correlated = np.corrcoef(shifts[warped].T) - np.eye(4)
    assert np.abs(correlated).max() < 0.1


@pytest.mark.parametrize("corner", [-0.3, 0.3])
def test_the_largest_warp_still_maps_every_pixel_to_a_place_in_front(corner):
    # All 16 combinations of the largest shifts.
    shifts = np.array(np.meshgrid(*[[-0.3, 0.3]] * 3)).reshape(3, -1).T
    shifts = np.concatenate([np.full((8, 1), corner), shifts], 1)
    v = (torch.from_numpy(shifts).T / 0.3 + 1) / 2
    matrices = transforms._warp(Augment(warp=0.3), torch.zeros(8).double(), v).numpy()
    third = np.concatenate([CORNERS, np.ones((4, 1))], 1) @ matrices[:, 2].T
    assert third.min() > 0.2


def test_ranks_take_their_rows_of_one_batch():
    recipe = load_recipe("smoke", {"data": {"augment": {"warp": 0.2}}, "train": {"mixup": 0.4}})
    rows = np.arange(10)
    images = smooth(10)

    def pixels(world):
        parts, partners = [], []
        for rank in range(world):
            plan = plan_batch(recipe, 1, Worker(rank=rank, world=world), rows, 1, 0)
            (part,) = plan.passes
            draws = plan.draws.augment.rows(part)
            parts.append(transforms.train_pixels(images[part], draws, 32, "imagenet"))
            partners.append(plan.draws.partner)
        return torch.cat(parts), partners[0].tolist()

    alone, partners = pixels(1)
    assert alone.unique(dim=0).shape[0] == 10
    for world in (2, 3):
        shared, same = pixels(world)
        assert torch.equal(shared, alone) and same == partners
    # Mixup has a generator of its own, which the draws of the warp leave alone.
    plain = recipe.model_copy(
        update={"data": recipe.data.model_copy(update={"augment": Augment()})}
    )
    assert plan_batch(plain, 1, Worker(), rows, 1, 0).draws.partner.tolist() == partners


class Pinned:
    """Pinned memory, whose copy on the GPU is the tensor itself."""

    def __init__(self, tensor):
        self.tensor = tensor

    def to(self, device, non_blocking):
        assert non_blocking
        return self.tensor


@pytest.mark.parametrize("warp", [0.0, 0.2])
def test_draws_reach_a_gpu_as_they_were(warp, monkeypatch):
    draws = drawn(Augment(warp=warp))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda packed: Pinned(packed))
    there = draws.to(torch.device("cuda"))
    assert torch.equal(there.affine, draws.affine)
    assert torch.equal(there.brightness, draws.brightness)
    assert torch.equal(there.contrast, draws.contrast)


def test_the_sheet_of_a_dataset_shows_warped_tiles():
    tile = smooth()[0].permute(1, 2, 0).numpy()[None]
    found = transforms.examples(tile, ONLY, 5, SIZE, 42)
    assert found.shape == (1, 5, SIZE, SIZE, 3)
    assert len({picture.tobytes() for picture in found[0]}) == 5
