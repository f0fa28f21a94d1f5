"""The brush of the synthetic tiles: from a label set and a generator to 256x256 pixels.

Each label leaves a mark of its own shape; colours and contrasts follow the averages of real tiles with those labels.
Pixels are float32 RGB in 0..255 while painting.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from scipy import ndimage as ndi

Array = np.ndarray[Any, Any]
SIZE = 256
_BANK_SIZE = 1024
# Name: exponent of the 1/f spectrum, lowest frequency, width of the blur in pixels.
_NOISES = {
    "canopy": (0.6, 0.03, 1.0),
    "mid": (1.4, 0.008, 0.8),
    "low": (2.0, 0.002, 0.0),
    "cloud": (2.1, 0.004, 0.0),
}
_Y, _X = np.mgrid[:SIZE, :SIZE].astype(np.float32)


def paint(labels: frozenset[str], r: np.random.Generator) -> Array:
    """Paints a tile, uint8 (256, 256, 3): ground first, then marks from large to small, then the weather."""
    image = _forest(r) if "primary" in labels else _pale(r)
    river = None
    for label, brush in _GROUND.items():
        if label in labels:
            brush(image, r)
    if "water" in labels:
        river = _water(image, r)
    if "artisinal_mine" in labels:
        _artisinal_mine(image, r, river)
    path = _roads(image, r) if "road" in labels else None
    if "habitation" in labels:
        _habitation(image, r, path)
    _weather(image, labels, r)
    # Sun, haze and sensor differ from scene to scene, so the mean colour alone says little, as with real tiles.
    image = (
        image * r.normal(1, 0.09)
        + r.normal(0, 7)
        + r.normal(0, 3, 3)
        + r.normal(0, 0.7, image.shape)
    )
    return np.clip(image, 0, 255).astype(np.uint8)


@cache
def _bank() -> dict[str, Array]:
    """Tileable noise with mean 0 and deviation 1; a crop of it costs a tenth of a millisecond."""
    r = np.random.default_rng(0)
    frequency = np.hypot(np.fft.rfftfreq(_BANK_SIZE)[None], np.fft.fftfreq(_BANK_SIZE)[:, None])
    bank = {}
    for name, (exponent, lowest, blur) in _NOISES.items():
        spectrum = (
            np.fft.rfft2(r.standard_normal((_BANK_SIZE, _BANK_SIZE)))
            * np.maximum(frequency, lowest) ** -exponent
        )
        noise = ndi.gaussian_filter(
            np.fft.irfft2(spectrum, s=(_BANK_SIZE, _BANK_SIZE)), blur, mode="wrap"
        )
        bank[name] = ((noise - noise.mean()) / noise.std()).astype(np.float32)
    return bank


def _noise(r: np.random.Generator, name: str) -> Array:
    """A random crop of the bank in a random symmetry, float32 (256, 256)."""
    y, x = r.integers(0, _BANK_SIZE - SIZE, 2)
    crop = np.rot90(_bank()[name][y : y + SIZE, x : x + SIZE], int(r.integers(4)))
    return crop.T if r.random() < 0.5 else crop


def _mix(image: Array, mask: Array, rgb: Any, amount: float = 1.0) -> None:
    image += (np.asarray(rgb, np.float32) - image) * (mask * np.float32(amount))[..., None]


def _colour(r: np.random.Generator, rgb: tuple[int, int, int], spread: float = 8) -> Array:
    return np.asarray(rgb) + r.normal(0, spread) + r.normal(0, spread / 3, 3)


def _curve(r: np.random.Generator, roughness: float) -> Array:
    """A winding line across the tile, float (points, 2) as y, x, with steps of 0.6 pixels."""
    turns = ndi.gaussian_filter1d(r.normal(0, roughness, 900), 25)
    heading = r.uniform(0, 2 * np.pi) + np.cumsum(turns)
    points = np.cumsum(0.6 * np.stack([np.sin(heading), np.cos(heading)], 1), 0)
    middle = points[len(points) // 2]
    return np.asarray(points - middle + r.uniform(0.3, 0.7, 2) * SIZE)


def _distance(points: Array) -> Array:
    """Distance of every pixel to the line, in pixels."""
    inside = points[((points >= 0) & (points < SIZE)).all(1)].astype(int)
    free = np.ones((SIZE, SIZE), bool)
    free[inside[:, 0], inside[:, 1]] = False
    return np.asarray(ndi.distance_transform_edt(free), np.float32)


def _soft(distance: Array, width: float | Array, edge: float = 1.0) -> Array:
    """1 inside the width, 0 outside, with an edge of some pixels."""
    return np.clip((width - distance) / edge + 0.5, 0, 1).astype(np.float32)


def _blob(r: np.random.Generator, share: float) -> Array:
    """A smooth patch somewhere in the tile that covers about a share of it, float32 (256, 256) in 0..1."""
    y, x = r.uniform(0.2, 0.8, 2) * SIZE
    radius = SIZE * np.sqrt(share / np.pi)
    angle, stretch = r.uniform(0, np.pi), r.uniform(0.7, 1.4)
    u = (_X - x) * np.cos(angle) + (_Y - y) * np.sin(angle)
    v = (_Y - y) * np.cos(angle) - (_X - x) * np.sin(angle)
    distance = np.hypot(u * stretch, v / stretch) + _noise(r, "mid") * radius * 0.18
    return _soft(distance, radius, 2.5)


def _forest(r: np.random.Generator) -> Array:
    tone = np.array([50, 64, 55]) + r.normal(0, 8) + r.normal(0, 2.5, 3)
    texture = 4.2 * _noise(r, "canopy") + 1.6 * _noise(r, "mid") + 2.5 * _noise(r, "low")
    return np.asarray(tone + texture[..., None] * np.array([0.9, 1.0, 0.9]), np.float32)


def _pale(r: np.random.Generator) -> Array:
    tone = _colour(r, (104, 112, 92), 12)
    texture = 2.0 * _noise(r, "canopy") + 4.0 * _noise(r, "mid") + 6.0 * _noise(r, "low")
    return (tone + texture[..., None]).astype(np.float32)


def _agriculture(image: Array, r: np.random.Generator) -> None:
    """Large pastel fields with straight borders and faint rows."""
    cells, angle = int(r.integers(4, 9)), r.uniform(0, np.pi)
    u = _X * np.cos(angle) + _Y * np.sin(angle) + 5 * _noise(r, "mid")
    v = (_Y * np.cos(angle) - _X * np.sin(angle)) * r.uniform(1.1, 1.9)
    centres = r.uniform(-60, SIZE + 60, (cells, 2))
    owner = np.argmin([np.maximum(abs(u - a), abs(v - b)) for a, b in centres], 0)
    used = r.random(cells) < r.uniform(0.45, 0.8)
    used[owner[SIZE // 2, SIZE // 2]] = True
    used[owner[0, 0]] = False
    rows = np.sin((u if r.random() < 0.5 else v) * r.uniform(0.5, 0.9))
    for cell in np.flatnonzero(used):
        base = (128, 122, 98) if r.random() < 0.55 else (102, 118, 82)
        field = _colour(r, base, 9) + (1.5 * rows + 2.5 * _noise(r, "mid"))[..., None]
        _mix(image, ndi.uniform_filter((owner == cell).astype(np.float32), 3), field, 0.92)


def _cultivation(image: Array, r: np.random.Generator) -> None:
    """Small bright clearings inside the forest."""
    for _ in range(int(r.integers(4, 10))):
        patch = _colour(r, (92, 128, 66), 9) + 3 * _noise(r, "mid")[..., None]
        _mix(image, _blob(r, r.uniform(0.007, 0.025)), patch, 0.9)


def _bare_ground(image: Array, r: np.random.Generator) -> None:
    ground = _colour(r, (168, 144, 112), 8) + 5 * _noise(r, "mid")[..., None]
    _mix(image, _blob(r, r.uniform(0.05, 0.14)), ground, 0.95)


def _slash_burn(image: Array, r: np.random.Generator) -> None:
    """A charred patch with a widening plume of smoke."""
    patch = _blob(r, r.uniform(0.04, 0.1))
    _mix(image, patch, _colour(r, (42, 36, 36), 4) + 3 * _noise(r, "canopy")[..., None], 0.95)
    y, x = np.unravel_index(int(patch.argmax()), patch.shape)
    angle = r.uniform(0, 2 * np.pi)
    along = (_X - x) * np.cos(angle) + (_Y - y) * np.sin(angle)
    across = (_Y - y) * np.cos(angle) - (_X - x) * np.sin(angle) + 6 * _noise(r, "mid")
    plume = (
        np.exp(-((across / (6 + 0.22 * np.maximum(along, 0))) ** 2))
        * (along > 0)
        * np.exp(-along / 150)
    )
    _mix(image, plume.astype(np.float32), (176, 180, 186), 0.75)


def _blooming(image: Array, r: np.random.Generator) -> None:
    """Crowns in flower: many pale dots."""
    dots = np.zeros((SIZE, SIZE), np.float32)
    count = int(r.integers(90, 240))
    dots[tuple(r.integers(0, SIZE, (2, count)))] = r.uniform(0.6, 1, count)
    dots = ndi.gaussian_filter(dots, 1.7)
    _mix(image, np.clip(dots * 22, 0, 1), _colour(r, (198, 186, 142), 8), 0.8)


def _blow_down(image: Array, r: np.random.Generator) -> None:
    """A fan of fallen trees with radial streaks."""
    y, x = r.uniform(0.3, 0.7, 2) * SIZE
    radius, half, heading = r.uniform(70, 115), r.uniform(0.4, 0.8), r.uniform(0, 2 * np.pi)
    angle = np.arctan2(_Y - y, _X - x) - heading
    angle = (angle + np.pi) % (2 * np.pi) - np.pi
    distance = np.hypot(_Y - y, _X - x) + 6 * _noise(r, "mid")
    fan = _soft(distance, radius, 8) * _soft(np.abs(angle), half, 0.12)
    streaks = np.sin(angle * r.uniform(28, 40)) * 9 + 5 * _noise(r, "canopy")
    _mix(image, fan, _colour(r, (108, 106, 84), 6) + streaks[..., None], 0.85)


def _conventional_mine(image: Array, r: np.random.Generator) -> None:
    """A terraced pit with a grey-green pond."""
    y, x = r.uniform(0.3, 0.7, 2) * SIZE
    radius, stretch = r.uniform(42, 70), r.uniform(0.75, 1.3)
    distance = np.hypot((_Y - y) * stretch, (_X - x) / stretch) + 4 * _noise(r, "mid")
    terraces = 12 * np.sign(np.sin(distance * 2 * np.pi / 9))
    _mix(
        image,
        _soft(distance, radius, 3),
        _colour(r, (172, 158, 138), 6) + terraces[..., None],
        0.97,
    )
    _mix(image, _soft(distance, radius * 0.35, 3), _colour(r, (104, 128, 116), 5))


def _selective_logging(image: Array, r: np.random.Generator) -> None:
    """Thin winding trails with small clearings."""
    for _ in range(int(r.integers(3, 6))):
        points = _curve(r, 0.1)
        _mix(image, _soft(_distance(points), 1.2), _colour(r, (112, 104, 76), 5), 0.75)
        spots = points[r.integers(0, len(points), 10)]
        for y, x in spots:
            _mix(
                image,
                _soft(np.hypot(_Y - y, _X - x), r.uniform(2.5, 4.5)),
                _colour(r, (118, 110, 80), 5),
                0.8,
            )


def _water(image: Array, r: np.random.Generator) -> Array:
    """A river, seldom a lake. Returns the distance to the water line's middle, in pixels."""
    colour = _colour(r, (122, 112, 84) if r.random() < 0.55 else (44, 58, 70), 7)
    if r.random() < 0.85:
        distance = _distance(_curve(r, 0.06))
        width = r.uniform(5, 20) * (1 + 0.2 * _noise(r, "low"))
    else:
        lake = _blob(r, r.uniform(0.06, 0.2))
        distance, width = (
            np.asarray(ndi.distance_transform_edt(lake < 0.5), np.float32),
            np.full(1, 0.5),
        )
    _mix(image, _soft(distance, width + 2.5, 2), colour * 0.75 + 22, 0.5)
    _mix(image, _soft(distance, width, 2), colour + 1.2 * _noise(r, "low")[..., None])
    return distance


