"""The record of a chain of stages, each trained in a run directory of its own, as that of one run.

joined(stages)                         rows of all stages, as one run would have them
write_trial_events(path, rows, what)   the same for TensorBoard, with the values of a trial
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from raytrain import registry
from raytrain.checkpoints.history import (
    EpochRow,
    History,
    RankRow,
    StepRow,
    add_curves,
    event_writer,
    read_epochs,
    read_ranks,
    read_steps,
)


@dataclass
class Rows:
    """The record of some stages. Steps are numbered over all of them.

    Attributes:
        epochs: rows of history.csv; the best score counts from the first stage on.
        steps: lines of metrics.jsonl.
        ranks: rows of ranks.csv.
    """

    epochs: list[EpochRow] = field(default_factory=list)
    steps: list[StepRow] = field(default_factory=list)
    ranks: list[RankRow] = field(default_factory=list)

    @property
    def step(self) -> int:
        """Number of steps so far."""
        if not self.steps:
            return 0
        return self.steps[-1].step + 1

    def write(self, run: str) -> None:
        """Writes history.csv, metrics.jsonl and ranks.csv of a run directory.

        Raises:
            StorageError: a file cannot be written.
        """
        history = History(run)
        history.epochs = self.epochs
        history.steps = self.steps
        history.ranks = self.ranks
        history.write(durable=True)


@dataclass(frozen=True)
class TrialFacts:
    """What TensorBoard shows of a trial in its table HParams.

    Attributes:
        values: drawn values by path.
        scores: the objective at its end by name; empty for a trial without an end.
    """

    values: Mapping[str, Any]
    scores: Mapping[str, float]


def joined(stages: Sequence[str]) -> Rows:
    """Reads the records of a chain.

    Args:
        stages: run directories of its stages in order. One without any record, such as a stage that
            diverged at once, adds nothing.
    """
    rows = Rows()
    for stage in stages:
        first_step = rows.step
        rows.epochs += read_epochs(stage)
        for step in read_steps(stage):
            rows.steps.append(replace(step, step=first_step + step.step))
        rows.ranks += read_ranks(stage)
    rows.epochs = _with_best_of_all(rows.epochs)
    return rows


def _with_best_of_all(epochs: Sequence[EpochRow]) -> list[EpochRow]:
    """The rows with the best score so far counted over all of them, not over one stage."""
    if not epochs:
        return []
    score = registry.evaluation(registry.judged_by(epochs[0].scores)).SCORE
    best = None
    rows = []
    for row in epochs:
        value = row.scores[score.key]
        if score.is_better(value, best):
            best = value
        assert best is not None  # the first value is better than none
        rows.append(replace(row, scores=row.scores | {score.best_key: best}))
    return rows


def write_trial_events(path: str, rows: Rows, what: TrialFacts) -> None:
    """Writes the TensorBoard events of a trial: its curves over all stages, and its row of HParams.

    Args:
        path: directory of the trial, such as <search>/tensorboard/trial-3.
        rows: of its stages.
        what: its row of HParams.

    Raises:
        StorageError: it cannot be written.
    """
    with event_writer(path) as writer:
        add_curves(writer, rows.epochs, rows.steps)
        if what.scores:
            _add_hparams(writer, what)


def _add_hparams(writer: Any, what: TrialFacts) -> None:
    # Its own `add_hparams` would write them into a folder of their own, which TensorBoard shows as
    # another run.
    from tensorboardX.summary import hparams

    values = {path: _plain(value) for path, value in what.values.items()}
    metrics = {f"objective/{name}": value for name, value in what.scores.items()}
    for summary in hparams(values, metrics):
        writer.file_writer.add_summary(summary)
    for name, value in metrics.items():
        writer.add_scalar(name, value, 0)


def _plain(value: Any) -> bool | int | float | str:
    """A value as HParams takes it: anything else than a number or a text becomes a text."""
    if isinstance(value, bool | int | float | str):
        return value
    return str(value)
