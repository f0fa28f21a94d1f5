"""The kinds of archives: .7z, .tar, .tar.gz, .zip, and a CSV that lies there plainly; what they list, and their bytes.

Whether a listing is fit to be unpacked is for `archives.py` to judge. No torch, no ray.
"""

from __future__ import annotations

import errno
import gzip
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

_ZIP_ENCRYPTED = 1
# Numbers of APPNOTE 4.4.5. zipfile knows the first four; others are told apart so that a user knows what to unpack with.
_ZIP_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}
_ZIP_NAMES = {
    1: "Shrink",
    6: "Implode",
    9: "Deflate64",
    93: "Zstandard",
    95: "XZ",
    96: "JPEG",
    98: "PPMd",
    99: "AES",
}
_CHUNK = 2**20
_BLOCK = tarfile.BLOCKSIZE
# tarfile reads the long names of a header in one piece, however long the header says they are.
_MAX_READ = 2**24


@dataclass(frozen=True)
class Member:
    """An entry of an archive: its name there, the size it declares, and whether it is anything else than a file."""

    name: str
    size: int
    kind: Literal["file", "folder", "special"] = "file"


class Sink(Py7zIO):
    """A file that is being written: never through a link, never over another file, never more than was declared."""

    def __init__(
        self, path: Path, member: Member, archive: Path, tell: Callable[[int], None]
    ) -> None:
        self.path, self.member, self.archive, self.tell = path, member, archive, tell
        self.left, self.done, self._file = member.size, False, -1

    def __enter__(self) -> Sink:
        with self._failures():
            self._file = os.open(
                self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644
            )
        return self

    def write(self, data: bytes | bytearray) -> int:
        """Appends; raises DataError beyond the declared size and StorageError where the disk does not take it."""
        self.left -= len(data)
        if self.left < 0:
            raise self._lie("more")
        with self._failures():
            view = memoryview(data)
            while view:
                view = view[os.write(self._file, view) :]
        self.tell(len(data))
        return len(data)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        os.close(self._file)
        self._file = -1
        if kind is None and self.left:
            raise self._lie("fewer")
        self.done = kind is None

    def close(self) -> None:
        """py7zr calls this after the last byte of a member whose checksum is right."""
        self.__exit__(None, None, None)

    def abandon(self, error: BaseException) -> None:
        """Closes the file where nobody else does after an error."""
        if self._file >= 0:
            self.__exit__(type(error), error, None)

    def read(self, size: int | None = None) -> bytes:
        """Nothing: py7zr only asks for it in its own tests of archives."""
        return b""

    def seek(self, offset: int, whence: int = 0) -> int:
        """py7zr rewinds what it has written."""
        return 0

    def flush(self) -> None:
        """Nothing is buffered."""

    def size(self) -> int:
        """Bytes written."""
        return self.member.size - self.left

    def _lie(self, word: str) -> DataError:
        return DataError(
            f"{self.archive} says {self.member.name[:80]!r} has {self.member.size} bytes, but it has {word}",
            "such an archive is damaged or an attack; what was unpacked is discarded",
            "get it again from where it is published, or give another one with --from",
        )

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise StorageError(
                f"cannot write {self.path}: {'the disk is full' if full else error.strerror}",
                "the archive is kept, what was unpacked of it is removed",
                "free some space (df -h) and run the same command again"
                if full
                else "check the folder's permissions",
            ) from None


class Archive(Protocol):
    """A kind of archive. `sequential`: what is left out must be decompressed too, and counts towards the limit."""

    path: Path
    sequential: bool

    def members(self) -> Iterator[Member]:
        """Lists the archive without writing anything."""

    def pour(self, sinks: Mapping[str, Sink]) -> None:
        """Writes the members that have a sink, in the archive's order; each sink is opened and closed."""

    def missing(self) -> int | None:
        """At least so many bytes were cut off its end; None where that cannot be known, 0 where nothing is missing."""


