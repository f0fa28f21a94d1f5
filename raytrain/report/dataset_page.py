"""The page of `raytrain data check`: one HTML file with pictures, no network, no script.

    write(inspection, place, table)

Shares its look with the report of a run; the template escapes all words from outside. Neither torch nor ray.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from raytrain import storage
from raytrain.data.dataset import labels_of, read_images
from raytrain.data.inspection import Inspection, companions, cooccurrence, verdict
from raytrain.errors import masked
from raytrain.report import page, plots, tiles
from raytrain.report.page import Plot
from raytrain.report.record import SYNTHETIC_PREFIX

# Pictures are in the page itself: 5 KB a tile, so that a page stays below a few megabytes.
GROUPS, GROUP_TILES, RULE_TILES, ODD_TILES, SHEET_TILES, LEAKS, HEAT_SPLITS = (
    24,
    6,
    8,
    8,
    16,
    200,
    3,
)


@dataclass(frozen=True)
class Card:
    """A tile on the page: a data: URI, name, what is said of it, labels."""

    name: str
    picture: str
    note: str
    labels: tuple[str, ...]


def write(found: Inspection, path: str, table: str) -> None:
    """Writes the page of an inspection.

    Args:
        found: what to show.
        path: of the page.
        table: place of the table of groups of duplicates, for the command that uses it.

    Raises:
        DataError: a shard cannot be read any more.
        StorageError: the place cannot be written.
    """
    context = _context(found) | _pictures(found) | {"split_command": split_command(found, table)}
    storage.write_text(path, page.render("dataset.html.j2", context))


def split_command(found: Inspection, table: str) -> str:
    """What to type for a split that keeps duplicates on one side."""
    paths = (shlex.quote(masked(found.dataset.path)), shlex.quote(masked(table)))
    return "raytrain data split {} --name no-leaks --by group --table {} --column group".format(
        *paths
    )


def _context(found: Inspection) -> dict[str, Any]:
    dataset = found.dataset
    names = dataset.table["image_name"]
    return {
        "name": storage.name_of(dataset.path),
        "kind": "dataset check",
        "synthetic": dataset.rows > 0 and all(name.startswith(SYNTHETIC_PREFIX) for name in names),
        "summary": _summary(found),
        "warnings": found.warnings,
        "columns": [column for column in found.labels.columns if column not in ("label", "tiles")],
        "labels": _label_rows(found),
        "few_labels": len(dataset.classes) <= plots.MAX_LABELS,
        "counts": _count_plots(found),
        "heat": _heat_plots(found),
        "default_rules": found.default_rules,
        "decoded": found.decoded,
        "group_count": len(found.groups),
        "leaks": [(leak.split, found.sides_of(leak), leak.kind) for leak in found.leaks[:LEAKS]],
        "heat_splits_left": max(0, len(found.parts) - HEAT_SPLITS),
        "leak_count": len(found.leaks),
        "kinds": {"size": _kinds(found, found.sizes), "mode": _kinds(found, found.modes)},
        "place": shlex.quote(masked(dataset.path)),
    }


def _pictures(found: Inspection) -> dict[str, Any]:
    """The sections that show tiles; every tile is read once."""
    chosen = _chosen(found)
    cards = _cards(found, sorted({row for rows in chosen.values() for row in rows}))
    shown = {section: [cards[row] for row in rows] for section, rows in chosen.items()}
    return {
        "rules": [
            (str(rule), verdict(rows), shown[f"rule {i}"])
            for i, (rule, rows) in enumerate(found.rules)
        ],
        "groups": [
            (group.kind, len(group.rows), group in found.contradictions, shown[f"group {i}"])
            for i, group in enumerate(found.groups[:GROUPS])
        ],
        "odd": shown["odd"],
        "sheet_cards": shown["sheet"],
    }


def _summary(found: Inspection) -> list[str]:
    dataset = found.dataset
    usual = next(iter(found.sizes), "")
    return [
        f"{dataset.rows:,} tiles in {len(dataset.shards)} shards, {len(dataset.classes)} labels, "
        f"{dataset.targets.sum() / max(dataset.rows, 1):.2f} labels a tile, most tiles {usual} pixels. Every byte is as written.",
        f"Dataset {masked(dataset.path)}.",
    ]


def _chosen(found: Inspection) -> dict[str, list[int]]:
    """Row numbers of the tiles to show, by the section that shows them."""
    odd = np.concatenate([*list(found.sizes.values())[1:], np.zeros(0, np.int64)])[:ODD_TILES]
    shuffled = np.random.default_rng(0).permutation(found.dataset.rows)[:SHEET_TILES]
    chosen = {"odd": odd.astype(int).tolist(), "sheet": shuffled.tolist()}
    chosen |= {
        f"group {i}": list(group.rows[:GROUP_TILES])
        for i, group in enumerate(found.groups[:GROUPS])
    }
    return chosen | {
        f"rule {i}": rows[:RULE_TILES].tolist() for i, (_, rows) in enumerate(found.rules)
    }


def _cards(found: Inspection, rows: list[int]) -> dict[int, Card]:
    pictures = read_images(found.dataset, rows)
    names = found.dataset.table["image_name"]
    return {
        row: Card(
            names[row], tiles.thumbnail(content), _note(found, row), labels_of(found.dataset, row)
        )
        for row, content in zip(rows, pictures, strict=True)
    }


def _note(found: Inspection, row: int) -> str:
    """Its size, and its part in each split if there are few."""
    size = f"{found.prints['width'][row]}x{found.prints['height'][row]}"
    parts = [of[row] for of in found.parts.values() if of[row]]
    return ", ".join([size, *parts] if len(found.parts) == 1 else [size])


def _label_rows(found: Inspection) -> list[tuple[str, list[int], str]]:
    """(label, counts, companion) of every label, most frequent first."""
    together = companions(found.dataset.targets, found.dataset.classes)
    table = found.labels.assign(together=together).sort_values(
        "tiles", ascending=False, kind="stable"
    )
    return [
        (row[0], [int(count) for count in row[1:-1]], row[-1])
        for row in table.itertuples(index=False, name=None)
    ]


def _count_plots(found: Inspection) -> list[Plot]:
    """Tiles of each label by part: one picture for each split, or one of all tiles without a split."""
    tables = {}
    for split in found.parts:
        columns = {
            part: found.labels[f"{split} {part}"]
            for of, part, _ in found.split_parts
            if of == split
        }
        tables[f" in split {split}"] = found.labels[["label"]].assign(**columns)
    tables = tables or {"": found.labels}
    return [
        Plot.of(partial(plots.label_counts, table), f"tiles of each label{where}")
        for where, table in tables.items()
    ]


def _heat_plots(found: Inspection) -> dict[str, Plot]:
    """A heat map of all tiles, and of each part of the first splits; most frequent labels first."""
    first = list(found.parts)[:HEAT_SPLITS]
    parts = {"all tiles": np.arange(found.dataset.rows)}
    parts |= {
        f"split {split}, {part}": rows for split, part, rows in found.split_parts if split in first
    }
    classes, targets = found.dataset.classes, found.dataset.targets
    if len(classes) < 2:
        return {}
    order = np.argsort(
        -targets.sum(0, dtype=np.int64), kind="stable"
    )  # one for all pictures, so that they compare
    names = [classes[k] for k in order]
    return {
        name: Plot.of(
            partial(_heat, cooccurrence(targets[np.ix_(rows, order)]), names),
            f"labels together, {name}",
        )
        for name, rows in parts.items()
    }


def _heat(counts: Any, classes: list[str], theme: plots.Theme) -> bytes:
    return plots.cooccurrence(counts, classes, theme)


def _kinds(found: Inspection, rows_by: dict[str, Any]) -> list[tuple[str, int, str]]:
    """(value, tiles, first names); no names for the most frequent value."""
    return [
        (key, len(rows), found.names(rows) if i else "")
        for i, (key, rows) in enumerate(rows_by.items())
    ]
