"""Converts TIFF tiles that Pillow cannot read, such as 4-band 16-bit ones, to 8-bit RGB pictures.

Needs the extra `raytrain[tiff]`. Imports neither torch nor ray.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from raytrain.data.headers import is_tiff
from raytrain.data.images import MAX_BYTES, MAX_PIXELS, BadImage
from raytrain.errors import ConfigError

MAX_DECODED = 2**27  # bytes of all bands together
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


def parse(bands: str | None, scale: str) -> BandRule | None:
    """Parses the flags --bands and --scale.

    Args:
        bands: such as "3,2,1", or None.
        scale: such as "0,10000".

    Returns:
        The rule; None without bands. `scale` is checked in any case.

    Raises:
        ConfigError: not three band numbers, or not two rising values.
    """
    try:
        low, high = (float(value) for value in scale.split(","))
        red, green, blue = (int(band) for band in (bands or "1,1,1").split(","))
    except ValueError:
        raise _wrong_flags(bands, scale) from None
    # `not low < high` and not `low >= high`: it also refuses nan.
    if min(red, green, blue) < 1 or not low < high:
        raise _wrong_flags(bands, scale)
    if not bands:
        return None
    return BandRule((red, green, blue), low, high)


def _wrong_flags(bands: str | None, scale: str) -> ConfigError:
    return ConfigError(
        f"--bands {bands} --scale {scale}",
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
    pixels = _pixels(content)
    found = pixels.shape[2]
    if found < max(rule.bands):
        raise BadImage("bands", f"{found} bands, band {max(rule.bands)} was asked for")
    indices = [band - 1 for band in rule.bands]
    chosen = pixels[:, :, indices].astype(np.float64)
    scaled = np.rint(255 * (chosen - rule.low) / (rule.high - rule.low))
    # Pixels without a value are nan in real-valued files; they become 0.
    scaled = np.nan_to_num(scaled)
    picture = Image.fromarray(np.clip(scaled, 0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _pixels(content: bytes) -> Array:
    """(height, width, bands) of the first picture of a TIFF, in its own dtype."""
    limit = f"{len(content)} bytes, at most {MAX_BYTES}"
    if not content:
        raise BadImage("empty", limit)
    if len(content) > MAX_BYTES:
        raise BadImage("too-large", limit)
    tifffile = _tifffile()
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            axes = _checked_axes(file)
            pixels = file.series[0].asarray()
    except tifffile.TiffFileError as error:
        raise BadImage("not-an-image", str(error)) from None
    except BadImage:
        raise
    except Exception as error:  # its parser raises many types for damaged data
        raise BadImage("truncated", str(error)) from None
    return _bands_last(pixels, axes)


def _tifffile() -> ModuleType:
    """Imports the package of the extra."""
    try:
        import tifffile
    except ImportError:
        raise ConfigError(
            "--bands needs the package tifffile",
            "Pillow cannot read such files",
            "pip install 'raytrain[tiff]'",
        ) from None
    return tifffile


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
