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
        lowest: what a lower score counts as.
    """

    centre: float
    spread: float
    lowest: float

    def units(self, score: float | None) -> float:
        """Returns a score in standard units. None, for a stage that diverged, is the lowest one."""
        if score is None or not score > self.lowest:
            score = self.lowest
        return (score - self.centre) / self.spread


def scales_of(
    scores: Sequence[float | None], levels: Sequence[Hashable], ends: Hashable
) -> dict[Hashable, Scale]:
    """Returns the scale of each level: the spread of its scores around their mean.

    Early scores scatter more than ends, or less; only their order says something about the end.
    How bad a bad score is says little, too: a collapsed chain would outweigh all others. So low
    outliers are drawn in to a fence (J. W. Tukey 1977, "Exploratory Data Analysis").

    Args:
        scores: higher is better; None for a stage that diverged, which counts as the worst.
        levels: what each score is compared with.
        ends: the level of the ends of chains.
    """
    groups: dict[Hashable, list[float | None]] = {}
    for score, level in zip(scores, levels, strict=True):
        groups.setdefault(level, []).append(score)
    found = {ends: _scale_of_ends(groups.get(ends, scores))}
    for level, group in groups.items():
        if level != ends:
            found[level] = _scale_of_level(group, found[ends].spread)
    return found


def _fenced(scores: Sequence[float | None]) -> Array:
    """Scores of a level, float64 (N,); low outliers and missing ones are at the fence."""
    values = np.array([np.nan if score is None else score for score in scores], np.float64)
    known = values[np.isfinite(values)]
    if len(known) == 0:
        return np.zeros(len(values))
    lowest = float(known.min())
    if len(known) >= LEAST_FOR_FENCE:
        lower, upper = np.quantile(known, (0.25, 0.75))
        lowest = max(lowest, float(lower - FENCE * (upper - lower)))
    values[~np.isfinite(values)] = lowest
    return np.maximum(values, lowest)


def _scale_of_ends(scores: Sequence[float | None]) -> Scale:
    values = _fenced(scores)
    spread = float(values.std())
    if spread == 0:
        # Nothing is known about the spread where all ends are equal.
        spread = max(abs(float(values.mean())) * 1e-3, 1e-9)
    return Scale(float(values.mean()), spread, float(values.min()))


def _scale_of_level(scores: Sequence[float | None], usual: float) -> Scale:
    """The scale of an early level; few scores say little about their spread."""
    values = _fenced(scores)
    squares = float(((values - values.mean()) ** 2).sum())
    spread = np.sqrt((squares + PRIOR_SCORES * usual**2) / (len(values) + PRIOR_SCORES))
    return Scale(float(values.mean()), float(spread), float(values.min()))
