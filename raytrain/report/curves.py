"""Draws how labels are decided: PNG bytes, in a light and a dark theme. Neither torch nor ray.

thresholds(labels, own, shrunk, common)    threshold of each label, and the common one
reliability(before, after)                 observed over predicted frequency
precision_recall(curves)                   precision over recall of each label
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from raytrain.evaluation.calibration import BINS, Reliability
from raytrain.evaluation.metrics import THRESHOLD, Array
from raytrain.report.canvas import LIGHT, Theme, legend, name_labels, new_figure, png, short

# Curves of more labels than this in colour could not be told apart.
NAMED_CURVES = 4


def thresholds(
    labels: Sequence[str], own: Array, shrunk: Array, common: float, theme: Theme = LIGHT
) -> bytes:
    """Draws the fitted threshold of each label as a dot, and what shrinking makes of it as a ring.

    Args:
        labels: K names, the most frequent first.
        own: threshold of each label, (K,).
        shrunk: the same, pulled towards the common one, (K,).
        common: the best threshold for all labels.
        theme: colours.

    Returns:
        PNG bytes.
    """
    figure, (ax,) = new_figure(1.1 + 0.2 * len(labels), theme)
    # Rows are drawn from the bottom, so the first label comes last.
    rows = np.arange(len(labels))[::-1]
    for row, start, end in zip(rows, shrunk, own, strict=True):
        ax.plot([start, end], [row, row], color=theme.rule, lw=2, zorder=1)
    ax.plot(own, rows, "o", color=theme.valid, ms=5, label="own")
    ax.plot(shrunk, rows, "o", mfc="none", mec=theme.mark, ms=7, label="shrunk")
    ax.axvline(THRESHOLD, color=theme.muted, lw=1, ls=":", label=f"{THRESHOLD:g}")
    ax.axvline(common, color=theme.mark, lw=1, ls="--", label=f"common {common:.2f}")
    name_labels(ax, "y", labels[::-1])
    ax.set_xlim(0, 1)
    ax.set_ylim(-0.7, len(labels) - 0.3)
    ax.set_xlabel("threshold of the probability")
    legend(ax, theme, loc="lower left", ncols=4, anchor=(0.0, 1.0))
    return png(figure)


def reliability(before: Reliability, after: Reliability, theme: Theme = LIGHT) -> bytes:
    """Draws the share of true labels over the predicted probability, above the number of decisions.

    Args:
        before: of the probabilities as they are.
        after: of the calibrated ones.
        theme: colours.

    Returns:
        PNG bytes.
    """
    figure, (upper, lower) = new_figure(4.4, theme, heights=(3, 1))
    upper.plot([0, 1], [0, 1], color=theme.muted, lw=1, ls=":", label="as it should be")
    series = {
        "as predicted": (before, theme.train),
        "with the temperature": (after, theme.valid),
    }
    for name, (found, color) in series.items():
        label = f"{name}, error {found.error:.4f}"
        upper.plot(found.predicted, found.observed, "o-", color=color, ms=3.5, lw=1.3, label=label)
    upper.set_ylabel("share of true labels")
    upper.set_xlim(0, 1)
    upper.set_ylim(0, 1)
    upper.tick_params(labelbottom=False)
    legend(upper, theme, loc="upper left")
    middles = (np.arange(BINS) + 0.5) / BINS
    width = 0.4 / BINS
    lower.bar(middles - width / 2, before.count, width=width, color=theme.train)
    lower.bar(middles + width / 2, after.count, width=width, color=theme.valid)
    lower.set_yscale("log")
    lower.minorticks_off()
    lower.set_ylabel("decisions")
    lower.set_xlabel("predicted probability")
    return png(figure)


def precision_recall(
    curves: Mapping[str, tuple[Array, Array]], averages: Mapping[str, float], theme: Theme = LIGHT
) -> bytes:
    """Draws precision over recall of each label; those of the lowest average precision have names.

    Args:
        curves: precision and recall of each label, float (points,) each.
        averages: average precision of the same labels.
        theme: colours.

    Returns:
        PNG bytes.
    """
    figure, (ax,) = new_figure(3.6, theme)
    weakest = sorted(curves, key=lambda label: averages[label])[:NAMED_CURVES]
    styles = iter(("-", "--", "-.", ":"))
    for label, (precision, recall) in curves.items():
        if label not in weakest:
            ax.plot(recall, precision, color=theme.train, lw=0.8, alpha=0.8)
    for label in weakest:
        precision, recall = curves[label]
        # The number comes first: matplotlib leaves out names that begin with an underscore. A
        # dollar sign must not start a formula.
        name = f"{averages[label]:.2f} {short(label)}".replace("$", r"\$")
        ax.plot(recall, precision, color=theme.mark, lw=1.3, ls=next(styles), label=name)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("recall")
    ax.set_ylabel("precision")
    if weakest:
        # Above the axes: every corner below may hold a curve.
        legend(ax, theme, loc="lower left", ncols=2, anchor=(0.0, 1.0))
    return png(figure)
