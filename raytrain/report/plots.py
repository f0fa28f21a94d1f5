"""Draws the pictures of runs and datasets: tables in, PNG bytes out, in a light and a dark theme.

    losses(steps, history, stage_names)    loss of every batch (smoothed) and of every epoch
    schedule(steps, stage_names)           learning rate of each layer group, and momentum
    range_test(curve, suggestions)         loss over the learning rate, with the suggested rates
    scores(history, stage_names, ...)      scores by epoch, the best one marked
    per_label(table, score)                a score of each label with its count, best first
    confusion(counts, classes)             heat map of true and predicted classes
    label_counts(table)                    tiles of each label in the parts of a split
    cooccurrence(counts, labels)           heat map of labels that occur together

`steps` holds the lines of metrics.jsonl and may have no rows. `history` holds the rows of
history.csv, `table` those of per_label.csv (raytrain/report/record.py has the columns).
Equal tables give equal bytes. Imports neither torch nor ray.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.ticker import MaxNLocator

from raytrain.evaluation.score import Score
from raytrain.report.canvas import LIGHT, Theme, legend, name_labels, new_figure, png, short

Array = np.ndarray[Any, Any]

# A one-cycle schedule falls to a millionth of its peak in its last steps. The axis ends at this
# share of the peak, since a longer one would flatten everything above.
LR_FLOOR = 1e-4
# A heat map of more labels is not legible at the width of a page.
MAX_LABELS = 60
# Up to this many labels the cells of a heat map are wide enough for numbers.
MAX_NUMBERS = 22
# Names of more stages than this would overlap, so they alternate between two rows.
MAX_STAGES_IN_ONE_ROW = 5


def losses(
    steps: pd.DataFrame, history: pd.DataFrame, stage_names: Sequence[str], theme: Theme = LIGHT
) -> bytes:
    """Draws the training loss of every step, and both losses of every epoch.

    Args:
        steps: columns stage, epoch, step and loss; without rows, the x axis counts epochs.
        history: columns stage, epoch, train_loss and valid_loss.
        stage_names: name of stage n at n - 1.
        theme: colours.

    Returns:
        PNG bytes.
    """
    figure, (ax,) = new_figure(3.1, theme)
    if len(steps):
        _draw_step_losses(ax, steps, theme)
    epoch_ends = epoch_positions(steps, history)
    _draw_epoch_losses(ax, epoch_ends, history, theme)
    _limit_losses(ax, steps, history)
    if len(steps):
        edges = _stage_edges(steps, "step")
        ax.set_xlabel("step")
    else:
        edges = _stage_edges(history.assign(step=epoch_ends), "step")
        ax.set_xlabel("epoch")
    _mark_stages(ax, edges, stage_names, theme)
    ax.set_ylabel("loss")
    legend(ax, theme)
    return png(figure)


def _draw_step_losses(ax: Axes, steps: pd.DataFrame, theme: Theme) -> None:
    positions = steps["step"]
    loss = steps["loss"]
    # Smoothed over a sixtieth of the run: short enough to show a stage, long enough to read.
    span = max(8, len(steps) // 60)
    smooth = loss.ewm(span=span).mean()
    ax.plot(positions, loss, color=theme.train, lw=0.5, alpha=0.35)
    ax.plot(
        positions,
        smooth,
        color=theme.train,
        lw=1.3,
        label="training, per batch (smoothed)",
    )


def _draw_epoch_losses(ax: Axes, positions: Array, history: pd.DataFrame, theme: Theme) -> None:
    ax.plot(
        positions,
        history["train_loss"],
        "o",
        color=theme.muted,
        ms=3,
        label="training, per epoch",
    )
    ax.plot(
        positions,
        history["valid_loss"],
        "o-",
        color=theme.valid,
        ms=3.5,
        lw=1.3,
        label="validation, per epoch",
    )


def _limit_losses(ax: Axes, steps: pd.DataFrame, history: pd.DataFrame) -> None:
    """Cuts off the spikes of single batches, so that late epochs remain distinguishable."""
    values = [history["train_loss"], history["valid_loss"]]
    if len(steps):
        # The first steps of a run have losses far above the rest.
        settled = steps["loss"].iloc[len(steps) // 50 :]
        values.append(settled.quantile([0.99]))
    finite = _finite(pd.concat(values))
    if len(finite) == 0:
        return
    highest = float(finite.max())
    if highest > 0:
        ax.set_ylim(0, 1.08 * highest)


def schedule(steps: pd.DataFrame, stage_names: Sequence[str], theme: Theme = LIGHT) -> bytes:
    """Draws the learning rate of each layer group (logarithmic) above the momentum.

    Args:
        steps: columns stage, step, lr (a list with one rate for each layer group) and momentum.
        stage_names: name of stage n at n - 1.
        theme: colours.

    Returns:
        PNG bytes.
    """
    figure, (upper, lower) = new_figure(3.9, theme, heights=(2, 1))
    # float (steps, layer groups)
    rates = pd.DataFrame()
    if len(steps):
        rates = pd.DataFrame(steps["lr"].tolist())
    positions = steps["step"]
    momentum = steps["momentum"]
    _draw_rates(upper, positions, rates, theme)
    lower.plot(positions, momentum, color=theme.muted, lw=1.4)
    lower.set_ylabel("momentum")
    lower.set_xlabel("step")
    edges = _stage_edges(steps, "step")
    _mark_stages(upper, edges, stage_names, theme)
    # Names only once: the lower axes share the x axis.
    _mark_stages(lower, edges, [""] * len(stage_names), theme)
    groups = rates.shape[1]
    if groups > 1:
        # Between the two axes, where no curve runs.
        columns = min(4, groups)
        legend(upper, theme, loc="upper center", ncols=columns, anchor=(0.5, -0.01))
    return png(figure)


def _draw_rates(ax: Axes, positions: pd.Series, rates: pd.DataFrame, theme: Theme) -> None:
    groups = rates.shape[1]
    colors = _ramp(theme, groups)
    for group, color in zip(rates.columns, colors, strict=True):
        # A frozen group has rate 0, which a logarithmic axis cannot show: it draws no line.
        rate = rates[group]
        positive = rate.where(rate > 0)
        name = _group_name(int(group), groups)
        ax.plot(positions, positive, color=color, lw=1.4, label=name)
    peak = float(np.nanmax(rates.to_numpy(float), initial=0.0))
    if peak > 0:
        group_peaks = rates[rates > 0].max()
        lowest_peak = float(group_peaks.min())
        bottom = max(peak * LR_FLOOR, lowest_peak * 0.01)
        ax.set_yscale("log")
        ax.set_ylim(bottom, peak * 1.6)
    ax.set_ylabel("learning rate")
    ax.tick_params(labelbottom=False)


def _group_name(group: int, count: int) -> str:
    if group == count - 1:
        return "head"
    return f"layer group {group + 1}"


def scores(
    history: pd.DataFrame,
    stage_names: Sequence[str],
    names: Mapping[str, str],
    score: Score,
    theme: Theme = LIGHT,
) -> bytes:
    """Draws the scores on the validation part by epoch, and marks the best one.

    Args:
        history: column stage, and one for each of `names`.
        stage_names: name of stage n at n - 1.
        names: of the scores, by their column.
        score: the one that says which epoch is best.
        theme: colours.

    Returns:
        PNG bytes.
    """
    figure, (ax,) = new_figure(2.9, theme)
    epochs = np.arange(1, len(history) + 1)
    styles = iter(("-", "--", ":"))
    for key, name in names.items():
        if key != score.key:
            line = f"o{next(styles, ':')}"
            ax.plot(epochs, history[key], line, color=theme.train, ms=2.5, lw=1, label=name)
    values = history[score.key]
    ax.plot(epochs, values, "o-", color=theme.valid, ms=3.5, lw=1.5, label=score.name)
    if values.notna().any():
        _mark_best(ax, values, score, theme)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("epoch")
    ax.set_ylabel("score")
    # A stage begins halfway between its first epoch and the last epoch of the stage before.
    edges = _stage_edges(history.assign(epochs=epochs - 0.5), "epochs")
    _mark_stages(ax, edges, stage_names, theme)
    legend(ax, theme, loc="lower right")
    return png(figure)


def _mark_best(ax: Axes, values: pd.Series, score: Score, theme: Theme) -> None:
    """Draws a ring around the best epoch and writes its score below."""
    best = int(np.nanargmax(values) if score.higher_is_better else np.nanargmin(values))
    value = float(values.iloc[best])
    epoch = float(best + 1)
    ax.plot(epoch, value, "o", ms=9, mfc="none", mec=theme.mark, mew=1.4)
    # The text grows towards the middle, so that it does not leave the picture.
    align = "left"
    if best > len(values) / 2:
        align = "right"
    ax.annotate(
        f"best {score.name} {value:.4f}",
        (epoch, value),
        (0, -17),
        textcoords="offset points",
        color=theme.mark,
        fontsize=8.5,
        ha=align,
        bbox={"facecolor": theme.paper, "edgecolor": "none", "pad": 1},
    )


def range_test(curve: pd.DataFrame, suggestions: dict[str, float], theme: Theme = LIGHT) -> bytes:
    """Draws the loss of a learning rate range test over the learning rate.

    Args:
        curve: columns lr, loss and smoothed; one row for each step.
        suggestions: learning rate by the name of the rule that suggests it.
        theme: colours.

    Returns:
        PNG bytes.
    """
    figure, (ax,) = new_figure(3.1, theme)
    shown = curve
    if len(curve) > 25:
        # As fastai's plots: the average is not settled at the start, and diverges at the end.
        shown = curve.iloc[10:-5]
    rates = shown["lr"]
    loss = shown["loss"]
    smoothed = shown["smoothed"]
    ax.plot(rates, loss, color=theme.train, lw=0.5, alpha=0.5, label="loss of the batch")
    ax.plot(rates, smoothed, color=theme.valid, lw=1.6, label="smoothed")
    # There are five rules (raytrain/training/lr_find.py), so five styles suffice.
    styles = ("-", "--", ":", "-.", (0, (6, 3)))
    for (rule, lr), style in zip(suggestions.items(), styles, strict=False):
        label = f"{rule} {lr:.1e}"
        ax.axvline(lr, color=theme.mark, lw=1, ls=style, label=label)
    low, high = _limits_around(smoothed)
    ax.set_xscale("log")
    ax.set_ylim(low, high)
    ax.set_xlabel("learning rate of all layer groups")
    ax.set_ylabel("loss")
    legend(ax, theme, loc="lower left", ncols=5, anchor=(0.0, 1.0))
    return png(figure)


def _limits_around(losses: pd.Series) -> tuple[float, float]:
    """Limits of the y axis with a margin of 8 %, around the finite losses."""
    finite = _finite(losses)
    first = float(finite.iloc[0])
    low = float(finite.min())
    # A curve that shoots up at its end must not flatten the rest.
    high = min(float(finite.max()), 2.5 * first)
    margin = 0.08 * max(high - low, 1e-6)
    return low - margin, high + margin


def per_label(table: pd.DataFrame, score: Score, theme: Theme = LIGHT) -> bytes:
    """Draws a score of each label as a bar, with its value and the number of tiles of the label.

    Args:
        table: columns label, count, and the score (0 to 1, NaN where it is undefined).
        score: which one.
        theme: colours.

    Returns:
        PNG bytes.
    """
    # Bars are drawn from the bottom, so the best label comes last.
    ranked = table.sort_values([score.key, "label"], ascending=[True, False], na_position="first")
    labels = len(ranked)
    rows = np.arange(labels)
    height = 0.9 + 0.24 * labels
    figure, (ax,) = new_figure(height, theme)
    values = ranked[score.key]
    lengths = values.fillna(0.0)
    ax.barh(rows, lengths, height=0.62, color=theme.valid, alpha=0.85)
    name_labels(ax, "y", ranked["label"])
    # The score ends at 1; the counts are written in the rest.
    right = 1.14
    for row, value, count in zip(rows, values, ranked["count"], strict=True):
        y = float(row)
        _write_score(ax, y, value, theme)
        count_text = f"{count:,}"
        ax.text(right, y, count_text, va="center", ha="right", fontsize=8, color=theme.muted)
    # The heading of the counts.
    ax.text(right, labels - 0.2, "tiles", ha="right", fontsize=8, color=theme.muted)
    ax.set_xlim(0, right)
    ax.set_ylim(-0.6, labels - 0.3)
    ax.set_xticks(np.linspace(0, 1, 6))
    ax.set_xlabel(f"{score.name} of the label")
    return png(figure)


def _write_score(ax: Axes, row: float, value: float, theme: Theme) -> None:
    """Writes a score at the end of its bar."""
    if pd.isna(value):
        text = "–"
        end = 0.0
    else:
        text = f"{value:.3f}"
        end = value
    ax.text(end + 0.012, row, text, va="center", fontsize=8, color=theme.ink)


def label_counts(table: pd.DataFrame, theme: Theme = LIGHT) -> bytes:
    """Draws the tiles of each label on a logarithmic scale, with one bar for each part.

    Args:
        table: column label, then one column of counts for each part, in the order of the bars.
            The MAX_LABELS most frequent labels are drawn, most frequent first.
        theme: colours.

    Returns:
        PNG bytes.
    """
    parts = list(table.columns[1:])
    totals = table[parts].sum(axis=1).to_numpy()
    # Bars are drawn from the bottom, so the most frequent label comes last.
    order = np.argsort(totals, kind="stable")
    ranked = table.iloc[order][-MAX_LABELS:]
    label_height = 0.16 + 0.12 * len(parts)  # inches
    height = 0.9 + label_height * len(ranked)
    figure, (ax,) = new_figure(height, theme)
    colors = [theme.valid]
    if len(parts) > 1:
        colors = [theme.train, theme.valid, theme.mark]
    rows = np.arange(len(ranked))
    thickness = 0.8 / len(parts)
    # strict=False: there are more colours than parts if a split has no test part.
    for i, (part, color) in enumerate(zip(parts, colors, strict=False)):
        counts = ranked[part]
        # The bars of a label lie around its row, the first part on top.
        offset = (len(parts) - 1 - 2 * i) * thickness / 2
        positions = rows + offset
        bar_height = 0.86 * thickness  # the rest is the gap between bars
        ax.barh(positions, counts, height=bar_height, color=color, label=str(part))
        _write_counts(ax, positions, counts, theme)
    largest = int(ranked[parts].to_numpy().max(initial=1))
    ax.set_xscale("log")
    ax.set_xlim(0.8, 2.5 * largest)
    ax.set_ylim(-0.6, len(ranked) - 0.4)
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.minorticks_off()
    ax.set_xlabel("tiles")
    name_labels(ax, "y", ranked["label"])
    if len(parts) > 1:
        legend(ax, theme, loc="lower right")
    return png(figure)


def _write_counts(ax: Axes, positions: Array, counts: pd.Series, theme: Theme) -> None:
    """Writes each count at the end of its bar."""
    for y, count in zip(positions, counts, strict=True):
        ax.annotate(
            f"{count:,}",
            (max(count, 1), y),  # 0 has no position on a logarithmic axis
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=6.5,
            color=theme.muted,
        )


def cooccurrence(counts: Array, labels: Sequence[str], theme: Theme = LIGHT) -> bytes:
    """Draws a heat map: of the tiles with the row's label, the share with the column's label.

    Args:
        counts: int (K, K), tiles with both labels; the diagonal holds the tiles of each label.
            The first MAX_LABELS labels are drawn, up to MAX_NUMBERS of them with percentages.
        labels: K names.
        theme: colours.

    Returns:
        PNG bytes.
    """
    counts = counts[:MAX_LABELS, :MAX_LABELS]
    tiles = np.diag(counts)
    # (K, K); row k is divided by the tiles of label k. A label without tiles gives zeros.
    divisors = np.maximum(tiles, 1)
    share = counts / divisors[:, None]
    # The diagonal is always 100.
    return _heat_map(share, labels, tiles, theme, diagonal=False)


def confusion(counts: Array, classes: Sequence[str], theme: Theme = LIGHT) -> bytes:
    """Draws a heat map: of the tiles of the row's class, the share taken for the column's class.

    Args:
        counts: int (K, K), tiles by true class (row) and predicted class (column). The first
            MAX_LABELS classes are drawn, up to MAX_NUMBERS of them with percentages.
        classes: K names.
        theme: colours.

    Returns:
        PNG bytes.
    """
    tiles = counts.sum(axis=1)
    # A class without tiles gives zeros.
    share = counts / np.maximum(tiles, 1)[:, None]
    return _heat_map(share[:MAX_LABELS, :MAX_LABELS], classes, tiles, theme, diagonal=True)


def _heat_map(
    share: Array, names: Sequence[str], tiles: Array, theme: Theme, *, diagonal: bool
) -> bytes:
    """Draws shares (K, K) of the rows' tiles (K,); `diagonal`: whether its numbers are written."""
    names = names[: len(share)]
    # Rows shrink beyond 17 labels, so that the picture still fits on a screen.
    scale = min(1.0, max(0.35, len(names) / 17))
    height = 1.2 + 5.6 * scale
    figure, (ax,) = new_figure(height, theme)
    ax.imshow(share, cmap=_colormap(theme), vmin=0, vmax=1, aspect="auto")
    ax.grid(visible=False)
    font_size = min(8.0, 200 / len(names))  # points; MAX_LABELS rows still fit into the height
    rows = []
    for name, count in zip(names, tiles[: len(share)], strict=True):
        rows.append(f"{short(name)}  {count:,}")
    ax.set_yticks(np.arange(len(names)), rows, parse_math=False)
    name_labels(ax, "x", names, font_size)
    ax.tick_params(axis="y", length=0, labelsize=font_size)
    ax.tick_params(axis="x", labelrotation=90, labeltop=True, labelbottom=False)
    if len(names) <= MAX_NUMBERS:
        _write_percentages(ax, share, theme, diagonal=diagonal)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return png(figure)


