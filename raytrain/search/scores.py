"""Scores in the units of the model: how far a score is from the usual one. No torch, no ray."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from raytrain.search.points import Array

# A score this many interquartile ranges below the lower quartile counts as one that lies there: the
# outer one of his two fences, beyond which he calls values far out.
FENCE = 3.0
# From this number of scores on, quartiles say something.
LEAST_FOR_FENCE = 6
# How many scores the spread of the ends is worth where a spread is told from few scores.
PRIOR_SCORES = 2.0


@dataclass(frozen=True)
class Scale:
    """What turns a score into standard units.

    Attributes:
        centre: the score that is 0.
        spread: what one unit is, above 0.
    """

    centre: float
    spread: float


def standard(
    scores: Sequence[float | None], levels: Sequence[Hashable], ends: Hashable
) -> tuple[Array, Scale]:
    """Puts the scores of each level in units of its spread around its mean.

    Early scores scatter more than ends, or less; only their order says something about the end.
    How bad a bad score is says little, too: a collapsed chain would outweigh all others. So low
    outliers are drawn in to a fence (J. W. Tukey 1977, "Exploratory Data Analysis").

    Args:
        scores: higher is better; None for a stage that diverged, which counts as the worst.
        levels: what each score is compared with.
        ends: the level of the ends of chains.

    Returns:
        The scores in standard units, float64 (N,), and the scale of the ends.
    """
    groups: dict[Hashable, list[int]] = {}
    for number, level in enumerate(levels):
        groups.setdefault(level, []).append(number)
    values = np.array([np.nan if score is None else score for score in scores], np.float64)
    for members in groups.values():
        values[members] = _fenced(values[members])
    scale = _scale_of_ends(values, groups.get(ends, list(range(len(values)))))
    found = np.zeros(len(values))
    for level, members in groups.items():
        own = scale
        if level != ends:
            own = _own_scale(values[members], scale.spread)
        found[members] = (values[members] - own.centre) / own.spread
    return found, scale


def _fenced(values: Array) -> Array:
    """Scores of a level with low outliers and missing ones at its fence."""
    known = values[np.isfinite(values)]
    if len(known) == 0:
        return np.zeros(len(values))
    lowest = float(known.min())
    if len(known) >= LEAST_FOR_FENCE:
        lower, upper = np.quantile(known, (0.25, 0.75))
        lowest = max(lowest, float(lower - FENCE * (upper - lower)))
    return np.maximum(np.where(np.isfinite(values), values, lowest), lowest)


def _scale_of_ends(values: Array, members: list[int]) -> Scale:
    ends = values[members]
    spread = float(ends.std())
    if spread == 0:
        # Nothing is known about the spread where all ends are equal.
        spread = max(abs(float(ends.mean())) * 1e-3, 1e-9)
    return Scale(float(ends.mean()), spread)


def _own_scale(values: Array, usual: float) -> Scale:
    """The scale of an early level; few scores say little about their spread."""
    squares = float(((values - values.mean()) ** 2).sum())
    spread = np.sqrt((squares + PRIOR_SCORES * usual**2) / (len(values) + PRIOR_SCORES))
    return Scale(float(values.mean()), float(spread))
