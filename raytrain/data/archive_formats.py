"""Readers of the archive kinds .7z, .tar, .tar.gz and .zip, and of a plain CSV file.

Each reader lists its members and writes chosen ones into sinks. Whether a listing is safe to
unpack is decided in `archives.py`. Imports neither torch nor ray.
"""

from __future__ import annotations

import errno
import gzip
import io
import os
import shutil
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Literal, Protocol, cast

import py7zr
from py7zr.io import Py7zIO, WriterFactory

from raytrain.data.text import looks_like_html
from raytrain.errors import DataError, RaytrainError, StorageError

# Bit 0 of the general purpose flags of a zip member (APPNOTE 4.4.4).
_ZIP_ENCRYPTED = 1
# Compression methods that zipfile can read (APPNOTE 4.4.5).
_ZIP_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}
# Some others, so that a message can name what the archive needs (APPNOTE 4.4.5).
_ZIP_METHOD_NAMES = {
    1: "Shrink",
    6: "Implode",
    9: "Deflate64",
    93: "Zstandard",
    95: "XZ",
    96: "JPEG",
    98: "PPMd",
    99: "AES",
}
_SEVEN_ZIP_START = b"7z\xbc\xaf\x27\x1c"
_SEVEN_ZIP_HEADER_BYTES = 32
# A zip with members begins with a local header, an empty one with its end record.
_ZIP_STARTS = (b"PK\3\4", b"PK\5\6")
_GZIP_START = b"\x1f\x8b"
_COPY_BYTES = 2**20
_TAR_BLOCK_BYTES = tarfile.BLOCKSIZE
# tarfile reads a long name in one piece, however long the header says it is.
_MAX_READ_BYTES = 2**24
# Long names of members are cut to this many characters in messages.
_SHOWN_NAME = 80

MemberKind = Literal["file", "folder", "special"]


@dataclass(frozen=True)
class Member:
    """An entry of an archive.

    Attributes:
        name: as it is stored in the archive.
        size: bytes that the archive declares for it; the stream may hold more or fewer.
        kind: "special" is everything that is neither a file nor a folder, such as a link.
    """

    name: str
    size: int
    kind: MemberKind = "file"

    @property
    def shown(self) -> str:
        """The name in quotes for a message; a long one is cut."""
        return repr(self.name[:_SHOWN_NAME])


class Sink(Py7zIO):
    """A file that a member is written to.

    It never follows a link, never overwrites a file, and never takes more bytes than declared.

    Attributes:
        complete: True once every declared byte is written and the file is closed.
    """

    def __init__(
        self, path: Path, member: Member, archive: Path, on_bytes: Callable[[int], None]
    ) -> None:
        """Prepares the sink; the file is created by `__enter__`.

        Args:
            path: file to create.
            member: entry of the archive that is written to it.
            archive: path of the archive, for messages.
            on_bytes: called with the number of bytes after each write.
        """
        self.path = path
        self.member = member
        self.archive = archive
        self.complete = False
        self._on_bytes = on_bytes
        self._remaining = member.size
        # File descriptor; -1 while the file is not open.
        self._descriptor = -1

    def __enter__(self) -> Sink:
        # O_EXCL and O_NOFOLLOW: an existing file or link at the path is an error.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with self._storage_errors():
            self._descriptor = os.open(self.path, flags, 0o644)
        return self

    def write(self, data: bytes | bytearray) -> int:
        """Appends bytes.

        Returns:
            The number of bytes written, always all of them.

        Raises:
            DataError: more bytes come than the archive declares.
            StorageError: the disk is full or cannot be written.
        """
        self._remaining -= len(data)
        if self._remaining < 0:
            raise self._wrong_size("more")
        with self._storage_errors():
            view = memoryview(data)
            # os.write may write only a part of what it is given.
            while view:
                written = os.write(self._descriptor, view)
                view = view[written:]
        self._on_bytes(len(data))
        return len(data)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._descriptor)
        self._descriptor = -1
        if kind is not None:
            return
        if self._remaining:
            raise self._wrong_size("fewer")
        self.complete = True

    def close(self) -> None:
        """Closes the file; py7zr calls this after the last byte of a member with a right checksum.

        Raises:
            DataError: fewer bytes came than the archive declares.
        """
        self.__exit__(None, None, None)

    def abandon(self, error: BaseException) -> None:
        """Closes the file after an error, if it is still open."""
        if self._descriptor >= 0:
            self.__exit__(type(error), error, None)

    # The methods below complete the interface of py7zr.

    def read(self, size: int | None = None) -> bytes:
        """Returns nothing: py7zr reads back only when it tests an archive."""
        return b""

    def seek(self, offset: int, whence: int = 0) -> int:
        """Does nothing: py7zr rewinds a file after it has written it."""
        return 0

    def flush(self) -> None:
        """Does nothing: writes are not buffered."""

    def size(self) -> int:
        """Returns the number of bytes written."""
        return self.member.size - self._remaining

    def _wrong_size(self, word: str) -> DataError:
        member = self.member
        return DataError(
            f"{self.archive} says {member.shown} has {member.size} bytes, but it has {word}",
            "such an archive is damaged or an attack; what was unpacked is discarded",
            "get it again from where it is published, or give another one with --from",
        )

    @contextmanager
    def _storage_errors(self) -> Iterator[None]:
        """Turns an OSError of the block into a StorageError."""
        try:
            yield
        except OSError as error:
            reason = error.strerror
            fix = "check the folder's permissions"
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                reason = "the disk is full"
                fix = "free some space (df -h) and run the same command again"
            raise StorageError(
                f"cannot write {self.path}: {reason}",
                "the archive is kept; the files unpacked from it are removed",
                fix,
            ) from None


