"""From pictures and labels to the index table, one decision a step, each of which can be printed:

    tiles = images_in("train-jpg")                          # where the pictures are
    tiles = tiles.label_from_file("train_v2.csv")           # how labels appear
    tiles = tiles.split(by="random", valid=0.2, seed=42)    # what validates

`distributed.ingest.ingest(tiles, "planet")` writes the dataset; how pictures are transformed says the recipe.
Nothing is opened here but the label file. No torch, no ray.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from raytrain import storage
from raytrain.data.label_format import KAGGLE_FORMAT, LabelFormat
from raytrain.data.labels import Labels, labels_in, labels_of, labels_of_folders, read_labels
from raytrain.data.listing import LeftOut, pictures_in
from raytrain.data.names import SUFFIXES, KnownNames, is_listed_junk, spelling, visible
from raytrain.data.splits import Rule, only_in_valid
from raytrain.data.tables import FrameTable, cell_of
from raytrain.errors import DataError, masked


@dataclass(frozen=True)
class Images:
    """Pictures that were found or listed, not yet labelled.

    Attributes:
        table: image_name (path below the folder, without suffix where that is unique), file (the same with suffix), path
            (place of the file) and stamp (size and time of change, empty where unknown), sorted by path.
        source: what the dataset's manifest says about where they came from.
        origin: the folder, path or URI; empty of a list of places.
        left_out: files and folders that were found and cannot be tiles.
    """

    table: pd.DataFrame
    source: dict[str, Any]
    origin: str = ""
    left_out: tuple[LeftOut, ...] = ()

    def __str__(self) -> str:
        left = f"; {len(self.left_out)} left out" if self.left_out else ""
        return f"{len(self.table)} pictures in {self.source['images']}: {_few(self.table['image_name'])}{left}"

    def label_from_file(
        self,
        path: str,
        form: LabelFormat = KAGGLE_FORMAT,
        classes: Sequence[str] | None = None,
        *,
        allow_empty: bool = False,
        force: bool = False,
    ) -> Tiles:
        """Takes the labels from a CSV or Parquet file; arguments and errors as `labels.read_labels`."""
        path = storage.absolute(path)
        labels = read_labels(path, form, classes, allow_empty=allow_empty, force=force)
        return self._label(labels, {"file": storage.name_of(path), "form": form.content()})

    def label_from_table(
        self,
        table: pd.DataFrame,
        form: LabelFormat = KAGGLE_FORMAT,
        classes: Sequence[str] | None = None,
    ) -> Tiles:
        """Takes the labels from a table in memory; cells of the tags column are text or lists of text.

        Raises:
            DataError: as `labels.read_labels`.
        """
        labels = labels_in(FrameTable(table), form, classes)
        return self._label(labels, {"table": form.content()})

    def label_from_folders(self, classes: Sequence[str] | None = None) -> Tiles:
        """Takes the name of the folder that a picture lies in as its label.

        Raises:
            DataError: a picture lies directly in the source folder, or a label is not in `classes`.
        """
        bare = [name for name in self.table["image_name"] if "/" not in name]
        if bare:
            raise DataError(
                f"{len(bare)} pictures lie in no sub-folder of {self.source['images']}, such as {bare[0]}",
                "the folder's name is the label",
                "put each into a folder named by its label (images_in(DIR, subfolders=True)), or give --labels FILE",
            )
        names = self.table["image_name"].to_list()
        labels = labels_of_folders(names, [name.split("/")[-2] for name in names], classes)
        return self._label(labels, {"made from": "the folder names"})

    def label_with(
        self, function: Callable[[str], str | Iterable[str]], classes: Sequence[str] | None = None
    ) -> Tiles:
        """Takes as labels what a function makes of each image_name: one text (white space separates) or several.

        Raises:
            DataError: a label is not in `classes`.
        """
        source = "the labels of the function"
        names = self.table["image_name"].to_list()
        cells = [cell_of(function(name), f"{source}, for {visible(name)},") for name in names]
        return self._label(labels_of(names, cells, source, classes), {"made from": source})

    def _label(self, labels: Labels, origin: dict[str, Any]) -> Tiles:
        table, unlisted = _with_pictures(labels, self.table)
        if (table["path"] == "").all():
            raise DataError(
                f"none of the {len(table)} tiles of the label source is among the {self}",
                f"the labels name {_few(table['image_name'])}",
                _where_to_look(table, self.table, self.source["images"]),
            )
        # Sizes, not times: a copy of the pictures makes the same dataset.
        pictures = [
            f"{row.image_name} {row.stamp.split()[0] if row.stamp else row.path}"
            for row in table.itertuples()
        ]
        known = {"pictures_sha256": hashlib.sha256("\n".join(pictures).encode()).hexdigest()}
        source = (
            self.source
            | known
            | {"labels": origin | {"sha256": labels.sha256}, "classes": labels.classes}
        )
        return Tiles(
            table, labels.classes, source, labels.notes, unlisted, labels.remarks, self.left_out
        )


@dataclass(frozen=True)
class Tiles:
    """Labelled tiles, not yet divided.

    Attributes:
        table: one row per line of the labels, in their order: image_name, path (empty if there is no picture), stamp,
            line, target (uint8 array of K), problem (the quarantine kind, or empty) and detail (why, where there is more to
            say). A name that has no folder in the labels and lies in one gets it.
        classes: label names in target order.
        source: what the manifest says about images and labels.
        notes: counts of what was tidied.
        unlisted: places of pictures without labels.
        remarks: what a user should know of how the labels were read.
        left_out: files and folders that were found and cannot be tiles.
    """

    table: pd.DataFrame
    classes: list[str]
    source: dict[str, Any]
    notes: dict[str, int]
    unlisted: list[str]
    remarks: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    def __str__(self) -> str:
        usable = self.table["problem"] == ""
        labels = (
            int(np.sum(list(self.table.loc[usable, "target"]), axis=(0, 1))) if usable.any() else 0
        )
        said = [
            f"{n} {kind}" for kind, n in self.table.loc[~usable, "problem"].value_counts().items()
        ]
        said += [f"{n} {note}" for note, n in self.notes.items() if n]
        said += [f"{len(self.unlisted)} pictures without labels left out"] if self.unlisted else []
        return f"{usable.sum()} tiles, {len(self.classes)} classes, {labels} labels" + "".join(
            f"; {s}" for s in said
        )

    def counts(self) -> str:
        """Every class with the number of its usable tiles, in one line."""
        usable = self.table.loc[self.table["problem"] == "", "target"]
        tiles = (
            np.sum(list(usable), axis=0, dtype=int)
            if len(usable)
            else np.zeros(len(self.classes), int)
        )
        return ", ".join(
            f"{visible(name)} {count}" for name, count in zip(self.classes, tiles, strict=True)
        )

    def split(
        self,
        by: str = "random",
        valid: float = 0.2,
        seed: int = 42,
        *,
        groups: Sequence[str] | Mapping[str, str] | Callable[[str], str] | None = None,
        valid_values: Iterable[str] = (),
        test_values: Iterable[str] = (),
    ) -> DividedTiles:
        """Says which tiles validate; the division is drawn on all rows of the labels, before any picture is opened.

        Args:
            by: random (the lesson's), stratified, group, column, folder or list, as `splits.Rule`.
            valid: share of the rows that validate, for random, stratified and group.
            seed: of the division and of the order in which rows are written.
            groups: group or column value of each row, or a mapping or function from image_name to it.
            valid_values: column values, top folders or tile names that validate; test_values: that test.

        Raises:
            DataError: too few groups, a value that no tile has, or a part without tiles.
        """
        return self.divide(
            Rule(by, valid, None, tuple(valid_values), tuple(test_values), seed), groups
        )

    def divide(
        self,
        rule: Rule,
        groups: Sequence[str] | Mapping[str, str] | Callable[[str], str] | None = None,
    ) -> DividedTiles:
        """`split` by a rule."""
        names = self.table["image_name"].to_list()
        parts = rule.parts(names, np.stack(list(self.table["target"])), _of_each(names, groups))
        return DividedTiles(self.table.assign(part=parts), self, rule)


@dataclass(frozen=True)
class DividedTiles:
    """Labelled and divided tiles: what `distributed.ingest.ingest` writes.

    Attributes:
        table: as in `Tiles`, with `part`.
        tiles: as before the division.
        rule: how it was made.
    """

    table: pd.DataFrame
    tiles: Tiles
    rule: Rule

    @property
    def source(self) -> dict[str, Any]:
        """What the manifest says about images, labels and split, as JSON gives it back."""
        return self.tiles.source | {"split": self.rule.content()}

    def usable(self) -> pd.DataFrame:
        """The index table: image_name, path, stamp, row, part, target, of the rows without a problem."""
        good = self.table[self.table["problem"] == ""].rename(columns={"line": "row"})
        return good[["image_name", "path", "stamp", "row", "part", "target"]].reset_index(drop=True)

    def unusable(self) -> list[dict[str, Any]]:
        """A quarantine record for each row with a problem; word-for-word repeats are only counted."""
        bad = self.table[~self.table["problem"].isin(["", "repeated"])]
        records = []
        for row in bad.itertuples():
            why = f": {row.detail}" if row.detail else ""
            records.append(
                {
                    "image_name": row.image_name,
                    "path": masked(row.path),
                    "row": row.line,
                    "kind": row.problem,
                    "detail": f"line {row.line} of the labels{why}",
                    "sha256": "",
                }
            )
        return records

    def left_out(self) -> list[dict[str, Any]]:
        """A quarantine record for each file or folder that was found and cannot be a tile; `row` is 0, no row names it."""
        return [
            {
                "image_name": "",
                "path": masked(entry.path),
                "row": 0,
                "kind": entry.kind,
                "detail": entry.detail,
                "sha256": "",
            }
            for entry in self.tiles.left_out
        ]

    def __str__(self) -> str:
        index = self.usable()
        if index.empty:
            return "no usable tile"
        lost = self.rule.unmatched(self.table["image_name"].to_list())
        counts = ", ".join(
            f"{part} {count}" for part, count in sorted(index["part"].value_counts().items())
        )
        alone = only_in_valid(index["part"], np.stack(list(index["target"])), self.tiles.classes)
        said = [f"only in validation, so never learned: {', '.join(alone)}"] if alone else []
        said += (
            [f"{len(lost)} listed names are no tiles: {visible(', '.join(lost[:3]))}"]
            if lost
            else []
        )
        return "; ".join([counts, *said])


def images_in(
    path: str,
    *,
    subfolders: bool = False,
    suffixes: Iterable[str] = SUFFIXES,
    folders: Iterable[str] = (),
) -> Images:
    """The pictures in a folder.

    Args:
        path: directory or URI.
        subfolders: also those in folders below it; their names are `folder/name`.
        suffixes: endings of picture files, in any case.
        folders: only these folders directly below `place`, with what is below them.

    Raises:
        DataError: no such folder, or no picture in it.
    """
    path, endings = storage.absolute(path), tuple(suffix.lower() for suffix in suffixes)
    found = pictures_in(path, subfolders=subfolders, suffixes=endings, folders=tuple(folders))
    if not found.files:
        missing = not storage.exists(path)
        left = (
            f"; {len(found.left_out)} were left out, such as {found.left_out[0]}"
            if found.left_out
            else ""
        )
        below = (
            []
            if missing or subfolders
            else pictures_in(path, subfolders=True, suffixes=endings).files
        )
        raise DataError(
            f"the image folder {path} {'does not exist' if missing else 'holds no pictures'}{left}",
            f"pictures end in {', '.join(endings)} and lie directly in the folder, or with --subfolders below it",
            f"--subfolders: {len(below)} pictures lie in folders below it"
            if below
            else "--images DIR with the folder of tiles",
        )
    table = pd.DataFrame(
        {
            "image_name": _names([file.path for file in found.files]),
            "file": [file.path for file in found.files],
            "path": [storage.join(path, file.path) for file in found.files],
            "stamp": [f"{file.size} {file.mtime_ns}" for file in found.files],
        }
    )
    return Images(table, {"images": storage.name_of(path)}, path, tuple(found.left_out))


def images_at(paths: Iterable[str]) -> Images:
    """Pictures by their places: paths or URIs (local, s3://, gs://), each with a file name of its own.

    Raises:
        DataError: none, or two with one name.
    """
    listed = [storage.absolute(path) for path in paths]
    junk = [path for path in listed if is_listed_junk(path)]
    kept = [path for path in listed if not is_listed_junk(path)]
    files = [storage.name_of(path) for path in kept]
    names = _names(files)
    twice = pd.Series(names, dtype=str).duplicated()
    if twice.any() or not kept:
        raise DataError(
            f"two of the listed pictures are named {names[int(twice.argmax())]}"
            if kept
            else "no picture is listed",
            "labels are looked up by name",
            "give each picture a file name of its own",
        )
    table = pd.DataFrame(
        {"image_name": names, "file": files, "path": kept, "stamp": list(map(_stamp, kept))}
    )
    left = tuple(
        LeftOut(visible(path), "system-file", "a thumbnail, or what a system leaves")
        for path in junk
    )
    return Images(
        table.sort_values("path", ignore_index=True), {"images": "a list of places"}, "", left
    )


def _stamp(path: str) -> str:
    """Size and time of change of a local file; asking a store for each of many objects would take too long."""
    try:
        found = None if storage.is_uri(path) else os.stat(path)
    except OSError:
        return ""
    return f"{found.st_size} {found.st_mtime_ns}" if found else ""


def _names(paths: list[str]) -> list[str]:
    """Paths without suffix, except where two pictures would get one name."""
    stems = pd.Series([path.rsplit(".", 1)[0] for path in paths], dtype=str)
    return list(stems.where(~stems.duplicated(keep=False), pd.Series(paths, dtype=str)))


def _with_pictures(labels: Labels, images: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Rows of the labels with the path of their picture, and the paths of pictures that no row names.

    A row may name its picture with or without suffix, in another Unicode form or case of the suffix, and without its folder.
    """
    paths = dict(zip(images["file"], images["path"], strict=True))
    paths |= dict(zip(images["image_name"], images["path"], strict=True))
    stamps = dict(zip(images["path"], images["stamp"], strict=True))
    pictures = KnownNames(paths, spelling)
    rows = [_picture_of(name, paths, pictures) for name in labels.table["image_name"]]
    table = labels.table.drop(columns="tags").assign(target=list(labels.targets))
    table["image_name"] = [row.name for row in rows]
    table["path"] = [row.path for row in rows]
    table["stamp"] = [stamps.get(path, "") for path in table["path"]]
    lost = (table["problem"] == "") & (table["path"] == "")
    table["problem"] = table["problem"].where(~lost, [row.problem for row in rows])
    table["detail"] = table["detail"].where(~lost, [row.detail for row in rows])
    # `x` and `x.jpg` may name one picture: in both parts it would leak.
    usable = table[table["problem"] == ""]
    for _, same in usable[usable["path"].duplicated(keep=False)].groupby("path"):
        differ = len({target.tobytes() for target in same["target"]}) > 1
        left = same.index if differ else same.index[1:]
        table.loc[left, "problem"] = "contradicting-labels" if differ else "same-picture"
    return table, sorted(set(images["path"]) - set(table["path"]))


@dataclass(frozen=True)
class _Picture:
    """The picture that a row of the labels names, or why there is none: name, path, problem and detail."""

    name: str
    path: str = ""
    problem: str = ""
    detail: str = ""


def _picture_of(name: str, paths: Mapping[str, str], pictures: KnownNames) -> _Picture:
    if name in paths:
        return _Picture(name, paths[name])
    meant = pictures.whole(name) or pictures.in_folders(name)
    if not meant:
        return _Picture(name, "", "missing")
    if len({paths[known] for known in meant}) > 1:
        return _Picture(name, "", "ambiguous-name", f"it may be {visible(' or '.join(meant[:3]))}")
    if pictures.whole(name):
        return _Picture(name, paths[meant[0]])
    return _Picture(meant[0], paths[meant[0]])


def _where_to_look(labels: pd.DataFrame, images: pd.DataFrame, folder: str) -> str:
    """What to do where the labels name no picture at all."""
    if labels["image_name"].str.startswith(f"{folder}/").all():
        return f"the names begin with {folder}/: give the folder above it, --images DIR --folders {folder}"
    if (labels["problem"] == "ambiguous-name").any():
        return "write names as folder/name: several folders hold a picture of the same name"
    stems = KnownNames(images["image_name"])
    if any(stems.find(name) for name in labels["image_name"]):
        first = images["file"].iloc[0]
        return f"the names have another suffix than the pictures, such as {first}; write them without suffix"
    if images["image_name"].str.contains("/").any():
        return "check the folder, and whether the labels name the tiles as the files are named"
    return "check the folder; --subfolders also looks into the folders below it"


def _of_each(
    names: Sequence[str], groups: Sequence[str] | Mapping[str, str] | Callable[[str], str] | None
) -> Sequence[str]:
    if groups is None:
        return []
    if callable(groups):
        return [groups(name) for name in names]
    if not isinstance(groups, Mapping):
        return list(groups)
    missing = [name for name in names if name not in groups]
    if missing:
        raise DataError(
            f"the mapping has no group for {len(missing)} tiles, such as {missing[0]}",
            "",
            "add them",
        )
    return [groups[name] for name in names]


def _few(names: pd.Series) -> str:
    return visible(", ".join(names.iloc[:3])) + (", ..." if len(names) > 3 else "")
