"""The line that submits a training as a Ray job: `raytrain train --print-submit`."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from raytrain import lineage
from raytrain.cli.main import run_command
from raytrain.cli.submit import STOP_WAIT, submission

ROOT = Path(__file__).parents[2]
PATHS = ["--dataset", "/shared/planet", "--storage", "s3://bucket/runs"]
WORDS = ["--config", "smoke", *PATHS]


def option(words, flag):
    return words[words.index(flag) + 1]


def test_the_line_begins_the_run_or_goes_on_with_it():
    words = shlex.split(submission(WORDS, "first", folder=ROOT, environment={}))
    own = words[words.index("--") + 1 :]
    assert own == ["python", "jobs/train.py", *WORDS, "--name", "first", "--resume", "auto"]
    assert option(words, "--working-dir") == "."
    assert option(words, "--address") == "http://HEAD:8265"
    env = json.loads(option(words, "--runtime-env-json"))["env_vars"]
    assert env == {STOP_WAIT: "60"}
    assert option(words, "--submission-id") == "first-$(date"  # which the shell replaces


def test_the_commit_travels_with_the_job(monkeypatch):
    monkeypatch.setattr(lineage, "commit", lambda folder: f"of {folder}")
    words = shlex.split(submission(WORDS, "first", folder=ROOT, environment={}))
    metadata = json.loads(option(words, "--metadata-json"))
    assert metadata == {"run": "first", "commit": f"of {ROOT}"}


def test_elsewhere_the_installed_program_runs(tmp_path):
    found = submission(
        WORDS, "first", folder=tmp_path, environment={"RAY_API_SERVER_ADDRESS": "http://h:1"}
    )
    words = shlex.split(found)
    # Which commit is installed there is not known here.
    assert json.loads(option(words, "--metadata-json")) == {"run": "first"}
    assert "--working-dir" not in words and option(words, "--address") == "http://h:1"
    assert words[words.index("--") + 1 :][:2] == ["raytrain", "train"]


@pytest.mark.parametrize(
    "given",
    [
        ["--print-submit", "--name", "old", *WORDS, "--resume", "auto"],
        ["--name=old", "--resume=auto", *WORDS, "--print-submit"],
    ],
)
def test_flags_that_the_line_replaces_are_left_out(given):
    words = shlex.split(submission(given, "first", folder=ROOT, environment={}))
    own = words[words.index("--") + 1 :]
    assert own == ["python", "jobs/train.py", *WORDS, "--name", "first", "--resume", "auto"]


def printed(monkeypatch, capsys, *words):
    given = ["train", *words, "--print-submit"]
    monkeypatch.setattr(sys, "argv", ["raytrain", *given])
    # The tests' own; a job would not have it.
    monkeypatch.delenv("RAYTRAIN_MODEL__ARCH", raising=False)
    code = run_command(given)
    return code, capsys.readouterr()


def test_the_command_prints_it(monkeypatch, capsys):
    code, said = printed(monkeypatch, capsys, *WORDS, "--name", "first")
    assert code == 0
    assert said.out == submission(WORDS, "first", folder=Path.cwd()) + "\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dataset", "planet", "--storage", "/runs"], "--dataset planet is relative"),
        (["--dataset", "/planet"], "--storage runs is relative"),
        (["--dataset", "s3://KEY:HIDDEN@b/p", "--storage", "/runs"], "would hold the keys of"),
        (["--resume", "first"], "--print-submit and --resume first cannot be used together"),
        ([*PATHS, "--model.weights", "w.pt"], "--model.weights w.pt is relative"),
        ([*PATHS, "--init-from", "runs/old"], "--init-from runs/old is relative"),
        ([*PATHS, "--dry-run"], "--print-submit and --dry-run cannot be used together"),
        ([*PATHS, "--print-config"], "--print-submit and --print-config cannot be used together"),
    ],
)
def test_what_a_job_could_not_use_is_refused(words, message, monkeypatch, capsys):
    code, said = printed(monkeypatch, capsys, "--config", "smoke", *words)
    assert code == 2 and message in said.err and said.out == "" and "HIDDEN" not in said.err


def test_a_recipe_file_has_to_travel_with_the_job(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.yaml").write_text("num_workers: 1\n")
    monkeypatch.chdir(tmp_path)
    given = ["--config", "mine.yaml", *PATHS, "--name", "first"]
    code, said = printed(monkeypatch, capsys, *given)
    assert code == 2 and "--config mine.yaml is relative" in said.err
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "train.py").touch()
    code, said = printed(monkeypatch, capsys, *given)
    assert code == 0 and "--working-dir ." in said.out and "--config mine.yaml" in said.out
    (tmp_path / "jobs" / "more").mkdir()
    monkeypatch.chdir(tmp_path / "jobs")
    code, said = printed(monkeypatch, capsys, "--config", "../mine.yaml", *PATHS)
    assert code == 2 and "--config ../mine.yaml is relative" in said.err


def test_settings_of_the_shell_are_refused_by_name(monkeypatch, capsys):
    monkeypatch.setenv("RAYTRAIN_TRAIN__BATCH_SIZE", "128")
    code, said = printed(monkeypatch, capsys, *WORDS, "--name", "first")
    assert code == 2 and said.out == ""
    assert "the submission would not have RAYTRAIN_TRAIN__BATCH_SIZE" in said.err


# What env.json says about the code


def git(folder, *words):
    user = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    subprocess.run(["git", "-C", str(folder), *user, *words], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "raytrain").mkdir()
    (tmp_path / "raytrain" / "a.py").write_text("a = 1\n")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    return tmp_path


def test_a_checkout_has_a_commit(checkout):
    found = lineage.commit(checkout)
    assert len(found) == 40
    (checkout / "notes.txt").write_text("not part of the package")
    assert lineage.commit(checkout) == found
    (checkout / "raytrain" / "a.py").write_text("a = 2\n")
    assert lineage.commit(checkout) == f"{found}+changed"


def test_a_folder_in_another_checkout_has_none(checkout):
    (checkout / "site-packages").mkdir()
    assert lineage.commit(checkout / "site-packages") is None


def test_without_git_there_is_none(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert lineage.commit(checkout) is None


def test_a_job_takes_the_commit_from_its_metadata(monkeypatch):
    monkeypatch.setattr(lineage, "commit", lambda: None)
    metadata = {"job_submission_id": "first-1", "commit": "0123abcd"}
    found = lineage.lineage({lineage.JOB_VARIABLE: json.dumps({"metadata": metadata})})
    assert (found["submission_id"], found["commit"]) == ("first-1", "0123abcd")


@pytest.mark.parametrize("content", ["{}", "no JSON", '{"metadata": null}'])
def test_outside_of_a_job_there_is_no_submission(content):
    assert lineage.lineage({lineage.JOB_VARIABLE: content})["submission_id"] is None
