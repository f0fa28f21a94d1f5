"""Trains several folds of a cross-validation at the same time, as many as the cluster holds.

    train_at_once(work)

Each fold is a run of its own, in a thread of this process. One further thread starts the folds and
hears of their ends, and it alone changes what is known of them. The main thread waits for signals.
"""

from __future__ import annotations

import logging
import queue
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from raytrain.distributed.messages import Stop, interruptible
from raytrain.errors import (
    Interrupted,
    NoRoomError,
    RaytrainError,
    StorageError,
    UnfinishedError,
)
from raytrain.log import duration, labelled

logger = logging.getLogger(__name__)

# Seconds between two questions how many folds fit now, while none ends.
ASK_EVERY_S = 10.0
# Seconds that the threads of the folds may take to end at once.
ENDING_S = 30.0
# Seconds between two looks for groups that have to end.
LOOK_EVERY_S = 0.5
# How a fold ends that is asked to stop: with a checkpoint, before its first step, without a place.
STOPS = UnfinishedError | Interrupted | NoRoomError


@dataclass(frozen=True)
class Fold:
    """A fold that is trained.

    Attributes:
        split: name of its split.
        run: name of its run.
        number: from 1.
        of: number of all folds.
    """

    split: str
    run: str
    number: int
    of: int

    def __str__(self) -> str:
        return f"fold {self.number} of {self.of}"

    @property
    def label(self) -> str:
        """What each line of its run begins with, where others train at the same time."""
        return f"fold {self.number}: "


@dataclass(frozen=True)
class Work:
    """The folds that are left, and what is done with them.

    Attributes:
        folds: in the order in which they start.
        train: trains a fold to its end. Called in a thread for each fold.
        at_once: how many folds fit, at least 1. A cluster may grow, so it is asked again and again.
        done: called for each fold that is complete, for one at a time.
        end_groups: ends the worker groups of all folds at once, whose `train` then raises an error.
        began: when the first fold of the command was started, by `time.monotonic()`.
    """

    folds: Sequence[Fold]
    train: Callable[[Fold, Stop], None]
    at_once: Callable[[], int]
    done: Callable[[Fold], None]
    end_groups: Callable[[], None]
    began: float


def train_at_once(work: Work) -> None:
    """Trains all folds, as many at once as fit.

    Raises:
        UnfinishedError: a signal stopped the folds, which have written checkpoints.
        Interrupted: a signal stopped them before their first steps, or a second signal came.
        BaseException: what the first fold that failed has raised. Those that ran have ended.
    """
    crew = _Crew(work)
    try:
        interruptible(crew.run, crew.deliver)
    except BaseException as error:
        crew.end_at_once(error.number if isinstance(error, Interrupted) else signal.SIGTERM)
        raise