def _artisinal_mine(image: Array, r: np.random.Generator, river: Array | None) -> None:
    """Pale pits with turquoise ponds, near a river where there is one."""
    near = (
        np.argwhere((river > 10) & (river < 32))
        if river is not None
        else np.argwhere(np.ones((SIZE, SIZE), bool))
    )
    near = near if len(near) else np.argwhere(np.ones((SIZE, SIZE), bool))
    for y, x in near[r.integers(0, len(near), int(r.integers(9, 18)))]:
        distance = np.hypot(_Y - y, _X - x) + 1.5 * _noise(r, "mid")
        radius = r.uniform(7, 13)
        _mix(image, _soft(distance, radius, 2), _colour(r, (196, 180, 148), 7))
        _mix(image, _soft(distance, radius * 0.5, 1.5), _colour(r, (96, 148, 142), 6))


def _roads(image: Array, r: np.random.Generator) -> Array:
    """One or two thin, gentle lines. Returns the points of the first."""
    colour, paths = _colour(r, (158, 138, 108), 8), [_curve(r, 0.012)]
    if r.random() < 0.35:
        paths.append(_curve(r, 0.012))
    for points in paths:
        _mix(image, _soft(_distance(points), r.uniform(1.5, 2.6)), colour, 0.9)
    return paths[0]


