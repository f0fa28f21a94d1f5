"""Inspects a whole dataset: labels by part, label rules, duplicates, leaks, unusual sizes.

`inspect(dataset, ...)` gathers all of it in one `Inspection`, which the terminal output and the
report page show. Tiles without a target count among the sizes and modes. Labels, rules, duplicates
and leaks leave them out. Imports neither torch nor ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from raytrain.data import duplicates
from raytrain.data.dataset import PARTS, Dataset, all_names, known_targets, names_of, unknown_tiles
from raytrain.data.duplicates import Group
from raytrain.errors import DataError, did_you_mean

Array = np.ndarray[Any, Any]

# "Planet: Understanding the Amazon from Space", page Data: a tile has exactly one of these labels,
# and a cloudy one has no other label.
WEATHER = ("clear", "cloudy", "haze", "partly_cloudy")
# With fewer tiles in a part, a label can hardly be learned or evaluated.
FEW = 2
FIRST = 5  # names in a message


@dataclass(frozen=True)
class LabelRule:
    """A rule that the labels of every tile should keep.

    Attributes:
        kind: one of
            `exactly-one`: a tile has exactly one of the labels,
            `at-most-one`: a tile has at most one of them,
            `alone`: a tile with one of them has no other label at all,
            `requires`: a tile with the first of them has the others too.
        labels: names.
    """

    kind: str
    labels: tuple[str, ...]

    def broken_by(self, targets: Array, classes: Sequence[str]) -> Array:
        """Returns the row numbers of the tiles that break the rule, ascending.

        Args:
            targets: uint8 (rows, K) of 0 and 1.
            classes: names of the K labels.
        """
        names = list(classes)
        columns = [names.index(label) for label in self.labels]
        present = targets != 0
        has = present[:, columns]  # bool (rows, labels of the rule)
        count = has.sum(1)
        count_of_all = present.sum(1)
        broken = {
            "exactly-one": count != 1,
            "at-most-one": count > 1,
            "alone": (count > 0) & (count_of_all > 1),
            "requires": has[:, 0] & ~has.all(1),
        }
        return np.flatnonzero(broken[self.kind])

    def __str__(self) -> str:
        names = ", ".join(self.labels)
        if self.kind == "exactly-one":
            return f"exactly one of {names}"
        if self.kind == "at-most-one":
            return f"at most one of {names}"
        if self.kind == "requires":
            others = ", ".join(self.labels[1:])
            return f"{self.labels[0]} only together with {others}"
        if len(self.labels) == 1:
            return f"{names} alone"
        return f"each of {names} alone"


@dataclass(frozen=True)
class Leak:
    """A group of duplicates that is in several parts of a split.

    Attributes:
        split: name of the split.
        kind: of the duplicates, one of `duplicates.KINDS`.
        rows: one row number for each part.
        parts: names of the parts, in the same order.
    """

    split: str
    kind: str
    rows: tuple[int, ...]
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """A dataset and what was found in it. All rows are row numbers of the dataset.

    Attributes:
        dataset: that was inspected.
        parts: by split, the part of each row, str (rows,); empty for a row that is not in it.
        rules: every rule with the rows that break it.
        default_rules: True where the rules of Planet's weather labels were added.
        prints: FINGERPRINT (rows,), see `duplicates`.
        decoded: whether pixels were read; otherwise only equal bytes can be found.
        groups: of tiles with a target that show the same.
    """

    dataset: Dataset
    parts: dict[str, Array]
    rules: tuple[tuple[LabelRule, Array], ...]
    default_rules: bool
    prints: Array
    decoded: bool
    groups: tuple[Group, ...]

    @cached_property
    def labels(self) -> pd.DataFrame:
        """Number of tiles: one row for each label; columns label, tiles, and `<split> <part>`."""
        columns = {"label": self.dataset.classes, "tiles": _sums(known_targets(self.dataset))}
        for split, part, rows in self.split_parts:
            columns[f"{split} {part}"] = _sums(self.dataset.targets[rows])
        return pd.DataFrame(columns)

    @cached_property
    def split_parts(self) -> list[tuple[str, str, Array]]:
        """(split, part, row numbers) of every part that has tiles with a target, and these rows."""
        found = []
        for split, part_of_row in self.parts.items():
            for part in PARTS:
                rows = np.flatnonzero((part_of_row == part) & self.dataset.known)
                if len(rows):
                    found.append((split, part, rows))
        return found

    @cached_property
    def leaks(self) -> list[Leak]:
        """Duplicates that are in several parts of a split, by split."""
        found = []
        for split, part_of_row in self.parts.items():
            for group in self.groups:
                leak = _leak(split, part_of_row, group)
                if leak is not None:
                    found.append(leak)
        return found

    @cached_property
    def group_table(self) -> pd.DataFrame:
        """Columns image_name and group, as `data split --by group` reads them.

        The group of a tile is the name of the first of its duplicates, else its own name.
        """
        names = np.array(all_names(self.dataset), object)
        group_names = names.copy()
        for group in self.groups:
            rows = list(group.rows)
            group_names[rows] = names[rows[0]]
        return pd.DataFrame({"image_name": names, "group": group_names})

    @cached_property
    def contradictions(self) -> list[Group]:
        """Groups of tiles that show the same and have different labels."""
        targets = self.dataset.targets
        found = []
        for group in self.groups:
            of_group = targets[list(group.rows)]  # (tiles, K)
            differs = of_group != of_group[0]
            if differs.any():
                found.append(group)
        return found

    @cached_property
    def sizes(self) -> dict[str, Array]:
        """Row numbers by `width x height`, most frequent size first."""
        widths = self.prints["width"]
        heights = self.prints["height"]
        sizes = [f"{width}x{height}" for width, height in zip(widths, heights, strict=True)]
        return _rows_by_value(sizes)

    @cached_property
    def modes(self) -> dict[str, Array]:
        """Row numbers by Pillow's mode, most frequent mode first."""
        return _rows_by_value(self.prints["mode"].tolist())

    def names(self, rows: Sequence[int] | Array, first: int = FIRST) -> str:
        """Returns the first names of some rows: `train_1, train_7 and 12 more`."""
        shown = names_of(self.dataset, rows[:first])
        return first_of(shown, len(rows))

    def sides_of(self, leak: Leak) -> str:
        """Returns the tiles and parts of a leak: `train_1 (train) and train_7 (valid)`."""
        sides = []
        for row, part in zip(leak.rows, leak.parts, strict=True):
            name = self.names([row])
            sides.append(f"{name} ({part})")
        return " and ".join(sides)

    @cached_property
    def warnings(self) -> list[str]:
        """What a person should look at, one sentence each, worst first."""
        return [
            *self._leak_warnings(),
            *self._duplicate_warnings(),
            *self._rule_warnings(),
            *self._label_warnings(),
        ]

    def _leak_warnings(self) -> list[str]:
        found = []
        for split in self.parts:
            leaks = [leak for leak in self.leaks if leak.split == split]
            for leak in leaks[:FIRST]:
                sides = self.sides_of(leak)
                found.append(f"split {split} leaks: {sides} show the same ({leak.kind})")
            more = len(leaks) - FIRST
            if more > 0:
                groups = count_of(more, "more group")
                found.append(f"split {split} leaks: {groups} in several parts")
        return found

    def _duplicate_warnings(self) -> list[str]:
        found = []
        if self.groups:
            tiles = sum(len(group.rows) for group in self.groups)
            groups = count_of(len(self.groups), "group")
            found.append(f"{groups} of duplicates, {tiles:,} tiles")
        for group in self.contradictions[:FIRST]:
            names = self.names(group.rows)
            found.append(f"tiles that show the same have different labels: {names}")
        more = len(self.contradictions) - FIRST
        if more > 0:
            groups = count_of(more, "more group")
            found.append(f"{groups} of duplicates with different labels")
        return found

    def _rule_warnings(self) -> list[str]:
        found = []
        for rule, rows in self.rules:
            if len(rows):
                names = self.names(rows)
                found.append(f"the rule “{rule}” is {verdict(rows)}: {names}")
        return found

    def _label_warnings(self) -> list[str]:
        found = []
        for split in self.parts:
            counts = self._counts_by_part(split)
            # A split of a single tile has only one part, so the other has no counts.
            none = np.zeros(len(self.dataset.classes), np.int64)
            in_train = counts.get("train", none) > 0
            in_valid = counts.get("valid", none) > 0
            only_valid = np.asarray(in_valid & ~in_train)
            if only_valid.any():
                labels = self.labels["label"][only_valid]
                found.append(
                    f"split {split}: {first_of(list(labels))} in validation only; "
                    "what is not trained is not learned"
                )
            rare = _rare_labels(self.dataset.classes, counts, only_valid)
            if rare:
                found.append(f"split {split}: fewer than {FEW} tiles of {first_of(rare)}")
        return found

    def _counts_by_part(self, split: str) -> dict[str, pd.Series]:
        """Number of tiles with each label, int64 (K,), by part of a split."""
        counts = {}
        for other, part, _ in self.split_parts:
            if other == split:
                counts[part] = self.labels[f"{split} {part}"]
        return counts


