"""What a report shows of the task multi-label: F2, labels at thresholds, tiles with their labels.

Imports neither torch nor ray.
"""

from __future__ import annotations

import shlex
from functools import partial

import numpy as np

from raytrain import storage
from raytrain.evaluation import metrics, rules
from raytrain.evaluation.judgement import Judgement, gain_in_words, judged_on
from raytrain.evaluation.metrics import THRESHOLD, Array
from raytrain.evaluation.predictions import Predictions
from raytrain.evaluation.tasks import multi_label
from raytrain.report import curves, plots, tiles
from raytrain.report.numbers import count, score
from raytrain.report.record import Record
from raytrain.report.sections import (
    Column,
    Drawing,
    LabelTable,
    Line,
    Metric,
    Sections,
    Sheet,
    TextTable,
)

COLUMNS = (
    Column("count", "tiles"),
    Column("precision", "precision", 3),
    Column("recall", "recall", 3),
    Column("f2", "F2", 3),
    Column("average_precision", "average precision", 3),
    Column("own_threshold", "own threshold", 2),
    Column("gain", "its gain", 4),
)
NOTE = (
    f"Precision, recall and F2 hold at threshold {THRESHOLD:g}. The own threshold is fitted on all "
    f"tiles. The gain is what the F2 over all tiles gains if only this label leaves {THRESHOLD:g}, "
    "judged on tiles that did not fit the threshold."
)
# Names of the measures for people, by their key in metrics.json.
MEASURES = {
    "f1_tiles": "F1, mean over tiles",
    "f1_micro": "F1 of all decisions (micro)",
    "f1_macro": "F1, mean over labels (macro)",
    "f2_tiles": "F2, mean over tiles",
    "f2_micro": "F2 of all decisions (micro)",
    "f2_macro": "F2, mean over labels (macro)",
    "jaccard": "Jaccard index, mean over tiles",
    "hamming_loss": "Hamming loss: share of wrong decisions",
    "exact_match": "share of tiles with all labels right",
}
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
        decision=_decision(record),
        decisions=_decisions(record),
        measures=_measures(record),
        decision_pictures=_decision_pictures(record),
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
        default = record.judgement.scores["default"]
        note = (
            f"F2, mean over {judged} {record.part} tiles, {threshold}, "
            f"95 % interval {default.low:.4f} to {default.high:.4f}"
        )
        return Metric("F2", default.value, note)
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


def _decision(record: Record) -> str:
    """How labels are decided, as a sentence for the model card."""
    if record.judgement is None:
        return "A label is predicted where its probability is above the threshold."
    recommended = record.judgement.recommended
    return f"The recommended decision rule is: {rules.title(recommended)}."


def _decisions(record: Record) -> TextTable | None:
    """Every decision rule with its held-out F2."""
    judgement = record.judgement
    if judgement is None:
        return None
    rows = []
    for name, found in judgement.scores.items():
        rows.append(
            (
                rules.title(name),
                judgement.fitted[name].words,
                score(found.value),
                f"{found.low:.4f}–{found.high:.4f}",
                gain_in_words(judgement.gains.get(name)),
            )
        )
    note = (
        f"F2 under every decision rule; {judged_on(judgement)}. The recommended one is in bold. "
        "From the top down, a rule takes the place of the one before only if it gains more than "
        "the noise."
    )
    return TextTable(
        titles=("decision rule", "decided by", "F2", "95 % interval", "gain over 0.2"),
        rows=rows,
        strong=list(judgement.scores).index(judgement.recommended),
        note=note,
    )


def _measures(record: Record) -> TextTable | None:
    """Other scores of decided labels, at 0.2 and under the recommended rule."""
    judgement = record.judgement
    if judgement is None:
        return None
    rows = []
    for key, name in MEASURES.items():
        values = [score(found[key]) for found in judgement.measures.values()]
        rows.append((name, *values))
    titles = [rules.title(name) for name in judgement.measures]
    return TextTable(("measure", *titles), rows, note="Other measures of the same labels.")


def _decision_pictures(record: Record) -> dict[str, Drawing]:
    """Thresholds, calibration, and precision over recall."""
    judgement = record.judgement
    if judgement is None:
        return {}
    found = {}
    if len(judgement.classes) <= plots.MAX_LABELS:
        found["thresholds"] = _threshold_picture(judgement)
    before, after = judgement.reliability
    found["reliability"] = Drawing(
        partial(curves.reliability, before, after),
        "reliability curve",
        "How many of the labels with about this probability are true. Below the diagonal the "
        "network is too sure. The error is the mean distance from the diagonal.",
    )
    if record.predictions is not None and record.predictions.target is not None:
        found["precision_recall"] = _precision_recall(record.predictions, judgement)
    return found


def _threshold_picture(judgement: Judgement) -> Drawing:
    table = judgement.per_label
    order = np.argsort(-table["count"].to_numpy(), kind="stable")
    common = rules.cuts_of(judgement.fitted, "global")[0]
    draw = partial(
        curves.thresholds,
        [judgement.classes[k] for k in order.tolist()],
        rules.cuts_of(judgement.fitted, "per_class")[order],
        rules.cuts_of(judgement.fitted, "shrunk")[order],
        float(common),
    )
    return Drawing(
        draw,
        "fitted thresholds",
        "Threshold of each label, fitted on all tiles, the most frequent label first. The ring is "
        "what remains after a rare label is pulled towards the common threshold.",
    )


def _precision_recall(predictions: Predictions, judgement: Judgement) -> Drawing:
    assert predictions.target is not None  # the caller has seen them
    averages = judgement.per_label["average_precision"]
    curves_by_label = {}
    average_by_label = {}
    for k, label in enumerate(judgement.classes):
        # Without a tile of the label there is no recall.
        if judgement.per_label["count"][k] == 0:
            continue
        curves_by_label[label] = metrics.precision_recall(
            predictions.logits[:, k], predictions.target[:, k]
        )
        average_by_label[label] = float(averages[k])
    return Drawing(
        partial(curves.precision_recall, curves_by_label, average_by_label),
        "precision over recall",
        "Precision over recall of each label, as its threshold falls. The labels of the lowest "
        "average precision are named, with that number.",
    )


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
