"""The trials of a search as words, as trials.csv and as text for the terminal."""

import io

import made_search
import pandas as pd
import pytest
from made_search import Maker

from raytrain import storage
from raytrain.evaluation.score import Score
from raytrain.report import spending, trials
from raytrain.report.search_record import read_search, read_setup
from raytrain.search.table import Kind, Part, State, Trial, Verdict

LOSS = Score("valid_loss", "loss", higher_is_better=False)


def trial_of(**changes):
    base = {
        "number": 4,
        "kind": Kind.DRAWN,
        "schedule": "same",
        "values": {"train.wd": 0.01, "stages.2.lr": [1e-4, 0.002]},
        "coordinates": None,
        "keys": ("a", "b", "c"),
        "costs": (0.1, 0.3, 0.6),
        "names": ("stage-1-32", "stage-2-32", "stage-1-64"),
    }
    return Trial(**(base | changes))


def parts(*scores):
    return [Part(score, 10.0, trained=True) for score in scores]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "open, 0 of 3 stages done"),
        ({"parts": parts(0.8, 0.9)}, "open, 2 of 3 stages done"),
        ({"state": State.COMPLETE, "parts": parts(0.8, 0.9, 0.92)}, "complete"),
        ({"state": State.STOPPED, "parts": parts(0.8)}, "stopped after stage 1"),
        ({"state": State.DIVERGED, "parts": parts(0.8, None)}, "diverged in stage 2"),
        ({"state": State.OUT_OF_MEMORY}, "out of memory in stage 1"),
        ({"state": State.FAILED, "parts": parts(0.8, 0.9)}, "failed in stage 3"),
    ],
)
def test_the_state_says_in_words_how_far_a_trial_came(changes, words):
    assert trials.state_in_words(trial_of(**changes)) == words


def test_stages_count_over_the_whole_list_where_a_part_of_it_is_trained():
    stopped = trial_of(state=State.STOPPED, parts=parts(0.8))
    assert trials.state_in_words(stopped, first_stage=3) == "stopped after stage 3"


def test_a_stopped_trial_says_what_the_model_expected_unless_a_reason_is_noted():
    verdict = Verdict(1, 0.9, 0.004, 0.93, True, 9)
    stopped = trial_of(state=State.STOPPED, parts=parts(0.8), verdicts=[verdict])
    assert trials.reason_in_words(stopped) == (
        "expected 0.9000 ± 0.0040 at its end, the best is 0.9300"
    )
    stopped.reason = "by hand"
    assert trials.reason_in_words(stopped) == "by hand"


def test_values_are_written_as_a_person_writes_them():
    assert trials.drawn_in_words(trial_of()) == "same: wd 0.01; stage 2 lr 0.0001 to 0.002"
    both = {"stages.2.lr": 0.01, "train.wd": 0.1, "stages.2.size": 64}
    words = "wd 0.1; stage 2 lr 0.01, size 64"
    assert trials.drawn_in_words(trial_of(schedule=None, values=both)) == words
    assert trials.path_in_words("data.augment.zoom") == "augment.zoom"
    assert trials.value_in_words({"flip": "none", "rotate": 10.0}) == "flip none, rotate 10"
    assert [trials.value_in_words(value) for value in (True, None, "resnet18")] == [
        "true",
        "–",
        "resnet18",
    ]


def test_the_best_comes_first_in_the_direction_of_the_score(tmp_path):
    made = Maker(tmp_path)
    for wd, last in ((0.01, 0.91), (0.02, 0.93), (0.03, 0.92)):
        made.whole(made.trial(Kind.TRIED, values={"train.wd": wd}), 0.8, 0.85, last)
    made.whole(made.trial(Kind.RERUN, seed=43, rerun_of=1), 0.8, 0.85, 0.99)
    made.stage(made.trial(), 0.99)
    higher = Score("f2", "F2")
    assert [trial.number for trial in trials.ranked(made.table, higher)] == [1, 2, 0]
    assert [trial.number for trial in trials.ranked(made.table, LOSS)] == [0, 2, 1]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    made = made_search.ended(tmp_path_factory.mktemp("ended"), drawn=20)
    made.save()
    return made


def test_trials_csv_has_a_row_for_each_trial_with_its_values_and_scores(made):
    setup = read_setup(str(made.path))
    path = trials.write_trials(made.table, setup)
    rows = pd.read_csv(io.BytesIO(storage.read_bytes(path))).set_index("number")
    assert list(rows.columns) == [
        *("kind", "state", "reason", "schedule"),
        *("train.wd", "stages.1.lr", "stages.2.lr", "stages.3.lr"),
        *("stage_1", "stage_2", "stage_3", "score", "cost", "seconds"),
        *("trained_stages", "rerun_of", "seed"),
    ]
    assert len(rows) == len(made.table.trials)
    for trial in made.table.trials:
        row = rows.loc[trial.number]
        assert (row["kind"], row["state"]) == (trial.kind.value, trial.state.value)
        if trial.score is not None:
            assert row["score"] == trial.score == row[f"stage_{len(trial.parts)}"]
        assert row["cost"] == pytest.approx(sum(trial.costs))
        assert row["trained_stages"] == sum(part.trained for part in trial.parts)
    reruns = rows[rows["kind"] == "rerun"]
    assert set(reruns["seed"]) == {43, 44} and reruns["rerun_of"].notna().all()


