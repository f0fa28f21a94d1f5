"""Draws how a search went: PNG bytes, in a light and a dark theme. Neither torch nor ray.

progress(outcomes, score)       objective of each trial over the cost spent until then
curves(drawn, score)            scores of trials by epoch, over all their stages
finalists(rows, given, score)   scores of the reruns, with intervals
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from raytrain.evaluation.score import Score
from raytrain.report.canvas import LIGHT, Theme, legend, name_labels, new_figure, png, ramp
from raytrain.report.score_axis import Range, range_of
from raytrain.report.search_finals import Standing
from raytrain.report.spending import Outcome
from raytrain.report.trials import FAILURES
from raytrain.search.table import Kind, State

# Curves that have a colour and a name; more could not be told apart.
NAMED_CURVES = 5
# Quantile of the scores of all epochs at which the axis of curves begins.
CUT = 0.1
# Where ends without a score stand, as a share of the height of the axes.
BOTTOM = 0.02


def progress(outcomes: Sequence[Outcome], score: Score, theme: Theme = LIGHT) -> bytes:
    """Draws the objective of each trial at its end over the cost that was spent until then.

    Args:
        outcomes: in their order, with at least one complete trial.
        score: the objective.
        theme: colours.

    Returns:
        PNG bytes.
    """
    figure, (ax,) = new_figure(3.2, theme)
    ends = [outcome for outcome in outcomes if outcome.is_last and not outcome.trial.is_open]
    complete = [end for end in ends if end.trial.state is State.COMPLETE]
    shown = range_of([_score_of(end) for end in complete], score)
    trials = [end for end in complete if end.trial.kind is not Kind.RERUN]
    reruns = [end for end in complete if end.trial.kind is Kind.RERUN]
    last = outcomes[-1].spent
    _draw_best(ax, trials, last, score, theme)
    _draw_given(ax, trials, theme)
    _draw_ends(ax, trials, shown, score, {"color": theme.valid, "label": "trial"})
    hollow = {"mfc": "none", "color": theme.muted, "label": "rerun of a finalist"}
    _draw_ends(ax, reruns, shown, score, hollow)
    stopped = [end for end in ends if end.trial.state is State.STOPPED]
    _draw_at_bottom(ax, stopped, {"marker": "|", "color": theme.muted, "label": "stopped early"})
    failed = [end for end in ends if end.trial.state in FAILURES]
    _draw_at_bottom(ax, failed, {"marker": "x", "color": theme.mark, "label": "diverged or failed"})
    ax.set_xlim(0, 1.02 * max(last, 1e-9))
    ax.set_ylim(shown.low, shown.high)
    ax.set_xlabel("cost spent, in trainings of the given recipe")
    ax.set_ylabel(score.name)
    legend(ax, theme, loc="lower left", ncols=4, anchor=(0.0, 1.0))
    return png(figure)


def _score_of(end: Outcome) -> float:
    score = end.trial.score
    assert score is not None  # the trial is complete
    return score


def _draw_best(ax: Axes, ends: Sequence[Outcome], last: float, score: Score, theme: Theme) -> None:
    """Draws the best score so far as a step line that goes on to the cost of the last outcome."""
    positions = []
    values: list[float] = []
    best = None
    for end in ends:
        best = score.best([_score_of(end), *values[-1:]])
        assert best is not None  # this end has a score
        positions.append(end.spent)
        values.append(best)
    if best is None:
        return
    ax.step(
        [*positions, last],
        [*values, best],
        where="post",
        color=theme.valid,
        lw=1.3,
        label="best so far",
    )


def _draw_given(ax: Axes, ends: Sequence[Outcome], theme: Theme) -> None:
    for end in ends:
        if end.trial.kind is Kind.GIVEN:
            ax.axhline(
                _score_of(end), color=theme.mark, lw=1.2, ls=(0, (4, 2)), label="given recipe"
            )


def _draw_ends(
    ax: Axes, ends: Sequence[Outcome], shown: Range, score: Score, style: dict[str, Any]
) -> None:
    """Draws ends as dots; those that are too bad for the axis as triangles at its end."""
    inside = [end for end in ends if not shown.is_outside(_score_of(end), score)]
    outside = [end for end in ends if shown.is_outside(_score_of(end), score)]
    if inside:
        spent = [end.spent for end in inside]
        values = [_score_of(end) for end in inside]
        ax.plot(spent, values, "o", ms=4, alpha=0.85, **style)
    if outside:
        marker = "v"
        if not score.higher_is_better:
            marker = "^"
        spent = [end.spent for end in outside]
        values = [shown.worst] * len(outside)
        ax.plot(spent, values, marker, ms=5, **(style | {"label": "too bad for the axis"}))


def _draw_at_bottom(ax: Axes, ends: Sequence[Outcome], style: dict[str, Any]) -> None:
    if not ends:
        return
    spent = [end.spent for end in ends]
    heights = [BOTTOM] * len(ends)
    transform = ax.get_xaxis_transform()
    ax.plot(spent, heights, ls="none", ms=6, transform=transform, clip_on=False, **style)


@dataclass(frozen=True)
class Curve:
    """The scores of a trial by epoch.

    Attributes:
        name: of the trial; empty for one of many that are drawn alike.
        history: rows of history.csv of all its stages, with the column of the score.
        given: whether it is the given recipe.
    """

    name: str
    history: pd.DataFrame
    given: bool = False


def curves(drawn: Sequence[Curve], score: Score, theme: Theme = LIGHT) -> bytes:
    """Draws a score of the validation by epoch, over all stages of each trial.

    Args:
        drawn: at least one, each with an epoch; those with a name, up to NAMED_CURVES and the given
            recipe, get a colour.
        score: the one that the histories have.
        theme: colours.

    Returns:
        PNG bytes.
    """
    figure, (ax,) = new_figure(3.4, theme)
    colors = ramp(theme)
    named = [curve for curve in drawn if curve.name and not curve.given]
    for curve in drawn:
        if not curve.name:
            _draw_curve(ax, curve, score, {"color": theme.train, "lw": 0.8, "alpha": 0.5})
    for number, curve in enumerate(named):
        # The best one comes first, and lies above the others.
        share = 1 - number / max(len(named), 2)
        style = {"color": colors(share), "lw": 1.5, "label": curve.name, "zorder": 2 + share}
        _draw_curve(ax, curve, score, style)
    for curve in drawn:
        if curve.given:
            style = {
                "color": theme.mark,
                "lw": 1.5,
                "ls": (0, (4, 2)),
                "label": curve.name,
                "zorder": 3,
            }
            _draw_curve(ax, curve, score, style)
    if leaves_out(drawn):
        _limit_curves(ax, drawn, score)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("epoch, over all stages")
    ax.set_ylabel(f"{score.name} of the validation part")
    legend(ax, theme, loc="lower left", ncols=NAMED_CURVES + 1, anchor=(0.0, 1.0))
    return png(figure)


def leaves_out(drawn: Sequence[Curve]) -> bool:
    """Whether the axis leaves out the worst epochs: those of a few curves have room."""
    return len(drawn) > NAMED_CURVES


def _draw_curve(ax: Axes, curve: Curve, score: Score, style: dict[str, Any]) -> None:
    values = curve.history[score.key]
    epochs = np.arange(1, len(values) + 1)
    marker = ""
    if len(values) == 1:
        marker = "o"  # a line through one point is not seen
    ax.plot(epochs, values, marker=marker, ms=3.5, **style)


def _limit_curves(ax: Axes, drawn: Sequence[Curve], score: Score) -> None:
    """Cuts off the worst tenth, so that late epochs remain distinguishable."""
    values = pd.concat([curve.history[score.key] for curve in drawn])
    finite = values[np.isfinite(values)]
    if finite.empty:
        return
    low = float(finite.quantile(CUT))
    high = float(finite.max())
    if not score.higher_is_better:
        low = float(finite.min())
        high = float(finite.quantile(1 - CUT))
    if low == high:
        return
    margin = 0.05 * (high - low)
    ax.set_ylim(low - margin, high + margin)


@dataclass(frozen=True)
class FinalistRow:
    """A finalist in the picture.

    Attributes:
        number: of its trial.
        name: of its trial.
        reruns: its scores, one for each seed.
        standing: what the reruns say of it, if they have ended.
    """

    number: int
    name: str
    reruns: tuple[float, ...]
    standing: Standing | None = None


def finalists(
    rows: Sequence[FinalistRow], given: float | None, score: Score, theme: Theme = LIGHT
) -> bytes:
    """Draws the score of each rerun as a ring, its mean as a dot, and intervals of differences.

    Args:
        rows: at least one of them with a rerun.
        given: mean score of the reruns of the given recipe; None where it is not known. The
            interval of a difference is drawn from there.
        score: the objective.
        theme: colours.

    Returns:
        PNG bytes.
    """
    figure, (ax,) = new_figure(0.9 + 0.34 * len(rows), theme)
    # Rows are drawn from the bottom, so the first finalist comes last.
    positions = np.arange(len(rows))[::-1]
    if given is not None:
        ax.axvline(given, color=theme.mark, lw=1.2, ls=(0, (4, 2)), label="given recipe")
    for row, y in zip(rows, positions.tolist(), strict=True):
        difference = None
        if row.standing is not None:
            difference = row.standing.difference
        if difference is not None and given is not None:
            ends = [given + difference.low, given + difference.high]
            ax.plot(ends, [y, y], color=theme.valid, lw=2.2, label="interval of the difference")
        heights = [y] * len(row.reruns)
        ax.plot(row.reruns, heights, "o", mfc="none", mec=theme.muted, ms=5, label="a rerun")
        if row.reruns:
            ax.plot(np.mean(row.reruns), y, "o", color=theme.valid, ms=6, label="mean of reruns")
    name_labels(ax, "y", [row.name for row in reversed(rows)])
    ax.set_ylim(-0.6, len(rows) - 0.4)
    ax.set_xlabel(score.name)
    _legend_once(ax, theme)
    return png(figure)


def _legend_once(ax: Axes, theme: Theme) -> None:
    """Writes the legend with each name once, though each row has drawn it."""
    seen = set()
    for artist in ax.get_lines():
        if artist.get_label() in seen:
            artist.set_label("_again")
        seen.add(artist.get_label())
    legend(ax, theme, loc="lower left", ncols=4, anchor=(0.0, 1.0))
