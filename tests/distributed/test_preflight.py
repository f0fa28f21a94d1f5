"""What is refused before anything starts."""

import pickle
import shutil
from types import SimpleNamespace

import pytest
import ray
import ray.train
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

from raytrain import storage
from raytrain.config import load_recipe
from raytrain.distributed import preflight
from raytrain.distributed.preflight import check_disk, probe_from
from raytrain.distributed.train import not_placed
from raytrain.errors import ResourceError, StorageError
from raytrain.runs import Run

WEIGHTS = 1_000_000


# Of 4 MB each: four stages, the best; of 12 MB each: the last, two within epochs, one being written.
@pytest.mark.parametrize(
    ("changes", "needed"),
    [({}, 5 * 4 + 4 * 12), ({"train": {"ema": 0.9}}, 5 * 8 + 4 * 16), ({"select": "3-4"}, 3 * 4 + 4 * 12)],
)
def test_a_disk_too_small_for_the_checkpoints_is_refused(tmp_path, monkeypatch, changes, needed):
    recipe, usage = load_recipe("smoke", changes), SimpleNamespace(free=needed * 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    check_disk(recipe, str(tmp_path), WEIGHTS)
    usage.free -= 1
    with pytest.raises(StorageError, match=f"need {needed} MB"):
        check_disk(recipe, str(tmp_path), WEIGHTS)
    check_disk(recipe, "s3://bucket/runs", WEIGHTS)
    # A run that goes on needs no second place for what it has.
    (tmp_path / "run" / "checkpoints" / "last").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "last" / "weights").write_bytes(b"1")
    check_disk(recipe, str(tmp_path), WEIGHTS, Run(f"{tmp_path}/run"))


def test_a_node_with_a_disk_of_its_own_is_named(cluster, tmp_path, monkeypatch):
    probe_from(ray.nodes(), str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    # The node sees nothing of what is written here.
    monkeypatch.setattr(storage, "write_bytes", lambda place, content: None)
    with pytest.raises(
        StorageError, match=r"the node \S+ \([0-9.]+\) cannot use .*: what this machine wrote is not there"
    ):
        probe_from(ray.nodes(), str(tmp_path))


def test_a_node_that_is_gone_is_named_and_not_waited_for(cluster, tmp_path):
    gone = ray.nodes()[0] | {"NodeID": "0" * 56, "NodeManagerHostname": "gone"}
    with pytest.raises(StorageError, match=r"the node gone .* no answer"):
        probe_from([gone], str(tmp_path))
    assert list(tmp_path.iterdir()) == []


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
