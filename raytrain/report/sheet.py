"""A sheet of tiles with their names and labels as one PNG. Pixels are shown as they are, nothing is cut off.

    draw(rows, title)     rows of cells; a row may have a heading of its own

Text is set in matplotlib's DejaVu Sans, which knows most alphabets. Neither torch nor ray.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from raytrain.errors import ConfigError
from raytrain.report.plots import LIGHT

MARGIN, GAP, LINE, TEXT = 20, 14, 16, 12  # pixels; TEXT is the height of the letters
TITLE = 17
MIN_WIDTH = 480
MAX_PIXELS = 100_000_000


@dataclass(frozen=True)
class Cell:
    """A tile on a sheet: uint8 (side, side, 3), a name over its labels; a cell may have only one of the two."""

    pixels: np.ndarray[Any, Any]
    name: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """Cells beside each other, under a heading if there is one."""

    cells: Sequence[Cell]
    heading: str = ""


def draw(rows: Sequence[Row], title: str) -> bytes:
    """The sheet as PNG bytes, as wide as its longest row; equal rows give equal bytes.

    Raises:
        ConfigError: it would have more than MAX_PIXELS pixels.
    """
    side = rows[0].cells[0].pixels.shape[1]
    columns = max(len(row.cells) for row in rows)
    width = max(MIN_WIDTH, 2 * MARGIN + columns * (side + GAP) - GAP)
    heads = _wrap([title], width - 2 * MARGIN, TITLE, bold=True)
    top = MARGIN + len(heads) * (TITLE + 8)
    height = top + sum(_height(row, side) for row in rows) + MARGIN
    if width * height > MAX_PIXELS:
        raise ConfigError(
            f"the sheet would be {width}x{height} pixels, at most {MAX_PIXELS:,}",
            "no program would open it",
            "fewer --tiles, or a smaller --size",
        )
    image = Image.new("RGB", (width, height), LIGHT.paper)
    pen = ImageDraw.Draw(image)
    for i, line in enumerate(heads):
        pen.text((MARGIN, MARGIN - 4 + i * (TITLE + 8)), line, LIGHT.ink, _font(TITLE, True))
    for row in rows:
        _draw_row(image, pen, row, side, top)
        top += _height(row, side)
    sink = io.BytesIO()
    image.save(sink, "PNG", optimize=True)
    return sink.getvalue()


def _draw_row(image: Image.Image, pen: ImageDraw.ImageDraw, row: Row, side: int, top: int) -> None:
    if row.heading:
        pen.text((MARGIN, top + 4), row.heading, LIGHT.valid, _font(TEXT + 1, True))
        top += 2 * LINE
    for i, cell in enumerate(row.cells):
        left = MARGIN + i * (side + GAP)
        image.paste(Image.fromarray(cell.pixels), (left, top))
        at = top + side + 4
        for line, bold in _caption(cell, side):
            pen.text((left, at), line, LIGHT.ink if bold else LIGHT.muted, _font(TEXT, bold))
            at += LINE


def _height(row: Row, side: int) -> int:
    lines = max(len(_caption(cell, side)) for cell in row.cells)
    return (2 * LINE if row.heading else 0) + side + 4 + lines * LINE + GAP


def _caption(cell: Cell, width: int) -> list[tuple[str, bool]]:
    """Lines under a tile, each with whether it is bold."""
    labels = [f"{label}," for label in cell.labels[:-1]] + list(cell.labels[-1:])
    name = [(line, True) for line in _wrap([cell.name], width, TEXT, bold=True)]
    return name + [(line, False) for line in _wrap(labels, width, TEXT, bold=False)]


def _wrap(words: Sequence[str], width: int, size: int, bold: bool) -> list[str]:
    """Words in as few lines as fit; a word that is longer than a line is broken."""
    font, lines = _font(size, bold), [""]
    for word in words:
        # What is not printable, such as a line break inside a name, would be drawn over other text.
        word = "".join(char if char.isprintable() else "�" for char in word)
        if lines[-1] and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        lines.append("")
        for char in word:
            if font.getlength(lines[-1] + char) > width:
                lines.append("")
            lines[-1] += char
    return [line for line in lines if line]


@cache
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    file = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / file), size)
