"""The page of a search: what it says of a search that has ended, runs, has failed, or is large."""

import base64
import re

import made_search
import numpy as np
import pytest
from made_search import Maker

from raytrain import runlock, storage
from raytrain.errors import DataError
from raytrain.evaluation.score import Score
from raytrain.report import (
    coordinates,
    search_page,
    search_plots,
    search_rows,
    stage_plot,
    stage_tree,
    worth_plot,
)
from raytrain.report.canvas import DARK, LIGHT, legible_on
from raytrain.report.score_axis import range_of
from raytrain.report.search_record import read_search
from raytrain.report.spending import outcomes
from raytrain.search.table import Kind, State

F2 = Score("f2", "F2")
LOSS = Score("valid_loss", "loss", higher_is_better=False)
PNG = b"\x89PNG\r\n"


def text_of(made):
    """The page of a search as a reader sees it."""
    return read(page_of(made))


def read(page):
    """A page without tags and pictures, with single blanks."""
    body = re.sub(r"<style>.*?</style>|<head>.*?</head>", "", page, flags=re.DOTALL)
    words = re.sub(r"<[^>]+>", " ", body)
    return re.sub(r"\s+", " ", words)


def page_of(made):
    made.save()
    return storage.read_bytes(search_page.write(str(made.path))).decode()


def pictures(page):
    """Descriptions of the pictures of a page; each is there in both themes."""
    found = re.findall(r'src="data:image/png;base64,([^"]+)" alt="([^"]+)"', page)
    assert all(base64.b64decode(content).startswith(PNG) for content, _ in found)
    assert page.count("<source srcset") == len(found)
    return [alt for _, alt in found]


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    return made_search.ended(tmp_path_factory.mktemp("ended"), drawn=20)


@pytest.fixture(scope="module")
def page(ended):
    return page_of(ended)


def test_an_ended_search_shows_the_winner_its_reason_and_every_picture(ended, page):
    assert pictures(page) == [
        "finalists with intervals",
        "F2 over the cost spent",
        "what each field is worth by the model",
        "parallel coordinates of the drawn values",
        "tree of stages",
        "F2 by epoch of each trial",
    ]
    text = read(page)
    winner = read_search(str(ended.path)).finals.winner
    assert f"Winner: trial {winner}. Trial {winner} is better than the given recipe" in text
    assert "The intervals cover seeds and tiles." in text
    assert "F2 to expect of it, read at seeds that did not choose it" in text
    assert (
        "Another trial promises a gain of 0.0004. The score of one recipe scatters by 0.0015"
        in text
    )
    assert "More trials are hardly worth it." in text
    assert "raytrain train --config" in text and "raytrain predict --checkpoint calm" in text


def test_the_page_needs_no_network_and_no_script(page):
    assert "default-src 'none'; img-src data:" in page
    assert "<script" not in page and "http" not in re.sub(r"http-equiv", "", page)


def test_the_finalists_stand_with_their_intervals(ended, page):
    text = read(page)
    for standing in read_search(str(ended.path)).finals.standings:
        if standing.difference is not None:
            found = standing.difference
            shown = f"{found.value:+.4f} ({found.low:+.4f} to {found.high:+.4f})"
            assert shown in text
            assert standing.verdict in text


def test_failed_trials_are_in_the_table_with_their_true_reason(tmp_path):
    made = Maker(tmp_path)
    made.whole(made.trial(Kind.GIVEN), 0.86, 0.9, 0.92)
    made.stage(made.trial(), None)
    made.fail(made.trial(), "a tile has the label <b>")
    made.fail(made.trial(), "CUDA ran out of memory", State.OUT_OF_MEMORY)
    text = text_of(made)
    assert "diverged in stage 1 the loss is nan" in text
    assert "failed in stage 1 a tile has the label &lt;b&gt;" in text
    assert "out of memory in stage 1 CUDA ran out of memory" in text


# Searches that are not finished


def test_a_search_without_any_trial_has_a_page(tmp_path):
    made = Maker(tmp_path)
    page = page_of(made)
    assert pictures(page) == []
    assert "No trial is complete yet: none yet." in text_of(made)


def test_a_search_with_only_its_baseline_has_a_page(tmp_path):
    made = Maker(tmp_path)
    made.whole(made.trial(Kind.GIVEN), 0.86, 0.905, 0.927)
    text = text_of(made)
    assert "The best so far is the given recipe, at a cost of 1.00." in text
    assert "1 of 24" in text and "0.9270" in text
    assert "tree of stages" in pictures(page_of(made))


def test_a_search_whose_trials_all_failed_says_why(tmp_path):
    made = Maker(tmp_path)
    for _ in range(3):
        made.fail(made.trial(), "the split random has no validation tiles")
    text = text_of(made)
    assert (
        "None of 3 trials has a result. The last one: the split random has no validation tiles."
        in text
    )


