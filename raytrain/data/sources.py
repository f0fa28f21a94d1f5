"""From pictures and labels to the table of tiles, in steps that can be printed one by one:

    tiles = images_in("train-jpg")                          # where the pictures are
    tiles = tiles.add_test_folder("test-jpg")               # pictures to predict, if there are any
    tiles = tiles.label_from_file("train_v2.csv")           # which labels they have
    tiles = tiles.split(by="random", valid=0.2, seed=42)    # which tiles validate

`distributed.ingest.ingest(tiles, "planet")` then writes the dataset. How pictures are transformed
is a matter of the recipe. The label file is the only file that is opened here. Imports neither
torch nor ray.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from raytrain import registry, storage
from raytrain.data import unlabelled
from raytrain.data.class_folders import check_folders
from raytrain.data.label_format import LabelFormat
from raytrain.data.labels import Labels, labels_in, labels_of, labels_of_folders, read_labels
from raytrain.data.listing import LeftOut, Listing, pictures_in
from raytrain.data.names import (
    SUFFIXES,
    KnownNames,
    is_listed_junk,
    spelling,
    tile_names,
    visible,
)
from raytrain.data.splits import Rows, Rule, only_in_valid
from raytrain.data.tables import FrameTable, cell_of
from raytrain.data.unlabelled import UnlabelledFolder
from raytrain.errors import DataError, masked

Array = np.ndarray[Any, Any]

Groups = Sequence[str] | Mapping[str, str] | Callable[[str], str] | None
"""The group of each tile: one for each row, or a mapping or function from image_name to it."""

_INDEX_COLUMNS = ["image_name", "path", "stamp", "row", "part", "target", "known"]


@dataclass(frozen=True)
class Images:
    """Pictures that were found or listed, not yet labelled.

    Attributes:
        table: one row per picture, sorted by path: image_name (path below the folder, without
            suffix if that is unique), file (the same with suffix), path (of the file) and stamp
            (its size and modification time, or empty if unknown).
        source: what dataset.json stores about where the pictures came from.
        origin: path or URI of the folder; empty for a list of pictures.
        left_out: files and folders that were found and cannot be tiles.
        test_folders: pictures whose target is unknown; none of them is in `table`.
    """

    table: pd.DataFrame
    source: dict[str, Any]
    origin: str = ""
    left_out: tuple[LeftOut, ...] = ()
    test_folders: tuple[UnlabelledFolder, ...] = ()

    def __str__(self) -> str:
        names = _first_names(self.table["image_name"])
        # Printed by the examples of docs/python.md after each step.
        text = f"{len(self.table)} pictures in {self.source['images']}: {names}"
        for folder in self.test_folders:
            text += f"; {folder}"
        if self.left_out:
            text += f"; {len(self.left_out)} left out"
        return text

    def add_test_folder(self, folder: str, suffixes: Iterable[str] = SUFFIXES) -> Images:
        """Adds tiles whose target is unknown: all pictures in a folder and in the folders below it.

        They are in the part `test` of every split, are predicted, and are never trained on. They
        are no longer among the pictures that labels are looked for.

        Args:
            folder: a path or URI, or the path of a folder below the image folder.
            suffixes: suffixes of picture files, in upper or lower case.

        Raises:
            DataError: the folder does not exist or has no pictures, or holds all pictures.
        """
        added = unlabelled.find(folder, self.origin, _endings(suffixes))
        unlabelled.check_apart(self.test_folders, added)
        is_test = np.array(added.holds(self.table["path"]))
        if is_test.all():
            raise DataError(
                f"the test folder {added.path} holds all pictures of {self.source['images']}",
                "no tile would be left to train on",
                unlabelled.FIX,
            )
        return replace(
            self,
            table=self.table[~is_test].reset_index(drop=True),
            left_out=_all_left_out(self.left_out, added),
            test_folders=(*self.test_folders, added),
        )

    def label_from_file(
        self,
        path: str,
        form: LabelFormat | None = None,
        classes: Sequence[str] | None = None,
        *,
        task: str = registry.DEFAULT,
        allow_empty: bool = False,
        force: bool = False,
    ) -> Tiles:
        """Reads labels from a CSV or Parquet file.

        Arguments and errors are those of `labels.read_labels`; `form` is by default the usual one
        of the task.

        Raises:
            ConfigError: the task cannot have what is asked for.
        """
        path = storage.absolute(path)
        targets = registry.targets(task)
        targets.check_empty(allow_empty)
        form = targets.adapted(form or targets.FORMAT)
        labels = read_labels(path, form, classes, allow_empty=allow_empty, force=force)
        origin = {"file": storage.name_of(path), "form": form.content()}
        return self._label(labels, origin, task)

    def label_from_table(
        self,
        table: pd.DataFrame,
        form: LabelFormat | None = None,
        classes: Sequence[str] | None = None,
        *,
        task: str = registry.DEFAULT,
    ) -> Tiles:
        """Reads labels from a table in memory.

        Args:
            table: its tags column holds texts or lists of texts.
            form: names of the columns; by default the usual ones of the task.
            classes: the labels in target order; by default all of them, sorted.
            task: what a tile has, see `raytrain.registry`.

        Raises:
            DataError: see `labels.read_labels`.
        """
        targets = registry.targets(task)
        form = targets.adapted(form or targets.FORMAT)
        labels = labels_in(FrameTable(table), form, classes)
        return self._label(labels, {"table": form.content()}, task)

    def label_from_folders(
        self, classes: Sequence[str] | None = None, *, task: str = registry.DEFAULT
    ) -> Tiles:
        """Uses the name of the folder of each picture as its label.

        Args:
            classes: the labels in target order; by default all of them, sorted.
            task: what a tile has, see `raytrain.registry`.

        Raises:
            DataError: a picture is directly in the source folder, a label is not in `classes`, or
                a folder of pictures that are probably not labelled would become a class.
        """
        names = self.table["image_name"].to_list()
        bare = [name for name in names if "/" not in name]
        if bare:
            raise DataError(
                f"{len(bare)} pictures lie in no sub-folder of {self.source['images']}, "
                f"such as {bare[0]}",
                "the folder's name is the label",
                "put each into a folder named by its label "
                "(images_in(DIR, subfolders=True)), or give --labels FILE",
            )
        check_folders(names, classes or ())
        # The innermost folder: the outer ones may be parts, as in train/forest/1.png.
        folders = [name.split("/")[-2] for name in names]
        labels = labels_of_folders(names, folders, classes)
        return self._label(labels, {"made from": "the folder names"}, task)

    def label_with(
        self,
        function: Callable[[str], str | Iterable[str]],
        classes: Sequence[str] | None = None,
        *,
        task: str = registry.DEFAULT,
    ) -> Tiles:
        """Calls a function for the labels of each picture.

        Args:
            function: gets an image_name; returns one text, in which white space separates the
                labels if the task has several, or several texts.
            classes: the labels in target order; by default all of them, sorted.
            task: what a tile has, see `raytrain.registry`.

        Raises:
            DataError: a label is not in `classes`.
        """
        source = "the labels of the function"
        names = self.table["image_name"].to_list()
        cells = []
        for name in names:
            where = f"{source}, for {visible(name)},"
            cells.append(cell_of(function(name), where))
        one_label = registry.targets(task).FORMAT.one_label
        labels = labels_of(names, cells, source, classes, one_label=one_label)
        return self._label(labels, {"made from": source}, task)

    def _label(self, labels: Labels, origin: dict[str, Any], task: str) -> Tiles:
        """Joins labels and pictures; `origin` is what dataset.json stores about the labels."""
        labels = registry.targets(task).checked(labels)
        table = _with_pictures(labels, self.table)
        if (table["path"] == "").all():
            raise DataError(
                f"none of the {len(table)} tiles of the label source is among the {self}",
                f"the labels name {_first_names(table['image_name'])}",
                _where_to_look(table, self.table, self.source["images"]),
            )
        # dataset.json keeps this order of the keys.
        source = dict(self.source)
        source["pictures_sha256"] = _pictures_hash(table)
        source["labels"] = origin | {"sha256": labels.sha256}
        source["classes"] = labels.classes
        # An older dataset has no task in its source, and is another one's input only if it differs.
        if task != registry.DEFAULT:
            source["task"] = task
        labelled = set(table["path"].to_list())
        unlisted = []
        for path in sorted(self.table["path"].to_list()):
            if path not in labelled:
                unlisted.append(path)
        tiles = Tiles(
            table=table,
            classes=labels.classes,
            source=source,
            notes=labels.notes,
            unlisted=unlisted,
            remarks=labels.remarks,
            left_out=self.left_out,
            task=task,
            origin=self.origin,
        )
        return tiles._with_test_folders(self.test_folders)


@dataclass(frozen=True)
class Tiles:
    """Labelled tiles, not yet divided.

    Attributes:
        table: one row per row of the labels, in their order: image_name, path (empty if there is no
            picture), stamp, line, target (uint8 (K,)), problem (the kind that quarantine.jsonl
            gives, or empty) and detail (why, if there is more to say). A name without a folder in
            the labels gets the folder of its picture.
        classes: the K label names in target order.
        source: what dataset.json stores about images and labels.
        notes: number of tidied items, by a short description.
        unlisted: paths of pictures without labels.
        remarks: sentences that a user should read about how the labels were read.
        left_out: files and folders that were found and cannot be tiles.
        task: what a tile has, see `raytrain.registry`.
        origin: path or URI of the image folder; empty for a list of pictures.
        test_folders: pictures whose target is unknown; none of them is in `table`.
        tests: the tiles of `test_folders`, as `unlabelled.named` returns them.
    """

    table: pd.DataFrame
    classes: list[str]
    source: dict[str, Any]
    notes: dict[str, int]
    unlisted: list[str]
    remarks: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    task: str = registry.DEFAULT
    origin: str = ""
    test_folders: tuple[UnlabelledFolder, ...] = ()
    tests: pd.DataFrame = field(default_factory=lambda: unlabelled.named((), ()))

    def __str__(self) -> str:
        usable = self.table["problem"] == ""
        labels = int(self._tiles_of_classes().sum())
        parts = [f"{usable.sum()} tiles, {len(self.classes)} classes, {labels} labels"]
        problems = self.table.loc[~usable, "problem"].value_counts()
        for kind, count in problems.items():
            parts.append(f"{count} {kind}")
        for note, count in self.notes.items():
            if count:
                parts.append(f"{count} {note}")
        if self.unlisted:
            parts.append(f"{len(self.unlisted)} pictures without labels left out")
        parts += [str(folder) for folder in self.test_folders]
        return "; ".join(parts)

    @property
    def names(self) -> list[str]:
        """Names of all tiles: those of `table`, then those of `tests`."""
        return [*self.table["image_name"], *self.tests["image_name"]]

    @property
    def known(self) -> Array:
        """bool (tiles,): whether the target of each tile is known, in the order of `names`."""
        return np.arange(len(self.names)) < len(self.table)

    def add_test_folder(self, folder: str, suffixes: Iterable[str] = SUFFIXES) -> Tiles:
        """Adds tiles whose target is unknown, as `Images.add_test_folder` does.

        Raises:
            DataError: the folder does not exist or has no pictures, or the labels name one of them.
        """
        added = unlabelled.find(folder, self.origin, _endings(suffixes))
        unlabelled.check_apart(self.test_folders, added)
        more = replace(self, left_out=_all_left_out(self.left_out, added))
        return more._with_test_folders((*self.test_folders, added))

    def _with_test_folders(self, folders: tuple[UnlabelledFolder, ...]) -> Tiles:
        """Returns the tiles with these test folders, after checking that nothing contradicts."""
        if not folders:
            return self
        unlisted = self.unlisted
        entries = []
        for folder in folders:
            unlabelled.check_labels(self.table, folder)
            is_test = folder.holds(unlisted)
            unlisted = [path for path, test in zip(unlisted, is_test, strict=True) if not test]
            content = _files_hash(folder.files)
            entries.append({"folder": folder.folder, "pictures_sha256": content})
        return replace(
            self,
            source=self.source | {"test_folders": entries},
            unlisted=unlisted,
            test_folders=folders,
            tests=unlabelled.named(folders, self.table["image_name"]),
        )

    def counts(self) -> str:
        """Returns every class with the number of its usable tiles, in one line."""
        parts = []
        for name, count in zip(self.classes, self._tiles_of_classes(), strict=True):
            parts.append(f"{visible(name)} {count}")
        return ", ".join(parts)

    def _tiles_of_classes(self) -> Array:
        """int64 (K,): usable tiles of each class."""
        # Not in uint8, which ends at 255; row by row, so that no matrix of targets is needed.
        counts = np.zeros(len(self.classes), np.int64)
        for target in self.table.loc[self.table["problem"] == "", "target"]:
            counts += target
        return counts

    def split(
        self,
        by: str = "random",
        valid: float = 0.2,
        seed: int = 42,
        *,
        groups: Groups = None,
        valid_values: Iterable[str] = (),
        test_values: Iterable[str] = (),
    ) -> DividedTiles:
        """Decides which tiles validate, before any picture is opened.

        The division is drawn over all rows of the labels, so that it does not depend on which
        pictures turn out to be unusable.

        Args:
            by: random (as fast.ai's lesson), stratified, group, column, folder or list; see
                `splits.Rule`.
            valid: validation fraction of the rows, for random, stratified and group.
            seed: of the division, and of the order in which rows are written.
            groups: group or column value of each tile.
            valid_values: column values, top folders or tile names that validate.
            test_values: column values, top folders or tile names that test.

        Raises:
            DataError: too few groups, a value that no tile has, or a part without tiles.
        """
        folds = None  # an ingest writes one split; `raytrain data split` makes folds
        rule = Rule(by, valid, folds, tuple(valid_values), tuple(test_values), seed)
        return self.divide(rule, groups)

    def divide(self, rule: Rule, groups: Groups = None) -> DividedTiles:
        """Decides by a rule which tiles validate. Arguments and errors are those of `split`."""
        rows = self._rows(groups)
        parts = rule.parts(rows)
        # What is behind are tiles without a target, which are in the part test.
        return DividedTiles(self.table.assign(part=parts[: len(self.table)]), self, rule)

    def _rows(self, groups: Groups = None) -> Rows:
        """Returns the tiles as a rule divides them."""
        names = self.table["image_name"].to_list()
        others = self.tests["image_name"].to_list()
        targets = np.stack(list(self.table["target"]))
        no_targets = np.zeros((len(others), targets.shape[1]), targets.dtype)
        return Rows(
            names=[*names, *others],
            targets=np.concatenate([targets, no_targets]),
            groups=_groups_of(names, others, groups),
            known=self.known,
        )


@dataclass(frozen=True)
class DividedTiles:
    """Labelled and divided tiles: what `distributed.ingest.ingest` writes.

    Attributes:
        table: as in `Tiles`, with the column part (train, valid or test).
        tiles: the tiles before the division.
        rule: how they were divided.
    """

    table: pd.DataFrame
    tiles: Tiles
    rule: Rule

    @property
    def source(self) -> dict[str, Any]:
        """What dataset.json stores about images, labels and split, in JSON's types."""
        return self.tiles.source | {"split": self.rule.content()}

    def usable(self) -> pd.DataFrame:
        """Returns the rows without a problem: image_name, path, stamp, row, part, target, known.

        Behind the rows of the labels are the tiles of test folders, with known False, row 0 and a
        target of zeros that mean nothing.
        """
        is_good = self.table["problem"] == ""
        good = self.table[is_good].rename(columns={"line": "row"}).assign(known=True)
        good = good[_INDEX_COLUMNS].reset_index(drop=True)
        tests = self.tiles.tests
        if tests.empty:
            return good
        tests = tests[tests["problem"] == ""].assign(row=0, part="test", known=False)
        tests["target"] = [np.zeros(len(self.tiles.classes), np.uint8)] * len(tests)
        return pd.concat([good, tests[_INDEX_COLUMNS]], ignore_index=True)

    @property
    def rows(self) -> int:
        """Number of rows of the labels and of pictures in test folders, usable or not."""
        return len(self.table) + len(self.tiles.tests)

    def unusable(self) -> list[dict[str, Any]]:
        """Returns a quarantine record for each row with a problem.

        Rows that repeat another one word for word are only counted.
        """
        not_reported = self.table["problem"].isin(["", "repeated"])
        bad = self.table[~not_reported]
        records = []
        for row in bad.itertuples():
            detail = f"line {row.line} of the labels"
            if row.detail:
                detail += f": {row.detail}"
            records.append(_quarantined(row, row.line, detail))
        tests = self.tiles.tests
        for row in tests[tests["problem"] != ""].itertuples():
            records.append(_quarantined(row, 0, row.detail))
        return records

    def left_out(self) -> list[dict[str, Any]]:
        """Returns a quarantine record for each file or folder that cannot be a tile.

        `row` is 0, because no row of the labels names it.
        """
        records = []
        for entry in self.tiles.left_out:
            records.append(
                {
                    "image_name": "",
                    "path": masked(entry.path),
                    "row": 0,
                    "kind": entry.kind,
                    "detail": entry.detail,
                    "sha256": "",
                }
            )
        return records

    def __str__(self) -> str:
        # Only usable rows become tiles; parts of the others would not be true of the dataset.
        index = self.usable()
        if index.empty:
            return "no usable tile"
        tiles = index["part"].value_counts()
        counts = []
        for part, count in sorted(tiles.items()):
            counts.append(f"{part} {count}")
        sentences = [", ".join(counts)]
        unknown = int((~index["known"]).sum())
        if unknown:
            sentences[0] += f" ({unknown} without a target)"
        targets = np.stack(list(index["target"]))
        alone = only_in_valid(index["part"], targets, self.tiles.classes)
        if alone:
            sentences.append(f"only in validation, so never learned: {', '.join(alone)}")
        lost = self.rule.unmatched(self.tiles._rows())
        if lost:
            examples = visible(", ".join(lost[:3]))
            sentences.append(f"{len(lost)} listed names are no tiles: {examples}")
        return "; ".join(sentences)


def _quarantined(row: Any, number: int, detail: str) -> dict[str, Any]:
    """Returns the quarantine record of a tile that cannot be used.

    Args:
        row: with image_name, path and problem.
        number: of its row of the labels, 0 without one.
        detail: why it cannot be used.
    """
    return {
        "image_name": row.image_name,
        "path": masked(row.path),
        "row": number,
        "kind": row.problem,
        "detail": detail,
        "sha256": "",
    }


def _all_left_out(left_out: Sequence[LeftOut], added: UnlabelledFolder) -> tuple[LeftOut, ...]:
    """Returns what was left out of the image folder and of an added test folder, each once."""
    inside = f"{visible(added.folder)}/"
    kept = []
    for entry in left_out:
        if not added.is_below or not entry.path.startswith(inside):
            kept.append(entry)
    return (*kept, *added.left_out)


def _endings(suffixes: Iterable[str]) -> tuple[str, ...]:
    return tuple(suffix.lower() for suffix in suffixes)


def images_in(
    path: str,
    *,
    subfolders: bool = False,
    suffixes: Iterable[str] = SUFFIXES,
    folders: Iterable[str] = (),
) -> Images:
    """Finds the pictures in a folder.

    Example:
        ```python
        tiles = raytrain.images_in("train-jpg").label_from_file("train_v2.csv")
        tiles = tiles.split(by="random", valid=0.2, seed=42)
        ```

    Args:
        path: directory or URI.
        subfolders: also find pictures in the folders below it; their names are `folder/name`.
        suffixes: suffixes of picture files, in upper or lower case.
        folders: only these folders directly below `path`, with all that is below them.

    Raises:
        DataError: the folder does not exist, or has no pictures.
    """
    path = storage.absolute(path)
    endings = _endings(suffixes)
    found = pictures_in(path, subfolders=subfolders, suffixes=endings, folders=tuple(folders))
    if not found.files:
        raise _no_pictures(path, found, subfolders, endings)
    files = [file.path for file in found.files]
    table = pd.DataFrame(
        {
            "image_name": tile_names(files),
            "file": files,
            "path": [storage.join(path, file) for file in files],
            "stamp": [f"{file.size} {file.mtime_ns}" for file in found.files],
        }
    )
    return Images(table, {"images": storage.name_of(path)}, path, tuple(found.left_out))


def _no_pictures(
    path: str, found: Listing, subfolders: bool, endings: tuple[str, ...]
) -> DataError:
    what = f"the image folder {path} holds no pictures"
    fix = "--images DIR with the folder of tiles"
    if not storage.exists(path):
        what = f"the image folder {path} does not exist"
    elif not subfolders:
        # The most frequent mistake: there is one folder for each label.
        below = pictures_in(path, subfolders=True, suffixes=endings).files
        if below:
            fix = f"--subfolders: {len(below)} pictures lie in folders below it"
    if found.left_out:
        what += f"; {len(found.left_out)} were left out, such as {found.left_out[0]}"
    return DataError(
        what,
        f"pictures end in {', '.join(endings)} and lie directly in the folder, "
        "or with --subfolders below it",
        fix,
    )


def images_at(paths: Iterable[str]) -> Images:
    """Takes pictures from a list of paths.

    Example:
        ```python
        tiles = raytrain.images_at(["a/1.jpg", "s3://bucket/b/2.jpg"])
        ```

    Args:
        paths: paths or URIs (local, s3://, gs://), each with a file name of its own.

    Raises:
        DataError: the list is empty, or two pictures have the same name.
    """
    kept = []
    left_out = []
    for path in paths:
        path = storage.absolute(path)
        if is_listed_junk(path):
            detail = "a thumbnail, or what a system leaves"
            left_out.append(LeftOut(visible(path), "system-file", detail))
        else:
            kept.append(path)
    files = [storage.name_of(path) for path in kept]
    names = tile_names(files)
    _check_listed(names)
    table = pd.DataFrame(
        {
            "image_name": names,
            "file": files,
            "path": kept,
            "stamp": [_stamp(path) for path in kept],
        }
    )
    table = table.sort_values("path", ignore_index=True)
    # dataset.json stores these words, so they never change.
    return Images(table, {"images": "a list of places"}, "", tuple(left_out))


def _check_listed(names: list[str]) -> None:
    why = "labels are looked up by name"
    fix = "give each picture a file name of its own"
    if not names:
        raise DataError("no picture is listed", why, fix)
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataError(f"two of the listed pictures are named {name}", why, fix)
        seen.add(name)


def _stamp(path: str) -> str:
    """Returns size and modification time of a local file, or an empty string."""
    # Asking an object store about each of many objects would take too long.
    if storage.is_uri(path):
        return ""
    try:
        found = os.stat(path)
    except OSError:
        return ""
    return f"{found.st_size} {found.st_mtime_ns}"


def _files_hash(files: pd.DataFrame) -> str:
    """Returns the SHA-256 of the files of a test folder: their paths in it, and their sizes."""
    return _pictures_hash(files.rename(columns={"file": "image_name"}))


def _pictures_hash(table: pd.DataFrame) -> str:
    """Returns the SHA-256 of the names and sizes of all pictures."""
    lines = []
    columns = [table[name].to_list() for name in ("image_name", "path", "stamp")]
    for name, path, stamp in zip(*columns, strict=True):
        # The size without the time, so that a copy of the pictures makes the same dataset.
        known = path
        if stamp:
            known = stamp.split()[0]
        lines.append(f"{name} {known}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _with_pictures(labels: Labels, images: pd.DataFrame) -> pd.DataFrame:
    """Adds the path of its picture to each row of the labels; the columns are those of `Tiles`.

    A row may name its picture with or without suffix, in another Unicode form or case of the
    suffix, and without its folder.
    """
    # A picture is known by its name with and without suffix. An image_name, which comes second,
    # replaces an equal file name of another picture.
    # As lists: pandas takes ten times as long to go through a column of strings itself.
    files = images["path"].to_list()
    paths = dict(zip(images["file"].to_list(), files, strict=True))
    paths |= dict(zip(images["image_name"].to_list(), files, strict=True))
    stamps = dict(zip(files, images["stamp"].to_list(), strict=True))
    table = labels.table.drop(columns="tags").assign(target=list(labels.targets))
    table["path"] = [paths.get(name, "") for name in table["image_name"].to_list()]
    others = table.index[table["path"] == ""]
    # Usually there are none, and other spellings of a million names take seconds and memory.
    if len(others):
        _look_up(table, others, paths)
    table["stamp"] = [stamps.get(path, "") for path in table["path"].to_list()]
    _mark_same_pictures(table)
    return table


def _look_up(table: pd.DataFrame, others: pd.Index[Any], paths: Mapping[str, str]) -> None:
    """Finds the pictures of rows whose names are other spellings, or says why there is none.

    Args:
        table: as `_with_pictures` makes it; `image_name`, `path`, `problem` and `detail` change.
        others: of these rows.
        paths: path of each known name.
    """
    known = KnownNames(paths, spelling)
    names = table.loc[others, "image_name"].to_list()
    found = pd.DataFrame([_picture_of(name, paths, known) for name in names], index=others)
    table.loc[others, "image_name"] = found["name"]
    table.loc[others, "path"] = found["path"]
    # A problem of the label row itself says more than a missing picture.
    lost = others[(found["path"] == "") & (table.loc[others, "problem"] == "")]
    for column in ("problem", "detail"):
        table.loc[lost, column] = found.loc[lost, column]


def _mark_same_pictures(table: pd.DataFrame) -> None:
    """Sets the problem of rows that name the picture of another row.

    `x` and `x.jpg` may name one picture: in both training and validation it would leak.
    """
    usable = table[table["problem"] == ""]
    repeated = usable[usable["path"].duplicated(keep=False)]
    for _, rows in repeated.groupby("path"):
        targets = {target.tobytes() for target in rows["target"]}
        if len(targets) > 1:
            # Which row is right cannot be known.
            table.loc[rows.index, "problem"] = "contradicting-labels"
        else:
            table.loc[rows.index[1:], "problem"] = "same-picture"


@dataclass(frozen=True)
class _Picture:
    """The picture that a row of the labels names, or why there is none.

    Attributes:
        name: name of the tile from now on.
        path: of the picture; empty if there is none.
        problem: the kind that quarantine.jsonl gives, or empty.
        detail: why, if the kind does not say enough.
    """

    name: str
    path: str = ""
    problem: str = ""
    detail: str = ""


def _picture_of(name: str, paths: Mapping[str, str], pictures: KnownNames) -> _Picture:
    """Finds the picture of a name; `paths` gives the path of each known name."""
    if name in paths:
        return _Picture(name, paths[name])
    whole = pictures.whole(name)
    meant = whole or pictures.in_folders(name)
    if not meant:
        return _Picture(name, problem="missing")
    # Several known names of one picture, with and without suffix, are no ambiguity.
    if len({paths[known] for known in meant}) > 1:
        detail = f"it may be {visible(' or '.join(meant[:3]))}"
        return _Picture(name, problem="ambiguous-name", detail=detail)
    path = paths[meant[0]]
    if whole:
        return _Picture(name, path)
    # The name lacked its folder; with it, tiles can be divided by folder.
    return _Picture(meant[0], path)


def _where_to_look(labels: pd.DataFrame, images: pd.DataFrame, folder: str) -> str:
    """Returns what to do if the labels name no picture at all.

    Args:
        labels: as in `Tiles`.
        images: as in `Images`.
        folder: name of the image folder.
    """
    # From the clearest case to the least clear one.
    if labels["image_name"].str.startswith(f"{folder}/").all():
        return (
            f"the names begin with {folder}/: "
            f"give the folder above it, --images DIR --folders {folder}"
        )
    if (labels["problem"] == "ambiguous-name").any():
        return "write names as folder/name: several folders hold a picture of the same name"
    stems = KnownNames(images["image_name"])
    if any(stems.find(name) for name in labels["image_name"]):
        first = images["file"].iloc[0]
        return (
            f"the names have another suffix than the pictures, such as {first}; "
            "write them without suffix"
        )
    if images["image_name"].str.contains("/").any():
        return "check the folder, and whether the labels name the tiles as the files are named"
    return "check the folder; --subfolders also looks into the folders below it"


def _groups_of(names: Sequence[str], others: Sequence[str], groups: Groups) -> Sequence[str]:
    """Returns the group of each name; none if no groups were given.

    Args:
        names: of the tiles with a target.
        others: of the tiles without a target, whose group may be missing.
        groups: see `Groups`. A sequence has the groups of `names`, and perhaps of `others` too.
    """
    if groups is None:
        return []
    if callable(groups):
        return [groups(name) for name in (*names, *others)]
    # What is left is a mapping, or a sequence in the order of the rows, whose length `Rule` checks.
    if not isinstance(groups, Mapping):
        given = list(groups)
        if len(given) == len(names):
            given += [""] * len(others)
        return given
    missing = [name for name in names if name not in groups]
    if missing:
        raise DataError(
            f"the mapping has no group for {len(missing)} tiles, such as {missing[0]}",
            "",
            "add them",
        )
    of_others = [groups.get(name, "") for name in others]
    return [groups[name] for name in names] + of_others


def _first_names(names: pd.Series) -> str:
    """Returns the first three names, for a message."""
    text = visible(", ".join(names.iloc[:3]))
    if len(names) > 3:
        text += ", ..."
    return text
