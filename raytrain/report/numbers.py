"""Numbers as text, for pages and the terminal. Imports neither torch, ray nor matplotlib."""

from __future__ import annotations

import math

NOTHING = "–"  # shown where there is no value


def score(value: float | None, digits: int = 4) -> str:
    """A number with a fixed number of decimals; a dash for None, NaN and infinity."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:.{digits}f}"


def count(value: float | None) -> str:
    """A whole number with commas between thousands; a dash for None, NaN and infinity."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{round(value):,}"


def duration(seconds: float | None) -> str:
    """Seconds as 0:07 or 1:02:03; a dash for None, NaN and infinity."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours == 0:
        return f"{minute}:{second:02}"
    return f"{hours}:{minute:02}:{second:02}"
