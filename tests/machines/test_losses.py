"""Machines that are lost while they train, on machines that `namespaced` makes of this one.

`./dev test -m machines tests/machines/test_losses.py -s` shows the measured seconds.
"""

import csv
import json
import re
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from namespaced import Cluster, why_not

from raytrain.config import load_recipe

WHY_NOT = why_not()
pytestmark = [
    pytest.mark.machines,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
]
ONE_CPU = {"cpus": 1, "on_debian": True}
# Enough epochs that training lasts until the test ends it.
EPOCHS = 5000
SAVE_EVERY_S = 1
# Limits of the issue in seconds: to train again with a spare machine, without one, and to grow.
WITH_SPARE_S = 60
WITHOUT_S = 90
GROWN_S = 90
# The log of a job arrives some seconds after it was written.
LOG_S = 30


@pytest.fixture
def cluster_of(dataset):
    """A function that starts a cluster whose shared folder holds the dataset."""
    import ray

    ray.shutdown()
    folder = Path(tempfile.mkdtemp(prefix="m-"))
    started = []

    def start(count):
        cluster = Cluster(folder, [ONE_CPU] * count)
        shutil.copytree(dataset.path, cluster.shared / "dataset")
        started.append(cluster.__enter__())
        return cluster

    yield start
    for cluster in started:
        cluster.__exit__()
    shutil.rmtree(folder)


def words_of(cluster, *given, epochs=EPOCHS):
    """The command line of a training, which can be given again."""
    fields = {
        "dataset": str(cluster.shared / "dataset"),
        "storage": str(cluster.shared / "runs"),
        "train": {"batch_size": 16, "threads": 1, "save_every_s": SAVE_EVERY_S},
        "stages": [{"size": 32, "epochs": epochs, "lr": 0.01}],
    }
    (cluster.shared / "recipe.yaml").write_text(load_recipe("smoke", fields).to_yaml())
    return ["--config", cluster.shared / "recipe.yaml", *given, "--name", "r", "--resume", "auto"]


def rows(cluster):
    """The rows of the run's history, as they are at this moment."""
    path = cluster.shared / "runs" / "r" / "history.csv"
    if not path.exists():
        return []
    with path.open() as file:
        return list(csv.DictReader(file))


def wait_until(condition, seconds, what):
    """Waits, and returns how many seconds it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"not within {seconds} s: {what()}"
        time.sleep(0.5)
    return time.monotonic() - began


def machine_of_a_worker(cluster):
    """A machine with a worker that is not the head."""
    for machine in cluster.machines[1:]:
        if machine.address in cluster.machines_of_workers():
            return machine
    raise AssertionError("no worker runs beside the head")


def seconds_to_the_next_epoch(cluster, limit, log):
    """How long after the loss of a machine the next epoch is saved."""
    lost = time.monotonic()
    # What was under way when it was lost may still be written.
    time.sleep(3)
    before = len(rows(cluster))
    wait_until(lambda: len(rows(cluster)) > before, limit, log.read_text)
    return time.monotonic() - lost


def test_a_spare_machine_takes_over(cluster_of):
    cluster = cluster_of(3)
    log = cluster.folder / "job.log"
    job = cluster.submitted(log, "train", *words_of(cluster, "--num-workers", "2"))
    wait_until(lambda: len(rows(cluster)) > 3, 120, log.read_text)
    machine_of_a_worker(cluster).kill()
    seconds = seconds_to_the_next_epoch(cluster, WITH_SPARE_S, log)
    print(f"\nwith a spare machine: {seconds:.0f} s until the next epoch was saved")
    wait_until(
        lambda: "the workers start again" in log.read_text(), LOG_S, lambda: written(cluster)
    )
    job.kill()


def test_without_a_spare_machine_fewer_workers_go_on_and_a_new_one_is_used(cluster_of):
    cluster = cluster_of(2)
    log = cluster.folder / "job.log"
    job = cluster.submitted(log, "train", *words_of(cluster, "--num-workers", "1:2"))
    wait_until(lambda: len(rows(cluster)) > 3, 120, log.read_text)
    assert groups(log) == [2]
    lost = machine_of_a_worker(cluster)
    lost.kill()
    seconds = seconds_to_the_next_epoch(cluster, WITHOUT_S, log)
    print(f"\nwith one machine less: {seconds:.0f} s until the next epoch was saved")
    wait_until(lambda: groups(log) == [2, 1], LOG_S, lambda: written(cluster))
    lost.start()
    cluster.wait_for(2)
    took = wait_until(lambda: groups(log) == [2, 1, 2], GROWN_S, log.read_text)
    print(f"with a new machine: {took:.0f} s until the larger group trained")
    epochs = [row["epoch"] for row in rows(cluster)]
    assert len(epochs) == len(set(epochs))
    job.kill()


def written(cluster):
    """What the job has written on the head, of which the log shows a part some seconds later."""
    logs = f"{cluster.folder}/local/tmp/ray/session_latest/logs/job-driver-*.log"
    return cluster.machines[0].shell("sh", "-c", f"tail -n 40 {logs}").stdout


def groups(log):
    """Number of workers of each group that trained."""
    return [int(number) for number in re.findall(r"training with (\d+) worker", log.read_text())]


def test_the_same_line_on_a_new_head_loses_no_saved_epoch(cluster_of):
    cluster = cluster_of(2)
    log = cluster.folder / "job.log"
    line = words_of(cluster, "--num-workers", "2", epochs=200)
    job = cluster.submitted(log, "train", *line)
    checkpoint = cluster.shared / "runs" / "r" / "checkpoints" / "last" / "meta.json"
    wait_until(checkpoint.exists, 120, log.read_text)
    cluster.__exit__()
    job.wait(60)
    before = rows(cluster)
    saved = json.loads(checkpoint.read_text())["epoch"]
    cluster.__enter__()
    done = cluster.submit("train", *line)
    assert done.returncode == 0, done.stdout + done.stderr
    after = rows(cluster)
    assert [int(row["epoch"]) for row in after] == list(range(1, 201))
    # What was saved is kept as it was.
    assert saved > 0 and after[: saved - 1] == before[: saved - 1]
    lost = len(before) - saved
    print(f"\n{lost} of {len(before)} epochs were trained again on the new head")
    # A checkpoint a second, and an epoch may end while one is written.
    seconds = [float(row["seconds"]) for row in before[saved:]]
    assert lost <= 1 or sum(seconds[:-1]) < SAVE_EVERY_S
    done = cluster.submit("train", *line)
    assert "the run r is complete" in done.stdout
