"""What is refused before anything starts."""

import pickle
import shutil
from types import SimpleNamespace

import pytest
import ray
import ray.train
from handmade import encoded as encoded_pixels
from handmade import scene, write_dataset
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

from raytrain.cli.main import run_command
from raytrain.config import load_recipe
from raytrain.distributed import preflight
from raytrain.distributed.preflight import check_disk
from raytrain.distributed.train import not_placed
from raytrain.errors import ResourceError, StorageError
from raytrain.runs import Run

WEIGHTS = 1_000_000


# Of 4 MB each: four stages, the best; of 12 MB each: the last, two within epochs, one being written.
@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ({}, 5 * 4 + 4 * 12),
        ({"train": {"ema": 0.9}}, 5 * 8 + 4 * 16),
        ({"select": "3-4"}, 3 * 4 + 4 * 12),
    ],
)
def test_a_disk_too_small_for_the_checkpoints_is_refused(tmp_path, monkeypatch, changes, needed):
    recipe, usage = load_recipe("smoke", changes), SimpleNamespace(free=needed * 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    check_disk(recipe, str(tmp_path), WEIGHTS)
    usage.free -= 1
    with pytest.raises(StorageError, match=f"need {needed} MB"):
        check_disk(recipe, str(tmp_path), WEIGHTS)
    check_disk(recipe, "s3://bucket/runs", WEIGHTS)
    # A run that goes on needs no second place for what it has.
    (tmp_path / "run" / "checkpoints" / "last").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "last" / "weights").write_bytes(b"1")
    check_disk(recipe, str(tmp_path), WEIGHTS, Run(f"{tmp_path}/run"))


def test_gpus_that_are_not_there_are_refused_before_a_run_stands(cluster, dataset, tmp_path, capfd):
    runs = tmp_path / "runs"
    command = [
        "train",
        "--config",
        "smoke",
        "--dataset",
        dataset.path,
        "--storage",
        str(runs),
        "--use-gpu",
    ]
    assert run_command([*command, "--train.batch-size", "32", "--num-workers", "2"]) == 5
    message = capfd.readouterr().err
    assert "the cluster declares 0 GPUs" in message and "Traceback" not in message
    assert "next: " in message and "exit code 5" in message.splitlines()[-1]
    assert len(message.splitlines()) <= 5
    assert not list(runs.glob("*")), "the storage path was probed; no run stands in it"


def test_a_group_that_finds_no_room_is_a_want_of_resources():
    # As it comes out of the controller's process.
    error = pickle.loads(pickle.dumps(ray.train.ControllerError(WorkerGroupStartupTimeoutError(2))))  # noqa: S301
    found = not_placed(error, 2)
    assert isinstance(found, ResourceError) and "2 workers found no room" in str(found)
    assert not_placed(ray.train.ControllerError(ValueError("another")), 2) is None
    assert not_placed(ray.train.WorkerGroupError("a worker died", {0: ValueError()}), 2) is None


def test_a_cluster_without_a_cpu_is_no_reason_to_ask_for_no_workers(monkeypatch):
    monkeypatch.setattr(preflight, "cpus", lambda: 0)
    with pytest.raises(ResourceError, match="add a machine"):
        preflight.check_workers(1)


@pytest.mark.parametrize(
    ("changes", "frozen"),
    [
        ({}, [1]),
        ({"select": "2-3"}, []),
        ({"stages": [{"size": 32, "epochs": 1, "lr": 0.01, "freeze": 1}] * 2}, [1, 2]),
        ({"stages": [{"size": 32, "epochs": 1, "lr": 0.01, "freeze": False}] * 2}, []),
    ],
)
def test_a_stage_that_freezes_random_weights_is_named(dataset, tmp_path, logged, changes, frozen):
    fields = {"dataset": dataset.path, "storage": str(tmp_path), **changes}
    preflight.check_recipe(load_recipe("smoke", fields))
    said = [text for text in logged if "freezes a network of random weights" in text]
    assert len(said) == len(frozen)
    for number, text in zip(frozen, said, strict=True):
        assert f"stage {number} " in text and f"--set stages.{number}.freeze=false" in text


def test_a_label_that_only_validation_has_is_named(tmp_path, logged):
    tiles = {f"t{i}": (encoded_pixels(scene(i)), "clear" if i < 6 else "rare") for i in range(8)}
    parts = ["train"] * 5 + ["valid"] * 3
    data = write_dataset(tmp_path / "data", tiles, ("clear", "rare"), {"random": parts})
    fields = {"dataset": data.path, "storage": str(tmp_path), "train": {"batch_size": 2}}
    preflight.check_recipe(load_recipe("smoke", fields))
    assert any("no training tile has the label rare" in text for text in logged)
