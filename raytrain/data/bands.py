"""Reads TIFF tiles that Pillow cannot read, such as those of 4 bands of 16 bits.

A `BandRule` converts three of their bands to 8-bit RGB. `KeptBands` keeps bands as they are, see
`pixels`. Needs the extra `raytrain[tiff]`. Imports neither torch nor ray.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from raytrain.data.headers import is_tiff
from raytrain.data.images import MAX_BYTES, MAX_PIXELS, BadImage
from raytrain.errors import ConfigError

MAX_DECODED = 2**27  # bytes of all bands together
# The package that tifffile asks for where a file is compressed by another method than Deflate.
_CODECS = "imagecodecs"
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class BandRule:
    """Which bands become red, green and blue, and how their values become 8 bits.

    A value v becomes round(255 (v - low) / (high - low)), clipped to 0 and 255. The limits are the
    same for every tile and band: a stretch of each tile by its own values would make haze look like
    clear sky.

    Attributes:
        bands: numbers of the bands for red, green and blue, counted from 1. Planet's files hold
            blue, green, red and near infrared.
        low: value that becomes 0.
        high: value that becomes 255.
    """

    bands: tuple[int, int, int] = (3, 2, 1)
    low: float = 0.0
    high: float = 255.0


@dataclass(frozen=True)
class KeptBands:
    """Bands that are kept as they are, with their own values of 8 or 16 bits.

    Attributes:
        bands: their numbers, counted from 1, in the order of the channels.
    """

    bands: tuple[int, ...]

    def __str__(self) -> str:
        return ",".join(str(band) for band in self.bands)


def parse(bands: str | None, scale: str | None) -> BandRule | KeptBands | None:
    """Parses the flags --bands and --scale.

    Args:
        bands: such as "1,2,3,4", or None.
        scale: such as "0,10000", or None to keep the bands as they are.

    Returns:
        What becomes of the bands; None without any.

    Raises:
        ConfigError: not numbers of bands; with a scale, not three of them, not two rising values,
            or no bands.
    """
    if scale is not None:
        return _parse_rule(bands, scale)
    if bands is None:
        return None
    try:
        numbers = tuple(int(band) for band in bands.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1 or len(set(numbers)) < len(numbers):
        raise ConfigError(
            f"--bands {bands}",
            "bands are counted from 1 and separated by commas, and each is named once",
            "--bands 1,2,3,4, or --bands 3,2,1 --scale 0,10000 to make RGB of 8 bits",
        )
    return KeptBands(numbers)


def _parse_rule(bands: str | None, scale: str) -> BandRule:
    try:
        low, high = (float(value) for value in scale.split(","))
        red, green, blue = (int(band) for band in (bands or "").split(","))
    except ValueError:
        raise _wrong_flags(bands, scale) from None
    # `not low < high` and not `low >= high`: it also refuses nan.
    if min(red, green, blue) < 1 or not low < high:
        raise _wrong_flags(bands, scale)
    return BandRule((red, green, blue), low, high)


def _wrong_flags(bands: str | None, scale: str) -> ConfigError:
    given = f"--scale {scale}"
    if bands is None:
        given += " without --bands"
    else:
        given = f"--bands {bands} {given}"
    return ConfigError(
        given,
        "three bands, counted from 1, become red, green and blue; "
        "two rising values become 0 and 255",
        "--bands 3,2,1 --scale 0,10000",
    )


def as_picture(content: bytes, path: str, rule: BandRule | None) -> bytes:
    """Converts a TIFF by a rule; returns other files, or all without a rule, unchanged.

    Raises:
        BadImage: see `to_png`.
        ConfigError: see `to_png`.
    """
    if rule is None:
        return content
    # By its name too: a TIFF with damaged first bytes is reported as a damaged TIFF.
    if is_tiff(content) or path.lower().endswith((".tif", ".tiff")):
        return to_png(content, rule)
    return content


def to_png(content: bytes, rule: BandRule) -> bytes:
    """Converts the chosen bands of a TIFF to an 8-bit RGB PNG of the same size.

    Raises:
        BadImage: of kind empty, too-large, not-an-image, too-many-pixels, bands or truncated.
        ConfigError: tifffile is not installed.
    """
    chosen = chosen_bands(all_bands(content), rule.bands).astype(np.float64)
    scaled = np.rint(255 * (chosen - rule.low) / (rule.high - rule.low))
    # Pixels without a value are nan in real-valued files; they become 0.
    scaled = np.nan_to_num(scaled)
    picture = Image.fromarray(np.clip(scaled, 0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def chosen_bands(pixels: Array, bands: Sequence[int]) -> Array:
    """Returns some bands of a picture, in the order given.

    Args:
        pixels: (height, width, bands).
        bands: numbers of bands, counted from 1.

    Raises:
        BadImage: of kind bands, where there are too few.
    """
    found = pixels.shape[2]
    if found < max(bands):
        noun = "band" if found == 1 else "bands"
        raise BadImage("bands", f"{found} {noun}, band {max(bands)} was asked for")
    indices = [band - 1 for band in bands]
    return pixels[:, :, indices]


def all_bands(content: bytes) -> Array:
    """Reads the first picture of a TIFF, (height, width, bands), in its own dtype.

    Raises:
        BadImage: of kind empty, too-large, not-an-image, animated, too-many-pixels, bands or
            truncated.
        ConfigError: a package of the extra is not installed.
    """
    limit = f"{len(content)} bytes, at most {MAX_BYTES}"
    if not content:
        raise BadImage("empty", limit)
    if len(content) > MAX_BYTES:
        raise BadImage("too-large", limit)
    tifffile = reader()
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            axes = _checked_axes(file)
            series = file.series[0]
            pixels = series.asarray()
            if pixels.shape != series.shape:  # it only warns where values are missing
                raise BadImage("truncated", f"shape {pixels.shape} instead of {series.shape}")
    except tifffile.TiffFileError as error:
        raise BadImage("not-an-image", str(error)) from None
    except BadImage:
        raise
    except Exception as error:  # its parser raises many types for damaged data
        if _CODECS in str(error):
            raise _no_package(_CODECS, f"This TIFF is compressed: {error}") from None
        raise BadImage("truncated", str(error)) from None
    return _bands_last(pixels, axes)


def reader() -> ModuleType:
    """Imports the package that reads TIFF files.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import tifffile
    except ImportError:
        raise _no_package("tifffile", "Pillow cannot read such files") from None
    return tifffile


