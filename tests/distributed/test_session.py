"""The session that a command starts on this machine."""

import os
import subprocess
import sys

import psutil
from ray.train.torch import TorchTrainer

from raytrain.distributed.train import leave_cleaner_out

SCRIPT = """
import os

import psutil
import ray

from raytrain.cli import RAY_ENVIRONMENT

os.environ.update(RAY_ENVIRONMENT)
from ray.train.torch import TorchTrainer

from raytrain.distributed.cluster import session
from raytrain.distributed.train import leave_cleaner_out

with session():
    print("niceness", ray.get(ray.remote(lambda: os.nice(0)).remote()))
    trainer = TorchTrainer(lambda: None)
    leave_cleaner_out(trainer)
    print("callbacks", *(type(one).__name__ for one in trainer._create_default_callbacks()))
    for process in psutil.Process().children(recursive=True):
        print("process", *process.cmdline())
"""


def test_workers_have_the_niceness_of_the_command_and_nothing_runs_that_nobody_looks_at(no_cluster):
    environment = {name: value for name, value in os.environ.items() if name != "RAY_worker_niceness"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, timeout=120)
    lines = done.stdout.splitlines()
    assert f"niceness {psutil.Process().nice()}" in lines, done.stderr
    callbacks = next(line for line in lines if line.startswith("callbacks"))
    assert "DatasetsCallback" in callbacks and "Cleaner" not in callbacks
    started = " ".join(line for line in lines if line.startswith("process"))
    # Of the dashboard Ray starts one process in any case; without it, none for its pages.
    assert "raylet" in started and "ray-dashboard-" not in started
    assert "log_monitor.py" not in started and "autoscaler/" not in started


def test_a_session_that_others_started_keeps_its_cleaner(no_cluster):
    trainer = TorchTrainer(lambda: None)
    leave_cleaner_out(trainer)
    assert any("Cleaner" in type(one).__name__ for one in trainer._create_default_callbacks())
