"""The report of a run as one HTML file that needs no network and no script, and its model card.

    write(run)                       <run>/report.html, losses.png, lr.png, f2.png, per_label.png
    write_evaluation(out, place)     <out>/report.html, per_label.png, from a predictions file alone
    model_card(run)                  <run>/model_card.md

Reads what training and evaluation wrote (raytrain/report/record.py) and computes nothing that they could have computed.
All words from outside (labels, names, commands) are escaped by the template. Neither torch nor ray.
"""

from __future__ import annotations

import base64
import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from raytrain import storage
from raytrain.errors import DataError, StorageError
from raytrain.evaluation import metrics
from raytrain.evaluation.metrics import THRESHOLD
from raytrain.evaluation.thresholds import Judgement
from raytrain.report import plots, rates, tiles
from raytrain.report.record import Record, read_evaluation, read_run

RARE = 20  # judged tiles of a label below which its scores are called uncertain
# What trains, by the number of frozen layer groups.
_TRAINED = ("all", "head and late layers", "head")
LABELS_NOTE = "Precision, recall and F2 are taken at the threshold of the last column."


@dataclass(frozen=True)
class Plot:
    """A picture in both themes as data: URIs, and what it shows in words."""

    light: str
    dark: str
    alt: str

    @classmethod
    def of(cls, draw: Callable[[plots.Theme], bytes], alt: str) -> Plot:
        """Draws it in both themes."""
        return cls(_png_uri(draw(plots.LIGHT)), _png_uri(draw(plots.DARK)), alt)


@dataclass(frozen=True)
class Metric:
    """A line of the table beside the headline: a score between 0 and 1, and what it means."""

    name: str
    value: float
    note: str = ""


def write(run: str) -> str:
    """Renders the report of a run directory and returns its place.

    Raises:
        DataError: no history.csv, or damaged files; a missing optional file only shortens the report.
        StorageError: the run directory cannot be read or written.
    """
    return write_report(read_run(run))


def write_report(record: Record) -> str:
    """`write` for a run directory that was read."""
    return _write(record, "training report")


def write_evaluation(out: str, predictions_path: str, judgement: Judgement | None = None) -> str:
    """Renders the parts of the report that need nothing but a predictions file into `out`; returns the place.

    Args:
        out: directory.
        predictions_path: of the file.
        judgement: of these predictions, where they were judged already.

    Raises:
        DataError: the predictions cannot be read.
        StorageError: `out` cannot be written.
    """
    return _write(read_evaluation(out, predictions_path, judgement), "evaluation")


def model_card(run: str) -> str:
    """Writes model_card.md: what was trained on which data, how good it is, and what it must not be used for.

    Raises:
        DataError, StorageError: as `write`.
    """
    return write_card(read_run(run))


def write_card(record: Record) -> str:
    """`model_card` for a run directory that was read."""
    path = storage.join(record.path, "model_card.md")
    storage.write_text(
        path, render("model_card.md.j2", _context(record, "model card"), autoescape=False)
    )
    return path


def _write(record: Record, kind: str) -> str:
    context = _context(record, kind) | _sheet(record) | {"plots": _plots(record)}
    path = storage.join(record.path, "report.html")
    storage.write_text(path, render("page.html.j2", context))
    return path


def render(template: str, context: dict[str, Any], *, autoescape: bool = True) -> str:
    """Text of a template of this package. Words from outside are escaped, unless `autoescape` is False."""
    # Markdown has no escaping of its own in jinja2: the card's template passes foreign words through `cell`.
    environment = Environment(
        loader=FunctionLoader(
            lambda name: (
                resources.files("raytrain.report").joinpath(name).read_text(encoding="utf-8")
            )
        ),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"score": score, "count": count, "duration": duration, "cell": cell}
    return environment.get_template(template).render(context)


def score(value: float | None, digits: int = 4) -> str:
    """A number with a fixed count of decimals; a dash for nothing and NaN."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def count(value: float | None) -> str:
    """A whole number with commas between thousands; a dash for nothing and NaN."""
    return "–" if value is None or not math.isfinite(value) else f"{round(value):,}"


def duration(seconds: float | None) -> str:
    """Seconds as 0:07 or 1:02:03; a dash for nothing and NaN."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def cell(value: object) -> str:
    """Foreign words inside a cell of a Markdown table: no HTML, no new column, no new line."""
    text = " ".join(str(value).split())
    for char, safe in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("`", "&#96;")):
        text = text.replace(char, safe)
    return text


