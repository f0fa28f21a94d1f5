"""The supervisor: what it starts again, what it does not, and that signals reach the process that trains."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from raytrain import runs
from raytrain.cli import run_command
from raytrain.distributed import supervisor

# Plays the program: notes its arguments, then does what the next word of the script says.
FAKE = """
import json, os, signal, sys, time
folder = os.environ["FAKE"]
with open(folder + "/log", "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
done = sum(1 for _ in open(folder + "/log"))
word = open(folder + "/script").read().split()[done - 1]
if word.startswith("begin:"):
    open(folder + "/run/config.yaml", "w").write("{}")
    word = word.removeprefix("begin:")
if word == "wait":
    signal.signal(signal.SIGTERM, lambda *args: sys.exit(75))
    open(folder + "/ready", "w")
    time.sleep(60)
elif word.startswith("error:"):
    json.dump({"error": word.removeprefix("error:")}, open(folder + "/run/failure.json", "w"))
    sys.exit(1)
elif word.startswith("-"):
    os.kill(os.getpid(), -int(word))
sys.exit(int(word))
"""


@pytest.fixture
def supervise(tmp_path, monkeypatch):
    """Runs a script of ends: (exit code, the commands that ran, the lines that were said)."""
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("FAKE", str(tmp_path))
    monkeypatch.setattr(supervisor, "PROGRAM", [sys.executable, "-c", FAKE])
    monkeypatch.setattr(supervisor, "LONGEST_PAUSE_S", 0.0)

    def run(script, restarts):
        (tmp_path / "script").write_text(script)
        said = []
        code = supervisor.supervise(["first"], ["again"], str(tmp_path / "run"), restarts, said.append)
        return code, [json.loads(line)[0] for line in (tmp_path / "log").read_text().splitlines()], said

    return run


def test_a_process_that_dies_is_started_again_and_goes_on_where_a_run_was_begun(supervise):
    code, commands, said = supervise("-9 begin:-9 1 0", 5)
    assert (code, commands) == (0, ["first", "first", "again", "again"])
    assert [line.split(" in ")[0] for line in said] == [
        "the run's process ended with -9; restart 1 of 5",
        "the run's process ended with -9; restart 2 of 5",
        "the run's process ended with 1; restart 3 of 5",
    ]


def test_restarts_are_counted_and_the_last_end_is_told_as_a_shell_does(supervise):
    assert supervise("-9 -9 -9", 1)[:2] == (128 + 9, ["first", "first"])


@pytest.mark.parametrize("word", ["2", "3", "4", "5", "6", "7", "75", "130", "143", "error:ModuleNotFoundError"])
def test_what_would_come_again_is_not_started_again(supervise, word):
    code, commands, said = supervise(word, 5)
    assert code == (1 if word.startswith("error") else int(word)) and commands == ["first"] and not said


def test_another_error_is_started_again(supervise):
    assert supervise("error:RuntimeError 0", 5)[:2] == (0, ["first", "first"])


def test_a_signal_reaches_the_process_and_ends_the_supervision(supervise, tmp_path):
    def send():
        while not (tmp_path / "ready").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=send)
    thread.start()
    assert supervise("wait 0", 5)[:2] == (75, ["first"])
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_commands_are_those_of_the_run(monkeypatch, tmp_path):
    seen = []

    def noted(first, again, place, restarts):
        text = Path(first[2]).read_text() if first[1] == "--config" else ""
        seen.append((first, again, place, restarts, text))
        return 0

    monkeypatch.setattr(supervisor, "supervise", noted)
    where = ["--storage", str(tmp_path)]
    assert (
        run_command(["train", "--config", "smoke", "--name", "n", "--restarts", "3", "--train.wd", "0.5", *where]) == 0
    )
    first, again, place, restarts, text = seen[0]
    assert first[0] == "train" and first[3:] == ["--name", "n"] and "wd: 0.5" in text
    assert again == ["train", "--resume", "n", *where] and (place, restarts) == (str(tmp_path / "n"), 3)
    (tmp_path / "n").mkdir()
    (tmp_path / "n" / "config.yaml").write_text(text)
    assert runs.find("n", str(tmp_path)).recipe.train.wd == 0.5
    assert run_command(["train", "--resume", "n", "--restarts", "2", "--num-workers", "2", *where]) == 0
    assert seen[1][0] == seen[1][1] == ["train", "--resume", "n", *where, "--num-workers", "2"]
