"""Draws drawn values of trials as parallel coordinates: PNG bytes. Neither torch nor ray.

scale(values)                    where the values of a field lie on its axis
parallel(axes, lines, theme)     an axis for each field, a line for each trial
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from raytrain.evaluation.score import Score
from raytrain.report.canvas import LIGHT, Theme, new_figure, png, ramp
from raytrain.report.score_axis import range_of
from raytrain.report.trials import value_in_words

# Numbers whose largest is so many times the smallest stand on a logarithmic axis.
LOGARITHMIC = 10.0
# Labels that are nearer than this share of the axis would overlap.
NEAREST = 0.08
# Letters of a label.
LETTERS = 13


@dataclass(frozen=True)
class Scale:
    """Where values lie on an axis from 0 to 1.

    Attributes:
        positions: by the text of the value.
        labels: those that are written.
    """

    positions: dict[str, float]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Line:
    """A trial as a line.

    Attributes:
        values: texts of its values in the order of the axes; None where it has no value.
        score: the objective at its end; None for one that was stopped or failed.
        given: whether it is the given recipe.
    """

    values: tuple[str | None, ...]
    score: float | None
    given: bool = False


def scale(values: Sequence[Any]) -> Scale:
    """Places values on an axis: numbers by their size, anything else at equal distances.

    Numbers above 0 that span a factor of LOGARITHMIC are placed by their logarithm. Of a pair of
    rates, the second one counts.
    """
    by_text = {text_on_axis(value): _number(value) for value in values}
    numbers = [number for number in by_text.values() if number is not None]
    if len(numbers) < len(by_text):
        return _evenly(sorted(by_text))
    if min(numbers) > 0 and max(numbers) >= LOGARITHMIC * min(numbers):
        numbers = [math.log(number) for number in numbers]
    low = min(numbers)
    span = max(numbers) - low
    if span == 0:
        return _evenly(list(by_text))
    positions = {}
    for text, number in zip(by_text, numbers, strict=True):
        positions[text] = (number - low) / span
    return Scale(positions, _labels(positions))


def text_on_axis(value: Any) -> str:
    """Returns the text of a value on its axis; of a pair, that of the second number."""
    return value_in_words(_of_pair(value))


def _of_pair(value: Any) -> Any:
    if isinstance(value, list | tuple) and value:
        return value[-1]
    return value


def _number(value: Any) -> float | None:
    value = _of_pair(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value)


def _evenly(texts: Sequence[str]) -> Scale:
    positions = {}
    for number, text in enumerate(texts):
        positions[text] = (number + 0.5) / len(texts)
    return Scale(positions, _labels(positions))


def _labels(positions: Mapping[str, float]) -> tuple[str, ...]:
    """The texts that can be written without overlapping, the lowest and the highest among them."""
    lowest, *others = sorted(positions, key=lambda text: positions[text])
    if not others:
        return (lowest,)
    highest = others.pop()
    chosen = [lowest]
    for text in others:
        below = positions[text] - positions[chosen[-1]]
        above = positions[highest] - positions[text]
        if min(below, above) >= NEAREST:
            chosen.append(text)
    return (*chosen, highest)


def parallel(
    names: Sequence[str],
    scales: Sequence[Scale],
    lines: Sequence[Line],
    score: Score,
    theme: Theme = LIGHT,
) -> bytes:
    """Draws an axis for each field and one for the objective, and a line for each trial.

    Args:
        names: of the fields.
        scales: of the same fields.
        lines: at least one with a score; the best one is drawn last.
        score: the objective, which colours the lines.
        theme: colours.

    Returns:
        PNG bytes.
    """
    figure, (ax,) = new_figure(3.9, theme)
    scored = [line.score for line in lines if line.score is not None]
    shown = range_of(scored, score)
    colors = ramp(theme)
    span = shown.high - shown.low
    width = 1.4
    if len(scored) > 40:
        width = 0.8
    for line in _worst_first(lines, score):
        heights = _heights(line, scales)
        style: dict[str, Any] = {"color": theme.rule, "lw": 0.8, "zorder": 1}
        if line.score is not None:
            height = (shown.shown(line.score, score) - shown.low) / span
            heights.append(height)
            share = height
            if not score.higher_is_better:
                share = 1 - height
            style = {"color": colors(share), "lw": width, "zorder": 2}
        if line.given:
            style |= {"color": theme.mark, "lw": 1.5, "ls": (0, (4, 2)), "zorder": 3}
        ax.plot(np.arange(len(heights)), heights, **style)
    for position, found in enumerate(scales):
        _draw_axis(ax, position, found, theme)
    ends = [f"{shown.high:.4f}", f"{shown.low:.4f}"]
    objective = Scale(dict(zip(ends, (1.0, 0.0), strict=True)), tuple(ends))
    _draw_axis(ax, len(scales), objective, theme)
    _finish(ax, [*names, score.name])
    return png(figure)


def _worst_first(lines: Sequence[Line], score: Score) -> list[Line]:
    """Lines without a score, then from the worst to the best one."""
    without = [line for line in lines if line.score is None]
    scored = [line for line in lines if line.score is not None]
    scored.sort(key=lambda line: line.score or 0.0, reverse=not score.higher_is_better)
    return [*without, *scored]


def _heights(line: Line, scales: Sequence[Scale]) -> list[float]:
    """Where the line crosses each axis; NaN, which is not drawn, where it has no value."""
    heights = []
    for text, found in zip(line.values, scales, strict=True):
        if text is None:
            heights.append(math.nan)
        else:
            heights.append(found.positions[text])
    return heights


def _draw_axis(ax: Axes, position: int, found: Scale, theme: Theme) -> None:
    ax.axvline(position, color=theme.muted, lw=0.8, zorder=4)
    for text in found.labels:
        shown = text
        if len(shown) > LETTERS:
            shown = shown[: LETTERS - 1] + "…"
        ax.annotate(
            shown,
            (position, found.positions[text]),
            (3, 0),
            textcoords="offset points",
            va="center",
            fontsize=6.5,
            color=theme.ink,
            zorder=5,
            parse_math=False,
            bbox={"facecolor": theme.paper, "edgecolor": "none", "pad": 0.6, "alpha": 0.75},
        )


def _finish(ax: Axes, names: Sequence[str]) -> None:
    """Writes the name of each axis above it, its last word in a line of its own."""
    stacked = ["\n".join(name.rsplit(" ", 1)) for name in names]
    ax.set_xticks(np.arange(len(names)), stacked, parse_math=False)
    ax.tick_params(axis="x", length=0, labelsize=7, labeltop=True, labelbottom=False)
    ax.set_yticks([])
    ax.grid(visible=False)
    # Labels of the last axis stand to the right of it.
    ax.set_xlim(-0.1, len(names) - 1 + 0.55)
    ax.set_ylim(-0.04, 1.04)
    for spine in ax.spines.values():
        spine.set_visible(False)
