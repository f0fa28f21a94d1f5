"""What a run wrote down: history.csv, metrics.jsonl, ranks.csv, TensorBoard events, and the line per epoch.

A local file grows by the rows of each epoch; a run that goes on first drops those that came after its checkpoint. An object
store cannot append: there the files are rewritten whole where a checkpoint is written.
"""

from __future__ import annotations

import csv
import io
import json
import time
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, TypeVar

from raytrain import storage
from raytrain.log import duration


@dataclass(frozen=True)
class EpochRow:
    """A row of history.csv. Losses are means over tiles; `lr` is the head's at the last step; `seconds` of the epoch."""

    stage: int
    size: int
    epoch: int
    lr: float
    train_loss: float
    valid_loss: float
    accuracy: float
    f2: float
    f2_best: float
    images_per_s: float
    seconds: float


@dataclass(frozen=True)
class StepRow:
    """A line of metrics.jsonl: `step` counts over the run, `lr` has one value per layer group."""

    stage: int
    epoch: int
    step: int
    lr: list[float]
    momentum: float
    loss: float


@dataclass(frozen=True)
class RankRow:
    """A row of ranks.csv: `seconds` is the median over the epoch's steps of what the rank does alone in one."""

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
    """The record of a run. Every rank keeps one, rank 0 writes it."""

    def __init__(self, run: str, upto: tuple[int, int] = (0, 0)) -> None:
        """Opens the record of a run directory, keeping what lies before the position (stage, epochs done)."""
        self.run = run
        self.epochs = [row for row in read_epochs(run) if (row.stage, row.epoch) <= upto]
        self.steps = [row for row in read_steps(run) if (row.stage, row.epoch) <= upto]
        self.ranks = [row for row in read_ranks(run) if (row.stage, row.epoch) <= upto]
        # Rows that the files hold; None before this process has written them.
        self.written: Rows | None = None

    @property
    def step(self) -> int:
        """Training steps recorded so far, over the whole run."""
        return self.steps[-1].step + 1 if self.steps else 0

    @property
    def best(self) -> float:
        """Highest F2 so far; -1 before the first epoch."""
        return max((row.f2 for row in self.epochs), default=-1.0)

    def add(self, row: EpochRow, steps: list[StepRow], ranks: list[RankRow]) -> None:
        """Records an epoch; `write` brings it into the files."""
        self.epochs.append(row)
        self.steps += steps
        self.ranks += ranks

    def write(self, *, durable: bool) -> None:
        """Writes the rows that the files lack. In an object store nothing is written unless `durable`.

        Args:
            durable: a checkpoint follows, whose rows must survive a power cut.

        Raises:
            StorageError: a file cannot be written.
        """
        if storage.is_uri(self.run):
            if durable:
                self._rewrite()
            return
        if self.written is None:
            self._rewrite()
            return
        done = self.written
        self._append("ranks.csv", _csv_rows(RankRow, self.ranks[done.ranks :]), durable)
        self._append("history.csv", _csv_rows(EpochRow, self.epochs[done.epochs :]), durable)
        self._append("metrics.jsonl", _lines(self.steps[done.steps :]), durable)
        self.written = self._rows()

    def _rewrite(self) -> None:
        storage.write_text(storage.join(self.run, "ranks.csv"), _csv(RankRow, self.ranks))
        storage.write_text(storage.join(self.run, "history.csv"), _csv(EpochRow, self.epochs))
        storage.write_text(storage.join(self.run, "metrics.jsonl"), _lines(self.steps))
        self.written = self._rows()

    def _append(self, name: str, text: str, durable: bool) -> None:
        storage.append_text(storage.join(self.run, name), text, durable=durable)

    def _rows(self) -> Rows:
        return Rows(len(self.epochs), len(self.steps), len(self.ranks))

    def write_events(self) -> None:
        """Writes the TensorBoard events of the whole run, once, at its end."""
        # Imported here for the bench, which trains on machines that have neither TensorBoard nor its writer.
        from tensorboardX import SummaryWriter

        path = storage.join(self.run, "tensorboard")
        storage.remove(path)
        with storage.local_directory(path) as directory, SummaryWriter(str(directory)) as writer:
            for step in self.steps:
                writer.add_scalar("train/loss", step.loss, step.step)
                writer.add_scalar("train/lr", step.lr[-1], step.step)
                writer.add_scalar("train/momentum", step.momentum, step.step)
            for number, row in enumerate(self.epochs, 1):
                for key in ("valid_loss", "accuracy", "f2", "images_per_s"):
                    writer.add_scalar(f"valid/{key}", getattr(row, key), number)


