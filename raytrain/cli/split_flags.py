"""Flags that say which tiles are used for validation, shared by `ingest` and `data split`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Annotated, Any, Literal

import numpy as np
from cyclopts import Parameter

from raytrain import storage
from raytrain.cli.flags import check_seed
from raytrain.data.label_format import KAGGLE_FORMAT
from raytrain.data.splits import Rule
from raytrain.data.text import NAMES, read_lines
from raytrain.data.tile_values import column_of
from raytrain.errors import ConfigError

Array = np.ndarray[Any, Any]
SplitBy = Literal["random", "stratified", "group", "folder", "column", "list"]
SPLIT_HELP = (
    "how tiles are split; stratified: keep the proportion of every label; group: keep groups "
    "together; folder, column, list: by folder, table column or list of names"
)


@dataclass(frozen=True)
class _FlagRule:
    """Which flags a way of splitting needs, which it also accepts, and an example of them."""

    needed: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    example: str = ""


# What is not named here takes none of the flags.
_RULES = {
    "group": _FlagRule(("table", "column"), (), "--table scenes.csv --column scene"),
    "column": _FlagRule(
        ("table", "column", "valid_values"),
        ("test_values",),
        "--table parts.csv --column part --valid-values valid",
    ),
    "folder": _FlagRule((), ("valid_values", "test_values"), "--valid-values valid"),
    "list": _FlagRule(("valid_list",), ("test_list",), "--valid-list names.txt"),
}
# A way of splitting that takes a flag, to suggest where the flag was given with another one.
_SPLITS_BY = {
    "table": "column",
    "column": "column",
    "valid_values": "folder",
    "test_values": "folder",
    "valid_list": "list",
    "test_list": "list",
}


@dataclass(frozen=True)
class SplitFlags:
    """Which tiles are used for validation and for testing."""

    valid: Annotated[float, Parameter(help="validation fraction, between 0 and 1")] = 0.2
    seed: Annotated[
        int, Parameter(help="random seed of the split; ingest also shuffles rows with it")
    ] = 42
    table: Annotated[
        str | None,
        Parameter(help="CSV or Parquet file with tile names and --column, for group and column"),
    ] = None
    column: Annotated[str | None, Parameter(help="column of --table to split by")] = None
    valid_values: Annotated[
        list[str] | None,
        Parameter(help="folders or column values used for validation", negative=""),
    ] = None
    test_values: Annotated[
        list[str] | None, Parameter(help="folders or column values used for testing", negative="")
    ] = None
    valid_list: Annotated[
        str | None, Parameter(help="text file with the names of validation tiles")
    ] = None
    test_list: Annotated[str | None, Parameter(help="text file with the names of test tiles")] = (
        None
    )

    def rule(self, by: str, folds: int | None = None) -> Rule:
        """The rule that the flags state.

        Args:
            by: the way of splitting, one of `SplitBy`.
            folds: number of cross-validation folds, or None for a single split.

        Raises:
            ConfigError: a flag is out of range, missing, or not used by this way of splitting.
        """
        self._check(by, folds)
        if by == "list":
            valid = _names_in(self.valid_list)
            test = _names_in(self.test_list)
        else:
            valid = self.valid_values or []
            test = self.test_values or []
        if by == "folder" and not valid:
            valid = ["valid"]
        return Rule(by, self.valid, folds, tuple(valid), tuple(test), self.seed)

    def groups(
        self, names: Sequence[str], known: Array, name_column: str, separator: str
    ) -> list[str] | None:
        """The value of --column for each tile, or None if no table is given.

        Args:
            names: names of the tiles.
            known: bool (tiles,). A tile without a target may be missing in the table; its value is
                then an empty text.
            name_column: the table's column with them; if it has none of this name, image_name.
            separator: character between the columns of a CSV.
        """
        if self.table is None or self.column is None:
            return None
        # First the tiles with a target, then the others, as `column_of` returns the values.
        order = np.argsort(~known, kind="stable")
        values = column_of(
            list(compress(names, known)),
            storage.absolute(self.table),
            self.column,
            (name_column, KAGGLE_FORMAT.name_column),
            separator,
            optional=list(compress(names, ~known)),
        )
        found = np.empty(len(names), dtype=object)
        found[order] = values
        return [str(value) for value in found]

    def _check(self, by: str, folds: int | None) -> None:
        check_seed(self.seed)
        if not 0 < self.valid < 1:
            raise ConfigError(
                f"--valid {self.valid} is not between 0 and 1",
                "both parts need tiles",
                "--valid 0.2",
            )
        if folds is not None and (folds < 2 or by in ("column", "folder", "list")):
            raise ConfigError(
                f"--folds {folds} with --by {by}",
                "folds are 2 or more, drawn at random",
                "--folds 5 --by stratified",
            )
        rule = _RULES.get(by, _FlagRule())
        for flag in _SPLITS_BY:
            is_given = bool(getattr(self, flag))
            if is_given and flag not in rule.needed + rule.optional:
                raise self._unused(flag, by, rule)
            if flag in rule.needed and not is_given:
                raise ConfigError(
                    f"a split by {by} needs --{_spelled(flag)}",
                    "the flags must say which part each tile belongs to",
                    rule.example,
                )

    def _unused(self, flag: str, by: str, rule: _FlagRule) -> ConfigError:
        fix = rule.example
        if not fix:
            fix = f"leave it out, or split in another way, such as --split {_SPLITS_BY[flag]}"
        return ConfigError(
            f"a split by {by} takes no --{_spelled(flag)}",
            "a flag that is ignored would give another split than the one you meant",
            fix,
        )


def _spelled(field: str) -> str:
    return field.replace("_", "-")


def _names_in(file: str | None) -> list[str]:
    if file is None:
        return []
    return read_lines(storage.absolute(file), NAMES)
