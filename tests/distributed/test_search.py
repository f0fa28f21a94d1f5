"""Searches on a real Ray: stages trained once, signals and kills, and a winner that is a run."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import psutil
import pytest
import ray
import yaml
from searching import SPACE, Driver, command, files, resume, scores, table, trained

from raytrain import runs, storage
from raytrain.cli.main import run_command
from raytrain.config import load_recipe
from raytrain.distributed import search_resources, search_setup, trial
from raytrain.distributed.repeat import found_by
from raytrain.distributed.search_setup import Options
from raytrain.errors import ConfigError, DivergedError, MemoryExceededError, StorageError
from raytrain.evaluation import judgement, predictions
from raytrain.machine import Gpus
from raytrain.search.table import Kind
from raytrain.training import stages

SIGNALS = (signal.SIGINT, signal.SIGTERM)
OWN = ("--try", "train.wd=0.02", "--try", "stages=one stages.1.lr=0.01")


def sha(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def searched(dataset, tmp_path_factory):
    """A finished search of four trials, two of them the user's own; it stays as it is."""
    ray.shutdown()
    folder = tmp_path_factory.mktemp("searched")
    files(folder, dataset)
    driver = Driver(folder, command(folder, *OWN, "--num-samples", "4", "--reruns", "0"))
    assert driver.end(300) == 0, driver.text
    return folder, driver.text


def test_a_search_names_a_winner_and_says_how_far_it_is(searched):
    folder, text = searched
    rows = table(folder)
    kinds = [row["kind"] for row in rows]
    assert kinds == ["given", "tried", "tried", "drawn"]
    assert {row["state"] for row in rows} == {"complete"}
    assert "trial 0  stage 1 of 2  F2 (one threshold)" in text
    assert "of 4 trials have ended" in text and "next: raytrain train --config" in text
    assert rows[1]["values"] == {"train.wd": 0.02}


def test_no_stage_was_trained_twice(searched):
    folder, _ = searched
    rows = table(folder)
    keys = {key for row in rows for key in row["keys"]}
    assert set(trained(folder)) == keys
    for epochs in trained(folder).values():
        assert len(epochs) == len(set(epochs))
    by_trial = [part["trained"] for row in rows for part in row["parts"]]
    assert by_trial.count(True) <= len(keys)
    # No trial was cut while it wrote a checkpoint.
    assert not list(folder.rglob("*.partial"))


def test_a_stage_is_shared_by_lists_that_call_it_otherwise(searched):
    folder, _ = searched
    given, _, other, _ = table(folder)
    # It is called `given` in the recipe, and `only` in the list of the other trial.
    assert other["schedule"] == "one" and other["keys"] == given["keys"][:1]
    assert given["parts"][0]["trained"] != other["parts"][0]["trained"]
    assert given["parts"][0]["score"] == other["parts"][0]["score"]
    assert {row["names"][0] for row in table(folder)} == {"stage-1-32"}


def test_the_objective_is_what_evaluate_shows_to_the_last_digit(searched):
    folder, _ = searched
    for row in table(folder):
        file = folder / "runs/stages" / row["keys"][-1] / "predictions.parquet"
        judged = judgement.judge(predictions.read(str(file)))
        assert row["parts"][-1]["score"] == judged.scores["global"].value


def test_the_name_of_the_search_is_the_run_that_its_winner_would_leave(searched, capsys):
    folder, _ = searched
    storage_path = str(folder / "runs")
    best = load_recipe(str(folder / "runs/s/best.yaml"))
    assert run_command(["runs", "list", "--storage", storage_path]) == 0
    assert "s" in capsys.readouterr().out
    found = runs.find("s", storage_path)
    assert set(best.stage_names) | {"best", "last"} == set(found.checkpoints)
    assert best.stage_names[0] in ("given", "head", "only")
    events = {path.name for path in (folder / "runs/s/tensorboard").iterdir()}
    assert events == {f"trial-{row['number']}" for row in table(folder)}
    assert (folder / "runs/s/search.html").exists() and (folder / "runs/s/report.html").exists()
    rows = pd.read_csv(folder / "runs/s/trials.csv")
    assert len(rows) == len(table(folder)) and "train.wd" in rows
    assert run_command(["train", "--resume", "s", "--storage", storage_path]) == 2
    assert "raytrain tune --resume s" in capsys.readouterr().err


