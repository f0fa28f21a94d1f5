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
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from raytrain import storage
from raytrain.data.images import SUFFIXES
from raytrain.data.labels import KAGGLE_FORMAT, LabelFormat, Labels, labels_of, read_labels
from raytrain.data.splits import Rule, only_in_valid
from raytrain.errors import DataError, masked


@dataclass(frozen=True)
class Images:
    """Pictures that were found or listed, not yet labelled.

    Attributes:
        table: image_name (path below the folder, without suffix where that is unique), file (the same with suffix), path
            (place of the file) and stamp (size and time of change, empty where unknown), sorted by path.
        source: what the dataset's manifest says about where they came from.
    """

    table: pd.DataFrame
    source: dict[str, Any]

    def __str__(self) -> str:
        return f"{len(self.table)} pictures in {self.source['images']}: {_few(self.table['image_name'])}"

    def label_from_file(
        self,
        place: str,
        form: LabelFormat = KAGGLE_FORMAT,
        classes: Sequence[str] | None = None,
        *,
        allow_empty: bool = False,
        force: bool = False,
    ) -> Tiles:
        """Takes the labels from a CSV or Parquet file; arguments and errors as `labels.read_labels`."""
        place = storage.absolute(place)
        labels = read_labels(place, form, classes, allow_empty=allow_empty, force=force)
        return self._label(labels, {"file": storage.name_of(place), "form": asdict(form)})

    def label_from_table(
        self, table: pd.DataFrame, form: LabelFormat = KAGGLE_FORMAT, classes: Sequence[str] | None = None
    ) -> Tiles:
        """Takes the labels from a table in memory; cells of the tags column are text or lists of text.

        Raises:
            DataError: a column is missing, no rows, or a label is not in `classes`.
        """
        missing = [column for column in (form.name_column, form.tags_column) if column not in table]
        if missing:
            raise DataError(
                f'the table has no column "{missing[0]}", only {", ".join(map(str, table.columns))}',
                "it says which tile has which labels",
                "LabelFormat(name_column, tags_column) names the columns",
            )
        tags = [() if _is_blank(cell) else form.tags(cell) for cell in table[form.tags_column]]
        labels = labels_of(map(str, table[form.name_column]), tags, "the rows of the table", classes)
        return self._label(labels, {"table": asdict(form)})

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
                "images_in(DIR, subfolders=True), or on the command line --subfolders",
            )
        return self._label_each(lambda name: [name.split("/")[-2]], "the folder names", classes)

    def label_with(self, function: Callable[[str], str | Iterable[str]], classes: Sequence[str] | None = None) -> Tiles:
        """Takes as labels what a function makes of each image_name: one text (white space separates) or several.

        Raises:
            DataError: a label is not in `classes`.
        """
        return self._label_each(function, "the labels of the function", classes)

    def _label_each(
        self, function: Callable[[str], str | Iterable[str]], source: str, classes: Sequence[str] | None
    ) -> Tiles:
        names = self.table["image_name"].to_list()
        tags = (function(name) for name in names)
        cells = [words.split() if isinstance(words, str) else words for words in tags]
        return self._label(labels_of(names, cells, source, classes, listed=True), {"made from": source})

    def _label(self, labels: Labels, origin: dict[str, Any]) -> Tiles:
        table, unlisted = _joined(labels, self.table)
        if (table["path"] == "").all():
            raise DataError(
                f"none of the {len(table)} tiles of the label source is among the {self}",
                f"the labels name {_few(table['image_name'])}",
                "check the folder; --subfolders also looks into the folders below it",
            )
        # Sizes, not times: a copy of the pictures makes the same dataset.
        pictures = [f"{row.image_name} {row.stamp.split()[0] if row.stamp else row.path}" for row in table.itertuples()]
        known = {"pictures_sha256": hashlib.sha256("\n".join(pictures).encode()).hexdigest()}
        source = self.source | known | {"labels": origin | {"sha256": labels.sha256}, "classes": labels.classes}
        return Tiles(table, labels.classes, source, labels.notes, unlisted)


