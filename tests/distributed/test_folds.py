"""Cross-validation: one run per fold, joined predictions, and the same command after a death."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from raytrain.cli.main import run_command
from raytrain.config import Recipe
from raytrain.data.dataset import all_names, open_dataset
from raytrain.distributed import folds, supervisor
from raytrain.errors import ConfigError, DataError
from raytrain.evaluation import predictions

RECIPE = """
train: {batch_size: 16}
stages:
  - {size: 32, epochs: 1, freeze: false, lr: 0.005}
"""


@pytest.fixture(scope="module")
def divided(dataset, tmp_path_factory):
    """The dataset of 160 tiles in three folds, and of a family of which a split is missing."""
    path = tmp_path_factory.mktemp("divided") / "tiles"
    shutil.copytree(dataset.path, path)
    for name in ("cv", "two"):
        assert run_command(["data", "split", str(path), "--folds", "3", "--name", name]) == 0
    manifest = json.loads((path / "dataset.json").read_text())
    manifest["splits"] = [s for s in manifest["splits"] if s["name"] != "two-3"]
    (path / "dataset.json").write_text(json.dumps(manifest))
    return open_dataset(str(path))


def recipe(divided, storage, **fields):
    values = {
        "dataset": divided.path,
        "storage": str(storage),
        "train": {"batch_size": 16},
        "model": {"weights": "none", "arch": os.environ["RAYTRAIN_MODEL__ARCH"]},
        "stages": [{"size": 32, "epochs": 1, "freeze": False, "lr": 0.005}],
        "use_gpu": False,
    }
    return Recipe.model_validate(values | fields)


def rows(done):
    """Logits by name of a cross-validation."""
    found = predictions.read(done.predictions)
    return {name: row.tobytes() for name, row in zip(found.names, found.logits, strict=True)}


def check_every_tile_is_predicted_by_the_run_that_did_not_train_on_it(divided, done):
    found = predictions.read(done.predictions)
    assert sorted(found.names) == sorted(all_names(divided))
    assert (found.fold.dtype, set(found.fold)) == (np.int32, {0, 1, 2})
    assert found.meta["part"] == "out-of-fold" and found.meta["split"] == "cv"
    for fold, split in enumerate(("cv-1", "cv-2", "cv-3")):
        run = Path(done.run(split).path)
        single = predictions.read(str(run / "predictions.parquet"))
        part = found.taken(np.flatnonzero(found.fold == fold))
        assert part.names == single.names and part.logits.tobytes() == single.logits.tobytes()
        table = divided.split(split)
        assert set(single.names) == set(table.loc[table["fold"] == fold, "image_name"])
        # Resolved once, for all of them.
        assert f"threads: {done.recipe.train.threads}" in (run / "config.yaml").read_text()


@pytest.mark.usefixtures("cluster", "in_this_process")
def test_the_same_command_goes_on_and_the_joined_file_is_the_same(
    divided, tmp_path, monkeypatch, logged
):
    whole = folds.train_folds(recipe(divided, tmp_path / "whole"), "cv", "n")
    check_every_tile_is_predicted_by_the_run_that_did_not_train_on_it(divided, whole)
    group = folds.train.__globals__["_group"]

    def dies_in_the_second(function, path, *more):
        if path.endswith("cv-2"):
            raise RuntimeError("as if the node were gone")
        return group(function, path, *more)

    monkeypatch.setattr("raytrain.distributed.train._group", dies_in_the_second)
    with pytest.raises(RuntimeError, match="as if the node"):
        folds.train_folds(recipe(divided, tmp_path / "cut"), "cv", "n")
    assert json.loads((tmp_path / "cut/n/folds.json").read_text())["done"] == ["cv-1"]
    assert json.loads((tmp_path / "cut/n/failure.json").read_text())["error"] == "RuntimeError"
    assert f"all folds go on with: raytrain train --resume n --storage {tmp_path}/cut" in logged
    monkeypatch.setattr("raytrain.distributed.train._group", group)
    first = (tmp_path / "cut/n-cv-1/history.csv").read_bytes()
    again = folds.train_folds(recipe(divided, tmp_path / "cut"), "cv", "n")
    assert rows(again) == rows(whole)
    assert (tmp_path / "cut/n-cv-1/history.csv").read_bytes() == first
    assert not (tmp_path / "cut/n/failure.json").exists()
    # A third time nothing is left to train; --resume is the same.
    monkeypatch.setattr("raytrain.distributed.train._group", None)
    found = folds.find(str(tmp_path / "cut/n"))
    before = (tmp_path / "cut/n/predictions.parquet").read_bytes()
    folds.resume_folds(found, {})
    assert (tmp_path / "cut/n/predictions.parquet").read_bytes() == before
    # A run that was removed is trained again, on a dataset that has moved.
    monkeypatch.setattr("raytrain.distributed.train._group", group)
    shutil.rmtree(tmp_path / "cut/n-cv-2")
    shutil.copytree(divided.path, tmp_path / "moved")
    folds.resume_folds(found, {"dataset": str(tmp_path / "moved")})
    assert rows(whole) == rows(found)
    assert folds.find(str(tmp_path / "cut/n")).recipe.dataset == str(tmp_path / "moved")
    # A checkpoint of these tiles cannot start the folds of another cross-validation.
    start = str(tmp_path / "whole/n-cv-1/checkpoints/last")
    with pytest.raises(ConfigError, match="was trained on tiles of this dataset"):
        folds.train_folds(recipe(divided, tmp_path, init_from=start), "cv", "other")


def test_another_recipe_or_family_is_not_joined(divided, tmp_path, monkeypatch):
    monkeypatch.setattr(folds, "_train_all", lambda begun, *more: begun)
    folds.train_folds(recipe(divided, tmp_path), "cv", "n")
    folds.train_folds(recipe(divided, tmp_path, tiles="stream"), "cv", "n")  # placement may change
    folds.train_folds(recipe(divided, tmp_path, num_workers=2), "cv", "n")
    assert folds.find(str(tmp_path / "n")).recipe.num_workers == 2
    for other, family, what in (
        (recipe(divided, tmp_path, data={"normalize": "none"}), "cv", "data.normalize"),
        (recipe(divided, tmp_path, train={"batch_size": 16, "threads": 7}), "cv", "train.threads"),
    ):
        with pytest.raises(ConfigError, match=f"begun in another way: {what}"):
            folds.train_folds(other, family, "n")
    (tmp_path / "n/recipe.yaml").unlink()
    with pytest.raises(DataError, match="is damaged"):
        folds.find(str(tmp_path / "n"))


def test_under_restarts_the_same_command_is_given_again(divided, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(supervisor, "supervise", lambda *words: given.append(words) or 0)
    assert supervisor.supervise_folds(recipe(divided, tmp_path), "cv", "n", 3) == 0
    first, again, path, restarts = given[0]
    assert first == again and first[0] == "train" and first[-4:] == ["--name", "n", "--folds", "cv"]
    assert (path, restarts) == (str(tmp_path / "n"), 3)


def test_what_cannot_be_folds_is_refused(divided, tmp_path):
    with pytest.raises(DataError, match=r"has no folds five-1, five-2 .*it has the splits: .*cv-1"):
        folds.train_folds(recipe(divided, tmp_path), "five", "n")
    with pytest.raises(
        DataError, match="two-1 to two-2, but they are not all the folds of one division"
    ):
        folds.train_folds(recipe(divided, tmp_path), "two", "n")
    with pytest.raises(ConfigError, match=r"typo\.pth"):
        model = {"weights": "typo.pth", "arch": os.environ["RAYTRAIN_MODEL__ARCH"]}
        folds.train_folds(recipe(divided, tmp_path, model=model), "cv", "n")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "n-cv-2").mkdir()
    (tmp_path / "n-cv-2/config.yaml").touch()
    with pytest.raises(ConfigError, match='there is already a run "n-cv-2"'):
        folds.train_folds(recipe(divided, tmp_path), "cv", "n")


def test_predictions_of_other_tiles_are_not_joined(divided, tmp_path):
    done = folds.Folds(str(tmp_path / "n"), recipe(divided, tmp_path), "cv", ("cv-1", "cv-2"), "")
    target = np.zeros((2, 11), np.uint8)
    some = predictions.Predictions(
        ("a", "b"), target.astype(np.float32), target, tuple("abcdefghijk")
    )
    predictions.write(str(tmp_path / "n-cv-1/predictions.parquet"), some)
    with pytest.raises(DataError, match=r"does not hold the 5\d tiles of the fold cv-1"):
        folds.join(done, divided)


@pytest.mark.usefixtures("cluster", "in_this_process")
def test_the_command_trains_judges_and_resumes(divided, tmp_path, capsys):
    (tmp_path / "r.yaml").write_text(RECIPE)
    words = ["--storage", str(tmp_path / "runs")]
    given = [
        "train",
        "--config",
        str(tmp_path / "r.yaml"),
        "--dataset",
        divided.path,
        "--no-use-gpu",
    ]
    begin = [*given, "--model.weights", "none", "--folds", "cv", "--name", "n", *words]
    assert run_command([*begin, "--dry-run"]) == 0
    assert run_command([*begin, "--data.split", "cv-1"]) == 2
    assert "--folds cv and --data.split cannot be used together" in capsys.readouterr().err
    assert run_command(begin) == 0
    out = capsys.readouterr().out
    assert "fold 3 of 3 is done" in out and "each of 3 folds" in out
    assert {"report.html", "thresholds.json", "predictions.parquet"} <= {
        path.name for path in (tmp_path / "runs/n").iterdir()
    }
    assert run_command(["train", "--resume", "n", *words]) == 0
    assert run_command(["train", "--resume", "n", "--train.batch-size", "8", *words]) == 2
    assert "train.batch_size cannot change now" in capsys.readouterr().err
    taken = [*given, "--model.weights", "none", "--folds", "cv", "--name", "n-cv-1", *words]
    assert run_command([*taken, "--dry-run"]) == 2
    assert 'there is already a run "n-cv-1"' in capsys.readouterr().err
    assert run_command([*given, "--model.weights", "none", "--name", "n", *words]) == 2
    assert "--resume n" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("no_cluster")
@pytest.mark.parametrize("delay", [0.5, 4.0])
def test_a_killed_driver_and_the_same_command_give_the_same_file(divided, tmp_path, delay):
    """./dev test -m slow tests/distributed/test_folds.py"""
    (tmp_path / "r.yaml").write_text(RECIPE)
    program = [sys.executable, "-c", "from raytrain.cli.main import main; main()", "train"]
    given = ["--config", str(tmp_path / "r.yaml"), "--dataset", divided.path, "--no-use-gpu"]
    words = [*program, *given, "--model.weights", "none", "--folds", "cv", "--name", "n"]

    def command(storage):
        return [*words, "--storage", str(tmp_path / storage)]

    subprocess.run(command("whole"), check=True, capture_output=True)
    process = subprocess.Popen(command("cut"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    state = tmp_path / "cut/n/folds.json"
    while not state.exists() or not json.loads(state.read_text())["done"]:
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run(command("cut"), check=True, capture_output=True)
    whole, cut = (tmp_path / name / "n/predictions.parquet" for name in ("whole", "cut"))
    assert cut.read_bytes() == whole.read_bytes()
