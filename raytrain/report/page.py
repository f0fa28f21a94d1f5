"""Writes the report of a run as one HTML file that needs no network and no script, and its card.

    write(run)                               <run>/report.html and its pictures as PNG files:
                                             losses.png, lr.png, f2.png, per_label.png
    write_evaluation(out, predictions_path)  <out>/report.html, per_label.png, without a run
    model_card(run)                          <run>/model_card.md

Shows what training and evaluation wrote (raytrain/report/record.py); computes no new results.
Imports neither torch nor ray.
"""

from __future__ import annotations

import shlex
from collections.abc import Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from raytrain import storage
from raytrain.config import Recipe, Stage
from raytrain.errors import DataError, StorageError
from raytrain.evaluation import metrics
from raytrain.evaluation.metrics import THRESHOLD
from raytrain.evaluation.thresholds import Judgement
from raytrain.report import plots, rates, tiles
from raytrain.report.record import Record, read_evaluation, read_run
from raytrain.report.templates import NOTHING, Draw, Plot, count, render

# The page calls the scores of a label uncertain if it was judged on fewer tiles than this.
RARE = 20
# What a stage trains, by the number of its frozen layer groups.
TRAINED = ("all", "head and late layers", "head")
LABELS_NOTE = "Precision, recall and F2 hold at the threshold in the last column."


@dataclass(frozen=True)
class Metric:
    """A score between 0 and 1, with its name and an explanation."""

    name: str
    value: float
    note: str = ""


@dataclass(frozen=True)
class Drawing:
    """A picture that is still to be drawn in each theme, and a description of it."""

    draw: Draw
    alt: str


def write(run: str) -> str:
    """Writes the report of a run directory.

    Args:
        run: path or URI of the run directory. A missing optional file only shortens the report.

    Returns:
        The path of report.html.

    Raises:
        DataError: there is no history.csv, or a file is damaged.
        StorageError: the run directory cannot be read or written.
    """
    return write_report(read_run(run))


def write_report(record: Record) -> str:
    """As `write`, for a caller that has read the run directory already."""
    return _write_page(record, "training report")


def write_evaluation(out: str, predictions_path: str, judgement: Judgement | None = None) -> str:
    """Writes the parts of the report that need only a predictions file.

    Args:
        out: output directory.
        predictions_path: path of the predictions file.
        judgement: of these predictions, if the caller has it already.

    Returns:
        The path of report.html.

    Raises:
        DataError: the predictions cannot be read.
        StorageError: `out` cannot be written.
    """
    return _write_page(read_evaluation(out, predictions_path, judgement), "evaluation")


def model_card(run: str) -> str:
    """Writes model_card.md: the training, its data, the scores and the limits of the model.

    Args:
        run: path or URI of the run directory.

    Returns:
        The path of model_card.md.

    Raises:
        DataError: as `write`.
        StorageError: as `write`.
    """
    return write_card(read_run(run))


def write_card(record: Record) -> str:
    """As `model_card`, for a caller that has read the run directory already."""
    path = storage.join(record.path, "model_card.md")
    text = render("model_card.md.j2", _context(record, "model card"), autoescape=False)
    storage.write_text(path, text)
    return path


def _write_page(record: Record, kind: str) -> str:
    context = _context(record, kind)
    context |= _sheet(record)
    context["plots"] = _plots(record)
    path = storage.join(record.path, "report.html")
    storage.write_text(path, render("page.html.j2", context))
    return path


def _context(record: Record, kind: str) -> dict[str, Any]:
    """The variables that the page and the model card have in common."""
    labels = _label_rows(record)
    rare = []
    for row in labels:
        if row["count"] < RARE:
            rare.append(str(row["label"]))
    env = []
    for key, value in record.env.items():
        env.append((key, _plain(value)))
    tiles_judged = 0
    if record.predictions is not None:
        tiles_judged = len(record.predictions.names)
    config = ""
    if record.recipe is not None:
        config = record.recipe.to_yaml()
    return {
        "name": record.name,
        "kind": kind,
        "synthetic": record.synthetic,
        "summary": _summary(record),
        "headline": _headline(record),
        "metrics": _baseline_metrics(record),
        "stages": _stage_rows(record),
        "unfinished": _unfinished(record),
        "labels": labels,
        "labels_note": LABELS_NOTE,
        "rare": rare,
        "tiles_judged": tiles_judged,
        "threshold": THRESHOLD,
        "commands": _commands(record),
        "env": env,
        "config": config,
        "dataset": record.dataset,
        "recipe": record.recipe,
    }


