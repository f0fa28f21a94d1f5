"""Finds the picture files in a folder or in a list, and names what was left out.

Imports neither torch nor ray.
"""

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

MAX_LINES = 20  # printed about files that were left out
ARCHIVES = (".zip", ".7z", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".rar")


@dataclass(frozen=True)
class LeftOut:
    """A file or folder that was found and is not a tile.

    Attributes:
        path: below the source, printable. The path of a folder ends in `/`.
        kind: the word that quarantine.jsonl has for the reason.
        detail: the reason in words; also in quarantine.jsonl.
    """

    path: str
    kind: str
    detail: str

    def __str__(self) -> str:
        return f"{self.path} ({self.kind}: {self.detail})"


@dataclass
class Listing:
    """The content of a folder.

    Attributes:
        files: the files, sorted by path.
        left_out: what cannot be tiles.
    """

    files: list[File] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def pictures_in(
    folder: str,
    *,
    subfolders: bool,
    suffixes: Sequence[str] = SUFFIXES,
    folders: Sequence[str] = (),
) -> Listing:
    """Lists the picture files in a folder. No file is opened.

    Args:
        folder: path or URI.
        subfolders: also list the folders below it. Each real folder is visited once, however many
            links lead to it.
        suffixes: suffixes of picture files, in upper or lower case.
        folders: list only these folders directly below `folder`, with all that is below them.

    Raises:
        StorageError: the folder itself cannot be listed.
    """
    found = _files_in(folder, subfolders, folders)
    endings = tuple(suffix.lower() for suffix in suffixes)
    listing = Listing()
    for file in found.files:
        is_picture = file.path.lower().endswith(endings)
        if is_picture and _is_wanted(file.path, folders):
            listing.files.append(file)
    for entry in found.left_out:
        is_folder = entry.path.endswith("/")
        is_picture = entry.path.lower().endswith(endings)
        # A folder that was left out may hold pictures. Other files do not matter.
        if (is_folder or is_picture) and _is_wanted(entry.path, folders):
            listing.left_out.append(entry)
    listing.files.sort(key=lambda file: file.path)
    listing.left_out.sort(key=lambda entry: entry.path)
    return listing


def _is_wanted(path: str, folders: Sequence[str]) -> bool:
    if is_junk(path):
        return False
    return not folders or path.split("/")[0] in folders


def _files_in(folder: str, subfolders: bool, folders: Sequence[str]) -> Listing:
    if storage.is_uri(folder):
        # Object stores have no links and no special files, so nothing is left out there.
        return Listing(storage.files(folder, recursive=subfolders or bool(folders)))
    return _Walk(Path(folder), subfolders, folders).listing()