class Archive(Protocol):
    """A reader of one kind of archive.

    Attributes:
        path: file that is read.
        sequential: True where members that are left out must be decompressed too. Their bytes then
            count towards the limit on the total size.
    """

    path: Path
    sequential: bool

    def members(self) -> Iterator[Member]:
        """Lists the archive without writing anything."""

    def pour(self, sinks: Mapping[str, Sink]) -> None:
        """Writes the members that have a sink, in the archive's order.

        Args:
            sinks: by the name of the member; each is opened and closed here.
        """

    def missing(self) -> int | None:
        """Returns the least number of bytes that were cut off the archive's end.

        None where that cannot be known, 0 where nothing is missing.
        """


class _Tar:
    """A tar file, plain or compressed by gzip.

    tarfile takes an archive that was cut between two members for a whole one; `members` does not.
    """

    def __init__(self, path: Path, *, compressed: bool) -> None:
        self.path = path
        self.sequential = compressed
        # Offset of the first byte after the last member that was listed.
        self._end = 0

    def _open_stream(self) -> gzip.GzipFile | io.BufferedReader:
        if self.sequential:
            return gzip.open(self.path)
        return self.path.open("rb")

    @contextmanager
    def _opened(self) -> Iterator[tarfile.TarFile]:
        with self._open_stream() as stream:
            limited = cast(Any, _LimitedReader(stream))
            # "r:" takes plain tar only; other compressions would bypass the limits.
            with tarfile.open(fileobj=limited, mode="r:") as tar:
                yield tar

    def members(self) -> Iterator[Member]:
        with self._opened() as tar:
            for info in tar:
                self._end = tar.offset  # where the next header begins
                yield Member(info.name, info.size, self._kind(info))
            file = tar.fileobj
            assert file is not None
            # A whole archive ends with blocks of zeros; one that was cut does not.
            file.seek(self._end)
            if file.read(_TAR_BLOCK_BYTES) != bytes(_TAR_BLOCK_BYTES):
                raise ValueError("the blocks that end a tar archive are missing")

    def _kind(self, info: tarfile.TarInfo) -> MemberKind:
        if info.isreg():
            return "file"
        if info.isdir():
            return "folder"
        return "special"

    def pour(self, sinks: Mapping[str, Sink]) -> None:
        with self._opened() as tar:
            for info in tar:
                if info.name not in sinks:
                    continue
                stream = tar.extractfile(info)
                # None: the entry holds no data.
                if stream is None:
                    continue
                with stream, sinks[info.name] as sink:
                    shutil.copyfileobj(stream, sink, _COPY_BYTES)

    def missing(self) -> int | None:
        if self.sequential:
            return None
        # Two blocks of zeros end a tar file.
        whole = self._end + 2 * _TAR_BLOCK_BYTES
        return max(0, whole - self.path.stat().st_size)


