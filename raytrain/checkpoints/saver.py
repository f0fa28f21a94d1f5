"""Writes the checkpoints of a run in a background thread, one save at a time.

Saves within a stage come often enough to lose little work, and seldom enough not to slow training.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from raytrain import storage
from raytrain.checkpoints import layout, writing
from raytrain.checkpoints.writing import Snapshot
from raytrain.errors import ConfigError, StorageError

logger = logging.getLogger(__name__)

# Without train.save_every_s, the interval is the longer of two: this many seconds,
LEAST_INTERVAL_S = 60.0
# or this many times the duration of a save.
TIMES_COST = 50
# The run ends after this many failed checkpoints within epochs in a row.
MOST_FAILURES = 3
# Names the process that writes the run, in the run directory.
WRITER = "writer.json"


class Saver:
    """Writes the checkpoints of a run. Every rank has one; only rank 0 uses it.

    Args:
        directory: the `checkpoints` folder of the run, made by the first save.
        every_s: seconds between two saves within a stage; None to derive them from the duration of
            a save.
    """

    def __init__(self, directory: str, every_s: float | None) -> None:
        self.directory = directory
        self.every_s = every_s
        # One thread, so that saves follow each other.
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="saver")
        # The save whose outcome nobody has looked at yet.
        self.pending: Future[None] | None = None
        # The last save that was begun. Unlike `pending`, it is known while `wait` waits for it.
        self.newest: Future[None] | None = None
        # Seconds that the last save took, including the copying of the state.
        self.cost_s = 0.0
        # Failed saves within epochs in a row.
        self.failures = 0
        # Whether the pending save is one within an epoch.
        self.within = False
        # The weights of the best epoch, if they are not written yet.
        self.best: Snapshot | None = None
        # The weights of the best epoch, if the pending save writes them.
        self.best_in_save: Snapshot | None = None
        # What `claim` has written into writer.json; None before.
        self.token: str | None = None
        # Monotonic time at which the last save began.
        self.began = time.monotonic()

    @property
    def interval_s(self) -> float:
        """Seconds between two saves within a stage."""
        if self.every_s is not None:
            return self.every_s
        return max(LEAST_INTERVAL_S, TIMES_COST * self.cost_s)

    @property
    def writing(self) -> bool:
        """Whether a checkpoint is being written now, also while `wait` waits for it."""
        return self.newest is not None and not self.newest.done()

    def due(self) -> bool:
        """Returns whether it is time to save within a stage.

        Raises:
            DivergedError, StorageError: as `settle`.
        """
        if self.pending is not None and self.pending.done():
            self.settle()
        return self.pending is None and time.monotonic() - self.began >= self.interval_s

    def wait(self) -> None:
        """Waits until everything is written.

        Raises:
            DivergedError, StorageError: from the last save.
        """
        pending = self.pending
        # Cleared first, so that an error is raised only once.
        self.pending = None
        if pending is None:
            return
        pending.result()
        self.failures = 0
        self.best_in_save = None

    def settle(self) -> None:
        """Waits until everything is written, and tolerates a failed checkpoint within an epoch.

        Training can continue then: older checkpoints are intact, and storage may recover.

        Raises:
            DivergedError: from the last save.
            StorageError: the failed save belonged to the end of an epoch, or was the third failure
                within epochs in a row.
        """
        try:
            self.wait()
        except StorageError as error:
            self.failures += 1
            if not self.within or self.failures == MOST_FAILURES:
                raise
            # The next save writes the best epoch again, unless there is a better one by now.
            if self.best is None:
                self.best = self.best_in_save
            self.best_in_save = None
            logger.warning(
                f"no checkpoint: {error.what}; training goes on "
                f"({self.failures} of {MOST_FAILURES} in a row)"
            )

    def keep_best(self, state: Snapshot) -> None:
        """Keeps the weights of the best epoch in memory. The next save writes them first."""
        self.best = state

    def save(self, entries: Sequence[tuple[str, Snapshot]], began: float) -> None:
        """Starts to write checkpoints in the background, in their order.

        If `keep_best` has kept the weights of the best epoch, these are written first.

        Args:
            entries: (name, state) of each checkpoint. After a crash between two of them, the first
                ones must be valid without the others.
            began: monotonic time at which the copying of the states began. The copying is part of
                the cost of a save.

        Raises:
            DivergedError, StorageError: as `settle`.
        """
        self.settle()
        self.began = began
        last_name, _ = entries[-1]
        self.within = last_name.startswith(layout.STEP)
        best = dict(entries).get(layout.BEST)
        if best is None and self.best is not None:
            best = self.best
            entries = [(layout.BEST, best), *entries]
        self.best_in_save = best
        self.best = None
        self.pending = self.thread.submit(self._write, entries)
        self.newest = self.pending

    def claim(self) -> None:
        """Makes this process the writer of the run. Removes what a killed save left unfinished.

        Workers on a machine that lost its connection may still be alive when others take over. Once
        these have claimed the run, the old ones can neither write nor remove checkpoints.
        """
        self.token = uuid.uuid4().hex
        storage.write_json(self._writer_path, {"token": self.token})
        for name in storage.names(self.directory, directories=True):
            if name.endswith(".partial"):
                storage.remove(storage.join(self.directory, name))

    def close(self) -> None:
        """Ends the thread after the current save. `wait` raises the errors of that save."""
        self.thread.shutdown()

    @property
    def _writer_path(self) -> str:
        return storage.join(storage.parent(self.directory), WRITER)

    def check_claim(self) -> None:
        """Checks that no other workers have taken over the run.

        Raises:
            ConfigError: they have.
        """
        writer = None
        if self.token is not None:
            try:
                writer = storage.read_json(self._writer_path)["token"]
            except FileNotFoundError:
                # Someone removed the run directory. The next save makes it anew.
                return
        if writer != self.token:
            raise ConfigError(
                f"other workers train {storage.name_of(storage.parent(self.directory))} by now",
                "these workers lost their connection and were replaced; they stop without writing",
                "",
            )

    def _write(self, entries: Sequence[tuple[str, Snapshot]]) -> None:
        """Writes checkpoints, in the background thread. `writing.write` says what may run there."""
        self.check_claim()
        step = int(entries[-1][1].meta["step"])
        written: list[tuple[str, Snapshot]] = []
        for name, state in entries:
            path = storage.join(self.directory, name)
            if name == layout.LAST and storage.is_uri(self.directory):
                # An object store cannot rename. While `last` is overwritten there, this second
                # checkpoint holds the same state.
                writing.write(storage.join(self.directory, layout.step_name(step)), state)
            writing.write(path, state, _twin(state, written))
            written.append((path, state))
        writing.thin(self.directory, step)
        self.cost_s = time.monotonic() - self.began


def _twin(state: Snapshot, written: list[tuple[str, Snapshot]]) -> str | None:
    """Returns the path of the first checkpoint written from the very same weights, if any."""
    for path, other in written:
        if other.weights is state.weights:
            return path
    return None
