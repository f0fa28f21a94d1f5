"""Reads from a picture's header how its samples are stored: bits, sign, bands, pages.

Pillow's mode does not show this. It opens 16-bit RGB as 8-bit RGB and signed samples as unsigned,
and drops a second band. Imports neither torch nor ray.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

from PIL import TiffImagePlugin

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Bytes 2 and 3 of a BigTIFF: the number 43 in either byte order.
_BIG_TIFF_VERSIONS = (b"+\0", b"\0+")
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_BITS_OFFSET = 24
# A damaged file may chain pages without end.
_MAX_PAGES = 1000

# Numbers of tags (TIFF 6.0).
_SUBFILE = 254
_BITS = 258
_PHOTOMETRIC = 262
_SAMPLES = 277
_PLANAR = 284
_FORMAT = 339
_TAGS = (_BITS, _PHOTOMETRIC, _SAMPLES, _PLANAR, _FORMAT)
# Bits of the tag 254: the page is an overview; it is a mask of another page.
_REDUCED = 1
_MASK = 4
# Values of the tag 339.
_UNSIGNED = 1
_UNDEFINED = 4
# Value of the tag 284: one plane for each band.
_SEPARATE = 2
# Values of the tag 262, and the bands of each.
_LAB = 8
_BANDS_OF_COLOURS = {
    0: 1,  # grey, white is zero
    1: 1,  # grey, black is zero
    2: 3,  # RGB
    3: 1,  # palette
    5: 4,  # CMYK
    6: 3,  # YCbCr
    _LAB: 3,  # CIE L*a*b*
}


@dataclass(frozen=True)
class TiffHeader:
    """How a TIFF stores its first page, and how many pages it has.

    Attributes:
        bands: samples of a pixel.
        bits: of the widest sample.
        unsigned: whether samples are unsigned integers.
        colours: bands that its colours need: 1 for grey or a palette, 3, or 4 for CMYK; 0 where
            the colours are unknown.
        separate_lab: CIE L*a*b* with one plane for each band, which Pillow mixes up.
        pages: of full resolution; overviews and masks do not count.
        starts_reduced: the first page is an overview or a mask, and others follow.
    """

    bands: int
    bits: int
    unsigned: bool
    colours: int
    separate_lab: bool
    pages: int
    starts_reduced: bool


def is_tiff(content: bytes) -> bool:
    """Whether bytes begin as a TIFF or BigTIFF does."""
    return content[:4] in TIFF_STARTS


def tiff_header(content: bytes) -> TiffHeader:
    """Reads the directories of a TIFF.

    Raises:
        Exception: of many types, where they are damaged.
    """
    first, subfiles = _read_directories(content)
    reduced = [bool(subfile & (_REDUCED | _MASK)) for subfile in subfiles]
    formats = set(_numbers(first.get(_FORMAT, _UNSIGNED)))
    photometric = _numbers(first.get(_PHOTOMETRIC, 0))[0]
    return TiffHeader(
        bands=_numbers(first.get(_SAMPLES, 1))[0],
        bits=max(_numbers(first.get(_BITS, 1))),
        unsigned=formats <= {_UNSIGNED, _UNDEFINED},
        colours=_BANDS_OF_COLOURS.get(photometric, 0),
        separate_lab=photometric == _LAB and first.get(_PLANAR) == _SEPARATE,
        pages=len(reduced) - sum(reduced),
        starts_reduced=len(reduced) > 1 and reduced[0],
    )


def _read_directories(content: bytes) -> tuple[dict[int, object], list[int]]:
    """The tags of `_TAGS` that the first page has, and the tag 254 of every page."""
    file = io.BytesIO(content)
    # The header of a BigTIFF has 64-bit offsets.
    header_bytes = 8
    if content[2:4] in _BIG_TIFF_VERSIONS:
        header_bytes = 16
    directory = TiffImagePlugin.ImageFileDirectory_v2(file.read(header_bytes))
    first: dict[int, object] = {}
    subfiles: list[int] = []
    seen: set[int] = set()
    with warnings.catch_warnings():
        # Warnings about other, damaged tags, which the pixels do not need.
        warnings.simplefilter("ignore", UserWarning)
        # `seen` ends a chain of pages that leads back to itself.
        while directory.next and directory.next not in seen and len(subfiles) < _MAX_PAGES:
            seen.add(directory.next)
            file.seek(directory.next)
            directory.load(file)
            if not subfiles:
                first = {tag: directory[tag] for tag in _TAGS if tag in directory}
            subfiles.append(int(directory.get(_SUBFILE, 0)))
    return first, subfiles


def _numbers(value: object) -> list[int]:
    """The numbers of a tag, which Pillow gives as one value or as a tuple."""
    if isinstance(value, tuple):
        return [int(number) for number in value]
    return [int(str(value))]


def png_bits(content: bytes) -> int | None:
    """Returns the bits of a sample of a PNG, or None for another file."""
    # After the signature: length of the chunk (4 bytes), "IHDR", width, height (4 each), bits.
    if not content.startswith(_PNG_START) or len(content) <= _PNG_BITS_OFFSET:
        return None
    return content[_PNG_BITS_OFFSET]