def inspect(
    dataset: Dataset,
    *,
    split: str | None = None,
    rules: Sequence[LabelRule] = (),
    decode: bool = True,
) -> Inspection:
    """Inspects every tile and label of a dataset.

    Args:
        dataset: an opened dataset whose bytes are known to be undamaged (`dataset.damages`).
        split: the only split to inspect; by default all.
        rules: of the labels. Those of the weather are added where the dataset has Planet's four
            weather labels.
        decode: False leaves out everything that needs pixels.

    Raises:
        DataError: unknown split or label, or a picture that cannot be decoded.
    """
    known_rows = np.flatnonzero(dataset.known)
    targets = known_targets(dataset)
    for rule in rules:
        for label in rule.labels:
            class_index(dataset, label)
    splits = [str(entry["name"]) for entry in dataset.manifest["splits"]]
    if split:
        splits = [split]
    parts = {name: parts_of(dataset, name) for name in splits}
    weather = weather_rules(dataset.classes)
    # A dictionary keeps the order and drops a rule that is given twice.
    all_rules = dict.fromkeys([*rules, *weather])
    broken = []
    for rule in all_rules:
        broken.append((rule, known_rows[rule.broken_by(targets, dataset.classes)]))
    prints = duplicates.fingerprints(dataset, decode=decode)
    return Inspection(
        dataset=dataset,
        parts=parts,
        rules=tuple(broken),
        default_rules=bool(weather),
        prints=prints,
        decoded=decode,
        groups=tuple(duplicates.groups(prints, known_rows)),
    )


