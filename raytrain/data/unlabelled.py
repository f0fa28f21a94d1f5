"""Test folders: pictures whose target is unknown. They are predicted, and never trained on.

    folder = find("test", below="digits", suffixes=SUFFIXES)   the pictures of a test folder
    tiles = named([folder], names)                             their names, unique in the dataset

Imports neither torch nor ray.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from raytrain import storage
from raytrain.data.listing import LeftOut, pictures_in
from raytrain.data.names import spelling_of_stem, tile_names, visible, why_unsafe
from raytrain.errors import DataError

COLUMNS = ("image_name", "path", "stamp", "problem", "detail")
FIX = "--test-folder DIR, a path or the name of a folder below --images; it may be repeated"


@dataclass(frozen=True)
class UnlabelledFolder:
    """The pictures of a test folder.

    Attributes:
        folder: its path below the image folder, or its name if it lies elsewhere.
        is_below: whether it lies below the image folder.
        path: path or URI.
        files: one row per picture, sorted by path: file (below the test folder), path (of the file)
            and stamp (its size and modification time).
        left_out: files and folders that were found and cannot be tiles.
    """

    folder: str
    is_below: bool
    path: str
    files: pd.DataFrame
    left_out: tuple[LeftOut, ...] = ()

    def __str__(self) -> str:
        return f"{len(self.files)} in the test folder {visible(self.folder)}"

    def holds(self, paths: Iterable[str]) -> list[bool]:
        """Returns for each path of a picture whether it is in this folder, links followed."""
        mine = set(_places(self.files["path"]))
        return [place in mine for place in _places(paths)]

    def names(self, *, with_folder: bool) -> list[str]:
        """Returns the name of each picture: its path below the folder, without suffix if unique.

        Args:
            with_folder: put the folder in front.
        """
        files = self.files["file"].to_list()
        if with_folder:
            files = [f"{self.folder}/{file}" for file in files]
        return tile_names(files)


def find(folder: str, below: str, suffixes: Sequence[str]) -> UnlabelledFolder:
    """Finds all pictures in a test folder and in the folders below it.

    Args:
        folder: a path or URI of its own, or the path of a folder below the image folder.
        below: the image folder; empty if the pictures come from a list.
        suffixes: suffixes of picture files, in upper or lower case.

    Raises:
        DataError: there is no such folder, two are meant, or it has no pictures.
    """
    path = _folder_of(folder, below)
    if _is_file(path):
        raise DataError(f"--test-folder {visible(folder)} is a file", "", FIX)
    inside = _path_below(path, below)
    name = inside or storage.name_of(path)
    found = pictures_in(path, subfolders=True, suffixes=suffixes)
    if not found.files:
        what = f"the test folder {path} holds no pictures"
        if found.left_out:
            what += f"; {len(found.left_out)} were left out, such as {found.left_out[0]}"
        raise DataError(what, f"pictures end in {', '.join(suffixes)}", FIX)
    files = pd.DataFrame(
        {
            "file": [file.path for file in found.files],
            "path": [storage.join(path, file.path) for file in found.files],
            "stamp": [f"{file.size} {file.mtime_ns}" for file in found.files],
        }
    )
    left_out = []
    for entry in found.left_out:
        left_out.append(replace(entry, path=f"{visible(name)}/{entry.path}"))
    return UnlabelledFolder(name, bool(inside), path, files, tuple(left_out))


def _folder_of(folder: str, below: str) -> str:
    """Returns the absolute path of a test folder that a user named."""
    meant = [_normal(storage.absolute(folder))]
    if below and not storage.is_uri(folder) and not os.path.isabs(folder):
        meant.append(_normal(storage.join(below, folder)))
    there = {}
    for path in meant:
        if storage.exists(path):
            # One folder may be meant in both ways, where the image folder is the current one.
            there[_real(path)] = path
    if len(there) == 1:
        return next(iter(there.values()))
    if there:
        raise DataError(
            f"--test-folder {visible(folder)} may be {' or '.join(there.values())}",
            "the tiles of the wrong one would be predicted",
            "give the whole path of the folder",
        )
    raise DataError(
        f"the test folder {visible(folder)} does not exist (looked for: {', '.join(meant)})",
        "its tiles would not be predicted",
        FIX,
    )


def _is_file(path: str) -> bool:
    return not storage.is_uri(path) and os.path.isfile(path)


def _normal(path: str) -> str:
    """Returns a local path without `..` and `.`; URIs stay as they are."""
    if storage.is_uri(path):
        return path
    return os.path.normpath(path)


def _real(path: str) -> str:
    """Returns a local path with all links followed; URIs stay as they are."""
    if storage.is_uri(path) or not path:
        return path
    return os.path.realpath(path)


def _path_below(path: str, above: str) -> str:
    """Returns the path of a folder below another, or an empty string if it is not below it."""
    if not above:
        return ""
    pairs = ((path, _normal(above)), (_real(path), _real(above)))
    for inner, outer in pairs:
        # A URI may end in a query such as ?region=...
        start = outer.partition("?")[0] if storage.is_uri(outer) else outer
        if inner.startswith(f"{start}/"):
            return inner.removeprefix(f"{start}/").partition("?")[0]
    return ""


def _places(paths: Iterable[str]) -> Iterator[str]:
    """Yields the path of each picture with the links among its folders followed."""
    real: dict[str, str] = {}
    for path in paths:
        folder = storage.parent(path)
        if folder not in real:
            real[folder] = _real(folder)
        yield f"{real[folder]}/{storage.name_of(path)}"


def check_apart(folders: Sequence[UnlabelledFolder], added: UnlabelledFolder) -> None:
    """Refuses a test folder that shares pictures with another.

    Raises:
        DataError: a picture would be in the dataset twice.
    """
    for folder in folders:
        if any(folder.holds(added.files["path"])):
            raise DataError(
                f"the test folders {folder.path} and {added.path} hold the same pictures",
                "each tile is in a dataset once",
                "give each test folder once",
            )


def check_labels(table: pd.DataFrame, folder: UnlabelledFolder) -> None:
    """Refuses labels of tiles that are in a test folder.

    Args:
        table: as in `sources.Tiles`.
        folder: the test folder.

    Raises:
        DataError: a label would be thrown away.
    """
    names = {spelling_of_stem(name) for name in folder.names(with_folder=folder.is_below)}
    # Its picture was taken for the test folder before the labels were read, or afterwards.
    is_lost = (table["problem"] == "missing").to_numpy()
    is_named = np.array([spelling_of_stem(name) in names for name in table["image_name"]])
    labelled = (is_lost & is_named) | np.array(folder.holds(table["path"]))
    if not labelled.any():
        return
    first = table.loc[labelled, "image_name"].iloc[0]
    raise DataError(
        f"the labels name {int(labelled.sum())} pictures of the test folder "
        f"{visible(folder.folder)}, such as {visible(first)}",
        "the targets of a test folder are unknown, so these labels would be thrown away",
        "leave out --test-folder and put them into the part test (--split folder "
        f"--test-values {visible(folder.folder)}), or take them out of the labels",
    )


def named(folders: Sequence[UnlabelledFolder], taken: Iterable[str]) -> pd.DataFrame:
    """Names the pictures of all test folders, each name once in the dataset.

    A picture of a folder below the image folder has the folder in its name, as all others there.
    The name of a picture elsewhere has its folder in front only if one of that folder needs it.

    Args:
        folders: the test folders.
        taken: names of the other tiles.

    Returns:
        One row per picture: image_name, path, stamp, problem (the kind that quarantine.jsonl gives,
        or empty) and detail.

    Raises:
        DataError: two tiles would have the same name.
    """
    used = {spelling_of_stem(name) for name in taken}
    tables = [pd.DataFrame(columns=list(COLUMNS))]
    for folder in folders:
        names = folder.names(with_folder=folder.is_below)
        if not folder.is_below and _first_used(names, used):
            names = folder.names(with_folder=True)
        twice = _first_used(names, used)
        if twice:
            raise DataError(
                f"two tiles would be named {visible(twice)}, one of them in the test folder "
                f"{folder.path}",
                "predictions are looked up by name",
                "rename that folder, or put it below --images",
            )
        used.update(spelling_of_stem(name) for name in names)
        reasons = [why_unsafe(name) for name in names]
        table = folder.files.assign(image_name=names, detail=reasons)
        table["problem"] = ["unsafe-name" if reason else "" for reason in reasons]
        tables.append(table[list(COLUMNS)])
    if not folders:
        return tables[0]
    return pd.concat(tables[1:], ignore_index=True)


def _first_used(names: Iterable[str], used: set[str]) -> str:
    """Returns the first name that is used already, or an empty string."""
    return next((name for name in names if spelling_of_stem(name) in used), "")