@pytest.mark.usefixtures("no_cluster")
def test_train_with_best_yaml_has_the_bits_of_the_winner(searched, tmp_path, in_this_process):
    folder, _ = searched
    best = str(folder / "runs/s/best.yaml")
    again = ["train", "--config", best, "--storage", str(tmp_path), "--name", "again"]
    assert run_command(again) == 0
    name = load_recipe(best).stage_names[-1]
    file = Path("checkpoints") / name / "model.safetensors"
    assert sha(tmp_path / "again" / file) == sha(folder / "runs/s" / file)


AGAIN = (*OWN, "--num-samples", "4", "--reruns", "0", "--resume", "auto")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--train.wd", "0.5"], "in another way: train.wd"),
        (["--search", "random"], "in another way: --search"),
        (["--try", "train.wd=0.03"], "in another way: --try"),
    ],
)
def test_another_command_under_the_name_of_a_search_is_refused(searched, flags, said, capsys):
    folder, _ = searched
    assert run_command([*command(folder), *AGAIN, *flags]) == 2
    error = capsys.readouterr().err
    assert said in error and "raytrain tune --resume s" in error


def test_a_search_without_a_name_does_not_go_on_by_itself(searched, capsys):
    folder, _ = searched
    assert run_command([*command(folder)[:-2], "--resume", "auto"]) == 2
    assert "--resume auto is given without --name" in capsys.readouterr().err


def test_the_same_command_finds_the_complete_search_and_needs_no_ray(searched, monkeypatch, capsys):
    folder, _ = searched
    monkeypatch.setattr("raytrain.distributed.search.session", None)
    assert run_command([*command(folder), *AGAIN]) == 0
    said = capsys.readouterr().out
    assert "the search s is complete" in said and "winner: trial" in said and "results: " in said


def test_a_search_of_more_trials_is_not_complete(searched):
    folder, _ = searched
    options = search_setup.read(str(folder / "runs/s")).options
    assert found_by(str(folder / "runs/s"), options) is not None
    assert found_by(str(folder / "runs/s"), replace(options, num_samples=5)) is None


@pytest.mark.slow
@pytest.mark.usefixtures("no_cluster")
def test_a_second_search_in_the_storage_trains_nothing_of_the_first(searched, tmp_path):
    folder, _ = searched
    before = trained(folder)
    again = [*command(folder)[:-1], "second", "--num-samples", "2", "--reruns", "2"]
    driver = Driver(folder, [*again, "--try", "train.wd=0.02"])
    assert driver.end(400) == 0, driver.text
    rows = json.loads((folder / "runs/second/trials.json").read_text())["trials"]
    for row in rows[:2]:
        assert not any(part["trained"] for part in row["parts"])
    # Both run again with two fresh seeds, the same ones; only that is trained.
    reruns = {(row["rerun_of"], row["seed"]) for row in rows[2:]}
    assert reruns == {(0, 4), (0, 5), (1, 4), (1, 5)}
    fresh = {key for row in rows[2:] for key in row["keys"]}
    assert trained(folder).keys() == before.keys() | fresh
    finals = json.loads((folder / "runs/second/finals.json").read_text())
    assert {standing["reruns"] for standing in finals["standings"]} == {2}


