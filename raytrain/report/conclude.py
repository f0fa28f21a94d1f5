"""Writes the files that people read after training: thresholds, tables, pictures, report and card.

conclude(run)                        evaluates predictions.parquet of a run directory and writes all
conclude_predictions(out, found)     as far as they need no run
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raytrain import registry, storage
from raytrain.errors import DataError
from raytrain.evaluation.conditions import PLAIN, Conditions
from raytrain.evaluation.predictions import Predictions
from raytrain.report import page
from raytrain.report.record import read_run


@dataclass(frozen=True)
class Conclusion:
    """The judgement of a run's predictions, the same as text, and the path of the report."""

    judgement: Any
    table: str
    report: str


def conclude_predictions(out: str, found: Predictions, how: Conditions = PLAIN) -> Conclusion:
    """Judges predictions and writes thresholds, tables and report.

    Args:
        out: path or URI of the directory to write into.
        found: the predictions.
        how: what the user states about the tiles.

    Raises:
        ConfigError: what is stated does not fit the predictions.
        DataError: the predictions have no labels.
        StorageError: `out` cannot be written.
    """
    task = registry.evaluation(found.task)
    judgement = task.judge(found, how)
    task.write(judgement, out)
    report = page.write_evaluation(out, found, judgement)
    return Conclusion(judgement, task.table(judgement), report)


def conclude(run: str) -> Conclusion:
    """Judges the predictions of a run and writes thresholds, model card and report.

    Args:
        run: path or URI of the run directory.

    Returns:
        The judgement and the path of report.html.

    Raises:
        DataError: the run has no predictions with labels.
        StorageError: the run directory cannot be read or written.
    """
    record = read_run(run)
    if record.judgement is None:
        raise DataError(
            f"{run} has no predictions with labels",
            "training writes predictions.parquet after each epoch; there is nothing to judge",
            f"raytrain runs show {storage.name_of(run)} --storage {storage.parent(run)}",
        )
    task = registry.evaluation(record.task)
    task.write(record.judgement, run)
    page.write_card(record)
    # The report comes last: its presence shows that all other files are complete.
    report = page.write_report(record)
    return Conclusion(record.judgement, task.table(record.judgement), report)
