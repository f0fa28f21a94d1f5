"""The text that `raytrain data check` prints: short aligned tables, then the warnings.

    summary(inspection)    the whole text

Imports neither torch nor ray.
"""

from __future__ import annotations

from collections.abc import Sequence

from raytrain.data.dataset import known_targets, unknown_tiles
from raytrain.data.duplicates import KINDS
from raytrain.data.inspection import Array, Inspection, companions, unknown_sentence, verdict
from raytrain.errors import masked

SPLITS = 3  # columns of more splits do not fit into a terminal; the page shows all
GROUPS = 8  # groups of duplicates that are listed
WIDTH = 44  # letters of a label or a name; longer ones are cut


def summary(found: Inspection) -> str:
    """The text for the terminal: sizes, labels, rules, duplicates and warnings of a dataset."""
    dataset = found.dataset
    path = masked(dataset.path)
    shards = len(dataset.shards)
    lines = [
        # `data check` verifies all checksums before it inspects.
        f"{path}: {dataset.rows:,} tiles in {shards} shards, all bytes match their checksums",
        f"  size {_values(found, found.sizes)}",
        f"  mode {_values(found, found.modes)}",
        *_unknown(found),
        "",
        *_label_table(found),
        "",
        *_rules(found),
        *_duplicates(found),
        "",
    ]
    lines += [f"warning: {warning}" for warning in found.warnings]
    if not found.warnings:
        lines.append("no warnings")
    return "\n".join(lines)


def _unknown(found: Inspection) -> list[str]:
    if not unknown_tiles(found.dataset):
        return []
    return [f"  {unknown_sentence(found.dataset)}"]


def _values(found: Inspection, rows_by_value: dict[str, Array]) -> str:
    """Counts of values, such as `256x256 412, 256x251 4 (a, b, c and 1 more)`.

    Tiles are named unless they have the most frequent value, which comes first.
    """
    texts: list[str] = []
    for value, rows in rows_by_value.items():
        text = f"{value} {len(rows):,}"
        if texts:
            text += f" ({found.names(rows, 3)})"
        texts.append(text)
    return ", ".join(texts)


def _label_table(found: Inspection) -> list[str]:
    """The tiles of each label, in all parts of the first SPLITS splits."""
    shown_splits = list(found.parts)[:SPLITS]
    parts = []
    for split, part, _ in found.split_parts:
        if split in shown_splits:
            parts.append(f"{split} {part}")
    rows = [["label", "tiles", *parts, "occurs with"]]
    dataset = found.dataset
    together = companions(known_targets(dataset), dataset.classes)
    for k, label in enumerate(dataset.classes):
        row = [label]
        for column in ["tiles", *parts]:
            count = found.labels[column][k]
            row.append(f"{count:,}")
        row.append(together[k])
        rows.append(row)
    # The first and the last column hold words, the others numbers.
    lines = aligned(rows, left={0, len(rows[0]) - 1})
    hidden = len(found.parts) - SPLITS
    if hidden > 0:
        lines.append(f"{hidden} more splits: --split NAME shows one of them, the page shows all")
    return lines


def _rules(found: Inspection) -> list[str]:
    if not found.rules:
        return []
    heading = "rules"
    if found.default_rules:
        heading += " (including those of Planet's weather labels, which this dataset has)"
    lines = [heading]
    for rule, broken in found.rules:
        lines.append(f"  {rule}: {verdict(broken)}")
    return lines


def _duplicates(found: Inspection) -> list[str]:
    kinds = [group.kind for group in found.groups]
    if found.decoded:
        counts = [f"{kinds.count(kind)} of {kind}" for kind in KINDS]
        lines = [f"groups of duplicates: {', '.join(counts)}"]
    else:
        # --fast decodes no pictures, so that the other kinds of duplicates cannot be found.
        lines = [f"groups of equal bytes: {len(kinds)} (--fast)"]
    for group in found.groups[:GROUPS]:
        names = found.names(group.rows)
        lines.append(f"  {group.kind}: {names}")
    hidden = len(kinds) - GROUPS
    if hidden > 0:
        lines.append(f"  and {hidden:,} more")
    return lines


def aligned(rows: Sequence[Sequence[str]], left: set[int]) -> list[str]:
    """Formats a table with aligned columns.

    Args:
        rows: cells of each row; all rows have the same length. Words longer than WIDTH are cut.
        left: numbers of the columns that are aligned to the left; the others are to the right.

    Returns:
        One line for each row.
    """
    columns = []
    for number, words in enumerate(zip(*rows, strict=True)):
        columns.append(_column(words, number in left))
    lines = []
    for cells in zip(*columns, strict=True):
        lines.append("  ".join(cells).rstrip())
    return lines


def _column(words: Sequence[str], left: bool) -> list[str]:
    """Cuts long words and pads all words of a column to the same width."""
    cut = [_cut(word) for word in words]
    width = max(len(word) for word in cut)
    if left:
        return [word.ljust(width) for word in cut]
    return [word.rjust(width) for word in cut]


def _cut(word: str) -> str:
    if len(word) <= WIDTH:
        return word
    return word[: WIDTH - 1] + "…"
