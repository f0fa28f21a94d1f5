"""The commands `raytrain data check` and `raytrain data split`; `data show` is in `sheet.py`.

Heavy modules are imported inside the commands, so that help and mistakes in flags answer at once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from raytrain import storage
from raytrain.cli.ingest import NO_SPLIT_FLAGS, LabelFlags
from raytrain.cli.job import check_written
from raytrain.cli.sheet import show
from raytrain.cli.split_flags import SPLIT_HELP, SplitBy, SplitFlags
from raytrain.config import SPLIT_NAME
from raytrain.data.label_format import KAGGLE_FORMAT
from raytrain.data.names import visible
from raytrain.data.text import listed
from raytrain.errors import ConfigError, DataError, masked, typed

if TYPE_CHECKING:
    from raytrain.data.dataset import Dataset
    from raytrain.data.inspection import LabelRule

data_app = App(name="data", help="Show a dataset's tiles, check it, or split it.")
data_app.command(show)

# A flag that may be given several times, each time with a comma-separated list of labels.
Labels = Annotated[list[str] | None, Parameter(negative="")]


@dataclass(frozen=True)
class RuleFlags:
    """Rules that the labels of each tile must obey."""

    exactly_one: Annotated[Labels, Parameter(help="a,b,c: every tile has exactly one of them")] = (
        None
    )
    at_most_one: Annotated[Labels, Parameter(help="a,b: no tile has more than one of them")] = None
    alone: Annotated[Labels, Parameter(help="a: a tile with this label has no other")] = None
    requires: Annotated[Labels, Parameter(help="a,b: a tile with a also has b")] = None

    def rules(self) -> list[LabelRule]:
        """The rules that the flags state.

        Raises:
            ConfigError: a rule with too few labels.
        """
        stated = {
            "exactly-one": self.exactly_one,
            "at-most-one": self.at_most_one,
            "alone": self.alone,
            "requires": self.requires,
        }
        rules = []
        for kind, texts in stated.items():
            for text in texts or ():
                rules.append(_rule(kind, text))
        return rules


NO_RULE_FLAGS = RuleFlags()


@data_app.command
def check(
    dataset: str,
    /,
    *,
    out: Annotated[
        str | None,
        Parameter(help="page to write (.html), or its folder; default: NAME-check.html here"),
    ] = None,
    split: Annotated[str | None, Parameter(help="check only this split; default: all")] = None,
    rules: Annotated[RuleFlags, Parameter(name="*")] = NO_RULE_FLAGS,
    fast: Annotated[
        bool, Parameter(negative="", help="check bytes and labels only, and decode no image")
    ] = False,
) -> None:
    """Verify every byte; find broken label rules, duplicates, leaks between parts and odd tiles."""
    check_written("--out", out or "CHECK.html")
    label_rules = rules.rules()
    from raytrain.data.dataset import damages, open_dataset
    from raytrain.data.inspection import inspect
    from raytrain.report import dataset_page, dataset_text

    found = open_dataset(dataset)
    wrong = damages(found)
    if wrong:
        raise DataError(
            "; ".join(wrong),
            "training would stop or learn from wrong data",
            "ingest into a new directory",
        )
    inspection = inspect(found, split=split, rules=label_rules, decode=not fast)
    path = _page_path(found, out)
    stem = storage.name_of(path).removesuffix(".html").removesuffix("-check")
    table = storage.join(storage.parent(path), f"{stem}-groups.csv")
    dataset_page.write(inspection, path, table)
    if inspection.leaks:
        storage.write_text(table, inspection.group_table.to_csv(index=False))
    print(dataset_text.summary(inspection))
    print(f"page: {masked(path)}")
    if inspection.leaks:
        # The groups keep duplicates together, so a split by them has no leaks.
        print(f"next: {dataset_page.split_command(inspection, table)}")


def _page_path(dataset: Dataset, out: str | None) -> str:
    """The absolute path of the page: `out` itself if it is a page, else a page in that folder."""
    name = f"{storage.name_of(dataset.path)}-check.html"
    if out is None:
        return storage.absolute(name)
    if storage.name_of(out).endswith(".html"):
        return storage.absolute(out)
    return storage.absolute(storage.join(out, name))


def _rule(kind: str, text: str) -> LabelRule:
    from raytrain.data.inspection import LabelRule

    # A dictionary drops repeated labels and keeps the order.
    labels = tuple(dict.fromkeys(filter(None, listed(text, f"--{kind}"))))
    least = 2
    example = "clear,cloudy"
    if kind == "alone":
        least = 1
        example = "cloudy"
    if len(labels) < least:
        plural = "s" * (len(labels) != 1)
        raise ConfigError(
            f'--{kind} "{text}" names {len(labels)} label{plural}',
            f"such a rule needs {least} or more, separated by commas",
            f"--{kind} {example}",
        )
    return LabelRule(kind, labels)


@data_app.command
def split(
    dataset: str,
    /,
    *,
    name: Annotated[
        str, Parameter(help="name of the new split; with --folds: NAME-1, NAME-2, ...")
    ],
    by: Annotated[SplitBy, Parameter(help=SPLIT_HELP)] = "random",
    folds: Annotated[
        int | None,
        Parameter(help="number of cross-validation folds; each becomes a split of its own"),
    ] = None,
    flags: Annotated[SplitFlags, Parameter(name="*")] = NO_SPLIT_FLAGS,
    name_column: Annotated[
        str, Parameter(help="column of --table with the tile name")
    ] = KAGGLE_FORMAT.name_column,
    separator: Annotated[
        str, Parameter(help="column separator of --table, one character or `tab`")
    ] = ",",
) -> None:
    """Add a split, or one for each cross-validation fold, to a dataset; no shard is rewritten."""
    if not re.fullmatch(SPLIT_NAME, name):
        raise ConfigError(
            f"--name {name} is not made of letters, digits, _, . and -",
            "it becomes the name of a file",
            "--name stratified",
        )
    check_written("DATASET", dataset)
    rule = flags.rule(by, folds)
    from raytrain.data.dataset import add_splits, all_names, names_of, open_dataset, unknown_tiles
    from raytrain.data.splits import Rows, natural_order

    found = open_dataset(dataset)
    # Not the order of rows in the shards: a split then depends on the tiles alone, and a random
    # split of Planet is the lesson's.
    order = natural_order(all_names(found))
    names = names_of(found, order)
    targets = found.targets[order]  # uint8 (tiles, classes)
    known = found.known[order]  # bool (tiles,)
    mark = LabelFlags(separator=separator).mark()
    groups = flags.groups(names, known, name_column, mark) or []
    rows = Rows(names, targets, groups, known)
    tables = rule.tables(name, rows)
    new = add_splits(found, tables)
    unmatched = rule.unmatched(rows)
    if unmatched:
        print(f"{len(unmatched)} listed names are no tiles: {visible(', '.join(unmatched[:3]))}")
    for made, table in tables.items():
        _print_split(made, table["part"], made in new)
        _print_unlearned(table["part"], targets, found.classes)
    unknown = unknown_tiles(found)
    if unknown:
        print(f"  {unknown} tiles without a target stay in the part test")
    first = next(iter(tables))
    command = f"raytrain train --config planet-resnet18 --dataset {typed(dataset)}"
    print(f"next: {command} --data.split {first}")


def _print_split(name: str, parts: Any, is_new: bool) -> None:
    """Prints a split; `parts` is a pandas Series with the part of each tile."""
    counts = [f"{part} {count}" for part, count in sorted(parts.value_counts().items())]
    note = ""
    if not is_new:
        note = " (is there already)"
    print(f"split {name}: {', '.join(counts)}{note}")


def _print_unlearned(parts: Any, targets: Any, classes: list[str]) -> None:
    from raytrain.data.splits import only_in_valid

    alone = only_in_valid(parts, targets, classes)
    if alone:
        print(f"  only in validation, so never learned: {', '.join(alone)}")
