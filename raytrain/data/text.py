"""Text that a user gives: label files, tables, lists of names, classes or pictures, sample files.

All of them are read here: compression, encoding, byte order marks, line ends and web pages saved by mistake are dealt with
once. No torch, no ray.
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
LIST_SUFFIXES = (".txt", ".txt.gz", ".txt.zip")
_GZIP, _ZIP, _OLD_EXCEL = b"\x1f\x8b", (b"PK\3\4", b"PK\5\6"), b"\xd0\xcf\x11\xe0"
# First bytes of files that are packed in ways that are not read here.
_PACKED = {
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "RAR",
    _GZIP: "gzip, twice",
    b"PK\3\4": "zip, inside another one",
}


@dataclass(frozen=True)
class FileKind:
    """What a file is to its user, for the sentences when it cannot be read.

    Attributes:
        name: such as `label file`.
        why: what it is needed for.
        fix: what to type next where it is missing.
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
    "list of pictures", "it says where the tiles are", "give a text file with a path on each line"
)
CLASSES = FileKind(
    "list of classes",
    "it says which labels there are",
    "give a text file with a class on each line",
)


def read_bytes(path: str, kind: FileKind, *, force: bool = False) -> bytes:
    """The file as it is stored, still compressed where it is.

    Args:
        path: path or URI.
        kind: what it is, for messages.
        force: also read a file of more than 200 MB.

    Raises:
        DataError: missing, a folder, or too large.
        StorageError: it cannot be read.
    """
    try:
        size = storage.size(path)
        if size > MAX_BYTES and not force:
            raise DataError(
                f"the {kind.name} {path} has {size:,} bytes, at most {MAX_BYTES:,} are read",
                "the labels of a million tiles take some 40 MB: it is probably another file",
                "check the path; if it is the label file, give --force",
            )
        return storage.read_bytes(path)
    except FileNotFoundError:
        pass
    if storage.exists(path):
        raise DataError(f"{path} is a folder, not a {kind.name}", kind.why, kind.fix)
    raise DataError(f"the {kind.name} {path} does not exist", kind.why, kind.fix)


def unpacked(content: bytes, path: str, *, force: bool = False) -> bytes:
    """The bytes without compression: of a gzip, or of a zip with one file, as Kaggle sends its tables; others as they are.

    Raises:
        DataError: damaged, a password, several files, an Excel workbook, or more than 200 MB without compression.
    """
    most = MAX_BYTES if not force else 2**40
    try:
        if content.startswith(_GZIP):
            with gzip.open(io.BytesIO(content)) as stream:
                found = stream.read(most + 1)
        elif content.startswith(_ZIP):
            with (
                zipfile.ZipFile(io.BytesIO(content)) as archive,
                archive.open(_only_member(archive, path)) as stream,
            ):
                found = stream.read(most + 1)
        else:
            return content
    except (
        OSError,
        EOFError,
        ValueError,
        zlib.error,
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise DataError(
            f"{path} cannot be unpacked, so not read from line 1 on: {error}",
            "it is damaged, cut off, or packed by an unusual method",
            "get it again, or unpack it yourself and give the file inside",
        ) from None
    if len(found) > most:
        raise DataError(
            f"{path} is not read from line 1 on: it has more than {MAX_BYTES:,} bytes without compression",
            "the labels of a million tiles take some 40 MB: it is probably another file",
            "check the path; if it is the label file, give --force",
        )
    return found


def _only_member(archive: zipfile.ZipFile, path: str) -> zipfile.ZipInfo:
    names = {info.filename for info in archive.infolist()}
    if names & {"[Content_Types].xml", "content.xml"}:
        raise _workbook(path)
    members = [
        info for info in archive.infolist() if not info.is_dir() and not is_junk(info.filename)
    ]
    if len(members) != 1:
        raise DataError(
            f"{path} is not read from line 1 on: it is a zip archive of {len(members)} files",
            "it is not clear which of them is meant",
            "unpack it and give the file itself",
        )
    if members[0].flag_bits & 1:
        raise DataError(
            f"{path} is not read from line 1 on: it is a zip archive with a password",
            "its content cannot be read without it",
            "unpack it with the password and give the file itself",
        )
    return members[0]


def _workbook(path: str) -> DataError:
    return DataError(
        f"{path} is not read from line 1 on: it is a workbook of Excel or LibreOffice",
        "it may hold several tables, formulas and formats",
        "save the sheet as CSV UTF-8 and give that file",
    )


def decoded(content: bytes, path: str) -> str:
    """The text of a file's bytes, without a byte order mark.

    Raises:
        DataError: a web page, an Excel workbook, not UTF-8, or a NUL character; with the line.
    """
    if looks_like_html(content[:64]):
        raise DataError(
            f"{path} is an HTML page, not a table, from line 1 on",
            "a sign-in or error page was probably saved in its place",
            "download the label file again",
        )
    if content.startswith(_OLD_EXCEL):
        raise _workbook(path)
    packed = next((name for start, name in _PACKED.items() if content.startswith(start)), None)
    if packed is not None:
        raise DataError(
            f"{path} is not read from line 1 on: it is packed by {packed}",
            "only .gz, and .zip with one file, are unpacked here",
            "unpack it and give the file itself",
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        raise DataError(
            f"{path} is not UTF-8 (byte 0x{content[error.start]:02x} at line {line})",
            "it is UTF-16 or UTF-32, as Excel's Unicode text is"
            if wide
            else "names and labels could be misread",
            "save it again as UTF-8",
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(
            f"{path} has a NUL character at line {line}",
            "it is damaged, no text, or UTF-16 without a mark",
            "save it again as UTF-8, or get it again",
        )
    return text


def looks_like_html(head: bytes) -> bool:
    """Whether a file or an answer begins as an HTML page does."""
    return (
        head.lstrip(b"\xef\xbb\xbf \t\r\n")[:9]
        .lower()
        .startswith((b"<!doctype", b"<html", b"<head"))
    )


def read_lines(path: str, kind: FileKind) -> list[str]:
    """The lines of a list, without white space at their ends and without empty ones; `.gz` and `.zip` are unpacked.

    Args:
        path: path or URI.
        kind: what it is, for messages.

    Raises:
        DataError: missing, not UTF-8, a web page, or nothing in it.
        StorageError: it cannot be read.
    """
    text = decoded(unpacked(read_bytes(path, kind), path), path)
    # Not splitlines(): it also cuts at characters that may stand inside a name.
    lines = [trimmed(line) for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    found = [line for line in lines if line]
    if not found:
        raise DataError(f"the {kind.name} {path} is empty", kind.why, kind.fix)
    return found


def listed(text: str, flag: str) -> list[str]:
    """The words of a flag: separated by commas, a word with a comma in double quotes; or the lines of a .txt file.

    Args:
        text: what was given.
        flag: its name, for messages.

    Raises:
        ConfigError: a quote that is never closed.
        DataError: the file cannot be read.
    """
    if text.lower().endswith(LIST_SUFFIXES):
        return read_lines(storage.absolute(text), CLASSES)
    try:
        words = next(csv.reader([text], strict=True, skipinitialspace=True), [])
    except csv.Error:
        raise ConfigError(
            f"{flag} {visible(text)} cannot be read as words with commas between them",
            "a word with a comma stands in double quotes, which must be closed",
            f"""{flag} 'water,"bare ground, rock"', or {flag} FILE.txt with a word on each line""",
        ) from None
    return [trimmed(word) for word in words]