@pytest.mark.slow
@pytest.mark.usefixtures("no_cluster")
def test_signals_stop_a_search_with_everything_kept_and_it_goes_on(dataset, tmp_path):
    """SIGTERM while a stage is trained, and SIGINT in the next attempt."""
    files(tmp_path, dataset, epochs=200)
    driver = Driver(tmp_path, command(tmp_path, "--num-samples", "1", "--reruns", "0"))
    history = partial(_some_epoch, tmp_path)
    driver.wait_for(history)
    driver.send(signal.SIGTERM)
    assert driver.end() == 75, driver.text
    assert "raytrain tune --resume s" in driver.text and "Traceback" not in driver.text
    kept = len(max(trained(tmp_path).values(), key=len))
    driver = Driver(tmp_path, resume(tmp_path))
    driver.wait_for(lambda: len(max(trained(tmp_path).values(), key=len)) > kept)
    driver.send(signal.SIGINT)
    assert driver.end() == 75, driver.text
    for epochs in trained(tmp_path).values():
        assert len(epochs) == len(set(epochs))


def _some_epoch(folder):
    return any(folder.glob("runs/stages/*/history.csv"))


@pytest.mark.slow
@pytest.mark.usefixtures("no_cluster")
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize(
    "moment",
    [
        lambda driver, folder: "search " in driver.text,
        lambda driver, folder: any(folder.glob("runs/stages/*/lock.json")),
        lambda driver, folder: _some_epoch(folder),
        lambda driver, folder: "stage 1 of 2" in driver.text,
        lambda driver, folder: any(folder.glob("runs/stages/*/checkpoints/stage-2-32")),
    ],
    ids=["before a CPU", "a process begins", "in a stage", "between stages", "last checkpoint"],
)
def test_each_signal_at_each_moment(dataset, tmp_path, moment, number):
    files(tmp_path, dataset, epochs=5)
    driver = Driver(tmp_path, command(tmp_path, "--num-samples", "2", "--reruns", "0"))
    driver.wait_for(lambda: moment(driver, tmp_path))
    driver.send(number)
    assert driver.end() == 75, driver.text
    assert "Traceback" not in driver.text
    driver = Driver(tmp_path, resume(tmp_path))
    assert driver.end(300) == 0, driver.text


@pytest.mark.slow
@pytest.mark.usefixtures("no_cluster")
def test_three_kills_of_the_driver_and_one_of_a_trial_change_no_trial_and_no_score(
    dataset, tmp_path
):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    more = ["--num-samples", "5", "--reruns", "0", "--search", "random"]
    for folder in (whole, killed):
        folder.mkdir()
        files(folder, dataset, epochs=20)
    driver = Driver(whole, command(whole, *more))
    assert driver.end(300) == 0, driver.text
    driver = Driver(killed, command(killed, *more))
    for lines in (0, 1, 2):
        driver.wait_for(lambda lines=lines, driver=driver: driver.text.count("\ntrial") >= lines)
        driver.wait_for(partial(_some_epoch, killed))
        time.sleep(0.5)
        driver.send(signal.SIGKILL)
        driver.end()
        # What a killed driver cannot remove: Tune's own files.
        for left in Path(tempfile.gettempdir()).glob("raytrain-*"):
            shutil.rmtree(left)
        driver = Driver(killed, resume(killed))
    driver.wait_for(lambda: _kill_a_trial(driver.process))
    assert driver.end(300) == 0, driver.text
    assert scores(killed) == scores(whole)
    for epochs in trained(killed).values():
        assert len(epochs) == len(set(epochs))


