"""What stands in a run directory after training: thresholds, tables, pictures, report, model card."""

from __future__ import annotations

from dataclasses import dataclass

from raytrain import storage
from raytrain.evaluation import predictions, thresholds
from raytrain.report import page


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
    judgement = thresholds.judge(predictions.read(storage.join(run, "predictions.parquet")))
    thresholds.write(judgement, run)
    page.model_card(run)
    return Conclusion(judgement, page.write(run))