def test_a_stage_under_way_is_in_the_curves_and_a_cut_off_line_is_not(tmp_path):
    made = Maker(tmp_path)
    trial = made.trial(Kind.GIVEN)
    made.stage(trial, 0.86)
    made.history(trial, trial.keys[1], 2, 0.9)
    path = tmp_path / "stages" / trial.keys[1] / "history.csv"
    path.write_text(path.read_text() + "2,32,4,0.0")
    made.save()
    assert len(read_search(str(made.path)).curve_of(trial)) == 2 + 3
    assert "open, 1 of 3 stages done" in text_of(made)


def test_the_best_so_far_is_told_against_the_given_recipe_and_with_a_warning(tmp_path):
    made = Maker(tmp_path)
    made.whole(made.trial(Kind.GIVEN), 0.86, 0.905, 0.92)
    made.whole(made.trial(Kind.TRIED, "same", drawn_values(0.004)), 0.86, 0.91, 0.9315)
    text = text_of(made)
    assert "The best so far is trial 1, at a cost of 1.00 and +0.0115 against" in text
    assert "the best of many trials looks better than it is" in text


def drawn_values(rate, wd=0.01):
    return {
        "train.wd": wd,
        "stages.1.lr": 0.01,
        "stages.2.lr": [rate / 20, rate],
        "stages.3.lr": [1e-4, 1e-3],
    }


def test_a_search_that_does_not_run_shows_how_to_go_on_and_one_that_runs_does_not(tmp_path):
    made = Maker(tmp_path)
    assert "raytrain tune --resume calm" in text_of(made)
    with runlock.held(str(made.path)):
        assert "--resume" not in text_of(made)


def test_finals_that_lack_parts_are_shown_as_far_as_they_go(tmp_path):
    made = Maker(tmp_path)
    trial = made.whole(made.trial(Kind.GIVEN), 0.86, 0.905, 0.92)
    (made.path / "finals.json").write_text('{"winner": 0}')
    assert "Winner: the given recipe." in text_of(made)
    assert f"{trial.score:.4f} F2 of its own training" in text_of(made)


def test_reruns_under_way_are_shown_before_anything_is_decided(tmp_path):
    made = Maker(tmp_path)
    made.whole(made.trial(Kind.GIVEN), 0.86, 0.905, 0.92)
    made.whole(made.trial(Kind.RERUN, seed=43, rerun_of=0), 0.86, 0.9, 0.918, heard=False)
    assert "rerun of 0, seed 43" in text_of(made)
    assert "finalists with intervals" in pictures(page_of(made))


def test_damaged_finals_are_an_error_and_a_damaged_model_is_left_out(tmp_path):
    made = Maker(tmp_path)
    made.whole(made.trial(Kind.GIVEN), 0.86, 0.905, 0.92)
    (made.path / "model.json").write_text('{"fields": [{"path": ')
    assert "what each field is worth by the model" not in pictures(page_of(made))
    (made.path / "finals.json").write_text('{"standings": [{}]}')
    with pytest.raises(DataError, match=r"finals\.json is damaged"):
        search_page.write(str(made.path))


def test_a_directory_that_is_no_search_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"search\.yaml is missing or damaged"):
        search_page.write(str(tmp_path))


def test_a_space_that_this_version_refuses_leaves_the_rest_of_the_page(tmp_path):
    made = Maker(tmp_path)
    made.whole(made.trial(Kind.GIVEN), 0.86, 0.905, 0.92)
    text = (made.path / "search.yaml").read_text()
    (made.path / "search.yaml").write_text(text.replace("train.wd", "train.unknown"))
    assert "The best so far is the given recipe" in text_of(made)


# Large searches


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    return made_search.ended(tmp_path_factory.mktemp("large"), drawn=200)


@pytest.fixture(scope="module")
def large_page(large):
    return page_of(large)


def test_a_large_search_says_what_it_leaves_out(large, large_page):
    text = read(large_page)
    count = len(large.table.trials)
    assert f"The best of {count} trials, and one for each reason why others failed." in text
    assert f"The other {count - search_rows.TABLE_ROWS} follow below" in text
    assert f"{count - search_rows.TABLE_ROWS} more trials" in text
    assert re.search(r"\d+ further trials are left out", text)
    assert "given recipe" in text


def test_every_trial_of_a_large_search_is_on_its_page_once(large, large_page):
    numbers = re.findall(r'<tr(?: class="strong")?><td>(\d+)</td><td class="text">', large_page)
    assert sorted(map(int, numbers)) == [trial.number for trial in large.table.trials]


