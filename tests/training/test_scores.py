"""What judges a run: the task of its dataset, and metrics of the user's own."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from group import run_alone

from raytrain import runs
from raytrain.checkpoints import reading
from raytrain.checkpoints.history import EpochRow, History, read_epochs, read_steps
from raytrain.config import load_recipe
from raytrain.data.dataset import open_dataset
from raytrain.distributed import train
from raytrain.errors import ConfigError
from raytrain.evaluation import predictions
from raytrain.evaluation.score import Score
from raytrain.tasks.choice import class_weights, resolved
from raytrain.training.best import is_best


@pytest.fixture
def recipe(dataset):
    smoke = load_recipe("smoke", {"dataset": dataset.path, "train": {"threads": 1}})
    stage = smoke.stages[0].model_copy(update={"epochs": 2})
    return smoke.model_copy(update={"stages": (stage,)})


def share_of_ones(probabilities, target):
    torch.manual_seed(0)
    np.random.seed(0)
    target[:] = 0
    return (probabilities > 0.5).mean()


def test_metrics_of_ones_own_are_recorded_and_change_no_weight(recipe, tmp_path):
    plain = run_alone(recipe, tmp_path / "plain")
    metrics = run_alone(recipe, tmp_path / "own", metrics=(share_of_ones,))
    assert "share_of_ones" in metrics and "share_of_ones" not in plain
    rows = read_epochs(str(tmp_path / "own"))
    assert [list(row.scores) for row in rows] == [
        ["accuracy", "f2", "f2_best", "share_of_ones"]
    ] * 2
    assert 0 <= rows[1].scores["share_of_ones"] <= 1
    for name in ("last", "best"):
        first, second = (
            (tmp_path / run / "checkpoints" / name / "model.safetensors").read_bytes()
            for run in ("plain", "own")
        )
        assert first == second
    # The configuration does not know a function that was given in Python.
    assert "share_of_ones" not in recipe.to_yaml()


def test_resuming_asks_again_for_metrics_that_were_given_in_python(recipe, tmp_path, dataset):
    run_alone(recipe, tmp_path / "own", metrics=(share_of_ones,))
    (tmp_path / "own" / "config.yaml").write_text(recipe.to_yaml())
    run = runs.find("own", str(tmp_path))
    with pytest.raises(ConfigError, match="other metrics: share_of_ones differ") as error:
        train.resume(run, {})
    assert "metrics=[...]) with share_of_ones" in error.value.fix


def test_a_loss_that_the_task_lacks_is_refused_with_those_it_has(recipe):
    chosen = recipe.model_copy(
        update={"train": recipe.train.model_copy(update={"loss": "cross-entropy"})}
    )
    with pytest.raises(ConfigError, match="no loss of the task multi-label") as error:
        resolved(chosen, "multi-label")
    assert "bce" in error.value.why and error.value.exit_code == 2
    assert resolved(chosen, "single-label") == chosen
    assert resolved(recipe, "single-label").train.loss == "cross-entropy"
    assert resolved(recipe, "multi-label").train.loss == "bce"


@pytest.mark.parametrize(
    ("loss", "weights", "words"),
    [
        ("soft-f2", "balanced", "class_weights with train.loss = soft-f2"),
        ("bce", {"primari": 2.0}, 'has "primari", which is no class'),
    ],
)
def test_class_weights_that_cannot_be_meant_are_refused(recipe, dataset, loss, weights, words):
    train = recipe.train.model_copy(update={"loss": loss, "class_weights": weights})
    with pytest.raises(ConfigError, match=words):
        class_weights(recipe.model_copy(update={"train": train}), dataset)


def test_class_weights_reach_the_loss_of_training(recipe, dataset, tmp_path):
    first = dataset.classes[0]
    chosen = load_recipe(None, {}, {f"train.class_weights.{first}": 3})
    assert chosen.train.class_weights == {first: 3.0}
    losses = {}
    for name, weights in (("plain", "none"), ("ones", {first: 1.0}), ("more", {first: 3.0})):
        train = recipe.train.model_copy(update={"class_weights": weights})
        run_alone(recipe.model_copy(update={"train": train}), tmp_path / name)
        losses[name] = [step.loss for step in read_steps(str(tmp_path / name))]
    assert losses["plain"] == losses["ones"]
    # Before the first step all weights are equal, so that its loss differs by the factor alone.
    assert losses["more"][0] > losses["plain"][0]


def test_best_follows_the_direction_of_the_score():
    def history(*values):
        found = History("/nowhere-at-all")
        for value in values:
            found.epochs.append(EpochRow(1, 32, 1, 0.1, 0.5, 0.5, {"error": value}, 1.0, 1.0))
        return found

    falling = Score("error", "error", higher_is_better=False)
    assert is_best({"error": 0.3}, history(), falling)
    assert is_best({"error": 0.3}, history(0.5, 0.4), falling)
    assert not is_best({"error": 0.4}, history(0.5, 0.4), falling)
    assert is_best({"error": 0.6}, history(0.5, 0.4), replace(falling, higher_is_better=True))


def single_labels(dataset, path: Path):
    """The dataset as one of single labels: the first label of each tile is the only one."""
    import shutil

    import pyarrow.parquet as pq

    from raytrain.data import dataset as ds
    from raytrain.data.dataset import shard_bytes

    shutil.copytree(dataset.path, path)
    manifest = json.loads((path / "dataset.json").read_text())
    for entry in manifest["shards"]:
        file = path / "shards" / entry["file"]
        rows = []
        for row in pq.read_table(file).to_pylist():
            target = np.zeros(len(manifest["classes"]), np.uint8)
            target[int(np.argmax(row["target"]))] = 1
            values = [row[name] for name in ("image_name", "image", "width", "height", "crc32")]
            rows.append((*values, target))
        content = bytes(shard_bytes(rows))
        file.write_bytes(content)
        names, targets = [row[0] for row in rows], [row[-1] for row in rows]
        entry |= ds.shard_entry(entry["file"], content, names, targets)
    manifest |= {"task": "single-label"}
    manifest["schema_version"] = ds.schema_version(manifest)
    (path / "dataset.json").write_text(json.dumps(manifest))
    return open_dataset(str(path))


def test_a_run_of_single_labels_is_judged_by_its_accuracy(recipe, dataset, tmp_path):
    digits = single_labels(dataset, tmp_path / "digits")
    options = recipe.train.model_copy(update={"mixup": 0.4, "label_smoothing": 0.1})
    recipe = recipe.model_copy(update={"dataset": digits.path, "train": options})
    metrics = run_alone(recipe, tmp_path / "run")
    assert {"accuracy", "balanced_accuracy", "top5"} <= set(metrics)
    checkpoint = reading.load(str(tmp_path / "run" / "checkpoints" / "best"))
    meta = checkpoint.meta
    assert (meta["task"], meta["metric"], meta["schema_version"]) == ("single-label", "accuracy", 3)
    assert meta["recipe"]["train"]["loss"] == "cross-entropy" and "thresholds" not in meta
    best = max(row.scores["accuracy"] for row in read_epochs(str(tmp_path / "run")))
    assert meta["score"] == meta["accuracy"] == best
    found = predictions.read(str(tmp_path / "run" / "predictions.parquet"))
    assert found.task == "single-label"
    np.testing.assert_allclose(found.probability.sum(1), 1)
