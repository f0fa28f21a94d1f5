"""The pictures on the page of a search, as far as there is data for them.

Imports neither torch nor ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from raytrain.report import (
    coordinates,
    search_finalists,
    search_plots,
    stage_plot,
    stage_tree,
    trials,
    worth_plot,
)
from raytrain.report.search_plots import Curve
from raytrain.report.search_record import SearchRecord, main_column
from raytrain.report.sections import Drawing
from raytrain.report.spending import outcomes
from raytrain.search import tree
from raytrain.search.space import GIVEN
from raytrain.search.table import Kind, Trial

# Limits of what can be read; captions say what is left out.
TREE_TRIALS = 240
AXES = 9  # fields with an axis of their own
FIELDS = 12  # fields with a panel of their own
CURVES = 120


def drawings(record: SearchRecord) -> dict[str, Drawing]:
    """Returns the pictures that there is data for, by name."""
    found = {}
    for name, draw in (
        ("progress", _progress),
        ("finalists", _finalists),
        ("stages", _stages),
        ("parallel", _parallel),
        ("worth", _worth),
        ("curves", _curves),
    ):
        drawing = draw(record)
        if drawing is not None:
            found[name] = drawing
    return found


def _progress(record: SearchRecord) -> Drawing | None:
    found = outcomes(record.table)
    if not any(trial.score is not None for trial in record.table.trials):
        return None
    return Drawing(
        partial(search_plots.progress, found, record.score),
        f"{record.score.name} over the cost spent",
        f"{record.score.name} of each trial at its end, over the cost that was spent until then. "
        "The given recipe costs 1. Marks at the lower edge are trials without an end.",
    )


def _finalists(record: SearchRecord) -> Drawing | None:
    rows = search_finalists.rows_of(record)
    if not any(row.reruns for row in rows):
        return None
    given = trials.given_trial(record.table)
    mean = None
    for row in rows:
        if given is not None and row.number == given.number and row.reruns:
            mean = sum(row.reruns) / len(row.reruns)
    return Drawing(
        partial(search_plots.finalists, rows, mean, record.score),
        "finalists with intervals",
        "Scores of the finalists' reruns. A bar is the interval of the difference to the given "
        "recipe, drawn from its mean. A bar that crosses the dashed line is no difference.",
    )


def _stages(record: SearchRecord) -> Drawing | None:
    found = [trial for trial in record.table.trials if trial.parts]
    if not found:
        return None
    # The best ones, and of the others those with the lowest numbers.
    best = trials.ranked(record.table, record.score)
    ordered = [*best, *[trial for trial in found if trial not in best]]
    shown = ordered[:TREE_TRIALS]
    caption = (
        "Every stage that has an outcome, once. A box is as high as the number of trials that "
        "share the stage; the stages after it stand to its right. A stronger colour is a better "
        f"{record.score.name}, among the stages of the same column."
    )
    if len(found) > len(shown):
        caption += f" {len(found) - len(shown)} further trials are left out."
    laid_out = stage_tree.layout(shown, record.score, record.setup.first_stage)
    describe = partial(_stage_in_words, record)
    draw = partial(stage_plot.stages, laid_out, record.score, describe)
    return Drawing(draw, "tree of stages", caption)


def _stage_in_words(record: SearchRecord, trial: Trial, depth: int) -> str:
    recipe = record.recipe_of(trial)
    if recipe is None:
        return trial.names[depth]
    return tree.stage_in_words(recipe, record.setup.first_stage + depth)


def _parallel(record: SearchRecord) -> Drawing | None:
    ended = [trial for trial in record.table.trials if _is_line(trial)]
    if not any(trial.score is not None for trial in ended):
        return None
    names, columns = _axes(record, ended)
    if not names:
        return None
    given = trials.given_trial(record.table)
    scales = []
    for values in columns:
        scales.append(coordinates.scale([value for value in values if value is not None]))
    lines = []
    for position, trial in enumerate(ended):
        texts = tuple(_text(values[position]) for values in columns)
        lines.append(coordinates.Line(texts, trial.score, trial is given))
    caption = (
        f"Drawn values of each trial, coloured by {record.score.name}: stronger is better. Pale "
        "lines were stopped or failed. The dashed line is the given recipe. Of a pair of rates, "
        "the second one is shown. A line has a gap where a list of stages has no such field."
    )
    hidden = len(trials.drawn_paths(record.table)) + _has_lists(ended) - len(names)
    if hidden > 0:
        caption += f" {hidden} further fields are left out."
    draw = partial(coordinates.parallel, names, scales, lines, record.score)
    return Drawing(draw, "parallel coordinates of the drawn values", caption)


def _is_line(trial: Trial) -> bool:
    return trial.kind is not Kind.RERUN and not trial.is_open


def _has_lists(found: Sequence[Trial]) -> bool:
    """Whether the trials have several lists of stages."""
    return len({trial.schedule or GIVEN for trial in found}) > 1


def _axes(record: SearchRecord, found: Sequence[Trial]) -> tuple[list[str], list[list[Any]]]:
    """Names of the axes, and for each the values of all trials.

    Fields that all trials have alike are left out. Where there are too many, those that are worth
    most by the model come first.
    """
    worth = {field.path: field.worth for field in record.advice.fields}
    names = []
    columns = []
    if _has_lists(found):
        names.append("list of stages")
        columns.append([trial.schedule or GIVEN for trial in found])
    varied = {}
    for path in trials.drawn_paths(record.table):
        values = [trials.value_of(trial, path, record.setup) for trial in found]
        texts = {_text(value) for value in values}
        if len(texts - {None}) > 1:
            varied[path] = values
    kept = sorted(varied, key=lambda path: -worth.get(path, 0.0))[: AXES - len(names)]
    for path, values in varied.items():
        if path in kept:
            names.append(trials.path_in_words(path))
            columns.append(values)
    return names, columns


def _text(value: Any) -> str | None:
    if value is None:
        return None
    return coordinates.text_on_axis(value)


def _worth(record: SearchRecord) -> Drawing | None:
    fields = sorted(record.advice.fields, key=lambda field: -field.worth)
    if not fields:
        return None
    caption = (
        f"{record.score.name} that the model expects at each value of a field, all others as in "
        "the best chain, with one standard deviation. The fields that matter most come first. Of a "
        "pair of rates, the second one is shown."
    )
    hidden = len(fields) - FIELDS
    if hidden > 0:
        caption += f" {hidden} further fields are left out."
    draw = partial(worth_plot.worth, fields[:FIELDS], record.score)
    return Drawing(draw, "what each field is worth by the model", caption)


def _curves(record: SearchRecord) -> Drawing | None:
    histories = {}
    for trial in record.table.trials:
        history = record.curve_of(trial)
        if len(history) and trial.kind is not Kind.RERUN:
            histories[trial.number] = history
    if not histories:
        return None
    columns = list(next(iter(histories.values())).columns)
    score = main_column(columns, record.score)
    best = [trial.number for trial in trials.ranked(record.table, record.score)]
    ordered = [number for number in best if number in histories]
    ordered += [number for number in histories if number not in best]
    given = trials.given_trial(record.table)
    drawn = []
    for position, found in enumerate(ordered[:CURVES]):
        is_given = given is not None and given.number == found
        name = ""
        if is_given:
            name = "given recipe"
        elif position < search_plots.NAMED_CURVES:
            name = f"trial {found}"
        drawn.append(Curve(name, histories[found], is_given))
    caption = (
        f"{score.name} after each epoch, over all stages of a trial. The best trials have a name."
    )
    if search_plots.leaves_out(drawn):
        caption += " The axis leaves out the worst tenth of all epochs."
    if len(ordered) > CURVES:
        caption += f" {len(ordered) - CURVES} further trials are left out."
    draw = partial(search_plots.curves, drawn, score)
    return Drawing(draw, f"{score.name} by epoch of each trial", caption)
