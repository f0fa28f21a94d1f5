"""Draws the stages of all trials as a tree of boxes: PNG bytes. Neither torch nor ray.

A box is a stage, as high as the number of trials that share it. The stages that follow it stand to
the right of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from raytrain.evaluation.score import Score
from raytrain.report.canvas import LIGHT, WIDTH, Theme, legible_on, new_figure, png, ramp
from raytrain.report.numbers import score as number
from raytrain.report.score_axis import Range, range_of
from raytrain.report.stage_tree import Cell, Layout
from raytrain.report.trials import FAILURES, name_of
from raytrain.search.table import Kind, State, Trial

# Heights of a row in inches: few rows have room for two lines, many rows only for a colour.
HIGHEST_ROW = 0.34
LOWEST_ROW = 0.04
# Height of all rows together from which on rows get lower.
HEIGHT = 7.0
# Height of a line of text, and width of a letter, in inches.
LINE = 0.125
LETTER = 0.056
# Share of the width of a column that is left for what stands beside the last stage.
BESIDE = 0.75

# Describes a stage of a trial, from the trial and the depth of the stage.
Describe = Callable[[Trial, int], str]


@dataclass(frozen=True)
class _Place:
    """What the boxes of a picture have in common: sizes in inches, colours, ranges by depth."""

    row: float
    column: float
    theme: Theme
    score: Score
    ranges: dict[int, Range]


def stages(found: Layout, score: Score, describe: Describe, theme: Theme = LIGHT) -> bytes:
    """Draws the tree.

    Args:
        found: at least one stage.
        score: the objective. A darker box has a better one, among those of the same stage.
        describe: gives the text of a stage.
        theme: colours.

    Returns:
        PNG bytes.
    """
    rows = len(found.trials)
    row = min(HIGHEST_ROW, max(LOWEST_ROW, HEIGHT / rows))
    figure, (ax,) = new_figure(0.5 + row * rows, theme)
    place = _Place(row, WIDTH / (found.depth + BESIDE), theme, score, _ranges(found, score))
    for cell in found.cells:
        _draw_cell(ax, cell, place, describe)
    for number_of_row, trial in enumerate(found.trials):
        _draw_end(ax, number_of_row, trial, place)
    ax.set_xlim(0, found.depth + BESIDE)
    ax.set_ylim(rows, 0)
    ax.grid(visible=False)
    ax.set_yticks([])
    names = [f"stage {found.first_stage + depth}" for depth in range(found.depth)]
    ax.set_xticks(np.arange(found.depth) + 0.5, names)
    ax.tick_params(axis="x", length=0, labeltop=True, labelbottom=False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return png(figure)


def _ranges(found: Layout, score: Score) -> dict[int, Range]:
    """The range of the scores at each depth."""
    by_depth: dict[int, list[float]] = {}
    for cell in found.cells:
        if cell.score is not None:
            by_depth.setdefault(cell.depth, []).append(cell.score)
    return {depth: range_of(scores, score) for depth, scores in by_depth.items()}


def _draw_cell(ax: Axes, cell: Cell, place: _Place, describe: Describe) -> None:
    theme = place.theme
    share = _share(cell, place)
    color = to_hex(ramp(theme)(share))
    if cell.score is None:
        color = theme.mark
    # A gap between rows, as far as there is room for one.
    gap = min(0.06, 0.008 / place.row)
    box = Rectangle(
        (cell.depth + 0.01, cell.first_row + gap),
        0.97,
        cell.rows - 2 * gap,
        facecolor=color,
        edgecolor="none",
    )
    ax.add_patch(box)
    text = _text(cell, place, describe)
    if text:
        middle = cell.first_row + cell.rows / 2
        ax.text(
            cell.depth + 0.05,
            middle,
            text,
            va="center",
            fontsize=6.5,
            color=legible_on(color, theme),
            linespacing=1.25,
            parse_math=False,
        )


def _share(cell: Cell, place: _Place) -> float:
    """Where the score of a stage lies between the worst, 0, and the best one of its depth, 1."""
    if cell.score is None:
        return 0.0
    span = place.ranges[cell.depth]
    value = span.shown(cell.score, place.score)
    share = (value - span.low) / (span.high - span.low)
    if place.score.higher_is_better:
        return share
    return 1 - share


def _text(cell: Cell, place: _Place, describe: Describe) -> str:
    """What is written into a box, as far as it fits: score and settings of the stage."""
    lines = int(cell.rows * place.row / LINE)
    if lines == 0:
        return ""
    letters = int(0.92 * place.column / LETTER)
    result = number(cell.score)
    if cell.score is None:
        result = "diverged"
    settings = describe(cell.trial, cell.depth)
    if lines == 1:
        both = f"{result}  {settings}"
        if settings and len(both) <= letters:
            return both
        return result
    if len(settings) > letters:
        settings = settings[: letters - 1] + "…"
    return f"{result}\n{settings}".rstrip()


def _draw_end(ax: Axes, row: int, trial: Trial, place: _Place) -> None:
    """Writes the trial beside its last stage, and marks the end of one that did not finish."""
    theme = place.theme
    depth = len(trial.parts)
    color = theme.muted
    if trial.kind is Kind.GIVEN or trial.state in FAILURES:
        color = theme.mark
    if trial.state is State.STOPPED:
        ax.plot([depth + 0.01] * 2, [row + 0.15, row + 0.85], color=theme.ink, lw=1.5)
    # The given recipe is named even where rows are too low for names.
    if place.row < LINE * 0.8 and trial.kind is not Kind.GIVEN:
        return
    words = name_of(trial)
    if trial.kind is Kind.RERUN:
        words = f"rerun of {trial.rerun_of}"
    if trial.state is not State.COMPLETE:
        words = f"{words}, {_end_in_words(trial)}"
    ax.text(
        depth + 0.04, row + 0.5, words, va="center", fontsize=6.5, color=color, parse_math=False
    )


def _end_in_words(trial: Trial) -> str:
    if trial.state is State.STOPPED:
        return "stopped"
    return trial.state.value
