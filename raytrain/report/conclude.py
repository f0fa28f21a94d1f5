"""What stands in a run directory after training: thresholds, tables, pictures, report, model card."""

from __future__ import annotations

from dataclasses import dataclass

from raytrain import storage
from raytrain.errors import DataError
from raytrain.evaluation import thresholds
from raytrain.report import page
from raytrain.report.record import read_run


@dataclass(frozen=True)
class Conclusion:
    """The judgement of a run and the place of its report."""

    judgement: thresholds.Judgement
    report: str


def conclude(run: str) -> Conclusion:
    """Judges the run's predictions.parquet and writes everything that a person looks at.

    Raises:
        DataError: the run has no predictions.
    """
    record = read_run(run)
    if record.judgement is None:
        raise DataError(
            f"{run} has no predictions with labels",
            "training writes predictions.parquet after each epoch; there is nothing to judge",
            f"raytrain runs show {storage.name_of(run)} --storage {storage.parent(run)}",
        )
    thresholds.write(record.judgement, run)
    page.write_card(record)
    return Conclusion(record.judgement, page.write_report(record))
