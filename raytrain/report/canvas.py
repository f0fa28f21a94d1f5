"""What every picture is drawn on: figures in the colours of a theme, legends, labels, PNG bytes.

Only matplotlib's objects are used, never pyplot: its global state is not safe in a process that
draws while it serves other threads. Equal figures give equal bytes. Imports neither torch nor ray.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure

WIDTH = 7.5  # inches; 1200 pixels at DPI, twice the width of the page's text column
DPI = 160
# Longer labels would leave too little room for the picture itself.
MAX_LABEL_LETTERS = 40


@dataclass(frozen=True)
class Theme:
    """Colours of one set of pictures, as #rrggbb.

    Attributes:
        paper: background; the same as the page's.
        ink: text.
        muted: axes and secondary text.
        rule: grid lines.
        train: curves and bars of the training part.
        valid: curves and bars of the validation part.
        mark: whatever is pointed out.
        ramp: colours of the first layer group and of the head; the groups between are mixed.
    """

    paper: str
    ink: str
    muted: str
    rule: str
    train: str
    valid: str
    mark: str
    ramp: tuple[str, str]


# head.html.j2 has the same colours for the page around the pictures.
LIGHT = Theme(
    paper="#fdfcf9",
    ink="#23282b",
    muted="#6d7478",
    rule="#dcdcd5",
    train="#9aa2a6",
    valid="#1d6b57",
    mark="#b4531f",
    ramp=("#a9c9bd", "#14513f"),
)
DARK = Theme(
    paper="#16191b",
    ink="#e4e2dc",
    muted="#979ea2",
    rule="#33393c",
    train="#727b80",
    valid="#6cc3a5",
    mark="#e59a5f",
    ramp=("#35584c", "#9fe0c8"),
)


def ramp(theme: Theme) -> LinearSegmentedColormap:
    """Returns the colours of numbers from the lowest, 0, to the highest, 1."""
    return LinearSegmentedColormap.from_list("ramp", theme.ramp)


def legible_on(color: str, theme: Theme) -> str:
    """Returns the colour for letters on a coloured surface: that of ink or of paper.

    Args:
        color: of the surface, #rrggbb.
        theme: colours.
    """
    if _contrast(color, theme.ink) > _contrast(color, theme.paper):
        return theme.ink
    return theme.paper


def _contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours, from 1 to 21: https://www.w3.org/TR/WCAG22/ ."""
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(color: str) -> float:
    """The relative luminance of a colour, from 0 to 1, by the same source."""
    channels = np.array(to_rgb(color))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ np.array([0.2126, 0.7152, 0.0722]))


def short(label: str) -> str:
    """A label, cut to MAX_LABEL_LETTERS letters."""
    label = str(label)
    if len(label) <= MAX_LABEL_LETTERS:
        return label
    return label[: MAX_LABEL_LETTERS - 1] + "…"


def name_labels(
    ax: Axes, axis: Literal["x", "y"], labels: Iterable[str], font_size: float = 8.0
) -> None:
    """Writes labels along an axis; `font_size` is in points."""
    names = [short(label) for label in labels]
    set_ticks = ax.set_xticks
    if axis == "y":
        set_ticks = ax.set_yticks
    # Labels come from users: a dollar sign must not start a formula.
    set_ticks(np.arange(len(names)), names, parse_math=False)
    ax.tick_params(axis=axis, length=0, labelsize=font_size)
    ax.grid(axis=axis, visible=False)
    ax.spines["left"].set_visible(False)


def new_figure(
    height: float, theme: Theme, heights: Sequence[float] = (1,)
) -> tuple[Figure, list[Axes]]:
    """Makes a figure with axes below each other that share the x axis.

    Args:
        height: of the figure, in inches.
        theme: colours.
        heights: relative heights of the axes, from the top.
    """
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor=theme.paper, layout="constrained")
    FigureCanvasAgg(figure)
    ratios = list(heights)
    # (axes, 1)
    grid = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=ratios)
    axes = list(grid[:, 0])
    for ax in axes:
        _style(ax, theme)
    return figure, axes


def new_grid(height: float, theme: Theme, rows: int, columns: int) -> tuple[Figure, list[Axes]]:
    """Makes a figure with equal axes in rows and columns that share the y axis.

    Args:
        height: of the figure, in inches.
        theme: colours.
        rows: of axes.
        columns: of axes.

    Returns:
        The figure, and its axes row by row.
    """
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor=theme.paper, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    axes = list(grid.ravel())
    for ax in axes:
        _style(ax, theme)
    return figure, axes


def _style(ax: Axes, theme: Theme) -> None:
    ax.set_facecolor(theme.paper)
    ax.grid(color=theme.rule, lw=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(colors=theme.muted, labelcolor=theme.ink, labelsize=8, length=3, width=0.6)
    ax.xaxis.label.set(color=theme.muted, fontsize=8.5)
    ax.yaxis.label.set(color=theme.muted, fontsize=8.5)
    for side, spine in ax.spines.items():
        spine.set(visible=side in ("left", "bottom"), color=theme.muted, linewidth=0.6)


def legend(
    ax: Axes,
    theme: Theme,
    loc: Any = "upper right",
    ncols: int = 1,
    anchor: tuple[float, float] | None = None,
) -> None:
    """Writes the legend of what was drawn with a label.

    Args:
        ax: axes.
        theme: colours.
        loc: corner or side, as matplotlib names them.
        ncols: number of columns.
        anchor: point of the axes, as shares of width and height, that `loc` refers to.
    """
    ax.legend(
        loc=loc,
        ncols=ncols,
        bbox_to_anchor=anchor,
        fontsize=8,
        labelcolor=theme.ink,
        facecolor=theme.paper,
        edgecolor="none",
        framealpha=0.85,
        columnspacing=1.2,
        handlelength=1.5,
    )


def png(figure: Figure) -> bytes:
    """Returns the figure as PNG bytes."""
    sink = io.BytesIO()
    # Without matplotlib's name and version, so that equal figures stay equal bytes after an update.
    metadata = {"Software": None}
    with warnings.catch_warnings():
        # Each letter that the font lacks becomes a box and a warning. The tables of the page
        # contain the same words, so nothing is lost.
        warnings.filterwarnings("ignore", r"Glyph \d+")
        figure.savefig(sink, format="png", facecolor=figure.get_facecolor(), metadata=metadata)
    return sink.getvalue()
