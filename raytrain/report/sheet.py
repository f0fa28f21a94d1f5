"""Draws a sheet of tiles with their names and labels as one PNG. No tile is cropped or resized.

    draw(rows, title)     rows of cells; a row may have a heading

Text is set in matplotlib's DejaVu Sans, which covers most alphabets. Imports neither torch nor ray.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from raytrain.errors import ConfigError
from raytrain.report.canvas import LIGHT

# All in pixels.
MARGIN = 20  # around the sheet
GAP = 14  # between cells, and below a row
LINE = 16  # height of a line of a caption
TEXT = 12  # size of the letters of a caption
TITLE = 17  # size of the letters of the title
TITLE_LINE = TITLE + 8
CAPTION_GAP = 4  # between a tile and its caption
MIN_WIDTH = 480  # so that a title fits above a single tile
MAX_PIXELS = 100_000_000


@dataclass(frozen=True)
class Cell:
    """A tile on a sheet.

    Attributes:
        pixels: uint8 (side, side, 3).
        name: written in bold below the tile; may be empty.
        labels: written below the name; may be empty.
    """

    pixels: np.ndarray[Any, Any]
    name: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """Cells next to each other, with an optional heading above them."""

    cells: Sequence[Cell]
    heading: str = ""


class _Text(NamedTuple):
    line: str
    bold: bool


def draw(rows: Sequence[Row], title: str) -> bytes:
    """Draws a sheet as wide as its longest row.

    Args:
        rows: at least one; all tiles have the same side.
        title: written above the rows.

    Returns:
        PNG bytes; equal rows give equal bytes.

    Raises:
        ConfigError: the sheet would have more than MAX_PIXELS pixels.
    """
    side = rows[0].cells[0].pixels.shape[1]
    columns = max(len(row.cells) for row in rows)
    cells_width = columns * (side + GAP) - GAP
    width = max(MIN_WIDTH, cells_width + 2 * MARGIN)
    title_width = width - 2 * MARGIN
    title_lines = _wrap([title], title_width, TITLE, bold=True)
    top = MARGIN + len(title_lines) * TITLE_LINE
    height = top + MARGIN
    for row in rows:
        height += _height(row, side)
    _check_size(width, height)
    image = Image.new("RGB", (width, height), LIGHT.paper)
    pen = ImageDraw.Draw(image)
    _draw_title(pen, title_lines)
    for row in rows:
        _draw_row(image, pen, row, side, top)
        top += _height(row, side)
    sink = io.BytesIO()
    image.save(sink, "PNG", optimize=True)
    return sink.getvalue()


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ConfigError(
            f"the sheet would have {width}x{height} pixels, at most {MAX_PIXELS:,} are allowed",
            "few programs can open a larger picture",
            "use fewer --tiles, or a smaller --size",
        )


def _draw_title(pen: ImageDraw.ImageDraw, lines: Sequence[str]) -> None:
    font = _font(TITLE, bold=True)
    top = MARGIN - 4  # letters begin a few pixels below the corner that Pillow is given
    for line in lines:
        pen.text((MARGIN, top), line, LIGHT.ink, font)
        top += TITLE_LINE


def _draw_row(image: Image.Image, pen: ImageDraw.ImageDraw, row: Row, side: int, top: int) -> None:
    if row.heading:
        font = _font(TEXT + 1, bold=True)
        corner = (MARGIN, top + 4)
        pen.text(corner, row.heading, LIGHT.valid, font)
        top += 2 * LINE
    left = MARGIN
    for cell in row.cells:
        image.paste(Image.fromarray(cell.pixels), (left, top))
        below = top + side + CAPTION_GAP
        _draw_caption(pen, cell, (left, below), side)
        left += side + GAP


def _draw_caption(
    pen: ImageDraw.ImageDraw, cell: Cell, corner: tuple[int, int], width: int
) -> None:
    left, top = corner
    for line, bold in _caption(cell, width):
        font = _font(TEXT, bold)
        color = LIGHT.muted
        if bold:
            color = LIGHT.ink
        pen.text((left, top), line, color, font)
        top += LINE


def _height(row: Row, side: int) -> int:
    """Height of a row in pixels, with its heading, its captions and the gap below it."""
    captions = [_caption(cell, side) for cell in row.cells]
    lines = max(len(caption) for caption in captions)
    height = side + CAPTION_GAP + lines * LINE + GAP
    if row.heading:
        height += 2 * LINE
    return height


def _caption(cell: Cell, width: int) -> list[_Text]:
    """The lines below a tile: its name in bold, then its labels with commas between them."""
    words = [f"{label}," for label in cell.labels[:-1]]
    words += cell.labels[-1:]
    name_lines = _wrap([cell.name], width, TEXT, bold=True)
    label_lines = _wrap(words, width, TEXT, bold=False)
    caption = [_Text(line, True) for line in name_lines]
    caption += [_Text(line, False) for line in label_lines]
    return caption


def _wrap(words: Sequence[str], width: int, size: int, bold: bool) -> list[str]:
    """Breaks words into lines of at most `width` pixels. A word longer than a line is broken."""
    font = _font(size, bold)
    lines = [""]
    for word in words:
        word = _printable(word)
        longer = f"{lines[-1]} {word}"
        if lines[-1] and font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        lines.append("")
        for char in word:
            if font.getlength(lines[-1] + char) > width:
                lines.append("")
            lines[-1] += char
    # A word that is longer than a line, and an empty word, leave empty lines behind.
    return [line for line in lines if line]


def _printable(word: str) -> str:
    """Replaces characters such as line breaks, after which Pillow would draw over other text."""
    chars = [char if char.isprintable() else "�" for char in word]
    return "".join(chars)


@cache
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    file = "DejaVuSans.ttf"
    if bold:
        file = "DejaVuSans-Bold.ttf"
    # matplotlib brings this font on every system, so sheets look the same everywhere.
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / file), size)
