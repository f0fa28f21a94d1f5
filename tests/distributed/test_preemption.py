"""A machine that is announced to go: a checkpoint newer than the notice, and the run goes on."""

import sys
import threading
import time

import pytest
import ray
import ray.cloudpickle
from batches import observed
from ray.core.generated import autoscaler_pb2

from raytrain.config import load_recipe
from raytrain.distributed import train as train_module
from raytrain.distributed.train import train
from raytrain.log import heard

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_cluster")]


def announce():
    """Tells the cluster that its only machine goes in an hour, as a cloud's autoscaler does."""
    client = ray._raylet.GcsClient(address=ray.get_runtime_context().gcs_address)
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline_ms = int((time.time() + 3600) * 1000)
    return client.drain_node(ray.nodes()[0]["NodeID"], reason, "spot", deadline_ms)


def slowly(rank, batch):
    time.sleep(0.3)


def test_a_notice_makes_a_checkpoint_and_the_run_goes_on(dataset, tmp_path, logged, monkeypatch):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(train_module, "train_worker", observed(train_module.train_worker, slowly))
    ray.shutdown()
    train_settings = {"batch_size": 8, "threads": 1}
    changes = {
        "dataset": dataset.path,
        "storage": str(tmp_path),
        "train": train_settings,
        "select": "1",
    }
    recipe = load_recipe("smoke", changes | {"model": {"arch": "timm:test_resnet"}})
    recipe = recipe.model_copy(
        update={"stages": (recipe.stages[0].model_copy(update={"epochs": 6}),)}
    )
    told, made = [], []

    def note(line):
        if "epoch 2/6" in line and not told:
            told.append(time.time())
            threading.Thread(target=lambda: told.append(announce())).start()
        for manifest in (tmp_path / "run" / "checkpoints").glob("step-*/MANIFEST.json"):
            made.append(manifest.stat().st_mtime)

    ray.init(address="local", num_cpus=2, log_to_driver=False)
    try:
        with heard(note):
            train(recipe, name="run")
    finally:
        ray.shutdown()
    assert told[1][0], told
    assert sum("will be taken away" in line for line in logged) == 1
    assert made and 0 < made[0] - told[0] < 10
    assert (tmp_path / "run" / "checkpoints" / "stage-1-32").exists()