class _Crew:
    """The folds that wait, those that run, and how the others have ended."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.waiting = list(work.folds)
        # The folds that run, and when each was started (time.monotonic).
        self.running: dict[Fold, float] = {}
        # Seconds that each complete fold has taken.
        self.took: list[float] = []
        # (fold, error) of each fold that has ended; None where it is complete.
        self.ended: queue.SimpleQueue[tuple[Fold, BaseException | None]] = queue.SimpleQueue()
        # The name of the first signal.
        self.reason: str | None = None
        # What each fold has raised that this signal has stopped.
        self.stops: dict[Fold, BaseException] = {}
        # What the first fold that failed has raised.
        self.error: BaseException | None = None
        # How many folds found room when one of them found none. Unknown again once a fold ends.
        self.room: int | None = None
        # The number of the signal that ends all at once.
        self.number: int | None = None
        self.threads: list[threading.Thread] = []

    def run(self) -> None:
        """Starts folds and waits for their ends until none is left. Raises as `train_at_once`."""
        self._start_what_fits()
        while self.running:
            try:
                fold, error = self.ended.get(timeout=ASK_EVERY_S)
            except queue.Empty:
                pass
            else:
                self._end(fold, error)
            self._start_what_fits()
        if self.error is not None:
            raise self.error
        if self.reason is not None and (self.waiting or self.stops):
            raise self._stopped(signal.Signals[self.reason])

    def deliver(self, name: str) -> bool:
        """Asks the folds that run to stop. The main thread calls it, again and again.

        Args:
            name: of the first signal.

        Returns:
            That `run` will end by itself.
        """
        if self.reason is None:
            self.reason = name
            logger.info(
                f"{name}: each fold that runs writes a checkpoint after its next step and stops, "
                "and no other starts; once more stops all at once"
            )
        return True

    def end_at_once(self, number: int) -> None:
        """Ends the folds that run, where they are. The main thread calls it.

        Their threads end before the session does, after which none may use Ray.

        Args:
            number: of the signal that is the reason.
        """
        self.number = number
        deadline = time.monotonic() + ENDING_S
        for thread in self.threads:
            while thread.is_alive() and time.monotonic() < deadline:
                # Repeatedly: a thread may only just start its group.
                self.work.end_groups()
                thread.join(LOOK_EVERY_S)

    def _start_what_fits(self) -> None:
        """Starts as many of the waiting folds as fit now."""
        if not self.waiting or self.error is not None:
            return
        if self.reason is not None or self.number is not None:
            return
        at_once = self.work.at_once()
        if self.room is not None:
            at_once = min(at_once, self.room)
        while self.waiting and len(self.running) < at_once:
            fold = self.waiting.pop(0)
            logger.info(f"{fold}: {fold.run}")
            self.running[fold] = time.monotonic()
            thread = threading.Thread(target=self._train, args=(fold,), daemon=True)
            self.threads.append(thread)
            thread.start()

    def _train(self, fold: Fold) -> None:
        """Trains a fold in a thread of its own."""
        error = None
        stop = Stop(reason=lambda: self.reason, number=lambda: self.number)
        try:
            with labelled(fold.label):
                self.work.train(fold, stop)
        except BaseException as raised:
            error = raised
        self.ended.put((fold, error))

    def _end(self, fold: Fold, error: BaseException | None) -> None:
        """Notes how a fold has ended."""
        began = self.running.pop(fold)
        is_crowded = isinstance(error, NoRoomError) and bool(self.running)
        self.room = None
        if error is None:
            self._complete(fold, time.monotonic() - began)
        elif self.reason is not None and isinstance(error, STOPS):
            self.stops[fold] = error
        elif is_crowded:
            # Others use the cluster as well. Fewer folds than fit into all of it get on.
            self.room = len(self.running)
            self.waiting.insert(0, fold)
            logger.info(f"{fold} found no room in the cluster: it waits until another fold ends")
        else:
            self._fail(fold, error)

    def _complete(self, fold: Fold, seconds: float) -> None:
        self.took.append(seconds)
        try:
            self.work.done(fold)
        except StorageError as error:
            # The other folds may still be able to write their checkpoints.
            self._fail(fold, error)
            return
        logger.info(
            f"{fold} is done, {duration(time.monotonic() - self.work.began)} after the start, "
            f"{duration(self._to_go_s())} to go"
        )

    def _to_go_s(self) -> float:
        now = time.monotonic()
        return seconds_to_go(
            each=sum(self.took) / len(self.took),
            running=[now - began for began in self.running.values()],
            waiting=len(self.waiting),
            at_once=self.work.at_once(),
        )

    def _fail(self, fold: Fold, error: BaseException) -> None:
        """Notes a failure. The folds that run go on, since what they train is not in vain."""
        if self.error is None:
            self.error = error
        if not self.running or self.reason is not None:
            return
        others = "the other fold that runs goes on to its end"
        if len(self.running) > 1:
            others = f"the {len(self.running)} other folds that run go on to their ends"
        logger.warning(f"{fold} failed: {_in_a_line(error)}; {others}, and no further one starts")

    def _stopped(self, number: signal.Signals) -> UnfinishedError | Interrupted:
        """The error of folds that a first signal has stopped."""
        kept = [fold for fold, error in self.stops.items() if isinstance(error, UnfinishedError)]
        if self.stops and not kept:
            return Interrupted(number)
        what = f"stopped by {number.name}, with everything kept"
        if kept:
            kept.sort(key=lambda fold: fold.number)
            what += f" in the checkpoints of {', '.join(fold.run for fold in kept)}"
        return UnfinishedError(what)


def seconds_to_go(each: float, running: Sequence[float], waiting: int, at_once: int) -> float:
    """Returns the seconds until the last fold ends, if all take the same time.

    Args:
        each: seconds that a fold takes.
        running: seconds that each fold runs already.
        waiting: number of folds that wait.
        at_once: how many train at once. Those that wait start as others end.
    """
    # When each place is free, in seconds from now.
    free = [max(0.0, each - seconds) for seconds in running]
    free += [0.0] * (at_once - len(free))
    for _ in range(waiting):
        place = free.index(min(free))
        free[place] += each
    return max(free)


def _in_a_line(error: BaseException) -> str:
    """What is wrong, in a line."""
    if isinstance(error, RaytrainError):
        return error.what
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    if any(line.startswith("Traceback") for line in lines):
        # Ray's errors hold the traceback of a worker, whose last line is the error there.
        return lines[-1]
    return f"{type(error).__name__}: {lines[0]}"
