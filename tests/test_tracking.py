"""Runs in MLflow: a file of SQLite is written by training and read back with MLflow's own client."""

import json
import os
import queue
import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import mlflow
import pytest
import ray.train
import ray.train.torch

from raytrain import tracking
from raytrain.cli.main import run_command
from raytrain.config import load_recipe
from raytrain.distributed.train import train_worker
from raytrain.errors import ConfigError, ResourceError

EPOCH = {"stage": 2, "epoch": 1, "f2": 0.5, "valid_loss": 0.3, "checkpoint": "somewhere"}


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A database with MLflow's tables, which take it seconds to make."""
    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def address(empty, tmp_path):
    shutil.copy(empty, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def recipe(address):
    return load_recipe("smoke", {"mlflow": address})


@pytest.fixture
def run(tmp_path):
    path = tmp_path / "runs" / "first"
    path.mkdir(parents=True)
    return str(path)


def found(address, run):
    """(MLflow's client, its record of a run directory)."""
    client = mlflow.MlflowClient(tracking_uri=address)
    with open(f"{run}/mlflow.json") as file:
        content = json.load(file)
    assert content["uri"] == address
    return client, client.get_run(content["run_id"])


def steps(client, record, metric):
    """{step: value} of a metric."""
    return {m.step: m.value for m in client.get_metric_history(record.info.run_id, metric)}


# Through the commands


def test_a_run_is_recorded_with_its_settings_and_its_end(
    in_this_process, dataset, tmp_path, address
):
    where = ["--dataset", dataset.path, "--storage", str(tmp_path / "runs"), "--name", "first"]
    words = ["train", "--config", "smoke", "--stages", "1", *where, "--mlflow", address]
    assert run_command(words) == 0
    client, record = found(address, tmp_path / "runs" / "first")
    assert client.get_experiment(record.info.experiment_id).name == "raytrain"
    assert (record.info.run_name, record.info.status) == ("first", "FINISHED")
    settings = record.data.params
    assert settings["model.arch"] and settings["stages.1.size"]
    assert settings["dataset"] == dataset.path
    assert record.data.tags["raytrain.run"] == str(tmp_path / "runs" / "first")
    assert len(record.data.tags["raytrain.source"]) > 10


def test_the_worker_of_rank_0_sends_the_metrics_of_each_epoch(
    cluster, dataset, tmp_path, address, run
):
    given = {"dataset": dataset.path, "storage": str(tmp_path), "mlflow": address, "select": "1"}
    recipe = load_recipe("smoke", given | {"train": {"batch_size": 32}})
    tracking.begin(run, recipe)
    trainer = ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config={
            "recipe": recipe.model_dump(mode="json"),
            "run": run,
            "mailbox": None,
        },
        scaling_config=ray.train.ScalingConfig(num_workers=0),
    )
    trained = trainer.fit().return_value
    client, record = found(address, run)
    epochs = recipe.stages[0].epochs
    assert steps(client, record, "f2")[epochs] == trained["f2"]
    assert list(steps(client, record, "valid_loss")) == list(range(1, epochs + 1))
    assert record.data.metrics["images_per_s"] > 0