# Pictures, by their content


def test_bad_scores_beyond_the_fence_do_not_stretch_the_axis():
    found = range_of([0.92, 0.93, 0.931, 0.929, 0.925, 0.3], F2)
    assert 0.9 < found.low < 0.92 < 0.931 < found.high < 0.95
    assert found.is_outside(0.3, F2) and found.shown(0.3, F2) == 0.92
    assert found.shown(0.93, F2) == 0.93
    losses = range_of([0.12, 0.11, 0.115, 0.118, 0.113, 4.0], LOSS)
    assert losses.high < 0.2 and losses.is_outside(4.0, LOSS)
    single = range_of([0.5], F2)
    assert single.low < 0.5 < single.high


def test_numbers_lie_by_their_size_pairs_by_their_second_and_words_apart():
    rates = coordinates.scale([0.001, 0.01, 0.1])
    assert list(rates.positions.values()) == pytest.approx([0, 0.5, 1])
    sizes = coordinates.scale([64, 96, 128])
    assert list(sizes.positions.values()) == pytest.approx([0, 0.5, 1])
    pairs = coordinates.scale([[1e-4, 0.002], [2e-4, 0.004], 0.003])
    assert pairs.positions == pytest.approx({"0.002": 0, "0.004": 1, "0.003": 0.5})
    words = coordinates.scale(["resnet18", "resnet50", 3])
    assert len(set(words.positions.values())) == 3
    assert coordinates.scale([0.01]).positions == {"0.01": 0.5}


def test_labels_of_an_axis_that_would_overlap_are_left_out():
    many = coordinates.scale(list(np.linspace(1, 2, 200)))
    heights = [many.positions[label] for label in many.labels]
    assert heights[0] == 0 and heights[-1] == 1
    assert min(np.diff(heights)) >= coordinates.NEAREST


def test_shared_stages_are_one_cell_and_the_best_chain_comes_first(tmp_path):
    made = Maker(tmp_path)
    for rate, last in ((0.002, 0.92), (0.004, 0.93), (0.008, 0.91)):
        made.whole(made.trial(Kind.TRIED, "same", drawn_values(rate)), 0.86, 0.9, last)
    other = made.trial(Kind.TRIED, "same", drawn_values(0.002, wd=0.03))
    made.whole(other, 0.8)
    made.stop(other)
    made.whole(made.trial(Kind.RERUN, seed=43, rerun_of=1), 0.86, 0.9, 0.99)
    found = stage_tree.layout(made.table.trials, F2)
    assert [trial.number for trial in found.trials] == [1, 0, 2, 3, 4]
    first = [cell for cell in found.cells if cell.depth == 0]
    assert [(cell.first_row, cell.rows) for cell in first] == [(0, 3), (3, 1), (4, 1)]
    assert len(found.cells) == 1 + 3 + 3 + 1 + 3
    by_loss = stage_tree.layout(made.table.trials, LOSS)
    assert [trial.number for trial in by_loss.trials] == [2, 0, 1, 3, 4]


def test_pictures_are_the_same_bytes_for_the_same_search_and_differ_by_theme(ended):
    found = stage_tree.layout([trial for trial in ended.table.trials if trial.parts], F2)

    def describe(trial, depth):
        return trial.names[depth]

    light = stage_plot.stages(found, F2, describe)
    assert light.startswith(PNG)
    assert light == stage_plot.stages(found, F2, describe, LIGHT)
    assert light != stage_plot.stages(found, F2, describe, DARK)


def test_a_score_where_lower_is_better_is_drawn_too(ended):
    found = outcomes(ended.table)
    assert search_plots.progress(found, LOSS) != search_plots.progress(found, F2)
    layout = stage_tree.layout([trial for trial in ended.table.trials if trial.parts], LOSS)
    assert stage_plot.stages(layout, LOSS, lambda trial, depth: "").startswith(PNG)


def test_fields_with_one_level_and_with_dollars_are_drawn(tmp_path):
    record_fields = made_search.ended(tmp_path, drawn=2)
    record_fields.save()
    fields = read_search(str(record_fields.path)).advice.fields
    assert [field.path for field in fields] == [
        *("train.wd", "stages.1.lr", "stages.2.lr", "stages.3.lr")
    ]
    level = fields[0].levels[0]
    odd = type(fields[0])("train.$x", (type(level)("$a$ and more than fits", 0.9, 0.1),))
    assert worth_plot.worth([*fields, odd], F2).startswith(PNG)


def test_letters_on_a_box_have_the_better_contrast():
    assert legible_on("#000000", LIGHT) == LIGHT.paper
    assert legible_on("#ffffff", LIGHT) == LIGHT.ink
    assert legible_on("#000000", DARK) == DARK.ink
