"""What `raytrain data check` prints: short aligned tables, then the warnings. Neither torch nor ray."""

from __future__ import annotations

from collections.abc import Sequence

from raytrain.data.duplicates import KINDS
from raytrain.data.inspection import Array, Inspection, companions, verdict
from raytrain.errors import masked

SPLITS = 3  # the terminal is not wider; the page shows all
GROUPS = 8
WIDTH = 44  # of a label or a name


def summary(found: Inspection) -> str:
    """The whole text for the terminal."""
    dataset = found.dataset
    lines = [
        f"{masked(dataset.path)}: {dataset.rows:,} tiles in {len(dataset.shards)} shards, every byte as written"
    ]
    lines += [f"  size {_first(found, found.sizes)}", f"  mode {_first(found, found.modes)}", ""]
    lines += [*_labels(found), "", *_rules(found), *_duplicates(found), ""]
    warnings = [f"warning: {warning}" for warning in found.warnings]
    return "\n".join([*lines, *(warnings or ["nothing to warn of"])])


def _first(found: Inspection, rows_by: dict[str, Array]) -> str:
    """`256x256 412, 256x251 4 (a, b, c and 1 more)`: names only for what is not the most frequent."""
    usual, *others = rows_by.items()
    return ", ".join(
        [
            f"{usual[0]} {len(usual[1]):,}",
            *(f"{key} {len(rows):,} ({found.names(rows, 3)})" for key, rows in others),
        ]
    )


def _labels(found: Inspection) -> list[str]:
    shown = [
        f"{split} {part}"
        for split, part, _ in found.split_parts
        if split in list(found.parts)[:SPLITS]
    ]
    table = found.labels
    rows = [["label", "tiles", *shown, "goes with"]]
    with_ = companions(found.dataset.targets, found.dataset.classes)
    for k, label in enumerate(found.dataset.classes):
        counts = [f"{table[column][k]:,}" for column in ("tiles", *shown)]
        rows.append([label, *counts, with_[k]])
    hidden = len(found.parts) - SPLITS
    more = [f"{hidden} more splits: --split NAME shows one, the page all"] if hidden > 0 else []
    return aligned(rows, left={0, len(shown) + 2}) + more


def _rules(found: Inspection) -> list[str]:
    if not found.rules:
        return []
    stated = " (those of Planet's weather labels, which this dataset has, are always among them)"
    kept = [f"  {rule}: {verdict(rows)}" for rule, rows in found.rules]
    return [f"rules{stated if found.default_rules else ''}", *kept]


def _duplicates(found: Inspection) -> list[str]:
    kinds = [group.kind for group in found.groups]
    counts = ", ".join(f"{kinds.count(kind)} of {kind}" for kind in KINDS)
    head = (
        f"groups of duplicates: {counts}"
        if found.decoded
        else f"groups of equal bytes: {len(kinds)} (--fast)"
    )
    groups = [f"  {group.kind}: {found.names(group.rows)}" for group in found.groups[:GROUPS]]
    more = len(kinds) - GROUPS
    return [head, *groups] + ([f"  and {more:,} more"] if more > 0 else [])


def aligned(rows: Sequence[Sequence[str]], left: set[int]) -> list[str]:
    """Rows as lines of columns, those in `left` to the left, the others to the right; long words are cut."""
    cut = [
        [word if len(word) <= WIDTH else word[: WIDTH - 1] + "…" for word in row] for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cut, strict=True)]
    return [
        "  ".join(
            word.ljust(width) if i in left else word.rjust(width)
            for i, (word, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cut
    ]
