"""Files on this machine or in an object store, through pyarrow.fs; small writes are atomic.

A place is a local path or a URI that `pyarrow.fs.FileSystem.from_uri` understands (s3://, gs://, abfs://, file://).
Imports neither torch nor ray.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs

from raytrain.errors import MASK, StorageError, masked

UPLOAD_BYTES = 8 * 2**20


def is_uri(path: str) -> bool:
    """True for `scheme://...`, except file://, which is a local path."""
    return "://" in path and not path.startswith("file://")


def absolute(path: str) -> str:
    """A place that means the same in every process: local paths made absolute, URIs as they are.

    Ray workers run in another directory, and Ray refuses relative storage paths late and badly.
    """
    if is_uri(path):
        return path.rstrip("/")
    local = Path(path.removeprefix("file://"))
    with suppress(RuntimeError):  # ~NAME where there is no such user: a file may be called so
        local = local.expanduser()
    return str(local.absolute())


def join(path: str, *parts: str) -> str:
    """`place/part/...`; the query of a URI (`?region=...`) stays at its end."""
    base, mark, query = _without_query(path)
    return "/".join([base.rstrip("/"), *parts]) + mark + query


def name_of(path: str) -> str:
    """The last component of a place."""
    return _without_query(path)[0].rstrip("/").rsplit("/", 1)[-1]


def parent(path: str) -> str:
    """The directory of a place; the query of a URI stays at its end."""
    base, mark, query = _without_query(path)
    return base.rstrip("/").rsplit("/", 1)[0] + mark + query


def _without_query(path: str) -> tuple[str, str, str]:
    """(base, "?", query) of a URI; a local path may hold a question mark of its own."""
    return path.partition("?") if is_uri(path) else (path, "", "")