def _context(record: Record, kind: str) -> dict[str, Any]:
    """What both templates show, apart from pictures."""
    labels = _labels(record)
    return {
        "name": record.name,
        "kind": kind,
        "synthetic": record.synthetic,
        "summary": _summary(record),
        "headline": _headline(record),
        "metrics": _metrics(record),
        "stages": _stages(record),
        "unfinished": _unfinished(record),
        "labels": labels,
        "labels_note": LABELS_NOTE,
        "rare": [str(row["label"]) for row in labels if row["count"] < RARE],
        "tiles_judged": len(record.predictions.names) if record.predictions else 0,
        "threshold": THRESHOLD,
        "commands": _commands(record),
        "env": [(key, _plain(value)) for key, value in record.env.items()],
        "config": record.recipe.to_yaml() if record.recipe else "",
        "dataset": record.dataset,
        "recipe": record.recipe,
    }


def _summary(record: Record) -> list[str]:
    """One or two sentences under the title: the recipe, and the data."""
    sentences = []
    if record.recipe:
        model, train, stages = record.recipe.model, record.recipe.train, record.recipe.stages
        start = {"none": "from scratch", "imagenet": "from ImageNet weights"}.get(
            model.weights, f"from {model.weights}"
        )
        sizes = " then ".join(str(size) for size in dict.fromkeys(stage.size for stage in stages))
        sentences.append(
            f"{model.arch} {start}, {len(stages)} stage{'s' * (len(stages) > 1)} at {sizes} pixels, "
            f"batch {train.batch_size}, {train.schedule}, seed {train.seed}."
        )
    rows = record.env.get("tiles")
    size = f", {count(rows)} tiles" if isinstance(rows, int) else ""
    if record.dataset:
        split = f', split "{record.recipe.data.split}"' if record.recipe else ""
        sentences.append(f"Dataset {record.dataset}{size}{split}.")
    return sentences


def _headline(record: Record) -> Metric | None:
    """The F2 that everything else is compared with: threshold 0.2, every validation tile."""
    predictions, judgement = record.predictions, record.judgement
    if predictions is not None and judgement is not None:
        note = f"F2, mean over {count(len(predictions.names))} {_part(record)} tiles, threshold {THRESHOLD:g} for every label"
        return Metric("F2", judgement.scores["default"].f2, note)
    if len(record.history):
        note = f"F2 on the validation part after the last epoch, threshold {THRESHOLD:g} for every label"
        return Metric("F2", float(record.history["f2"].iloc[-1]), note)
    return None


def _part(record: Record) -> str:
    part = str(record.predictions.meta.get("part", "")) if record.predictions else ""
    return {"valid": "validation"}.get(part, part)


def _metrics(record: Record) -> list[Metric]:
    """The lines beside the headline: other thresholds, other measures, and what no learning at all reaches."""
    return _baselines(record)


def _baselines(record: Record) -> list[Metric]:
    constant, logistic = (record.baselines.get(key) or {} for key in ("constant", "logistic"))
    rows = []
    if "f2" in constant:
        labels = ", ".join(map(str, constant.get("labels", [])))
        rows.append(Metric("F2 of the best constant answer", float(constant["f2"]), labels))
    if "f2" in logistic:
        rows.append(
            Metric(
                "F2 of logistic regression", float(logistic["f2"]), "mean and deviation per channel"
            )
        )
    return rows


def _labels(record: Record) -> list[dict[str, Any]]:
    """The rows of per_label.csv, best F2 first."""
    if record.judgement is None:
        return []
    ranked = record.judgement.per_label.sort_values(["f2", "label"], ascending=[False, True])
    return [{str(key): value for key, value in row.items()} for row in ranked.to_dict("records")]


def _sheet(record: Record) -> dict[str, Any]:
    """The tiles to show, or the sentence that says why there are none."""
    predictions = record.predictions
    if predictions is None or predictions.target is None:
        return {"sheet": {}, "sheet_note": ""}
    if record.dataset is None:
        return {
            "sheet": {},
            "sheet_note": "No tiles are shown: nothing says which dataset the predictions belong to.",
        }
    predicted = predictions.probability > THRESHOLD
    f2 = metrics.f2_per_tile(predicted, predictions.target)
    chosen = tiles.choose(f2, predictions.target)
    try:
        sheet = {
            kind: tiles.cards(predictions, predicted, f2, rows, record.dataset)
            for kind, rows in chosen.items()
            if rows
        }
    except (DataError, StorageError) as error:
        return {"sheet": {}, "sheet_note": f"No tiles are shown: {error.what}."}
    return {"sheet": sheet, "sheet_note": ""}


