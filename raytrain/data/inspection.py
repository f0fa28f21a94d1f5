"""What a look at a whole dataset finds: labels by part, label rules, duplicates, leaks, odd sizes. No torch, no ray.

`inspect(dataset, ...)` gathers all of it into one `Inspection`, which the terminal and the page show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from raytrain.data import duplicates
from raytrain.data.dataset import PARTS, Dataset
from raytrain.data.duplicates import Group
from raytrain.errors import DataError, did_you_mean

Array = np.ndarray[Any, Any]

# "Planet: Understanding the Amazon from Space": one atmospheric label a tile, and nothing can be seen through clouds.
WEATHER = ("clear", "cloudy", "haze", "partly_cloudy")
FEW = 2  # tiles of a label in a part below which it can hardly be learned or judged
FIRST = 5  # names in a sentence


@dataclass(frozen=True)
class LabelRule:
    """What the labels of every tile keep to.

    Attributes:
        kind: `exactly-one` or `at-most-one` of the labels; `alone`: a tile with one of them has no other label at all;
            `requires`: a tile with the first of them has the others too.
        labels: names.
    """

    kind: str
    labels: tuple[str, ...]

    def broken_by(self, targets: Array, classes: Sequence[str]) -> Array:
        """Row numbers of the tiles that break the rule, ascending.

        Args:
            targets: uint8 (rows, K).
            classes: names of the K labels.
        """
        mine = targets[:, [list(classes).index(label) for label in self.labels]] != 0
        count, labels = mine.sum(1), (targets != 0).sum(1)
        broken = {
            "exactly-one": count != 1,
            "at-most-one": count > 1,
            "alone": (count > 0) & (labels > 1),
            "requires": mine[:, 0] & ~mine.all(1),
        }
        return np.flatnonzero(broken[self.kind])

    def __str__(self) -> str:
        names = ", ".join(self.labels)
        return {
            "exactly-one": f"exactly one of {names}",
            "at-most-one": f"at most one of {names}",
            "alone": f"{names} alone" if len(self.labels) == 1 else f"each of {names} alone",
            "requires": f"{self.labels[0]} only together with {', '.join(self.labels[1:])}",
        }[self.kind]


@dataclass(frozen=True)
class Leak:
    """A group of duplicates on several sides of a split; `rows` holds one tile of each part, `parts` names them."""

    split: str
    kind: str
    rows: tuple[int, ...]
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """A dataset and what was found in it. All rows are row numbers of the dataset.

    Attributes:
        dataset: that was looked at.
        parts: for every split that was looked at, the part of each row, str (rows,); empty where the split has it not.
        rules: every rule with the rows that break it.
        default_rules: True where rules were added because the dataset has Planet's weather labels.
        prints: FINGERPRINT (rows,), see `duplicates`.
        decoded: whether pixels were looked at; without, only equal bytes can be found.
        groups: of tiles that show the same.
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
        """A row a label: tiles, then one column `<split> <part>` for each part that has tiles."""
        targets = self.dataset.targets
        columns = {"label": self.dataset.classes, "tiles": targets.sum(0, dtype=np.int64)}
        for split, part, rows in self.split_parts:
            columns[f"{split} {part}"] = targets[rows].sum(0, dtype=np.int64)
        return pd.DataFrame(columns)

    @cached_property
    def split_parts(self) -> list[tuple[str, str, Array]]:
        """(split, part, row numbers) of every part that has tiles."""
        found = [
            (split, part, np.flatnonzero(of == part))
            for split, of in self.parts.items()
            for part in PARTS
        ]
        return [(split, part, rows) for split, part, rows in found if len(rows)]

    @cached_property
    def leaks(self) -> list[Leak]:
        """Duplicates on several sides of a split, by split."""
        return [
            leak
            for split, of in self.parts.items()
            for group in self.groups
            if (leak := _leak(split, of, group))
        ]

    @cached_property
    def group_table(self) -> pd.DataFrame:
        """image_name and group of every tile, as `data split --by group` reads it: duplicates share the first one's name."""
        names = self.dataset.table["image_name"]
        group = names.to_numpy(object, copy=True)
        for rows in (list(group.rows) for group in self.groups):
            group[rows] = names[rows[0]]
        return pd.DataFrame({"image_name": names, "group": group})

    @cached_property
    def contradictions(self) -> list[Group]:
        """Groups of tiles that show the same and have different labels."""
        targets = self.dataset.targets
        return [
            group
            for group in self.groups
            if (targets[list(group.rows)] != targets[group.rows[0]]).any()
        ]

    @cached_property
    def sizes(self) -> dict[str, Array]:
        """Row numbers by `width x height`, most frequent size first."""
        return _by_value(
            [f"{w}x{h}" for w, h in zip(self.prints["width"], self.prints["height"], strict=True)]
        )

    @cached_property
    def modes(self) -> dict[str, Array]:
        """Row numbers by Pillow's mode, most frequent mode first."""
        return _by_value(self.prints["mode"].tolist())

    def names(self, rows: Sequence[int] | Array, first: int = FIRST) -> str:
        """The first names of some rows in a sentence: `train_1, train_7 and 12 more`."""
        return first_of(
            [str(self.dataset.table["image_name"].iloc[row]) for row in rows[:first]], len(rows)
        )

    def sides_of(self, leak: Leak) -> str:
        """`train_1 (train) and train_7 (valid)`."""
        return " and ".join(
            f"{self.names([row])} ({part})" for row, part in zip(leak.rows, leak.parts, strict=True)
        )

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
            found += [
                f"split {split} leaks: {self.sides_of(leak)} show the same ({leak.kind})"
                for leak in leaks[:FIRST]
            ]
            more = len(leaks) - FIRST
            found += (
                [f"split {split} leaks: {count_of(more, 'more group')} on several sides"]
                if more > 0
                else []
            )
        return found

    def _duplicate_warnings(self) -> list[str]:
        tiles = sum(len(group.rows) for group in self.groups)
        found = (
            [f"{count_of(len(self.groups), 'group')} of duplicates, {tiles:,} tiles"]
            if self.groups
            else []
        )
        wrong = self.contradictions
        found += [
            f"tiles that show the same have different labels: {self.names(g.rows)}"
            for g in wrong[:FIRST]
        ]
        more = len(wrong) - FIRST
        return found + (
            [f"{count_of(more, 'more group')} of duplicates with different labels"]
            if more > 0
            else []
        )

    def _rule_warnings(self) -> list[str]:
        return [
            f"the rule “{rule}” is {verdict(rows)}: {self.names(rows)}"
            for rule, rows in self.rules
            if len(rows)
        ]

    def _label_warnings(self) -> list[str]:
        found = []
        for split in self.parts:
            counts = {
                part: self.labels[f"{split} {part}"]
                for of, part, _ in self.split_parts
                if of == split
            }
            none = np.zeros(
                len(self.dataset.classes), np.int64
            )  # a split of a single tile has one part
            only = np.asarray((counts.get("train", none) == 0) & (counts.get("valid", none) > 0))
            if only.any():
                labels = first_of(list(self.labels["label"][only]))
                found.append(
                    f"split {split}: {labels} in validation only; what is not trained is not learned"
                )
            few = []
            for k in np.flatnonzero(~only):
                rare = [f"{part} {of[k]}" for part, of in counts.items() if of[k] < FEW]
                few += [f"{self.dataset.classes[k]} ({', '.join(rare)})"] if rare else []
            found += [f"split {split}: fewer than {FEW} tiles of {first_of(few)}"] if few else []
        return found


