"""Reads the bytes of picture files for ingest and predict. Imports neither torch nor ray."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from raytrain import storage
from raytrain.data.images import MAX_BYTES, BadImage
from raytrain.errors import StorageError

# Requests to an object store at a time, for each process.
REQUESTS = 32


def contents(paths: Sequence[str]) -> Iterator[bytes | BadImage]:
    """Reads files one after the other; from an object store several at once.

    A file that is too large is read only as far as needed to see that.

    Args:
        paths: paths or URIs, at least one, all local or all of one store.

    Yields:
        The bytes, in the order of the paths. For a file that cannot be read a BadImage of kind
        missing, or of kind unreadable; its `__cause__` is the error of the disk or store, if any.
    """
    if not storage.is_uri(paths[0]):
        yield from map(_content, paths)
        return
    with ThreadPoolExecutor(REQUESTS) as pool:
        # A window at a time: pool.map would read everything ahead into memory.
        for start in range(0, len(paths), REQUESTS):
            yield from pool.map(_content, paths[start : start + REQUESTS])


def _content(path: str) -> bytes | BadImage:
    try:
        if not storage.is_uri(path) and not stat.S_ISREG(os.stat(path).st_mode):
            return BadImage("unreadable", "it is a folder, a pipe, a socket or a device")
        # One byte more than allowed, so that the gate sees that it is too large.
        return storage.read_bytes(path, MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return BadImage("missing", "no such file")
    except OSError as error:
        # Of this path alone: a link to itself, a name that is too long, a folder without access.
        return BadImage("unreadable", error.strerror or str(error))
    except StorageError as error:
        bad = BadImage("unreadable", str(error).split("\n")[0])
        bad.__cause__ = error
        return bad


def trouble(bad: Sequence[BadImage], files: int) -> BaseException | None:
    """Returns the error of a broken disk or store, as opposed to single bad files.

    The disk or store is taken for broken where it made every one of several files unreadable.

    Args:
        bad: one for each file that cannot be used.
        files: number of files that were tried.
    """
    causes = [error.__cause__ for error in bad if error.__cause__ is not None]
    if files > 1 and len(causes) == files:
        return causes[0]
    return None
