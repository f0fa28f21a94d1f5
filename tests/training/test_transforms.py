"""Augmentation against closed forms and against scipy, numpy and torchvision, tile by tile.

Every literal number is fastai 1.0.21's `get_transforms(flip_vert=True, max_lighting=.1, max_zoom=1.05, max_warp=0.)`
with its defaults (rotation by 10 degrees, affine and lighting with probability 0.75); 1.0.61 differs in the flip alone.
"""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as vision

from raytrain.config import Augment
from raytrain.training import transforms

OFF = Augment(flip="none", rotate=0, zoom=1, lighting=0)
# The 8 symmetries as x = -1 where k & 1, y = -1 where k & 2, then swapped where k & 4: what numpy calls them.
SYMMETRIES = (
    lambda tile: tile,
    np.fliplr,
    np.flipud,
    lambda tile: np.rot90(tile, 2),
    np.transpose,
    lambda tile: np.rot90(tile, 1),
    lambda tile: np.rot90(tile, 3),
    lambda tile: np.rot90(tile, 2).T,
)


def drawn(augment, count=4000, seed=0):
    return transforms.draw(augment, count, torch.Generator().manual_seed(seed))


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def unlit(affine):
    """Draws that move pixels and leave their values: logit(0.5) is added, then a factor of 1."""
    return transforms.Draws(
        affine[:, :2], torch.zeros(len(affine)).double(), torch.ones(len(affine)).double()
    )


def noise(count, size, low=0, high=256):
    """Tiles without any structure; from 1 to 254 no pixel is clamped before its logit."""
    return np.random.default_rng(size).integers(low, high, (count, 3, size, size), dtype=np.uint8)


def dihedral(k):
    x, y = -1 if k & 1 else 1, -1 if k & 2 else 1
    return np.array(
        [[0, x, 0], [y, 0, 0], [0, 0, 1]] if k & 4 else [[x, 0, 0], [0, y, 0], [0, 0, 1]], float
    )


def choices(affine):
    """How often each of the 8 symmetries is among matrices; every matrix is one of them."""
    table = np.stack([dihedral(k)[:2] for k in range(8)])
    same = (affine.numpy()[:, None] == table).all((2, 3))
    assert bool((same.sum(1) == 1).all())
    return same.sum(0)


def written_out(augment, u):
    """One tile's symmetry, matrix (dihedral, then rotation, then zoom), brightness c and contrast s from 10 numbers."""
    k = int(u[0] * {"dihedral": 8, "dihedral-2018": 9}[augment.flip]) % 8
    angle = math.radians(augment.rotate * (2 * u[2] - 1)) if u[1] < 0.75 else 0.0
    scale = 1 + (augment.zoom - 1) * u[4] if u[3] < 0.75 else 1.0
    c = 0.5 * (1 - augment.lighting) + augment.lighting * u[7] if u[8] < 0.75 else 0.5
    s = (1 - augment.lighting) ** (1 - 2 * u[9] / 0.75) if u[9] < 0.75 else 1.0
    turn = [
        [math.cos(angle), -math.sin(angle), 0],
        [math.sin(angle), math.cos(angle), 0],
        [0, 0, 1],
    ]
    t = 1 - 1 / scale
    zoom = [[1 / scale, 0, t * (2 * u[5] - 1)], [0, 1 / scale, t * (2 * u[6] - 1)], [0, 0, 1]]
    return k, (dihedral(k) @ turn @ zoom)[:2], c, s


def sampled(tile, matrix, size):
    """scipy's bilinear resampling (3, H, W) to (3, size, size); "mirror" reflects about the centres of the edge pixels.

    The corner pixels' centres are at -1 and 1 on both sides (align_corners).
    """
    line = np.linspace(-1, 1, size)
    y, x = np.meshgrid(line, line, indexing="ij")
    column, row = np.tensordot(matrix, np.stack([x, y, np.ones_like(x)]), 1)
    half = (tile.shape[-1] - 1) / 2
    at = [(row + 1) * half, (column + 1) * half]
    return np.stack(
        [ndimage.map_coordinates(channel, at, order=1, mode="mirror") for channel in tile]
    )