def inspect(
    dataset: Dataset,
    *,
    split: str | None = None,
    rules: Sequence[LabelRule] = (),
    decode: bool = True,
) -> Inspection:
    """Looks at every tile and label of a dataset whose bytes are known to be good (`dataset.damages`).

    Args:
        dataset: an opened dataset.
        split: the only split to look at; by default all.
        rules: of the labels, beside those of the weather where the dataset has Planet's weather labels.
        decode: False leaves out everything that needs pixels.

    Raises:
        DataError: unknown split or label, or a picture that cannot be decoded.
    """
    for rule in rules:
        for label in rule.labels:
            class_index(dataset, label)
    splits = [split] if split else [str(entry["name"]) for entry in dataset.manifest["splits"]]
    parts = {name: parts_of(dataset, name) for name in splits}
    weather = weather_rules(dataset.classes)
    every = dict.fromkeys([*rules, *weather])
    broken = tuple((rule, rule.broken_by(dataset.targets, dataset.classes)) for rule in every)
    prints = duplicates.fingerprints(dataset, decode=decode)
    groups = tuple(duplicates.groups(prints))
    return Inspection(dataset, parts, broken, bool(weather), prints, decode, groups)


def weather_rules(classes: Sequence[str]) -> tuple[LabelRule, ...]:
    """The rules of Planet's weather labels, where a dataset has all four of them."""
    if not set(WEATHER) <= set(classes):
        return ()
    return LabelRule("exactly-one", WEATHER), LabelRule("alone", ("cloudy",))


