"""What a search says while it runs: a line per stage and trial, and how far it is."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from raytrain.errors import RaytrainError
from raytrain.evaluation.score import Score
from raytrain.log import duration
from raytrain.search.forecast import seconds_of_reruns
from raytrain.search.planner import Planner
from raytrain.search.table import Kind, State, Trial

logger = logging.getLogger(__name__)

# Seconds between two lines on the whole search, and between two updates of its files.
STATUS_EVERY_S = 30.0
FILES_EVERY_S = 30.0


class Lines:
    """Logs the events of a search."""

    def __init__(self, planner: Planner, score: Score, changed: Callable[[], None]) -> None:
        """Starts.

        Args:
            planner: of the search.
            score: the objective.
            changed: called now and then when files that people look at should be written.
        """
        self._planner = planner
        self._score = score
        self._changed = changed
        self._stages = {trial.number: len(trial.parts) for trial in planner.parts.table.trials}
        self._closed = {t.number for t in planner.parts.table.trials if not t.is_open}
        self._status_at = float("-inf")
        self._files_at = float("-inf")
        self._stopping = False

    def begin(self) -> None:
        """Says what the search begins with."""
        table = self._planner.parts.table
        slots = self._planner.parts.slots()
        limits = self._planner.parts.limits
        drawn = len(table.of_kind(Kind.GIVEN, Kind.TRIED, Kind.DRAWN))
        again = f", {drawn} of them drawn before" if drawn > 1 else ""
        logger.info(
            f"search {table.directory}: up to {limits.num_samples} trials{again}, "
            f"{slots} at once, objective {self._score.name}"
        )

    def stopping(self, name: str) -> None:
        """Says once that a signal ends the search."""
        if self._stopping:
            return
        self._stopping = True
        logger.info(
            f"{name}: running trials write a checkpoint after their next step, then the search "
            "stops; once more stops it at once"
        )

    def event(self, number: int) -> None:
        """Logs what is new of all trials after something happened to one."""
        for trial in self._planner.parts.table.trials:
            self._log_new(trial)
        now = time.monotonic()
        if now - self._status_at > STATUS_EVERY_S:
            self._status_at = now
            logger.info(self.status())
        if now - self._files_at > FILES_EVERY_S:
            self._write_files()
            # Counted from their end: drawing them takes a while.
            self._files_at = time.monotonic()

    def _write_files(self) -> None:
        """Writes what people look at. A search does not end because a picture cannot be drawn."""
        try:
            self._changed()
        except RaytrainError as error:
            logger.warning(f"the page of the search cannot be written: {error.what}")

    def _log_new(self, trial: Trial) -> None:
        known = self._stages.get(trial.number, 0)
        for stage in range(known + 1, len(trial.parts) + 1):
            part = trial.parts[stage - 1]
            if part.score is None:
                continue
            how = duration(part.seconds) if part.trained else "found"
            logger.info(
                f"trial {trial.number}  stage {stage} of {len(trial.keys)}  "
                f"{self._score.name} {part.score:.4f}  {how}"
            )
        self._stages[trial.number] = len(trial.parts)
        if trial.is_open or trial.number in self._closed:
            return
        self._closed.add(trial.number)
        reason = f": {trial.reason}" if trial.reason else ""
        logger.info(f"trial {trial.number}  {trial.state.value}{reason}")

    def status(self) -> str:
        """Returns how far the search is, when it may end, and what sharing has saved."""
        planner = self._planner
        table = planner.parts.table
        drawn = table.of_kind(Kind.GIVEN, Kind.TRIED, Kind.DRAWN)
        ended = [trial for trial in drawn if not trial.is_open]
        complete = [trial for trial in drawn if trial.state is State.COMPLETE]
        text = f"{len(ended)} of {planner.parts.limits.num_samples} trials have ended"
        scores = [trial.score for trial in complete if trial.score is not None]
        best = self._score.best(scores)
        if best is not None:
            text += f", best {self._score.name} {best:.4f}"
        saved = _saved(table.trials)
        if saved is not None:
            text += f"; sharing saved {saved:.0%} of the work"
        if ended:
            seconds = self._seconds_left(len(ended))
            end = time.strftime("%H:%M", time.localtime(time.time() + seconds))
            text += f"; end about {end} (in {duration(seconds)}), reruns included"
        gains = [trial.gain for trial in table.trials if trial.gain is not None]
        if gains:
            text += f"; the last draw promised {gains[-1]:+.4f}"
        return text

    def _seconds_left(self, ended: int) -> float:
        """Expected seconds until the end.

        Args:
            ended: number of trials that have ended, reruns not among them; at least 1.
        """
        planner = self._planner
        limits = planner.parts.limits
        reruns = seconds_of_reruns(planner.parts.table, limits.reruns, planner.parts.slots())
        trials = planner.seconds / ended * max(0, limits.num_samples - ended)
        if limits.budget_s is not None:
            trials = min(trials, max(0.0, limits.budget_s - planner.seconds - reruns))
        return trials + reruns


def _saved(trials: list[Trial]) -> float | None:
    """Share of the cost of all chains so far that was not trained again; None before any."""
    alone = 0.0
    trained = 0.0
    seen: set[str] = set()
    for trial in trials:
        for key, cost, _ in zip(trial.keys, trial.costs, trial.parts, strict=False):
            alone += cost
            if key not in seen:
                seen.add(key)
                trained += cost
    if alone == 0:
        return None
    return 1 - trained / alone
