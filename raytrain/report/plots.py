"""The pictures of a run: tables in, PNG bytes out, in a light and a dark theme.

    losses(steps, history, stage_names)    loss of every batch (smoothed) and of every epoch
    schedule(steps, stage_names)           learning rate of each layer group, and momentum
    range_test(curve, suggestions)         loss over the learning rate, with the rates that rules read off it
    scores(history, stage_names)           F2 and accuracy by epoch, the best one marked
    per_label(table)                       F2 of each label with its count, best first
    label_counts(table)                    tiles of each label in the parts of a split
    cooccurrence(counts, labels)           heat map of labels that occur together

`steps` holds the lines of metrics.jsonl, `history` the rows of history.csv, `table` those of per_label.csv (DESIGN, run
directory). An empty `steps` is allowed. Equal tables give equal bytes. Only matplotlib's objects are used, never pyplot:
its global state is not safe in a driver that draws while it serves. Neither torch nor ray.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

WIDTH = 7.5  # inches; with DPI 1200 pixels, twice the column of the report
DPI = 160
# One-cycle falls to a millionth of its peak in the last steps; below this share of it nothing can be read.
LR_FLOOR = 1e-4
# Heat maps of more labels than this cannot be read at the width of a page; of more than the second, without numbers.
MAX_LABELS, MAX_NUMBERS = 60, 22


@dataclass(frozen=True)
class Theme:
    """Colours of one set of pictures; `ramp` runs from the first layer group to the head."""

    paper: str
    ink: str
    muted: str
    rule: str
    train: str
    valid: str
    mark: str
    ramp: tuple[str, str]


LIGHT = Theme(
    "#fdfcf9",
    "#23282b",
    "#6d7478",
    "#dcdcd5",
    "#9aa2a6",
    "#1d6b57",
    "#b4531f",
    ("#a9c9bd", "#14513f"),
)
DARK = Theme(
    "#16191b",
    "#e4e2dc",
    "#979ea2",
    "#33393c",
    "#727b80",
    "#6cc3a5",
    "#e59a5f",
    ("#35584c", "#9fe0c8"),
)


def losses(
    steps: pd.DataFrame, history: pd.DataFrame, stage_names: Sequence[str], theme: Theme = LIGHT
) -> bytes:
    """Training loss of every step (raw and smoothed) with the training and validation loss of every epoch."""
    figure, (ax,) = _figure(3.1, theme)
    at = epoch_positions(steps, history)
    if len(steps):
        smooth = steps["loss"].ewm(span=max(8, len(steps) // 60)).mean()
        ax.plot(steps["step"], steps["loss"], color=theme.train, lw=0.5, alpha=0.35)
        ax.plot(
            steps["step"], smooth, color=theme.train, lw=1.3, label="training, per batch (smoothed)"
        )
    ax.plot(at, history["train_loss"], "o", color=theme.muted, ms=3, label="training, per epoch")
    ax.plot(
        at,
        history["valid_loss"],
        "o-",
        color=theme.valid,
        ms=3.5,
        lw=1.3,
        label="validation, per epoch",
    )
    _loss_limits(ax, steps, history)
    _bands(
        ax, _starts(steps if len(steps) else history.assign(step=at), "step"), stage_names, theme
    )
    ax.set_ylabel("loss")
    ax.set_xlabel("step" if len(steps) else "epoch")
    _legend(ax, theme)
    return _png(figure)


def schedule(steps: pd.DataFrame, stage_names: Sequence[str], theme: Theme = LIGHT) -> bytes:
    """Learning rate of each layer group (logarithmic; a group at zero draws no line) over momentum."""
    figure, (upper, lower) = _figure(3.9, theme, heights=(2, 1))
    groups = pd.DataFrame(steps["lr"].tolist()) if len(steps) else pd.DataFrame()
    peak = float(np.nanmax(groups.to_numpy(float), initial=0.0))
    colors = _ramp(theme, groups.shape[1])
    for group, color in zip(groups.columns, colors, strict=True):
        lr = groups[group].where(groups[group] > 0)
        upper.plot(
            steps["step"], lr, color=color, lw=1.4, label=_group_name(int(group), groups.shape[1])
        )
    if peak > 0:
        lowest = float(groups[groups > 0].max().min())
        upper.set_yscale("log")
        upper.set_ylim(max(peak * LR_FLOOR, lowest * 0.01), peak * 1.6)
    upper.set_ylabel("learning rate")
    upper.tick_params(labelbottom=False)
    lower.plot(steps["step"], steps["momentum"], color=theme.muted, lw=1.4)
    lower.set_ylabel("momentum")
    lower.set_xlabel("step")
    _bands(upper, _starts(steps, "step"), stage_names, theme)
    _bands(lower, _starts(steps, "step"), [""] * len(stage_names), theme)
    if groups.shape[1] > 1:
        _legend(
            upper, theme, loc="upper center", ncols=min(4, groups.shape[1]), anchor=(0.5, -0.01)
        )
    return _png(figure)


def scores(history: pd.DataFrame, stage_names: Sequence[str], theme: Theme = LIGHT) -> bytes:
    """F2 and accuracy on the validation part by epoch; a ring and its value mark the best F2."""
    figure, (ax,) = _figure(2.9, theme)
    epochs = np.arange(1, len(history) + 1)
    ax.plot(epochs, history["accuracy"], "o-", color=theme.train, ms=2.5, lw=1, label="accuracy")
    ax.plot(epochs, history["f2"], "o-", color=theme.valid, ms=3.5, lw=1.5, label="F2")
    if history["f2"].notna().any():
        best = int(history["f2"].to_numpy().argmax())
        value = float(history["f2"].iloc[best])
        ax.plot(epochs[best], value, "o", ms=9, mfc="none", mec=theme.mark, mew=1.4)
        ax.annotate(
            f"best F2 {value:.4f}",
            (float(epochs[best]), value),
            (0, -17),
            textcoords="offset points",
            color=theme.mark,
            fontsize=8.5,
            ha="right" if best > len(history) / 2 else "left",
            bbox={"facecolor": theme.paper, "edgecolor": "none", "pad": 1},
        )
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("epoch")
    ax.set_ylabel("score")
    _bands(ax, _starts(history.assign(epochs=epochs - 0.5), "epochs"), stage_names, theme)
    _legend(ax, theme, loc="lower right")
    return _png(figure)


def range_test(curve: pd.DataFrame, suggestions: dict[str, float], theme: Theme = LIGHT) -> bytes:
    """Smoothed loss of a range test over the learning rate; the first 10 and the last 5 steps are left out.

    Args:
        curve: columns lr, loss and smoothed, a row a step.
        suggestions: learning rate by the name of its rule.
    """
    figure, (ax,) = _figure(3.1, theme)
    shown = curve.iloc[10:-5] if len(curve) > 25 else curve
    ax.plot(
        shown["lr"], shown["loss"], color=theme.train, lw=0.5, alpha=0.5, label="loss of the batch"
    )
    ax.plot(shown["lr"], shown["smoothed"], color=theme.valid, lw=1.6, label="smoothed")
    for (rule, lr), style in zip(suggestions.items(), ("-", "--", ":"), strict=False):
        ax.axvline(lr, color=theme.mark, lw=1, ls=style, label=f"{rule} {lr:.1e}")
    ax.set_xscale("log")
    ax.set_ylim(*_spread(shown["smoothed"]))
    ax.set_xlabel("learning rate of all layer groups")
    ax.set_ylabel("loss")
    _legend(ax, theme, loc="lower left", ncols=5, anchor=(0.0, 1.0))
    return _png(figure)


def per_label(table: pd.DataFrame, theme: Theme = LIGHT) -> bytes:
    """One bar a label: its F2, the value, and the number of tiles that truly have it.

    Args:
        table: columns label, f2 (0 to 1, NaN where nothing can be said) and count.
    """
    ranked = table.sort_values(["f2", "label"], ascending=[True, False], na_position="first")
    rows = np.arange(len(ranked))
    figure, (ax,) = _figure(0.9 + 0.24 * len(ranked), theme)
    ax.barh(rows, ranked["f2"].fillna(0.0), height=0.62, color=theme.valid, alpha=0.85)
    _name_labels(ax, "y", ranked["label"])
    for row, f2, count in zip(rows, ranked["f2"], ranked["count"], strict=True):
        shown = "–" if pd.isna(f2) else f"{f2:.3f}"
        ax.text(
            (0 if pd.isna(f2) else f2) + 0.012,
            float(row),
            shown,
            va="center",
            fontsize=8,
            color=theme.ink,
        )
        ax.text(
            1.14, float(row), f"{count:,}", va="center", ha="right", fontsize=8, color=theme.muted
        )
    ax.text(1.14, len(ranked) - 0.2, "tiles", ha="right", fontsize=8, color=theme.muted)
    ax.set_xlim(0, 1.14)
    ax.set_ylim(-0.6, len(ranked) - 0.3)
    ax.set_xticks(np.linspace(0, 1, 6))
    ax.set_xlabel("F2 of the label")
    return _png(figure)


def label_counts(table: pd.DataFrame, theme: Theme = LIGHT) -> bytes:
    """Tiles of each label on a logarithmic scale, one bar for each part, most frequent label first.

    Args:
        table: columns label, then one count for each part, in the order of the bars. The MAX_LABELS most frequent labels
            are shown.
    """
    parts = list(table.columns[1:])
    ranked = table.iloc[np.argsort(table[parts].sum(axis=1).to_numpy(), kind="stable")][
        -MAX_LABELS:
    ]
    rows, thick = np.arange(len(ranked)), 0.8 / len(parts)
    figure, (ax,) = _figure(0.9 + (0.16 + 0.12 * len(parts)) * len(ranked), theme)
    colors = [theme.train, theme.valid, theme.mark] if len(parts) > 1 else [theme.valid]
    for i, (part, color) in enumerate(zip(parts, colors, strict=False)):
        at = rows + (len(parts) - 1 - 2 * i) * thick / 2
        ax.barh(at, ranked[part], height=0.86 * thick, color=color, label=str(part))
        for y, count in zip(at, ranked[part], strict=True):
            ax.annotate(
                f"{count:,}",
                (max(count, 1), y),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=6.5,
                color=theme.muted,
            )
    ax.set_xscale("log")
    ax.set_xlim(0.8, 2.5 * max(1, int(ranked[parts].to_numpy().max(initial=1))))
    ax.set_ylim(-0.6, len(ranked) - 0.4)
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.minorticks_off()
    ax.set_xlabel("tiles")
    _name_labels(ax, "y", ranked["label"])
    if len(parts) > 1:
        _legend(ax, theme, loc="lower right")
    return _png(figure)


def cooccurrence(
    counts: np.ndarray[Any, Any], labels: Sequence[str], theme: Theme = LIGHT
) -> bytes:
    """Heat map: of the tiles with the label of the row, the share that also has the label of the column.

    Args:
        counts: int (K, K), tiles with both labels; the diagonal counts the tiles of each label. The first MAX_LABELS labels
            are shown, with numbers (percent) if they are MAX_NUMBERS at most.
        labels: K names.
    """
    counts, names = counts[:MAX_LABELS, :MAX_LABELS], labels[:MAX_LABELS]
    share = counts / np.maximum(np.diag(counts), 1)[:, None]
    figure, (ax,) = _figure(1.2 + 5.6 * min(1.0, max(0.35, len(names) / 17)), theme)
    ax.imshow(share, cmap=_colormap(theme), vmin=0, vmax=1, aspect="auto")
    ax.grid(visible=False)
    size = min(8.0, 200 / len(names))  # points; up to MAX_LABELS rows lie within the height
    counted = [
        f"{short(name)}  {count:,}" for name, count in zip(names, np.diag(counts), strict=True)
    ]
    ax.set_yticks(np.arange(len(names)), counted, parse_math=False)
    _name_labels(ax, "x", names, size)
    ax.tick_params(axis="y", length=0, labelsize=size)
    ax.tick_params(axis="x", labelrotation=90, labeltop=True, labelbottom=False)
    for row, column in np.argwhere(counts > 0) if len(names) <= MAX_NUMBERS else ():
        if row != column:
            dark = share[row, column] > 0.55
            ax.text(
                column,
                row,
                f"{100 * share[row, column]:.0f}",
                ha="center",
                va="center",
                fontsize=6.5,
                color=theme.paper if dark else theme.ink,
            )
    for spine in ax.spines.values():
        spine.set_visible(False)
    return _png(figure)


def epoch_positions(steps: pd.DataFrame, history: pd.DataFrame) -> np.ndarray[Any, Any]:
    """float64, one a row of `history`: the last step of that epoch; without steps 1, 2, 3 ...

    An epoch whose steps are not in `steps` (a part of metrics.jsonl was lost) is NaN and draws nothing.
    """
    if not len(steps):
        return np.arange(1, len(history) + 1, dtype=np.float64)
    last = steps.groupby(["stage", "epoch"])["step"].max()
    keys = pd.MultiIndex.from_frame(history[["stage", "epoch"]])
    return np.asarray(last.reindex(keys), np.float64)


def _name_labels(
    ax: Axes, axis: Literal["x", "y"], labels: Iterable[str], size: float = 8.0
) -> None:
    """Writes labels along an axis, in letters of `size` points."""
    names = [short(label) for label in labels]
    ticks = ax.set_yticks if axis == "y" else ax.set_xticks
    # Labels are anybody's words: a dollar sign must not start mathematics.
    ticks(np.arange(len(names)), names, parse_math=False)
    ax.tick_params(axis=axis, length=0, labelsize=size)
    ax.grid(axis=axis, visible=False)
    ax.spines["left"].set_visible(False)


def short(label: str) -> str:
    """At most 40 letters of a label, so that it leaves room for what it stands beside."""
    return str(label) if len(str(label)) <= 40 else str(label)[:39] + "…"


def _colormap(theme: Theme) -> LinearSegmentedColormap:
    return LinearSegmentedColormap.from_list("share", [theme.paper, theme.valid])


def _starts(table: pd.DataFrame, column: str) -> pd.Series[float]:
    """First position of each stage, and after the last stage its end, indexed by stage number."""
    starts = table.groupby("stage")[column].min()
    end = table[column].max() + (1.0 if column == "epochs" else 0.0)
    return pd.concat([starts, pd.Series({-1: end})]).astype(float)


def _bands(ax: Axes, starts: pd.Series[float], stage_names: Sequence[str], theme: Theme) -> None:
    """Rules where stages begin, each stage's name above its band; many names stand on two rows."""
    rows = 1 if len(starts) <= 6 else 2
    edges = list(starts.items())
    if len(edges) < 2:
        return
    for i, ((stage, left), (_, right)) in enumerate(pairwise(edges)):
        if i:
            ax.axvline(left, color=theme.muted, lw=0.7, ls=(0, (2, 2)), zorder=0)
        name = (
            stage_names[int(str(stage)) - 1]
            if 0 < int(str(stage)) <= len(stage_names)
            else f"stage {stage}"
        )
        ax.text(
            (left + right) / 2,
            1.02 + 0.065 * (i % rows),
            name,
            transform=ax.get_xaxis_transform(),
            ha="center",
            va="bottom",
            fontsize=8,
            color=theme.muted,
        )
    right = max(edges[-1][1], edges[0][1] + 1)
    ax.set_xlim(edges[0][1], right + 0.008 * (right - edges[0][1]))


