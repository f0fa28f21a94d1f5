"""The session that a command starts on this machine."""

import os
import subprocess
import sys

import psutil

SCRIPT = """
import os

import psutil
import ray

from raytrain.cli import RAY_ENVIRONMENT

os.environ.update(RAY_ENVIRONMENT)
from raytrain.distributed.cluster import session

with session():
    print("niceness", ray.get(ray.remote(lambda: os.nice(0)).remote()))
    for process in psutil.Process().children(recursive=True):
        print("process", *process.cmdline())
"""


def test_workers_have_the_niceness_of_the_command_and_nothing_runs_that_nobody_looks_at(no_cluster):
    environment = {name: value for name, value in os.environ.items() if name != "RAY_worker_niceness"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, timeout=120)
    lines = done.stdout.splitlines()
    assert f"niceness {psutil.Process().nice()}" in lines, done.stderr
    started = " ".join(line for line in lines if line.startswith("process"))
    # Of the dashboard Ray starts one process in any case; without it, none for its pages.
    assert "raylet" in started and "ray-dashboard-" not in started
    assert "log_monitor.py" not in started and "autoscaler/" not in started