def _processes(of, title):
    """The processes that a search has started and Ray calls so."""
    found = []
    for process in psutil.Process(of.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[:1] and process.cmdline()[0].startswith(f"ray::{title}"):
                found.append(process)
    return found


def _kill_a_trial(of):
    """Kills the process of a trial of a search. Returns whether there was one."""
    found = _processes(of, "ImplicitFunc")
    for process in found:
        process.kill()
    return bool(found)


@pytest.mark.slow
@pytest.mark.usefixtures("no_cluster")
def test_a_storage_that_fails_in_the_middle_loses_nothing(dataset, tmp_path):
    """As on a full disk, nothing can be written while a stage is trained; later it can be again."""
    files(tmp_path, dataset, epochs=60)
    driver = Driver(tmp_path, command(tmp_path, "--num-samples", "3", "--reruns", "0"))
    driver.wait_for(partial(_some_epoch, tmp_path))
    stages_there = tmp_path / "runs/stages"
    away = stages_there.rename(tmp_path / "away")
    stages_there.write_text("not a folder")
    assert driver.end() == 7, driver.text
    assert "Traceback" not in driver.text
    assert f"; then raytrain tune --resume s --storage {tmp_path / 'runs'}" in driver.text
    drawn = [(row["schedule"], row["values"]) for row in table(tmp_path)]
    assert {row["state"] for row in table(tmp_path)} == {"open"}
    stages_there.unlink()
    away.rename(stages_there)
    driver = Driver(tmp_path, resume(tmp_path))
    assert driver.end(300) == 0, driver.text
    rows = table(tmp_path)
    assert [(row["schedule"], row["values"]) for row in rows[: len(drawn)]] == drawn
    assert [row["state"] for row in rows] == ["complete"] * 3
    for epochs in trained(tmp_path).values():
        assert len(epochs) == len(set(epochs))


@pytest.mark.slow
@pytest.mark.usefixtures("no_cluster")
def test_two_searches_on_one_storage_train_no_stage_twice(dataset, tmp_path):
    files(tmp_path, dataset, epochs=10)
    more = ["--num-samples", "4", "--reruns", "0", "--search", "random"]
    first = Driver(tmp_path, command(tmp_path, *more))
    time.sleep(2)
    second = Driver(tmp_path, [*command(tmp_path)[:-1], "second", *more])
    assert first.end(400) == 0, first.text
    assert second.end(400) == 0, second.text
    for epochs in trained(tmp_path).values():
        assert len(epochs) == len(set(epochs))
    rows = json.loads((tmp_path / "runs/second/trials.json").read_text())["trials"]
    assert [row["state"] for row in rows] == ["complete"] * 4
    assert [row["keys"] for row in rows] == [row["keys"] for row in table(tmp_path)]


GROUPS = """
import sys, time, ray
ray.init(address="local", num_cpus=2, log_to_driver=False)
from raytrain.cli.main import run_command
code = run_command(sys.argv[1:])
from ray.util.state import list_actors, list_placement_groups
time.sleep(8)
alive = [actor.class_name for actor in list_actors(filters=[("state", "=", "ALIVE")])]
# Ray Data's own, which serves the whole cluster.
alive = [name for name in alive if name != "_AutoscalingCoordinatorActor"]
groups = [group.state for group in list_placement_groups() if group.state != "REMOVED"]
print("left", alive, groups, ray.available_resources().get("CPU"), code)
"""
# Ray Train's helper of a group that was killed before all of its workers ran stays, without a CPU.
LEFT_AT_START = ("left [] [] 2.0 0", "left ['PlacementGroupCleaner'] [] 2.0 0")


@pytest.mark.slow
@pytest.mark.usefixtures("no_cluster")
@pytest.mark.parametrize(
    ("moment", "left"),
    [
        (lambda driver, folder: _some_epoch(folder), LEFT_AT_START[:1]),
        (lambda driver, folder: _processes(driver.process, "RayTrainWorker"), LEFT_AT_START),
    ],
    ids=["its group trains", "its group starts"],
)
def test_worker_groups_leave_nothing_behind(dataset, tmp_path, moment, left):
    """Two workers a trial on two CPUs; the process of a trial is killed."""
    files(tmp_path, dataset, epochs=8)
    more = ["--num-samples", "3", "--reruns", "0", "--num-workers", "2"]
    driver = Driver(tmp_path, command(tmp_path, *more), GROUPS)
    driver.wait_for(lambda: moment(driver, tmp_path), 200)
    assert _kill_a_trial(driver.process)
    assert driver.end(500) == 0, driver.text
    assert any(line in driver.text for line in left), driver.text[-3000:]
    assert all(row["state"] in ("complete", "stopped") for row in table(tmp_path))


@pytest.fixture
def busy(cluster):
    """A cluster whose CPUs are held by somebody else."""

    class Holder:
        def ready(self):
            return True

    holder = ray.remote(num_cpus=2)(Holder).remote()
    try:
        ray.get(holder.ready.remote())
        yield
    finally:
        # Otherwise the tests after this one would wait for its CPUs.
        ray.kill(holder)


@pytest.mark.usefixtures("busy")
def test_a_search_that_finds_no_free_cpu_says_what_it_lacks_and_ends(
    dataset, tmp_path, monkeypatch, capsys
):
    """Nothing is lost, and the search goes on once the CPUs are free."""
    files(tmp_path, dataset)
    monkeypatch.setattr("raytrain.distributed.planner.PATIENCE_S", 3.0)
    code = run_command(command(tmp_path, "--num-samples", "1", "--reruns", "0"))
    assert code == 5
    message = capsys.readouterr().err
    # How many are free is what Ray has heard last, which may be old on a busy machine.
    assert "no trial could start within 3 seconds: it needs 1 CPU, and " in message
    assert "raytrain tune --resume s" in message and "Traceback" not in message
    assert [row["state"] for row in table(tmp_path)] == ["open"]


@pytest.mark.usefixtures("busy", "hangups")
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_before_its_first_trial_a_search_says_that_it_waits_and_a_signal_ends_it(
    dataset, tmp_path, monkeypatch, capsys, number
):
    """On a cluster the first question to a machine waits for a CPU, as a trial does."""
    files(tmp_path, dataset)
    monkeypatch.setattr("raytrain.distributed.environment.connects", lambda: True)
    monkeypatch.setattr(search_resources, "WAIT_TOLD_S", 2.0)
    words = search_resources.wait_in_words

    def words_then_signal(lacking):
        os.kill(os.getpid(), number)
        return words(lacking)

    monkeypatch.setattr(search_resources, "wait_in_words", words_then_signal)
    assert run_command(command(tmp_path, "--num-samples", "1")) == 128 + number
    said = "".join(capsys.readouterr())
    assert "no trial can start yet: it needs 1 CPU, and " in said
    assert "stopped " in said and "Traceback" not in said
    assert not (tmp_path / "runs/s").exists()


# A trial, without Ray


@pytest.fixture
def setup(dataset, tmp_path):
    files(tmp_path, dataset)
    recipe = load_recipe(str(tmp_path / "r.yaml"), {"storage": str(tmp_path / "runs")})
    from raytrain.distributed.search_resources import facts_here
    from raytrain.evaluation.objective import objective
    from raytrain.worker import Worker

    facts = facts_here(recipe, Worker())
    score = objective(None, dataset.task)
    return search_setup.Setup(
        recipe, SPACE, Options(num_samples=3, objective=score.key), score, facts, 64
    )


def chain_of(setup, dataset, function, reason=lambda: None):
    candidates = search_setup.candidates_of(setup, dataset)
    row = candidates.trial(0, Kind.GIVEN, candidates.space.given_draw())
    recipe = trial.Completion(dataset, setup.facts, setup.stored_size)(setup.recipe)
    plans = stages.plans(recipe, row.keys)
    return trial.Chain(plans, dataset, function, reason, setup.score.key)


def raising(error):
    def function(recipe, path):
        raise error

    return function


def test_a_trial_reports_a_divergence_and_ends(setup, dataset):
    reports = []
    chain_of(setup, dataset, raising(DivergedError("the loss is nan"))).train(reports.append)
    assert [(r["stage"], r["score"], r["state"]) for r in reports] == [(1, None, "diverged")]
    # The next trial with that stage finds the outcome.
    reports.clear()
    chain_of(setup, dataset, raising(AssertionError())).train(reports.append)
    assert [(r["state"], r["trained"]) for r in reports] == [("diverged", False)]


def test_a_trial_that_runs_out_of_memory_is_a_result_of_this_search_alone(setup, dataset):
    reports = []
    error = MemoryExceededError("too small for 64 tiles")
    chain_of(setup, dataset, raising(error)).train(reports.append)
    assert [(r["score"], r["state"]) for r in reports] == [(None, "out of memory")]
    assert not list(Path(setup.recipe.storage).glob("stages/*/outcome.json"))


def test_a_trial_that_begins_after_a_signal_trains_nothing(setup, dataset):
    chain = chain_of(setup, dataset, raising(AssertionError()), reason=lambda: "SIGTERM")
    with pytest.raises(stages.Stopped):
        chain.train(lambda report: None)


def test_errors_of_a_trial_survive_the_way_to_the_driver():
    error = StorageError("the disk is full", "nothing can be kept", "free some")
    found = trial.unpacked(trial.packed(error))
    assert type(found) is StorageError and str(found) == str(error)


def test_search_yaml_is_read_back_and_other_versions_are_refused(setup, tmp_path):
    directory = storage.join(setup.recipe.storage, "s")
    setup.write(directory)
    assert search_setup.read(directory) == setup
    path = Path(directory) / "search.yaml"
    content = yaml.safe_load(path.read_text())
    content["versions"]["torch"] = "1.0"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=r"torch 1\.0 is now"):
        search_setup.read(directory)