def _stages(record: Record) -> list[dict[str, Any]]:
    """The last epoch of every stage that ran, with the stage's epochs and seconds in all."""
    rows = []
    for number, epochs in record.history.groupby("stage"):
        known = record.recipe is not None and 0 < int(str(number)) <= len(record.recipe.stages)
        stage = record.recipe.stages[int(str(number)) - 1] if record.recipe and known else None
        rows.append(
            epochs.iloc[-1].to_dict()
            | {
                "name": record.stage_names[int(str(number)) - 1] if known else f"stage {number}",
                "size": int(epochs["size"].iloc[-1]),
                "epochs": len(epochs),
                "seconds": float(epochs["seconds"].sum()),
                "trained": "–" if stage is None else _TRAINED[stage.frozen_groups],
                "lr": "–" if stage is None else _lr(_peak(record, number) or stage.lr),
            }
        )
    return rows


def _lr(peak: float | tuple[float, ...]) -> str:
    values = peak if isinstance(peak, tuple) else (peak,)
    return " – ".join(f"{value:.4g}" for value in values)


def _peak(record: Record, number: object) -> tuple[float, ...]:
    """Peak rate of each layer group as it was used, where a range test chose it; else nothing."""
    if record.recipe is None or record.recipe.lr is None:
        return ()
    groups = record.steps.loc[record.steps["stage"] == number, "lr"].tolist()
    return tuple(max(rates) for rates in zip(*groups, strict=True))


def _unfinished(record: Record) -> str:
    if record.recipe is None or record.history.empty:
        return ""
    first, last = record.recipe.selected
    planned = sum(stage.epochs for stage in record.recipe.stages[first - 1 : last])
    done = int(record.history["stage"].between(first, last).sum())
    if done >= planned:
        return ""
    return f"Not finished: {done} of {planned} epochs are done. `raytrain train --resume {record.name}` goes on."


def _commands(record: Record) -> list[dict[str, str]]:
    """What to type next, with this run's own places; capitals stand for what only the user knows."""
    meta = record.predictions.meta if record.predictions else {}
    # Of a run, predict takes the last checkpoint.
    checkpoint = record.path if record.recipe else str(meta.get("checkpoint") or "CHECKPOINT")
    thresholds = shlex.quote(storage.join(record.path, "thresholds.json"))
    return [
        {
            "why": "Predict a folder of tiles without labels:",
            "line": f"raytrain predict --checkpoint {shlex.quote(checkpoint)} --images DIR --out test.parquet",
        },
        {
            "why": "Turn the predictions into the competition's file, with the thresholds found here:",
            "line": f"raytrain submission test.parquet --thresholds {thresholds} --out submission.csv",
        },
    ]


def _plots(record: Record) -> dict[str, Plot]:
    """Draws what there is data for; writes the light pictures as PNG files beside the report."""
    names = record.stage_names
    drawn: dict[str, tuple[Callable[[plots.Theme], bytes], str]] = {}
    if len(record.history):
        drawn["losses"] = (
            lambda theme: plots.losses(record.steps, record.history, names, theme),
            "losses",
        )
        drawn["f2"] = (
            lambda theme: plots.scores(record.history, names, theme),
            "F2 and accuracy by epoch",
        )
    if len(record.steps):
        drawn["lr"] = (
            lambda theme: plots.schedule(record.steps, names, theme),
            "learning rate and momentum",
        )
    for test in rates.read(record.path):
        draw_one = partial(plots.range_test, test.curve, test.suggestions)
        drawn[f"lr-find/{test.stage}"] = (draw_one, f"range test of {test.stage}")
    if record.judgement is not None:
        table = record.judgement.per_label
        drawn["per_label"] = (lambda theme: plots.per_label(table, theme), "F2 of each label")
    found = {}
    for name, (draw, alt) in drawn.items():
        light = draw(plots.LIGHT)
        storage.write_bytes(storage.join(record.path, f"{name}.png"), light)
        found[name] = Plot(_png_uri(light), _png_uri(draw(plots.DARK)), alt)
    return found


def _png_uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def _plain(value: object) -> str:
    """A value of env.json as a person reads it: nested keys in one line, no brackets."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return " ".join(_plain(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None else str(value)