def _write_percentages(ax: Axes, share: Array, theme: Theme, *, diagonal: bool) -> None:
    """Writes the percentage into each cell that is not 0."""
    for row, column in np.argwhere(share > 0):
        if row == column and not diagonal:
            continue
        value = share[row, column]
        color = theme.ink
        if value > 0.55:
            color = theme.paper  # the cell itself is dark in the light theme, and vice versa
        ax.text(
            column,
            row,
            f"{100 * value:.0f}",
            ha="center",
            va="center",
            fontsize=6.5,
            color=color,
        )


def epoch_positions(steps: pd.DataFrame, history: pd.DataFrame) -> Array:
    """Where each epoch is drawn on the x axis.

    Args:
        steps: columns stage, epoch and step; may have no rows.
        history: columns stage and epoch.

    Returns:
        float64 (epochs,): the last step of each epoch; without steps 1, 2, 3 ... An epoch whose
        steps are missing (a part of metrics.jsonl was lost) is NaN and is not drawn.
    """
    if not len(steps):
        return np.arange(1, len(history) + 1, dtype=np.float64)
    last_steps = steps.groupby(["stage", "epoch"])["step"].max()
    epochs = pd.MultiIndex.from_frame(history[["stage", "epoch"]])
    return np.asarray(last_steps.reindex(epochs), np.float64)


