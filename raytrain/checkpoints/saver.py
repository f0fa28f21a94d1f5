"""Saves off the training thread: one at a time, often enough, and so seldom that training does not feel it."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from raytrain import storage
from raytrain.checkpoints import layout, writing
from raytrain.errors import ConfigError, StorageError

logger = logging.getLogger(__name__)


# Without train.save_every_s: seconds, or so many times what a save costs where that is longer.
LEAST_INTERVAL_S = 60.0
TIMES_COST = 50
# Checkpoints within an epoch that could not be written, one after the other, after which the run ends.
MOST_FAILURES = 3
WRITER = "writer.json"


class Saver:
    """Writes the checkpoints of a run. Every rank has one, rank 0 alone uses it."""

    def __init__(self, directory: str, every_s: float | None) -> None:
        """Opens a run's `checkpoints` folder.

        Args:
            directory: the folder; made by the first save.
            every_s: seconds between two saves within a stage; None: by what they cost.
        """
        self.directory, self.every_s = directory, every_s
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self.pending: Future[None] | None = None
        self.newest: Future[None] | None = None
        self.cost_s, self.failures = 0.0, 0
        self.within = False  # an epoch: what is being written
        self.best: writing.Snapshot | None = None  # not yet written
        self.best_in_save: writing.Snapshot | None = None  # the best that is being written
        self.token: str | None = None
        self.began = time.monotonic()

    @property
    def interval_s(self) -> float:
        """Seconds between two saves within a stage."""
        return (
            max(LEAST_INTERVAL_S, TIMES_COST * self.cost_s)
            if self.every_s is None
            else self.every_s
        )

    @property
    def writing(self) -> bool:
        """Whether a checkpoint is being written now; also while `wait` waits for it."""
        return self.newest is not None and not self.newest.done()

    def due(self) -> bool:
        """Whether it is time to save within a stage.

        Raises:
            DivergedError, StorageError: as `settle`.
        """
        if self.pending is not None and self.pending.done():
            self.settle()
        return self.pending is None and time.monotonic() - self.began >= self.interval_s

    def wait(self) -> None:
        """Returns when everything is written.

        Raises:
            DivergedError, StorageError: of the save before.
        """
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()
            self.failures, self.best_in_save = 0, None

    def settle(self) -> None:
        """As `wait`, but goes on without a checkpoint within an epoch: older ones are intact, and storage may come back.

        Raises:
            DivergedError: of the save before.
            StorageError: it belonged to the end of an epoch, or is the third within epochs in a row.
        """
        try:
            self.wait()
        except StorageError as error:
            self.failures += 1
            if not self.within or self.failures == MOST_FAILURES:
                raise
            self.best, self.best_in_save = self.best or self.best_in_save, None
            logger.warning(
                f"no checkpoint: {error.what}; training goes on ({self.failures} of {MOST_FAILURES} in a row)"
            )

    def keep_best(self, state: writing.Snapshot) -> None:
        """Keeps the best epoch's weights in memory until the next save writes them first."""
        self.best = state

    def save(self, entries: Sequence[tuple[str, writing.Snapshot]], began: float) -> None:
        """Hands checkpoints to the thread, which writes them in their order, after the best that is kept if there is one.

        Args:
            entries: (name, state); what the first one holds must not be known only by the second.
            began: monotonic time at which the copying of the states began: it belongs to the cost.

        Raises:
            DivergedError, StorageError: as `settle`.
        """
        self.settle()
        self.began, self.within = began, entries[-1][0].startswith(layout.STEP)
        newer = dict(entries).get(layout.BEST)
        if newer is None and self.best is not None:
            entries = [(layout.BEST, self.best), *entries]
        self.best_in_save, self.best = newer or self.best, None
        self.pending = self.newest = self.thread.submit(self._write, entries)

    def claim(self) -> None:
        """Makes this process the one that writes the run, and removes what a killed save left half-written.

        Workers on a machine that was cut off are not dead when others take over: what they would write and remove later is
        refused.
        """
        self.token = uuid.uuid4().hex
        storage.write_json(self._writer, {"token": self.token})
        for name in storage.names(self.directory, directories=True):
            if name.endswith(".partial"):
                storage.remove(storage.join(self.directory, name))

    def close(self) -> None:
        """Ends the thread after what it is writing. Errors of it are for `wait`."""
        self.thread.shutdown()

    @property
    def _writer(self) -> str:
        return storage.join(storage.parent(self.directory), WRITER)

    def check_claim(self) -> None:
        """Refuses to write for workers that others have taken over from.

        Raises:
            ConfigError: they have.
        """
        try:
            writer = storage.read_json(self._writer)["token"] if self.token is not None else None
        except (
            FileNotFoundError
        ):  # somebody removed the run's directory; the next save makes it anew
            return
        if writer != self.token:
            raise ConfigError(
                f"other workers train {storage.name_of(storage.parent(self.directory))} by now",
                "these ones were cut off and taken for dead; they stop without writing",
                "",
            )

    def _write(self, entries: Sequence[tuple[str, writing.Snapshot]]) -> None:
        self.check_claim()
        step = int(entries[-1][1].meta["step"])
        written: list[tuple[str, writing.Snapshot]] = []
        for name, state in entries:
            path = storage.join(self.directory, name)
            if name == layout.LAST and storage.is_uri(self.directory):
                # Nothing can be renamed there: while `last` is written anew, the same state stands elsewhere.
                writing.write(storage.join(self.directory, layout.step_name(step)), state)
            twin = next((other for other, its in written if its.weights is state.weights), None)
            writing.write(path, state, twin)
            written.append((path, state))
        writing.thin(self.directory, step)
        self.cost_s = time.monotonic() - self.began
