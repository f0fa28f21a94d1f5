"""Watches for a process that hangs: when no batch has begun for long it tells where each thread stands, and acts."""

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


# No batch for so many times as long as batches take, and at least for train.stall_s.
TIMES_MEDIAN = 10
REMEMBERED = 50
# Telling needs storage and the driver, and either may be what hangs.
TELLING_S = 20.0


class Saves:
    """Whether checkpoints are being written, for watchdogs: ranks wait for the one that writes. Here, a process alone."""

    def note(self, writing: bool) -> None:
        """This process begins to write a checkpoint, or has written it."""

    def ago(self) -> float:
        """Seconds since another process was writing one: 0 for now, infinite for never."""
        return math.inf


class Watchdog:
    """Watches the batches of a process, from the first one on; writes `stacks/rank-<r>.txt` into the run, once a stall.

    Then it calls `stalled`. A rank that waits for one that hangs stalls with it; the file that is missing names the latter.
    The time in which a checkpoint is written does not count: storage may be slow.
    """

    def __init__(
        self,
        run: str,
        rank: int,
        stall_s: float,
        stalled: Callable[[], None] = lambda: None,
        writes: Callable[[], bool] = lambda: False,
        saves: Saves | None = None,
    ) -> None:
        """Makes a watchdog that does not watch yet.

        Args:
            run: its directory.
            rank: of this process.
            stall_s: seconds without a batch that are a stall.
            stalled: called after a stall was told.
            writes: whether this process is writing a checkpoint.
            saves: the same of the others.
        """
        self.path, self.rank = storage.join(run, "stacks", f"rank-{rank}.txt"), rank
        self.stall_s, self.stalled = stall_s, stalled
        self.writes, self.saves = writes, saves or Saves()
        self.durations: deque[float] = deque(maxlen=REMEMBERED)
        self.beaten: float | None = None
        # When a checkpoint was last being written, as far as this process knows.
        self.written, self.noted = -math.inf, False
        self.told, self.waits = False, False
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
        self.beaten, self.told, self.waits = now, False, False

    def close(self) -> None:
        """Ends watching."""
        self.ended.set()
        if self.thread.is_alive():
            self.thread.join()

    @property
    def limit_s(self) -> float:
        """Seconds without a batch that are too many."""
        usual = statistics.median(list(self.durations)) if self.durations else 0.0
        return max(self.stall_s, TIMES_MEDIAN * usual)

    def _watch(self) -> None:
        while not self.ended.wait(min(1.0, self.stall_s / 10)):
            self._note_writing()
            if self.beaten is None or self.told:
                continue
            if self._silent() <= self.limit_s:
                continue
            self.written = max(self.written, time.monotonic() - self.saves.ago())
            silent = self._silent()
            if silent > self.limit_s:
                self.told = True
                teller = threading.Thread(target=self._tell, args=(silent,), daemon=True)
                teller.start()
                teller.join(TELLING_S)
                self.stalled()

    def _note_writing(self) -> None:
        """Tells the others when this process begins and ends to write, and once that training waits for it."""
        writing = self.writes()
        if writing != self.noted:
            self.noted = writing
            self.saves.note(writing)
        if not writing:
            return
        self.written = time.monotonic()
        if self.beaten is not None and self.written - self.beaten > self.limit_s and not self.waits:
            self.waits = True
            logger.warning(
                f"no batch for {self.written - self.beaten:.0f} s: training waits for a checkpoint to be written"
            )

    def _silent(self) -> float:
        """Seconds in which neither a batch has begun nor a checkpoint was being written."""
        return time.monotonic() - max(self.beaten or 0.0, self.written)

    def _tell(self, silent: float) -> None:
        with tempfile.TemporaryFile("w+") as file:
            faulthandler.dump_traceback(file)
            file.seek(0)
            text = file.read()
        logger.warning(
            f"rank {self.rank} has begun no batch for {silent:.0f} s; where its threads stand: {self.path}"
        )
        try:
            storage.write_text(self.path, text)
        except StorageError as error:
            logger.warning(f"{error.what}\n{text}")
