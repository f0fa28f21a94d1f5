"""Builds the file of answers from predictions, one row for each tile.

The competition's is `image_name,tags`. The task says how the second column is called and what an
answer is (`evaluation/tasks`). Imports neither torch nor ray.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from raytrain import registry, storage
from raytrain.data.names import KnownNames, stem, visible
from raytrain.data.tables import Column, open_table, read_rows
from raytrain.data.text import FileKind
from raytrain.errors import ConfigError, DataError, did_you_mean
from raytrain.evaluation.predictions import Predictions
from raytrain.registry import Evaluation

# The fix in messages about tiles that are missing or repeated.
ANOTHER = (
    "give the predictions of the competition's test folders, each once, and its own sample file"
)
SAMPLE = FileKind(
    name="sample file",
    why="it gives the order and names of the rows",
    fix="leave --sample out, or give the file",
)
SHOWN = 3  # names in a message
# With a larger share of tiles without predictions, a folder was probably forgotten.
MANY = 0.01


@dataclass(frozen=True)
class Submission:
    """The rows to submit.

    Attributes:
        table: image_name, and the answers in the column that the task names.
        filled: names of the sample's tiles that were not predicted and got `labels`.
        labels: for tiles that were not predicted.
    """

    table: pd.DataFrame
    filled: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()

    def notes(self) -> Iterator[str]:
        """Yields what a user should know about the rows, one sentence each."""
        if not self.filled:
            return
        share = len(self.filled) / len(self.table)
        names = visible(", ".join(self.filled[:SHOWN]))
        if len(self.filled) > SHOWN:
            names += ", ..."
        labels = " ".join(self.labels)
        count = f"{len(self.filled):,} of {len(self.table):,} tiles ({share:.1%})"
        yield f'not predicted, so they get "{labels}": {count}: {names}'
        if share > MANY:
            yield (
                "warning: that is more than a few damaged files; "
                "are the predictions of a test folder missing?"
            )


def build(
    predictions: Sequence[Predictions],
    chosen: Any = None,
    sample: str | None = None,
    missing: Sequence[str] = (),
) -> Submission:
    """Builds the rows to submit.

    Args:
        predictions: one for each folder of test tiles, all with the same classes.
        chosen: how labels are decided, as the task's `decision` returns it; None for the rule that
            needs no file.
        sample: path of the competition's sample file. It gives the order and spelling of the
            names, and exactly its tiles must be predicted. Without it, names have no suffix and
            are sorted, numbers in them by value.
        missing: labels for tiles of the sample that are not predicted because their pictures
            cannot be read. Without labels, such tiles are refused.

    Raises:
        ConfigError: one of the labels in `missing` is no class.
        DataError: different tasks or classes, a name that cannot be written, a repeated tile, or
            names that differ from the sample's.
    """
    classes = _classes(predictions)
    task = _task(predictions)
    task.check_answers(classes)
    _check_labels(missing, classes)
    if chosen is None:
        chosen = task.decision(None, None, classes)
    tags = _answers_by_name(predictions, chosen, task)
    if sample is None:
        names = sorted(tags, key=_natural)
        rows = [tags[name] for name in names]
        table = pd.DataFrame({"image_name": names, task.ANSWER_COLUMN: rows})
        return Submission(table)

    names = _sample_names(sample)
    tiles = _tiles_of(names, tags)
    _check_names(set(tags), names, tiles, sample, fills=bool(missing))
    # In class order, whatever the order on the command line.
    labels = tuple(label for label in classes if label in missing)
    rows = []
    filled = []
    for name, tile in zip(names, tiles, strict=True):
        if tile is None:
            filled.append(name)
            rows.append(" ".join(labels))
        else:
            rows.append(tags[tile])
    table = pd.DataFrame({"image_name": names, task.ANSWER_COLUMN: rows})
    return Submission(table, filled=tuple(filled), labels=labels)


def write(path: str, table: pd.DataFrame) -> None:
    """Writes the table as CSV with line feeds.

    Raises:
        StorageError: the path cannot be written.
    """
    storage.write_text(path, table.to_csv(index=False, lineterminator="\n"))


def _task(predictions: Sequence[Predictions]) -> Evaluation:
    """The module of the task that all predictions share."""
    tasks = {part.task for part in predictions}
    if len(tasks) != 1:
        raise DataError(
            f"the predictions are of different tasks: {', '.join(sorted(tasks))}",
            "their answers cannot stand in one column",
            "predict all folders with one checkpoint",
        )
    return registry.evaluation(tasks.pop())


def _classes(predictions: Sequence[Predictions]) -> tuple[str, ...]:
    """The classes that all predictions share."""
    found = {part.classes for part in predictions}
    if len(found) != 1:
        raise DataError(
            f"the predictions have {len(found)} different lists of classes",
            "a label's column would mean another label in the next file",
            "predict all folders with one checkpoint",
        )
    return found.pop()


def _answers_by_name(
    predictions: Sequence[Predictions], chosen: Any, task: Evaluation
) -> dict[str, str]:
    """The answer for every predicted tile, by its name without suffix."""
    answers: dict[str, str] = {}
    for part in predictions:
        names = map(stem, part.names)
        for name, answer in zip(names, task.answers(part, chosen), strict=True):
            if name in answers:
                raise DataError(
                    f"the tile {visible(name)} comes twice in the predictions",
                    "only one of the two answers would count",
                    ANOTHER,
                )
            answers[name] = answer
    return answers


def _natural(name: str) -> tuple[list[str | int], str]:
    """A key that sorts the numbers in names by value; the name itself breaks ties."""
    words: list[str | int] = []
    # Splitting at digits puts text at even indices and numbers at odd ones, so that text is never
    # compared with a number.
    for index, word in enumerate(re.split(r"([0-9]+)", name)):
        if index % 2:
            words.append(int(word))
        else:
            words.append(word)
    return words, name


def _sample_names(path: str) -> list[str]:
    """The column image_name of a sample file, in its order."""
    fix = f"its column image_name gives the order; {ANOTHER}"
    rows = read_rows(open_table(path, SAMPLE), [Column("image_name", "name")], fix)
    return [str(cell) for cell in rows.columns[0]]


def _tiles_of(names: Sequence[str], predicted: Iterable[str]) -> list[str | None]:
    """The predicted tile that each name of the sample means; None where there is none."""
    known = KnownNames(predicted)
    found: list[str | None] = []
    for name in names:
        tiles = known.find(name)
        if tiles:
            found.append(tiles[0])
        else:
            found.append(None)
    return found


def _check_labels(missing: Sequence[str], classes: Sequence[str]) -> None:
    for label in missing:
        if label not in classes:
            hint = did_you_mean(label, classes)
            raise ConfigError(
                f'--missing has "{visible(label)}", which is no class.{hint}',
                "the competition knows only its own labels",
                f"use some of {', '.join(classes)}",
            )


def _check_names(
    predicted: set[str],
    names: Sequence[str],
    tiles: Sequence[str | None],
    sample: str,
    *,
    fills: bool,
) -> None:
    """Checks that the sample and the predictions name the same tiles, each once.

    Args:
        predicted: names of all predicted tiles.
        names: of the sample.
        tiles: the predicted tile that each of `names` means, or None.
        sample: path of the sample file, for the message.
        fills: whether tiles without predictions get labels instead of being refused.

    Raises:
        DataError: they differ.
    """
    not_predicted = []
    if not fills:
        pairs = zip(names, tiles, strict=True)
        not_predicted = [name for name, tile in pairs if tile is None]
    not_in_sample = predicted.difference(tile for tile in tiles if tile)
    # By their stem: `a` and `a.jpg` are the same tile.
    counts = Counter(map(stem, names))
    repeated = [name for name, count in counts.items() if count > 1]
    wrong = {
        "not in the predictions": not_predicted,
        "not in the sample": sorted(not_in_sample, key=_natural),
        "in the sample more than once": repeated,
    }
    found = []
    for what, bad in wrong.items():
        if bad:
            shown = visible(", ".join(bad[:SHOWN]))
            found.append(f"{len(bad):,} {what} ({shown})")
    if not found:
        return
    fix = ANOTHER
    if not_predicted:
        fix += "; tiles that cannot be read get labels by --missing 'clear primary'"
    raise DataError(
        f"the predictions and {sample} do not name the same tiles: {'; '.join(found)}",
        "the competition refuses such a file, or scores missing tiles as 0",
        fix,
    )
