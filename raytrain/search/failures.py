"""What becomes of trials that fail, and when that ends the search. No torch, no ray."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from enum import Enum
from typing import Any

from raytrain.errors import NoRoomError, RaytrainError, StorageError
from raytrain.search.outcomes import Shelf
from raytrain.search.table import State, Trial

logger = logging.getLogger(__name__)

# A trial is given up after so many deaths of its process without a newer checkpoint.
MOST_DEATHS = 3
# So many failures in a row with the same reason end the search.
SAME_FAILURES = 3


class How(Enum):
    """How a trial that was handed out has ended."""

    DONE = "done"  # with its last report
    TAKEN = "taken"  # another process trains its next stage
    SIGNALLED = "signalled"  # a signal stopped it, with a checkpoint
    FAILED = "failed"  # with an error that the next attempt would repeat
    DIED = "died"  # its process ended


@dataclass(frozen=True)
class End:
    """The end of a trial that was handed out.

    Attributes:
        how: see there.
        reason: in words.
        error: that it failed with.
    """

    how: How
    reason: str = ""
    error: RaytrainError | None = None


class Failures:
    """Counts the failures of trials."""

    def __init__(self, shelf: Shelf) -> None:
        """Starts with none.

        Args:
            shelf: the stages.
        """
        self._shelf = shelf
        # Reasons of the last failures in a row.
        self._reasons: list[str] = []
        # How far each trial was when its process died last, by number.
        self._reached: dict[int, Any] = {}

    def succeeded(self) -> None:
        """Notes that a trial has ended well."""
        self._reasons.clear()

    def failed(self, trial: Trial, end: End) -> RaytrainError | None:
        """Takes the failure of a trial. Returns the error that ends the search, if it does."""
        if isinstance(end.error, StorageError | NoRoomError):
            # Nothing is wrong with the trial, and all others would fail in the same way.
            return end.error
        trial.close(State.FAILED, end.reason)
        return self._repeated(end.reason, end.error)

    def died(self, trial: Trial, reason: str) -> RaytrainError | None:
        """Takes the death of a trial's process. The trial stays open, unless it died too often.

        Returns:
            The error that ends the search, if it does.
        """
        stage = len(trial.parts)
        reached = (stage, self._shelf.reached(trial.keys[stage]))
        before = self._reached.get(trial.number)
        self._reached[trial.number] = reached
        if before is not None and reached > before:
            trial.deaths = 0
        trial.deaths += 1
        logger.warning(
            f"trial {trial.number}: {reason}; death {trial.deaths} of {MOST_DEATHS} without a "
            "newer checkpoint"
        )
        if trial.deaths < MOST_DEATHS:
            return None
        trial.close(State.FAILED, f"its process died {MOST_DEATHS} times: {reason}")
        return self._repeated(trial.reason, None)

    def _repeated(self, reason: str, error: RaytrainError | None) -> RaytrainError | None:
        """Counts a failure. Returns the error of one that has come too often in a row."""
        self._reasons.append(reason)
        same = self._reasons[-SAME_FAILURES:]
        if len(same) < SAME_FAILURES or len(set(same)) > 1:
            return None
        return error or RaytrainError(f"{SAME_FAILURES} trials in a row failed: {reason}")
