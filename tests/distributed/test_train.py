"""Training through Ray: the worker function in local mode, then real groups of two."""

import csv
import json
import shutil
import sys
import time
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import ray
import ray.cloudpickle
import ray.train
import ray.train.torch
from batches import Batch, observed
from odd_images import four_bands

from raytrain import runs
from raytrain.checkpoints import reading, writing
from raytrain.cli.main import run_command
from raytrain.config import load_recipe
from raytrain.distributed import train as train_module
from raytrain.distributed.train import train, train_worker
from raytrain.errors import DivergedError
from raytrain.evaluation import metrics, predictions
from raytrain.training.loop import fit
from raytrain.training.services import Hooks
from raytrain.worker import Worker

# Else every command would start a Ray of its own, where a module before this one has stopped the shared one.
pytestmark = pytest.mark.usefixtures("cluster")


def recipe(dataset, storage, **changes):
    base = {"dataset": dataset.path, "storage": str(storage), "train": {"batch_size": 32}}
    return load_recipe("smoke", base | changes)


def test_the_real_worker_function_runs_in_local_mode(dataset, tmp_path):
    config = {
        "recipe": recipe(dataset, tmp_path, select="1").model_dump(mode="json"),
        "run": str(tmp_path / "run"),
        "mailbox": None,
    }
    trainer = ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(num_workers=0),
    )
    result = trainer.fit()
    assert result.return_value["stage"] == 1 and 0 < result.metrics["f2"] <= 1
    assert reading.load(result.metrics["checkpoint"]).position == (1, 1, 0)


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    """`raytrain train` with two workers through all four stages: (exit code, run directory)."""
    storage = tmp_path_factory.mktemp("runs")
    code = run_command(
        [
            "train",
            "--config",
            "smoke",
            "--dataset",
            dataset.path,
            "--storage",
            str(storage),
            "--name",
            "two",
            "--num-workers",
            "2",
            "--train.batch-size",
            "32",
        ]
    )
    return code, storage / "two"


def test_two_workers_leave_a_whole_run_directory(trained):
    code, run = trained
    assert code == 0
    names = {
        "config.yaml",
        "env.json",
        "history.csv",
        "metrics.jsonl",
        "predictions.parquet",
        "thresholds.json",
        "metrics.json",
        "per_label.csv",
        "report.html",
        "model_card.md",
        "checkpoints",
        "tensorboard",
    }
    assert names <= {p.name for p in run.iterdir()}
    env = json.loads((run / "env.json").read_text())
    assert env["synthetic"] is True and env["versions"]["ray"].startswith("2.")
    assert reading.load(str(run / "checkpoints" / "last")).meta["world"] == 2


def test_loop_predictions_file_and_predict_agree_on_f2(trained, dataset, tmp_path):
    _, run = trained
    row = list(csv.DictReader((run / "history.csv").open()))[-1]
    kept = predictions.read(str(run / "predictions.parquet"))
    assert (
        run_command(
            [
                "predict",
                "--checkpoint",
                str(run),
                "--dataset",
                dataset.path,
                "--out",
                str(tmp_path / "p.parquet"),
            ]
        )
        == 0
    )
    assert run_command(["evaluate", str(tmp_path / "p.parquet"), "--out", str(tmp_path / "e")]) == 0
    judged = json.loads((tmp_path / "e" / "metrics.json").read_text())["f2"]
    assert metrics.f2(kept.logits, kept.target) == pytest.approx(float(row["f2"]), abs=1e-6)
    assert judged == pytest.approx(float(row["f2"]), abs=1e-6)
    again = predictions.read(str(tmp_path / "p.parquet"))
    order = [again.names.index(name) for name in kept.names]
    np.testing.assert_allclose(again.logits[order], kept.logits, atol=2e-5)


