"""Training as a user types it, stopped by a signal, killed under Ray, resumed: the bits of a run that nothing disturbed."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from group import run_group, trace

from raytrain.config import load_recipe

pytestmark = pytest.mark.usefixtures("no_cluster", "hangups")
PROGRAM = [sys.executable, "-c", "from raytrain.cli.main import main; main()"]


@pytest.fixture(scope="module")
def recipe(dataset):
    """Long enough to be met in the middle: 6 epochs of 16 steps, which at 128 px take a second; a signal needs half of it."""
    train = {"batch_size": 8, "threads": 1, "save_every_s": 0.5, "ema": 0.9}
    smoke = load_recipe("smoke", {"dataset": dataset.path, "train": train, "num_workers": 2})
    longer = {"size": 128, "epochs": 3}
    return smoke.model_copy(
        update={"stages": tuple(s.model_copy(update=longer) for s in smoke.stages[:2])}
    )


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    run_group(recipe, run, 2, record=False)
    return trace(run)


class Terminal:
    """A command in a terminal of its own, as its session's leader; its lines are read as they come."""

    def __init__(self, *arguments):
        self.pid, self.screen = pty.fork()
        if self.pid == 0:
            os.execv(PROGRAM[0], [*PROGRAM, *map(str, arguments)])
        self.text = ""

    def wait_for(self, words):
        """Reads up to these words."""
        while words not in self.text:
            self.text += os.read(self.screen, 65536).decode(errors="replace")

    def close(self):
        """Closes the terminal: every process in it gets SIGHUP, and writing fails. Returns the exit code."""
        os.close(self.screen)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


class Command:
    """A command of raytrain in a process of its own; its lines are read as they come."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen(
            [*PROGRAM, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines = []

    def wait_for(self, words):
        """Reads lines up to the first with these words."""
        for line in self.process.stdout:
            self.lines.append(line)
            if words in line:
                return
        raise AssertionError(f"no line with {words!r}: {''.join(self.lines)}")

    def end(self):
        """Reads to the end. Returns the exit code."""
        self.lines += self.process.stdout.readlines()
        return self.process.wait()

    @property
    def text(self):
        return "".join(self.lines)

    def worker(self):
        """A process of the worker group."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return next(p for p in children if "TrainWorker" in " ".join(p.cmdline()))


@pytest.mark.slow
def test_a_signal_and_then_the_death_of_a_worker_cost_no_bit(recipe, whole, tmp_path):
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    where = ["--storage", tmp_path]
    command = Command("train", "--config", tmp_path / "recipe.yaml", "--name", "run", *where)
    command.wait_for("first step of")
    sent = time.time()
    command.process.send_signal(signal.SIGTERM)
    assert command.end() == 75, command.text
    assert (
        "SIGTERM: a checkpoint follows" in command.text
        and "raytrain train --resume run" in command.text
    )
    run = tmp_path / "run"
    failure = json.loads((run / "failure.json").read_text())
    assert failure["exit_code"] == 75
    kept = failure["message"].split(" kept in ")[1].splitlines()[0]
    assert os.stat(f"{kept}/MANIFEST.json").st_mtime > sent
    command = Command("train", "--resume", "run", *where)
    command.wait_for("resuming ")
    command.wait_for("epoch 2/3")
    os.kill(command.worker().pid, signal.SIGKILL)
    assert command.end() == 0, command.text
    assert "the workers start again" in command.text and command.text.count("resuming ") == 2
    assert trace(run) == whole
    assert not (run / "failure.json").exists()


@pytest.mark.slow
def test_a_closed_terminal_is_a_stop_with_a_checkpoint(recipe, tmp_path):
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    where = ["--storage", tmp_path]
    terminal = Terminal("train", "--config", tmp_path / "recipe.yaml", "--name", "run", *where)
    terminal.wait_for("first step of")
    sent = time.time()
    assert terminal.close() == 75, terminal.text
    said = json.loads((tmp_path / "run" / "failure.json").read_text())
    assert (
        said["exit_code"] == 75 and "stopped by SIGHUP, with everything kept in " in said["message"]
    )
    kept = said["message"].split(" kept in ")[1].splitlines()[0]
    assert os.stat(f"{kept}/MANIFEST.json").st_mtime > sent


