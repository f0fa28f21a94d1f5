"""Messages and progress go through the standard logger `raytrain` and its children, one for each module.

INFO is progress, WARNING is what a person may have to act on. The command line prints both as they come; a program that
imports raytrain sets the logger up as it likes. In a group of workers, rank 0 speaks for all of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ROOT = logging.getLogger("raytrain")
# `extra` of a message that every rank passes on, not rank 0 alone.
EVERY_RANK = {"every_rank": True}


class _Handler(logging.Handler):
    """Gives the level and the text of each message to a function, whose errors are not swallowed."""

    def __init__(self, function: Callable[[int, str], None]) -> None:
        super().__init__()
        self.function = function

    def emit(self, record: logging.LogRecord) -> None:
        # Not `logging.StreamHandler`: it would print a traceback where nobody reads the output any more.
        self.function(record.levelno, record.getMessage())


@contextmanager
def printed() -> Iterator[None]:
    """Prints the messages to standard output, and gives them to nobody above this logger."""
    propagated, ROOT.propagate = ROOT.propagate, False
    try:
        with heard(lambda text: print(text, flush=True)):
            yield
    finally:
        ROOT.propagate = propagated


@contextmanager
def heard(function: Callable[[str], None]) -> Iterator[None]:
    """Gives the text of each message to a function too."""
    handler = _Handler(lambda level, text: function(text))
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
    """Gathers the texts of the messages in a list."""
    texts: list[str] = []
    with heard(texts.append):
        yield texts


@contextmanager
def only(room: str) -> Iterator[None]:
    """Leaves out progress from outside a room, such as "raytrain.bench"; warnings stay. Handlers added later hear all."""

    def passes(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or record.name.startswith(room)

    handlers = list(ROOT.handlers)
    for handler in handlers:
        handler.addFilter(passes)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(passes)


def send_messages(send: Callable[[int, str], None], rank: int) -> None:
    """Gives the messages of this worker process, from now on, to a function (level, text).

    Of the ranks above 0 only warnings and messages with `EVERY_RANK` are sent: the others say what rank 0 says.
    """

    def is_sent(record: logging.LogRecord) -> bool:
        return rank == 0 or record.levelno >= logging.WARNING or hasattr(record, "every_rank")

    handler = _Handler(send)
    handler.addFilter(is_sent)
    ROOT.addHandler(handler)
    ROOT.setLevel(logging.INFO)
    ROOT.propagate = False


def duration(seconds: float) -> str:
    """Seconds as 0:07 or 1:02:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