def _no_package(name: str, why: str) -> ConfigError:
    return ConfigError(
        f"the bands of TIFF files need the package {name}", why, "pip install 'raytrain[tiff]'"
    )


def _checked_axes(file: Any) -> str:
    """Checks that the first picture of a TIFF is a single one and within the limits.

    Args:
        file: an open tifffile.TiffFile.

    Returns:
        The meaning of its dimensions: YX, YXS or SYX (rows, columns, bands).

    Raises:
        BadImage: of kind animated, bands or too-many-pixels.
    """
    series = file.series[0]
    shape = series.shape
    # tifffile's I and Q are further pictures or unknown, its C is a channel. The pages are counted
    # last, since that reads the whole file.
    if series.axes[0] in "IQ" and len(file.pages) > 1:
        raise BadImage("animated", f"{len(file.pages)} pages")
    axes: str = series.axes.replace("I", "S").replace("Q", "S").replace("C", "S")
    if axes not in ("YX", "YXS", "SYX"):
        raise BadImage("bands", f"axes {series.axes} of shape {shape}: not one picture")
    height = shape[axes.index("Y")]
    width = shape[axes.index("X")]
    if height * width > MAX_PIXELS or series.nbytes > MAX_DECODED:
        limit = f"at most {MAX_PIXELS} pixels and {MAX_DECODED} bytes"
        raise BadImage("too-many-pixels", f"shape {shape}, {limit}")
    return axes


def _bands_last(pixels: Array, axes: str) -> Array:
    if axes == "YX":
        return pixels[:, :, None]
    if axes == "SYX":
        return np.moveaxis(pixels, 0, 2)
    return pixels