class _LimitedReader:
    """The methods of a file that tarfile needs, with a limit on the bytes of one read."""

    def __init__(self, file: Any) -> None:
        self.seek = file.seek
        self.tell = file.tell
        self._file = file

    def read(self, size: int) -> bytes:
        if size > _MAX_READ_BYTES:
            raise ValueError(f"a header of {size} bytes")
        content: bytes = self._file.read(size)
        return content


class _Zip:
    sequential = False

    def __init__(self, path: Path) -> None:
        self.path = path

    def members(self) -> Iterator[Member]:
        with zipfile.ZipFile(self.path) as archive:
            for info in archive.infolist():
                if info.flag_bits & _ZIP_ENCRYPTED:
                    raise password_error(self.path)
                if info.compress_type not in _ZIP_METHODS:
                    name = _ZIP_METHOD_NAMES.get(info.compress_type, "unknown")
                    raise method_error(self.path, f"method {info.compress_type} ({name})")
                # `orig_filename` and not `filename`: zipfile cuts the latter at its first NUL.
                yield Member(info.orig_filename, info.file_size, self._kind(info))

    def _kind(self, info: zipfile.ZipInfo) -> MemberKind:
        # The upper 16 bits hold the Unix mode, or 0 where another system wrote the archive.
        unix_type = stat.S_IFMT(info.external_attr >> 16)
        if unix_type not in (0, stat.S_IFREG, stat.S_IFDIR):
            return "special"
        # Older Windows tools write `\\` for `/`, also at the end of a folder's name.
        if info.orig_filename.endswith(("/", "\\")):
            return "folder"
        return "file"

    def pour(self, sinks: Mapping[str, Sink]) -> None:
        with zipfile.ZipFile(self.path) as archive:
            for info in archive.infolist():
                if info.orig_filename not in sinks:
                    continue
                with archive.open(info) as stream, sinks[info.orig_filename] as sink:
                    shutil.copyfileobj(stream, sink, _COPY_BYTES)

    def missing(self) -> int | None:
        # The list of members stands at the end of a zip; without it no length is known.
        return None


class _SevenZip:
    sequential = True

    def __init__(self, path: Path, limit: int) -> None:
        self.path = path
        self._limit = limit

    @contextmanager
    def _opened(self) -> Iterator[py7zr.SevenZipFile]:
        # An open file and not its path: with a path, py7zr decompresses in several threads.
        with (
            self.path.open("rb") as file,
            py7zr.SevenZipFile(file, max_extract_size=self._limit) as archive,
        ):
            if archive.needs_password():
                raise password_error(self.path)
            yield archive

    def members(self) -> Iterator[Member]:
        with self._opened() as archive:
            for entry in archive.files:
                size = entry.uncompressed or 0
                yield Member(entry.filename, size, self._kind(entry))

    def _kind(self, entry: py7zr.py7zr.ArchiveFile) -> MemberKind:
        if entry.is_symlink or entry.is_junction or entry.is_socket:
            return "special"
        # None or 0: an archive without Unix modes, as Windows tools write it.
        if entry.st_fmt not in (None, 0, stat.S_IFREG, stat.S_IFDIR):
            return "special"
        if entry.is_directory:
            return "folder"
        return "file"

    def pour(self, sinks: Mapping[str, Sink]) -> None:
        # Everything would be decompressed to write nothing.
        if not sinks:
            return
        factory = _SinkFactory(sinks)
        try:
            with self._opened() as archive:
                archive.extract(targets=list(sinks), factory=factory)
        except BaseException as error:
            # py7zr leaves the file open where decompression fails.
            for sink in sinks.values():
                sink.abandon(error)
            raise

    def missing(self) -> int | None:
        # The header: signature (6 bytes), version (2), checksum (4), then two uint64: where the
        # closing header begins, counted from the end of this one, and its length (7zFormat.txt).
        with self.path.open("rb") as file:
            head = file.read(_SEVEN_ZIP_HEADER_BYTES)
        if len(head) < _SEVEN_ZIP_HEADER_BYTES:
            return _SEVEN_ZIP_HEADER_BYTES - len(head)
        begin, length = struct.unpack("<QQ", head[12:28])
        whole = _SEVEN_ZIP_HEADER_BYTES + int(begin) + int(length)
        return max(0, whole - self.path.stat().st_size)


