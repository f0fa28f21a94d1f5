"""The sentences of the page of a search: result, promise, savings, next commands.

Imports neither torch nor ray.
"""

from __future__ import annotations

from dataclasses import dataclass

from raytrain import runlock, storage
from raytrain.errors import masked, typed
from raytrain.report.numbers import NOTHING, count, duration
from raytrain.report.numbers import score as number
from raytrain.report.search_record import SearchRecord, read_search
from raytrain.report.sections import TextTable
from raytrain.report.spending import Savings, Work, savings
from raytrain.report.trials import (
    FAILURES,
    given_trial,
    name_of,
    one_line,
    ranked,
    states_in_words,
    text_table,
)
from raytrain.search.table import Kind, Trial


@dataclass(frozen=True)
class Result:
    """What a search has found.

    Attributes:
        value: the score in large figures; None where there is none yet.
        under: what this number is.
        sentences: below the title.
        trial: the winner, or the best one so far.
    """

    value: float | None
    under: str
    sentences: tuple[str, ...]
    trial: Trial | None


def result(record: SearchRecord) -> Result:
    """Returns the winner with its reason, or the best trial so far."""
    winner = _winner(record)
    if winner is not None:
        return _won(record, winner)
    best = ranked(record.table, record.score)
    if best:
        return _best_so_far(record, best[0])
    return Result(None, "", (_nothing_yet(record),), None)


def _winner(record: SearchRecord) -> Trial | None:
    for trial in record.table.trials:
        if trial.number == record.finals.winner:
            return trial
    return None


def _won(record: SearchRecord, winner: Trial) -> Result:
    finals = record.finals
    standing = finals.standing(winner.number)
    value = finals.score
    under = f"{record.score.name} to expect of it, read at seeds that did not choose it"
    if value is None:
        under = f"{record.score.name} of its own training"
        value = winner.score
        if standing is not None and standing.score is not None:
            under = f"{record.score.name}, the mean over its reruns"
            value = standing.score
    sentences = [f"Winner: {name_of(winner)}."]
    for clause in (finals.reason, finals.covers):
        if clause:
            sentences.append(f"{clause[:1].upper()}{clause[1:]}.")
    if finals.note:
        sentences.append(finals.note)
    return Result(value, under, tuple(sentences), winner)


def _best_so_far(record: SearchRecord, best: Trial) -> Result:
    given = given_trial(record.table)
    sentence = f"The best so far is {name_of(best)}, at a cost of {sum(best.costs):.2f}"
    if given is not None and given.score is not None and given is not best:
        assert best.score is not None  # it is ranked
        sentence += f" and {best.score - given.score:+.4f} against the given recipe"
    sentences = [
        f"{sentence}.",
        "It is the score of one training: the best of many trials looks better than it is. "
        "Reruns of the finalists decide.",
    ]
    under = f"{record.score.name} of the best trial so far"
    return Result(best.score, under, tuple(sentences), best)


def _nothing_yet(record: SearchRecord) -> str:
    trials = record.table.trials
    failed = [trial for trial in trials if trial.state in FAILURES]
    if failed and len(failed) == len(trials):
        if len(failed) == 1:
            return f"The only trial has no result: {one_line(failed[0].reason)}."
        last = one_line(failed[-1].reason)
        return f"None of {len(trials)} trials has a result. The last one: {last}."
    return f"No trial is complete yet: {states_in_words(record.table)}."


def promise(record: SearchRecord) -> str:
    """Returns what another trial promises beside the noise of a seed; empty if not known."""
    found = record.advice.promise
    if found is None:
        return ""
    sentence = (
        f"Another trial promises a gain of {found.gain:.4f}. The score of one recipe scatters by "
        f"{found.noise:.4f} over seeds."
    )
    if found.gain < found.noise:
        return f"{sentence} More trials are hardly worth it."
    return sentence


def facts(record: SearchRecord) -> list[tuple[str, str]]:
    """Returns the rows of the small table beside the result: a name and a value each."""
    rows = []
    given = given_trial(record.table)
    if given is not None:
        rows.append((f"{record.score.name} of the given recipe", number(given.score)))
    rows.append(("trials", _trials_in_words(record)))
    rows.append(("of them", states_in_words(record.table)))
    found = savings(record)
    rows.append(("cost spent", f"{found.trained.cost:.2f} (the given recipe: 1)"))
    rows.append(("cost saved", f"{100 * found.share:.0f} %"))
    rows.append(("time of the search", duration(record.table.seconds)))
    return rows


def _trials_in_words(record: SearchRecord) -> str:
    reruns = len(record.table.of_kind(Kind.RERUN))
    words = f"{len(record.table.trials) - reruns}"
    # Without a number the budget or the space ends the search.
    if record.setup.num_samples is not None:
        words += f" of {record.setup.num_samples}"
    if reruns:
        words += f", and {reruns} reruns"
    return words


def savings_table(record: SearchRecord) -> TextTable:
    """Returns the table of what was trained, and what was not."""
    found = savings(record)
    rows = [
        _work("all chains alone", found.alone),
        _work("trained here", found.trained),
        _work("shared: there already", found.shared),
        _work("left out: stopped early, or diverged", found.left_out),
    ]
    return TextTable(
        titles=("stages", "number", "epochs", "cost", "time"),
        rows=rows,
        strong=1,
        note=_savings_note(found),
    )


def _work(name: str, work: Work) -> list[str]:
    time = NOTHING
    if work.seconds is not None:
        time = duration(work.seconds)
    return [name, count(work.stages), count(work.epochs), f"{work.cost:.2f}", time]


def _savings_note(found: Savings) -> str:
    return (
        "Each trial alone would train all of its stages. Shared ones were there already, from "
        "another trial or another search in this storage. The given recipe costs 1. "
        f"{100 * found.share:.0f} % of the cost of all chains to their ends was saved."
    )


@dataclass(frozen=True)
class Command:
    """A command to type next, and why."""

    why: str
    line: str


def commands(record: SearchRecord) -> list[Command]:
    """Returns the next commands: use the winner, or go on with the search."""
    name = typed(storage.name_of(record.path))
    where = typed(masked(storage.parent(record.path)))
    if record.finals.winner is not None:
        best = typed(masked(storage.join(record.path, "best.yaml")))
        return [
            Command("Train the winner again:", f"raytrain train --config {best}"),
            Command(
                "Predict with its checkpoint:",
                f"raytrain predict --checkpoint {name} --storage {where} "
                "--images DIR --out test.parquet",
            ),
        ]
    if runlock.is_held(record.path):
        return []
    return [
        Command(
            "The search does not run. Go on with it:",
            f"raytrain tune --resume {name} --storage {where}",
        )
    ]


def printed(directory: str) -> str:
    """Returns the best trials of a search and what came of it, as text for the terminal.

    Args:
        directory: of the search.

    Raises:
        DataError: a file of the search is damaged.
    """
    record = read_search(directory)
    return "\n".join([text_table(record.table, record.setup), *result(record).sentences])
