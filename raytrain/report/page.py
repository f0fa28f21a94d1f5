"""Writes the report of a run as one HTML file that needs no network and no script, and its card.

    write(run)                               <run>/report.html and its pictures as PNG files:
                                             losses.png, lr.png, and those of the task
    write_evaluation(out, predictions)       <out>/report.html and its pictures, without a run
    model_card(run)                          <run>/model_card.md

Shows what training and evaluation wrote (raytrain/report/record.py); computes no new results. What
depends on the task comes from `registry.drawing`.
Imports neither torch nor ray.
"""

from __future__ import annotations

import shlex
from collections.abc import Hashable
from functools import partial
from typing import Any

import numpy as np

from raytrain import registry, storage
from raytrain.config import Recipe, Stage
from raytrain.evaluation.predictions import Predictions
from raytrain.report import plots, rates
from raytrain.report.canvas import LIGHT
from raytrain.report.numbers import NOTHING, count
from raytrain.report.record import Record, evaluation_record, read_run
from raytrain.report.sections import Drawing, Sections
from raytrain.report.templates import Plot, render

# What a stage trains, by the number of its frozen layer groups.
TRAINED = ("all", "head and late layers", "head")


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


def write_evaluation(out: str, predictions: Predictions, judgement: Any = None) -> str:
    """Writes the parts of the report that need only predictions.

    Args:
        out: output directory.
        predictions: what is shown.
        judgement: of these predictions, if the caller has it already.

    Returns:
        The path of report.html.

    Raises:
        DataError: the predictions cannot be judged.
        StorageError: `out` cannot be written.
    """
    return _write_page(evaluation_record(out, predictions, judgement), "evaluation")


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
    sections = registry.drawing(record.task).sections(record)
    text = render("model_card.md.j2", _context(record, sections, "model card"), autoescape=False)
    storage.write_text(path, text)
    return path


def _write_page(record: Record, kind: str) -> str:
    sections = registry.drawing(record.task).sections(record)
    context = _context(record, sections, kind)
    context["sheet"] = sections.sheet
    context["plots"] = _plots(record, sections)
    context["captions"] = _captions(sections.pictures)
    context["decision_captions"] = _captions(sections.decision_pictures)
    path = storage.join(record.path, "report.html")
    storage.write_text(path, render("page.html.j2", context))
    return path


def _captions(drawings: dict[str, Drawing]) -> dict[str, str]:
    return {name: drawing.caption for name, drawing in drawings.items()}


def _context(record: Record, sections: Sections, kind: str) -> dict[str, Any]:
    """The variables that the page and the model card have in common."""
    env = []
    for key, value in record.env.items():
        env.append((key, _plain(value)))
    tiles_judged = 0
    if record.judgement is not None:
        tiles_judged = record.judgement.tiles
    config = ""
    if record.recipe is not None:
        config = record.recipe.to_yaml()
    task = registry.evaluation(record.task)
    return {
        "name": record.name,
        "kind": kind,
        "synthetic": record.synthetic,
        "summary": _summary(record),
        "headline": sections.headline,
        "metrics": sections.baselines,
        "scores": record.score_names,
        "score": task.SCORE,
        "stages": _stage_rows(record),
        "unfinished": _unfinished(record),
        "table": sections.table,
        "decision": sections.decision,
        "decisions": sections.decisions,
        "measures": sections.measures,
        "scores_note": sections.scores_note,
        "limits": sections.limits,
        "tiles_judged": tiles_judged,
        "commands": _commands(record, sections),
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
    first, last = recipe.selected
    selected = recipe.stages[first - 1 : last]
    # Each size once, in the order of the stages.
    sizes = dict.fromkeys(str(stage.size) for stage in selected)
    pixels = " then ".join(sizes)
    stages = f"{len(selected)} stages"
    if len(selected) == 1:
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


def _commands(record: Record, sections: Sections) -> list[dict[str, str]]:
    """The next commands to type, with the paths of this run; the reader replaces the capitals."""
    checkpoint = "CHECKPOINT"
    if record.recipe is not None:
        checkpoint = record.path  # predict takes the last checkpoint of a run directory
    elif record.predictions is not None:
        checkpoint = str(record.predictions.meta.get("checkpoint") or checkpoint)
    predict = {
        "why": "Predict a folder of tiles without labels:",
        "line": f"raytrain predict --checkpoint {shlex.quote(checkpoint)} "
        "--images DIR --out test.parquet",
    }
    submission = {
        "why": "Turn the predictions into a file of answers, as decided here:",
        "line": f"raytrain submission test.parquet{sections.submission} --out submission.csv",
    }
    return [predict, submission]


def _plots(record: Record, sections: Sections) -> dict[str, Plot]:
    """Draws every picture that there is data for, and writes the light ones as PNG files."""
    found = {}
    drawings = _drawings(record) | sections.decision_pictures | sections.pictures
    for name, drawing in drawings.items():
        light = drawing.draw(LIGHT)
        path = storage.join(record.path, f"{name}.png")
        storage.write_bytes(path, light)
        found[name] = Plot.with_light(light, drawing.draw, drawing.alt)
    return found


def _drawings(record: Record) -> dict[str, Drawing]:
    """The pictures that every task has, by the name of their PNG file, without its ending."""
    history = record.history
    steps = record.steps
    names = record.stage_names
    found = {}
    if len(history):
        draw_losses = partial(plots.losses, steps, history, names)
        found["losses"] = Drawing(draw_losses, "losses")
        task = registry.evaluation(record.task)
        draw_scores = partial(plots.scores, history, names, task.METRICS, task.SCORE)
        found[task.SCORE.key] = Drawing(draw_scores, f"{task.SCORE.name} by epoch")
    # Without metrics.jsonl the rates of single steps are unknown.
    if len(steps):
        draw_schedule = partial(plots.schedule, steps, names)
        found["lr"] = Drawing(draw_schedule, "learning rate and momentum")
    for test in rates.read(record.path, names):
        # page.html.j2 finds the range tests by the beginning of this name.
        name = f"lr-find/{test.stage}"
        draw_test = partial(plots.range_test, test.curve, test.suggestions)
        found[name] = Drawing(draw_test, f"range test of {test.stage}")
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
