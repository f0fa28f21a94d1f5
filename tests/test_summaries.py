"""The small file of each run that `raytrain runs` reads, and two runs side by side."""

import json
import threading
import time

import pytest
from group import run_alone

from raytrain import runs, storage, summaries
from raytrain.cli.main import run_command
from raytrain.config import load_recipe

STAGE = {"size": 32, "epochs": 2, "lr": 0.01}


def written(path, name, rows=(), **fields):
    """A run directory with a recipe and the summary of some epochs."""
    run = path / name
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(load_recipe("smoke", fields).to_yaml())
    if rows:
        summaries.write(str(run), rows)
    return run


def row(epoch, f2):
    return {"stage": 1, "epoch": epoch, "seconds": 2.5, "valid_loss": 0.3, "f2": f2, "f2_best": f2}


@pytest.fixture
def trained(dataset, tmp_path):
    fields = {"dataset": dataset.path, "stages": [STAGE], "train": {"batch_size": 16}}
    run_alone(load_recipe("smoke", fields), tmp_path / "run")
    return tmp_path / "run"


def test_a_training_writes_what_its_history_says(trained):
    found = summaries.read(runs.Run(str(trained)))
    (trained / summaries.FILE).unlink()
    of_history = summaries.read(runs.Run(str(trained)))
    assert found.epochs == of_history.epochs == 2
    assert found.seconds == pytest.approx(of_history.seconds)
    assert found.last["f2_best"] == pytest.approx(of_history.last["f2_best"], abs=1e-12)


def test_runs_are_listed_from_their_summaries_alone(tmp_path, capsys, monkeypatch):
    written(tmp_path, "a", [row(1, 0.8), row(2, 0.9)])
    written(tmp_path, "b")
    (tmp_path / "no-run").mkdir()
    monkeypatch.setattr(summaries, "_of_history", None)
    assert run_command(["runs", "list", "--storage", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said == "a  best F2 0.9000 after 2 epochs\nb  no epoch yet\n"


def test_a_run_of_an_earlier_version_is_listed_from_its_history(tmp_path, capsys):
    run = written(tmp_path, "old")
    (run / "history.csv").write_text("stage,epoch,seconds,f2,f2_best\n1,1,2,0.7,0.7\n")
    run_command(["runs", "list", "--storage", str(tmp_path)])
    assert capsys.readouterr().out == "old  best F2 0.7000 after 1 epochs\n"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"epochs": 1}'])
def test_a_summary_that_was_cut_off_is_read_from_the_history(content, tmp_path):
    run = written(tmp_path, "cut")
    (run / summaries.FILE).write_text(content)
    (run / "history.csv").write_text("stage,epoch,seconds,f2_best\n1,1,2,0.7\n")
    assert summaries.read(runs.Run(str(run))).epochs == 1


def test_many_runs_are_read_at_the_same_time(tmp_path, monkeypatch):
    for number in range(40):
        written(tmp_path, f"r{number}", [row(1, 0.5)])
    threads = set()
    read = storage.read_json

    def slow(path):
        threads.add(threading.get_ident())
        time.sleep(0.01)
        return read(path)

    monkeypatch.setattr(storage, "read_json", slow)
    assert len(summaries.every(str(tmp_path))) == 40
    assert len(threads) > 8


def test_two_runs_are_shown_side_by_side(tmp_path, capsys):
    stages = [{"size": 32, "epochs": 2, "lr": 0.01}]
    written(tmp_path, "a", [row(1, 0.8)], train={"wd": 0.01}, stages=stages)
    other = [{"size": 32, "epochs": 3, "lr": 0.01}]
    written(tmp_path, "b", [row(1, 0.8), row(2, 0.9)], train={"wd": 0.02}, stages=other)
    assert run_command(["runs", "compare", "a", "b", "--storage", str(tmp_path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["a", "b"],
        ["stages.1.epochs", "2", "3"],
        ["train.wd", "0.01", "0.02"],
        ["epochs", "1", "2"],
        ["time", "0:02", "0:05"],
        ["valid_loss", "0.3000", "0.3000"],
        ["f2", "0.8000", "0.9000"],
        ["f2_best", "0.8000", "0.9000"],
    ]


def test_equal_settings_are_said_to_be_equal(tmp_path, capsys):
    written(tmp_path, "a", [row(1, 0.8)])
    written(tmp_path, "b")
    run_command(["runs", "compare", "a", "b", "--storage", str(tmp_path)])
    said = capsys.readouterr().out
    assert "settings    equal   equal" in said and "f2_best     0.8000  -" in said


def test_a_run_that_does_not_exist_is_refused(tmp_path, capsys):
    written(tmp_path, "first")
    assert run_command(["runs", "compare", "first", "frist", "--storage", str(tmp_path)]) == 2
    assert 'Did you mean "first"' in capsys.readouterr().err


def test_what_is_not_a_number_is_kept(tmp_path):
    run = written(tmp_path, "nan", [row(1, float("nan"))])
    assert json.loads((run / summaries.FILE).read_text())["last"]["f2"] != 0