def _summary(record: Record) -> list[str]:
    """One or two sentences under the title: the recipe and the data."""
    sentences = []
    if record.recipe is not None:
        sentences.append(_recipe_sentence(record.recipe))
    if record.dataset is not None:
        sentences.append(_dataset_sentence(record, record.dataset))
    return sentences


def _recipe_sentence(recipe: Recipe) -> str:
    weights = recipe.model.weights
    if weights == "none":
        start = "from scratch"
    elif weights == "imagenet":
        start = "from ImageNet weights"
    else:
        start = f"from {weights}"
    # Each size once, in the order of the stages.
    sizes = dict.fromkeys(str(stage.size) for stage in recipe.stages)
    pixels = " then ".join(sizes)
    stages = f"{len(recipe.stages)} stages"
    if len(recipe.stages) == 1:
        stages = "1 stage"
    train = recipe.train
    return (
        f"{recipe.model.arch} {start}, {stages} at {pixels} pixels, "
        f"batch {train.batch_size}, {train.schedule}, seed {train.seed}."
    )


def _dataset_sentence(record: Record, dataset: str) -> str:
    words = [f"Dataset {dataset}"]
    rows = record.env.get("tiles")
    if isinstance(rows, int):
        words.append(f"{count(rows)} tiles")
    if record.recipe is not None:
        words.append(f'split "{record.recipe.data.split}"')
    return ", ".join(words) + "."


def _headline(record: Record) -> Metric | None:
    """The F2 to compare runs by: at threshold 0.2, over all tiles of the validation part."""
    threshold = f"threshold {THRESHOLD:g} for every label"
    if record.predictions is not None and record.judgement is not None:
        tiles_judged = count(len(record.predictions.names))
        note = f"F2, mean over {tiles_judged} {_part(record)} tiles, {threshold}"
        return Metric("F2", record.judgement.scores["default"].f2, note)
    if len(record.history):
        note = f"F2 on the validation part after the last epoch, {threshold}"
        last_epoch = record.history.iloc[-1]
        return Metric("F2", float(last_epoch["f2"]), note)
    return None


def _part(record: Record) -> str:
    """The part of the split that was predicted, in words."""
    if record.predictions is None:
        return ""
    part = str(record.predictions.meta.get("part", ""))
    if part == "valid":
        return "validation"
    return part


def _baseline_metrics(record: Record) -> list[Metric]:
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


def _label_rows(record: Record) -> list[dict[str, Any]]:
    """The rows of per_label.csv, best F2 first."""
    if record.judgement is None:
        return []
    table = record.judgement.per_label
    ranked = table.sort_values(["f2", "label"], ascending=[False, True])
    return list(ranked.to_dict("records"))


def _sheet(record: Record) -> dict[str, Any]:
    """The tiles to show by kind, and the sentence that explains why there are none."""
    empty = {"sheet": {}, "sheet_note": ""}
    if record.predictions is None or record.predictions.target is None:
        return empty
    if record.dataset is None:
        note = "No tiles are shown, since no file names the dataset of the predictions."
        return empty | {"sheet_note": note}
    try:
        return empty | {"sheet": _cards(record, record.dataset)}
    except (DataError, StorageError) as error:
        # Datasets are moved and deleted; the rest of the report does not need one.
        return empty | {"sheet_note": f"No tiles are shown: {error.what}."}


def _cards(record: Record, dataset: str) -> dict[str, list[tiles.Card]]:
    """The cards of the best, the median and the worst tiles."""
    predictions = record.predictions
    assert predictions is not None
    target = predictions.target
    assert target is not None
    # bool (N, K)
    predicted = predictions.probability > THRESHOLD
    # float64 (N,)
    f2 = metrics.f2_per_tile(predicted, target)
    judged = tiles.JudgedTiles(predictions, predicted, f2)
    chosen = tiles.choose(f2, target)
    found = {}
    for kind, rows in chosen.items():
        # A kind has no rows if there are fewer than three tiles.
        if rows:
            found[kind] = tiles.cards(judged, rows, dataset)
    return found


def _stage_rows(record: Record) -> list[dict[str, Any]]:
    """The last epoch of every stage that was trained, with the stage's epochs and total time."""
    rows = []
    for number, epochs in record.history.groupby("stage"):
        row = epochs.iloc[-1].to_dict()
        row["name"] = f"stage {number}"
        row["size"] = int(epochs["size"].iloc[-1])
        row["epochs"] = len(epochs)
        row["seconds"] = float(epochs["seconds"].sum())
        row["trained"] = NOTHING
        row["lr"] = NOTHING
        stage = _stage(record.recipe, int(number))
        if stage is not None:
            row["name"] = record.stage_names[int(number) - 1]
            row["trained"] = TRAINED[stage.frozen_groups]
            row["lr"] = _rates_in_words(_chosen_peak(record, number) or stage.lr)
        rows.append(row)
    return rows


