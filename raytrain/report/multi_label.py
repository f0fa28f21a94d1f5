"""What a report shows of the task multi-label: F2, labels at thresholds, tiles with their labels.

Imports neither torch nor ray.
"""

from __future__ import annotations

import shlex
from functools import partial

import numpy as np

from raytrain import storage
from raytrain.evaluation import metrics
from raytrain.evaluation.metrics import THRESHOLD, Array
from raytrain.evaluation.predictions import Predictions
from raytrain.evaluation.tasks import multi_label
from raytrain.report import plots, tiles
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
from raytrain.report.templates import count, score

COLUMNS = (
    Column("count", "tiles"),
    Column("precision", "precision", 3),
    Column("recall", "recall", 3),
    Column("f2", "F2", 3),
    Column("average_precision", "average precision", 3),
    Column("threshold", "threshold", 2),
)
NOTE = "Precision, recall and F2 hold at the threshold in the last column."
LIMIT = (
    "The thresholds favour recall: F2 counts a missed label four times as heavily as a false one. "
    "Choose other thresholds if false alarms cost more."
)


def sections(record: Record) -> Sections:
    """Returns what the report of a run or of an evaluation shows of this task."""
    thresholds = shlex.quote(storage.join(record.path, "thresholds.json"))
    return Sections(
        headline=_headline(record),
        baselines=_baselines(record),
        table=_table(record),
        decision="A label is predicted where its probability is above the threshold.",
        scores_note=(
            f"F2 at threshold {THRESHOLD:g} and accuracy on the validation part after every epoch."
        ),
        pictures=_pictures(record),
        sheet=_sheet(record),
        submission=f" --thresholds {thresholds}",
        limits=(LIMIT,),
    )


def _headline(record: Record) -> Metric | None:
    """The F2 to compare runs by: at threshold 0.2, over all tiles of the validation part."""
    threshold = f"threshold {THRESHOLD:g} for every label"
    if record.predictions is not None and record.judgement is not None:
        judged = count(record.judgement.tiles)
        note = f"F2, mean over {judged} {record.part} tiles, {threshold}"
        return Metric("F2", record.judgement.scores["default"].f2, note)
    if len(record.history):
        note = f"F2 on the validation part after the last epoch, {threshold}"
        last_epoch = record.history.iloc[-1]
        return Metric("F2", float(last_epoch["f2"]), note)
    return None


def _baselines(record: Record) -> list[Metric]:
    """The scores next to the headline: what simple methods reach without a network."""
    found = []
    constant = record.baselines.get("constant") or {}
    if "f2" in constant:
        labels = [str(label) for label in constant.get("labels", [])]
        found.append(
            Metric(
                name="F2 of the best constant answer",
                value=float(constant["f2"]),
                note=", ".join(labels),
            )
        )
    logistic = record.baselines.get("logistic") or {}
    if "f2" in logistic:
        found.append(
            Metric(
                name="F2 of logistic regression",
                value=float(logistic["f2"]),
                note="mean and standard deviation of each channel",
            )
        )
    return found


def _table(record: Record) -> LabelTable | None:
    """The rows of per_label.csv, best F2 first."""
    if record.judgement is None:
        return None
    ranked = record.judgement.per_label.sort_values(["f2", "label"], ascending=[False, True])
    return LabelTable(ranked, COLUMNS, NOTE)


def _pictures(record: Record) -> dict[str, Drawing]:
    if record.judgement is None:
        return {}
    judged = count(record.judgement.tiles)
    per_label = Drawing(
        partial(plots.per_label, record.judgement.per_label, multi_label.SCORE),
        "F2 of each label",
        f"F2 of each label over the {judged} judged tiles, with the number of tiles that have "
        "the label. The F2 of a label with few tiles is uncertain.",
    )
    return {"per_label": per_label}


def _sheet(record: Record) -> Sheet:
    """The tiles with the best, the median and the worst F2."""
    predictions = record.predictions
    if predictions is None or predictions.target is None:
        return Sheet()
    predicted = predictions.probability > THRESHOLD  # bool (N, K)
    f2 = metrics.f2_per_tile(predicted, predictions.target)  # float64 (N,)

    def lines(row: int) -> tuple[Line, ...]:
        return _lines(predictions, predicted, row)

    intro = (
        Line(
            "",
            "The tiles with the best, the median and the worst F2, each computed for the single "
            f"tile at threshold {score(THRESHOLD, 2)}. Labels without a mark are right.",
        ),
        Line("missed", "Missed"),
        Line("", "labels are true but were not predicted."),
        Line("false", "False"),
        Line("", "labels were predicted but are not true."),
    )
    # Of tiles with equal F2, those with more labels show more.
    wealth = predictions.target.sum(axis=1)
    return tiles.sheet(record, tiles.choose(f2, wealth), f2, lines, intro)


def _lines(predictions: Predictions, predicted: Array, row: int) -> tuple[Line, ...]:
    """The labels of a tile: those that are right, missed and false."""
    assert predictions.target is not None
    true = predictions.target[row] != 0  # bool (K,)
    kinds = {
        "": true & predicted[row],
        "missed": true & ~predicted[row],
        "false": predicted[row] & ~true,
    }
    found = []
    for kind, chosen in kinds.items():
        names = [predictions.classes[k] for k in np.flatnonzero(chosen).tolist()]
        if names:
            prefix = f"{kind}: " if kind else ""
            found.append(Line(kind, prefix + ", ".join(names)))
    return tuple(found)
