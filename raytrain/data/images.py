"""The gate every picture passes: header and limits first, then a full decode to RGB.

`inspect(content)` accepts a picture or raises `BadImage` with a kind for the quarantine; `decode(content, size)` gives
the pixels that ingest checks, the tile cache stores and predict sees. Real Planet tiles are 4-component JPEGs that
Pillow opens as CMYK; only `convert("RGB")` reads them right. Kinds and limits: README, "Your own data". No torch, no ray.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from raytrain.data.headers import is_tiff, png_bits, tiff_header
from raytrain.data.names import SUFFIXES

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
_FORMAT_OF = dict(
    zip(SUFFIXES, ("JPEG", "JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "TIFF"), strict=True)
)
MAX_BYTES = 20 * 2**20
MAX_PIXELS = 4096 * 4096
MIN_SIDE = 16
# Part of the key of the tile cache: raise it whenever `decode` may give other pixels.
DECODER_VERSION = 2
_EXIF_ORIENTATION = 0x0112
# A JPEG with further pictures behind the first, such as the preview that drones and phones add; Pillow's word for it.
_JPEG_WITH_MORE = "MPO"
_BANDS_FLAGS = "give --bands and --scale, which say how bands become red, green and blue of 8 bits"


class BadImage(Exception):
    """A picture that stays outside; `kind` is the word in quarantine.jsonl."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(kind, detail)
        self.kind, self.detail = kind, detail


@dataclass(frozen=True)
class Picture:
    """What the gate found out about an accepted picture.

    Attributes:
        width, height: pixels, after the camera's orientation.
        mode: Pillow's word for the pixels as stored: RGB, CMYK, L, P, RGBA, ...
        crc32: of the encoded bytes.
        odd: what was repaired or is strange, in words to count.
    """

    width: int
    height: int
    mode: str
    crc32: int
    odd: tuple[str, ...] = ()


def inspect(content: bytes, name: str = "") -> Picture:
    """Passes encoded bytes through the gate: size, header, then a full decode (a header alone misses truncation).

    Args:
        content: the file.
        name: of the file; its suffix is compared with the format found.

    Raises:
        BadImage: kind empty, too-large, not-an-image, too-many-pixels, too-small, animated, bands, 16-bit or truncated.
    """
    image = _open(content)
    pixels = _rgb(image)
    return Picture(pixels.width, pixels.height, image.mode, crc32(content), _odd(image, name))


def _odd(image: Image.Image, name: str) -> tuple[str, ...]:
    suffix = "." + name.lower().rpartition(".")[2]
    form = "JPEG" if image.format == _JPEG_WITH_MORE else image.format
    found = {
        "mislabelled": suffix in SUFFIXES and _FORMAT_OF[suffix] != form,
        "orientation applied": image.getexif().get(_EXIF_ORIENTATION, 1) != 1,
        "further pictures in the file left out": image.format == _JPEG_WITH_MORE,
    }
    return tuple(word for word, is_so in found.items() if is_so)


def decode(content: bytes, size: int | None = None) -> np.ndarray[Any, Any]:
    """Decodes encoded bytes to uint8 RGB (height, width, 3), or (size, size, 3) by antialiased bilinear resize.

    A JPEG of at least twice the size is decoded at a half, a quarter or an eighth of its own, never below `size`: three
    times as fast, one grey level apart in the mean.

    Raises:
        BadImage: as `inspect`.
    """
    image = _open(content)
    if size is not None:
        image.draft(None, (size, size))
    pixels = _rgb(image)
    if size is not None and pixels.size != (size, size):
        pixels = pixels.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(pixels)


def _open(content: bytes) -> Image.Image:
    if not content:
        raise BadImage("empty", "the file has no bytes")
    if len(content) > MAX_BYTES:
        raise BadImage("too-large", f"over {MAX_BYTES} bytes")
    image = _opened(content)
    if image is not None:
        _check_size(image)
    if is_tiff(content):
        _check_tiff(content, known=image is not None)
    if image is None:
        raise BadImage("bands", f"a TIFF that is not 8-bit grey or RGB: {_BANDS_FLAGS}")
    if png_bits(content) == 16 or image.mode.startswith(("I", "F")):
        # convert("RGB") would clip every value above 255 to white, or keep the upper 8 bits alone.
        raise BadImage(
            "16-bit",
            f"{'16 bits a sample' if image.format == 'PNG' else image.mode}: rescale it to 8 bits first",
        )
    frames = 1 if image.format in (_JPEG_WITH_MORE, "TIFF") else _frames(image)
    if frames > 1:
        raise BadImage("animated", f"{frames} frames")
    return image


def _opened(content: bytes) -> Image.Image | None:
    """The picture with its header read, or None where it is a TIFF of pixels that Pillow does not know."""
    try:
        with warnings.catch_warnings():
            # Our own limit on pixels is lower than the one Pillow warns about.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        if is_tiff(content):
            return None
        raise BadImage("not-an-image", f"starts with {content[:12]!r}") from None
    except Image.DecompressionBombError as error:
        raise BadImage("too-many-pixels", str(error)) from None
    except Exception as error:  # Pillow's parsers raise many types for damaged headers
        raise BadImage("not-an-image", str(error)) from None


def _check_size(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise BadImage(
            "too-many-pixels", f"{image.width}x{image.height}, at most {MAX_PIXELS} pixels"
        )
    if min(image.size) < MIN_SIDE:
        raise BadImage(
            "too-small", f"{image.width}x{image.height}, at least {MIN_SIDE} pixels a side"
        )


def _check_tiff(content: bytes, *, known: bool) -> None:
    """Refuses samples that would be read as others, by what the file itself says; `known`: Pillow can read the file."""
    try:
        header = tiff_header(content)
    except Exception as error:  # a damaged directory, or one that Pillow cannot read
        if not known:
            return
        raise BadImage("truncated", str(error)) from None
    if header.bands != header.colours:
        # Pillow would take a fourth band, such as near infrared, for transparency, and drop a second one.
        raise BadImage("bands", f"a TIFF of {header.bands} bands: {_BANDS_FLAGS}")
    if header.bits > 8:
        raise BadImage("16-bit", f"a TIFF of {header.bits} bits a sample: {_BANDS_FLAGS}")
    if not header.unsigned:
        raise BadImage("16-bit", f"a TIFF of signed or real samples: {_BANDS_FLAGS}")
    if header.separate_lab:
        raise BadImage("bands", f"a TIFF of L*a*b* colours in separate planes: {_BANDS_FLAGS}")
    if header.pages > 1:
        raise BadImage("animated", f"{header.pages} pages")
    if header.starts_reduced:
        raise BadImage("animated", "the first page is an overview or a mask, not the picture")


def _frames(image: Image.Image) -> int:
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception as error:  # it follows the pointers of the file, which may lead anywhere
        raise BadImage("truncated", str(error)) from None


def _rgb(image: Image.Image) -> Image.Image:
    try:
        image.load()
        if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
            image = ImageOps.exif_transpose(image)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            rgba = image.convert("RGBA")
            black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
            return Image.alpha_composite(black, rgba).convert("RGB")
        return image.convert("RGB")
    except Exception as error:  # decoders raise what the damage makes them trip over
        raise BadImage("truncated", str(error)) from None
