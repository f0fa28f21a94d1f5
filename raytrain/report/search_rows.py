"""The table of trials on the page of a search. Imports neither torch nor ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raytrain.report import trials
from raytrain.report.numbers import duration
from raytrain.report.numbers import score as number
from raytrain.report.search_record import SearchRecord
from raytrain.search.table import State, Trial

# Trials that are shown at once, and in a table that is folded; trials.csv has all of them.
TABLE_ROWS = 40
FOLDED_ROWS = 1000
# With more stages, the scores of all stages share a cell.
STAGE_COLUMNS = 6


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


@dataclass(frozen=True)
class Rows:
    """The trials of a search as rows.

    Attributes:
        shown: the best first, and of those that failed one for each reason.
        folded: all others, by number.
        note: a sentence about what is shown.
    """

    shown: tuple[TrialRow, ...]
    folded: tuple[TrialRow, ...]
    note: str


def rows_of(record: SearchRecord, best: Trial | None) -> Rows:
    """Returns the rows of a search.

    Args:
        record: of the search.
        best: the trial whose row stands out; None for no one.
    """
    shown, folded = _chosen_rows(record)
    return Rows(
        shown=tuple(_row(record, trial, best) for trial in shown),
        folded=tuple(_row(record, trial, best) for trial in folded[:FOLDED_ROWS]),
        note=_rows_note(record, shown, folded),
    )


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


def stage_titles(record: SearchRecord) -> list[str]:
    """Returns the headers of the columns with the scores of the stages."""
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