def test_runs_are_listed_shown_and_reported(trained, capsys):
    _, run = trained
    where = ["--storage", str(run.parent)]
    assert run_command(["runs", "list", *where]) == 0
    assert run_command(["runs", "show", "two", *where]) == 0
    printed = capsys.readouterr().out
    assert "two  best F2" in printed and "stage-2-64" in printed
    (run / "report.html").unlink()
    assert run_command(["runs", "report", "two", *where]) == 0
    assert (run / "report.html").exists()


@pytest.mark.usefixtures("in_this_process")
def test_a_run_starts_from_a_stage_of_another(trained, dataset, tmp_path):
    _, run = trained
    changes = {"init_from": "two:stage-2-32", "select": "3"}
    done = train(recipe(dataset, run.parent, **changes), name="from-two")
    meta = reading.load(str(run.parent / "from-two" / "checkpoints" / "stage-1-64")).meta
    assert meta["parent"].endswith("two/checkpoints/stage-2-32") and done.metrics["stage"] == 3


@pytest.mark.usefixtures("in_this_process")
def test_a_run_goes_on_without_the_run_it_started_from(trained, dataset, tmp_path):
    _, run = trained
    parent = str(tmp_path / "parent")
    shutil.copytree(run / "checkpoints" / "stage-1-32", parent)
    settings = recipe(dataset, tmp_path, init_from=parent, select="2")
    child = runs.create(settings, "child", dataset)
    fit(settings, dataset, child.path, Worker(), Hooks())
    shutil.rmtree(parent)
    # A crash between the last epoch of a stage and its named checkpoint: the same command writes it.
    shutil.rmtree(tmp_path / "child" / "checkpoints" / "stage-2-32")
    assert run_command(["train", "--resume", "child", "--storage", str(tmp_path)]) == 0
    ends = [
        reading.load(str(tmp_path / "child" / "checkpoints" / name))
        for name in ("last", "stage-2-32")
    ]
    assert ends[0].files["model.safetensors"] == ends[1].files["model.safetensors"]


def test_a_damaged_shard_stops_predict_with_a_sentence(trained, dataset, tmp_path, capsys):
    _, run = trained
    copy = tmp_path / "copy"
    shutil.copytree(dataset.path, copy)
    for shard in (copy / "shards").iterdir():
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
    arguments = [
        "predict",
        "--checkpoint",
        str(run),
        "--dataset",
        str(copy),
        "--out",
        str(tmp_path / "p.parquet"),
    ]
    assert run_command(arguments) == 3
    message = capsys.readouterr().err
    assert (
        "Traceback" not in message and "next: " in message and not (tmp_path / "p.parquet").exists()
    )
    # The failed pool gives its CPUs back: the next command in this process could not start its workers.
    began = time.monotonic()
    while ray.available_resources().get("CPU") != 2 and time.monotonic() - began < 30:
        time.sleep(0.2)
    assert ray.available_resources().get("CPU") == 2


def bomb(rank: int, batch: Batch) -> None:
    """Poisons the targets of the second stage on one rank only."""
    if batch.stage == 2 and batch.part == "train" and rank == 1:
        batch.tensors["target"].fill_(float("nan"))


def slow_storage(rank: int, batch: Batch) -> None:
    """Makes each checkpoint of the worker take five seconds."""
    if getattr(writing, "quick_write", None) is None:
        writing.quick_write = writing.write
        writing.write = lambda *given: (time.sleep(5), writing.quick_write(*given))


@pytest.mark.slow
def test_a_checkpoint_that_takes_longer_than_a_stall_is_waited_for(
    dataset, tmp_path, logged, monkeypatch
):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    settings = recipe(dataset, tmp_path, num_workers=2, select="1-2")
    settings = settings.model_copy(
        update={"train": settings.train.model_copy(update={"stall_s": 1.0})}
    )
    monkeypatch.setattr(
        train_module, "train_worker", observed(train_module.train_worker, slow_storage)
    )
    train(settings, name="slow")
    assert any("training waits for a checkpoint to be written" in line for line in logged), logged
    assert not any("start again" in line or "begun no batch" in line for line in logged), logged