class _Tar:
    """Plain or inside gzip. tarfile takes an archive cut between two members for a whole one; `members` does not."""

    def __init__(self, path: Path, *, compressed: bool) -> None:
        self.path, self.sequential = path, compressed
        self._end = 0

    @contextmanager
    def _opened(self) -> Iterator[tarfile.TarFile]:
        with (
            gzip.open(self.path) if self.sequential else self.path.open("rb") as file,
            tarfile.open(fileobj=cast(Any, _Reader(file)), mode="r:") as tar,
        ):
            yield tar

    def members(self) -> Iterator[Member]:
        with self._opened() as tar:
            for info in tar:
                self._end = tar.offset  # of the next header
                yield Member(
                    info.name,
                    info.size,
                    "file" if info.isreg() else "folder" if info.isdir() else "special",
                )
            file = tar.fileobj
            assert file is not None
            file.seek(self._end)
            if file.read(_BLOCK) != bytes(_BLOCK):
                raise ValueError("the blocks that end a tar archive are not there")

    def pour(self, sinks: Mapping[str, Sink]) -> None:
        with self._opened() as tar:
            for info in tar:
                stream = tar.extractfile(info) if info.name in sinks else None
                if stream is not None:
                    with stream, sinks[info.name] as sink:
                        shutil.copyfileobj(stream, sink, _CHUNK)

    def missing(self) -> int | None:
        return (
            None if self.sequential else max(0, self._end + 2 * _BLOCK - self.path.stat().st_size)
        )


class _Reader:
    """What tarfile needs of a file, without reads of any size."""

    def __init__(self, file: Any) -> None:
        self.seek, self.tell, self._file = file.seek, file.tell, file

    def read(self, size: int) -> bytes:
        if size > _MAX_READ:
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
                    raise with_password(self.path)
                if info.compress_type not in _ZIP_METHODS:
                    name = _ZIP_NAMES.get(info.compress_type, "unknown")
                    raise unknown_method(self.path, f"method {info.compress_type} ({name})")
                # `orig_filename`: zipfile cuts a name at its first NUL.
                yield Member(info.orig_filename, info.file_size, self._kind(info))

    def _kind(self, info: zipfile.ZipInfo) -> Literal["file", "folder", "special"]:
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            return "special"
        # Older Windows tools write `\\` for `/`, also at the end of a folder's name.
        return "folder" if info.orig_filename.endswith(("/", "\\")) else "file"

    def pour(self, sinks: Mapping[str, Sink]) -> None:
        with zipfile.ZipFile(self.path) as archive:
            for info in archive.infolist():
                if info.orig_filename in sinks:
                    with archive.open(info) as stream, sinks[info.orig_filename] as sink:
                        shutil.copyfileobj(stream, sink, _CHUNK)

    def missing(self) -> int | None:
        return None


class _SevenZip:
    sequential = True

    def __init__(self, path: Path, limit: int) -> None:
        self.path, self._limit = path, limit

    @contextmanager
    def _opened(self) -> Iterator[py7zr.SevenZipFile]:
        # An open file and not its name: given a name, py7zr decompresses in several threads at once.
        with (
            self.path.open("rb") as file,
            py7zr.SevenZipFile(file, max_extract_size=self._limit) as archive,
        ):
            if archive.needs_password():
                raise with_password(self.path)
            yield archive

    def members(self) -> Iterator[Member]:
        with self._opened() as archive:
            for entry in archive.files:
                yield Member(entry.filename, entry.uncompressed or 0, self._kind(entry))

    def _kind(self, entry: py7zr.py7zr.ArchiveFile) -> Literal["file", "folder", "special"]:
        plain = entry.st_fmt in (None, 0, stat.S_IFREG, stat.S_IFDIR)
        if entry.is_symlink or entry.is_junction or entry.is_socket or not plain:
            return "special"
        return "folder" if entry.is_directory else "file"

    def pour(self, sinks: Mapping[str, Sink]) -> None:
        if not sinks:
            return
        factory = _Factory(sinks)
        try:
            with self._opened() as archive:
                archive.extract(targets=list(sinks), factory=factory)
        except BaseException as error:  # py7zr leaves the file open where decompression fails
            for sink in sinks.values():
                sink.abandon(error)
            raise

    def missing(self) -> int | None:
        # Signature, version and checksum; then where the closing header begins, counted from byte 32, and its length.
        with self.path.open("rb") as file:
            head = file.read(32)
        if len(head) < 32:
            return 32 - len(head)
        begin, length = struct.unpack("<QQ", head[12:28])
        return max(0, 32 + int(begin) + int(length) - self.path.stat().st_size)


