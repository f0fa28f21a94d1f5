"""The recorded numbers of a run: history.csv, metrics.jsonl, ranks.csv and TensorBoard events.

The rows of each epoch are appended to a local file. A run that resumes first drops the rows that
came after its checkpoint. An object store cannot append, so there the files are rewritten as a
whole when a checkpoint is written.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, TypeVar

from raytrain import storage, summaries
from raytrain.evaluation.score import BEST_SUFFIX

EPOCHS_FILE = "history.csv"
STEPS_FILE = "metrics.jsonl"
RANKS_FILE = "ranks.csv"
# Decay of the smoothed training loss in fastai.
SMOOTHING = 0.98
# The type of a field of a CSV row, by the text of its annotation: with `annotations` imported from
# __future__, dataclasses know only that text.
FIELD_TYPES: dict[str, type] = {"int": int, "float": float, "str": str}


@dataclass(frozen=True)
class EpochRow:
    """A row of history.csv. The order of the attributes is that of the columns.

    Attributes:
        stage: number of the stage, from 1.
        size: side of the tiles, pixels.
        epoch: number of the epoch in its stage, from 1.
        lr: learning rate of the head at the last step.
        train_loss: smoothed mean over tiles, see `smoothed`.
        valid_loss: mean over validation tiles.
        scores: metrics of the validation by the name of their column; the task says which.
        images_per_s: training tiles per second.
        seconds: duration of the epoch.
    """

    stage: int
    size: int
    epoch: int
    lr: float
    train_loss: float
    valid_loss: float
    scores: dict[str, float]
    images_per_s: float
    seconds: float

    def cells(self) -> dict[str, float]:
        """Returns the values by column, in the order of the columns."""
        found: dict[str, float] = {}
        for name, value in vars(self).items():
            if name == "scores":
                found.update(value)
            else:
                found[name] = value
        return found


@dataclass(frozen=True)
class StepRow:
    """A line of metrics.jsonl.

    Attributes:
        stage: number of the stage, from 1.
        epoch: number of the epoch in its stage, from 1.
        step: number of the step in the run, from 0.
        lr: learning rate of each layer group.
        momentum: momentum of the optimiser.
        loss: mean loss over the tiles of the global batch.
    """

    stage: int
    epoch: int
    step: int
    lr: list[float]
    momentum: float
    loss: float


@dataclass(frozen=True)
class RankRow:
    """A row of ranks.csv.

    Attributes:
        stage: number of the stage, from 1.
        epoch: number of the epoch in its stage, from 1.
        rank: the rank.
        host: name of its machine.
        steps: steps of the epoch that were measured.
        seconds: median over the steps of the time that the rank works without the others.
    """

    stage: int
    epoch: int
    rank: int
    host: str
    steps: int
    seconds: float


class Rows(NamedTuple):
    """Numbers of rows in history.csv, metrics.jsonl and ranks.csv."""

    epochs: int
    steps: int
    ranks: int


class History:
    """The record of a run. Every rank keeps one; only rank 0 writes it.

    Args:
        run: the run directory.
        upto: (stage, epochs done), the position that the run resumes from. Later rows are dropped.
    """

    def __init__(self, run: str, upto: tuple[int, int] = (0, 0)) -> None:
        self.run = run
        self.epochs = _rows_upto(upto, read_epochs(run))
        self.steps = _rows_upto(upto, read_steps(run))
        self.ranks = _rows_upto(upto, read_ranks(run))
        # Rows in the files; None before this process has written them.
        self.written: Rows | None = None

    @property
    def step(self) -> int:
        """Number of training steps recorded so far, over the whole run."""
        if not self.steps:
            return 0
        return self.steps[-1].step + 1

    def values(self, key: str) -> list[float]:
        """Returns a score of all epochs so far, by the name of its column."""
        return [row.scores[key] for row in self.epochs]

    def add(self, row: EpochRow, steps: list[StepRow], ranks: list[RankRow]) -> None:
        """Records an epoch in memory; `write` writes it to the files."""
        self.epochs.append(row)
        self.steps += steps
        self.ranks += ranks

    def write(self, *, durable: bool) -> None:
        """Writes the rows that the files lack. An object store is written only if `durable`.

        Args:
            durable: whether a checkpoint follows. Its rows must survive a power failure.

        Raises:
            StorageError: a file cannot be written.
        """
        if storage.is_uri(self.run):
            if durable:
                self._rewrite()
            return
        if self.written is None:
            # The files may hold rows from after the checkpoint that the run resumed from.
            self._rewrite()
            return
        summaries.write(self.run, _epoch_cells(self.epochs))
        new_ranks = self.ranks[self.written.ranks :]
        new_epochs = self.epochs[self.written.epochs :]
        new_steps = self.steps[self.written.steps :]
        self._append(RANKS_FILE, _csv_rows(_rank_cells(new_ranks)), durable)
        self._append(EPOCHS_FILE, _csv_rows(_epoch_cells(new_epochs)), durable)
        self._append(STEPS_FILE, _lines(new_steps), durable)
        self.written = self._rows()

    def _rewrite(self) -> None:
        self._replace(RANKS_FILE, _csv(_rank_cells(self.ranks), list(_types(RankRow))))
        self._replace(EPOCHS_FILE, _csv(_epoch_cells(self.epochs), list(_types(EpochRow))))
        self._replace(STEPS_FILE, _lines(self.steps))
        summaries.write(self.run, _epoch_cells(self.epochs))
        self.written = self._rows()

    def _replace(self, name: str, text: str) -> None:
        path = storage.join(self.run, name)
        storage.write_text(path, text)

    def _append(self, name: str, text: str, durable: bool) -> None:
        path = storage.join(self.run, name)
        storage.append_text(path, text, durable=durable)

    def _rows(self) -> Rows:
        return Rows(len(self.epochs), len(self.steps), len(self.ranks))

    def write_events(self) -> None:
        """Writes the TensorBoard events of the whole run, once at its end."""
        with event_writer(storage.join(self.run, "tensorboard")) as writer:
            add_curves(writer, self.epochs, self.steps)


@contextmanager
def event_writer(path: str) -> Iterator[Any]:
    """Yields a writer of TensorBoard events into a directory, whose old events are removed."""
    # Imported here because the benchmark trains on machines that have neither TensorBoard nor its
    # writer.
    from tensorboardX import SummaryWriter

    # Events of an earlier end of the run would show each step twice.
    storage.remove(path)
    with storage.local_directory(path) as directory, SummaryWriter(str(directory)) as writer:
        yield writer


def add_curves(writer: Any, epochs: Sequence[EpochRow], steps: Sequence[StepRow]) -> None:
    """Adds the rows of a run to a writer of TensorBoard events."""
    for step in steps:
        writer.add_scalar("train/loss", step.loss, step.step)
        # The learning rate of the head, the last layer group.
        writer.add_scalar("train/lr", step.lr[-1], step.step)
        writer.add_scalar("train/momentum", step.momentum, step.step)
    # Numbered over the whole run, like the steps.
    for number, row in enumerate(epochs, 1):
        writer.add_scalar("valid/valid_loss", row.valid_loss, number)
        for name, value in row.scores.items():
            if not name.endswith(BEST_SUFFIX):
                writer.add_scalar(f"valid/{name}", value, number)
        writer.add_scalar("valid/images_per_s", row.images_per_s, number)


AnyRow = TypeVar("AnyRow", EpochRow, StepRow, RankRow)
# The values of a row of a CSV file by column.
Cells = dict[str, Any]


def _rows_upto(position: tuple[int, int], rows: list[AnyRow]) -> list[AnyRow]:
    """Keeps the rows up to a position (stage, epoch)."""
    kept = []
    for row in rows:
        if (row.stage, row.epoch) <= position:
            kept.append(row)
    return kept


def read_epochs(run: str) -> list[EpochRow]:
    """Reads the rows of a run's history.csv. Returns an empty list if there is no such file."""
    rows = []
    for texts in _read_csv(storage.join(run, EPOCHS_FILE)):
        known = {name: kind(texts.pop(name)) for name, kind in _types(EpochRow).items()}
        # Whatever other columns there are, they are scores.
        scores = {name: float(text) for name, text in texts.items()}
        rows.append(EpochRow(**known, scores=scores))
    return rows


