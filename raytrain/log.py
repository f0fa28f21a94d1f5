"""The package's messages: they go through the standard logger `raytrain` and its children.

Each module has its own child logger. INFO is progress; WARNING is what the user may have to act on.
The command line prints both as they arrive. A program that imports raytrain configures the logger
as it likes. In a group of workers, only rank 0 reports progress. Threads that train at the same
time give their messages a label each.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

ROOT = logging.getLogger("raytrain")
# Pass this as `extra` of a message that every rank shall send, not only rank 0.
EVERY_RANK = {"every_rank": True}
# What each line of the current thread begins with. A new thread begins without a label.
_LABEL: ContextVar[str] = ContextVar("label", default="")


class _Handler(logging.Handler):
    """Passes the level and the text of each message to a function. Its errors are not swallowed."""

    def __init__(self, function: Callable[[int, str], None]) -> None:
        super().__init__()
        self.function = function

    def emit(self, record: logging.LogRecord) -> None:
        # logging.StreamHandler would catch the error of a closed output and print a traceback.
        # Here the error reaches the command, which ends quietly.
        self.function(record.levelno, _with_label(record.getMessage()))


def _with_label(text: str) -> str:
    """The text with the label of this thread before each of its lines."""
    label = _LABEL.get()
    return label + text.replace("\n", f"\n{label}")


@contextmanager
def labelled(label: str) -> Iterator[None]:
    """Puts a label such as `fold 2: ` before each line of what this thread says."""
    before = _LABEL.set(label)
    try:
        yield
    finally:
        _LABEL.reset(before)


def current_label() -> str:
    """Returns the label of this thread, for a thread that speaks for it; empty if there is none."""
    return _LABEL.get()


@contextmanager
def printed() -> Iterator[None]:
    """Prints all messages to standard output. Loggers above `raytrain` do not get them."""

    def print_now(text: str) -> None:
        # Flushed, since standard output is often a pipe, which Python buffers in blocks.
        print(text, flush=True)

    propagate = ROOT.propagate
    ROOT.propagate = False
    try:
        with heard(print_now):
            yield
    finally:
        ROOT.propagate = propagate


@contextmanager
def heard(function: Callable[[str], None]) -> Iterator[None]:
    """Passes the text of each message to a function, in addition to the other handlers."""

    def pass_text(level: int, text: str) -> None:
        function(text)

    handler = _Handler(pass_text)
    level = ROOT.level
    ROOT.addHandler(handler)
    ROOT.setLevel(logging.INFO)
    try:
        yield
    finally:
        ROOT.removeHandler(handler)
        ROOT.setLevel(level)


@contextmanager
def collected() -> Iterator[list[str]]:
    """Yields a list to which the text of each message is appended."""
    texts: list[str] = []
    with heard(texts.append):
        yield texts


@contextmanager
def only(logger_name: str) -> Iterator[None]:
    """Hides progress of all loggers except one and its children, such as "raytrain.bench".

    Warnings of all loggers stay. Handlers that are added later get every message.
    """

    def passes(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or record.name.startswith(logger_name)

    # A filter of the logger itself would not see the records of its children, so each handler
    # gets one (https://docs.python.org/3/library/logging.html#filter-objects).
    handlers = list(ROOT.handlers)
    for handler in handlers:
        handler.addFilter(passes)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(passes)


def send_messages(send: Callable[[int, str], None], rank: int) -> None:
    """Sends all further messages of this worker process through a function, and nowhere else.

    Ranks above 0 send only warnings and messages with `EVERY_RANK`, since their progress repeats
    that of rank 0.

    Args:
        send: called with the level and the text of each message.
        rank: of this worker.
    """

    def is_sent(record: logging.LogRecord) -> bool:
        return rank == 0 or record.levelno >= logging.WARNING or hasattr(record, "every_rank")

    handler = _Handler(send)
    handler.addFilter(is_sent)
    ROOT.addHandler(handler)
    ROOT.setLevel(logging.INFO)
    ROOT.propagate = False


def duration(seconds: float) -> str:
    """Returns a number of seconds as text, such as 0:07 or 1:02:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minute:02}:{second:02}"
    return f"{minute}:{second:02}"
