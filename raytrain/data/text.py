"""Reads text files that a user gives: label files, tables, sample files, and lists of names.

All of them are read here, so that compression, encoding, byte order marks, line ends and web pages
saved by mistake are handled once. Imports neither torch nor ray.
"""

from __future__ import annotations

import csv
import gzip
import io
import zipfile
import zlib
from dataclasses import dataclass

from raytrain import storage
from raytrain.data.names import is_junk, trimmed, visible
from raytrain.errors import ConfigError, DataError

MAX_BYTES = 200 * 2**20
# With --force, a limit that no real label file reaches: one TiB.
_MAX_BYTES_FORCED = 2**40
LIST_SUFFIXES = (".txt", ".txt.gz", ".txt.zip")
# First bytes by which file formats are recognised.
_GZIP = b"\x1f\x8b"
_ZIP = (b"PK\3\4", b"PK\5\6")  # the second is an archive without files
_OLD_EXCEL = b"\xd0\xcf\x11\xe0"  # .xls; .xlsx and .ods are zip archives
_UTF16_OR_32 = (b"\xff\xfe", b"\xfe\xff")  # their byte order marks
_HTML = (b"<!doctype", b"<html", b"<head")
# Compressions that are not read here. gzip and zip are among them for content that was already
# unpacked once.
_PACKED = {
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "RAR",
    _GZIP: "gzip, twice",
    b"PK\3\4": "zip, inside another one",
}
# Parts of a zip archive that show it to be an Excel or a LibreOffice workbook.
_WORKBOOK_PARTS = {"[Content_Types].xml", "content.xml"}
_ENCRYPTED = 1  # bit of a zip member's flags
# What gzip and zipfile raise for files that are damaged, cut off or packed by an unknown method.
_UNPACKING_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    zlib.error,
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
)
_PROBABLY_ANOTHER = "the labels of a million tiles take some 40 MB: it is probably another file"
_CHECK_PATH = "check the path; if it is the label file, give --force"


@dataclass(frozen=True)
class FileKind:
    """What a file is to its user, for the messages when it cannot be read.

    Attributes:
        name: such as `label file`.
        why: what the file is needed for.
        fix: what to type next if it is missing.
        separated: its command has the flag --separator.
    """

    name: str
    why: str
    fix: str
    separated: bool = False


NAMES = FileKind(
    "list of names",
    "it says which tiles belong to a part",
    "give a text file with a name on each line",
)
PICTURES = FileKind(
    "list of pictures",
    "it says where the tiles are",
    "give a text file with a path on each line",
)
CLASSES = FileKind(
    "list of classes",
    "it says which labels there are",
    "give a text file with a class on each line",
)


def read_bytes(path: str, kind: FileKind, *, force: bool = False) -> bytes:
    """Reads a file as it is stored, without unpacking it.

    Args:
        path: path or URI.
        kind: what the file is, for messages.
        force: also read a file of more than 200 MB.

    Raises:
        DataError: the file is missing, a folder, or too large.
        StorageError: it cannot be read.
    """
    try:
        size = storage.size(path)
        if size > MAX_BYTES and not force:
            raise DataError(
                f"the {kind.name} {path} has {size:,} bytes, at most {MAX_BYTES:,} are read",
                _PROBABLY_ANOTHER,
                _CHECK_PATH,
            )
        return storage.read_bytes(path)
    except FileNotFoundError:
        # Storage reports folders as missing files too; below the two are told apart.
        pass
    if storage.exists(path):
        raise DataError(f"{path} is a folder, not a {kind.name}", kind.why, kind.fix)
    raise DataError(f"the {kind.name} {path} does not exist", kind.why, kind.fix)


def unpacked(content: bytes, path: str, *, force: bool = False) -> bytes:
    """Unpacks the content of a gzip, or of a zip with one file, as Kaggle sends its tables.

    Args:
        content: bytes of the file. Bytes of any other format are returned unchanged.
        path: of the file, for messages.
        force: also unpack more than 200 MB.

    Raises:
        DataError: damaged, protected by a password, several files, an Excel workbook, or more than
            200 MB when unpacked.
    """
    limit = MAX_BYTES
    if force:
        limit = _MAX_BYTES_FORCED
    try:
        found = _first_bytes(content, path, limit + 1)
    except _UNPACKING_ERRORS as error:
        raise DataError(
            f"{path} cannot be unpacked, so it cannot be read from line 1 on: {error}",
            "it is damaged, cut off, or packed by an unusual method",
            "get it again, or unpack it yourself and give the file inside",
        ) from None
    # Content that was not packed comes back as it is; its size was checked when it was read.
    if found is not content and len(found) > limit:
        raise DataError(
            f"{path} cannot be read from line 1 on: "
            f"it has more than {MAX_BYTES:,} bytes without compression",
            _PROBABLY_ANOTHER,
            _CHECK_PATH,
        )
    return found


