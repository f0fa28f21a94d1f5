"""The bytes of picture files, or why one cannot be read: how ingest and predict read. No torch, no ray."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from raytrain import storage
from raytrain.data.images import MAX_BYTES, BadImage
from raytrain.errors import StorageError

REQUESTS = 32  # to an object store at a time, for each process


def contents(paths: Sequence[str]) -> Iterator[bytes | BadImage]:
    """The files one after the other; from an object store several at once.

    Of a file that is too large as much is read as shows it.

    Args:
        paths: paths or URIs, all local or all of one store.

    Yields:
        The bytes; or BadImage of kind missing, or of kind unreadable with the error as its cause.
    """
    if not storage.is_uri(paths[0]):
        yield from map(_content, paths)
        return
    with ThreadPoolExecutor(REQUESTS) as pool:
        for start in range(0, len(paths), REQUESTS):  # a window bounds the memory
            yield from pool.map(_content, paths[start : start + REQUESTS])


def _content(path: str) -> bytes | BadImage:
    try:
        if not storage.is_uri(path) and not stat.S_ISREG(os.stat(path).st_mode):
            return BadImage("unreadable", "it is a folder, a pipe, a socket or a device")
        return storage.read_bytes(path, MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return BadImage("missing", "no such file")
    except OSError as error:  # of this path alone: a link to itself, a name that is too long, a folder that is closed
        return BadImage("unreadable", error.strerror or str(error))
    except StorageError as error:
        bad = BadImage("unreadable", str(error).split("\n")[0])
        bad.__cause__ = error
        return bad


def trouble(bad: Sequence[BadImage], files: int) -> BaseException | None:
    """The error that made every one of several files unreadable: then it is the disk or the store, and not the files.

    Args:
        bad: of the files that cannot be used.
        files: that were tried.
    """
    causes = [error.__cause__ for error in bad if error.__cause__ is not None]
    return causes[0] if len(causes) == files > 1 else None
