"""How long the reruns of a search will take, against sums by hand."""

import pytest

from raytrain.search.forecast import seconds_of_reruns
from raytrain.search.table import Kind, Part, State, Table, Trial

# A stage of cost 0.5 takes 10 s.
SECONDS = 10.0


def trial(number, kind=Kind.DRAWN, stages=2, done=2, state=State.COMPLETE):
    return Trial(
        number=number,
        kind=kind,
        schedule="lesson",
        values={},
        coordinates=None,
        keys=tuple(f"{number}-{stage}" for stage in range(stages)),
        costs=(0.5,) * stages,
        names=("one", "two", "three")[:stages],
        state=state,
        parts=[Part(0.9, SECONDS, True)] * done,
    )


def test_every_finalist_and_the_given_recipe_run_again_at_the_mean_cost():
    rows = [trial(0, Kind.GIVEN), *(trial(number) for number in range(1, 6))]
    # Four finalists, two reruns each, of two stages of 10 s.
    assert seconds_of_reruns(Table("", rows), 2, slots=1) == 160
    assert seconds_of_reruns(Table("", rows), 2, slots=4) == 40
    longer = [*rows, trial(6, stages=3, done=3), trial(7, stages=3, done=3)]
    # Six trials cost 1, two cost 1.5.
    assert seconds_of_reruns(Table("", longer), 2, slots=1) == pytest.approx(8 * 20 * 1.125)


def test_without_two_complete_trials_nothing_runs_again():
    assert seconds_of_reruns(Table(""), 2, slots=1) == 0
    rows = [trial(0, Kind.GIVEN), trial(1, state=State.STOPPED, done=1)]
    assert seconds_of_reruns(Table("", rows), 2, slots=1) == 0
    assert seconds_of_reruns(Table("", [*rows, trial(2)]), 2, slots=1) == 80


def test_what_has_run_again_counts_no_more():
    rows = [trial(0, Kind.GIVEN), trial(1)]
    whole = trial(2, Kind.RERUN)
    half = trial(3, Kind.RERUN, done=1, state=State.OPEN)
    assert seconds_of_reruns(Table("", [*rows, whole]), 2, slots=1) == 60
    assert seconds_of_reruns(Table("", [*rows, whole, half]), 2, slots=1) == 50