def _first_bytes(content: bytes, path: str, most: int) -> bytes:
    """Unpacks at most `most` bytes, so that a small file cannot fill the memory (a zip bomb)."""
    if content.startswith(_GZIP):
        with gzip.open(io.BytesIO(content)) as stream:
            return stream.read(most)
    if content.startswith(_ZIP):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            member = _only_member(archive, path)
            with archive.open(member) as stream:
                return stream.read(most)
    return content


def _only_member(archive: zipfile.ZipFile, path: str) -> zipfile.ZipInfo:
    names = {info.filename for info in archive.infolist()}
    if names & _WORKBOOK_PARTS:
        raise _workbook(path)
    members = []
    for info in archive.infolist():
        # Archives made on macOS also hold resource forks.
        if not info.is_dir() and not is_junk(info.filename):
            members.append(info)
    if len(members) != 1:
        raise DataError(
            f"{path} cannot be read from line 1 on: it is a zip archive of {len(members)} files",
            "it is not clear which of them is meant",
            "unpack it and give the file itself",
        )
    if members[0].flag_bits & _ENCRYPTED:
        raise DataError(
            f"{path} cannot be read from line 1 on: it is a zip archive with a password",
            "its content cannot be read without it",
            "unpack it with the password and give the file itself",
        )
    return members[0]


def _workbook(path: str) -> DataError:
    return DataError(
        f"{path} cannot be read from line 1 on: it is a workbook of Excel or LibreOffice",
        "it may hold several tables, formulas and formats",
        "save the sheet as CSV UTF-8 and give that file",
    )


def decoded(content: bytes, path: str) -> str:
    """Decodes the bytes of a text file and removes its byte order mark.

    Args:
        content: bytes of the file, already unpacked.
        path: of the file, for messages.

    Raises:
        DataError: a web page, an Excel workbook, another compression, not UTF-8, or a NUL
            character. The message names the line.
    """
    _check_is_text(content, path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(content, error.start, path) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(
            f"{path} has a NUL character at line {line}",
            "it is damaged, not a text file, or UTF-16 without a byte order mark",
            "save it again as UTF-8, or get it again",
        )
    return text


def _check_is_text(content: bytes, path: str) -> None:
    """Refuses content whose first bytes show that it is no text to be read here."""
    if looks_like_html(content[:64]):
        raise DataError(
            f"{path} is an HTML page, not a table, from line 1 on",
            "a sign-in or error page was probably saved instead of the file",
            "download the label file again",
        )
    if content.startswith(_OLD_EXCEL):
        raise _workbook(path)
    for start, name in _PACKED.items():
        if content.startswith(start):
            raise DataError(
                f"{path} cannot be read from line 1 on: it is packed by {name}",
                "only .gz files, and .zip archives of one file, are unpacked here",
                "unpack it and give the file itself",
            )


def _not_utf8(content: bytes, position: int, path: str) -> DataError:
    """Returns the error for content that has an invalid byte at a position."""
    line = content.count(b"\n", 0, position) + 1
    why = "names and labels could be misread"
    if content.startswith(_UTF16_OR_32):
        why = "it is UTF-16 or UTF-32, which Excel calls Unicode text"
    return DataError(
        f"{path} is not UTF-8 (byte 0x{content[position]:02x} at line {line})",
        why,
        "save it again as UTF-8",
    )


def looks_like_html(head: bytes) -> bool:
    """Tells whether a file or an HTTP response begins as an HTML page does."""
    # A byte order mark and white space may come first.
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:9]
    return start.lower().startswith(_HTML)


def read_lines(path: str, kind: FileKind) -> list[str]:
    """Reads the lines of a list, trimmed and without empty ones. Unpacks `.gz` and `.zip`.

    Args:
        path: path or URI.
        kind: what the list is, for messages.

    Raises:
        DataError: the file is missing, not UTF-8, a web page, or empty.
        StorageError: it cannot be read.
    """
    content = unpacked(read_bytes(path, kind), path)
    text = decoded(content, path)
    # Not splitlines(): it also splits at characters that may be part of a name, such as U+2028.
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    lines = [trimmed(line) for line in text.split("\n")]
    found = [line for line in lines if line]
    if not found:
        raise DataError(f"the {kind.name} {path} is empty", kind.why, kind.fix)
    return found


def listed(text: str, flag: str) -> list[str]:
    """Splits the value of a flag at commas, or reads the lines of the .txt file that it names.

    A word that contains a comma is written in double quotes.

    Args:
        text: value of the flag.
        flag: its name, for messages.

    Raises:
        ConfigError: a quote is never closed.
        DataError: the file cannot be read.
    """
    if text.lower().endswith(LIST_SUFFIXES):
        return read_lines(storage.absolute(text), CLASSES)
    # The quoting rules are those of CSV, so its reader does the work.
    reader = csv.reader([text], strict=True, skipinitialspace=True)
    try:
        words = next(reader, [])
    except csv.Error:
        raise ConfigError(
            f"{flag} {visible(text)} cannot be read as words separated by commas",
            "a word with a comma must be in double quotes, and each quote must be closed",
            f"""{flag} 'water,"bare ground, rock"', or {flag} FILE.txt with a word on each line""",
        ) from None
    return [trimmed(word) for word in words]
