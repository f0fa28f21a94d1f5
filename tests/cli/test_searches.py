"""`raytrain runs` and searches: in the list, on the screen while they run, and their stages."""

import made_search
import pytest
from made_search import Maker

from raytrain.cli.main import run_command
from raytrain.search.table import Kind


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    made = made_search.ended(tmp_path_factory.mktemp("storage"), drawn=8)
    made.save()
    return made


def said(capsys, *words, code=0):
    assert run_command(["runs", *words]) == code
    return "".join(capsys.readouterr())


def test_a_search_is_listed_with_its_best_score(made, capsys):
    text = said(capsys, "list", "--storage", str(made.storage))
    assert text.startswith("calm  search of ")
    assert "best F2 0.9" in text and text.count("\n") == 1


def test_a_search_that_is_a_run_too_is_listed_once(made, tmp_path, capsys):
    storage = tmp_path / "storage"
    other = Maker(storage)
    other.whole(other.trial(Kind.GIVEN), 0.86, 0.9, 0.92)
    other.save()
    (other.path / "config.yaml").write_text(other.given.to_yaml())
    text = said(capsys, "list", "--storage", str(storage))
    assert text == "calm  no epoch yet; search of 1 trials (1 complete), best F2 0.9200\n"
    shown = said(capsys, "show", "calm", "--storage", str(storage))
    assert "0 given recipe" in shown and "checkpoints: " in shown


def test_show_prints_the_best_trials_while_a_search_runs(made, capsys):
    text = said(capsys, "show", "calm", "--storage", str(made.storage))
    assert "trials: " in text and "what was drawn" in text
    assert "checkpoints" not in text
    assert "next: raytrain train --config" in text


def test_show_says_how_a_search_that_was_stopped_goes_on(tmp_path, capsys):
    made = Maker(tmp_path)
    made.whole(made.trial(Kind.GIVEN), 0.86)
    made.save()
    text = said(capsys, "show", "calm", "--storage", str(tmp_path))
    assert text.endswith(f"next: raytrain tune --resume calm --storage {tmp_path}\n")


def test_report_writes_the_page_and_the_table_again(made, capsys):
    text = said(capsys, "report", "calm", "--storage", str(made.storage))
    assert "search.html" in text and "trials.csv" in text
    assert (made.path / "search.html").exists() and (made.path / "trials.csv").exists()


def test_prune_needs_to_be_told_what(made, capsys):
    assert "--stages --dry-run" in said(capsys, "prune", "--storage", str(made.storage), code=2)


def test_prune_lists_first_and_then_removes(tmp_path, capsys):
    made = Maker(tmp_path)
    made.whole(made.trial(Kind.GIVEN), 0.86)
    made.save()
    left = tmp_path / "stages/left-over"
    left.mkdir()
    (left / "model").write_bytes(b"0" * 2_000_000)
    words = ["prune", "--stages", "--storage", str(tmp_path)]
    text = said(capsys, *words, "--dry-run")
    assert text == "left-over  2.0 MB\n1 stages would free 0.00 GB; 1 stages of searches stay\n"
    assert left.exists()
    assert "1 stages freed 0.00 GB" in said(capsys, *words)
    assert not left.exists()
    assert said(capsys, *words).startswith("0 stages freed")


def test_a_new_run_does_not_get_the_name_of_a_search(made, capsys):
    from raytrain import runs
    from raytrain.errors import ConfigError

    with pytest.raises(ConfigError, match='there is already a run "calm"'):
        runs.refuse_taken("calm", str(made.storage))
