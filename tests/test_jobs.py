"""The jobs on a real local head, through `ray job submit` as a user types it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
import yaml

from raytrain.config import load_recipe
from raytrain.evaluation import predictions

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def ray_head(dataset, tmp_path_factory):
    """The address of a head with four declared CPUs, started by `ray start --head` and ended by its pid."""
    import ray

    ray.shutdown()
    dashboard = free_port()
    env = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": ""}
    env.pop("RAY_ADDRESS", None)
    env["RAY_JOB_STOP_WAIT_TIME_S"] = "60"  # as in cluster.yaml
    log = (tmp_path_factory.mktemp("head") / "log").open("w")
    command = [
        "ray",
        "start",
        "--head",
        f"--port={free_port()}",
        f"--dashboard-port={dashboard}",
        "--num-cpus=4",
        "--disable-usage-stats",
        "--block",
    ]
    process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{dashboard}"
    try:
        wait_for(address, env)
        yield address, env
    finally:
        # The head and all it started are one process group; Ray's own SIGTERM handling takes 20 seconds and more.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def wait_for(address, env):
    end = time.monotonic() + 90
    while time.monotonic() < end:
        found = subprocess.run(
            ["ray", "job", "list", "--address", address], env=env, capture_output=True
        )
        if found.returncode == 0:
            return
        time.sleep(1)
    raise TimeoutError(f"no Ray head answers at {address}")


def ray_job(head, *words):
    """Output of `ray job WORDS`."""
    address, env = head
    verb, *rest = words
    command = ["ray", "job", verb, "--address", address, *rest]
    return subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300
    ).stdout


def submit(head, job, *arguments):
    address, env = head
    command = [
        "ray",
        "job",
        "submit",
        "--address",
        address,
        "--working-dir",
        ".",
        "--",
        "python",
        f"jobs/{job}.py",
    ]
    return subprocess.run(
        [*command, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    return tmp_path_factory.mktemp("storage")


def small(planet, runs):
    """Flags of a short training."""
    return [
        *("--config", "smoke", "--dataset", planet, "--storage", runs),
        *("--stages", "1", "--train.batch-size", "32"),
    ]


@pytest.mark.slow
def test_a_search_as_a_job_leaves_its_table_in_the_storage_path(ray_head, dataset, storage):
    runs, space = storage / "searches", storage / "space.yaml"
    space.write_text(yaml.safe_dump({"stages.1.lr": {"loguniform": [0.001, 0.1]}}))
    flags = ["--space", str(space), "--num-samples", "2", "--reruns", "0", "--name", "search"]
    done = submit(ray_head, "tune", *small(dataset.path, str(runs)), *flags)
    assert done.returncode == 0 and "succeeded" in done.stdout, done.stdout[-3000:]
    assert len(pd.read_csv(runs / "search" / "trials.csv")) == 2


def test_the_other_jobs_leave_their_results_in_the_storage_path(ray_head, tiles, storage):
    planet, runs = str(storage / "dataset"), str(storage / "runs")
    answers, test = str(storage / "valid.parquet"), str(storage / "test.parquet")
    judged = str(storage / "runs" / "job" / "predictions.parquet")
    jobs = {
        "ingest": ["--images", str(tiles[0]), "--labels", str(tiles[1]), "--out", planet],
        "train": [*small(planet, runs), "--num-workers", "2", "--name", "job"],
        "predict": [
            "--checkpoint",
            "job",
            "--storage",
            runs,
            "--dataset",
            planet,
            "--out",
            answers,
        ],
        "evaluate": [judged, "--out", str(storage / "evaluation")],
        "submission": [test, "--out", str(storage / "submission.csv")],
    }
    for job in ("ingest", "train", "predict"):
        done = submit(ray_head, job, *jobs[job])
        assert done.returncode == 0, f"{job}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        assert "succeeded" in done.stdout
    found = predictions.read(judged)
    predictions.write(
        test, predictions.Predictions(found.names, found.logits, None, found.classes, {})
    )
    # These need no Ray, so they are started as a job starts them, without submitting one.
    for job in ("evaluate", "submission"):
        command = [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *jobs[job]]
        done = subprocess.run(command, cwd=storage, capture_output=True, text=True)
        assert done.returncode == 0, f"{job}: {done.stderr}"
    assert (storage / "dataset" / "dataset.json").exists()
    assert (storage / "runs" / "job" / "report.html").exists()
    assert predictions.read(answers).names == found.names
    assert json.loads((storage / "evaluation" / "metrics.json").read_text())
    assert len(pd.read_csv(storage / "submission.csv")) == len(found.names)


def test_a_failed_job_says_our_exit_code_in_its_last_line_and_a_relative_place_is_refused(
    ray_head, storage
):
    train = ["train", "--config", "smoke", "--dataset", str(storage / "nowhere")]
    commands = [
        [*train, "--storage", str(storage / "runs")],
        train,
        ["evaluate", "valid.parquet", "--out", "judged"],
    ]
    with ThreadPoolExecutor() as pool:
        failed, left_out, relative = pool.map(lambda words: submit(ray_head, *words), commands)
    assert [done.returncode for done in (failed, left_out, relative)] == [1, 1, 1]
    assert "raytrain ends with exit code 3" in failed.stdout and "no dataset.json" in failed.stdout
    assert "--storage runs is relative, and this is a Ray job" in left_out.stdout
    assert "next: --storage /shared/runs" in left_out.stdout and "exit code 2" in left_out.stdout
    assert (
        "--out judged is relative, and this is a Ray job" in relative.stdout
        and "exit code 2" in relative.stdout
    )


def test_a_stopped_job_has_a_checkpoint_that_is_newer_than_the_stop(ray_head, storage):
    run = storage / "runs" / "stopped"
    recipe = load_recipe(
        "smoke", {"stages": [{"size": 64, "epochs": 300, "lr": 0.01}]}
    )  # longer than the stop takes
    (storage / "long.yaml").write_text(recipe.to_yaml())
    command = [
        "--config",
        str(storage / "long.yaml"),
        "--dataset",
        str(storage / "dataset"),
        "--storage",
        str(run.parent),
        "--name",
        "stopped",
    ]
    ray_job(
        ray_head,
        "submit",
        "--no-wait",
        "--submission-id",
        "stopped",
        "--working-dir",
        ".",
        "--",
        "python",
        "jobs/train.py",
        *command,
    )
    # A bound only for a job that has failed: a loaded machine may need minutes to start one.
    end = time.monotonic() + 600
    while "first step of" not in ray_job(ray_head, "logs", "stopped"):
        assert time.monotonic() < end, ray_job(ray_head, "logs", "stopped")
        time.sleep(0.2)
    asked = time.time()
    ray_job(ray_head, "stop", "stopped")
    failure = json.loads((run / "failure.json").read_text())
    assert failure["exit_code"] == 75 and "stopped by SIGTERM" in failure["message"]
    kept = Path(failure["message"].split(" kept in ")[1].splitlines()[0])
    assert (kept / "MANIFEST.json").stat().st_mtime > asked
    assert "raytrain ends with exit code 75" in ray_job(ray_head, "logs", "stopped")
