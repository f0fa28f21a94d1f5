"""Paints the synthetic tiles: from a label set and a random generator to 256x256 pixels.

Each label leaves a mark of its own shape. Colours and contrasts follow the averages of real tiles
with those labels. Pixels are float32 RGB in 0 to 255 while painting.

Tiles must stay equal bit for bit, so that scores on them stay comparable. The order of the random
draws and of the floating-point operations in this module must not change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from scipy import ndimage as ndi

Array = np.ndarray[Any, Any]
Colour = tuple[int, int, int]
# A row or column of the tile, in pixels.
Coordinate = float | np.integer[Any]
SIZE = 256
_BANK_SIZE = 1024
# Row and column of every pixel, float32 (256, 256).
_Y, _X = np.mgrid[:SIZE, :SIZE].astype(np.float32)


@dataclass(frozen=True)
class _NoiseKind:
    """Parameters of a noise.

    Attributes:
        exponent: of the 1/f spectrum; a higher one gives larger shapes.
        lowest: frequency in cycles a pixel below which the spectrum is flat.
        blur: deviation of a Gaussian blur in pixels.
    """

    exponent: float
    lowest: float
    blur: float


# In the order in which they are drawn.
_NOISES = {
    "canopy": _NoiseKind(exponent=0.6, lowest=0.03, blur=1.0),
    "mid": _NoiseKind(exponent=1.4, lowest=0.008, blur=0.8),
    "low": _NoiseKind(exponent=2.0, lowest=0.002, blur=0.0),
    "cloud": _NoiseKind(exponent=2.1, lowest=0.004, blur=0.0),
}

# Mean colours, red, green and blue; `_colour` varies them from mark to mark.
_FOREST = (50, 64, 55)
_OPEN_GROUND = (104, 112, 92)
_DRY_FIELD = (128, 122, 98)
_GREEN_FIELD = (102, 118, 82)
_CLEARING = (92, 128, 66)
_SOIL = (168, 144, 112)
_CHARCOAL = (42, 36, 36)
_SMOKE = (176, 180, 186)
_FLOWERS = (198, 186, 142)
_FALLEN_TREES = (108, 106, 84)
_PIT = (172, 158, 138)
_PIT_POND = (104, 128, 116)
_TRAIL = (112, 104, 76)
_TRAIL_CLEARING = (118, 110, 80)
_MUDDY_WATER = (122, 112, 84)
_CLEAR_WATER = (44, 58, 70)
_SAND = (196, 180, 148)
_TURQUOISE_POND = (96, 148, 142)
_ROAD = (158, 138, 108)
_YARDS = (132, 120, 98)
_ROOF = (206, 198, 190)
_HAZE = (172, 182, 180)
_CLOUD = (178, 180, 176)


def paint(labels: frozenset[str], rng: np.random.Generator) -> Array:
    """Paints a tile: first the ground, then marks from large to small, then the weather.

    Args:
        labels: of the tile.
        rng: gives all random draws.

    Returns:
        uint8 (256, 256, 3) RGB.
    """
    image = _ground(labels, rng)
    for label, brush in _GROUND_BRUSHES.items():
        if label in labels:
            brush(image, rng)
    # Mines lie at rivers and houses at roads, so these brushes need the other's result.
    river = None
    if "water" in labels:
        river = _water(image, rng)
    if "artisinal_mine" in labels:
        _artisinal_mine(image, rng, river)
    path = None
    if "road" in labels:
        path = _roads(image, rng)
    if "habitation" in labels:
        _habitation(image, rng, path)
    _weather(image, labels, rng)
    return _exposed(image, rng)


def _exposed(image: Array, rng: np.random.Generator) -> Array:
    """Adds the differences between scenes and returns uint8 pixels.

    Sun, haze and sensor differ from scene to scene, so the mean colour alone says little about the
    labels, as with real tiles.
    """
    gain = rng.normal(1, 0.09)
    offset = rng.normal(0, 7)
    tint = rng.normal(0, 3, 3)
    sensor = rng.normal(0, 0.7, image.shape)
    exposed = image * gain + offset + tint + sensor
    return np.clip(exposed, 0, 255).astype(np.uint8)


# Tools of the brushes


@cache
def _noise_bank() -> dict[str, Array]:
    """Noise of mean 0 and deviation 1 by kind, float32 (1024, 1024), which can be tiled.

    A crop of it costs a tenth of a millisecond; computing noise for each tile would cost more.
    """
    rng = np.random.default_rng(0)
    rows = np.fft.fftfreq(_BANK_SIZE)[:, None]
    columns = np.fft.rfftfreq(_BANK_SIZE)[None]
    frequency = np.hypot(columns, rows)
    shape = (_BANK_SIZE, _BANK_SIZE)
    bank = {}
    for name, kind in _NOISES.items():
        white = np.fft.rfft2(rng.standard_normal(shape))
        flattened = np.maximum(frequency, kind.lowest)
        spectrum = white * flattened**-kind.exponent
        noise = np.fft.irfft2(spectrum, s=shape)
        noise = ndi.gaussian_filter(noise, kind.blur, mode="wrap")
        centred = noise - noise.mean()
        standardised = centred / noise.std()
        bank[name] = standardised.astype(np.float32)
    return bank


def _noise(rng: np.random.Generator, name: str) -> Array:
    """A random crop of the bank in a random one of the 8 symmetries, float32 (256, 256)."""
    y, x = rng.integers(0, _BANK_SIZE - SIZE, 2)
    quarter_turns = int(rng.integers(4))
    noise = _noise_bank()[name]
    crop = noise[y : y + SIZE, x : x + SIZE]
    crop = np.rot90(crop, quarter_turns)
    if rng.random() < 0.5:
        return crop.T
    return crop


def _mix(image: Array, mask: Array, rgb: Any, amount: float = 1.0) -> None:
    """Mixes a colour into the image in place.

    Args:
        image: float32 (256, 256, 3).
        mask: (256, 256) in 0 to 1.
        rgb: (3,), or (256, 256, 3) for a textured colour.
        amount: share of the colour where the mask is 1.
    """
    colour = np.asarray(rgb, np.float32)
    share = mask * np.float32(amount)
    change = (colour - image) * share[..., None]
    image += change


def _colour(rng: np.random.Generator, rgb: Colour, spread: float = 8) -> Array:
    """A colour near another, float64 (3,): it differs in brightness, and a third of that in hue."""
    brightness = rng.normal(0, spread)
    hue = rng.normal(0, spread / 3, 3)
    return np.asarray(rgb) + brightness + hue


def _either(rng: np.random.Generator, share: float, first: Colour, second: Colour) -> Colour:
    """The first colour in a share of the draws, else the second."""
    if rng.random() < share:
        return first
    return second


def _textured(colour: Array, texture: Array) -> Array:
    """A colour (3,) with a texture (256, 256) added to all channels: (256, 256, 3)."""
    return colour + texture[..., None]


def _count(rng: np.random.Generator, least: int, below: int) -> int:
    """A random number of marks, at least `least` and below `below`."""
    return int(rng.integers(least, below))


def _direction(rng: np.random.Generator) -> float:
    """A random direction in radians, 0 to 2 pi."""
    return rng.uniform(0, 2 * np.pi)


def _centre(rng: np.random.Generator) -> Array:
    """A point in the middle of the tile, float64 (2,) as y, x."""
    return rng.uniform(0.3, 0.7, 2) * SIZE


def _curve(rng: np.random.Generator, roughness: float) -> Array:
    """A winding line across the tile, float64 (900, 2) as y, x, in steps of 0.6 pixels."""
    turns = rng.normal(0, roughness, 900)
    turns = ndi.gaussian_filter1d(turns, 25)
    start = _direction(rng)
    heading = start + np.cumsum(turns)
    y = np.sin(heading)
    x = np.cos(heading)
    steps = 0.6 * np.stack([y, x], 1)
    points = np.cumsum(steps, 0)
    # The middle of the line lies in the middle of the tile.
    middle = points[len(points) // 2]
    moved = points - middle + _centre(rng)
    return np.asarray(moved)


def _distance_to_line(points: Array) -> Array:
    """Distance of every pixel to a line, in pixels, float32 (256, 256)."""
    # Only pixels of the tile can be marked.
    is_inside = (points >= 0) & (points < SIZE)
    inside = points[is_inside.all(1)]
    y, x = inside.astype(int).T
    free = np.ones((SIZE, SIZE), bool)
    free[y, x] = False
    distance = ndi.distance_transform_edt(free)
    return np.asarray(distance, np.float32)


def _offsets(y: Coordinate, x: Coordinate) -> tuple[Array, Array]:
    """Rows and columns from a point to every pixel, each (256, 256)."""
    return _Y - y, _X - x


def _distance_to_point(y: Coordinate, x: Coordinate) -> Array:
    """Distance of every pixel to a point, in pixels, (256, 256)."""
    dy, dx = _offsets(y, x)
    return np.asarray(np.hypot(dy, dx))


def _rotated(y: Coordinate, x: Coordinate, angle: float) -> tuple[Array, Array]:
    """Coordinates of every pixel along and across a direction from a point, each (256, 256)."""
    dy, dx = _offsets(y, x)
    cos = np.cos(angle)
    sin = np.sin(angle)
    along = dx * cos + dy * sin
    across = dy * cos - dx * sin
    return along, across


def _soft(distance: Array, width: float | Array, edge: float = 1.0) -> Array:
    """1 inside a width, 0 outside, with a soft edge of some pixels; float32."""
    ramp = (width - distance) / edge + 0.5
    return np.clip(ramp, 0, 1).astype(np.float32)


def _blob(rng: np.random.Generator, share: float) -> Array:
    """A smooth patch somewhere in the tile, float32 (256, 256) in 0 to 1.

    Args:
        share: of the tile's area that it covers, about.
    """
    y, x = rng.uniform(0.2, 0.8, 2) * SIZE
    # The radius of a circle of that area.
    radius = SIZE * np.sqrt(share / np.pi)
    angle = rng.uniform(0, np.pi)
    stretch = rng.uniform(0.7, 1.4)
    u, v = _rotated(y, x, angle)
    ellipse = np.hypot(u * stretch, v / stretch)
    bumps = _noise(rng, "mid") * radius * 0.18
    distance = ellipse + bumps
    return _soft(distance, radius, 2.5)


# Ground


def _ground(labels: frozenset[str], rng: np.random.Generator) -> Array:
    """The ground before any mark, float32 (256, 256, 3)."""
    if "primary" in labels:
        return _forest(rng)
    return _pale(rng)


def _forest(rng: np.random.Generator) -> Array:
    brightness = rng.normal(0, 8)
    hue = rng.normal(0, 2.5, 3)
    tone = np.array(_FOREST) + brightness + hue
    texture = 4.2 * _noise(rng, "canopy")
    texture = texture + 1.6 * _noise(rng, "mid")
    texture = texture + 2.5 * _noise(rng, "low")
    # The crowns of trees vary most in green.
    channels = np.array([0.9, 1.0, 0.9])
    image = tone + texture[..., None] * channels
    return np.asarray(image, np.float32)


def _pale(rng: np.random.Generator) -> Array:
    """Open ground without forest."""
    tone = _colour(rng, _OPEN_GROUND, 12)
    texture = 2.0 * _noise(rng, "canopy")
    texture = texture + 4.0 * _noise(rng, "mid")
    texture = texture + 6.0 * _noise(rng, "low")
    return _textured(tone, texture).astype(np.float32)


# Brushes that depend on nothing else; each paints into the image in place


def _agriculture(image: Array, rng: np.random.Generator) -> None:
    """Large pastel fields with straight borders and faint rows."""
    cells = _count(rng, 4, 9)
    angle = rng.uniform(0, np.pi)
    u, v = _rotated(0, 0, angle)
    u = u + 5 * _noise(rng, "mid")
    v = v * rng.uniform(1.1, 1.9)
    centres = rng.uniform(-60, SIZE + 60, (cells, 2))
    # Each pixel belongs to the field with the nearest centre. The maximum of the two coordinates
    # as distance gives straight borders.
    distances = []
    for a, b in centres:
        du = abs(u - a)
        dv = abs(v - b)
        distances.append(np.maximum(du, dv))
    owner = np.argmin(distances, 0)
    used = _used_fields(owner, cells, rng)
    across = v
    if rng.random() < 0.5:
        across = u
    density = rng.uniform(0.5, 0.9)
    rows = np.sin(across * density)
    for cell in np.flatnonzero(used):
        base = _either(rng, 0.55, _DRY_FIELD, _GREEN_FIELD)
        colour = _colour(rng, base, 9)
        texture = 1.5 * rows + 2.5 * _noise(rng, "mid")
        field = _textured(colour, texture)
        # The filter softens the borders by a pixel.
        mask = (owner == cell).astype(np.float32)
        mask = ndi.uniform_filter(mask, 3)
        _mix(image, mask, field, 0.92)


def _used_fields(owner: Array, cells: int, rng: np.random.Generator) -> Array:
    """Which cells are fields, bool (cells,); the others stay as they are.

    Args:
        owner: int (256, 256), the cell of each pixel.
    """
    draws = rng.random(cells)
    share = rng.uniform(0.45, 0.8)
    used = draws < share
    # There is a field at the middle, and ground at a corner to compare it with.
    middle = SIZE // 2
    used[owner[middle, middle]] = True
    used[owner[0, 0]] = False
    return np.asarray(used)


def _cultivation(image: Array, rng: np.random.Generator) -> None:
    """Small bright clearings inside the forest."""
    for _ in range(_count(rng, 4, 10)):
        colour = _colour(rng, _CLEARING, 9)
        texture = 3 * _noise(rng, "mid")
        patch = _textured(colour, texture)
        share = rng.uniform(0.007, 0.025)
        clearing = _blob(rng, share)
        _mix(image, clearing, patch, 0.9)


def _bare_ground(image: Array, rng: np.random.Generator) -> None:
    """A large patch of soil."""
    colour = _colour(rng, _SOIL, 8)
    texture = 5 * _noise(rng, "mid")
    ground = _textured(colour, texture)
    share = rng.uniform(0.05, 0.14)
    patch = _blob(rng, share)
    _mix(image, patch, ground, 0.95)


def _slash_burn(image: Array, rng: np.random.Generator) -> None:
    """A charred patch with a widening plume of smoke."""
    share = rng.uniform(0.04, 0.1)
    patch = _blob(rng, share)
    colour = _colour(rng, _CHARCOAL, 4)
    texture = 3 * _noise(rng, "canopy")
    ash = _textured(colour, texture)
    _mix(image, patch, ash, 0.95)
    # The smoke rises from a pixel inside the patch.
    index = int(patch.argmax())
    y, x = np.unravel_index(index, patch.shape)
    angle = _direction(rng)
    along, across = _rotated(y, x, angle)
    across = across + 6 * _noise(rng, "mid")
    width = 6 + 0.22 * np.maximum(along, 0)
    profile = np.exp(-((across / width) ** 2))
    # It begins at that pixel and fades over 150 pixels.
    is_ahead = along > 0
    plume = profile * is_ahead * np.exp(-along / 150)
    _mix(image, plume.astype(np.float32), _SMOKE, 0.75)


def _blooming(image: Array, rng: np.random.Generator) -> None:
    """Crowns in flower: many pale dots."""
    dots = np.zeros((SIZE, SIZE), np.float32)
    count = _count(rng, 90, 240)
    strength = rng.uniform(0.6, 1, count)
    y, x = rng.integers(0, SIZE, (2, count))
    dots[y, x] = strength
    dots = ndi.gaussian_filter(dots, 1.7)
    # The blur spreads a dot over some 18 pixels; the factor restores its strength.
    mask = np.clip(dots * 22, 0, 1)
    colour = _colour(rng, _FLOWERS, 8)
    _mix(image, mask, colour, 0.8)


def _blow_down(image: Array, rng: np.random.Generator) -> None:
    """A fan of fallen trees with radial streaks."""
    y, x = _centre(rng)
    radius = rng.uniform(70, 115)
    half_angle = rng.uniform(0.4, 0.8)
    heading = _direction(rng)
    dy, dx = _offsets(y, x)
    angle = np.arctan2(dy, dx) - heading
    # Into -pi to pi.
    angle = (angle + np.pi) % (2 * np.pi) - np.pi
    distance = _distance_to_point(y, x) + 6 * _noise(rng, "mid")
    disc = _soft(distance, radius, 8)
    sector = _soft(np.abs(angle), half_angle, 0.12)
    fan = disc * sector
    streaks_per_radian = rng.uniform(28, 40)
    trunks = np.sin(angle * streaks_per_radian) * 9
    streaks = trunks + 5 * _noise(rng, "canopy")
    colour = _colour(rng, _FALLEN_TREES, 6)
    textured = _textured(colour, streaks)
    _mix(image, fan, textured, 0.85)


def _conventional_mine(image: Array, rng: np.random.Generator) -> None:
    """A terraced pit with a grey-green pond."""
    y, x = _centre(rng)
    radius = rng.uniform(42, 70)
    stretch = rng.uniform(0.75, 1.3)
    dy, dx = _offsets(y, x)
    ellipse = np.hypot(dy * stretch, dx / stretch)
    distance = ellipse + 4 * _noise(rng, "mid")
    # A terrace every 9 pixels.
    phase = distance * 2 * np.pi / 9
    terraces = 12 * np.sign(np.sin(phase))
    colour = _colour(rng, _PIT, 6)
    pit = _soft(distance, radius, 3)
    textured = _textured(colour, terraces)
    _mix(image, pit, textured, 0.97)
    pond = _soft(distance, radius * 0.35, 3)
    colour = _colour(rng, _PIT_POND, 5)
    _mix(image, pond, colour)


def _selective_logging(image: Array, rng: np.random.Generator) -> None:
    """Thin winding trails with small clearings."""
    for _ in range(_count(rng, 3, 6)):
        points = _curve(rng, 0.1)
        distance = _distance_to_line(points)
        trail = _soft(distance, 1.2)
        colour = _colour(rng, _TRAIL, 5)
        _mix(image, trail, colour, 0.75)
        chosen = rng.integers(0, len(points), 10)
        for y, x in points[chosen]:
            distance = _distance_to_point(y, x)
            clearing = _soft(distance, rng.uniform(2.5, 4.5))
            colour = _colour(rng, _TRAIL_CLEARING, 5)
            _mix(image, clearing, colour, 0.8)


# Brushes that use or give a position


def _water(image: Array, rng: np.random.Generator) -> Array:
    """A river, in some tiles a lake.

    Returns:
        Distance of every pixel to the river's middle or to the lake, in pixels, float32 (256, 256).
    """
    base = _either(rng, 0.55, _MUDDY_WATER, _CLEAR_WATER)
    colour = _colour(rng, base, 7)
    if rng.random() < 0.85:
        course = _curve(rng, 0.06)
        distance = _distance_to_line(course)
        mean_width = rng.uniform(5, 20)
        variation = 0.2 * _noise(rng, "low")
        width = mean_width * (1 + variation)
    else:
        share = rng.uniform(0.06, 0.2)
        lake = _blob(rng, share)
        distance = ndi.distance_transform_edt(lake < 0.5)
        distance = np.asarray(distance, np.float32)
        width = np.full(1, 0.5)
    # The bank first: a wider band, half-way to a lighter colour.
    bank = _soft(distance, width + 2.5, 2)
    _mix(image, bank, colour * 0.75 + 22, 0.5)
    water = _soft(distance, width, 2)
    waves = 1.2 * _noise(rng, "low")
    textured = _textured(colour, waves)
    _mix(image, water, textured)
    return distance


def _artisinal_mine(image: Array, rng: np.random.Generator, river: Array | None) -> None:
    """Pale pits with turquoise ponds, near a river if there is one.

    Args:
        river: distance of every pixel to it, see `_water`.
    """
    # Positions that a pit may have, int (positions, 2) as y, x.
    positions = np.zeros((0, 2), int)
    if river is not None:
        is_near = (river > 10) & (river < 32)
        positions = np.argwhere(is_near)
    if not len(positions):
        everywhere = np.ones((SIZE, SIZE), bool)
        positions = np.argwhere(everywhere)
    count = _count(rng, 9, 18)
    chosen = rng.integers(0, len(positions), count)
    for y, x in positions[chosen]:
        distance = _distance_to_point(y, x) + 1.5 * _noise(rng, "mid")
        radius = rng.uniform(7, 13)
        pit = _soft(distance, radius, 2)
        colour = _colour(rng, _SAND, 7)
        _mix(image, pit, colour)
        pond = _soft(distance, radius * 0.5, 1.5)
        colour = _colour(rng, _TURQUOISE_POND, 6)
        _mix(image, pond, colour)


def _roads(image: Array, rng: np.random.Generator) -> Array:
    """One or two thin, gentle lines.

    Returns:
        The points of the first, float64 (900, 2) as y, x.
    """
    colour = _colour(rng, _ROAD, 8)
    paths = [_curve(rng, 0.012)]
    if rng.random() < 0.35:
        paths.append(_curve(rng, 0.012))
    for points in paths:
        distance = _distance_to_line(points)
        road = _soft(distance, rng.uniform(1.5, 2.6))
        _mix(image, road, colour, 0.9)
    return paths[0]


def _habitation(image: Array, rng: np.random.Generator, path: Array | None) -> None:
    """A cluster of bright roofs, at a road if there is one.

    Args:
        path: points of the road, see `_roads`.
    """
    centre = _village(rng, path)
    y, x = centre
    distance = _distance_to_point(y, x) + 8 * _noise(rng, "mid")
    _mix(image, _soft(distance, 30, 12), _YARDS, 0.55)
    for _ in range(_count(rng, 35, 95)):
        corner = centre + rng.normal(0, 20, 2)
        y, x = corner.astype(int)
        height, width = rng.integers(2, 6, 2)
        # Roofs that would cross the edge are left out.
        if 0 <= y < SIZE - height and 0 <= x < SIZE - width:
            roof = image[y : y + height, x : x + width]
            roof[:] = _colour(rng, _ROOF, 14)


def _village(rng: np.random.Generator, path: Array | None) -> Array:
    """The centre of the roofs, float64 (2,) as y, x."""
    if path is not None:
        # At least 40 pixels from the edge, far enough for most roofs.
        is_inside = (path > 40) & (path < SIZE - 40)
        inside = path[is_inside.all(1)]
        if len(inside):
            return np.asarray(inside[len(inside) // 2])
    return _centre(rng)


# Weather


def _weather(image: Array, labels: frozenset[str], rng: np.random.Generator) -> None:
    if "haze" in labels:
        thickness = rng.uniform(0.42, 0.62)
        veil = thickness + 0.06 * _noise(rng, "low")
        mask = np.clip(veil, 0.3, 0.8)
        colour = _colour(rng, _HAZE, 5)
        _mix(image, mask, colour)
    if "partly_cloudy" in labels:
        cover = rng.uniform(0.1, 0.35)
        _clouds(image, rng, cover, density=0.85)
    if "cloudy" in labels:
        cover = rng.uniform(0.8, 1.0)
        _clouds(image, rng, cover, density=0.95)


def _clouds(image: Array, rng: np.random.Generator, cover: float, density: float) -> None:
    """Soft clouds with their shadows.

    Args:
        cover: share of the tile that they cover.
        density: how much of the ground they hide, 0 to 1.
    """
    noise = _noise(rng, "cloud") + 0.12 * _noise(rng, "mid")
    threshold = np.quantile(noise, 1 - cover)
    thickness = (noise - threshold) / 0.5 + 0.1
    mask = np.clip(thickness, 0, 1) ** 0.8
    # Under a closed cover no shadow can be seen.
    if cover < 0.5:
        length = rng.uniform(8, 20, 2)
        offset = length * rng.choice([-1, 1], 2)
        moved = ndi.shift(mask, offset, order=1, mode="nearest")
        shadow = np.clip(moved - mask, 0, 1)
        light = 1 - 0.45 * shadow
        image *= light[..., None]
    colour = _colour(rng, _CLOUD, 6)
    texture = 9 * _noise(rng, "low")
    white = _textured(colour, texture)
    _mix(image, mask.astype(np.float32), white, density)


# In the order of painting, from large marks to small ones.
_GROUND_BRUSHES: dict[str, Callable[[Array, np.random.Generator], None]] = {
    "agriculture": _agriculture,
    "cultivation": _cultivation,
    "bare_ground": _bare_ground,
    "slash_burn": _slash_burn,
    "selective_logging": _selective_logging,
    "blow_down": _blow_down,
    "conventional_mine": _conventional_mine,
    "blooming": _blooming,
}