def lit(p, c, s):
    """fastai 1.0.21 in float64: clamped to [1e-7, 1 - 1e-7], sigmoid((logit(p) + logit(c)) s)."""
    p = np.clip(p, 1e-7, 1 - 1e-7)
    return 1 / (1 + np.exp(-(np.log(p / (1 - p)) + math.log(c / (1 - c))) * s))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize(("source", "size"), [(64, 32), (64, 64), (32, 48)])
@pytest.mark.parametrize(
    "augment",
    [Augment(), Augment(flip="dihedral-2018", rotate=180, zoom=3, lighting=0.4)],
    ids=["lesson", "strong"],
)
def test_a_batch_equals_scipy_tile_by_tile(augment, source, size, dtype, tolerance):
    images = noise(24, source, 1, 255)
    u = torch.rand(10, 24, generator=torch.Generator().manual_seed(6), dtype=torch.float64).numpy()
    tiles = [written_out(augment, u[:, i]) for i in range(24)]
    assert {k for k, *_ in tiles} == set(range(8))
    moved = np.stack(
        [
            sampled(image / 255, matrix, size)
            for image, (_, matrix, *_) in zip(images, tiles, strict=True)
        ]
    )
    wanted = np.stack([lit(pixels, c, s) for pixels, (*_, c, s) in zip(moved, tiles, strict=True)])
    draws = drawn(augment, 24, seed=6)
    out = transforms.train_pixels(torch.from_numpy(images), draws, size, "none", dtype)
    assert out.dtype == dtype
    assert np.abs(out.numpy() - wanted).max() < tolerance
    out = transforms.train_pixels(
        torch.from_numpy(images), unlit(draws.affine), size, "none", dtype
    )
    assert np.abs(out.numpy() - moved).max() < tolerance


def test_lighting_follows_the_resize():
    images = (
        noise(2, 64, 0, 2) * 255
    )  # black and white: the order shows most where a pixel is a mixture
    moved = np.stack([sampled(image / 255, np.eye(3)[:2], 32) for image in images])
    swapped = np.stack(
        [sampled(lit(image / 255, 0.55, 0.9), np.eye(3)[:2], 32) for image in images]
    )
    draws = unlit(torch.eye(3).double().expand(2, 3, 3))
    draws = transforms.Draws(
        draws.affine, draws.brightness + math.log(0.55 / 0.45), draws.contrast * 0.9
    )
    out = transforms.train_pixels(
        torch.from_numpy(images), draws, 32, "none", torch.float64
    ).numpy()
    assert np.abs(out - lit(moved, 0.55, 0.9)).max() < 1e-9
    assert np.abs(out - swapped).max() > 0.04