class _SinkFactory(WriterFactory):
    """Gives py7zr the sink for a member."""

    def __init__(self, sinks: Mapping[str, Sink]) -> None:
        # py7zr asks with the names in this normal form.
        self._sinks = {str(PurePosixPath(name)): sink for name, sink in sinks.items()}

    def create(self, filename: str) -> Py7zIO:
        return self._sinks[filename].__enter__()


class _Table:
    """A plain CSV file, read as an archive with one member."""

    sequential = False

    def __init__(self, path: Path) -> None:
        self.path = path

    def members(self) -> Iterator[Member]:
        yield Member(self.path.name, self.path.stat().st_size)

    def pour(self, sinks: Mapping[str, Sink]) -> None:
        for sink in sinks.values():
            with self.path.open("rb") as stream, sink:
                shutil.copyfileobj(stream, sink, _COPY_BYTES)

    def missing(self) -> int | None:
        return 0


def open_archive(path: Path, limit: int) -> Archive:
    """Opens an archive; its first bytes tell the kind, not its name.

    Args:
        path: archive, or a plain CSV file.
        limit: the most bytes that may be decompressed from a 7z archive.

    Raises:
        DataError: the file is missing, empty, an HTML page, or of no known kind.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_TAR_BLOCK_BYTES)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", "", "check the path") from None
    if head.startswith(_SEVEN_ZIP_START):
        return _SevenZip(path, limit)
    if head.startswith(_ZIP_STARTS):
        return _Zip(path)
    if head.startswith(_GZIP_START):
        return _Tar(path, compressed=True)
    if _is_tar(head):
        return _Tar(path, compressed=False)
    if not head:
        raise _no_archive(path, "has no bytes", "its download never began")
    if looks_like_html(head):
        reason = "a sign-in or error page was probably saved in its place"
        raise _no_archive(path, "is an HTML page", reason)
    if path.name.lower().endswith(".csv"):
        return _Table(path)
    raise DataError(
        f"{path} ({path.stat().st_size} bytes) is no 7z, tar, gzip or zip archive; "
        f"it begins with {head[:8]!r}",
        "tiles can be unpacked from these kinds only",
        "give the archive as it was published, or the folder that it was unpacked to, with --from",
    )


def _no_archive(path: Path, what: str, why: str) -> DataError:
    return DataError(
        f"{path} {what}, not an archive", why, f"remove it (rm {path}) and download it again"
    )


def _is_tar(head: bytes) -> bool:
    """Whether the first 512 bytes of a file are a tar header with a right checksum."""
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


@contextmanager
def damage(archive: Archive) -> Iterator[None]:
    """Turns the errors that a damaged archive causes in the libraries into a DataError.

    Errors of raytrain itself, such as StorageError of a full disk, pass unchanged.
    """
    try:
        yield
    except RaytrainError:
        raise
    except py7zr.exceptions.PasswordRequired:  # even the names are encrypted
        raise password_error(archive.path) from None
    except py7zr.exceptions.UnsupportedCompressionMethodError:
        raise method_error(archive.path, "an unusual method") from None
    except Exception as error:
        # Not a narrower type: lzma, zlib, struct, tarfile, zipfile and py7zr raise many.
        raise _damaged(archive, error) from None


def _damaged(archive: Archive, error: Exception) -> DataError:
    path = archive.path
    missing = archive.missing()
    size = f"it has {path.stat().st_size} bytes"
    if missing:
        what = f"{path} is cut off: {size}, at least {missing} more are missing"
    else:
        detail = str(error) or type(error).__name__
        what = f"{path} is damaged or cut off: {detail} ({size})"
    return DataError(
        what,
        "some of its files would be missing or wrong; "
        "the archive is kept, the files unpacked from it are removed",
        f"finish its download, or remove it (rm {path}) and download it again",
    )


def password_error(path: Path) -> DataError:
    """Returns the error for an encrypted archive."""
    return DataError(
        f"{path} is protected by a password",
        "its files cannot be read without it",
        "unpack it with the password (7z x FILE), then give the folder with --from",
    )


def method_error(path: Path, method: str) -> DataError:
    """Returns the error for an archive with a compression method that cannot be read here."""
    return DataError(
        f"{path} is packed by {method}, which cannot be unpacked here",
        "the archive may be whole; another program wrote it",
        "unpack it with the program that made it (7z x FILE), then give the folder with --from",
    )
