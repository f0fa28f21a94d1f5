"""The session that a command starts on this machine."""

import os
import subprocess
import sys

import psutil
from ray.train.torch import TorchTrainer

from raytrain.distributed.unused_actors import leave_unused_actors_out

SCRIPT = """
import os
import sys

import psutil
import ray

from raytrain.cli.main import RAY_ENVIRONMENT

os.environ.update(RAY_ENVIRONMENT)
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