@dataclass(frozen=True)
class Tiles:
    """Labelled tiles, not yet divided.

    Attributes:
        table: one row per line of the labels, in their order: image_name, path (empty if there is no picture), stamp,
            line, target (uint8 array of K), problem (the quarantine kind, or empty).
        classes: label names in target order.
        source: what the manifest says about images and labels.
        notes: counts of what was tidied.
        unlisted: places of pictures without labels.
    """

    table: pd.DataFrame
    classes: list[str]
    source: dict[str, Any]
    notes: dict[str, int]
    unlisted: list[str]

    def __str__(self) -> str:
        usable = self.table["problem"] == ""
        labels = int(np.sum(list(self.table.loc[usable, "target"]), axis=(0, 1))) if usable.any() else 0
        said = [f"{n} {kind}" for kind, n in self.table.loc[~usable, "problem"].value_counts().items()]
        said += [f"{n} {note}" for note, n in self.notes.items() if n]
        said += [f"{len(self.unlisted)} pictures without labels left out"] if self.unlisted else []
        return f"{usable.sum()} tiles, {len(self.classes)} classes, {labels} labels" + "".join(f"; {s}" for s in said)

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
        return self.divide(Rule(by, valid, None, tuple(valid_values), tuple(test_values), seed), groups)

    def divide(
        self, rule: Rule, groups: Sequence[str] | Mapping[str, str] | Callable[[str], str] | None = None
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
        return [
            {"image_name": row.image_name, "path": masked(row.path), "row": row.line, "kind": row.problem,
             "detail": f"line {row.line} of the labels", "sha256": ""}
            for row in bad.itertuples()
        ]  # fmt: skip

    def __str__(self) -> str:
        index = self.usable()
        if index.empty:
            return "no usable tile"
        lost = self.rule.unmatched(self.table["image_name"].to_list())
        counts = ", ".join(f"{part} {count}" for part, count in sorted(index["part"].value_counts().items()))
        alone = only_in_valid(index["part"], np.stack(list(index["target"])), self.tiles.classes)
        said = [f"only in validation, so never learned: {', '.join(alone)}"] if alone else []
        said += [f"{len(lost)} listed names are no tiles: {', '.join(lost[:3])}"] if lost else []
        return "; ".join([counts, *said])


def images_in(
    place: str, *, subfolders: bool = False, suffixes: Iterable[str] = SUFFIXES, folders: Iterable[str] = ()
) -> Images:
    """The pictures in a folder.

    Args:
        place: directory or URI.
        subfolders: also those in folders below it; their names are `folder/name`.
        suffixes: endings of picture files, in any case.
        folders: only these folders directly below `place`, with what is below them.

    Raises:
        DataError: no such folder, or no picture in it.
    """
    place, endings, only = storage.absolute(place), tuple(s.lower() for s in suffixes), set(folders)
    files = [
        file
        for file in storage.files(place, recursive=subfolders or bool(only))
        if file.path.lower().endswith(endings)
        # macOS leaves ._x.jpg and __MACOSX beside the pictures it packs.
        and not any(part.startswith((".", "__MACOSX")) for part in file.path.split("/"))
        and (not only or file.path.split("/")[0] in only)
    ]
    if not files:
        missing = not storage.exists(place)
        raise DataError(
            f"the image folder {place} {'does not exist' if missing else 'holds no pictures'}",
            f"pictures end in {', '.join(endings)} and lie directly in the folder, or with --subfolders below it",
            "raytrain ingest --images DIR with the folder that holds the tiles",
        )
    table = pd.DataFrame(
        {
            "image_name": _names([file.path for file in files]),
            "file": [file.path for file in files],
            "path": [storage.join(place, file.path) for file in files],
            "stamp": [f"{file.size} {file.mtime_ns}" for file in files],
        }
    )
    return Images(table, {"images": storage.name_of(place)})


def images_at(places: Iterable[str]) -> Images:
    """Pictures by their places: paths or URIs (local, s3://, gs://), each with a file name of its own.

    Raises:
        DataError: none, or two with one name.
    """
    paths = [storage.absolute(place) for place in places]
    files = [storage.name_of(path) for path in paths]
    names = _names(files)
    twice = pd.Series(names, dtype=str).duplicated()
    if twice.any() or not paths:
        raise DataError(
            f"two of the listed pictures are named {names[int(twice.argmax())]}" if paths else "no picture is listed",
            "labels are looked up by name",
            "give each picture a file name of its own",
        )
    table = pd.DataFrame({"image_name": names, "file": files, "path": paths, "stamp": list(map(_stamp, paths))})
    return Images(table.sort_values("path", ignore_index=True), {"images": "a list of places"})


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


def _joined(labels: Labels, images: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Rows of the labels with the path of their picture, which they may name with or without suffix."""
    paths = dict(zip(images["file"], images["path"], strict=True))
    paths |= dict(zip(images["image_name"], images["path"], strict=True))
    stamps = dict(zip(images["path"], images["stamp"], strict=True))
    table = labels.table.drop(columns="tags").assign(target=list(labels.targets))
    table["path"] = [paths.get(name, "") for name in table["image_name"]]
    table["stamp"] = [stamps.get(path, "") for path in table["path"]]
    table.loc[(table["problem"] == "") & (table["path"] == ""), "problem"] = "missing"
    # `x` and `x.jpg` may name one picture: in both parts it would leak.
    usable = table[table["problem"] == ""]
    for _, same in usable[usable["path"].duplicated(keep=False)].groupby("path"):
        differ = len({target.tobytes() for target in same["target"]}) > 1
        rows = same.index if differ else same.index[1:]
        table.loc[rows, "problem"] = "contradicting-labels" if differ else "same-picture"
    return table, sorted(set(images["path"]) - set(table["path"]))


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
        raise DataError(f"the mapping has no group for {len(missing)} tiles, such as {missing[0]}", "", "add them")
    return [groups[name] for name in names]


def _is_blank(cell: object) -> bool:
    """None, and NaN, which pandas makes of an empty cell."""
    return cell is None or cell != cell


def _few(names: pd.Series) -> str:
    return ", ".join(names.iloc[:3]) + (", ..." if len(names) > 3 else "")