def _loss_limits(ax: Axes, steps: pd.DataFrame, history: pd.DataFrame) -> None:
    """Cuts off the spikes of single batches, so that the difference between late epochs stays visible."""
    values = [history["train_loss"], history["valid_loss"]]
    values += [steps["loss"].iloc[len(steps) // 50 :].quantile([0.99])] if len(steps) else []
    finite = pd.concat(values).replace([np.inf, -np.inf], np.nan).dropna()
    if len(finite) and finite.max() > 0:
        ax.set_ylim(0, 1.08 * float(finite.max()))


def _spread(values: pd.Series[float]) -> tuple[float, float]:
    """Limits around finite values with a margin; a curve that shoots up at its end must not flatten the rest."""
    finite = values.replace([np.inf, -np.inf], np.nan).dropna()
    low, high = float(finite.min()), min(float(finite.max()), 2.5 * float(finite.iloc[0]))
    margin = 0.08 * max(high - low, 1e-6)
    return low - margin, high + margin


def _ramp(theme: Theme, count: int) -> list[tuple[float, float, float]]:
    """`count` colours between the two of the theme; a single one is the head's."""
    first, last = (
        np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]) for color in theme.ramp
    )
    shares = np.linspace(0, 1, count) if count > 1 else np.ones(count)
    mixed = (first + share * (last - first) for share in shares)
    return [(float(red), float(green), float(blue)) for red, green, blue in mixed]


