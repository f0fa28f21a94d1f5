"""Which picture files lie in a folder or stand in a list; what is no tile is left out and named. No torch, no ray."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from raytrain import storage
from raytrain.data.names import SUFFIXES, is_junk, is_utf8, visible
from raytrain.data.text import LIST_SUFFIXES, PICTURES, read_lines
from raytrain.errors import ConfigError
from raytrain.storage import File

LINES = 20  # about files that were left out
ARCHIVES = (".zip", ".7z", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".rar")


@dataclass(frozen=True)
class LeftOut:
    """A file or folder that was found and is no tile.

    Attributes:
        path: below the source, as it can be printed.
        kind: the word in quarantine.jsonl.
        detail: why.
    """

    path: str
    kind: str
    detail: str

    def __str__(self) -> str:
        return f"{self.path} ({self.kind}: {self.detail})"


@dataclass
class Listing:
    """What was found: files sorted by path, and what was left out."""

    files: list[File] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def pictures_in(
    folder: str,
    *,
    subfolders: bool,
    suffixes: Sequence[str] = SUFFIXES,
    folders: Sequence[str] = (),
) -> Listing:
    """The picture files in a folder; nothing is opened.

    Args:
        folder: path or URI.
        subfolders: also those in folders below it. Each real folder is visited once, however many links lead to it.
        suffixes: endings of picture files, in any case.
        folders: only these folders directly below, with what is below them.

    Raises:
        StorageError: the folder itself cannot be listed.
    """
    found = _files_in(folder, subfolders, folders)
    endings = tuple(suffix.lower() for suffix in suffixes)
    wanted = set(folders)

    def counts(path: str) -> bool:
        return not is_junk(path) and (not wanted or path.split("/")[0] in wanted)

    files = [
        file for file in found.files if counts(file.path) and file.path.lower().endswith(endings)
    ]
    # A folder that was left out counts whatever it is called, a file only where it would be a picture.
    left = [
        entry for entry in found.left_out if counts(entry.path) and _may_be_picture(entry, endings)
    ]
    return Listing(
        sorted(files, key=lambda file: file.path), sorted(left, key=lambda entry: entry.path)
    )


def _files_in(folder: str, subfolders: bool, folders: Sequence[str]) -> Listing:
    if storage.is_uri(folder):
        return Listing(storage.files(folder, recursive=subfolders or bool(folders)))
    return _Walk(Path(folder), subfolders, folders).listing()


def _may_be_picture(entry: LeftOut, endings: tuple[str, ...]) -> bool:
    return entry.path.endswith("/") or entry.path.lower().endswith(endings)


class _Walk:
    """A walk through a local folder. Links to folders are followed last, so that a folder has its own name and not a link's."""

    def __init__(self, root: Path, subfolders: bool, only: Sequence[str]) -> None:
        self._root, self._subfolders, self._only = root, subfolders, only
        self._found = Listing()
        self._taken: set[str] = set()  # real paths of folders
        self._links: list[str] = []

    def listing(self) -> Listing:
        if not self._root.exists():
            return self._found
        with storage.failures("list", str(self._root)):
            self._visit("", os.scandir(self._root))
        while self._links:
            self._enter(self._links.pop(0))
        return self._found

    def _visit(self, below: str, entries: Iterator[os.DirEntry[str]]) -> None:
        self._taken.add(os.path.realpath(self._root / below))
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = f"{below}{entry.name}"
            try:
                self._take(path, entry)
            except OSError as error:
                self._leave_out(path, "unreadable", error.strerror or str(error))

    def _take(self, path: str, entry: os.DirEntry[str]) -> None:
        if entry.is_dir():
            if not self._wants(path):
                return
            if entry.is_symlink():
                self._links.append(path)
            else:
                self._enter(path)
            return
        if not is_utf8(entry.name):
            self._leave_out(path, "unsafe-name", "the name has bytes that are not UTF-8")
            return
        found = entry.stat()
        if stat.S_ISREG(found.st_mode):
            self._found.files.append(File(path, found.st_size, found.st_mtime_ns))
        elif not stat.S_ISDIR(found.st_mode):
            self._leave_out(path, "unreadable", "it is a pipe, a socket or a device")

    def _wants(self, folder: str) -> bool:
        if is_junk(folder):
            return False
        return folder.split("/")[0] in self._only if self._only else self._subfolders

    def _enter(self, path: str) -> None:
        if not is_utf8(path):
            self._leave_out(
                f"{path}/", "unsafe-name", "the folder's name has bytes that are not UTF-8"
            )
            return
        try:
            real = os.path.realpath(self._root / path)
            if (
                f"{os.path.realpath(self._root)}/".startswith(f"{real}/")
                and real not in self._taken
            ):
                self._leave_out(
                    f"{path}/", "same-folder", "it is a folder above --images, which holds it"
                )
                return
            if real in self._taken:
                other = visible(os.path.relpath(real, os.path.realpath(self._root)))
                self._leave_out(
                    f"{path}/", "same-folder", f"it is the folder {other}, which is taken already"
                )
                return
            self._visit(f"{path}/", os.scandir(self._root / path))
        except OSError as error:
            self._leave_out(f"{path}/", "unreadable", error.strerror or str(error))

    def _leave_out(self, path: str, kind: str, detail: str) -> None:
        self._found.left_out.append(LeftOut(visible(path), kind, detail))


def is_list(source: str) -> bool:
    """Whether `--images` names a list of pictures, by its suffix, and not a folder.

    Raises:
        ConfigError: it is a picture, an archive or another file.
    """
    if storage.is_uri(source):
        return source.lower().endswith(LIST_SUFFIXES)
    path = Path(storage.absolute(source))
    if not path.is_file():
        return source.lower().endswith(LIST_SUFFIXES) and not path.is_dir()
    if path.name.lower().endswith(LIST_SUFFIXES):
        return True
    name = visible(source)
    if path.name.lower().endswith(SUFFIXES):
        what, fix = "a picture", f"--images {visible(str(Path(source).parent))}"
    elif path.name.lower().endswith(ARCHIVES):
        what, fix = (
            "an archive",
            "unpack it, then --images with the folder; or raytrain download planet --from ARCHIVE",
        )
    else:
        what, fix = "a file", "--images DIR or LIST.txt; a table of labels belongs to --labels"
    raise ConfigError(
        f"--images {name} is {what}",
        "tiles are looked for in a folder, or in a list that ends in .txt",
        fix,
    )


def listed_pictures(source: str) -> list[str]:
    """The paths and URIs in a list. A relative path counts from the current folder; else from the list's own.

    Raises:
        DataError: the list cannot be read.
    """
    path = storage.absolute(source)
    return [_listed(line, storage.parent(path)) for line in read_lines(path, PICTURES)]


def _listed(line: str, folder: str) -> str:
    if (
        storage.is_uri(line)
        or os.path.isabs(line)
        or line.startswith(("~", "file://"))
        or os.path.exists(line)
    ):
        return line
    path = line.replace("\\", "/")  # as Windows writes it
    beside = storage.join(folder, path)
    return beside if storage.is_uri(folder) or os.path.exists(beside) else path


def said_of_left_out(left_out: Sequence[LeftOut]) -> Iterator[str]:
    """A line for each file or folder that was found and cannot be a tile, and one for the rest of many."""
    for entry in left_out[:LINES]:
        yield f"left out: {entry}"
    if len(left_out) > LINES:
        kinds = Counter(entry.kind for entry in left_out[LINES:])
        yield f"left out: {len(left_out) - LINES} more ({', '.join(f'{n} {kind}' for kind, n in kinds.items())})"
