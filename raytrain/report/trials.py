"""Trials of a search as words and as tables: trials.csv and the text for the terminal.

    trials_table(table, setup)     one row for each trial
    write_trials(table, setup)     writes it as trials.csv
    summary(table, setup)          one line
    text_table(table, setup)       the best trials, and why others failed

Imports neither torch nor ray, and not matplotlib.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from raytrain import storage
from raytrain.evaluation.score import Score
from raytrain.report.dataset_text import aligned
from raytrain.report.numbers import NOTHING, duration, score
from raytrain.report.search_record import Setup
from raytrain.search import paths
from raytrain.search.space import GIVEN
from raytrain.search.table import Kind, State, Table, Trial

FILE = "trials.csv"
# Trials that the terminal shows.
SHOWN = 5
# Of the numbers of a pair in trials.csv: enough to tell any two that were drawn apart.
DIGITS = 12
# Columns of trials.csv before and after those of drawn paths and of stages.
COLUMNS_BEFORE = ("number", "kind", "state", "reason", "schedule")
COLUMNS_AFTER = ("score", "cost", "seconds", "trained_stages", "rerun_of", "seed")
# Letters of a reason in the terminal and on the page; trials.csv has all of it.
REASON_LETTERS = 180
FAILURES = (State.FAILED, State.OUT_OF_MEMORY, State.DIVERGED)
# What the states are called where they are counted, in this order.
COUNTED = {
    State.COMPLETE: "complete",
    State.STOPPED: "stopped early",
    State.DIVERGED: "diverged",
    State.OUT_OF_MEMORY: "out of memory",
    State.FAILED: "failed",
    State.OPEN: "open",
}
# Sections of a recipe that a short name of a field leaves out.
SECTIONS = ("train.", "data.", "model.")


# Words


def name_of(trial: Trial) -> str:
    """Returns what a trial is called in a sentence, such as "trial 3" or "the given recipe"."""
    if trial.kind is Kind.GIVEN:
        return "the given recipe"
    if trial.kind is Kind.RERUN:
        return f"rerun {trial.number} of trial {trial.rerun_of}"
    return f"trial {trial.number}"


def kind_in_words(trial: Trial) -> str:
    """Returns where a trial comes from, in a few words."""
    if trial.kind is Kind.GIVEN:
        return "given recipe"
    if trial.kind is Kind.RERUN:
        return f"rerun of {trial.rerun_of}, seed {trial.seed}"
    return trial.kind.value


def state_in_words(trial: Trial, first_stage: int = 1) -> str:
    """Returns how far a trial is, with the stage, such as "diverged in stage 2".

    Args:
        trial: the trial.
        first_stage: number of the first stage that trials train.
    """
    done = scored_stages(trial)
    if trial.state is State.OPEN:
        return f"open, {done} of {len(trial.keys)} stages done"
    if trial.state is State.COMPLETE:
        return "complete"
    if trial.state is State.STOPPED:
        return f"stopped after stage {first_stage + done - 1}"
    # It ended in the stage after those that have a score.
    return f"{trial.state.value} in stage {first_stage + done}"


def reason_in_words(trial: Trial, digits: int = 4) -> str:
    """Returns why a trial failed or stopped; where nobody noted it, what the model expected."""
    if trial.reason:
        return trial.reason
    if trial.state is not State.STOPPED or not trial.verdicts:
        return ""
    verdict = trial.verdicts[-1]
    return (
        f"expected {verdict.mean:.{digits}f} ± {verdict.sd:.{digits}f} at its end, "
        f"the best is {verdict.best:.{digits}f}"
    )


def one_line(reason: str) -> str:
    """Returns a reason without line breaks, cut to REASON_LETTERS letters."""
    words = " ".join(reason.split())
    if len(words) <= REASON_LETTERS:
        return words
    return f"{words[: REASON_LETTERS - 1]}…"


def scored_stages(trial: Trial) -> int:
    """Returns how many stages of a trial have a score."""
    return sum(part.score is not None for part in trial.parts)


def path_in_words(path: str) -> str:
    """Returns the short name of a field, such as "wd" or "stage 2 lr"."""
    stage = paths.stage_of(path)
    if stage is not None:
        rest = path.split(".", 2)[2]
        return f"stage {stage} {rest}"
    for section in SECTIONS:
        if path.startswith(section):
            return path.removeprefix(section)
    return path


def value_in_words(value: Any, digits: int = 3) -> str:
    """Returns a value of a field as a person writes it; a pair of rates as "1e-05 to 0.002".

    Args:
        value: as it was drawn.
        digits: of a number.
    """
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    if isinstance(value, list | tuple):
        return " to ".join(value_in_words(item, digits) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {value_in_words(item, digits)}" for key, item in value.items())
    return str(value)


def drawn_in_words(trial: Trial) -> str:
    """Returns the list of stages and the values of a trial on one line, those of a stage together.

    Such as "lesson: wd 0.01; stage 1 lr 0.01; stage 2 lr 0.0001 to 0.002, batch_size 32".
    """
    by_stage: dict[int, list[str]] = {}
    for path in sorted(trial.values, key=lambda path: paths.stage_of(path) or 0):
        name = path_in_words(path)
        found = by_stage.setdefault(paths.stage_of(path) or 0, [])
        if found:
            # The number of the stage is said already.
            name = name.removeprefix(f"stage {paths.stage_of(path)} ")
        found.append(f"{name} {value_in_words(trial.values[path])}")
    values = "; ".join(", ".join(found) for found in by_stage.values())
    if trial.schedule in (None, GIVEN):
        return values
    return f"{trial.schedule}: {values}"


def states_in_words(table: Table) -> str:
    """Returns how many trials are in each state, such as "7 complete, 2 open"."""
    counts = Counter(trial.state for trial in table.trials)
    words = []
    for state, name in COUNTED.items():
        if counts[state]:
            words.append(f"{counts[state]} {name}")
    return ", ".join(words) or "none yet"


# Choosing


def ranked(table: Table, objective: Score) -> list[Trial]:
    """Returns the complete trials, the best first; reruns are left out, since they only confirm."""
    found = []
    for trial in table.trials:
        if trial.score is not None and trial.kind is not Kind.RERUN:
            found.append(trial)
    sign = -1.0
    if not objective.higher_is_better:
        sign = 1.0

    def key(trial: Trial) -> tuple[float, int]:
        assert trial.score is not None  # see above
        return sign * trial.score, trial.number

    return sorted(found, key=key)


def given_trial(table: Table) -> Trial | None:
    """Returns the trial of the given recipe, if the table has it."""
    for trial in table.of_kind(Kind.GIVEN):
        return trial
    return None


def drawn_paths(table: Table) -> list[str]:
    """Returns the paths of all values, those outside the stages first, then by stage."""
    found: dict[str, None] = {}
    for trial in table.trials:
        found.update(dict.fromkeys(trial.values))
    return sorted(found, key=lambda path: (paths.stage_of(path) or 0, path))


def value_of(trial: Trial, path: str, setup: Setup) -> Any:
    """Returns the value that a trial has at a path, drawn or not; None where it has none."""
    if path in trial.values:
        return trial.values[path]
    recipe = setup.recipe_of(trial)
    if recipe is None:
        return None
    return paths.value_at(recipe.model_dump(mode="json"), path)


# Tables


def trials_table(table: Table, setup: Setup) -> pd.DataFrame:
    """Returns one row for each trial, by number.

    Args:
        table: of the search.
        setup: of the search.

    Returns:
        Columns number, kind, state, reason, schedule; one for each drawn path, with the value of
        the trial's recipe where it was not drawn; stage_N with the objective after stage N; score
        at the end; cost of the whole chain, where the given recipe costs 1; seconds of its stages,
        whoever trained them; trained_stages, those that this trial trained itself; rerun_of, seed.
    """
    drawn = drawn_paths(table)
    most_stages = max((len(trial.keys) for trial in table.trials), default=0)
    stages = [_stage_column(setup, number) for number in range(most_stages)]
    rows = []
    for trial in table.trials:
        rows.append(_row(trial, setup, drawn))
    found = pd.DataFrame(rows, columns=[*COLUMNS_BEFORE, *drawn, *stages, *COLUMNS_AFTER])
    for column in ("trained_stages", "rerun_of", "seed"):
        # Whole numbers, of which some are missing.
        found[column] = found[column].astype("Int64")
    return found


def _stage_column(setup: Setup, number: int) -> str:
    """The column of a stage, from 0 among those that trials train."""
    return f"stage_{setup.first_stage + number}"


def _row(trial: Trial, setup: Setup, drawn: Sequence[str]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "number": trial.number,
        "kind": trial.kind.value,
        "state": trial.state.value,
        "reason": reason_in_words(trial),
        "schedule": trial.schedule,
    }
    for path in drawn:
        row[path] = _cell(value_of(trial, path, setup))
    for number, part in enumerate(trial.parts):
        row[_stage_column(setup, number)] = part.score
    row["score"] = trial.score
    row["cost"] = round(sum(trial.costs), 6)
    row["seconds"] = round(seconds_of(trial), 1)
    row["trained_stages"] = sum(part.trained for part in trial.parts)
    row["rerun_of"] = trial.rerun_of
    row["seed"] = trial.seed
    return row


def _cell(value: Any) -> Any:
    """A value for a cell: lists and mappings as text."""
    if isinstance(value, list | tuple | Mapping):
        return value_in_words(value, DIGITS)
    return value


def seconds_of(trial: Trial) -> float:
    """Returns the seconds that the stages of a trial took, whoever trained them."""
    return sum(part.seconds for part in trial.parts)


def write_trials(table: Table, setup: Setup) -> str:
    """Writes trials.csv into the directory of the search.

    Returns:
        Its path.

    Raises:
        StorageError: it cannot be written.
    """
    path = storage.join(table.directory, FILE)
    storage.write_text(path, trials_table(table, setup).to_csv(index=False))
    return path


def summary(table: Table, setup: Setup) -> str:
    """Returns a search on one line: the best score, and how many trials are in each state."""
    counted = f"search of {len(table.trials)} trials ({states_in_words(table)})"
    best = ranked(table, setup.score)
    if not best:
        return f"{counted}, none complete yet"
    return f"{counted}, best {setup.score.name} {score(best[0].score)}"


def text_table(table: Table, setup: Setup) -> str:
    """Returns the best trials and the reasons of those that failed, as text for the terminal."""
    objective = setup.score
    lines = [f"{len(table.trials)} trials: {states_in_words(table)}"]
    best = ranked(table, objective)
    shown = best[:SHOWN]
    given = given_trial(table)
    if given is not None and given in best and given not in shown:
        shown.append(given)
    if shown:
        rows = [["trial", objective.name, "cost", "time", "what was drawn"]]
        rows += [_text_row(trial) for trial in shown]
        lines += aligned(rows, left={0, 4})
        hidden = len(best) - len(shown)
        if hidden:
            lines.append(f"and {hidden} more complete trials, see {FILE}")
    lines += _failures(table, setup.first_stage)
    return "\n".join(lines)


def _text_row(trial: Trial) -> list[str]:
    label = f"{trial.number}"
    if trial.kind is not Kind.DRAWN:
        label = f"{trial.number} {kind_in_words(trial)}"
    cost = f"{sum(trial.costs):.2f}"
    return [label, score(trial.score), cost, duration(seconds_of(trial)), drawn_in_words(trial)]


def _failures(table: Table, first_stage: int) -> list[str]:
    """A line for each reason why trials failed, with their numbers."""
    by_reason: dict[str, list[Trial]] = {}
    for trial in table.trials:
        if trial.state in FAILURES:
            by_reason.setdefault(trial.reason, []).append(trial)
    lines = []
    for reason, trials in by_reason.items():
        first = trials[0]
        state = state_in_words(first, first_stage)
        line = f"trial {first.number} {state}: {one_line(reason)}"
        if len(trials) > 1:
            line += f" ({len(trials) - 1} more alike)"
        lines.append(line)
    return lines