def weather_rules(classes: Sequence[str]) -> tuple[LabelRule, ...]:
    """Returns the rules of Planet's weather labels where a dataset has all four, else none."""
    if not set(WEATHER) <= set(classes):
        return ()
    return LabelRule("exactly-one", WEATHER), LabelRule("alone", ("cloudy",))


def class_index(dataset: Dataset, label: str) -> int:
    """Returns the column of a label in the targets.

    Raises:
        DataError: the dataset has no such label.
    """
    if label in dataset.classes:
        return dataset.classes.index(label)
    known = ", ".join(dataset.classes)
    hint = did_you_mean(label, dataset.classes)
    raise DataError(
        f'{dataset.path} has no label "{label}" (it has: {known}).{hint}',
        "no tile can have it",
        f"raytrain data check {dataset.path} lists the labels with their tiles",
    )


def parts_of(dataset: Dataset, split: str) -> Array:
    """Returns the part of every row in a split.

    Returns:
        str (rows,) as objects; empty for a row that is not in the split.

    Raises:
        DataError: no such split.
    """
    table = dataset.split(split)
    part = dict(zip(table["image_name"], table["part"], strict=True))
    names = all_names(dataset)
    # Objects and not a NumPy string type, whose width would depend on the longest part.
    return np.array([part.get(name, "") for name in names], dtype=object)


def cooccurrence(targets: Array) -> Array:
    """Counts the tiles that have two labels together.

    Args:
        targets: uint8 (rows, K).

    Returns:
        int64 (K, K); the diagonal counts the tiles of each label.
    """
    # float64: NumPy has no fast product of integers, and counts are exact up to 2**53.
    has = (targets != 0).astype(np.float64)
    together = np.asarray(has.T @ has)
    return together.astype(np.int64)