def _habitation(image: Array, r: np.random.Generator, path: Array | None) -> None:
    """Clusters of bright roofs, beside a road where there is one."""
    inside = None if path is None else path[((path > 40) & (path < SIZE - 40)).all(1)]
    centre = (
        inside[len(inside) // 2]
        if inside is not None and len(inside)
        else r.uniform(0.3, 0.7, 2) * SIZE
    )
    _mix(
        image,
        _soft(np.hypot(_Y - centre[0], _X - centre[1]) + 8 * _noise(r, "mid"), 30, 12),
        (132, 120, 98),
        0.55,
    )
    for _ in range(int(r.integers(35, 95))):
        y, x = (centre + r.normal(0, 20, 2)).astype(int)
        h, w = r.integers(2, 6, 2)
        if 0 <= y < SIZE - h and 0 <= x < SIZE - w:
            image[y : y + h, x : x + w] = _colour(r, (206, 198, 190), 14)


def _weather(image: Array, labels: frozenset[str], r: np.random.Generator) -> None:
    if "haze" in labels:
        veil = r.uniform(0.42, 0.62) + 0.06 * _noise(r, "low")
        _mix(image, np.clip(veil, 0.3, 0.8), _colour(r, (172, 182, 180), 5))
    if "partly_cloudy" in labels:
        _clouds(image, r, r.uniform(0.1, 0.35), 0.85)
    if "cloudy" in labels:
        _clouds(image, r, r.uniform(0.8, 1.0), 0.95)


def _clouds(image: Array, r: np.random.Generator, cover: float, density: float) -> None:
    """Soft clouds over a share of the tile, with their shadows."""
    noise = _noise(r, "cloud") + 0.12 * _noise(r, "mid")
    mask = np.clip((noise - np.quantile(noise, 1 - cover)) / 0.5 + 0.1, 0, 1) ** 0.8
    if cover < 0.5:
        shadow = ndi.shift(
            mask, r.uniform(8, 20, 2) * r.choice([-1, 1], 2), order=1, mode="nearest"
        )
        image *= (1 - 0.45 * np.clip(shadow - mask, 0, 1))[..., None]
    white = _colour(r, (178, 180, 176), 6) + 9 * _noise(r, "low")[..., None]
    _mix(image, mask.astype(np.float32), white, density)


_GROUND: dict[str, Callable[[Array, np.random.Generator], None]] = {
    "agriculture": _agriculture,
    "cultivation": _cultivation,
    "bare_ground": _bare_ground,
    "slash_burn": _slash_burn,
    "selective_logging": _selective_logging,
    "blow_down": _blow_down,
    "conventional_mine": _conventional_mine,
    "blooming": _blooming,
}
