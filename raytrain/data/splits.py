"""Which rows validate: pure functions from rows to parts or folds. No torch, no ray.

Parts are words, "train", "valid" or "test"; folds are numbers from 0, the fold in which a row validates.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from raytrain.data.names import KnownNames, spelling_of_stem, visible
from raytrain.errors import DataError, did_you_mean

Array = np.ndarray[Any, Any]


def random_parts(rows: int, valid: float = 0.2, seed: int = 42) -> Array:
    """Draws the lesson's random split: validation = the first `int(valid * rows)` of a seeded permutation.

    Legacy RandomState on purpose: fastai 1 used `np.random.permutation` after `np.random.seed`, and only the same
    generator gives the lesson's 8,095 validation rows of the 40,479 (fastai 1.0.21 data_block.py:167-171).

    Returns:
        str array (rows,) of "train" and "valid".
    """
    order = np.random.RandomState(seed).permutation(rows)
    parts = np.full(rows, "train", dtype=object)
    parts[order[: int(valid * rows)]] = "valid"
    return parts


def random_folds(rows: int, folds: int, seed: int = 42) -> Array:
    """Deals a seeded permutation of the rows out to folds whose sizes differ by one at most.

    Returns:
        int array (rows,).
    """
    dealt = np.empty(rows, int)
    dealt[np.random.default_rng([seed, folds]).permutation(rows)] = np.arange(rows) % folds
    return dealt


def stratified(targets: Array, shares: Sequence[float], seed: int = 42) -> Array:
    """Divides rows with several labels into subsets in which every label has its share, rare ones first.

    Iterative stratification, Sechidis, Tsoumakas and Vlahavas 2011, "On the Stratification of Multi-Label Data",
    algorithm 1: the rarest label that is left gives its rows, one by one, to the subset that lacks it most; ties go to
    the subset that lacks most rows, then to chance.

    Args:
        targets: (rows, K), not zero where the row has the label.
        shares: of each subset; they are scaled to the sum 1.
        seed: of the order of rows and of ties.

    Returns:
        int array (rows,): number of the subset.
    """
    rng = np.random.default_rng([seed, len(targets)])
    has = np.asarray(targets) != 0
    share = np.asarray(shares, float) / np.sum(shares)
    lacks_rows, lacks = share * len(has), share[:, None] * has.sum(0)
    subset = np.full(len(has), -1)
    order = rng.permutation(len(has))

    def give(row: int, need: Array) -> None:
        best = np.flatnonzero(np.isclose(need, need.max()))
        best = best[np.isclose(lacks_rows[best], lacks_rows[best].max())]
        chosen = subset[row] = int(rng.choice(best))
        lacks_rows[chosen] -= 1
        lacks[chosen, has[row]] -= 1

    left = has.sum(0)
    while left.any():
        label = int(np.where(left > 0, left, len(has) + 1).argmin())
        for row in order[has[order, label] & (subset[order] < 0)]:
            give(row, lacks[:, label])
        left = has[subset < 0].sum(0)
    for row in order[subset[order] < 0]:  # rows without any label
        give(row, lacks_rows)
    return subset


def group_parts(groups: Sequence[str], valid: float = 0.2, seed: int = 42) -> Array:
    """Validates whole groups (a scene, a flight, a region), so that none is on both sides.

    Groups are visited in a random order; one validates if that brings the share of rows closer to `valid`.

    Returns:
        str array (rows,) of "train" and "valid".

    Raises:
        DataError: fewer than 2 groups.
    """
    sizes = _group_sizes(groups, 2)
    wanted, taken = valid * len(groups), 0
    chosen: set[str] = set()
    for group in _shuffled(sizes, seed):
        closer = abs(taken + sizes[group] - wanted) < abs(taken - wanted)
        if closer and len(chosen) + 1 < len(sizes):
            chosen.add(group)
            taken += sizes[group]
    chosen = chosen or {min(sizes, key=lambda group: sizes[group])}
    return parts_by_value(groups, chosen)


def group_folds(groups: Sequence[str], folds: int, seed: int = 42) -> Array:
    """Deals whole groups out to folds, large ones first, each to the fold that has the fewest rows.

    Returns:
        int array (rows,).

    Raises:
        DataError: fewer groups than folds.
    """
    sizes = _group_sizes(groups, folds)
    rows, fold = np.zeros(folds, int), {}
    for group in sorted(_shuffled(sizes, seed), key=lambda group: -sizes[group]):
        fold[group] = int(rows.argmin())
        rows[fold[group]] += sizes[group]
    return np.array([fold[group] for group in groups], int)


def parts_by_value(values: Iterable[str], valid: Iterable[str], test: Iterable[str] = ()) -> Array:
    """Gives rows whose value (a folder, a column's word, the name itself) is listed to validation or test, others to train.

    Returns:
        str array (rows,).
    """
    part = dict.fromkeys(valid, "valid") | dict.fromkeys(test, "test")
    return np.array([part.get(value, "train") for value in values], dtype=object)


def stratified_parts(targets: Array, valid: float = 0.2, seed: int = 42) -> Array:
    """`stratified` into "train" and "valid", str array (rows,)."""
    return np.where(stratified(targets, (1 - valid, valid), seed) == 1, "valid", "train").astype(
        object
    )


BY = ("random", "stratified", "group", "column", "folder", "list")


@dataclass(frozen=True)
class Rule:
    """How tiles are divided, into parts or into folds.

    Attributes:
        by: random, stratified (every label in its share), group (none on both sides), or by value: column (what a table
            says of the tile), folder (the first component of its name), list (its name).
        valid: share of the tiles that validate, where chance decides; without folds.
        folds: number of folds, or None for parts.
        valid_values: values that validate; test_values: that test.
        seed: of all chance.
    """

    by: str = "random"
    valid: float = 0.2
    folds: int | None = None
    valid_values: tuple[str, ...] = ()
    test_values: tuple[str, ...] = ()
    seed: int = 42

    def __post_init__(self) -> None:
        both = {self._key(value) for value in self.valid_values} & {
            self._key(value) for value in self.test_values
        }
        if self.by not in BY or both:
            what = (
                f"{sorted(both)[0]} is to validate and to test"
                if both
                else f"there is no division by {self.by!r}"
            )
            raise DataError(
                f"{what}.{'' if both else did_you_mean(self.by, BY)}",
                "tiles would get a wrong part",
                f"one of {', '.join(BY)}",
            )

    def content(self) -> dict[str, Any]:
        """As JSON gives it back; long lists as their hash."""
        values = {key: _short(getattr(self, key)) for key in ("valid_values", "test_values")}
        return asdict(self) | values

    def tables(
        self, name: str, names: Sequence[str], targets: Array, groups: Sequence[str]
    ) -> dict[str, pd.DataFrame]:
        """The splits by name, as a dataset keeps them (image_name, part, fold): `name`, or `name-1` ... `name-K` for folds.

        Args:
            name: of the split.
            names: of the tiles, in an order that does not change.
            targets: (rows, K), for a stratified division.
            groups: group or column value of each tile, where the rule needs one.

        Raises:
            DataError: too few groups, or a value that no tile has.
        """
        if self.folds is None:
            return {name: as_split(names, self.parts(names, targets, groups))}
        self._check_groups(names, groups)
        folds = self._folds(targets, groups, self.folds)
        parts = (np.where(folds == fold, "valid", "train") for fold in range(self.folds))
        return {
            f"{name}-{number}": as_split(names, part, folds) for number, part in enumerate(parts, 1)
        }

    def parts(self, names: Sequence[str], targets: Array, groups: Sequence[str]) -> Array:
        """The part of each tile, str array (rows,); arguments and errors as `tables`."""
        self._check_groups(names, groups)
        if self.by == "list":
            return self._parts_of_list(names)
        if self.by in ("column", "folder"):
            values = self._values(names, groups)
            self._check_values(values)
            return parts_by_value(values, self.valid_values, self.test_values)
        if self.by == "group":
            return group_parts(groups, self.valid, self.seed)
        if self.by == "stratified":
            return stratified_parts(targets, self.valid, self.seed)
        return random_parts(len(targets), self.valid, self.seed)

    def unmatched(self, names: Sequence[str]) -> list[str]:
        """Names of a list that are no tiles, sorted."""
        if self.by != "list":
            return []
        known = KnownNames(names)
        return sorted(
            name for name in {*self.valid_values, *self.test_values} if not known.find(name)
        )

    def _parts_of_list(self, names: Sequence[str]) -> Array:
        known = KnownNames(names)
        valid = {tile for name in self.valid_values for tile in known.find(name)}
        test = {tile for name in self.test_values for tile in known.find(name)}
        if both := sorted(valid & test):
            raise DataError(
                f"{both[0]} is to validate and to test",
                "tiles would get a wrong part",
                "take it out of one of the lists",
            )
        # A list may name tiles that were left out for their pictures; one that names no tile at all is a slip.
        if not valid and not test:
            self._raise_unknown((*self.valid_values, *self.test_values)[0], set(names))
        return parts_by_value(names, valid, test)

    def _values(self, names: Sequence[str], groups: Sequence[str]) -> Sequence[str]:
        if self.by == "folder":
            return [name.split("/")[0] if "/" in name else "" for name in names]
        return groups

    def _check_groups(self, names: Sequence[str], groups: Sequence[str]) -> None:
        if self.by in ("group", "column") and len(groups) != len(names):
            raise DataError(
                f"a division by {self.by} has {len(groups)} values for {len(names)} tiles",
                "it must be known where each tile belongs",
                "groups=..., or --table FILE --column NAME",
            )

    def _key(self, value: str) -> str:
        return spelling_of_stem(value) if self.by == "list" else value

    def _check_values(self, values: Sequence[str]) -> None:
        known = set(values)
        for value in (*self.valid_values, *self.test_values):
            if value not in known:
                self._raise_unknown(value, known)

    def _raise_unknown(self, value: str, known: set[str]) -> None:
        example = f", such as {visible(sorted(known)[0])!r}" if known else ""
        folders = (
            "; names begin with a folder after ingest --subfolders" if self.by == "folder" else ""
        )
        what = {"list": "the name", "folder": "the folder"}.get(self.by, "the value")
        raise DataError(
            f'no tile has {what} "{visible(value)}" ({len(known)} others{example}).{did_you_mean(value, known)}',
            "its part would be empty",
            f"correct {what}{folders}",
        )

    def _folds(self, targets: Array, groups: Sequence[str], folds: int) -> Array:
        if self.by == "group":
            return group_folds(groups, folds, self.seed)
        if self.by == "stratified":
            return stratified(targets, [1.0] * folds, self.seed)
        return random_folds(len(targets), folds, self.seed)


def only_in_valid(parts: Sequence[str], targets: Array, classes: Sequence[str]) -> list[str]:
    """Labels that validation has and training has not: they count against the network, which never saw them.

    Args:
        parts: (rows,) words; targets: (rows, K); classes: K names.
    """
    part = np.asarray(parts, dtype=object)
    alone = targets[part == "valid"].any(0) & ~targets[part == "train"].any(0)
    return [name for name, it_is in zip(classes, alone, strict=True) if it_is]


def _short(values: tuple[str, ...]) -> list[str]:
    if len(values) <= 100:
        return list(values)
    return [f"{len(values)} values, sha256 {hashlib.sha256(repr(values).encode()).hexdigest()}"]


def natural_order(names: Sequence[str]) -> list[int]:
    """Positions of names in the order that counts numbers as numbers: tile_2 before tile_10.

    That is the order of the competition's label file, so a random division over it has the lesson's rows.
    """

    def key(position: int) -> list[tuple[int, int, str]]:
        parts = re.split(r"(\d+)", names[position])
        return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]

    return sorted(range(len(names)), key=key)


def as_split(names: Sequence[str], parts: Array, folds: Array | int = -1) -> pd.DataFrame:
    """Columns image_name, part and fold (from 0; -1 where there are no folds)."""
    return pd.DataFrame({"image_name": names, "part": parts, "fold": folds})


def _group_sizes(groups: Sequence[str], least: int) -> Counter[str]:
    sizes = Counter(groups)
    if len(sizes) < least:
        raise DataError(
            f"the tiles belong to {len(sizes)} groups, at least {least} are needed",
            "a group stays on one side, and each side needs one",
            "group by another column, or divide without groups",
        )
    return sizes


def _shuffled(sizes: Counter[str], seed: int) -> list[str]:
    known = sorted(sizes)
    return [known[i] for i in np.random.default_rng([seed, len(known)]).permutation(len(known))]
