"""Draws what the values of each field are worth by the model: PNG bytes. Neither torch nor ray."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from raytrain.evaluation.score import Score
from raytrain.report.canvas import LIGHT, Theme, new_grid, png
from raytrain.report.search_model import Field
from raytrain.report.trials import path_in_words

# Panels next to each other.
COLUMNS = 4
# Height of a row of panels, inches.
ROW = 1.7
# Labels below a panel; of more values only some are written.
MOST_LABELS = 4
LETTERS = 11


def worth(fields: Sequence[Field], score: Score, theme: Theme = LIGHT) -> bytes:
    """Draws a panel for each field: the objective that the model expects at each of its values.

    Args:
        fields: at least one.
        score: the objective.
        theme: colours.

    Returns:
        PNG bytes.
    """
    rows = math.ceil(len(fields) / COLUMNS)
    columns = min(COLUMNS, len(fields))
    figure, axes = new_grid(0.3 + ROW * rows, theme, rows, columns)
    for ax, field in zip(axes, fields, strict=False):
        _draw_field(ax, field, theme)
    for ax in axes[len(fields) :]:
        ax.set_visible(False)
    for ax in axes[::columns]:
        ax.set_ylabel(score.name)
    return png(figure)


def _draw_field(ax: Axes, field: Field, theme: Theme) -> None:
    positions = np.arange(len(field.levels))
    means = np.array([level.mean for level in field.levels])
    errors = np.array([level.sd for level in field.levels])
    ax.fill_between(positions, means - errors, means + errors, color=theme.valid, alpha=0.18, lw=0)
    ax.errorbar(positions, means, errors, color=theme.valid, fmt="o-", ms=3, lw=1, elinewidth=0.8)
    ax.set_title(path_in_words(field.path), fontsize=8, color=theme.ink, parse_math=False)
    labels = [level.label for level in field.levels]
    shown = np.unique(np.linspace(0, len(labels) - 1, MOST_LABELS).round().astype(int))
    names = []
    for number in shown.tolist():
        # Of a pair of rates the second one; both would not fit.
        name = labels[number].rsplit(" to ", 1)[-1]
        if len(name) > LETTERS:
            name = name[: LETTERS - 1] + "…"
        names.append(name)
    ax.set_xticks(shown, names, parse_math=False)
    ax.tick_params(axis="x", labelsize=6.5)
    ax.tick_params(axis="y", labelsize=7)
    ax.set_xlim(-0.4, len(labels) - 0.6)