@pytest.mark.usefixtures("cluster")
def test_the_disk_is_counted_for_all_trials_before_the_start(
    dataset, tmp_path, monkeypatch, capsys
):
    files(tmp_path, dataset)
    monkeypatch.setattr("raytrain.distributed.search_checks.free_bytes", lambda path: 40_000_000)
    assert run_command(command(tmp_path, "--num-samples", "100")) == 7
    message = capsys.readouterr().err
    assert "108 trials of up to 2 stages, reruns among them and up to 2 at once" in message
    assert "trials fit" in message and not (tmp_path / "runs/s/search.yaml").exists()
    # What is advised fits.
    smaller = message.rpartition("; or ")[2].splitlines()[0].split()
    assert smaller[0] == "--num-samples" and smaller[2] == "--reruns"
    assert run_command(command(tmp_path, "--dry-run", *smaller)) == 0


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--use-gpu"], "GPUs are asked for, this machine has 0 GPUs"),
        (["--trial-gpus", "0.5"], "--trial-gpus 0.5 is asked for, and no GPUs are used"),
        (["--num-workers", "9"], "9 workers are asked for, there are 2 CPUs"),
        (["--trial-cpus", "3"], "a trial takes one worker of 3 CPU, this machine has 2 CPUs"),
    ],
)
def test_the_dry_run_refuses_what_no_trial_of_the_search_would_get(
    dataset, tmp_path, monkeypatch, capsys, flags, sentence
):
    """Before, flags for GPUs and workers were ignored, and the winner could not be trained."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1})
    monkeypatch.setattr("raytrain.machine.seen_gpus", lambda: Gpus(0, "no driver"))
    files(tmp_path, dataset)
    assert run_command(command(tmp_path, "--dry-run", *flags)) == 5
    assert sentence in capsys.readouterr().err


def test_the_dry_run_shows_the_first_trials_as_a_tree_with_their_cost(dataset, tmp_path, capsys):
    files(tmp_path, dataset)
    assert run_command(command(tmp_path, "--dry-run", "--num-samples", "6")) == 0
    out = capsys.readouterr().out
    assert "the given recipe" in out and "saved (the given recipe costs 1)" in out
    assert not (tmp_path / "runs/s").exists()
