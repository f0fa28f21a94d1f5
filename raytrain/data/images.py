"""The gate for pictures: checks of the header and of limits, then a full decode to RGB.

`inspect(content)` accepts a picture or raises `BadImage` with a kind for the quarantine.
`decode(content, size)` gives the pixels for ingest, the tile cache and predict. docs/data.md lists
the kinds and limits.

Real Planet tiles are 4-component JPEGs that Pillow opens as CMYK; only `convert("RGB")` reads them
right. Imports neither torch nor ray.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from raytrain.data.headers import TiffHeader, is_tiff, png_bits, tiff_header
from raytrain.data.names import SUFFIXES

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
# The format that each suffix of a file name promises.
_FORMAT_OF = dict(
    zip(SUFFIXES, ("JPEG", "JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "TIFF"), strict=True)
)
# Said of a file whose suffix promises another format.
MISLABELLED = "mislabelled"
MAX_BYTES = 20 * 2**20
MAX_PIXELS = 4096 * 4096
MIN_SIDE = 16
# Part of the key of the tile cache: raise it whenever `decode`, here or in `pixels`, may give other
# pixels.
DECODER_VERSION = 2
# The tag of the camera's orientation (Exif 2.3); 1 means upright.
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = 1
# Pillow's name for a JPEG with further pictures after the first, such as the previews that drones
# and phones add.
_JPEG_WITH_MORE = "MPO"
_MODES_WITH_ALPHA = ("RGBA", "LA", "PA")
_BANDS_FLAGS = (
    "give --bands to keep its bands, or with --scale to make red, green and blue of 8 bits"
)


class BadImage(Exception):
    """A picture that is refused.

    Attributes:
        kind: the word in quarantine.jsonl.
        detail: the reason, for people.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(kind, detail)
        self.kind = kind
        self.detail = detail


@dataclass(frozen=True)
class Picture:
    """Properties of an accepted picture.

    Attributes:
        width: pixels, after the camera's orientation is applied.
        height: pixels, likewise.
        mode: Pillow's mode of the pixels as stored: RGB, CMYK, L, P, RGBA, ...
        crc32: checksum of the encoded bytes.
        odd: what was repaired or is unusual, one fixed text each, so that they can be counted.
    """

    width: int
    height: int
    mode: str
    crc32: int
    odd: tuple[str, ...] = ()


def inspect(content: bytes, name: str = "") -> Picture:
    """Checks an encoded picture: size, header, then a full decode.

    The decode is needed because a header alone does not show that the rest is cut off.

    Args:
        content: bytes of the file.
        name: of the file; its suffix is compared with the format found.

    Raises:
        BadImage: of kind empty, too-large, not-an-image, too-many-pixels, too-small, animated,
            bands, 16-bit or truncated.
    """
    image = _open(content)
    pixels = rgb(image)
    return Picture(
        width=pixels.width,
        height=pixels.height,
        mode=image.mode,
        crc32=crc32(content),
        odd=_odd(image, name),
    )


def _odd(image: Image.Image, name: str) -> tuple[str, ...]:
    has_more = image.format == _JPEG_WITH_MORE
    actual = str(image.format)
    if has_more:
        actual = "JPEG"
    found = []
    if is_mislabelled(name, actual):
        found.append(MISLABELLED)
    if _is_turned(image):
        found.append("orientation applied")
    if has_more:
        found.append("further pictures in the file left out")
    return tuple(found)


def is_mislabelled(name: str, actual: str) -> bool:
    """Whether the suffix of a file's name promises another of `FORMATS` than the file has."""
    suffix = "." + name.lower().rpartition(".")[2]
    return suffix in SUFFIXES and _FORMAT_OF[suffix] != actual


def _is_turned(image: Image.Image) -> bool:
    return bool(image.getexif().get(_EXIF_ORIENTATION, _UPRIGHT) != _UPRIGHT)


def decode(content: bytes, size: int | None = None) -> np.ndarray[Any, Any]:
    """Decodes a picture to RGB pixels.

    A JPEG of at least twice the size is decoded at a half, a quarter or an eighth of its own size,
    never below `size`. That is three times as fast and differs by one grey level in the mean.

    Args:
        content: bytes of the file.
        size: side of the result in pixels; None keeps the size of the picture.

    Returns:
        uint8 (height, width, 3), or (size, size, 3) by antialiased bilinear resize.

    Raises:
        BadImage: as `inspect`.
    """
    image = _open(content)
    if size is not None:
        image.draft(None, (size, size))
    pixels = rgb(image)
    if size is not None and pixels.size != (size, size):
        pixels = pixels.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(pixels)


