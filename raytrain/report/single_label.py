"""What a report shows of the task single-label: accuracy, confusions, tiles with their class.

Imports neither torch nor ray.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from raytrain.evaluation.predictions import Predictions
from raytrain.evaluation.score import Score
from raytrain.report import plots, tiles
from raytrain.report.numbers import count
from raytrain.report.record import Record
from raytrain.report.sections import (
    Column,
    Drawing,
    LabelTable,
    Line,
    Metric,
    Sections,
    Sheet,
)

COLUMNS = (
    Column("count", "tiles"),
    Column("precision", "precision", 3),
    Column("recall", "recall", 3),
    Column("f1", "F1", 3),
)
NOTE = "Precision and recall are those of the most probable class."
RECALL = Score("recall", "recall")


def sections(record: Record) -> Sections:
    """Returns what the report of a run or of an evaluation shows of this task."""
    return Sections(
        headline=_headline(record),
        table=_table(record),
        decision="The most probable class is the answer.",
        scores_note=(
            "Accuracy, balanced accuracy and top-5 accuracy on the validation part after every "
            "epoch."
        ),
        pictures=_pictures(record),
        sheet=_sheet(record),
        limits=("Every tile gets one of the classes, even if it shows something else.",),
    )


def _headline(record: Record) -> Metric | None:
    judgement = record.judgement
    if judgement is not None:
        note = (
            f"accuracy over {count(judgement.tiles)} {record.part} tiles, "
            f"95 % interval {judgement.low:.4f} to {judgement.high:.4f}"
        )
        return Metric("accuracy", judgement.accuracy, note)
    if len(record.history):
        last_epoch = record.history.iloc[-1]
        note = "accuracy on the validation part after the last epoch"
        return Metric("accuracy", float(last_epoch["accuracy"]), note)
    return None


def _table(record: Record) -> LabelTable | None:
    """The rows of per_label.csv, best recall first."""
    if record.judgement is None:
        return None
    ranked = record.judgement.per_class.sort_values(["recall", "label"], ascending=[False, True])
    return LabelTable(ranked, COLUMNS, NOTE)


def _pictures(record: Record) -> dict[str, Drawing]:
    if record.judgement is None:
        return {}
    judged = count(record.judgement.tiles)
    per_label = Drawing(
        partial(plots.per_label, record.judgement.per_class, RECALL),
        "recall of each class",
        f"Recall of each class over the {judged} judged tiles, with the number of tiles of the "
        "class. The recall of a class with few tiles is uncertain.",
    )
    confusion = Drawing(
        partial(plots.confusion, record.judgement.confusion, record.judgement.classes),
        "confusion matrix",
        "Of the tiles of the row's class, the percentage that was taken for the column's "
        "class. The diagonal is right.",
    )
    return {"per_label": per_label, "confusion": confusion}


def _sheet(record: Record) -> Sheet:
    """The tiles whose true class got the highest, the median and the lowest probability."""
    predictions = record.predictions
    if predictions is None or predictions.target is None:
        return Sheet()
    probability = predictions.probability  # float64 (N, K)
    true = predictions.target.argmax(axis=1)
    of_true = probability[np.arange(len(true)), true]

    def lines(row: int) -> tuple[Line, ...]:
        return _lines(predictions, int(true[row]), row)

    intro = (
        Line(
            "",
            "The tiles whose true class got the highest, the median and the lowest probability, "
            "which is the number beside the name.",
        ),
        Line("missed", "Missed"),
        Line("", "is the true class,"),
        Line("false", "false"),
        Line("", "the one that was predicted instead."),
    )
    chosen = tiles.choose(of_true, np.zeros(len(true)))
    return tiles.sheet(record, chosen, of_true, lines, intro)


def _lines(predictions: Predictions, true: int, row: int) -> tuple[Line, ...]:
    """The class of a tile, or the true and the predicted one."""
    predicted = int(predictions.logits[row].argmax())
    if predicted == true:
        return (Line("", predictions.classes[true]),)
    return (
        Line("missed", f"missed: {predictions.classes[true]}"),
        Line("false", f"false: {predictions.classes[predicted]}"),
    )
