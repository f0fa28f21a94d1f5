"""`train --resume auto`: one command begins a run, goes on with it, and says that it is complete."""

import itertools
import json
import shutil

import pytest
from group import trace

from raytrain.cli.main import run_command
from raytrain.data.dataset import open_dataset
from raytrain.training import decision
from raytrain.training.loop import fit
from raytrain.training.services import Hooks
from raytrain.worker import Worker

GROUP = "raytrain.distributed.train._group"
pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture
def command(dataset, tmp_path):
    """The command of a run called first, whose storage is a folder of the test."""
    where = ["--dataset", dataset.path, "--storage", str(tmp_path / "runs")]
    small = ["--config", "smoke", "--stages", "1-2", "--train.threads", "1"]
    return ["train", *small, *where, "--name", "first", "--resume", "auto"]


@pytest.fixture
def stopped(monkeypatch):
    """A context in which a signal reaches the run after some of its steps."""

    def group(function, path, recipe, own=(), stop=None):
        asked = itertools.count()
        hooks = Hooks(stop=lambda: "SIGTERM" if next(asked) >= 3 else None)
        return fit(recipe, open_dataset(recipe.dataset), path, Worker(), hooks)

    with monkeypatch.context() as patch:
        patch.setattr(GROUP, group)
        patch.setattr(decision, "EVERY_S", 0.0)  # every step is a decision
        yield patch


def test_the_same_command_begins_goes_on_and_says_that_it_is_complete(
    command, stopped, tmp_path, monkeypatch, capsys
):
    run = tmp_path / "runs" / "first"
    assert run_command(command) == 75
    assert json.loads((run / "failure.json").read_text())["exit_code"] == 75
    stopped.undo()
    assert run_command(command) == 0
    assert "resuming " in capsys.readouterr().out and not (run / "failure.json").exists()
    env = json.loads((run / "env.json").read_text())
    [attempt] = env["later_attempts"]
    assert attempt["source"] == env["source"] and attempt["started"] >= env["started"]
    undisturbed = [word if word != "first" else "second" for word in command]
    assert run_command(undisturbed) == 0
    assert trace(run) == trace(run.parent / "second")

    monkeypatch.setattr(GROUP, None)  # nothing trains any more
    assert run_command(command) == 0
    said = capsys.readouterr().out
    assert "the run first is complete" in said and "report: " in said


def test_another_recipe_and_other_names_are_refused(command, stopped, tmp_path, capsys):
    assert run_command(command) == 75
    assert run_command([*command, "--train.wd", "0.5"]) == 2
    said = capsys.readouterr().err
    assert "the run first was begun with another recipe: train.wd" in said
    assert "raytrain train --resume first" in said
    assert run_command([word for word in command if word not in ("--name", "first")]) == 2
    assert "--resume auto is given without --name" in capsys.readouterr().err


def test_what_a_resumed_run_may_change_is_taken_from_the_command(command, stopped, tmp_path):
    assert run_command(command) == 75
    asked = []

    def group(function, path, recipe, own=(), stop=None):
        asked.append(recipe.train.save_every_s)
        raise KeyboardInterrupt

    stopped.setattr(GROUP, group)
    assert run_command([*command, "--train.save-every-s", "7"]) == 75
    assert asked == [7]


def test_a_range_becomes_one_number_and_another_mistake_is_a_sentence(
    command, stopped, tmp_path, capsys
):
    given = [*command, "--num-workers", "1:4"]
    assert run_command(given) == 75
    resumed = ["train", "--resume", str(tmp_path / "runs" / "first")]
    asked = []

    def group(function, path, recipe, own=(), stop=None):
        asked.append((recipe.num_workers, recipe.max_workers))
        raise KeyboardInterrupt

    stopped.setattr(GROUP, group)
    assert run_command([*resumed, "--num-workers", "1"]) == 75
    assert asked == [(1, None)]
    assert run_command([*resumed, "--set", "max_workers=1", "--num-workers", "2"]) == 2
    said = capsys.readouterr().err
    assert "max_workers = 1 is less than num_workers = 2" in said and "Traceback" not in said


def test_other_weights_to_start_from_are_another_recipe(command, stopped, capsys):
    assert run_command(command) == 75
    assert run_command([*command, "--model.weights", "imagenet"]) == 2
    assert "was begun with another recipe: model.weights" in capsys.readouterr().err


def test_the_checkpoint_that_a_run_began_with_is_compared_while_it_is_there(
    command, stopped, tmp_path, capsys
):
    assert run_command(command) == 75
    runs = tmp_path / "runs"
    second = [word if word != "first" else "second" for word in command]
    with_start = [*second, "--init-from", "first:step-00000004"]
    assert run_command(with_start) == 75
    assert run_command(second) == 2
    assert "was begun with another recipe: init_from" in capsys.readouterr().err
    stopped.undo()
    shutil.rmtree(runs / "first")
    assert run_command(with_start) == 0


def test_a_lock_is_outwaited_before_anything_is_written(command, monkeypatch, tmp_path):
    """A machine that died while the first command waited for room has left only the lock."""
    waited = []
    monkeypatch.setattr("raytrain.runlock.outwait", waited.append)
    monkeypatch.setattr(GROUP, None)
    assert run_command([*command, "--folds", "none"]) == 3
    assert run_command(["tune", *command[1:], "--space", str(tmp_path / "none.yaml")]) == 2
    assert waited == [str(tmp_path / "runs" / "first")] * 2