def _open(content: bytes) -> Image.Image:
    """Opens a picture and checks all that needs no pixels."""
    if not content:
        raise BadImage("empty", "the file has no bytes")
    if len(content) > MAX_BYTES:
        raise BadImage("too-large", f"over {MAX_BYTES} bytes")
    image = _read_header(content)
    if image is not None:
        check_sides(image.width, image.height)
    if is_tiff(content):
        _check_tiff(content, known=image is not None)
    if image is None:
        raise BadImage("bands", f"a TIFF that is not 8-bit grey or RGB: {_BANDS_FLAGS}")
    _check_depth(content, image)
    _check_frames(image)
    return image


def _read_header(content: bytes) -> Image.Image | None:
    """The picture with its header read; None for a TIFF of pixels that Pillow does not know."""
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


def check_sides(width: int, height: int) -> None:
    """Refuses a picture that is too small or too large.

    Args:
        width, height: in pixels.

    Raises:
        BadImage: of kind too-many-pixels or too-small.
    """
    size = f"{width}x{height}"
    if width * height > MAX_PIXELS:
        raise BadImage("too-many-pixels", f"{size}, at most {MAX_PIXELS} pixels")
    if min(width, height) < MIN_SIDE:
        raise BadImage("too-small", f"{size}, at least {MIN_SIDE} pixels a side")


def _check_depth(content: bytes, image: Image.Image) -> None:
    """Refuses more than 8 bits a sample.

    convert("RGB") would turn every value above 255 white, or keep only the upper 8 bits.
    """
    # Pillow's modes I and F hold integers and reals of 16 or 32 bits.
    if png_bits(content) != 16 and not image.mode.startswith(("I", "F")):
        return
    found = image.mode
    if image.format == "PNG":
        found = "16 bits a sample"
    raise BadImage("16-bit", f"{found}: rescale it to 8 bits first")


def _check_frames(image: Image.Image) -> None:
    # Further pictures in a JPEG are previews; the pages of a TIFF were checked by `_check_tiff`.
    if image.format in (_JPEG_WITH_MORE, "TIFF"):
        return
    try:
        frames = int(getattr(image, "n_frames", 1))
    except Exception as error:  # counting follows offsets in the file, which may lead anywhere
        raise BadImage("truncated", str(error)) from None
    if frames > 1:
        raise BadImage("animated", f"{frames} frames")


def _check_tiff(content: bytes, *, known: bool) -> None:
    """Refuses a TIFF whose samples Pillow would read as something else, by the file's own tags.

    Args:
        content: bytes of the file.
        known: whether Pillow can open the file.
    """
    try:
        header = tiff_header(content)
    except Exception as error:  # a damaged directory, or one that Pillow cannot read
        if not known:
            return
        raise BadImage("truncated", str(error)) from None
    _check_samples(header)
    if header.pages > 1:
        raise BadImage("animated", f"{header.pages} pages")
    if header.starts_reduced:
        raise BadImage("animated", "the first page is an overview or a mask, not the picture")


def _check_samples(header: TiffHeader) -> None:
    if header.bands != header.colours:
        # Pillow takes a fourth band, such as near infrared, for transparency, and drops a second.
        raise BadImage("bands", f"a TIFF of {header.bands} bands: {_BANDS_FLAGS}")
    if header.bits > 8:
        raise BadImage("16-bit", f"a TIFF of {header.bits} bits a sample: {_BANDS_FLAGS}")
    if not header.unsigned:
        raise BadImage("16-bit", f"a TIFF of signed or real samples: {_BANDS_FLAGS}")
    if header.separate_lab:
        raise BadImage("bands", f"a TIFF of L*a*b* colours in separate planes: {_BANDS_FLAGS}")


def rgb(image: Image.Image) -> Image.Image:
    """Returns a picture upright, as RGB; transparent pixels become black.

    Raises:
        BadImage: its file is damaged.
    """
    try:
        image.load()
        if _is_turned(image):
            image = ImageOps.exif_transpose(image)
        # Palettes and grey pictures may declare one value transparent without an alpha channel.
        if image.mode in _MODES_WITH_ALPHA or "transparency" in image.info:
            rgba = image.convert("RGBA")
            black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
            return Image.alpha_composite(black, rgba).convert("RGB")
        return image.convert("RGB")
    except Exception as error:  # decoders raise many types for damaged data
        raise BadImage("truncated", str(error)) from None