@pytest.mark.slow
def test_a_failed_run_says_its_own_error_and_resumes_from_its_last_epoch(
    dataset, tmp_path, capsys, logged, monkeypatch
):
    # Workers cannot import this file: the bomb travels by value.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    settings = recipe(dataset, tmp_path, num_workers=2, select="1-2")
    with monkeypatch.context() as patch, pytest.raises(DivergedError, match="stage 2 epoch 1"):
        patch.setattr(train_module, "train_worker", observed(train_module.train_worker, bomb))
        train(settings, name="cut")
    # What would come again is not started again.
    assert (
        not any("start again" in line for line in logged)
        and sum("new run" in line for line in logged) == 1
    )
    run = runs.find("cut", str(tmp_path))
    assert json.loads((tmp_path / "cut" / "failure.json").read_text())["exit_code"] == 6
    assert run.checkpoints == ["best", "last", "stage-1-32"]
    assert run_command(["train", "--resume", "cut", "--storage", str(tmp_path)]) == 0
    assert "resuming after stage 1 epoch 1" in capsys.readouterr().out
    assert not (tmp_path / "cut" / "failure.json").exists()
    assert [row["stage"] for row in csv.DictReader((tmp_path / "cut" / "history.csv").open())] == [
        "1",
        "2",
    ]


def test_resume_refuses_another_configuration(trained, capsys):
    _, run = trained
    where = ["--storage", str(run.parent)]
    assert run_command(["train", "--resume", "two", "--train.wd", "0.5", *where]) == 2
    assert run_command(["train", "--resume", "two", "--config", "smoke", *where]) == 2
    assert "continues that run with its own configuration" in capsys.readouterr().err


def test_a_name_that_is_taken_is_refused(trained, dataset, capsys):
    _, run = trained
    arguments = [
        "train",
        "--config",
        "smoke",
        "--dataset",
        dataset.path,
        "--storage",
        str(run.parent),
        "--name",
        "two",
    ]
    assert run_command(arguments) == 2
    assert "--resume two" in capsys.readouterr().err


def test_folders_of_tiles_become_a_submission(trained, tiles, tmp_path, capsys):
    _, run = trained
    folders = [tmp_path / "test-a", tmp_path / "test-b"]
    for i, folder in enumerate(folders):
        folder.mkdir()
        for source in sorted(tiles[0].iterdir())[i * 4 : i * 4 + 4]:
            (folder / source.name).write_bytes(source.read_bytes())
    (folders[0] / "broken.jpg").write_bytes(b"x" * 50)
    out, where = str(tmp_path / "test.parquet"), ["--storage", str(run.parent)]
    images = [argument for folder in folders for argument in ("--images", str(folder))]
    assert (
        run_command(["predict", "--checkpoint", "two", *images, "--out", out, "--tta", *where]) == 0
    )
    assert "left out: broken (not-an-image: " in capsys.readouterr().out
    sample = tmp_path / "sample.csv"
    names = [f"synthetic_{i:06}" for i in (5, 1, 0, 2, 3, 4, 7, 6)]
    sample.write_text("image_name,tags\n" + "".join(f"{name},primary\n" for name in names))
    submit = ["submission", out, "--out", str(tmp_path / "s.csv"), "--sample", str(sample)]
    assert run_command([*submit, "--thresholds", str(run / "thresholds.json")]) == 0
    table = pd.read_csv(tmp_path / "s.csv")
    assert table["image_name"].tolist() == names and table["tags"].notna().all()
    sample.write_text("image_name,tags\nsynthetic_000099,primary\n")
    assert run_command(submit) == 3
    assert "synthetic_000099" in capsys.readouterr().err