class _Factory(WriterFactory):
    """Gives py7zr the sinks by the names it has made of the members' names."""

    def __init__(self, sinks: Mapping[str, Sink]) -> None:
        self._sinks = {str(PurePosixPath(name)): sink for name, sink in sinks.items()}

    def create(self, filename: str) -> Py7zIO:
        return self._sinks[filename].__enter__()


class _Table:
    """A CSV that lies there plainly, as an archive with one member."""

    sequential = False

    def __init__(self, path: Path) -> None:
        self.path = path

    def members(self) -> Iterator[Member]:
        yield Member(self.path.name, self.path.stat().st_size)

    def pour(self, sinks: Mapping[str, Sink]) -> None:
        for sink in sinks.values():
            with self.path.open("rb") as stream, sink:
                shutil.copyfileobj(stream, sink, _CHUNK)

    def missing(self) -> int | None:
        return 0


def open_archive(path: Path, limit: int) -> Archive:
    """The archive at a path, by its first bytes; of a 7z no more than `limit` bytes are decompressed.

    Raises:
        DataError: missing, no bytes, an HTML page, or nothing that is known.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_BLOCK)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", "", "check the path") from None
    if head.startswith(b"7z\xbc\xaf\x27\x1c"):
        return _SevenZip(path, limit)
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        return _Zip(path)
    if head.startswith(b"\x1f\x8b") or _is_tar(head):
        return _Tar(path, compressed=head.startswith(b"\x1f\x8b"))
    if looks_like_html(head) or not head:
        raise DataError(
            f"{path} {'is an HTML page' if head else 'has no bytes'}, not an archive",
            "a sign-in or error page was probably saved in its place"
            if head
            else "its download never began",
            f"remove it (rm {path}) and download it again",
        )
    if path.name.lower().endswith(".csv"):
        return _Table(path)
    raise DataError(
        f"{path} ({path.stat().st_size} bytes) is no 7z, tar, gzip or zip archive; it begins with {head[:8]!r}",
        "tiles are unpacked from these kinds only",
        "give the archive as it was published, or the folder that it was unpacked to, with --from",
    )


def _is_tar(head: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


@contextmanager
def damage(archive: Archive) -> Iterator[None]:
    """Turns what the libraries trip over in a damaged archive into a sentence; what writing raises stays."""
    try:
        yield
    except RaytrainError:
        raise
    except py7zr.exceptions.PasswordRequired:  # where even the names are encrypted
        raise with_password(archive.path) from None
    except py7zr.exceptions.UnsupportedCompressionMethodError:
        raise unknown_method(archive.path, "an unusual method") from None
    except Exception as error:  # lzma, zlib, struct, tarfile, zipfile and py7zr raise what the damage leads them to
        missing, path = archive.missing(), archive.path
        size = f"it has {path.stat().st_size} bytes"
        detail = str(error) or type(error).__name__
        raise DataError(
            f"{path} is cut off: {size}, at least {missing} more are missing"
            if missing
            else f"{path} is damaged or cut off: {detail} ({size})",
            "some of its files would be missing or wrong; the archive is kept, what was unpacked of it is removed",
            f"finish its download, or remove it (rm {path}) and download it again",
        ) from None


def with_password(path: Path) -> DataError:
    """What is said of an archive that is encrypted."""
    return DataError(
        f"{path} is protected by a password",
        "its files cannot be read without it",
        "unpack it with the password (7z x FILE), then give the folder with --from",
    )


def unknown_method(path: Path, method: str) -> DataError:
    """What is said of an archive that is packed in a way that is not known here."""
    return DataError(
        f"{path} is packed by {method}, which cannot be unpacked here",
        "the archive may be whole; another program wrote it",
        "unpack it with the program that made it (7z x FILE), then give the folder with --from",
    )
