"""TIFF tiles with other than 8-bit grey or RGB pixels, such as the competition's 4-band 16-bit ones, as pictures.

Needs the extra `raytrain[tiff]`: Pillow cannot read them. No torch, no ray.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from raytrain.data.headers import is_tiff
from raytrain.data.images import MAX_BYTES, MAX_PIXELS, BadImage
from raytrain.errors import ConfigError

MAX_DECODED = 2**27  # bytes of all bands


@dataclass(frozen=True)
class BandRule:
    """Which bands become red, green and blue, and how their values become 8 bits.

    A value v becomes round(255 (v - low) / (high - low)), clipped to 0 and 255: the same for every tile and band, since a
    stretch of each tile by its own values would make haze look like clear sky.

    Attributes:
        bands: numbers of the bands for red, green and blue, from 1; Planet's files hold blue, green, red, near infrared.
        low: value that becomes 0; high: value that becomes 255.
    """

    bands: tuple[int, int, int] = (3, 2, 1)
    low: float = 0.0
    high: float = 255.0


def parse(bands: str | None, scale: str) -> BandRule | None:
    """The rule that the flags --bands "3,2,1" and --scale "0,10000" state; None without bands.

    Raises:
        ConfigError: not three band numbers, or not two rising values.
    """
    try:
        low, high = (float(value) for value in scale.split(","))
        chosen = tuple(int(band) for band in (bands or "1,1,1").split(","))
    except ValueError:
        low, high, chosen = 0.0, 0.0, ()
    if len(chosen) != 3 or min(chosen) < 1 or not low < high:
        raise ConfigError(
            f"--bands {bands} --scale {scale}",
            "three bands, counted from 1, become red, green and blue; two rising values become 0 and 255",
            "--bands 3,2,1 --scale 0,10000",
        )
    return BandRule((chosen[0], chosen[1], chosen[2]), low, high) if bands else None


def as_picture(content: bytes, path: str, rule: BandRule | None) -> bytes:
    """The file as it is, or a PNG of the chosen bands where there is a rule and it is a TIFF; see `to_png`.

    A TIFF is one by its first bytes or by its name: a damaged one is to be named as such.
    """
    if rule is None or not (is_tiff(content) or path.lower().endswith((".tif", ".tiff"))):
        return content
    return to_png(content, rule)


def to_png(content: bytes, rule: BandRule) -> bytes:
    """The chosen bands of a TIFF as an 8-bit RGB PNG; rows and columns as in the file.

    Raises:
        BadImage: kind empty, too-large, not-an-image, too-many-pixels, bands or truncated.
        ConfigError: tifffile is not installed.
    """
    pixels = _pixels(content)
    if pixels.shape[2] < max(rule.bands):
        raise BadImage("bands", f"{pixels.shape[2]} bands, band {max(rule.bands)} was asked for")
    chosen = pixels[:, :, [band - 1 for band in rule.bands]].astype(np.float64)
    scaled = np.nan_to_num(
        np.rint(255 * (chosen - rule.low) / (rule.high - rule.low))
    )  # no number: 0
    buffer = io.BytesIO()
    Image.fromarray(np.clip(scaled, 0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _pixels(content: bytes) -> np.ndarray[Any, Any]:
    """(height, width, bands) of the first picture of a TIFF."""
    if not content or len(content) > MAX_BYTES:
        raise BadImage(
            "too-large" if content else "empty", f"{len(content)} bytes, at most {MAX_BYTES}"
        )
    try:
        import tifffile
    except ImportError:
        raise ConfigError(
            "--bands needs the package tifffile",
            "Pillow cannot read such files",
            "pip install 'raytrain[tiff]'",
        ) from None
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            series = file.series[0]
            if series.axes[0] in "IQ" and len(file.pages) > 1:
                raise BadImage("animated", f"{len(file.pages)} pages")
            axes, shape = (
                series.axes.replace("I", "S").replace("Q", "S").replace("C", "S"),
                series.shape,
            )
            if axes not in ("YX", "YXS", "SYX"):
                raise BadImage("bands", f"axes {series.axes} of shape {shape}: not one picture")
            if (
                shape[axes.index("Y")] * shape[axes.index("X")] > MAX_PIXELS
                or series.nbytes > MAX_DECODED
            ):
                raise BadImage(
                    "too-many-pixels",
                    f"shape {shape}, at most {MAX_PIXELS} pixels and {MAX_DECODED} bytes",
                )
            pixels = series.asarray()
    except tifffile.TiffFileError as error:
        raise BadImage("not-an-image", str(error)) from None
    except BadImage:
        raise
    except Exception as error:  # its parser raises what the damage makes it trip over
        raise BadImage("truncated", str(error)) from None
    if axes == "YX":
        return pixels[:, :, None]
    return np.moveaxis(pixels, 0, 2) if axes == "SYX" else pixels
