"""The session that a command starts on this machine."""

import os
import subprocess
import sys

import psutil
import pytest
from ray.train.torch import TorchTrainer

from raytrain.distributed.unused_actors import leave_unused_actors_out

SCRIPT = """
import os
import sys

import psutil
import pytest
import ray

from raytrain.distributed.environment import QUIET

os.environ.update(QUIET)
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from raytrain.distributed.session import session
from raytrain.distributed.unused_actors import leave_unused_actors_out

with session():
    print("niceness", ray.get(ray.remote(lambda: os.nice(0)).remote()))
    trainer = TorchTrainer(
        lambda: [" ".join(process.cmdline()) for process in psutil.Process().parent().children()],
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(storage_path=sys.argv[1]),
    )
    leave_unused_actors_out(trainer)
    print("beside the worker", *trainer.fit().return_value)
    for process in psutil.Process().children(recursive=True):
        print("process", *process.cmdline())
"""


@pytest.mark.slow
def test_workers_have_the_niceness_of_the_command_and_nothing_runs_that_nobody_looks_at(
    no_cluster, tmp_path
):
    environment = {
        name: value for name, value in os.environ.items() if name != "RAY_worker_niceness"
    }
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    lines = done.stdout.splitlines()
    assert f"niceness {psutil.Process().nice()}" in lines, done.stderr
    beside = next(line for line in lines if line.startswith("beside the worker"))
    assert "RayTrainWorker" in beside and "TrainController" in beside
    assert not [
        name for name in ("Cleaner", "DatasetManager", "AutoscalingCoordinator") if name in beside
    ], beside
    started = " ".join(line for line in lines if line.startswith("process"))
    # Of the dashboard Ray starts one process in any case; without it, none for its pages.
    assert "raylet" in started and "ray-dashboard-" not in started
    assert "log_monitor.py" not in started and "autoscaler/" not in started


def test_a_session_that_others_started_keeps_its_helpers(no_cluster):
    trainer = TorchTrainer(lambda: None)
    leave_unused_actors_out(trainer)
    assert "_initialize_and_run_controller" not in vars(trainer)


BUSY_CLUSTER = """
import logging

import pandas as pd
import ray

from raytrain.distributed import session as rooms

logging.getLogger("raytrain").addHandler(logging.StreamHandler())
logging.getLogger("raytrain").setLevel(logging.INFO)
rooms.POOL_PATIENCE, rooms.POOL_REMINDER = 4, 0.5


class Holder:
    pass


class Reader:
    def __call__(self, block):
        return block


with rooms.session():
    holder = ray.remote(Holder).options(num_cpus=rooms.cpus()).remote()
    ray.get(holder.__ray_ready__.remote())
    data = rooms.quiet_dataset([pd.DataFrame({"a": [1]})])
    data = data.map_batches(Reader, batch_format="pandas", compute=rooms.actors(1))
    try:
        list(rooms.blocks_of(data))
    except rooms.ResourceError as error:
        print("refused:", error)
    ray.kill(holder)
    print("rows", sum(len(table) for table in rooms.blocks_of(data)))
"""


@pytest.mark.slow
def test_a_pool_that_finds_no_free_cpu_says_so_and_its_end_names_the_cause(no_cluster):
    command = [sys.executable, "-c", BUSY_CLUSTER]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert "waiting for free CPUs or GPUs: ray status" in done.stderr
    assert "refused: the cluster started no process for this command within 0:04" in done.stdout
    assert done.stdout.splitlines()[-1] == "rows 1", done.stderr