def filesystem(path: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow file system of a place and the path inside it.

    Raises:
        StorageError: a scheme that pyarrow does not know.
    """
    if not is_uri(path):
        return pafs.LocalFileSystem(), absolute(path)
    # Read from a file, where keys are never written: the environment's.
    path = path.replace(f"://{MASK}@", "://")
    try:
        if path.startswith(("s3://", "gs://")):
            base, mark, query = _without_query(path)
            scheme, _, inner = base.partition("://")
            store, _, rest = inner.partition("/")
            fs, bucket = _store(f"{scheme}://{store}{mark}{query}")
            return fs, f"{bucket}/{unquote(rest)}".rstrip("/")
        found: tuple[pafs.FileSystem, str] = pafs.FileSystem.from_uri(path)
        return found
    except (pa.ArrowException, OSError, ValueError) as error:
        raise StorageError(
            f"{path} cannot be opened: {error}",
            "only local paths, s3://, gs:// and abfs:// are understood",
            "give a local path or one of these URIs",
        ) from None


def with_keys_of(path: str, other: str) -> str:
    """A place whose keys were left out when it was written, with those of another place, if that has any."""
    keys = re.match(r"[^:/]+://([^/@\s]+:[^/@\s]+)@", other)
    return path.replace(f"://{MASK}@", f"://{keys[1]}@") if keys else path


@cache
def _store(uri: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a bucket and the bucket's name: one for all its objects, since each has connections of its own."""
    found: tuple[pafs.FileSystem, str] = pafs.FileSystem.from_uri(uri)
    return found


@contextmanager
def failures(doing: str, path: str) -> Iterator[None]:
    """Turns the errors of file systems into a StorageError; a file missing when read stays FileNotFoundError."""
    try:
        yield
    except OSError as error:
        if doing == "read" and isinstance(error, FileNotFoundError | NotADirectoryError):
            raise FileNotFoundError(error.errno, error.strerror, path) from None
        raise StorageError(
            f"cannot {doing} {path}: {error.strerror or error}",
            "nothing that was there before has been changed",
            "check the permissions and the free space (df -h), or give another --storage or --out",
        ) from None


def exists(path: str) -> bool:
    """True if there is a file or directory."""
    with failures("look at", path):
        fs, inner = filesystem(path)
        return bool(fs.get_file_info(inner).type != pafs.FileType.NotFound)


def names(path: str, *, directories: bool = False) -> list[str]:
    """Sorted names of the files (or directories) directly inside a directory; empty if it does not exist."""
    with failures("list", path):
        fs, inner = filesystem(path)
        wanted = pafs.FileType.Directory if directories else pafs.FileType.File
        infos = fs.get_file_info(pafs.FileSelector(inner, allow_not_found=True))
        return sorted(info.base_name for info in infos if info.type == wanted)


@dataclass(frozen=True)
class File:
    """A file that `files` found: path below the directory with `/`, size in bytes, time of change in ns."""

    path: str
    size: int
    mtime_ns: int


def files(path: str, *, recursive: bool = False) -> list[File]:
    """The files inside a directory, sorted by path; empty if it does not exist. Nothing is opened."""
    with failures("list", path):
        fs, inner = filesystem(path)
        infos = fs.get_file_info(
            pafs.FileSelector(inner, allow_not_found=True, recursive=recursive)
        )
        found = [
            File(info.path.removeprefix(inner).strip("/"), info.size, info.mtime_ns or 0)
            for info in infos
            if info.type == pafs.FileType.File
        ]
        return sorted(found, key=lambda file: file.path)


def size(path: str) -> int:
    """Bytes of a file.

    Raises:
        FileNotFoundError: there is none.
    """
    with failures("read", path):
        fs, inner = filesystem(path)
        info = fs.get_file_info(inner)
        if info.type != pafs.FileType.File:
            raise FileNotFoundError(path)
        return int(info.size)


def read_bytes(path: str, most: int = -1) -> bytes:
    """The content of a file, or its first `most` bytes.

    Raises:
        FileNotFoundError: there is none.
        StorageError: it cannot be read.
    """
    with failures("read", path):
        if not is_uri(path):
            with open(absolute(path), "rb") as file:
                # read(n) would set n bytes aside, however small the file is. A file of /proc says that it has none.
                return file.read(
                    min(most, os.fstat(file.fileno()).st_size + 1) if most >= 0 else -1
                )
        fs, inner = filesystem(path)
        with fs.open_input_file(inner) as stream:
            content: bytes = stream.read(None if most < 0 else most)
        return content


def read_json(path: str) -> Any:
    """The parsed content of a JSON file."""
    return json.loads(read_bytes(path))


def make_dir(path: str) -> None:
    """Makes a directory and its parents."""
    with failures("make", path):
        fs, inner = filesystem(path)
        fs.create_dir(inner, recursive=True)


def write_bytes(path: str, content: bytes | memoryview, *, durable: bool = True) -> None:
    """Writes a whole file so that a reader sees the old content or the new, never a part.

    Locally: a temporary file beside it, fsync, rename, fsync of the directory. An object store's put is atomic.
    `durable=False` leaves the fsyncs out, for files that can be made again.

    Raises:
        StorageError: it cannot be written; what was there before is intact.
    """
    with failures("write", path):
        fs, inner = filesystem(path)
        if not isinstance(fs, pafs.LocalFileSystem):
            with fs.open_output_stream(inner) as stream:
                stream.write(content)
            return
        target = Path(inner)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
        if durable:
            sync_directory(target.parent)


def write_text(path: str, content: str) -> None:
    """`write_bytes` of UTF-8 text, without the keys that URIs in it may hold."""
    write_bytes(path, masked(content).encode())


def written(path: Path, write: Callable[[Path], Any]) -> str:
    """Writes a new local file by a function and waits until it survives a power cut. Returns its sha256.

    For large content that shall not lie in memory twice. The hash is taken from the file, which is in the page cache yet.

    Raises:
        StorageError: it cannot be written; a part of it may be there.
    """
    with failures("write", str(path)):
        try:
            write(path)
        except Exception as error:
            raise _as_os_error(error) from error
        with path.open("rb") as file:
            os.fsync(file.fileno())
            return hashlib.file_digest(file, "sha256").hexdigest()


def _as_os_error(error: BaseException) -> BaseException:
    """The error of the file system that a library's own error came from; the error itself where there is none."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return error


def linked(source: Path, target: Path) -> bool:
    """Makes a hard link to a local file. Returns False where the file system has none."""
    try:
        os.link(source, target)
        return True
    except OSError:
        return False


def upload_file(source: Path, target: str) -> None:
    """Copies a local file into an object store, in parts."""
    with failures("write", target), source.open("rb") as file:
        fs, path = filesystem(target)
        with fs.open_output_stream(path) as stream:
            shutil.copyfileobj(file, stream, UPLOAD_BYTES)


def append_text(path: str, content: str, *, durable: bool) -> None:
    """Adds UTF-8 text, without the keys that URIs in it may hold, to a local file that exists.

    A crash may leave a part of it. `durable` waits until it survives a power cut.

    Raises:
        StorageError: it cannot be written.
    """
    with failures("write", path), open(absolute(path), "ab") as file:
        file.write(masked(content).encode())
        file.flush()
        if durable:
            os.fsync(file.fileno())


def write_json(path: str, content: Any) -> None:
    """`write_bytes` of indented JSON; NaN and infinity are refused, since JSON has none."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


@contextmanager
def locked(path: str, doing: str) -> Iterator[None]:
    """Lets one process at a time work in a local directory, which exists; the lock ends with the process.

    An object store has no locks: there nothing is checked.

    Raises:
        StorageError: another process holds it.
    """
    if is_uri(path):
        yield
        return
    with failures("open", path):
        handle = os.open(absolute(path), os.O_RDONLY)
    try:
        if not _lock(handle, absolute(path)):
            raise StorageError(
                f"another process {doing} {path}",
                "two would write the same files",
                "wait for its end, then try again",
            )
        yield
    finally:
        os.close(handle)


def _lock(handle: int, path: str) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The one who held it may have renamed the directory between our opening and locking it.
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except (BlockingIOError, FileNotFoundError):
        return False


def sync_directory(directory: Path) -> None:
    """Makes renames inside a local directory survive a power cut."""
    with failures("write", str(directory)):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove(path: str) -> None:
    """Removes a directory or a file; nothing happens where there is none."""
    with failures("remove", path):
        fs, inner = filesystem(path)
        kind = fs.get_file_info(inner).type
        if kind == pafs.FileType.Directory:
            fs.delete_dir(inner)
        elif kind == pafs.FileType.File:
            fs.delete_file(inner)


def move_directory(source: str, target: str) -> None:
    """Renames a local directory, atomically."""
    with failures("move", source):
        os.rename(absolute(source), absolute(target))
        sync_directory(Path(absolute(target)).parent)


def upload_directory(source: Path, target: str) -> None:
    """Copies the files of a local directory into a place, files with `MANIFEST` or `dataset.json` names last."""
    with failures("write", target):
        files = sorted(p for p in source.rglob("*") if p.is_file())
        for file in sorted(files, key=lambda p: p.name in ("MANIFEST.json", "dataset.json")):
            write_bytes(join(target, *file.relative_to(source).parts), file.read_bytes())


@contextmanager
def local_directory(path: str) -> Iterator[Path]:
    """A local directory to write into: the place itself, or a temporary one that is uploaded at the end."""
    if not is_uri(path):
        with failures("make", path):
            Path(absolute(path)).mkdir(parents=True, exist_ok=True)
        yield Path(absolute(path))
        return
    scratch = Path(tempfile.mkdtemp(prefix="raytrain-"))
    try:
        yield scratch
        upload_directory(scratch, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def probe(path: str) -> None:
    """Writes, reads and removes a small file, so that a bad storage path fails before any work is done.

    Raises:
        StorageError: one of the three did not work.
    """
    file = join(path, f".raytrain-probe-{uuid.uuid4().hex[:8]}")
    make_dir(path)
    write_bytes(file, b"probe")
    if read_bytes(file) != b"probe":
        raise StorageError(
            f"{path} does not return what was written",
            "checkpoints would be lost",
            "give another one",
        )
    remove(file)