@pytest.mark.parametrize(("source", "size"), [(256, 128), (64, 32), (32, 48), (48, 48)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_the_resize_is_bilinear_with_aligned_corners_on_both_paths(source, size, dtype, tolerance):
    images = noise(2, source, 1, 255)
    # Target pixel i lies at i (source - 1) / (size - 1); a source pixel's weight falls linearly to 0 at its neighbour.
    at = np.arange(size) * (source - 1) / (size - 1)
    weights = np.clip(1 - np.abs(at[:, None] - np.arange(source)), 0, None)
    wanted = weights @ (images / 255) @ weights.T
    out = transforms.valid_pixels(torch.from_numpy(images), size, "none", dtype)
    assert out.dtype == dtype
    assert np.abs(out.numpy() - wanted).max() < tolerance
    out = transforms.train_pixels(torch.from_numpy(images), drawn(OFF, 2), size, "none", dtype)
    assert np.abs(out.numpy() - wanted).max() < tolerance


def test_the_validation_resize_is_torchs_to_the_bit_and_not_torchvisions_antialiased_one():
    images = torch.from_numpy(noise(2, 256))
    out = transforms.valid_pixels(images, 128, "none")
    pixels = images / 255
    assert torch.equal(
        out, F.interpolate(pixels, (128, 128), mode="bilinear", align_corners=True, antialias=False)
    )
    blurred = vision.resize(pixels, [128, 128], antialias=True)
    assert (out - blurred).abs().mean() > 0.1
    # On noise the antialiased image has well below half the contrast between neighbours.
    steps, blurred_steps = (image.diff(dim=-1).abs().mean() for image in (out, blurred))
    assert blurred_steps < 0.7 * steps


@pytest.mark.parametrize("k", range(8))
def test_each_symmetry_is_numpys_exactly(k):
    images = noise(1, 24, 1, 255)
    affine = transforms._dihedral("dihedral", f64((k + 0.5) / 8))
    assert np.array_equal(affine[0].numpy(), dihedral(k))
    out = (
        transforms.train_pixels(torch.from_numpy(images), unlit(affine), 24, "none", torch.float64)[
            0
        ].numpy()
        * 255
    )
    wanted = np.stack([SYMMETRIES[k](channel) for channel in images[0]])
    assert np.abs(out - wanted).max() < 1e-9
    assert (
        sum(
            np.array_equal(wanted, np.stack([s(channel) for channel in images[0]]))
            for s in SYMMETRIES
        )
        == 1
    )


def test_the_lossless_symmetries_are_the_same_eight():
    tile = torch.from_numpy(noise(1, 24))
    ours = {transforms.symmetry(tile, number).numpy().tobytes() for number in range(8)}
    assert ours == {
        np.stack([s(channel) for channel in tile[0].numpy()]).tobytes() for s in SYMMETRIES
    }
    assert torch.equal(transforms.symmetry(tile, 0), tile)


@pytest.mark.parametrize(
    ("flip", "ninths"),
    [
        # fastai 1.0.21 draws k from 0 to 8 inclusive and k = 8 has none of the three bits: the identity again.
        ("dihedral-2018", [2, 1, 1, 1, 1, 1, 1, 1]),
        ("dihedral", [9 / 8] * 8),
        ("horizontal", [4.5, 4.5, 0, 0, 0, 0, 0, 0]),
        ("none", [9, 0, 0, 0, 0, 0, 0, 0]),
    ],
)
def test_flips_have_their_probabilities(flip, ninths):
    found = choices(drawn(OFF.model_copy(update={"flip": flip}), 9000).affine)
    expected = 1000 * np.array(ninths)
    possible = expected > 0
    assert not found[~possible].any()
    assert possible.sum() == 1 or stats.chisquare(found[possible], expected[possible]).pvalue > 0.01
    # Exactly: 72 evenly spaced numbers, a multiple of 8 and of 9.
    even = transforms._dihedral(flip, (torch.arange(72).double() + 0.5) / 72)[:, :2]
    assert choices(even).tolist() == [8 * n for n in ninths]


@pytest.mark.parametrize(("v", "to"), [(1.0, (-3, 4)), (0.0, (3, 4))])
def test_a_positive_angle_turns_the_content_counterclockwise(v, to):
    # With cos = 4/5 and sin = 3/5 the pixel 5 right of the centre comes to lie 4 right of it and 3 above, exactly.
    images = np.zeros((1, 3, 65, 65), np.uint8)
    images[:, :, 32, 37] = 255
    augment = Augment(rotate=math.degrees(math.atan2(3, 4)))
    affine = transforms._rotation(augment, f64(0), f64(v))
    out = transforms.train_pixels(
        torch.from_numpy(images), unlit(affine), 65, "none", torch.float64
    )[0, 0].numpy()
    assert out[32 + to[0], 32 + to[1]] == pytest.approx(1, abs=1e-6)
    assert out[32 - to[0], 32 + to[1]] == pytest.approx(0, abs=1e-6)


def test_a_quarter_turn_is_numpys_rot90():
    images = noise(1, 24, 1, 255)
    affine = transforms._rotation(Augment(rotate=90), f64(0), f64(1))
    out = (
        transforms.train_pixels(torch.from_numpy(images), unlit(affine), 24, "none", torch.float64)[
            0
        ].numpy()
        * 255
    )
    assert np.abs(out - np.rot90(images[0], 1, (1, 2))).max() < 1e-9


@pytest.mark.parametrize(
    ("column", "row", "window"),
    [
        (0, 0, np.s_[:33, :33]),
        (1, 0, np.s_[:33, 32:]),
        (0, 1, np.s_[32:, :33]),
        (1, 1, np.s_[32:, 32:]),
        (0.5, 0.5, np.s_[16:49, 16:49]),
        (0.25, 0.75, np.s_[24:57, 8:41]),
    ],
)
def test_a_zoom_shows_the_window_that_column_and_row_name(column, row, window):
    # t = (1 - 1/s)(2 pct - 1): at s = 2 half of the 64 steps between 65 pixels, from 32 pct on.
    images = noise(1, 65, 1, 255)
    affine = transforms._zoom(Augment(zoom=2), f64(0), f64(1), f64([column], [row]))
    np.testing.assert_allclose(
        affine[0].numpy(), [[0.5, 0, column - 0.5], [0, 0.5, row - 0.5], [0, 0, 1]], atol=1e-15
    )
    out = (
        transforms.train_pixels(torch.from_numpy(images), unlit(affine), 33, "none", torch.float64)[
            0
        ].numpy()
        * 255
    )
    assert np.abs(out - images[0][:, *window]).max() < 1e-9


def test_each_amount_has_the_lessons_law():
    turned = drawn(Augment(flip="none", zoom=1)).affine[:, :, :2].numpy()
    zoomed = drawn(Augment(flip="none", rotate=0)).affine.numpy()
    draws = drawn(Augment())
    angle = np.degrees(np.arctan2(turned[:, 1, 0], turned[:, 0, 0]))
    scale = 1 / zoomed[:, 0, 0]
    assert np.allclose(np.linalg.det(turned), 1, atol=1e-12) and np.array_equal(
        zoomed[:, 0, 0], zoomed[:, 1, 1]
    )
    path = (zoomed[scale > 1][:, :, 2] / (1 - zoomed[scale > 1][:, :1, 0]) + 1) / 2
    brightness = 1 / (1 + np.exp(-draws.brightness.numpy()))
    contrast = draws.contrast.numpy()
    amounts = {
        "rotation, degrees": (angle[angle != 0], -10, 10),
        "zoom": (scale[scale != 1], 1, 1.05),
        "column": (path[:, 0], 0, 1),
        "row": (path[:, 1], 0, 1),
        "brightness": (brightness[brightness != 0.5], 0.45, 0.55),
        "log contrast": (np.log(contrast[contrast != 1]), math.log(0.9), -math.log(0.9)),
    }
    for name, (values, low, high) in amounts.items():
        assert len(values) / 4000 == pytest.approx(0.75, abs=0.02), name
        assert low - 1e-9 <= values.min() < low + (high - low) / 100, name
        assert high - (high - low) / 100 < values.max() <= high + 1e-9, name
        assert stats.kstest(values, "uniform", args=(low, high - low)).pvalue > 0.01, name
    # Each change has a coin of its own, and column and row are drawn apart.
    changed = [angle != 0, scale != 1, brightness != 0.5, contrast != 1]
    for i in range(4):
        for j in range(i):
            assert np.mean(changed[i] & changed[j]) == pytest.approx(0.75**2, abs=0.025)
    assert abs(np.corrcoef(path.T)[0, 1]) < 0.05


def test_probability_zero_switches_a_change_off_and_one_always_on():
    never, always = (drawn(Augment(flip="none", p_affine=p, p_lighting=p), 500) for p in (0.0, 1.0))
    assert bool((never.affine == torch.eye(3)[:2]).all())
    assert bool((never.brightness == 0).all() and (never.contrast == 1).all())
    assert bool((always.affine[:, :, :2] != torch.eye(2)).all())
    assert bool((always.brightness != 0).all() and (always.contrast != 1).all())


@pytest.mark.parametrize("brightness", [0.45, 0.5, 0.55])
@pytest.mark.parametrize("contrast", [0.9, 1.0, 1 / 0.9])
def test_lighting_is_the_closed_form_at_every_grey_brightness_before_contrast(brightness, contrast):
    images = np.broadcast_to(np.arange(256, dtype=np.uint8).reshape(16, 16), (1, 3, 16, 16))
    added = f64(math.log(brightness / (1 - brightness)))
    draws = transforms.Draws(torch.eye(3).double()[None, :2], added, f64(contrast))
    wanted = lit(images / 255, brightness, contrast)
    out = transforms.train_pixels(
        torch.from_numpy(images.copy()), draws, 16, "none", torch.float64
    ).numpy()
    # Relative to the distance from both ends: 0 and 1 are clamped at 1e-7, which is 5e-7 from them after the contrast.
    np.testing.assert_allclose(out, wanted, rtol=1e-9, atol=0)
    np.testing.assert_allclose(1 - out, 1 - wanted, rtol=1e-7, atol=0)
    out = transforms.train_pixels(torch.from_numpy(images.copy()), draws, 16, "none").numpy()
    np.testing.assert_allclose(out, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("brightness", "contrast", "wanted"),
    # 1 / (1 + (0.75 / 0.25 · (1 - c) / c)^s): 0.25 in fastai 1.0.21, printed to four places.
    [(0.45, 1, 0.2143), (0.55, 1, 0.2895), (0.5, 0.9, 0.2712), (0.5, 1.1111, 0.2278)],
)
def test_lighting_meets_the_golden_values(brightness, contrast, wanted):
    pixels = torch.full((1, 3, 2, 2), 0.25)
    lit = transforms._lit(
        pixels, torch.tensor([math.log(brightness / (1 - brightness))]), torch.tensor([contrast])
    )
    assert round(lit[0, 0, 0, 0].item(), 4) == wanted


def test_pixels_are_normalised_by_the_statistics_of_imagenet():
    # (0 - mean) / std and (1 - mean) / std with mean (.485, .456, .406) and std (.229, .224, .225).
    black, white = (-2.117904, -2.035714, -1.804444), (2.248908, 2.428571, 2.64)
    images = torch.stack(
        [torch.zeros(3, 32, 32, dtype=torch.uint8), torch.full((3, 32, 32), 255, dtype=torch.uint8)]
    )
    for out in (
        transforms.valid_pixels(images, 32, "imagenet"),
        transforms.valid_pixels(images, 16, "imagenet", torch.float64),
        transforms.train_pixels(images, drawn(OFF, 2), 32, "imagenet"),
    ):
        for tile, wanted in zip(out, (black, white), strict=True):
            np.testing.assert_allclose(tile.amin((1, 2)), wanted, atol=2e-6)
            np.testing.assert_allclose(tile.amax((1, 2)), wanted, atol=2e-6)


def test_without_changes_the_pixels_stay():
    images = torch.from_numpy(noise(2, 32))
    out = transforms.train_pixels(images, drawn(OFF, 2), 32, "none")
    torch.testing.assert_close(out, images / 255, atol=1e-5, rtol=0)
    assert torch.equal(transforms.valid_pixels(images, 32, "none"), images / 255)


def test_draws_repeat_for_a_seed_and_a_rank_takes_its_rows():
    again, other = drawn(Augment(), 6, seed=1), drawn(Augment(), 6, seed=2)
    torch.testing.assert_close(drawn(Augment(), 6, seed=1).affine, again.affine, rtol=0, atol=0)
    assert not torch.equal(again.affine, other.affine)
    assert torch.equal(again.rows(slice(2, 5)).brightness, again.brightness[2:5])
    assert torch.equal(again.rows(torch.tensor([5, 0])).affine, again.affine[[5, 0]])


def test_switching_one_change_off_leaves_the_draws_of_the_others():
    every, dark = drawn(Augment(), 50), drawn(Augment(lighting=0), 50)
    assert torch.equal(every.affine, dark.affine)
    assert bool((dark.brightness == 0).all() and (dark.contrast == 1).all())
    upright = drawn(Augment(flip="none", rotate=0), 50)
    assert torch.equal(every.brightness, upright.brightness) and torch.equal(
        every.contrast, upright.contrast
    )
    scale = torch.linalg.det(every.affine[:, :, :2]).abs()
    torch.testing.assert_close(scale, torch.linalg.det(upright.affine[:, :, :2]).abs())
