"""What a command prints: without the keys of URIs, and whatever becomes of those who read it."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from typing import Any

from raytrain.errors import StorageError, masked

# A pipe without a reader; a terminal that was closed.
NOBODY_READS = (errno.EPIPE, errno.EIO)


class ReaderLeft(Exception):
    """Nobody reads the output any more. No OSError: what handles errors of files must not take it for one."""


class Output:
    """A stream that leaves out the keys of URIs and knows when its reader has left."""

    def __init__(self, stream: Any, *, outlives: bool = False) -> None:
        """Wraps a text stream.

        Args:
            stream: such as sys.stdout.
            outlives: whether the command goes on without a reader; `outlive_reader` sets it later.
        """
        self._stream, self.outlives = stream, outlives

    def write(self, text: str) -> int:
        """As that of the stream.

        Raises:
            ReaderLeft: nobody reads, and the command is not to go on without.
            StorageError: the output is a file that cannot be written.
        """
        # A name that is not UTF-8 is a surrogate here, which no stream takes.
        printable = masked(text).encode("utf-8", "backslashreplace").decode()
        try:
            self._stream.write(printable)
        except OSError as error:
            self._failed(error)
        return len(text)

    def flush(self) -> None:
        """As that of the stream; raises as `write`."""
        try:
            self._stream.flush()
        except OSError as error:
            self._failed(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _failed(self, error: OSError) -> None:
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
        """From here on the stream writes to nowhere: it must not fail again, not even while Python ends."""
        with suppress(OSError, ValueError):  # a stream without a file descriptor
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


def outlive_reader() -> None:
    """From here on the command goes on where the reader of its output leaves: what it does must not be lost."""
    if isinstance(sys.stdout, Output):
        sys.stdout.outlives = True


def open_closed_streams() -> None:
    """Gives the process an output to nowhere where its caller has closed the descriptor, as the shell's `>&-` does."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