class _Walk:
    """A walk through a local folder.

    Links to folders are followed last, so that a folder is found under its own name and not under
    that of a link to it. No folder is visited twice, so that a loop of links ends.
    """

    def __init__(self, root: Path, subfolders: bool, only: Sequence[str]) -> None:
        """Prepares a walk.

        Args:
            root: the folder to walk through.
            subfolders: also visit the folders below it.
            only: names of folders directly below `root` that alone are visited; all if empty.
        """
        self._root = root
        self._real_root = os.path.realpath(root)
        self._subfolders = subfolders
        self._only = only
        self._found = Listing()
        self._visited: set[str] = set()  # real paths of folders, without links
        self._links: list[str] = []  # paths below the root of links that are still to be followed

    def listing(self) -> Listing:
        """Walks through the folder."""
        if not self._root.exists():
            return self._found
        # Only here an error ends the command: without the root there is nothing to list.
        with storage.failures("list", str(self._root)):
            self._visit("", os.scandir(self._root))
        while self._links:
            self._enter(self._links.pop(0))
        return self._found

    def _visit(self, below: str, entries: Iterator[os.DirEntry[str]]) -> None:
        """Visits the entries of a folder; `below` is its path below the root, with a final `/`."""
        self._visited.add(os.path.realpath(self._root / below))
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = f"{below}{entry.name}"
            try:
                self._take(path, entry)
            except OSError as error:
                # A link to nothing or to itself, or a folder that may not be read.
                self._leave_out(path, "unreadable", error.strerror or str(error))

    def _take(self, path: str, entry: os.DirEntry[str]) -> None:
        if entry.is_dir():
            self._take_folder(path, entry)
            return
        if not is_utf8(entry.name):
            self._leave_out(path, "unsafe-name", "the name has bytes that are not UTF-8")
            return
        found = entry.stat()
        if stat.S_ISREG(found.st_mode):
            self._found.files.append(File(path, found.st_size, found.st_mtime_ns))
        elif not stat.S_ISDIR(found.st_mode):
            # Opening a pipe would wait for ever for somebody who writes to it.
            self._leave_out(path, "unreadable", "it is a pipe, a socket or a device")

    def _take_folder(self, path: str, entry: os.DirEntry[str]) -> None:
        if not self._wants(path):
            return
        if entry.is_symlink():
            self._links.append(path)
        else:
            self._enter(path)

    def _wants(self, folder: str) -> bool:
        if is_junk(folder):
            return False
        if self._only:
            return folder.split("/")[0] in self._only
        return self._subfolders

    def _enter(self, path: str) -> None:
        """Visits a folder below the root, unless its name or a loop of links forbids it."""
        folder = f"{path}/"
        if not is_utf8(path):
            self._leave_out(folder, "unsafe-name", "the folder's name has bytes that are not UTF-8")
            return
        try:
            repeated = self._why_repeated(os.path.realpath(self._root / path))
            if repeated:
                self._leave_out(folder, "same-folder", repeated)
                return
            self._visit(folder, os.scandir(self._root / path))
        except OSError as error:
            self._leave_out(folder, "unreadable", error.strerror or str(error))

    def _why_repeated(self, real: str) -> str:
        """Explains why visiting a folder would find files twice, or returns an empty string."""
        if real in self._visited:
            other = visible(os.path.relpath(real, self._real_root))
            return f"it is the folder {other}, which is taken already"
        # The slashes keep `/data/train2` from counting as a folder inside `/data/train`.
        if f"{self._real_root}/".startswith(f"{real}/"):
            return "it is a folder above --images, which holds it"
        return ""

    def _leave_out(self, path: str, kind: str, detail: str) -> None:
        self._found.left_out.append(LeftOut(visible(path), kind, detail))


def is_list(source: str) -> bool:
    """Tells by the suffix whether `--images` names a list of pictures and not a folder.

    Raises:
        ConfigError: it is a picture, an archive or another file.
    """
    looks_like_list = source.lower().endswith(LIST_SUFFIXES)
    if storage.is_uri(source):
        return looks_like_list
    path = Path(storage.absolute(source))
    if not path.is_file():
        # A list that does not exist is still a list, so that the message calls it one.
        return looks_like_list and not path.is_dir()
    name = path.name.lower()
    if name.endswith(LIST_SUFFIXES):
        return True
    if name.endswith(SUFFIXES):
        what = "a picture"
        fix = f"--images {visible(str(Path(source).parent))}"
    elif name.endswith(ARCHIVES):
        what = "an archive"
        fix = "unpack it, then --images with the folder; or raytrain download planet --from ARCHIVE"
    else:
        what = "a file"
        fix = "--images DIR or LIST.txt; a table of labels belongs to --labels"
    raise ConfigError(
        f"--images {visible(source)} is {what}",
        "tiles are looked for in a folder, or in a list that ends in .txt",
        fix,
    )


def listed_pictures(source: str) -> list[str]:
    """Reads the paths and URIs in a list.

    A relative path starts at the current folder if a file is there, else at the list's folder.

    Raises:
        DataError: the list cannot be read.
    """
    path = storage.absolute(source)
    folder = storage.parent(path)
    return [_listed(line, folder) for line in read_lines(path, PICTURES)]


def _listed(line: str, folder: str) -> str:
    if storage.is_uri(line) or line.startswith(("~", "file://")):
        return line
    if os.path.isabs(line) or os.path.exists(line):
        return line
    path = line.replace("\\", "/")  # as Windows writes it
    in_folder = storage.join(folder, path)
    if storage.is_uri(folder) or os.path.exists(in_folder):
        return in_folder
    # It is nowhere; the ingest reports the path as the list has it.
    return path


def left_out_lines(left_out: Sequence[LeftOut]) -> Iterator[str]:
    """Yields a line for each file or folder that was left out, and one that counts the rest."""
    for entry in left_out[:MAX_LINES]:
        yield f"left out: {entry}"
    rest = left_out[MAX_LINES:]
    if rest:
        kinds = Counter(entry.kind for entry in rest)
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        yield f"left out: {len(rest)} more ({counts})"