def read_ranks(run: str) -> list[RankRow]:
    """Reads the rows of a run's ranks.csv. Returns an empty list if there is no such file."""
    types = _types(RankRow)
    rows = []
    for texts in _read_csv(storage.join(run, RANKS_FILE)):
        values = {name: kind(texts[name]) for name, kind in types.items()}
        rows.append(RankRow(**values))
    return rows


def read_steps(run: str) -> list[StepRow]:
    """Reads the lines of a run's metrics.jsonl. Returns an empty list if there is no such file."""
    lines = _whole_lines(storage.join(run, STEPS_FILE))
    return [StepRow(**json.loads(line)) for line in lines]


def smoothed(losses: list[float], beta: float = SMOOTHING) -> float:
    """Returns the debiased exponential mean of batch losses, as fastai prints it.

    m_t = beta m_(t-1) + (1 - beta) loss_t, divided by 1 - beta^t (fastai 1.0.21 callback.py).

    Args:
        losses: in the order of the steps.
        beta: the share of the earlier mean.

    Returns:
        The mean; 0 for no losses.
    """
    if not losses:
        return 0.0
    mean = 0.0
    for loss in losses:
        mean = beta * mean + (1 - beta) * loss
    return mean / (1 - beta ** len(losses))


def _epoch_cells(rows: list[EpochRow]) -> list[Cells]:
    return [row.cells() for row in rows]


def _rank_cells(rows: list[RankRow]) -> list[Cells]:
    return [asdict(row) for row in rows]


def _csv(rows: list[Cells], empty: Sequence[str]) -> str:
    """Returns rows below their header; `empty` is the header where there are no rows."""
    header = ",".join(rows[0] if rows else empty)
    return f"{header}\n{_csv_rows(rows)}"


def _csv_rows(rows: list[Cells]) -> str:
    if not rows:
        return ""
    text = io.StringIO()
    writer: Any = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writerows(rows)
    return text.getvalue()


def _lines(steps: list[StepRow]) -> str:
    lines = []
    for step in steps:
        lines.append(json.dumps(asdict(step)) + "\n")
    return "".join(lines)


def _whole_lines(path: str) -> list[str]:
    """Reads the lines of a file, except a last one without its line end.

    Such a line was cut off by a crash, or is just being written. Returns an empty list if there is
    no file.
    """
    try:
        text = storage.read_bytes(path).decode()
    except FileNotFoundError:
        return []
    end = text.rfind("\n") + 1
    return text[:end].splitlines()


def _read_csv(path: str) -> list[dict[str, str]]:
    """Reads the whole lines of a CSV file: the texts of each row by column."""
    return list(csv.DictReader(_whole_lines(path)))


def _types(kind: type) -> dict[str, type]:
    """Returns the type of each plain attribute of a row, by name."""
    types = {}
    for field in fields(kind):
        if str(field.type) in FIELD_TYPES:
            types[field.name] = FIELD_TYPES[str(field.type)]
    return types
