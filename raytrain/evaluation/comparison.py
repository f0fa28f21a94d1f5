"""Compares two predictions files on the same tiles, whatever their task. No torch, no ray.

compare(first, second)    by every score that the task has for single tiles
write(comparison, out)    out/comparison.json
table(comparison)         text for the terminal
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np

from raytrain import registry, storage
from raytrain.data.names import visible
from raytrain.errors import DataError
from raytrain.evaluation import intervals
from raytrain.evaluation.conditions import PLAIN, Conditions
from raytrain.evaluation.intervals import Comparison
from raytrain.evaluation.metrics import Array
from raytrain.evaluation.predictions import Predictions

NAME = "comparison.json"
SAME = "give two predictions of the same part of the same dataset"


@dataclass(frozen=True)
class Pair:
    """Two models on the same tiles.

    Attributes:
        tiles: number of tiles that both have predicted.
        left_out: number of tiles that only one of them has predicted, or whose labels are unknown.
        groups: number of groups that were resampled, or None where single tiles were.
        name: of the score, for people.
        scores: comparisons by the name of the score or decision rule, for people. The first one
            fits nothing to the tiles.
    """

    tiles: int
    left_out: int
    groups: int | None
    name: str
    scores: Mapping[str, Comparison]

    def verdict(self, name: str) -> str | None:
        """Returns the verdict by one of the scores; None where its rule fits numbers.

        Each file has its own fit then, and the interval does not hold the luck of that. Of 2,000
        pairs of equally good files 6 to 13 % would be called different (docs/decisions.md).
        """
        if name != next(iter(self.scores)):
            return None
        return self.scores[name].verdict


def compare(first: Predictions, second: Predictions, how: Conditions = PLAIN) -> Pair:
    """Compares the second predictions with the first ones, tile by tile.

    Raises:
        DataError: the tasks or classes differ, a tile comes twice or has other labels in the
            second file, or no labelled tile is in both.
    """
    _check_same("task", first.task, second.task)
    _check_same("classes", _in_words(first.classes), _in_words(second.classes))
    rows = _rows_by_name(first)
    others = _rows_by_name(second)
    # In the order of names, which is that of tile_scores.
    both = sorted(rows.keys() & others.keys())
    if not both:
        raise DataError(
            "the two files have no labelled tile in common",
            "a paired comparison needs the scores of both models on the same tiles",
            SAME,
        )
    one = first.taken(np.array([rows[name] for name in both]))
    two = second.taken(np.array([others[name] for name in both]))
    _check_targets(one, two)
    if not _same_folds(one, two):
        # Rules that are fitted on more tiles of one file than of the other would differ by that.
        one = replace(one, fold=None)
        two = replace(two, fold=None)
    task = registry.evaluation(first.task)
    scores = task.tile_scores(one, how)
    other_scores = task.tile_scores(two, how)
    groups = how.groups(tuple(both))
    compared = {}
    for name, values in scores.items():
        compared[task.score_title(name)] = intervals.compare(
            values,
            other_scores[name],
            higher_is_better=task.SCORE.higher_is_better,
            groups=groups,
            seed=how.seed,
        )
    return Pair(
        tiles=len(both),
        left_out=len({*first.names, *second.names}) - len(both),
        groups=_number_of(groups),
        name=task.SCORE.name,
        scores=compared,
    )


def _same_folds(first: Predictions, second: Predictions) -> bool:
    if first.fold is None or second.fold is None:
        return False
    return bool((first.fold == second.fold).all())


def _check_same(what: str, first: str, second: str) -> None:
    if first == second:
        return
    raise DataError(
        f"the two files have different {what}: {first} and {second}",
        "their scores do not measure the same thing",
        SAME,
    )


def _in_words(classes: tuple[str, ...]) -> str:
    return visible(", ".join(classes))


def _rows_by_name(predictions: Predictions) -> dict[str, int]:
    """The row of each tile with known labels by its name."""
    known = predictions.is_known
    rows: dict[str, int] = {}
    for row, name in enumerate(predictions.names):
        if not known[row]:
            continue
        if name in rows:
            raise DataError(
                f"the tile {visible(name)} comes twice in one of the files",
                "it would be unknown which of its predictions counts",
                SAME,
            )
        rows[name] = row
    return rows


def _check_targets(first: Predictions, second: Predictions) -> None:
    assert first.target is not None and second.target is not None  # the labels are known
    differs = (first.target != second.target).any(axis=1)
    if not differs.any():
        return
    name = first.names[int(differs.argmax())]
    raise DataError(
        f"{int(differs.sum())} tiles have different labels in the two files, "
        f"such as {visible(name)}",
        "the two models would be judged by different answers",
        SAME,
    )


def _number_of(groups: Array | None) -> int | None:
    if groups is None:
        return None
    return len(set(groups.tolist()))


def write(pair: Pair, out: str) -> None:
    """Writes comparison.json into a directory.

    Raises:
        StorageError: it cannot be written.
    """
    scores = {}
    for name, comparison in pair.scores.items():
        scores[name] = asdict(comparison) | {"verdict": pair.verdict(name)}
    content = {
        "tiles": pair.tiles,
        "tiles_left_out": pair.left_out,
        "groups": pair.groups,
        "scores": scores,
    }
    storage.write_json(storage.join(out, NAME), content)


def table(pair: Pair) -> str:
    """Returns plain text for the terminal."""
    heading = f"{pair.name} of {pair.tiles:,} tiles"
    if pair.groups is not None:
        heading += f" in {pair.groups:,} groups"
    lines = [
        f"{heading:38}{'first':>8}{'second':>9}{'difference':>12}   "
        f"{'95 % interval':20}{'better in':>10}   verdict on the second"
    ]
    for name, comparison in pair.scores.items():
        difference = comparison.difference
        interval = f"{difference.low:+.4f} to {difference.high:+.4f}"
        lines.append(
            f"{name:38}{comparison.first:8.4f}{comparison.second:9.4f}"
            f"{difference.value:+12.4f}   {interval:20}{comparison.share_better:10.1%}   "
            f"{_verdict_in_words(pair.verdict(name), comparison)}".rstrip()
        )
    lines.append("better in: share of the resamples in which the second file is better")
    if len(pair.scores) > 1:
        lines.append("the other lines have no verdict: each file has its own fit, and its own luck")
    if pair.left_out:
        lines.append(f"{pair.left_out:,} tiles are not in both files with labels and were left out")
    return "\n".join(lines)


def _verdict_in_words(verdict: str | None, comparison: Comparison) -> str:
    """The verdict, and how many tiles would settle a difference that these do not show."""
    if verdict is None:
        return ""
    if verdict != "no difference" or comparison.needed is None:
        return verdict
    return f"{verdict}; about {comparison.needed:,} tiles would settle it"
