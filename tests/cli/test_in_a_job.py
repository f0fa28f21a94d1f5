"""In a Ray job, what is written has an absolute place; tested without Ray, by the variable that Ray sets for a job."""

import json
import os
from itertools import pairwise

import pytest

from raytrain.cli.job import JOB_VARIABLE, UNPACKED, check_written
from raytrain.cli.main import run_command

OUTSIDE = [
    ["ingest", "--images", "tiles", "--labels", "labels.csv", "--out", "{}"],
    ["train", "--config", "smoke", "--dataset", "planet", "--storage", "{}"],
    ["train", "--config", "smoke", "--dataset", "planet", "--storage", "{}", "--restarts", "2"],
    ["train", "--config", "smoke", "--dataset", "planet", "--storage", "{}", "--dry-run"],
    ["train", "--resume", "a", "--storage", "{}"],
    ["lr-find", "--config", "smoke", "--dataset", "planet", "--storage", "{}"],
    [
        "tune",
        "--config",
        "smoke",
        "--space",
        "space.yaml",
        "--dataset",
        "planet",
        "--storage",
        "{}",
    ],
    ["tune", "--thresholds", "valid.parquet", "--storage", "{}"],
    ["predict", "--checkpoint", "a", "--dataset", "planet", "--out", "{}"],
    ["evaluate", "valid.parquet", "--out", "{}"],
    ["submission", "test.parquet", "--out", "{}"],
    ["download", "planet", "--out", "{}"],
    ["quickstart", "--out", "{}"],
    ["data", "show", "planet", "--out", "{}"],
    ["data", "check", "planet", "--out", "{}"],
    ["data", "split", "{}", "--name", "new"],
    ["runs", "report", "a", "--storage", "{}"],
    ["bench", "--json", "{}"],
]


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A process as `ray job submit --working-dir .` starts it: (its folder, which will be removed)."""
    folder = tmp_path / "session" / UNPACKED.strip("/") / "_ray_pkg_0123"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv(
        JOB_VARIABLE, json.dumps({"runtime_env": {"working_dir": "gcs://_ray_pkg_0123.zip"}})
    )
    return folder


def ids(arguments):
    return " ".join(word for word in arguments if word not in ("planet", "smoke", "{}"))


@pytest.mark.parametrize("arguments", OUTSIDE, ids=ids)
def test_a_relative_place_to_write_is_refused_with_an_absolute_one_to_type(job, arguments, capsys):
    assert run_command([word.format("here/results") for word in arguments]) == 2
    said = capsys.readouterr().err
    flag = next((word for word, value in pairwise(arguments) if value == "{}"), None)
    flag = "DATASET" if flag == "split" else flag
    assert f"error: {flag} here/results is relative, and this is a Ray job" in said
    assert f"next: {flag} /shared/results" in said and "Traceback" not in said
    assert not (job / "here").exists()


@pytest.mark.parametrize("arguments", [words for words in OUTSIDE if "--storage" in words], ids=ids)
def test_a_place_that_is_left_out_is_refused_alike(job, arguments, capsys):
    given = [word for word in arguments if word not in ("--storage", "{}")]
    assert run_command(given) == 2
    assert "--storage runs is relative, and this is a Ray job" in capsys.readouterr().err
    assert os.listdir(job) == []


@pytest.mark.parametrize("path", ["runs", "./runs", "../runs", "file://runs", "~x/runs"])
def test_all_relative_forms_are_refused(job, path):
    from raytrain.errors import ConfigError

    with pytest.raises(ConfigError, match="is relative"):
        check_written("--storage", path)


def test_an_absolute_place_inside_the_folder_of_the_job_is_refused_too(job, capsys):
    assert run_command(["evaluate", "valid.parquet", "--out", str(job / "evaluation")]) == 2
    assert "lies in the folder of this Ray job" in capsys.readouterr().err


@pytest.mark.parametrize(
    "path", ["/shared/runs", "s3://bucket/runs?region=us-east-1", "file:///shared/runs", "~/runs"]
)
def test_absolute_places_are_taken(job, path):
    check_written("--storage", path)


def test_the_variable_and_the_recipe_count_as_given(job, tmp_path, monkeypatch, capsys):
    train = ["train", "--config", "smoke", "--dataset", "planet"]
    monkeypatch.setenv("RAYTRAIN_STORAGE", str(tmp_path / "runs"))
    assert run_command(train) == 3  # it came as far as the dataset, which is not there
    assert (
        run_command(["train", "--config", "smoke", "--dataset", "planet", "--storage", "runs"]) == 2
    )
    monkeypatch.delenv("RAYTRAIN_STORAGE")
    (job / "mine.yaml").write_text(f"storage: {tmp_path / 'runs'}\n")
    assert run_command(["train", "--config", "mine.yaml", "--dataset", "planet"]) == 3
    assert "no dataset.json" in capsys.readouterr().err


def test_what_is_only_read_may_lie_in_the_folder_of_the_job(job, tmp_path, capsys):
    (job / "labels.csv").write_text("image_name,tags\n")
    assert (
        run_command(
            ["ingest", "--images", ".", "--labels", "labels.csv", "--out", str(tmp_path / "out")]
        )
        == 3
    )
    assert run_command(["runs", "list", "--storage", "runs"]) == 0
    assert run_command(["train", "--print-config"]) == 0
    assert "is relative" not in capsys.readouterr().err


def test_a_job_without_a_folder_of_its_own_is_told_the_absolute_form_of_what_it_said(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(JOB_VARIABLE, "{}")
    assert run_command(["evaluate", "valid.parquet", "--out", "evaluation"]) == 2
    assert f"next: --out {tmp_path}/evaluation" in capsys.readouterr().err


def test_outside_a_job_relative_places_are_good(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(JOB_VARIABLE, raising=False)
    check_written("--storage", "runs")