def class_index(dataset: Dataset, label: str) -> int:
    """Column of a label in the targets.

    Raises:
        DataError: the dataset has no such label.
    """
    if label not in dataset.classes:
        raise DataError(
            f'{dataset.path} has no label "{label}" (it has: {", ".join(dataset.classes)}).'
            f"{did_you_mean(label, dataset.classes)}",
            "no tile can have it",
            f"raytrain data check {dataset.path} lists the labels with their tiles",
        )
    return dataset.classes.index(label)


def parts_of(dataset: Dataset, split: str) -> Array:
    """str (rows,): the part of every row in a split, empty where the split does not have it.

    Raises:
        DataError: no such split.
    """
    table = dataset.split(split)
    part = dict(zip(table["image_name"], table["part"], strict=True))
    return np.array([part.get(name, "") for name in dataset.table["image_name"]], dtype=object)


def cooccurrence(targets: Array) -> Array:
    """int64 (K, K): tiles that have both labels; the diagonal counts the tiles of each label.

    Args:
        targets: uint8 (rows, K).
    """
    # float64: numpy has no fast product of integers, and counts are exact up to 2**53.
    has = (targets != 0).astype(np.float64)
    return np.asarray(has.T @ has).astype(np.int64)


def companions(targets: Array, classes: Sequence[str]) -> list[str]:
    """For each label the one that most exceeds its own share beside it: `water 88 %` of its tiles; empty if none does.

    Not simply the one that is most often there: beside every label of Planet's that would be `primary`.

    Args:
        targets: uint8 (rows, K).
        classes: names of the K labels.
    """
    counts = cooccurrence(targets)
    share = counts / np.maximum(np.diag(counts), 1)[:, None]
    excess = share - np.diag(counts) / max(len(targets), 1)
    np.fill_diagonal(excess, 0)
    return [
        f"{classes[b]} {100 * share[k, b]:.0f} %" if excess[k, b] > 0 else ""
        for k, b in enumerate(excess.argmax(1))
    ]


def _by_value(values: Sequence[str]) -> dict[str, Array]:
    found: dict[str, list[int]] = {}
    for row, value in enumerate(values):
        found.setdefault(value, []).append(row)
    return {
        value: np.array(rows)
        for value, rows in sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
    }


def _leak(split: str, parts: Array, group: Group) -> Leak | None:
    first: dict[str, int] = {}
    for row in group.rows:
        first.setdefault(parts[row], row)
    sides = [part for part in PARTS if part in first]
    if len(sides) < 2:
        return None
    return Leak(split, group.kind, tuple(first[part] for part in sides), tuple(sides))


def verdict(broken: Array) -> str:
    """What is said of a rule and the rows that break it: `kept by every tile`, `broken by 3 tiles`."""
    return f"broken by {count_of(len(broken), 'tile')}" if len(broken) else "kept by every tile"


def first_of(words: Sequence[str], count: int | None = None) -> str:
    """The first words of a list of `count`, and how many more there are: `a, b, c, d, e and 12 more`."""
    shown = words[:FIRST]
    more = (len(words) if count is None else count) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more > 0 else "")


def count_of(number: int, word: str) -> str:
    """`1 tile`, `1,204 tiles`."""
    return f"{number:,} {word}{'s' * (number != 1)}"