def test_a_server_that_is_away_ends_no_run_that_was_begun(
    in_this_process, dataset, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    where = ["--dataset", dataset.path, "--storage", str(tmp_path / "runs"), "--name", "first"]
    words = ["train", "--config", "smoke", "--stages", "1", *where, "--resume", "auto"]
    nowhere = ["--mlflow", "http://127.0.0.1:9"]
    assert run_command([*words, *nowhere]) == 5
    assert "MLflow does not answer" in capsys.readouterr().err
    assert run_command(words) == 0
    # Complete, so nothing is trained.
    assert run_command([*words, *nowhere]) == 0


# Begun, gone on with, ended


def test_a_resumed_run_goes_on_in_the_same_record(recipe, address, run):
    tracking.begin(run, recipe)
    tracking.end(run, recipe, tracking.STOPPED)
    _, before = found(address, run)
    assert before.info.status == "KILLED"
    tracking.begin(run, recipe)
    _, after = found(address, run)
    assert (after.info.run_id, after.info.status) == (before.info.run_id, "RUNNING")


def test_another_address_gets_a_record_of_its_own(recipe, empty, run, tmp_path):
    tracking.begin(run, recipe)
    shutil.copy(empty, tmp_path / "other.db")
    other = f"sqlite:///{tmp_path}/other.db"
    tracking.begin(run, recipe.model_copy(update={"mlflow": other}))
    client, _ = found(other, run)
    assert client.get_experiment_by_name("raytrain") is not None


def test_the_step_of_an_epoch_counts_the_stages_before(recipe, address, run):
    tracking.begin(run, recipe)
    with tracking.Epochs(run, recipe) as epochs:
        epochs.report(EPOCH)
    client, record = found(address, run)
    assert steps(client, record, "f2") == {recipe.stages[0].epochs + 1: 0.5}
    assert "checkpoint" not in record.data.metrics and "stage" not in record.data.metrics


def refused(patch, name):
    """A function of MLflow's client that fails, and an event for each of its calls."""
    calls = queue.SimpleQueue()

    def refuse(self, *args, **kwargs):
        calls.put(name)
        raise OSError("the server is away\nand more")

    patch.setattr(mlflow.MlflowClient, name, refuse)
    return calls


def test_an_epoch_that_was_refused_is_sent_with_the_next(recipe, address, run, monkeypatch, logged):
    tracking.begin(run, recipe)
    with tracking.Epochs(run, recipe) as epochs:
        with monkeypatch.context() as patch:
            calls = refused(patch, "log_batch")
            epochs.report(EPOCH)
            calls.get(timeout=20)
            epochs.report(EPOCH | {"epoch": 2})
            calls.get(timeout=20)
        epochs.report(EPOCH | {"epoch": 3})
    first = recipe.stages[0].epochs + 1
    told = [line for line in logged if "got no metrics" in line]
    assert told == [
        f"MLflow got no metrics of epoch {first}: the server is away; "
        "training goes on, and they are sent after a later epoch"
    ]
    client, record = found(address, run)
    assert sorted(steps(client, record, "f2")) == [first, first + 1, first + 2]


def test_epochs_that_never_arrived_are_counted_at_the_end(recipe, run, monkeypatch, logged):
    tracking.begin(run, recipe)
    refused(monkeypatch, "log_batch")
    with tracking.Epochs(run, recipe) as epochs:
        epochs.report(EPOCH)
        epochs.report(EPOCH | {"epoch": 2})
    assert "MLflow lacks the metrics of 2 epochs; history.csv has them" in logged


def test_training_does_not_wait_for_mlflow(recipe, run, monkeypatch, logged):
    tracking.begin(run, recipe)
    monkeypatch.setattr(tracking, "LAST_WAIT_S", 0.1)
    hangs = threading.Event()
    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", lambda *a, **k: hangs.wait(60))
    with tracking.Epochs(run, recipe) as epochs:
        epochs.report(EPOCH)
        while not epochs.waiting:
            time.sleep(0.01)
    assert "MLflow lacks the metrics of 1 epoch; history.csv has them" in logged
    hangs.set()


def test_what_mlflow_refuses_ends_no_run(recipe, run, monkeypatch, logged):
    refused(monkeypatch, "get_experiment_by_name")
    tracking.begin(run, recipe)
    with tracking.Epochs(run, recipe) as epochs:
        epochs.report(EPOCH)
    tracking.end(run, recipe, tracking.FINISHED)
    assert len(logged) == 1 and "does not record this run: the server is away" in logged[0]


def test_settings_that_are_refused_leave_no_second_record(
    recipe, address, run, monkeypatch, logged
):
    with monkeypatch.context() as patch:
        refused(patch, "log_batch")
        tracking.begin(run, recipe)
    assert any("has no settings of this run" in line for line in logged)
    _, before = found(address, run)
    tracking.begin(run, recipe)
    client, after = found(address, run)
    assert after.info.run_id == before.info.run_id
    assert len(client.search_runs([after.info.experiment_id])) == 1


def test_two_runs_that_begin_at_once_share_the_experiment(recipe, address, tmp_path):
    paths = [str(tmp_path / "runs" / name) for name in ("one", "two", "three")]
    for path in paths:
        os.makedirs(path)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda path: tracking.begin(path, recipe), paths))
    records = [found(address, path)[1] for path in paths]
    assert len({record.info.experiment_id for record in records}) == 1


def test_a_search_is_not_recorded_and_says_so(recipe, logged):
    assert tracking.unrecorded(recipe, "a search").mlflow is None
    assert logged == ["a search is not recorded in MLflow, only runs of raytrain train are"]


def test_without_an_address_nothing_is_written(run, tmp_path):
    recipe = load_recipe("smoke", {})
    tracking.begin(run, recipe)
    tracking.end(run, recipe, tracking.FINISHED)
    assert list((tmp_path / "runs" / "first").iterdir()) == []


# Before anything starts


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("localhost:5000", "is no address of MLflow"),
        ("file:///data/mlruns", "is no address of MLflow"),
        ("sqlite:///mlflow.db", "is a relative path"),
        ("http://me:secret@host:5000", "holds a name or a password for host"),
        ("http://secret@host:5000", "holds a name or a password for host"),
        ("http://[::1", "is no address of MLflow"),
    ],
)
def test_wrong_addresses_are_refused(given, said):
    with pytest.raises(ConfigError, match=said) as caught:
        tracking.check(given)
    assert "secret" not in str(caught.value)


def test_a_server_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ResourceError, match=r"MLflow does not answer at http://127\.0\.0\.1:9"):
        tracking.check("http://127.0.0.1:9")


def test_a_file_that_cannot_be_written_is_named_before_mlflow_tries(tmp_path, monkeypatch):
    # It alone would try for 101 s.
    monkeypatch.setattr(mlflow, "MlflowClient", None)
    with pytest.raises(ResourceError, match="unable to open database file"):
        tracking.check(f"sqlite:///{tmp_path}/nowhere/mlflow.db")


def test_every_machine_has_to_reach_the_folder_of_a_file():
    assert tracking.folder("sqlite:////data/runs/mlflow.db") == "/data/runs"
    assert tracking.folder("http://host:5000") is None and tracking.folder(None) is None


def test_a_missing_package_is_named(monkeypatch, address):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match="needs a package that is not installed: mlflow"):
        tracking.check(address)