def test_trials_csv_has_the_values_of_the_recipe_where_nothing_was_drawn(made):
    table = trials.trials_table(made.table, read_setup(str(made.path)))
    given = table.iloc[0]
    assert given["train.wd"] == 0.01 and given["stages.2.lr"] == "0.0001 to 0.002"
    short = table[table["schedule"] == "once"].iloc[0]
    assert pd.isna(short["stages.3.lr"])  # its list has two stages


def test_pairs_in_trials_csv_have_the_digits_that_tell_them_apart(tmp_path):
    made = Maker(tmp_path)
    drawn = made.trial(Kind.TRIED, values={"stages.2.lr": [0.000123456789, 0.00123456789]})
    made.save()
    table = trials.trials_table(made.table, read_setup(str(made.path)))
    assert table["stages.2.lr"].iloc[drawn.number] == "0.000123456789 to 0.00123456789"


def test_the_text_for_the_terminal_has_the_best_five_the_given_recipe_and_true_reasons(made):
    text = trials.text_table(made.table, read_setup(str(made.path)))
    lines = text.splitlines()
    best = trials.ranked(made.table, Score("f2", "F2"))
    shown = [line.split()[0] for line in lines[2:7]]
    assert shown == [str(trial.number) for trial in best[:5]]
    assert "0 given recipe" in text and "F2" in lines[1]
    assert "failed in stage 1: the checkpoint of its first stage cannot be read" in text
    assert text.count("cannot be read") == 1  # equal reasons stand once


def test_a_search_without_any_trial_has_a_text(tmp_path):
    made = Maker(tmp_path)
    made.save()
    setup = read_setup(str(made.path))
    assert trials.text_table(made.table, setup) == "0 trials: none yet"
    table = trials.trials_table(made.table, setup)
    assert len(table) == 0 and list(table.columns[:2]) == ["number", "kind"]
    assert trials.summary(made.table, setup) == "search of 0 trials (none yet), none complete yet"


# What was spent


def three_chains(tmp_path):
    """Two chains that share the first two stages, and one that shares the first; a stage costs 0.15, 0.25 or 0.6."""
    made = Maker(tmp_path)
    values = {"train.wd": 0.01, "stages.1.lr": 0.01, "stages.2.lr": [1e-4, 0.002]}
    for third in (0.001, 0.002):
        trial = made.trial(Kind.TRIED, "same", values | {"stages.3.lr": [third / 10, third]})
        made.whole(trial, 0.86, 0.9, 0.92 + third)
    other = made.trial(
        Kind.TRIED, "same", values | {"stages.2.lr": [2e-4, 0.004], "stages.3.lr": [1e-4, 1e-3]}
    )
    made.whole(other, 0.86, 0.88)
    made.stop(other)
    made.save()
    return made


def test_a_shared_stage_is_paid_once_and_in_the_order_of_the_outcomes(tmp_path):
    made = three_chains(tmp_path)
    found = spending.outcomes(made.table)
    ends = [(end.trial.number, round(end.spent, 6)) for end in found if end.is_last]
    assert ends[:2] == [(0, 1.0), (1, 1.6)]
    assert round(found[-1].spent, 6) == 1.85
    assert len(found) == 8


def test_the_savings_add_up(tmp_path):
    made = three_chains(tmp_path)
    found = spending.savings(read_search(str(made.path)))
    assert (found.alone.stages, found.trained.stages, found.shared.stages) == (8, 5, 3)
    assert (found.alone.epochs, found.trained.epochs, found.shared.epochs) == (19, 12, 7)
    assert found.alone.cost == pytest.approx(2.4)
    assert found.trained.cost == pytest.approx(1.85)
    assert found.left_out.stages == 1 and found.left_out.cost == pytest.approx(0.6)
    assert found.share == pytest.approx(1 - 1.85 / 3.0)
    assert found.alone.seconds == found.trained.seconds + found.shared.seconds == 240.0


def test_a_stage_that_another_search_trained_costs_nothing(tmp_path):
    made = Maker(tmp_path)
    trial = made.trial(Kind.GIVEN)
    made.whole(trial, 0.8, 0.85, 0.9)
    trial.parts[0].trained = False
    assert [round(end.spent, 6) for end in spending.outcomes(made.table)] == [0.0, 0.25, 0.85]