def _group_name(group: int, count: int) -> str:
    if group == count - 1:
        return "head"
    return f"layer group {group + 1}"


def _figure(
    height: float, theme: Theme, heights: Sequence[float] = (1,)
) -> tuple[Figure, list[Axes]]:
    """A figure of WIDTH × height inches with axes under each other that share x."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor=theme.paper, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(
        len(heights), 1, sharex=True, squeeze=False, height_ratios=list(heights)
    )[:, 0]
    for ax in axes:
        ax.set_facecolor(theme.paper)
        ax.grid(color=theme.rule, lw=0.6)
        ax.set_axisbelow(True)
        ax.tick_params(colors=theme.muted, labelcolor=theme.ink, labelsize=8, length=3, width=0.6)
        ax.xaxis.label.set(color=theme.muted, fontsize=8.5)
        ax.yaxis.label.set(color=theme.muted, fontsize=8.5)
        for side, spine in ax.spines.items():
            spine.set(visible=side in ("left", "bottom"), color=theme.muted, linewidth=0.6)
    return figure, list(axes)


def _legend(
    ax: Axes,
    theme: Theme,
    loc: Any = "upper right",
    ncols: int = 1,
    anchor: tuple[float, float] | None = None,
) -> None:
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


def _png(figure: Figure) -> bytes:
    """PNG without the name of the program that wrote it, so that equal figures are equal bytes over versions."""
    sink = io.BytesIO()
    with warnings.catch_warnings():
        # A letter that the font lacks becomes a box, and a warning for each: the tables beside the pictures have the words.
        warnings.filterwarnings("ignore", r"Glyph \d+")
        figure.savefig(
            sink, format="png", facecolor=figure.get_facecolor(), metadata={"Software": None}
        )
    return sink.getvalue()