def companions(targets: Array, classes: Sequence[str]) -> list[str]:
    """Finds for each label the one that most exceeds its own share among the label's tiles.

    Not the most frequent one, because for every label of Planet's that would be `primary`.

    Args:
        targets: uint8 (rows, K).
        classes: names of the K labels.

    Returns:
        For each label such as `water 88 %`: 88 % of its tiles have water. Empty if no other label
        exceeds its own share.
    """
    counts = cooccurrence(targets)
    tiles = np.diag(counts)
    # Row k, column j: the share of the tiles with label k that have label j too.
    share = counts / np.maximum(tiles, 1)[:, None]
    own_share = tiles / max(len(targets), 1)
    excess = share - own_share
    # A label is not its own companion.
    np.fill_diagonal(excess, 0)
    found = []
    for k, companion in enumerate(excess.argmax(1)):
        if excess[k, companion] <= 0:
            found.append("")
            continue
        percent = 100 * share[k, companion]
        found.append(f"{classes[companion]} {percent:.0f} %")
    return found


def _sums(targets: Array) -> Array:
    """Number of tiles with each label, int64 (K,), of uint8 (rows, K)."""
    # Signed: NumPy sums uint8 to an unsigned type, whose differences wrap around.
    return np.asarray(targets.sum(0, dtype=np.int64))


def _rows_by_value(values: Sequence[str]) -> dict[str, Array]:
    """Row numbers by value, most frequent value first, then by the value itself."""
    found: dict[str, list[int]] = {}
    for row, value in enumerate(values):
        found.setdefault(value, []).append(row)
    # Sorting is stable, so the second sort keeps the order of equally frequent values.
    ordered = sorted(found)
    ordered.sort(key=lambda value: -len(found[value]))
    return {value: np.array(found[value]) for value in ordered}


def _leak(split: str, part_of_row: Array, group: Group) -> Leak | None:
    """The leak of a group of duplicates, or None where it is in one part only."""
    # By part; rows are ascending, so the first one stays.
    first_row: dict[str, int] = {}
    for row in group.rows:
        first_row.setdefault(part_of_row[row], row)
    parts = [part for part in PARTS if part in first_row]
    if len(parts) < 2:
        return None
    rows = [first_row[part] for part in parts]
    return Leak(
        split=split,
        kind=group.kind,
        rows=tuple(rows),
        parts=tuple(parts),
    )


def _rare_labels(
    classes: Sequence[str], counts: dict[str, pd.Series], left_out: Array
) -> list[str]:
    """Labels with fewer than FEW tiles in a part: `haze (train 1, valid 1)`.

    Args:
        classes: names of the K labels.
        counts: number of tiles with each label, int64 (K,), by part.
        left_out: bool (K,), labels that another warning names.
    """
    found = []
    for k, label in enumerate(classes):
        if left_out[k]:
            continue
        rare = []
        for part, count in counts.items():
            tiles = count[k]
            if tiles < FEW:
                rare.append(f"{part} {tiles}")
        if rare:
            found.append(f"{label} ({', '.join(rare)})")
    return found


def verdict(broken: Array) -> str:
    """Returns `kept by every tile` or `broken by 3 tiles`.

    Args:
        broken: numbers of the rows that break a rule.
    """
    if not len(broken):
        return "kept by every tile"
    return f"broken by {count_of(len(broken), 'tile')}"


def unknown_sentence(dataset: Dataset) -> str:
    """Returns how many tiles have a target, and where the others are left out."""
    unknown = unknown_tiles(dataset)
    known = count_of(dataset.rows - unknown, "tile")
    return (
        f"{known} with a target, {unknown:,} without one; "
        "labels, rules, duplicates and leaks leave the latter out."
    )


def first_of(words: Sequence[str], count: int | None = None) -> str:
    """Returns the first words of a list: `a, b, c, d, e and 12 more`.

    Args:
        words: the list, or its beginning.
        count: length of the whole list, by default that of `words`.
    """
    if count is None:
        count = len(words)
    shown = words[:FIRST]
    text = ", ".join(shown)
    more = count - len(shown)
    if more > 0:
        text += f" and {more:,} more"
    return text


def count_of(number: int, word: str) -> str:
    """Returns `1 tile` or `1,204 tiles`."""
    if number == 1:
        return f"1 {word}"
    return f"{number:,} {word}s"
