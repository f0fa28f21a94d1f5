"""What a command prints: access keys are masked, and a reader that goes away is handled.

A command that only prints ends quietly when nobody reads its output any more. A command that does
work continues.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from typing import Any

from raytrain.errors import StorageError, masked

# Errors of a pipe whose reader has closed it, and of a terminal that was closed.
NOBODY_READS = (errno.EPIPE, errno.EIO)


class ReaderLeft(Exception):
    """Nobody reads the output any more.

    Not an OSError, so that code that handles errors of files does not catch it.
    """


class Output:
    """A text stream that masks the keys in URIs and notices that its reader is gone."""

    def __init__(self, stream: Any, *, outlives: bool = False) -> None:
        """Wraps a text stream.

        Args:
            stream: a text stream, such as sys.stdout.
            outlives: whether the command continues if writing fails; `outlive_reader` sets it.
        """
        self._stream = stream
        self.outlives = outlives

    def write(self, text: str) -> int:
        """Writes a text with its keys masked.

        Returns:
            The number of characters of the given text, as `io.TextIOBase.write` does.

        Raises:
            ReaderLeft: nobody reads the output, and the command shall end then.
            StorageError: the output is a file that cannot be written.
        """
        # A file name that is not UTF-8 arrives as surrogates, which no stream can encode.
        printable = masked(text).encode("utf-8", "backslashreplace").decode()
        try:
            self._stream.write(printable)
        except OSError as error:
            self._handle(error)
        return len(text)

    def flush(self) -> None:
        """Flushes the stream. Raises the same errors as `write`."""
        try:
            self._stream.flush()
        except OSError as error:
            self._handle(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _handle(self, error: OSError) -> None:
        nobody_reads = error.errno in NOBODY_READS
        if nobody_reads:
            self._discard()
        if self.outlives:
            return
        if nobody_reads:
            raise ReaderLeft from None
        self._discard()
        raise StorageError(
            f"the output cannot be written: {error.strerror}",
            "what this command prints would be lost",
            "free some space (df -h), or print elsewhere",
        ) from None

    def _discard(self) -> None:
        """Redirects the stream to /dev/null from now on.

        Python flushes the stream once more when it exits, and that must not fail again.
        """
        # A stream without a file descriptor raises here; io.StringIO is one.
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)


def outlive_reader() -> None:
    """From now on the command continues when the reader of its output is gone.

    A command calls it before it starts work that must not be lost.
    """
    # In a notebook or a test standard output is another stream, which is left alone.
    if isinstance(sys.stdout, Output):
        sys.stdout.outlives = True


def open_closed_streams() -> None:
    """Opens /dev/null as standard output or error where the caller has closed it (`>&-`).

    Python sets such a stream to None, which has no `write` or `flush`.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            null = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
            setattr(sys, name, null)
