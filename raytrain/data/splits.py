"""Divides tiles into training and validation: pure functions from rows to parts or folds.

A part is the word "train", "valid" or "test". A fold is a number from 0: the fold in which the row
validates. Rows without a target are in the part "test" under every rule; the others are divided as
if they were alone. Imports neither torch nor ray.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import compress
from typing import Any

import numpy as np
import pandas as pd

from raytrain.data.names import KnownNames, spelling_of_stem, visible
from raytrain.errors import DataError, did_you_mean

Array = np.ndarray[Any, Any]

BY = ("random", "stratified", "group", "column", "folder", "list")
MAX_STORED_VALUES = 100  # longer lists of values are stored as their hash


def random_parts(rows: int, valid: float = 0.2, seed: int = 42) -> Array:
    """Draws the random split of fast.ai's lesson.

    The first `int(valid * rows)` rows of a seeded permutation validate. The generator is NumPy's
    legacy RandomState on purpose: fastai 1 called `np.random.permutation` after `np.random.seed`
    (fastai 1.0.21, data_block.py:167-171), and only the same generator gives the lesson's 8,095
    validation rows of the 40,479.

    Args:
        rows: number of rows.
        valid: validation fraction.
        seed: seed of the permutation.

    Returns:
        str array (rows,) of "train" and "valid".
    """
    order = np.random.RandomState(seed).permutation(rows)
    parts = np.full(rows, "train", dtype=object)
    count = int(valid * rows)
    parts[order[:count]] = "valid"
    return parts


def random_folds(rows: int, folds: int, seed: int = 42) -> Array:
    """Deals a seeded permutation of the rows to folds whose sizes differ by at most one.

    Returns:
        int64 (rows,): fold of each row.
    """
    order = np.random.default_rng([seed, folds]).permutation(rows)
    dealt = np.empty(rows, int)
    dealt[order] = np.arange(rows) % folds
    return dealt


def stratified(targets: Array, shares: Sequence[float], seed: int = 42) -> Array:
    """Divides rows with several labels so that every label has its share in each subset.

    Iterative stratification, algorithm 1 of Sechidis, Tsoumakas and Vlahavas 2011, "On the
    Stratification of Multi-Label Data". The rarest remaining label gives its rows, one by one, to
    the subset that needs it most. Ties go to the subset that needs most rows, then to chance.

    Args:
        targets: (rows, K), not zero if the row has the label.
        shares: fraction of the rows in each of the S subsets. They are scaled to the sum 1.
        seed: seed of the order of rows and of ties.

    Returns:
        int64 (rows,): number of the subset of each row.
    """
    return _Stratification(np.asarray(targets) != 0, shares, seed).divide()


class _Stratification:
    """The state of one iterative stratification."""

    def __init__(self, has: Array, shares: Sequence[float], seed: int) -> None:
        """Starts with no row divided.

        Args:
            has: bool (rows, K), True if the row has the label.
            shares: (S,) fraction of each subset.
            seed: seed of the order of rows and of ties.
        """
        rows = len(has)
        share = np.asarray(shares, float) / np.sum(shares)
        self._has = has
        # What the subsets still need: rows (S,), and rows with each label (S, K).
        self._needed_rows = share * rows
        self._needed_labels = share[:, None] * has.sum(0)
        self._subset = np.full(rows, -1)  # -1: not divided yet
        self._generator = np.random.default_rng([seed, rows])
        self._order = self._generator.permutation(rows)

    def divide(self) -> Array:
        """Returns the subset of each row, int64 (rows,)."""
        label = self._rarest_label()
        while label is not None:
            # The column is a view, so it shrinks while its rows are given away.
            needed = self._needed_labels[:, label]
            for row in self._rows_left(self._has[:, label]):
                self._give(row, needed)
            label = self._rarest_label()
        # What is left has no label at all.
        for row in self._rows_left(np.ones(len(self._has), bool)):
            self._give(row, self._needed_rows)
        return self._subset

    def _rarest_label(self) -> int | None:
        """Returns the label with the fewest rows left, or None if no row with a label is left."""
        left = self._has[self._subset < 0].sum(0)
        if not left.any():
            return None
        # A label without rows must not count as the rarest one.
        more_than_any = len(self._has) + 1
        return int(np.where(left > 0, left, more_than_any).argmin())

    def _rows_left(self, wanted: Array) -> Array:
        """Returns the rows that are wanted, bool (rows,), and not divided, in the drawn order."""
        open_rows = wanted & (self._subset < 0)
        return self._order[open_rows[self._order]]

    def _give(self, row: int, needed: Array) -> None:
        """Gives a row to the subset with the largest need; `needed`: (S,), rows."""
        # isclose, because needs are fractions whose rounding errors would decide ties.
        best = np.flatnonzero(np.isclose(needed, needed.max()))
        rows = self._needed_rows[best]
        best = best[np.isclose(rows, rows.max())]
        chosen = int(self._generator.choice(best))
        self._subset[row] = chosen
        self._needed_rows[chosen] -= 1
        self._needed_labels[chosen, self._has[row]] -= 1


def group_parts(groups: Sequence[str], valid: float = 0.2, seed: int = 42) -> Array:
    """Validates whole groups (a scene, a flight, a region), so that none is on both sides.

    Groups are visited in a random order. One validates if that brings the fraction of validation
    rows closer to `valid`.

    Args:
        groups: (rows,) group of each row.
        valid: validation fraction of the rows.
        seed: seed of the order of groups.

    Returns:
        str array (rows,) of "train" and "valid".

    Raises:
        DataError: fewer than 2 groups.
    """
    sizes = _group_sizes(groups, 2)
    # Both count rows.
    wanted = valid * len(groups)
    taken = 0
    chosen: set[str] = set()
    for group in _shuffled(sizes, seed):
        error_without = abs(taken - wanted)
        error_with = abs(taken + sizes[group] - wanted)
        # One group must be left for training.
        is_last = len(chosen) + 1 == len(sizes)
        if error_with < error_without and not is_last:
            chosen.add(group)
            taken += sizes[group]
    if not chosen:
        # No group comes closer than none at all, but validation needs one.
        chosen.add(min(sizes, key=lambda group: sizes[group]))
    return parts_by_value(groups, chosen)


def group_folds(groups: Sequence[str], folds: int, seed: int = 42) -> Array:
    """Deals whole groups to folds, large groups first, each to the fold that has the fewest rows.

    Returns:
        int64 (rows,): fold of each row.

    Raises:
        DataError: fewer groups than folds.
    """
    sizes = _group_sizes(groups, folds)
    rows = np.zeros(folds, int)
    fold_of: dict[str, int] = {}
    # The sort is stable, so that chance decides the order of groups of equal size.
    for group in sorted(_shuffled(sizes, seed), key=lambda group: -sizes[group]):
        fold = int(rows.argmin())
        fold_of[group] = fold
        rows[fold] += sizes[group]
    return np.array([fold_of[group] for group in groups], int)


def parts_by_value(values: Iterable[str], valid: Iterable[str], test: Iterable[str] = ()) -> Array:
    """Puts rows with a listed value into validation or test, and all others into training.

    Args:
        values: (rows,) value of each row, such as its folder or its name.
        valid: values that validate.
        test: values that test.

    Returns:
        str array (rows,) of "train", "valid" and "test".
    """
    part_of = dict.fromkeys(valid, "valid")
    part_of.update(dict.fromkeys(test, "test"))
    parts = [part_of.get(value, "train") for value in values]
    return np.array(parts, dtype=object)


def stratified_parts(targets: Array, valid: float = 0.2, seed: int = 42) -> Array:
    """Calls `stratified` for training and validation.

    Returns:
        str array (rows,) of "train" and "valid".
    """
    subset = stratified(targets, (1 - valid, valid), seed)
    return np.where(subset == 1, "valid", "train").astype(object)


@dataclass(frozen=True)
class Rows:
    """The tiles that a rule divides.

    Attributes:
        names: (rows,) names, in an order that never changes.
        targets: (rows, K), not zero if the tile has the label; for a stratified division.
        groups: (rows,) group or column value of each tile, empty if the rule needs none. That of a
            tile without a target may be an empty text.
        known: bool (rows,): whether the target is known.
    """

    names: Sequence[str]
    targets: Array
    groups: Sequence[str]
    known: Array

    def with_target(self) -> Rows:
        """Returns the tiles whose target is known."""
        if self.known.all():
            return self
        return Rows(
            names=list(compress(self.names, self.known)),
            targets=self.targets[self.known],
            groups=list(compress(self.groups, self.known)),
            known=self.known[self.known],
        )


@dataclass(frozen=True)
class Rule:
    """How tiles are divided into parts or folds.

    Attributes:
        by: random; stratified (every label in its share); group (no group on both sides); or by a
            value of each tile: column (what a table says), folder (first component of its name) or
            list (its name).
        valid: validation fraction of the tiles, if chance decides and there are no folds.
        folds: number of folds, or None for parts.
        valid_values: values that validate.
        test_values: values that test.
        seed: seed of all random decisions.
    """

    by: str = "random"
    valid: float = 0.2
    folds: int | None = None
    valid_values: tuple[str, ...] = ()
    test_values: tuple[str, ...] = ()
    seed: int = 42

    def __post_init__(self) -> None:
        """Checks the rule.

        Raises:
            DataError: `by` is unknown, or a value is to validate and to test.
        """
        valid = {self._key(value) for value in self.valid_values}
        test = {self._key(value) for value in self.test_values}
        # Sorted, so that the message is the same each time.
        both = sorted(valid & test)
        if both:
            what = f"{both[0]} is to validate and to test."
        elif self.by not in BY:
            what = f"there is no division by {self.by!r}.{did_you_mean(self.by, BY)}"
        else:
            return
        raise DataError(what, "tiles would get a wrong part", f"one of {', '.join(BY)}")

    def _key(self, value: str) -> str:
        """Returns what makes two values equal: names may be spelled in several ways."""
        if self.by == "list":
            return spelling_of_stem(value)
        return value

    def content(self) -> dict[str, Any]:
        """Returns the rule as dataset.json stores it; long lists of values as their hash."""
        found = asdict(self)
        found["valid_values"] = _short(self.valid_values)
        found["test_values"] = _short(self.test_values)
        return found

    def tables(self, name: str, rows: Rows) -> dict[str, pd.DataFrame]:
        """Makes the splits as a dataset stores them, with the columns image_name, part and fold.

        Args:
            name: name of the split.
            rows: the tiles to divide.

        Returns:
            The splits by name: `name`, or `name-1` ... `name-K` for K folds.

        Raises:
            DataError: too few groups, a value that no tile has, or a rule that names a tile
                without a target for validation.
        """
        if self.folds is None:
            return {name: as_split(rows.names, self.parts(rows))}
        self._check_groups(rows)
        folds = np.full(len(rows.names), -1)  # a tile without a target is in no fold
        folds[rows.known] = self._folds(rows.with_target(), self.folds)
        found = {}
        for fold in range(self.folds):
            parts = np.where(folds == fold, "valid", "train")
            parts[~rows.known] = "test"
            number = fold + 1  # the names of splits count from 1, the column `fold` from 0
            found[f"{name}-{number}"] = as_split(rows.names, parts, folds)
        return found

    def parts(self, rows: Rows) -> Array:
        """Returns the part of each tile, str array (rows,).

        Arguments and errors are those of `tables`.
        """
        self._check_groups(rows)
        if self.by in ("list", "column", "folder"):
            parts = self._parts_by_value(rows)
            _check_stays(rows, parts)
        else:
            parts = np.full(len(rows.names), "test", dtype=object)
            parts[rows.known] = self._drawn(rows.with_target())
        parts[~rows.known] = "test"
        return parts

    def _parts_by_value(self, rows: Rows) -> Array:
        if self.by == "list":
            return self._parts_of_list(rows)
        values = self._values(rows)
        self._check_values(values)
        return parts_by_value(values, self.valid_values, self.test_values)

    def _drawn(self, rows: Rows) -> Array:
        """Returns the part of each tile where chance decides; all tiles have targets."""
        if self.by == "group":
            return group_parts(rows.groups, self.valid, self.seed)
        if self.by == "stratified":
            return stratified_parts(rows.targets, self.valid, self.seed)
        return random_parts(len(rows.names), self.valid, self.seed)

    def unmatched(self, rows: Rows) -> list[str]:
        """Returns the listed names that are not tiles, sorted."""
        if self.by != "list":
            return []
        lookup = _Lookup(rows)
        listed = set(self._listed_values())
        return sorted(name for name in listed if not lookup.find(name))

    def _listed_values(self) -> list[str]:
        return [*self.valid_values, *self.test_values]

    def _parts_of_list(self, rows: Rows) -> Array:
        names = rows.names
        lookup = _Lookup(rows)
        valid = lookup.find_all(self.valid_values)
        test = lookup.find_all(self.test_values)
        # Only now two names of one tile are found out, such as `a` and `folder/a`.
        both = sorted(valid & test)
        if both:
            raise DataError(
                f"{both[0]} is to validate and to test",
                "tiles would get a wrong part",
                "remove it from one of the lists",
            )
        # A list may name tiles whose pictures were left out. A list that names no tile at all is
        # a mistake.
        if not valid and not test:
            first = self._listed_values()[0]
            self._raise_unknown(first, set(names))
        return parts_by_value(names, valid, test)

    def _values(self, rows: Rows) -> Sequence[str]:
        if self.by != "folder":
            return rows.groups
        values = []
        for name in rows.names:
            folder = ""  # a name without a slash is in no folder
            if "/" in name:
                folder = name.split("/")[0]
            values.append(folder)
        return values

    def _check_groups(self, rows: Rows) -> None:
        if self.by not in ("group", "column"):
            return
        if len(rows.groups) != len(rows.names):
            raise DataError(
                f"a division by {self.by} has {len(rows.groups)} values "
                f"for {len(rows.names)} tiles",
                "it must be known where each tile belongs",
                "groups=..., or --table FILE --column NAME",
            )

    def _check_values(self, values: Sequence[str]) -> None:
        known = set(values)
        for value in self._listed_values():
            if value not in known:
                self._raise_unknown(value, known)

    def _raise_unknown(self, value: str, known: set[str]) -> None:
        what = {"list": "the name", "folder": "the folder"}.get(self.by, "the value")
        others = f"{len(known)} others"
        if known:
            others += f", such as {visible(sorted(known)[0])!r}"
        fix = f"correct {what}"
        if self.by == "folder":
            fix += "; names begin with a folder after ingest --subfolders"
        raise DataError(
            f'no tile has {what} "{visible(value)}" ({others}).{did_you_mean(value, known)}',
            "its part would be empty",
            fix,
        )

    def _folds(self, rows: Rows, folds: int) -> Array:
        if self.by == "group":
            return group_folds(rows.groups, folds, self.seed)
        if self.by == "stratified":
            return stratified(rows.targets, [1.0] * folds, self.seed)
        return random_folds(len(rows.names), folds, self.seed)


class _Lookup:
    """Finds the tiles that a list names.

    A name means a tile without a target only in full, and only where no other tile has it. So a
    test folder changes nothing for the other tiles.
    """

    def __init__(self, rows: Rows) -> None:
        self._with_target = KnownNames(compress(rows.names, rows.known))
        self._others = KnownNames(compress(rows.names, ~rows.known))

    def find(self, name: str) -> list[str]:
        """Returns the tiles that a name means; several of them differ only in suffix."""
        return self._with_target.find(name) or self._others.whole(name)

    def find_all(self, names: Iterable[str]) -> set[str]:
        """Returns the tiles that any of the names means."""
        tiles: set[str] = set()
        for name in names:
            tiles.update(self.find(name))
        return tiles


def _check_stays(rows: Rows, parts: Array) -> None:
    """Refuses a rule that names a tile without a target for validation.

    Where a rule says nothing about a tile, it means training; that counts as no statement.
    """
    moved = list(compress(rows.names, ~rows.known & (parts == "valid")))
    if not moved:
        return
    raise DataError(
        f"{len(moved)} tiles without a target are to validate, such as {visible(moved[0])}",
        "nothing can be judged by them, so they stay in the part test",
        "take them out of what validates",
    )


def only_in_valid(parts: Sequence[str], targets: Array, classes: Sequence[str]) -> list[str]:
    """Returns the labels that are in validation but not in training.

    The network never sees them, so they lower its score.

    Args:
        parts: (rows,) part of each row.
        targets: (rows, K), not zero if the row has the label.
        classes: the K label names.
    """
    part = np.asarray(parts, dtype=object)
    in_valid = targets[part == "valid"].any(0)
    in_train = targets[part == "train"].any(0)
    alone = np.flatnonzero(in_valid & ~in_train)
    return [classes[k] for k in alone.tolist()]


def _short(values: tuple[str, ...]) -> list[str]:
    if len(values) <= MAX_STORED_VALUES:
        return list(values)
    # dataset.json stores these words and this hash, so neither may change.
    sha256 = hashlib.sha256(repr(values).encode()).hexdigest()
    return [f"{len(values)} values, sha256 {sha256}"]


def natural_order(names: Sequence[str]) -> list[int]:
    """Returns the positions of names, sorted with numbers as numbers: tile_2 before tile_10.

    That is the order of the competition's label file, so that a random division of a dataset in
    this order has the rows of fast.ai's lesson.
    """
    keys = [_natural_key(name) for name in names]
    return sorted(range(len(names)), key=lambda position: keys[position])


def _natural_key(name: str) -> list[tuple[int, int, str]]:
    key = []
    for part in re.split(r"(\d+)", name):
        # Numbers and text cannot be compared, so the first item of the tuple separates them.
        if part.isdecimal():
            key.append((0, int(part), ""))
        else:
            key.append((1, 0, part))
    return key


def as_split(names: Sequence[str], parts: Array, folds: Array | int = -1) -> pd.DataFrame:
    """Makes the table of a split.

    Args:
        names: (rows,) names of the tiles.
        parts: (rows,) part of each tile.
        folds: (rows,) fold of each tile from 0, or -1 without folds.

    Returns:
        The columns image_name, part and fold.
    """
    return pd.DataFrame({"image_name": names, "part": parts, "fold": folds})


def _group_sizes(groups: Sequence[str], least: int) -> Counter[str]:
    """Returns the rows of each group; refuses fewer groups than `least`."""
    sizes = Counter(groups)
    if len(sizes) < least:
        raise DataError(
            f"the tiles belong to {len(sizes)} groups, at least {least} are needed",
            "a group stays on one side, and each side needs one",
            "group by another column, or divide without groups",
        )
    return sizes


def _shuffled(sizes: Counter[str], seed: int) -> list[str]:
    """Returns the groups in a random order that depends only on their names and the seed."""
    known = sorted(sizes)
    generator = np.random.default_rng([seed, len(known)])
    order = generator.permutation(len(known))
    return [known[i] for i in order]
