"""Files on this machine or in an object store, read and written through pyarrow.fs.

A path here is a local path or a URI that `pyarrow.fs.FileSystem.from_uri` understands: s3://,
gs://, abfs:// or file://. `write_bytes` and the functions that use it are atomic: a reader sees the
old content or the new one, never a part. Imports neither torch nor ray.
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

# Bytes that `upload_file` copies at a time.
UPLOAD_BYTES = 8 * 2**20
# These files say that a checkpoint or a dataset is complete, so they are uploaded last.
WRITTEN_LAST = ("MANIFEST.json", "dataset.json")


# Paths


def is_uri(path: str) -> bool:
    """Returns whether a path is a URI of an object store. file:// is a local path."""
    return "://" in path and not path.startswith("file://")


def absolute(path: str | os.PathLike[str]) -> str:
    """Returns a path that means the same in every process: local paths absolute, URIs unchanged.

    Ray's workers run in another directory than the driver. Ray itself refuses relative storage
    paths, but late and with an unclear error.
    """
    path = os.fspath(path)
    if is_uri(path):
        return path.rstrip("/")
    local = Path(path.removeprefix("file://"))
    # Raised for ~NAME if there is no user NAME; then it is the name of a file.
    with suppress(RuntimeError):
        local = local.expanduser()
    return str(local.absolute())


def join(path: str, *parts: str) -> str:
    """Returns `path/part/...`. The query of a URI (`?region=...`) stays at the end."""
    base, query = _split_query(path)
    return "/".join([base.rstrip("/"), *parts]) + query


def name_of(path: str) -> str:
    """Returns the last component of a path."""
    base, _ = _split_query(path)
    return base.rstrip("/").rsplit("/", 1)[-1]


def parent(path: str) -> str:
    """Returns the directory that a path lies in. The query of a URI stays at the end."""
    base, query = _split_query(path)
    return base.rstrip("/").rsplit("/", 1)[0] + query


def _split_query(path: str) -> tuple[str, str]:
    """Returns a path without its query, and the query with its `?`, which may be empty."""
    # In a local path a question mark is a character like any other.
    if not is_uri(path):
        return path, ""
    base, mark, query = path.partition("?")
    return base, mark + query


def filesystem(path: str) -> tuple[pafs.FileSystem, str]:
    """Returns the pyarrow file system of a path, and the path inside that file system.

    Raises:
        StorageError: pyarrow does not know the scheme of the URI.
    """
    if not is_uri(path):
        return pafs.LocalFileSystem(), absolute(path)
    # A URI that was read from a file has a mask in place of its keys, since keys are never written.
    # Without the mask, pyarrow takes the keys from the environment.
    path = path.replace(f"://{MASK}@", "://")
    try:
        if path.startswith(("s3://", "gs://")):
            return _in_bucket(path)
        found: tuple[pafs.FileSystem, str] = pafs.FileSystem.from_uri(path)
        return found
    except (pa.ArrowException, OSError, ValueError) as error:
        raise StorageError(
            f"{path} cannot be opened: {error}",
            "only local paths, s3://, gs:// and abfs:// are understood",
            "give a local path or one of these URIs",
        ) from None


def _in_bucket(uri: str) -> tuple[pafs.FileSystem, str]:
    base, query = _split_query(uri)
    scheme, _, rest = base.partition("://")
    bucket, _, key = rest.partition("/")
    fs, bucket_path = _store(f"{scheme}://{bucket}{query}")
    return fs, f"{bucket_path}/{unquote(key)}".rstrip("/")


@cache
def _store(uri: str) -> tuple[pafs.FileSystem, str]:
    """Returns the file system of a bucket and the bucket's name.

    Cached, since each pyarrow file system opens connections of its own.
    """
    found: tuple[pafs.FileSystem, str] = pafs.FileSystem.from_uri(uri)
    return found


def with_keys_of(path: str, other: str) -> str:
    """Returns a masked URI with the keys of another URI. Without keys in it, nothing changes."""
    keys = re.match(r"[^:/]+://([^/@\s]+:[^/@\s]+)@", other)
    if keys is None:
        return path
    return path.replace(f"://{MASK}@", f"://{keys[1]}@")