def test_tiff_tiles_are_predicted_with_their_bands_and_an_evaluation_without_labels_is_refused(
    trained, tiles, tmp_path
):
    _, run = trained
    folder = tmp_path / "some"
    folder.mkdir()
    for source in sorted(tiles[0].iterdir())[:3]:
        (folder / source.name).write_bytes(source.read_bytes())
    (folder / "bands.tif").write_bytes(four_bands())
    out = str(tmp_path / "p.parquet")
    command = ["predict", "--checkpoint", str(run), "--images", str(folder), "--out", out]
    assert run_command(command) == 0 and len(predictions.read(out).names) == 3
    assert run_command([*command, "--bands", "3,2,1", "--scale", "0,1000"]) == 0
    assert "bands" in predictions.read(out).names and len(predictions.read(out).names) == 4
    assert run_command(["evaluate", out, "--out", str(tmp_path / "e")]) == 3
    assert not (tmp_path / "e").exists()


def test_predictions_of_the_symmetries_are_their_mean(trained, dataset):
    from raytrain.training import trained_model

    _, run = trained
    path = str(run / "checkpoints" / "last")
    tiles = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    turned = np.rot90(tiles, axes=(1, 2)).copy()
    model = trained_model.load(path, tta=True)
    np.testing.assert_allclose(
        model.logits_of_tiles(tiles), model.logits_of_tiles(turned), atol=1e-4
    )
    plain = trained_model.load(path)
    assert not np.allclose(plain.logits_of_tiles(tiles), plain.logits_of_tiles(turned), atol=1e-4)


@pytest.mark.slow
def test_the_range_test_of_two_workers_leaves_curve_suggestions_and_picture(
    dataset, tmp_path, capsys
):
    arguments = [
        "lr-find",
        "--config",
        "smoke",
        "--dataset",
        dataset.path,
        "--storage",
        str(tmp_path),
        "--name",
        "found",
    ]
    assert run_command([*arguments, "--num-workers", "2", "--train.batch-size", "32"]) == 0
    assert "stage-1-32: steepest" in capsys.readouterr().out
    folder = tmp_path / "found" / "lr-find"
    assert sorted(p.name for p in folder.iterdir()) == [
        "stage-1-32.csv",
        "stage-1-32.json",
        "stage-1-32.png",
    ]
    curve = pd.read_csv(folder / "stage-1-32.csv")
    assert list(curve.columns) == ["step", "lr", "loss", "smoothed"] and 30 < len(curve) <= 100
    found = json.loads((folder / "stage-1-32.json").read_text())
    # Where the loss rises is told only if it does.
    assert set(found) - {"rise/10"} == {"steepest", "valley", "minimum/10"}
    assert all(1e-8 < lr < 10 for lr in found.values())
    assert run_command(["runs", "list", "--storage", str(tmp_path)]) == 0
    assert "found" not in capsys.readouterr().out
    assert run_command(arguments) == 2
    assert 'already a run "found"' in capsys.readouterr().err


def test_ray_which_shows_and_exports_settings_is_told_no_keys(monkeypatch):
    told = {}

    class Trainer:
        def __init__(self, function, **settings):
            told.update(settings)

        def fit(self):
            return SimpleNamespace(return_value="done")

        def _initialize_and_run_controller(self):
            raise AssertionError("nothing is started here")

    monkeypatch.setattr(ray.train.torch, "TorchTrainer", Trainer)
    monkeypatch.setattr(train_module, "use_gpu", lambda recipe: False)
    monkeypatch.setattr(train_module, "mailbox", lambda: nullcontext())
    path = (
        "s3://KEY:S3CRET@bucket/runs/a?scheme=http&endpoint_override=127.0.0.1:1&region=us-east-1"
    )
    recipe = load_recipe("smoke", {"dataset": "s3://KEY:S3CRET@bucket/data"})
    assert train_module._group(train_module.train_worker, path, recipe) == "done"
    assert told["run_config"].storage_path == "bucket/runs/a/ray"
    assert told["run_config"].storage_filesystem.type_name == "s3" and "S3CRET" not in str(told)
