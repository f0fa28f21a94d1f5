"""What a run is judged by: one metric of the task, and its direction. No torch, no ray."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# Ends the name of the column with the best value so far.
BEST_SUFFIX = "_best"


@dataclass(frozen=True)
class Score:
    """The metric that says which epoch, run or trial is best.

    Attributes:
        key: its name in files, such as history.csv and meta.json.
        name: its name for people.
        higher_is_better: its direction.
    """

    key: str
    name: str
    higher_is_better: bool = True

    @property
    def best_key(self) -> str:
        """Name of the column with the best value so far."""
        return f"{self.key}{BEST_SUFFIX}"

    @property
    def mode(self) -> str:
        """Its direction as Ray Tune names it."""
        if self.higher_is_better:
            return "max"
        return "min"

    def is_better(self, value: float, than: float | None) -> bool:
        """Returns whether a value is better than another one, or than none."""
        if than is None:
            return True
        if self.higher_is_better:
            return value > than
        return value < than

    def best(self, values: Iterable[float]) -> float | None:
        """Returns the best of some values, or None of none."""
        if self.higher_is_better:
            return max(values, default=None)
        return min(values, default=None)