Row = TypeVar("Row", EpochRow, RankRow)


def read_epochs(run: str) -> list[EpochRow]:
    """The rows of a run's history.csv; empty where there is none."""
    return _read_csv(EpochRow, storage.join(run, "history.csv"))


def read_ranks(run: str) -> list[RankRow]:
    """The rows of a run's ranks.csv; empty where there is none."""
    return _read_csv(RankRow, storage.join(run, "ranks.csv"))


def read_steps(run: str) -> list[StepRow]:
    """The lines of a run's metrics.jsonl; empty where there is none."""
    try:
        text = storage.read_bytes(storage.join(run, "metrics.jsonl")).decode()
    except FileNotFoundError:
        return []
    return [StepRow(**json.loads(line)) for line in _whole_lines(text)]


def epoch_line(row: EpochRow, *, stages: int, epochs: int, frozen: bool, remaining_s: float) -> str:
    """The line a person reads after each epoch."""
    best = " *best" if row.f2 >= row.f2_best else "      "
    end = time.strftime("%H:%M:%S", time.localtime(time.time() + remaining_s))
    return (
        f"stage {row.stage}/{stages}  {row.size:>3} px {'frozen  ' if frozen else 'unfrozen'}  epoch {row.epoch}/{epochs}"
        f"  lr {row.lr:.1e}  train {row.train_loss:.4f}  valid {row.valid_loss:.4f}  acc {row.accuracy:.4f}"
        f"  F2 {row.f2:.4f}{best}  {row.images_per_s:.0f} img/s  {duration(row.seconds)}"
        f"  end {end} (in {duration(remaining_s)})"
    )


def smoothed(losses: list[float], beta: float = 0.98) -> float:
    """Debiased exponential mean of batch losses, as fastai prints it: m_t / (1 - beta^t)."""
    mean = 0.0
    for loss in losses:
        mean = beta * mean + (1 - beta) * loss
    return mean / (1 - beta ** len(losses)) if losses else 0.0


def _csv(kind: type[Row], rows: list[Row]) -> str:
    header = ",".join(field.name for field in fields(kind))
    return f"{header}\n{_csv_rows(kind, rows)}"


def _csv_rows(kind: type[Row], rows: list[Row]) -> str:
    text = io.StringIO()
    writer: Any = csv.DictWriter(text, [field.name for field in fields(kind)], lineterminator="\n")
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()


def _lines(steps: list[StepRow]) -> str:
    return "".join(json.dumps(asdict(step)) + "\n" for step in steps)


def _whole_lines(text: str) -> list[str]:
    """The lines of a file that grows: a last one without its line end was cut off by a crash, or is being written."""
    return text[: text.rfind("\n") + 1].splitlines()


def _read_csv(kind: type[Row], path: str) -> list[Row]:
    try:
        text = storage.read_bytes(path).decode()
    except FileNotFoundError:
        return []
    types = {"int": int, "float": float, "str": str}
    readers = {field.name: types[str(field.type)] for field in fields(kind)}
    return [
        kind(**{key: readers[key](value) for key, value in row.items()})
        for row in csv.DictReader(_whole_lines(text))
    ]