def _stage_edges(table: pd.DataFrame, column: str) -> pd.Series:
    """The position where each stage begins, by stage number, and the end of the last one as -1.

    Args:
        table: column stage, and the column of positions.
        column: name of the column of positions.
    """
    starts = table.groupby("stage")[column].min()
    end = table[column].max()
    if column == "epochs":
        end += 1.0  # the positions are the beginnings of epochs, each of width 1
    last = pd.Series({-1: end})
    return pd.concat([starts, last]).astype(float)


def _mark_stages(ax: Axes, edges: pd.Series, stage_names: Sequence[str], theme: Theme) -> None:
    """Draws a dashed line where each stage begins, and writes the stage's name above its part.

    Args:
        ax: the axes.
        edges: as `_stage_edges` returns them.
        stage_names: name of stage n at n - 1; a stage without a name is written as its number.
        theme: colours.
    """
    if len(edges) < 2:
        return
    stages = [int(stage) for stage in edges.index]
    positions = edges.tolist()
    text_rows = 1
    if len(stages) - 1 > MAX_STAGES_IN_ONE_ROW:
        text_rows = 2
    for i, (left, right) in enumerate(pairwise(positions)):
        if i > 0:
            dashes = (0, (2, 2))
            ax.axvline(left, color=theme.muted, lw=0.7, ls=dashes, zorder=0)
        middle = (left + right) / 2
        text_row = i % text_rows
        ax.text(
            middle,
            1.02 + 0.065 * text_row,  # share of the height of the axes
            short(_stage_name(stages[i], stage_names)),
            parse_math=False,  # a name may hold dollar signs
            transform=ax.get_xaxis_transform(),
            ha="center",
            va="bottom",
            fontsize=8,
            color=theme.muted,
        )
    start = positions[0]
    # At least 1 wide: a run of a single step would have equal limits.
    end = max(positions[-1], start + 1)
    margin = 0.008 * (end - start)
    ax.set_xlim(start, end + margin)


def _stage_name(stage: int, stage_names: Sequence[str]) -> str:
    # A run without config.yaml has no names, and an edited one may have too few.
    if 0 < stage <= len(stage_names):
        return stage_names[stage - 1]
    return f"stage {stage}"


def _finite(values: pd.Series) -> pd.Series:
    infinities = [np.inf, -np.inf]
    return values.replace(infinities, np.nan).dropna()


def _colormap(theme: Theme) -> LinearSegmentedColormap:
    return LinearSegmentedColormap.from_list("share", [theme.paper, theme.valid])


def _ramp(theme: Theme, count: int) -> list[tuple[float, float, float]]:
    """`count` colours from the first to the last of the theme's ramp, as RGB between 0 and 1."""
    first = np.array(to_rgb(theme.ramp[0]))
    last = np.array(to_rgb(theme.ramp[1]))
    shares = np.linspace(0, 1, count)
    if count == 1:
        shares = np.ones(1)  # a single group is the head
    colors = []
    for share in shares:
        mixed = first + share * (last - first)
        red, green, blue = mixed.tolist()
        colors.append((red, green, blue))
    return colors
