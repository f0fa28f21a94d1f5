"""Writes the page of a search: one HTML file with pictures that needs no network and no script.

    write(directory)    <storage>/<name>/search.html

It shows what the files hold, while the search runs and afterwards; see
raytrain/report/search_record.py. Imports neither torch nor ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from raytrain import storage
from raytrain.config import Recipe
from raytrain.errors import masked
from raytrain.report import (
    coordinates,
    search_plots,
    search_text,
    stage_plot,
    stage_tree,
    trials,
    worth_plot,
)
from raytrain.report.numbers import NOTHING, duration
from raytrain.report.numbers import score as number
from raytrain.report.search_plots import Curve, FinalistRow
from raytrain.report.search_record import SearchRecord, main_column, read_search
from raytrain.report.sections import Drawing, TextTable
from raytrain.report.spending import outcomes
from raytrain.report.templates import Plot, render
from raytrain.search import tree
from raytrain.search.table import Kind, State, Trial

FILE = "search.html"
# Limits of what can be read; the page says what it leaves out, and trials.csv has all of it.
TABLE_ROWS = 40  # trials of the table; all others follow in one that is folded
FOLDED_ROWS = 1000
STAGE_COLUMNS = 6  # with more stages, the scores of all stages share a cell
TREE_TRIALS = 240
AXES = 9  # fields with an axis of their own
FIELDS = 12  # fields with a panel of their own
CURVES = 120


@dataclass(frozen=True)
class TrialRow:
    """A trial in the table of the page; `stages` holds the score after each stage."""

    number: int
    kind: str
    state: str
    reason: str
    drawn: str
    stages: tuple[str, ...]
    score: str
    cost: str
    seconds: str
    strong: bool
    failed: bool


def write(directory: str) -> str:
    """Writes the page of a search.

    Args:
        directory: path or URI of `<storage>/<name>`.

    Returns:
        The path of search.html.

    Raises:
        ConfigError: as `read_search`.
        DataError: as `read_search`.
        StorageError: the directory cannot be read or written.
    """
    return write_page(read_search(directory))


def write_page(record: SearchRecord) -> str:
    """As `write`, for a caller that has read the directory already."""
    path = storage.join(record.path, FILE)
    storage.write_text(path, render("search.html.j2", _context(record)))
    return path


def _context(record: SearchRecord) -> dict[str, Any]:
    found = search_text.result(record)
    shown, folded = _chosen_rows(record)
    setup = record.setup
    drawings = _drawings(record)
    return {
        "name": setup.name,
        "kind": "search",
        "summary": _summary(record, setup.given),
        "result": found,
        "facts": search_text.facts(record),
        "promise": search_text.promise(record),
        "savings": search_text.savings_table(record),
        "finalists": _finalists_table(record),
        "stage_titles": _stage_titles(record),
        "rows": [_row(record, trial, found.trial) for trial in shown],
        "folded": [_row(record, trial, found.trial) for trial in folded[:FOLDED_ROWS]],
        "rows_note": _rows_note(record, shown, folded),
        "score": record.score,
        "plots": {name: Plot.of(drawing.draw, drawing.alt) for name, drawing in drawings.items()},
        "captions": {name: drawing.caption for name, drawing in drawings.items()},
        "commands": search_text.commands(record),
        "config": masked(setup.given.to_yaml()),
        "space": _space_text(record),
    }


def _summary(record: SearchRecord, given: Recipe) -> list[str]:
    paths = trials.drawn_paths(record.table)
    sentences = [
        f"A search from {given.model.arch}, {len(given.stages)} stages, "
        f"by {record.score.name} of the validation part."
    ]
    if paths:
        words = ", ".join(trials.path_in_words(path) for path in paths)
        sentences[0] += f" It draws {words}."
    if given.dataset:
        sentences.append(f"Dataset {masked(given.dataset)}.")
    return sentences


def _space_text(record: SearchRecord) -> str:
    import yaml

    content = dict(record.setup.content)
    if not content:
        return ""
    text: str = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=110)
    return masked(text)


# The table of trials


def _chosen_rows(record: SearchRecord) -> tuple[list[Trial], list[Trial]]:
    """The trials of the table, the best first, and all others by number.

    Of the failed ones, each reason is shown once.
    """
    best = trials.ranked(record.table, record.score)
    others = [trial for trial in record.table.trials if trial not in best]
    order = {State.COMPLETE: 0, State.OPEN: 1, State.STOPPED: 2}
    others.sort(key=lambda trial: (order.get(trial.state, 3), trial.number))
    ordered = [*best, *others]
    if len(ordered) <= TABLE_ROWS:
        return ordered, []
    failed = _one_for_each_reason(others)
    given = trials.given_trial(record.table)
    kept = [trial for trial in (given, *failed) if trial is not None]
    room = TABLE_ROWS - len(kept)
    chosen = {trial.number for trial in [*ordered[:room], *kept]}
    shown = [trial for trial in ordered if trial.number in chosen]
    folded = [trial for trial in record.table.trials if trial.number not in chosen]
    return shown, folded


def _one_for_each_reason(found: Sequence[Trial]) -> list[Trial]:
    by_reason: dict[str, Trial] = {}
    for trial in found:
        if trial.state in trials.FAILURES:
            by_reason.setdefault(trial.reason, trial)
    return list(by_reason.values())[: TABLE_ROWS // 4]


def _rows_note(record: SearchRecord, shown: Sequence[Trial], folded: Sequence[Trial]) -> str:
    note = (
        "Cost is that of the whole chain, where the given recipe costs 1. Time is that of its "
        "finished stages, whoever trained them."
    )
    if not folded:
        return note
    return (
        f"The best of {len(record.table.trials)} trials, and one for each reason why others "
        f"failed. {note} The other {len(folded)} follow below; trials.csv has all of them."
    )


def _most_stages(record: SearchRecord) -> int:
    return max((len(trial.keys) for trial in record.table.trials), default=0)


def _stage_titles(record: SearchRecord) -> list[str]:
    first = record.setup.first_stage
    most = _most_stages(record)
    if most > STAGE_COLUMNS:
        return ["by stage"]
    return [f"stage {first + number}" for number in range(most)]


def _row(record: SearchRecord, trial: Trial, best: Trial | None) -> TrialRow:
    return TrialRow(
        number=trial.number,
        kind=trials.kind_in_words(trial),
        state=trials.state_in_words(trial, record.setup.first_stage),
        reason=trials.one_line(trials.reason_in_words(trial)),
        drawn=trials.drawn_in_words(trial),
        stages=_stage_cells(record, trial),
        score=number(trial.score),
        cost=f"{sum(trial.costs):.2f}",
        seconds=duration(trials.seconds_of(trial)),
        strong=best is not None and trial.number == best.number,
        failed=trial.state in trials.FAILURES,
    )


def _stage_cells(record: SearchRecord, trial: Trial) -> tuple[str, ...]:
    scores = [number(part.score) for part in trial.parts]
    most = _most_stages(record)
    if most > STAGE_COLUMNS:
        return (" ".join(scores),)
    missing = most - len(scores)
    return (*scores, *[""] * missing)


# Finalists


def _finalist_rows(record: SearchRecord) -> list[FinalistRow]:
    """The trials that were trained again, the most promising one first."""
    reruns: dict[int, list[float]] = {}
    for trial in record.table.of_kind(Kind.RERUN):
        if trial.rerun_of is None:
            continue
        scores = reruns.setdefault(trial.rerun_of, [])
        if trial.score is not None:
            scores.append(trial.score)
    numbers = [standing.number for standing in record.finals.standings]
    numbers += [number for number in reruns if number not in numbers]
    by_number = {trial.number: trial for trial in record.table.trials}
    rows = []
    for found in numbers:
        if found in by_number:
            name = trials.name_of(by_number[found])
            scores = reruns.get(found, [])
            rows.append(FinalistRow(found, name, tuple(scores), record.finals.standing(found)))
    return rows


def _finalists_table(record: SearchRecord) -> TextTable | None:
    rows = _finalist_rows(record)
    if not rows:
        return None
    by_number = {trial.number: trial for trial in record.table.trials}
    strong = None
    cells = []
    for position, row in enumerate(rows):
        trial = by_number[row.number]
        if row.number == record.finals.winner:
            strong = position
        cells.append(_finalist_cells(row, trial))
    return TextTable(
        titles=(
            "finalist",
            "first score",
            "mean of reruns",
            "reruns",
            "difference to the given recipe",
            "cost",
            "verdict",
        ),
        rows=cells,
        strong=strong,
        note="Reruns have fresh seeds, the same ones for all finalists. Only they decide.",
    )


def _finalist_cells(row: FinalistRow, trial: Trial) -> list[str]:
    difference = NOTHING
    verdict = ""
    mean = None
    if row.reruns:
        mean = sum(row.reruns) / len(row.reruns)
    if row.standing is not None:
        verdict = row.standing.verdict or row.standing.out
        if row.standing.score is not None:
            mean = row.standing.score
        found = row.standing.difference
        if found is not None:
            difference = f"{found.value:+.4f} ({found.low:+.4f} to {found.high:+.4f})"
    cost = f"{sum(trial.costs):.2f}"
    reruns = f"{len(row.reruns)}"
    return [row.name, number(trial.score), number(mean), reruns, difference, cost, verdict]


# Pictures


def _drawings(record: SearchRecord) -> dict[str, Drawing]:
    """The pictures that there is data for, by name."""
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
    rows = _finalist_rows(record)
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
    return len({trial.schedule for trial in found}) > 1


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
        columns.append([trial.schedule or "recipe" for trial in found])
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
        "the best chain, with one standard deviation. The fields that matter most come first."
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
