"""What the header of a picture says of its samples: bits, sign, bands, pages.

Pillow's mode does not tell: it opens 16-bit RGB as 8-bit RGB, signed samples as unsigned, and drops a second band.
No torch, no ray.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

from PIL import TiffImagePlugin

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG_START = b"\x89PNG\r\n\x1a\n"
_MAX_PAGES = 1000
# TIFF 6.0: numbers of tags, and the values of some.
_SUBFILE, _BITS, _PHOTOMETRIC, _SAMPLES, _PLANAR, _FORMAT = 254, 258, 262, 277, 284, 339
_TAGS = (_BITS, _PHOTOMETRIC, _SAMPLES, _PLANAR, _FORMAT)
_REDUCED, _MASK = 1, 4  # bits of the tag 254: an overview; a mask of another page
_UNSIGNED, _UNDEFINED = 1, 4  # values of the tag 339
_LAB, _SEPARATE = 8, 2
# Values of the tag 262 and their bands: white is zero, black is zero, RGB, palette, CMYK, YCbCr, CIE L*a*b*.
_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, _LAB: 3}


@dataclass(frozen=True)
class TiffHeader:
    """What a TIFF says of its first page, and how many pages of full resolution it has.

    Attributes:
        bands: samples of a pixel.
        bits: of the widest sample.
        unsigned: whether samples are unsigned whole numbers.
        colours: bands that its colours need: 1 of grey or a palette, 3, or 4 of CMYK; 0 of others.
        separate_lab: colours of CIE L*a*b*, one plane each, which Pillow mixes up.
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
    file = io.BytesIO(content)
    big = content[2:4] in (b"+\0", b"\0+")
    directory = TiffImagePlugin.ImageFileDirectory_v2(file.read(16 if big else 8))
    first: dict[int, object] = {}
    kinds: list[int] = []
    seen: set[int] = set()
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # of other, damaged tags, which the pixels do not need
        while directory.next and directory.next not in seen and len(kinds) < _MAX_PAGES:
            seen.add(directory.next)
            file.seek(directory.next)
            directory.load(file)
            if not kinds:
                first = {tag: directory[tag] for tag in _TAGS if tag in directory}
            kinds.append(int(directory.get(_SUBFILE, 0)))
    reduced = [bool(kind & (_REDUCED | _MASK)) for kind in kinds]
    formats = set(_numbers(first.get(_FORMAT, _UNSIGNED)))
    photometric = _numbers(first.get(_PHOTOMETRIC, 0))[0]
    return TiffHeader(
        bands=_numbers(first.get(_SAMPLES, 1))[0],
        bits=max(_numbers(first.get(_BITS, 1))),
        unsigned=formats <= {_UNSIGNED, _UNDEFINED},
        colours=_COLOURS.get(photometric, 0),
        separate_lab=photometric == _LAB and first.get(_PLANAR) == _SEPARATE,
        pages=len(reduced) - sum(reduced),
        starts_reduced=len(reduced) > 1 and reduced[0],
    )


def _numbers(value: object) -> list[int]:
    return [int(number) for number in value] if isinstance(value, tuple) else [int(str(value))]


def png_bits(content: bytes) -> int | None:
    """Bits of a sample of a PNG; None of another file. Its header chunk comes first: length, IHDR, width, height, bits."""
    if not content.startswith(_PNG_START) or len(content) < 25:
        return None
    return content[24]