def _stage(recipe: Recipe | None, number: int) -> Stage | None:
    """Stage `number` (from 1) of the recipe, if it has that many."""
    if recipe is None:
        return None
    # history.csv may have more stages, if somebody edited config.yaml.
    if not 0 < number <= len(recipe.stages):
        return None
    return recipe.stage(number)


def _rates_in_words(peak: float | tuple[float, ...]) -> str:
    if isinstance(peak, tuple):
        return " – ".join(f"{rate:.4g}" for rate in peak)
    return f"{peak:.4g}"


def _chosen_peak(record: Record, stage: Hashable) -> tuple[float, ...]:
    """The peak rate of each layer group if range tests chose it (`--lr auto`), else nothing."""
    if record.recipe is None or record.recipe.lr is None:
        return ()
    steps = record.steps
    of_stage = steps[steps["stage"] == stage]
    # float (steps, layer groups)
    rates_by_step = np.array(of_stage["lr"].tolist())
    if len(rates_by_step) == 0:
        return ()
    peaks = rates_by_step.max(axis=0)
    return tuple(peaks.tolist())


def _unfinished(record: Record) -> str:
    """The sentence for a run with epochs left to train, else an empty one."""
    if record.recipe is None or record.history.empty:
        return ""
    # --stages selects a range; epochs of other stages may come from an earlier run.
    first, last = record.recipe.selected
    stages = record.recipe.stages[first - 1 : last]
    planned = sum(stage.epochs for stage in stages)
    trained = record.history["stage"].between(first, last)
    done = int(trained.sum())
    if done >= planned:
        return ""
    return (
        f"Not finished: {done} of {planned} epochs are done. "
        f"Resume the run with `raytrain train --resume {record.name}`."
    )


def _commands(record: Record) -> list[dict[str, str]]:
    """The next commands to type, with the paths of this run; the reader replaces the capitals."""
    checkpoint = "CHECKPOINT"
    if record.recipe is not None:
        checkpoint = record.path  # predict takes the last checkpoint of a run directory
    elif record.predictions is not None:
        checkpoint = str(record.predictions.meta.get("checkpoint") or checkpoint)
    thresholds = storage.join(record.path, "thresholds.json")
    predict = {
        "why": "Predict a folder of tiles without labels:",
        "line": f"raytrain predict --checkpoint {shlex.quote(checkpoint)} "
        "--images DIR --out test.parquet",
    }
    submission = {
        "why": "Turn the predictions into the competition's file, with the thresholds found here:",
        "line": f"raytrain submission test.parquet --thresholds {shlex.quote(thresholds)} "
        "--out submission.csv",
    }
    return [predict, submission]


def _plots(record: Record) -> dict[str, Plot]:
    """Draws every picture that there is data for, and writes the light ones as PNG files."""
    found = {}
    for name, drawing in _drawings(record).items():
        light = drawing.draw(plots.LIGHT)
        path = storage.join(record.path, f"{name}.png")
        storage.write_bytes(path, light)
        found[name] = Plot.with_light(light, drawing.draw, drawing.alt)
    return found


def _drawings(record: Record) -> dict[str, Drawing]:
    """The pictures by the name of their PNG file, without its ending."""
    history = record.history
    steps = record.steps
    names = record.stage_names
    found = {}
    if len(history):
        draw_losses = partial(plots.losses, steps, history, names)
        draw_scores = partial(plots.scores, history, names)
        found["losses"] = Drawing(draw_losses, "losses")
        found["f2"] = Drawing(draw_scores, "F2 and accuracy by epoch")
    # Without metrics.jsonl the rates of single steps are unknown.
    if len(steps):
        draw_schedule = partial(plots.schedule, steps, names)
        found["lr"] = Drawing(draw_schedule, "learning rate and momentum")
    for test in rates.read(record.path):
        # page.html.j2 finds the range tests by the beginning of this name.
        name = f"lr-find/{test.stage}"
        draw_test = partial(plots.range_test, test.curve, test.suggestions)
        found[name] = Drawing(draw_test, f"range test of {test.stage}")
    if record.judgement is not None:
        draw_labels = partial(plots.per_label, record.judgement.per_label)
        found["per_label"] = Drawing(draw_labels, "F2 of each label")
    return found


def _plain(value: object) -> str:
    """A value of env.json on one line, without brackets and quotes."""
    if isinstance(value, dict):
        pairs = []
        for key, inner in value.items():
            pairs.append(f"{key} {_plain(inner)}")
        return ", ".join(pairs)
    if isinstance(value, list):
        return " ".join(_plain(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return NOTHING
    return str(value)
