"""From the stored bytes of a tile to its pixels, by the format of a dataset's tiles.

RGB of 8 bits is read by `images`. Of other formats a TIFF is read by `bands`, with its own values;
bands 1, 2 and 3 of any other picture are its red, green and blue. Both pass the same gate. Imports
neither torch nor ray.
"""

from __future__ import annotations

from typing import Any
from zlib import crc32

import numpy as np
from PIL import Image

from raytrain.data import images
from raytrain.data.bands import all_bands, chosen_bands
from raytrain.data.headers import is_tiff, tiff_header
from raytrain.data.images import BadImage, Picture
from raytrain.data.tile_format import LARGEST, TileFormat

Array = np.ndarray[Any, Any]


def decode(content: bytes, tiles: TileFormat, size: int | None = None) -> Array:
    """Decodes a stored tile.

    Args:
        content: bytes of the file.
        tiles: format of the dataset's tiles.
        size: side of the result in pixels; None keeps the size of the file.

    Returns:
        (height, width, channels) of the format's type, or (size, size, channels) by antialiased
        bilinear resize. Without a resize the values are those of the file.

    Raises:
        BadImage: the file is damaged, or holds no tile of this format.
        ConfigError: a package that reads it is not installed.
    """
    if tiles.is_plain:
        return images.decode(content, size)
    if not is_tiff(content):
        return _of_picture(images.decode(content, size), tiles)
    pixels = _of_tiff(content, tiles)
    if size is None or pixels.shape[:2] == (size, size):
        return pixels
    channels = [_resized(pixels[:, :, channel], size) for channel in range(tiles.channels)]
    return np.stack(channels, axis=2)


def of_picture(picture: Any, tiles: TileFormat, size: int) -> Array:
    """Makes a tile of a picture in memory.

    A JPEG file is decoded at a smaller size where it has at least twice `size`. A picture in memory
    is resized from its own pixels, which differs by one grey level in the mean.

    Args:
        picture: a PIL picture, or an array (H, W, C) of the format's type. For tiles of 8-bit red,
            green and blue, grey arrays (H, W) and (H, W, 1) are taken, too.
        tiles: format of the dataset's tiles.
        size: side of the result in pixels.

    Returns:
        (size, size, channels) of the format's type.

    Raises:
        BadImage: it is no picture of this format.
    """
    if isinstance(picture, Image.Image):
        return _of_pil(picture, tiles, size)
    array = np.asarray(picture)
    if tiles.is_plain and (array.ndim == 2 or array.shape[2:] == (1,)):
        grey = array.reshape(*array.shape[:2], 1)
        array = np.repeat(grey, tiles.channels, axis=2)
    if array.ndim != 3 or array.shape[2] != tiles.channels:
        raise BadImage("bands", f"an array of shape {array.shape}, not (H, W, {tiles.channels})")
    _check_type(array.dtype.name, tiles)
    height, width, channels = array.shape
    images.check_sides(width, height)
    if (height, width) == (size, size):
        return array
    return np.stack([_resized(array[:, :, channel], size) for channel in range(channels)], axis=2)


def inspect(content: bytes, tiles: TileFormat, name: str = "") -> Picture:
    """Checks a file as `images.inspect` does, and that it holds a tile of this format.

    Args:
        content: bytes of the file.
        tiles: format of the dataset's tiles.
        name: of the file; its suffix is compared with the format found.

    Raises:
        BadImage: of the kinds of `images.inspect`. A file with too few bands is of kind bands, one
            with values of another type of kind 16-bit.
        ConfigError: a package that reads it is not installed.
    """
    if tiles.is_plain:
        return images.inspect(content, name)
    if not is_tiff(content):
        picture = images.inspect(content, name)
        _of_picture(images.decode(content), tiles)
        return picture
    height, width, _ = _of_tiff(content, tiles).shape
    odd: tuple[str, ...] = ()
    if images.is_mislabelled(name, "TIFF"):
        odd = (images.MISLABELLED,)
    return Picture(width, height, tiff_mode(content), crc32(content), odd)


def format_of(content: bytes, bands: tuple[int, ...]) -> TileFormat:
    """Returns the format of a dataset in which this file is a tile.

    Args:
        content: bytes of the file.
        bands: that the tiles keep, counted from 1.

    Raises:
        BadImage: it is a tile of no format.
        ConfigError: a package that reads it is not installed.
    """
    refused: BadImage | None = None
    for dtype in LARGEST:
        tiles = TileFormat(len(bands), dtype, bands)
        try:
            inspect(content, tiles)
            return tiles
        except BadImage as error:
            refused = error
    assert refused is not None
    raise refused


def tiff_mode(content: bytes) -> str:
    """Names how a TIFF stores its pixels, by its header: `4 bands of 16 bits`."""
    try:
        header = tiff_header(content)
    except Exception:  # it raises many types where only other tags are damaged
        return "TIFF"
    noun = "band" if header.bands == 1 else "bands"
    return f"{header.bands} {noun} of {header.bits} bits"


def _of_pil(picture: Image.Image, tiles: TileFormat, size: int) -> Array:
    rgb = images.rgb(picture)
    images.check_sides(rgb.width, rgb.height)
    if rgb.size != (size, size):
        rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
    if tiles.is_plain:
        return np.asarray(rgb)
    return _of_picture(np.asarray(rgb), tiles)


def _of_picture(rgb: Array, tiles: TileFormat) -> Array:
    """The channels of a picture that is no TIFF: (H, W, 3) to (H, W, C)."""
    chosen = chosen_bands(rgb, tiles.file_bands)
    _check_type("uint8", tiles)
    return np.ascontiguousarray(chosen)


def _of_tiff(content: bytes, tiles: TileFormat) -> Array:
    """The channels of a TIFF, (H, W, C)."""
    pixels = all_bands(content)
    height, width, _ = pixels.shape
    images.check_sides(width, height)
    chosen = chosen_bands(pixels, tiles.file_bands)
    # A file may have the other byte order than this machine.
    _check_type(chosen.dtype.newbyteorder("=").name, tiles)
    return np.ascontiguousarray(chosen, dtype=tiles.dtype)


def _check_type(found: str, tiles: TileFormat) -> None:
    if found == tiles.dtype:
        return
    if found in LARGEST:
        raise BadImage("16-bit", f"values of {found}, those of the dataset are {tiles.dtype}")
    raise BadImage("16-bit", f"values of {found}, bands are kept of {' or '.join(LARGEST)}")


def _resized(channel: Array, size: int) -> Array:
    """A channel (H, W) at another size, by Pillow's antialiased bilinear resize."""
    side = (size, size)
    if channel.dtype == np.uint8:
        image = Image.fromarray(np.ascontiguousarray(channel))
        return np.asarray(image.resize(side, Image.Resampling.BILINEAR))
    # As float32, which holds every 16-bit value, Pillow sums in float64 and rounds nothing.
    image = Image.fromarray(channel.astype(np.float32))
    resized = np.asarray(image.resize(side, Image.Resampling.BILINEAR))
    rounded: Array = np.clip(np.rint(resized), 0, LARGEST["uint16"]).astype(np.uint16)
    return rounded