@contextmanager
def failures(doing: str, path: str) -> Iterator[None]:
    """Turns errors of file systems into a StorageError.

    Only a missing file stays a FileNotFoundError while reading, since callers handle that case.

    Args:
        doing: the verb for the message, such as "write".
        path: the path for the message.
    """
    try:
        yield
    except OSError as error:
        is_missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        if doing == "read" and is_missing:
            raise FileNotFoundError(error.errno, error.strerror, path) from None
        # An OSError of pyarrow may hold only a text; it has no strerror then.
        reason = error.strerror or error
        raise StorageError(
            f"cannot {doing} {path}: {reason}",
            "nothing that was there before has been changed",
            "check the permissions and the free space (df -h), or give another --storage or --out",
        ) from None


# Listing and reading


def exists(path: str) -> bool:
    """Returns whether there is a file or a directory."""
    with failures("look at", path):
        fs, inner = filesystem(path)
        return bool(fs.get_file_info(inner).type != pafs.FileType.NotFound)


def names(path: str, *, directories: bool = False) -> list[str]:
    """Returns the sorted names of the files directly inside a directory.

    Args:
        path: of the directory. If it does not exist, the list is empty.
        directories: return the directories inside it in place of the files.
    """
    wanted = pafs.FileType.File
    if directories:
        wanted = pafs.FileType.Directory
    with failures("list", path):
        fs, inner = filesystem(path)
        infos = fs.get_file_info(pafs.FileSelector(inner, allow_not_found=True))
    return sorted(info.base_name for info in infos if info.type == wanted)


@dataclass(frozen=True)
class File:
    """A file that `files` has found.

    Attributes:
        path: relative to the listed directory, with `/` between the parts.
        size: in bytes.
        mtime_ns: time of the last change, in nanoseconds since 1970; 0 if unknown.
    """

    path: str
    size: int
    mtime_ns: int


def files(path: str, *, recursive: bool = False) -> list[File]:
    """Returns the files inside a directory, sorted by path, without opening any.

    Args:
        path: of the directory. If it does not exist, the list is empty.
        recursive: include the files in subdirectories.
    """
    found = []
    with failures("list", path):
        fs, inner = filesystem(path)
        selector = pafs.FileSelector(inner, allow_not_found=True, recursive=recursive)
        for info in fs.get_file_info(selector):
            if info.type == pafs.FileType.File:
                relative = info.path.removeprefix(inner).strip("/")
                found.append(File(relative, info.size, info.mtime_ns or 0))
    return sorted(found, key=lambda file: file.path)


def size(path: str) -> int:
    """Returns the size of a file in bytes.

    Raises:
        FileNotFoundError: there is no such file.
    """
    with failures("read", path):
        fs, inner = filesystem(path)
        info = fs.get_file_info(inner)
        if info.type != pafs.FileType.File:
            raise FileNotFoundError(path)
        return int(info.size)


def read_bytes(path: str, limit: int = -1) -> bytes:
    """Returns the content of a file.

    Args:
        path: of the file.
        limit: read at most this many bytes; negative for all.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: it cannot be read.
    """
    with failures("read", path):
        if not is_uri(path):
            return _read_local(path, limit)
        fs, inner = filesystem(path)
        with fs.open_input_file(inner) as stream:
            # None is pyarrow's value for the whole file.
            content: bytes = stream.read(None if limit < 0 else limit)
        return content


def _read_local(path: str, limit: int) -> bytes:
    with open(absolute(path), "rb") as file:
        if limit < 0:
            return file.read()
        # read(n) allocates n bytes however small the file is, so n follows the file's size.
        # One byte more, since files in /proc report a size of 0 although they have content.
        file_size = os.fstat(file.fileno()).st_size
        return file.read(min(limit, file_size + 1))


def read_json(path: str) -> Any:
    """Returns the parsed content of a JSON file."""
    return json.loads(read_bytes(path))


# Writing


def make_dir(path: str) -> None:
    """Makes a directory and its parents where they do not exist."""
    with failures("make", path):
        fs, inner = filesystem(path)
        fs.create_dir(inner, recursive=True)


