"""The finalists of a search on its page. Imports neither torch nor ray."""

from __future__ import annotations

from raytrain.report import trials
from raytrain.report.numbers import NOTHING
from raytrain.report.numbers import score as number
from raytrain.report.search_plots import FinalistRow
from raytrain.report.search_record import SearchRecord
from raytrain.report.sections import TextTable
from raytrain.search.table import Kind, Trial


def rows_of(record: SearchRecord) -> list[FinalistRow]:
    """Returns the trials that were trained again, the most promising one first."""
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


def table(record: SearchRecord) -> TextTable | None:
    """Returns the table of the finalists; None where no trial was trained again."""
    rows = rows_of(record)
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
