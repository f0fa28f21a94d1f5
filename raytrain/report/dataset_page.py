"""Writes the page of `raytrain data check`: one HTML file with pictures, no network, no script.

    write(inspection, path, table)        writes the page
    split_command(inspection, table)      the command for a split without leaks

Shares its look with the report of a run; the template escapes all words from outside. Imports
neither torch nor ray.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from raytrain import storage
from raytrain.data.dataset import (
    all_names,
    known_targets,
    names_of,
    read_images,
    shown_labels,
    unknown_tiles,
)
from raytrain.data.inspection import (
    Array,
    Inspection,
    companions,
    cooccurrence,
    unknown_sentence,
    verdict,
)
from raytrain.errors import masked
from raytrain.report import plots, tiles
from raytrain.report.record import SYNTHETIC_PREFIX
from raytrain.report.templates import Plot, render

# Pictures are part of the page, about 5 KB for each tile. These limits keep a page below a few
# megabytes.
GROUPS = 24  # groups of duplicates
GROUP_TILES = 6  # tiles of a group
RULE_TILES = 8  # tiles that break a rule
ODD_TILES = 8  # tiles of an unusual size
SHEET_TILES = 16  # tiles chosen at random
LEAKS = 200  # rows of the table of leaks
HEAT_SPLITS = 3  # splits whose parts have a heat map each


# The classes below are what the template takes.


@dataclass(frozen=True)
class Card:
    """A tile: its name, its picture as a data: URI, its size and part, and its labels."""

    name: str
    picture: str
    note: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class LabelRow:
    """A label: its tiles in all and in each part, and the label that it occurs with."""

    label: str
    counts: list[int]
    companion: str


@dataclass(frozen=True)
class ValueRow:
    """A size or a mode, the number of tiles that have it, and the names of the first ones."""

    value: str
    tiles: int
    names: str


@dataclass(frozen=True)
class LeakRow:
    """A leak: the split, the names of the tiles with their parts, and the kind of duplicates."""

    split: str
    names: str
    kind: str


@dataclass(frozen=True)
class RuleSection:
    """A label rule, how many tiles break it, and some of these tiles."""

    rule: str
    verdict: str
    cards: list[Card]


@dataclass(frozen=True)
class GroupSection:
    """A group of duplicates: kind, number of tiles, whether their labels differ, some tiles."""

    kind: str
    tiles: int
    contradicts: bool
    cards: list[Card]


def write(found: Inspection, path: str, table: str) -> None:
    """Writes the page of an inspection.

    Args:
        found: what to show.
        path: path or URI of the page.
        table: path of the table of duplicate groups, which the printed command refers to.

    Raises:
        DataError: a shard can no longer be read.
        StorageError: the path cannot be written.
    """
    context = _context(found)
    context |= _tile_sections(found)
    context["split_command"] = split_command(found, table)
    storage.write_text(path, render("dataset.html.j2", context))


def split_command(found: Inspection, table: str) -> str:
    """The command to type for a split with all duplicates of a tile in the same part."""
    dataset = shlex.quote(masked(found.dataset.path))
    groups = shlex.quote(masked(table))
    return (
        f"raytrain data split {dataset} --name no-leaks --by group --table {groups} --column group"
    )


def _context(found: Inspection) -> dict[str, Any]:
    """The variables of the template, except those that hold pictures of tiles."""
    dataset = found.dataset
    leaks = []
    for leak in found.leaks[:LEAKS]:
        leaks.append(LeakRow(leak.split, found.sides_of(leak), leak.kind))
    columns = list(found.labels.columns)
    return {
        "name": storage.name_of(dataset.path),
        "kind": "dataset check",
        "synthetic": _is_synthetic(found),
        "summary": _summary(found),
        "warnings": found.warnings,
        "columns": columns[2:],  # the first two, label and tiles, are part of the template
        "labels": _label_rows(found),
        "few_labels": len(dataset.classes) <= plots.MAX_LABELS,
        "counts": _count_plots(found),
        "heat": _heat_plots(found),
        "default_rules": found.default_rules,
        "decoded": found.decoded,
        "group_count": len(found.groups),
        "leaks": leaks,
        "heat_splits_left": max(0, len(found.parts) - HEAT_SPLITS),
        "leak_count": len(found.leaks),
        "kinds": {
            "size": _value_rows(found, found.sizes),
            "mode": _value_rows(found, found.modes),
        },
        "path": shlex.quote(masked(dataset.path)),
    }


def _is_synthetic(found: Inspection) -> bool:
    names = all_names(found.dataset)
    if not names:
        return False
    return all(name.startswith(SYNTHETIC_PREFIX) for name in names)


def _summary(found: Inspection) -> list[str]:
    """The sentences under the title."""
    dataset = found.dataset
    shards = len(dataset.shards)
    labels = len(dataset.classes)
    targets = known_targets(dataset)
    labels_per_tile = targets.sum() / max(len(targets), 1)
    # Sizes are sorted by frequency.
    usual_size = next(iter(found.sizes), "")
    contents = (
        f"{dataset.rows:,} tiles in {shards} shards, {labels} labels, "
        f"{labels_per_tile:.2f} labels per tile. Most tiles have {usual_size} pixels. "
        "All bytes match their checksums."
    )
    sentences = [contents]
    if unknown_tiles(dataset):
        sentences.append(unknown_sentence(dataset))
    return [*sentences, f"Dataset {masked(dataset.path)}."]


def _tile_sections(found: Inspection) -> dict[str, Any]:
    """The variables of the template that hold pictures of tiles."""
    chosen = _choose_tiles(found)
    wanted: set[int] = set()
    for rows in chosen.values():
        wanted.update(rows)
    # Sections share tiles, so all are read together: each tile and each shard only once.
    cards = _cards(found, sorted(wanted))
    shown = {}
    for section, rows in chosen.items():
        shown[section] = [cards[row] for row in rows]
    rules = []
    for i, (rule, broken) in enumerate(found.rules):
        rules.append(RuleSection(str(rule), verdict(broken), shown[f"rule {i}"]))
    groups = []
    for i, group in enumerate(found.groups[:GROUPS]):
        groups.append(
            GroupSection(
                kind=group.kind,
                tiles=len(group.rows),
                contradicts=group in found.contradictions,
                cards=shown[f"group {i}"],
            )
        )
    return {
        "rules": rules,
        "groups": groups,
        "odd": shown["odd"],
        "sheet_cards": shown["sheet"],
    }


def _choose_tiles(found: Inspection) -> dict[str, list[int]]:
    """Row numbers of the tiles to show, by the section that shows them."""
    chosen: dict[str, list[int]] = {}
    # The first size is the most frequent one.
    unusual_sizes = list(found.sizes.values())[1:]
    odd: list[int] = []
    for rows in unusual_sizes:
        odd.extend(rows.tolist())
    chosen["odd"] = odd[:ODD_TILES]
    # A fixed seed: the same dataset gives the same page.
    random = np.random.default_rng(0)
    shuffled = random.permutation(found.dataset.rows).tolist()
    chosen["sheet"] = shuffled[:SHEET_TILES]
    for i, group in enumerate(found.groups[:GROUPS]):
        chosen[f"group {i}"] = list(group.rows[:GROUP_TILES])
    for i, (_, broken) in enumerate(found.rules):
        chosen[f"rule {i}"] = broken[:RULE_TILES].tolist()
    return chosen


def _cards(found: Inspection, rows: list[int]) -> dict[int, Card]:
    """The cards of some tiles, by row number."""
    names = names_of(found.dataset, rows)
    contents = read_images(found.dataset, rows)
    cards = {}
    for row, name, content in zip(rows, names, contents, strict=True):
        cards[row] = Card(
            name=name,
            picture=tiles.thumbnail(content, found.dataset.tile_format),
            note=_note(found, row),
            labels=shown_labels(found.dataset, row),
        )
    return cards


def _note(found: Inspection, row: int) -> str:
    """The size of a tile, and its part if the dataset has a single split."""
    fingerprint = found.prints[row]
    size = f"{fingerprint['width']}x{fingerprint['height']}"
    # Parts of several splits would not fit into a line.
    if len(found.parts) != 1:
        return size
    (parts,) = found.parts.values()
    part = parts[row]
    if not part:
        return size  # the split leaves this tile out
    return f"{size}, {part}"


def _label_rows(found: Inspection) -> list[LabelRow]:
    """All labels, most frequent first."""
    dataset = found.dataset
    companion = companions(known_targets(dataset), dataset.classes)
    table = found.labels.assign(companion=companion)
    ranked = table.sort_values("tiles", ascending=False, kind="stable")
    rows = []
    for label, *counts, together in ranked.itertuples(index=False, name=None):
        rows.append(LabelRow(label, counts, together))
    return rows


def _count_plots(found: Inspection) -> list[Plot]:
    """Tiles of each label: one picture for each split, or a single one if there are no splits."""
    if not found.parts:
        return [_count_plot(found.labels, "")]
    pictures = []
    for split in found.parts:
        table = found.labels[["label"]].copy()
        for other, part, _ in found.split_parts:
            if other == split:
                table[part] = found.labels[f"{split} {part}"]
        pictures.append(_count_plot(table, f" in split {split}"))
    return pictures


def _count_plot(table: pd.DataFrame, where: str) -> Plot:
    return Plot.of(partial(plots.label_counts, table), f"tiles of each label{where}")


def _heat_plots(found: Inspection) -> dict[str, Plot]:
    """A heat map of all tiles, and one of each part of the first HEAT_SPLITS splits, by name."""
    classes = found.dataset.classes
    targets = found.dataset.targets
    if len(classes) < 2:
        return {}
    # Most frequent labels first. One order for all pictures, so that they can be compared.
    known = known_targets(found.dataset)
    totals = known.sum(0, dtype=np.int64)
    order = np.argsort(-totals, kind="stable")
    labels = [classes[k] for k in order]
    pictures = {"all tiles": _heat_plot(known[:, order], labels, "all tiles")}
    shown_splits = list(found.parts)[:HEAT_SPLITS]
    for split, part, rows in found.split_parts:
        if split not in shown_splits:
            continue
        name = f"split {split}, {part}"
        part_targets = targets[np.ix_(rows, order)]
        pictures[name] = _heat_plot(part_targets, labels, name)
    return pictures


def _heat_plot(targets: Array, labels: Sequence[str], name: str) -> Plot:
    """A heat map of some tiles; `targets` is uint8 (tiles, labels)."""
    counts = cooccurrence(targets)
    draw = partial(plots.cooccurrence, counts, labels)
    return Plot.of(draw, f"labels together, {name}")


def _value_rows(found: Inspection, rows_by_value: dict[str, Array]) -> list[ValueRow]:
    """All values, most frequent first; the first has no names, since nobody looks for its tiles."""
    table: list[ValueRow] = []
    for value, rows in rows_by_value.items():
        names = ""
        if table:
            names = found.names(rows)
        table.append(ValueRow(value, len(rows), names))
    return table
