"""Watches for a process that hangs: when no batch has begun for long it tells where each thread stands, and acts."""

from __future__ import annotations

import faulthandler
import statistics
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable

from raytrain import storage
from raytrain.errors import StorageError

# No batch for so many times as long as batches take, and at least for train.stall_s.
TIMES_MEDIAN = 10
REMEMBERED = 50
# Telling needs storage and the driver, and either may be what hangs.
TELLING_S = 20.0


class Watchdog:
    """Watches the batches of a process, from the first one on; writes `stacks/rank-<r>.txt` into the run, once a stall.

    Then it calls `stalled`. A rank that waits for one that hangs stalls with it; the file that is missing names the latter.
    """

    def __init__(
        self, run: str, rank: int, stall_s: float, say: Callable[[str], None],
        stalled: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self.place, self.rank = storage.join(run, "stacks", f"rank-{rank}.txt"), rank
        self.stall_s, self.say, self.stalled = stall_s, say, stalled
        self.durations: deque[float] = deque(maxlen=REMEMBERED)
        self.beaten: float | None = None
        self.told = False
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
        self.beaten, self.told = now, False

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
            if self.beaten is None or self.told:
                continue
            silent = time.monotonic() - self.beaten
            if silent > self.limit_s:
                self.told = True
                teller = threading.Thread(target=self._tell, args=(silent,), daemon=True)
                teller.start()
                teller.join(TELLING_S)
                self.stalled()

    def _tell(self, silent: float) -> None:
        with tempfile.TemporaryFile("w+") as file:
            faulthandler.dump_traceback(file)
            file.seek(0)
            text = file.read()
        self.say(f"rank {self.rank} has begun no batch for {silent:.0f} s; where its threads stand: {self.place}")
        try:
            storage.write_text(self.place, text)
        except StorageError as error:
            self.say(f"{error.what}\n{text}")
