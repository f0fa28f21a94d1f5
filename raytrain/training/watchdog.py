"""Watches for a process that hangs: when no batch has begun for long, it writes its stacks and
acts.
"""

from __future__ import annotations

import faulthandler
import logging
import math
import statistics
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable

from raytrain import storage
from raytrain.errors import StorageError

logger = logging.getLogger(__name__)

# A stall is a time without a batch of so many medians of what batches take, and at least
# train.stall_s.
TIMES_MEDIAN = 10
# Batches of which the median is taken.
REMEMBERED = 50
# Writing the stacks needs storage, and logging needs the driver: either may be what hangs.
TELLING_S = 20.0


class Saves:
    """Whether checkpoints are being written, for watchdogs: ranks wait for the one that writes.
    Here, a process alone.
    """

    def note(self, writing: bool) -> None:
        """This process begins to write a checkpoint, or has written it."""

    def ago(self) -> float:
        """Seconds since another process was writing one: 0 for now, infinite for never."""
        return math.inf


def _nothing() -> None:
    """Nobody acts on a stall."""


def _never() -> bool:
    """No checkpoint is being written."""
    return False


class Watchdog:
    """Watches the batches of a process, from the first one on.

    Once in each stall it writes `stacks/rank-<r>.txt` into the run and calls `stalled`. A rank that
    waits for one that hangs stalls with it: the stacks show which one waits. The time in which a
    checkpoint is written does not count, since storage may be slow.
    """

    def __init__(
        self,
        run: str,
        rank: int,
        stall_s: float,
        stalled: Callable[[], None] = _nothing,
        writes: Callable[[], bool] = _never,
        saves: Saves | None = None,
    ) -> None:
        """Makes a watchdog that does not watch yet.

        Args:
            run: its directory.
            rank: of this process.
            stall_s: seconds without a batch that are a stall.
            stalled: called after the stacks were written.
            writes: whether this process is writing a checkpoint.
            saves: the same of the others.
        """
        self.path = storage.join(run, "stacks", f"rank-{rank}.txt")
        self.rank = rank
        self.stall_s = stall_s
        self.stalled = stalled
        self.writes = writes
        self.saves = saves or Saves()
        self.durations: deque[float] = deque(maxlen=REMEMBERED)  # seconds of the last batches
        self.beaten: float | None = None  # when the last batch began
        self.reported = False  # the stall that goes on
        # When a checkpoint was last being written, as far as this process knows.
        self.written = -math.inf
        self.was_writing = False
        self.wait_logged = False  # of training for a checkpoint
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        """Begins to watch."""
        self.thread.start()

    def beat(self) -> None:
        """A batch begins."""
        now = time.monotonic()
        if self.beaten is not None:
            self.durations.append(now - self.beaten)
        self.beaten = now
        self.reported = False
        self.wait_logged = False

    def close(self) -> None:
        """Ends watching."""
        self.ended.set()
        if self.thread.is_alive():
            self.thread.join()

    @property
    def limit_s(self) -> float:
        """Seconds without a batch that are a stall."""
        if not self.durations:
            return self.stall_s
        return max(self.stall_s, TIMES_MEDIAN * statistics.median(list(self.durations)))

    def _watch(self) -> None:
        while not self.ended.wait(min(1.0, self.stall_s / 10)):
            self._note_writing()
            if self.beaten is None or self.reported or self._silent() <= self.limit_s:
                continue
            # Another rank may be writing: asked only now, since each question is a call to another
            # process.
            self.written = max(self.written, time.monotonic() - self.saves.ago())
            silent = self._silent()
            if silent > self.limit_s:
                self._report(silent)

    def _note_writing(self) -> None:
        """Tells the others when this process begins and ends to write, and logs once that training
        waits for it.
        """
        writing = self.writes()
        if writing != self.was_writing:
            self.was_writing = writing
            self.saves.note(writing)
        if not writing:
            return
        self.written = time.monotonic()
        if self.beaten is None or self.wait_logged:
            return
        waited = self.written - self.beaten
        if waited > self.limit_s:
            self.wait_logged = True
            logger.warning(
                f"no batch for {waited:.0f} s: training waits for a checkpoint to be written"
            )

    def _silent(self) -> float:
        """Seconds in which neither a batch has begun nor a checkpoint was being written."""
        return time.monotonic() - max(self.beaten or 0.0, self.written)

    def _report(self, silent: float) -> None:
        self.reported = True
        # In a thread of its own: what hangs may be what it writes to.
        reporter = threading.Thread(target=self._write_stacks, args=(silent,), daemon=True)
        reporter.start()
        reporter.join(TELLING_S)
        self.stalled()

    def _write_stacks(self, silent: float) -> None:
        # faulthandler writes to a file descriptor alone.
        with tempfile.TemporaryFile("w+") as file:
            faulthandler.dump_traceback(file)
            file.seek(0)
            stacks = file.read()
        logger.warning(
            f"rank {self.rank} has begun no batch for {silent:.0f} s; the stacks of its threads: "
            f"{self.path}"
        )
        try:
            storage.write_text(self.path, stacks)
        except StorageError as error:
            logger.warning(f"{error.what}\n{stacks}")