@pytest.mark.slow
def test_a_terminal_that_is_closed_before_the_first_step_ends_the_command(recipe, tmp_path):
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    terminal = Terminal(
        "train", "--config", tmp_path / "recipe.yaml", "--name", "run", "--storage", tmp_path
    )
    terminal.wait_for("starting 2 CPU workers")
    assert terminal.close() == 129, terminal.text
    said = json.loads((tmp_path / "run" / "failure.json").read_text())
    assert said["exit_code"] == 129 and "stopped by SIGHUP before its first step" in said["message"]
    assert not (tmp_path / "run" / "checkpoints").exists() or not os.listdir(
        tmp_path / "run" / "checkpoints"
    )


@pytest.mark.slow
def test_a_run_whose_supervisor_is_killed_ends_with_a_checkpoint(recipe, tmp_path):
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    arguments = [
        "--config",
        tmp_path / "recipe.yaml",
        "--name",
        "run",
        "--storage",
        tmp_path,
        "--restarts",
        "2",
    ]
    command = Command("train", *arguments)
    command.wait_for("first step of")
    os.kill(command.process.pid, signal.SIGKILL)
    command.end()  # the child holds the other end of the pipe
    said = json.loads((tmp_path / "run" / "failure.json").read_text())
    assert said["exit_code"] == 75 and "stopped by SIGTERM" in said["message"], command.text
    # What was killed could not remove the recipe that it had written for its child.
    for folder in Path(tempfile.gettempdir()).glob("raytrain-*"):
        shutil.rmtree(folder)


@pytest.mark.slow
def test_a_signal_in_the_range_test_keeps_the_stage_before(recipe, tmp_path):
    auto = recipe.model_copy(update={"lr": "auto"})
    (tmp_path / "recipe.yaml").write_text(auto.to_yaml())
    where = ["--storage", tmp_path]
    command = Command("train", "--config", tmp_path / "recipe.yaml", "--name", "run", *where)
    command.wait_for("tiles: in")
    time.sleep(3)
    command.process.send_signal(signal.SIGTERM)
    assert command.end() == 143, command.text
    assert "before its first step" in command.text and "range test" not in command.text
    command = Command("train", "--resume", "run", *where)
    command.wait_for("128 px frozen    epoch 3/3")
    time.sleep(1)
    command.process.send_signal(signal.SIGTERM)
    assert command.end() == 75, command.text
    assert "stage 2" not in command.text and "kept in" in command.text
    command = Command("train", "--resume", "run", *where)
    assert command.end() == 0, command.text


@pytest.mark.slow
def test_the_supervisor_finishes_a_run_whose_driver_is_killed(recipe, whole, tmp_path):
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    arguments = [
        "--config",
        tmp_path / "recipe.yaml",
        "--name",
        "run",
        "--storage",
        tmp_path,
        "--restarts",
        "2",
    ]
    command = Command("train", *arguments)
    for _ in range(2):
        command.wait_for("first step of")
        os.kill(psutil.Process(command.process.pid).children()[0].pid, signal.SIGKILL)
    assert command.end() == 0, command.text
    assert "restart 2 of 2" in command.text
    assert trace(tmp_path / "run") == whole


@pytest.mark.slow
def test_ctrl_c_before_the_first_step_ends_the_command(recipe, tmp_path):
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    command = Command(
        "train", "--config", tmp_path / "recipe.yaml", "--name", "run", "--storage", tmp_path
    )
    command.wait_for("starting 2 CPU workers")
    time.sleep(3)
    command.process.send_signal(signal.SIGINT)
    assert command.end() == 130, command.text
    assert (
        "stopped from the keyboard before its first step" in command.text
        and "Traceback" not in command.text
    )
    assert "next: raytrain train --resume run" in command.text