def write_bytes(path: str, content: bytes | memoryview, *, durable: bool = True) -> None:
    """Writes a whole file atomically: a reader sees the old content or the new one, never a part.

    Args:
        path: of the file. Missing local directories are made.
        content: the new content of the file.
        durable: return only when a local file would survive a power failure. False is faster, for
            files that can be made again.

    Raises:
        StorageError: the file cannot be written. Its old content is intact.
    """
    with failures("write", path):
        fs, inner = filesystem(path)
        if isinstance(fs, pafs.LocalFileSystem):
            _replace_local(Path(inner), content, durable)
            return
        # Object stores show an object only when its upload is complete.
        with fs.open_output_stream(inner) as stream:
            stream.write(content)


def _replace_local(target: Path, content: bytes | memoryview, durable: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    # In the same directory, since a rename is atomic only within one file system.
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            if durable:
                # Before the rename: a power failure between the two could leave an empty file
                # under the final name.
                os.fsync(file.fileno())
        os.replace(partial, target)
    finally:
        # After a rename there is nothing left to remove.
        partial.unlink(missing_ok=True)
    if durable:
        # The rename itself is an entry of the directory.
        sync_directory(target.parent)


def write_text(path: str, content: str) -> None:
    """Writes a text file (UTF-8) as `write_bytes` does, with the keys in URIs masked."""
    write_bytes(path, masked(content).encode())


def write_json(path: str, content: Any) -> None:
    """Writes indented JSON as `write_text` does.

    Raises:
        ValueError: the content has NaN or an infinity, which JSON does not have.
    """
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def written(path: Path, write: Callable[[Path], Any]) -> str:
    """Lets a function write a local file, and waits until it would survive a power failure.

    It is for large content, which `write_bytes` would need in memory as a whole.

    Args:
        path: of the new file.
        write: called with the path; writes the file.

    Returns:
        The sha256 of the file's content.

    Raises:
        StorageError: the file cannot be written. A part of it may exist.
    """
    with failures("write", str(path)):
        try:
            write(path)
        except Exception as error:
            raise _as_os_error(error) from error
        # Reading the file back is cheap: its content is still in the kernel's page cache.
        with path.open("rb") as file:
            os.fsync(file.fileno())
            return hashlib.file_digest(file, "sha256").hexdigest()


def _as_os_error(error: BaseException) -> BaseException:
    """Returns the OSError that caused a library's error; the error itself if there is none."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return error


def append_text(path: str, content: str, *, durable: bool) -> None:
    """Appends text (UTF-8), with the keys in URIs masked, to a local file.

    This is not atomic: after a crash a part of the text may be in the file.

    Args:
        path: of the file.
        content: the text to append.
        durable: return only when the text would survive a power failure.

    Raises:
        StorageError: it cannot be written.
    """
    with failures("write", path), open(absolute(path), "ab") as file:
        file.write(masked(content).encode())
        file.flush()
        if durable:
            os.fsync(file.fileno())


def linked(source: Path, target: Path) -> bool:
    """Makes a hard link to a local file. Returns False if the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        return False
    return True


def sync_directory(directory: Path) -> None:
    """Waits until renames inside a local directory would survive a power failure."""
    with failures("write", str(directory)):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def move_directory(source: str, target: str) -> None:
    """Renames a local directory. This is atomic and survives a power failure."""
    with failures("move", source):
        os.rename(absolute(source), absolute(target))
        sync_directory(Path(absolute(target)).parent)


def remove(path: str) -> None:
    """Removes a file, or a directory with its content. Does nothing if there is neither."""
    with failures("remove", path):
        fs, inner = filesystem(path)
        kind = fs.get_file_info(inner).type
        if kind == pafs.FileType.Directory:
            fs.delete_dir(inner)
        elif kind == pafs.FileType.File:
            fs.delete_file(inner)


# Uploads


@contextmanager
def new_file(path: str) -> Iterator[Path]:
    """Yields a local path to write to. The file is at `path` once the block ends without an error.

    It is for content that comes piece by piece, which `write_bytes` would need as a whole.

    Raises:
        StorageError: it cannot be written.
    """
    if is_uri(path):
        scratch = Path(tempfile.mkdtemp(prefix="raytrain-"))
        try:
            yield scratch / "file"
            upload_file(scratch / "file", path)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return
    target = Path(absolute(path))
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    with failures("make", str(target.parent)):
        target.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        with failures("write", path):
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(target)
            sync_directory(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def upload_file(source: Path, target: str) -> None:
    """Copies a local file to an object store, without reading it into memory as a whole."""
    with failures("write", target), source.open("rb") as file:
        fs, path = filesystem(target)
        with fs.open_output_stream(path) as stream:
            shutil.copyfileobj(file, stream, UPLOAD_BYTES)


def upload_directory(source: Path, target: str) -> None:
    """Copies the files of a local directory to another path.

    The files that mark a checkpoint or a dataset as complete come last, so that a reader of an
    unfinished upload does not find them.
    """
    with failures("write", target):
        paths = sorted(path for path in source.rglob("*") if path.is_file())
        # sorted() is stable: within each of the two groups the order stays.
        for path in sorted(paths, key=lambda path: path.name in WRITTEN_LAST):
            write_bytes(join(target, *path.relative_to(source).parts), path.read_bytes())


@contextmanager
def local_directory(path: str) -> Iterator[Path]:
    """Yields a local directory to write into, for libraries that write to local files only.

    For a local path that is the path itself. For a URI it is a temporary directory, which is
    uploaded at the end.
    """
    if not is_uri(path):
        directory = Path(absolute(path))
        with failures("make", path):
            directory.mkdir(parents=True, exist_ok=True)
        yield directory
        return
    scratch = Path(tempfile.mkdtemp(prefix="raytrain-"))
    try:
        yield scratch
        upload_directory(scratch, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


# How names of files begin that only show whether a directory can be used. A process that is killed
# may leave one behind.
PROBES = ".raytrain-"


def probe(path: str) -> None:
    """Writes, reads and removes a small file, so that a bad path fails before any work is done.

    Raises:
        StorageError: one of the three did not work.
    """
    file = join(path, f"{PROBES}probe-{uuid.uuid4().hex[:8]}")
    make_dir(path)
    write_bytes(file, b"probe")
    if read_bytes(file) != b"probe":
        raise StorageError(
            f"{path} does not return what was written",
            "checkpoints would be lost",
            "give another one",
        )
    remove(file)


# Locks


@contextmanager
def file_lock(path: str | Path, *, wait: bool = True) -> Iterator[bool]:
    """Holds the exclusive lock (man 2 flock) of a local file or directory.

    The kernel releases the lock when the process ends, so a killed process leaves nothing locked.
    Only processes on one machine exclude each other reliably.

    Args:
        path: a directory that exists, or a file, which is created if it does not.
        wait: wait while another process holds the lock.

    Yields:
        Whether this process holds the lock. It is always True if `wait` is.

    Raises:
        OSError: the path cannot be opened, or its file system has no locks.
    """
    # A directory can be opened only for reading. A file is opened for writing, since exclusive
    # locks over NFS require that (man 2 flock).
    flags = os.O_WRONLY | os.O_CREAT
    if os.path.isdir(path):
        flags = os.O_RDONLY
    descriptor = os.open(path, flags, 0o666)
    try:
        yield _take_lock(descriptor, wait)
    finally:
        # This also releases the lock.
        os.close(descriptor)


def _take_lock(descriptor: int, wait: bool) -> bool:
    operation = fcntl.LOCK_EX
    if not wait:
        operation |= fcntl.LOCK_NB
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        return False
    return True


@contextmanager
def locked(path: str, doing: str) -> Iterator[None]:
    """Lets only one process at a time work in a local directory that exists.

    Object stores have no locks, so nothing is checked there.

    Args:
        path: of the directory.
        doing: what the process does, for the message: "another process <doing> <path>".

    Raises:
        StorageError: another process holds the lock.
    """
    if is_uri(path):
        yield
        return
    directory = absolute(path)
    with failures("open", path):
        descriptor = os.open(directory, os.O_RDONLY)
    try:
        if not _take_lock(descriptor, wait=False) or not _is_still_at(descriptor, directory):
            raise StorageError(
                f"another process {doing} {path}",
                "two would write the same files",
                "wait until it has ended, then try again",
            )
        yield
    finally:
        os.close(descriptor)


def _is_still_at(descriptor: int, path: str) -> bool:
    """Returns whether a path still leads to the open directory.

    The previous owner of the lock may have renamed it after it was opened here.
    """
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
