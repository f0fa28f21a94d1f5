"""Augmentation against closed forms, and against the same operations written one by one."""

import math

import pytest
import torch
from torch.nn import functional as F

from raytrain.config import Augment
from raytrain.training import transforms

OFF = Augment(flip="none", rotate=0, zoom=1, lighting=0)


def drawn(augment, count=4000, seed=0):
    return transforms.draw(augment, count, torch.Generator().manual_seed(seed))


def test_without_changes_the_pixels_stay_and_are_normalised():
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    out = transforms.train_pixels(images, drawn(OFF, 2), 32, "none")
    torch.testing.assert_close(out, images / 255, atol=1e-5, rtol=0)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in transforms.NORMALIZE["imagenet"])
    torch.testing.assert_close(
        transforms.valid_pixels(images, 32, "imagenet"), (images / 255 - mean) / std, atol=1e-6, rtol=0
    )


def test_the_resize_is_bilinear_with_aligned_corners_and_no_antialias_on_both_paths():
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    wanted = F.interpolate(images / 255, (32, 32), mode="bilinear", align_corners=True, antialias=False)
    torch.testing.assert_close(transforms.valid_pixels(images, 32, "none"), wanted, atol=1e-6, rtol=0)
    torch.testing.assert_close(transforms.train_pixels(images, drawn(OFF, 2), 32, "none"), wanted, atol=1e-5, rtol=0)


def test_dihedral_draws_the_eight_symmetries_evenly():
    image = torch.arange(3 * 16 * 16).remainder(251).to(torch.uint8).reshape(1, 3, 16, 16)
    views = [transforms.symmetry(image, i) for i in range(8)]
    draws = drawn(Augment(flip="dihedral", rotate=0, zoom=1, lighting=0), 400)
    out = transforms.train_pixels(image.expand(400, 3, 16, 16), draws, 16, "none") * 255
    counts = [sum(bool((tile - view[0]).abs().max() < 0.01) for tile in out) for view in views]
    assert sum(counts) == 400
    assert min(counts) > 25


def test_rotation_is_a_rotation_by_at_most_its_angle_for_three_quarters_of_the_tiles():
    matrix = drawn(Augment(flip="none", rotate=10, zoom=1, lighting=0)).affine[:, :, :2]
    angle = torch.atan2(matrix[:, 1, 0], matrix[:, 0, 0]).rad2deg()
    torch.testing.assert_close(torch.linalg.det(matrix), torch.ones(4000), atol=1e-5, rtol=0)
    assert angle.abs().max() <= 10 and angle.max() > 9.5 and angle.min() < -9.5
    assert (angle == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)


def test_zoom_stays_inside_the_tile():
    affine = drawn(Augment(flip="none", rotate=0, zoom=1.05, lighting=0)).affine
    inverse, shift = affine[:, 0, 0], affine[:, :, 2]
    assert inverse.min() >= 1 / 1.05 - 1e-6 and inverse.max() == 1
    assert bool((shift.abs().amax(1) <= 1 - inverse + 1e-6).all())
    assert (inverse == 1).float().mean().item() == pytest.approx(0.25, abs=0.03)


def test_lighting_has_the_lessons_ranges():
    draws = drawn(Augment(flip="none", rotate=0, zoom=1, lighting=0.1))
    assert draws.brightness.abs().max().item() == pytest.approx(0.2007, abs=2e-3)
    assert draws.contrast.min().item() == pytest.approx(0.9, abs=2e-3)
    assert draws.contrast.max().item() == pytest.approx(1 / 0.9, abs=2e-3)
    assert (draws.brightness == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert (draws.contrast == 1).float().mean().item() == pytest.approx(0.25, abs=0.03)
    # The amount given that it is drawn is uniform in log: its mean is 1 in the geometric sense.
    assert draws.contrast.log().mean().item() == pytest.approx(0, abs=0.005)


@pytest.mark.parametrize(
    ("brightness", "contrast", "wanted"),
    [(0.45, 1, 0.2143), (0.55, 1, 0.2895), (0.5, 0.9, 0.2712), (0.5, 1.1111, 0.2278)],
)
def test_lighting_meets_the_golden_values(brightness, contrast, wanted):
    pixels = torch.full((1, 3, 2, 2), 0.25)
    lit = transforms._lit(pixels, torch.tensor([math.log(brightness / (1 - brightness))]), torch.tensor([contrast]))
    assert lit[0, 0, 0, 0].item() == pytest.approx(wanted, abs=5e-5)


def test_the_affine_is_dihedral_then_rotation_then_zoom():
    augment, u = Augment(), torch.rand(10, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    d = transforms._dihedral("dihedral", u[0])
    r = transforms._rotation(augment, u[1], u[2])
    z = transforms._zoom(augment, u[3], u[4], u[5:7])
    torch.testing.assert_close(drawn(augment, 5, seed=3).affine, (d @ r @ z)[:, :2].float())


def test_draws_repeat_for_a_seed_and_a_rank_takes_its_rows():
    again, other = drawn(Augment(), 6, seed=1), drawn(Augment(), 6, seed=2)
    torch.testing.assert_close(drawn(Augment(), 6, seed=1).affine, again.affine, rtol=0, atol=0)
    assert not torch.equal(again.affine, other.affine)
    assert torch.equal(again.rows(slice(2, 5)).brightness, again.brightness[2:5])
