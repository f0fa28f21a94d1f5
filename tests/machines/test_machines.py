"""Commands on several machines, which `namespaced` makes of this one: `./dev test -m machines tests/machines`."""

import csv
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from group import run_group
from namespaced import ROOT, Cluster, why_not

from raytrain.cli.main import run_command
from raytrain.config import load_recipe
from raytrain.data.dataset import open_dataset
from raytrain.evaluation import predictions
from raytrain.search.table import State, read

WHY_NOT = why_not()
pytestmark = [
    pytest.mark.machines,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
]
REFUSED_S = 20  # the limit that the work on several machines was given
# A driver that has no GPU; torch says why in its own words.
GPU_WITHOUT_CUDA = "node3 (10.77.0.3) declares 1 GPU, torch sees none there"


@pytest.fixture(scope="module")
def machines():
    """Three machines of one CPU.

    The host name of the first has the address 127.0.1.1, as after an installation of Debian or Ubuntu. That of the second has
    none. The third declares a GPU that does not exist.
    """
    import ray

    ray.shutdown()
    # A short path, since Ray keeps sockets in it.
    folder = Path(tempfile.mkdtemp(prefix="m-"))
    debian = {"cpus": 1, "on_debian": True}
    unknown = {"cpus": 1, "is_unknown": True}
    with Cluster(folder, [debian, unknown, debian | {"gpus": 1}]) as found:
        yield found
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def ingested(machines, tiles):
    """The dataset of the tests, ingested by a job."""
    images = shutil.copytree(tiles[0], machines.shared / "images")
    labels = shutil.copy(tiles[1], machines.shared)
    out = machines.shared / "dataset"
    done = machines.submit("ingest", "--images", images, "--labels", labels, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def recipe(machines, ingested):
    """A short recipe for two workers, which lies where all machines read it."""
    fields = {
        "dataset": str(ingested),
        "num_workers": 2,
        "train": {"batch_size": 16, "threads": 1},
        "stages": [{"size": 32, "epochs": 2, "lr": 0.01}],
    }
    found = load_recipe("smoke", fields)
    (machines.shared / "recipe.yaml").write_text(found.to_yaml())
    return found


@pytest.fixture(scope="module")
def job_of_two(machines, recipe):
    """The run of a job with two workers, and what the job has printed."""
    runs = machines.shared / "runs"
    given = ["--config", machines.shared / "recipe.yaml", "--storage", runs, "--name", "two"]
    done = machines.submit("train", *given)
    assert done.returncode == 0, done.stdout + done.stderr
    return runs / "two", done.stdout


@pytest.fixture(scope="module")
def trained(job_of_two):
    run, _ = job_of_two
    return run


@pytest.fixture(scope="module")
def private(machines, ingested, tiles):
    """A folder of the head alone, with the pictures, the dataset and the recipe for it."""
    folder = machines.folder / "local"
    head = machines.machines[0]
    for source in (tiles[0], ingested):
        assert head.shell("cp", "-r", source, folder).returncode == 0
    return folder


def labels_of(machines):
    [path] = machines.shared.glob("*.csv")
    return path


def refused(machines, code, *words):
    """Submits what has to be refused with an exit code before a worker starts. Returns what was said."""
    before = machines.machines_of_workers()
    done = machines.submit(*words)
    assert seconds_of_last_job(machines) < REFUSED_S
    said = done.stdout + done.stderr
    assert done.returncode != 0 and f"raytrain ends with exit code {code}" in said, said
    assert machines.machines_of_workers() == before
    assert "Traceback" not in said
    return said


def seconds_of_last_job(machines):
    """Seconds from its submission, when it reached the head, to its end."""
    jobs = json.loads(machines.read("/api/jobs/"))
    last = max(jobs, key=lambda job: job["start_time"])
    return (last["end_time"] - last["start_time"]) / 1000


def history(run):
    with (run / "history.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_dataset_of_two_machines_is_that_of_one(ingested, dataset):
    assert open_dataset(str(ingested)).hash == dataset.hash


def test_two_workers_on_two_machines_of_one_cpu_give_the_losses_of_one_machine(
    machines, recipe, trained, tmp_path
):
    assert len(set(machines.machines_of_workers())) == 2
    run_group(recipe, tmp_path / "here", 2, record=False)
    for there, here in zip(history(trained), history(tmp_path / "here"), strict=True):
        for name in ("train_loss", "valid_loss"):
            assert float(there[name]) == pytest.approx(float(here[name]), abs=1e-6)


def test_predictions_of_two_machines_are_those_of_the_run(machines, ingested, trained):
    out = machines.shared / "valid.parquet"
    done = machines.submit("predict", "--checkpoint", trained, "--dataset", ingested, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    found = predictions.read(str(out))
    known = predictions.read(str(trained / "predictions.parquet"))
    rows = [found.names.index(name) for name in known.names]
    np.testing.assert_allclose(found.logits[rows], known.logits, atol=1e-5)


def test_a_search_of_two_machines_gives_the_losses_of_one(machines, recipe, trained, tmp_path):
    space = machines.shared / "space.yaml"
    space.write_text(yaml.safe_dump({"stages.1.lr": {"loggrid": [0.003, 0.03, 3]}}))
    given = ["--config", machines.shared / "recipe.yaml", "--num-workers", "1"]
    limits = ["--space", space, "--num-samples", "2", "--reruns", "0", "--name", "search"]
    line = [*given, *limits, "--objective", "valid_loss", "--resume", "auto"]
    there = machines.shared / "runs"
    for _ in range(2):
        done = machines.submit("tune", *line, "--storage", there)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "winner: trial" in done.stdout
    assert run_command([str(w) for w in ("tune", *line, "--storage", tmp_path)]) == 0
    for mine, other in zip(losses(tmp_path), losses(there), strict=True):
        assert mine == pytest.approx(other, abs=1e-6)


def losses(storage):
    """The validation losses of the stages of each trial of a search."""
    table = read(str(storage / "search"))
    assert [row.state for row in table.trials] == [State.COMPLETE] * 2
    return [[part.score for part in row.parts] for row in table.trials]


# What is refused before anything starts


def test_gpus_without_cuda_are_refused_where_they_are_asked_for(machines, recipe):
    given = ["--config", machines.shared / "recipe.yaml", "--storage", machines.shared / "runs"]
    said = refused(machines, 5, "train", *given, "--use-gpu")
    assert GPU_WITHOUT_CUDA in said


def test_gpus_without_cuda_are_not_used_otherwise(job_of_two):
    _, said = job_of_two
    assert f"CPUs are used: {GPU_WITHOUT_CUDA}" in said and "starting 2 CPU workers" in said


@pytest.mark.parametrize("storage", [[], ["--storage", "runs"]])
def test_a_storage_in_the_folder_of_the_job_is_refused(machines, recipe, storage):
    said = refused(machines, 2, "train", "--config", machines.shared / "recipe.yaml", *storage)
    assert "is relative, and this is a Ray job" in said


@pytest.mark.parametrize("command", ["train", "tune"])
def test_a_storage_that_each_machine_has_for_itself_is_refused(machines, recipe, command):
    given = ["--config", machines.shared / "recipe.yaml", "--storage", machines.folder / "local"]
    said = refused(machines, 7, command, *given)
    assert "the machine node2 (10.77.0.2) cannot use" in said


def test_a_dataset_that_each_machine_would_have_for_itself_is_refused(machines, ingested):
    given = ["--images", machines.shared / "images", "--labels", labels_of(machines)]
    said = refused(machines, 7, "ingest", *given, "--out", machines.folder / "local" / "own")
    assert "the machine node2 (10.77.0.2) cannot use" in said


def test_pictures_that_only_the_head_has_are_refused(machines, private, tiles):
    given = ["--images", private / tiles[0].name, "--labels", labels_of(machines)]
    said = refused(machines, 3, "ingest", *given, "--out", machines.shared / "of-the-head")
    assert "the machine node2 (10.77.0.2) cannot read" in said and "no such file" in said


@pytest.mark.parametrize("command", ["train", "tune"])
def test_a_dataset_that_only_the_head_has_is_refused(machines, private, recipe, command):
    given = ["--config", machines.shared / "recipe.yaml", "--storage", machines.shared / "runs"]
    said = refused(machines, 3, command, *given, "--dataset", private / "dataset")
    assert "the machine node2 (10.77.0.2) cannot read" in said and "dataset.json" in said


def test_a_prediction_of_tiles_that_only_the_head_has_is_refused(machines, private, trained):
    out = machines.shared / "p.parquet"
    given = ["--checkpoint", trained, "--dataset", private / "dataset", "--out", out]
    said = refused(machines, 3, "predict", *given)
    assert "the machine node2 (10.77.0.2) cannot read" in said


@pytest.mark.parametrize(
    ("address", "code", "words"),
    [
        ("10.77.0.1:6399", 5, "no Ray cluster answers at 10.77.0.1:6399"),
        ("http://10.77.0.1:8265", 2, "the address for `ray job submit`"),
        ("10.77.0.9:6379", 5, "no Ray cluster answers at 10.77.0.9:6379"),
    ],
)
def test_an_address_without_a_head_is_refused(machines, recipe, address, code, words):
    given = ["--config", machines.shared / "recipe.yaml", "--storage", machines.shared / "runs"]
    began = time.monotonic()
    done = machines.machines[1].shell("raytrain", "train", *given, RAY_ADDRESS=address)
    assert time.monotonic() - began < REFUSED_S
    assert done.returncode == code, done.stderr
    assert words in done.stderr and "Traceback" not in done.stderr


# Limits of a machine


def test_a_quota_of_half_a_cpu_leaves_one_thread():
    group = Path("/sys/fs/cgroup/cpu/rt-quota")
    if not group.parent.exists():
        pytest.skip("the control groups here are of version 2, which tests of machine.py cover")
    group.mkdir()
    try:
        (group / "cpu.cfs_quota_us").write_text("50000")  # of the period of 100,000
        show = "from raytrain import machine as m; f = m.facts(m.Question()); print(f.cpus, f.cpu_quota, m.usable_cpus())"
        inside = f"echo $$ > {group}/cgroup.procs; exec {sys.executable} -c '{show}'"
        done = subprocess.run(["sh", "-c", inside], cwd=ROOT, capture_output=True, text=True)
    finally:
        group.rmdir()
    cpus, quota, usable = done.stdout.split()
    assert int(cpus) >= 1 and (quota, usable) == ("0.5", "1"), done.stderr
