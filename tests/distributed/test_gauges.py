"""Gauges of a run: what each rank sets, what Ray exports, and what the dashboard of Grafana draws."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import ClassVar

import pytest
from prometheus_client.parser import text_string_to_metric_families

from raytrain.distributed import gauges
from raytrain.distributed.gauges import METRICS, Gauges
from raytrain.evaluation.score import Score

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
EPOCH = {
    "stage": 1,
    "epoch": 2,
    "f2": 0.9,
    "valid_loss": 0.3,
    "train_loss": 0.4,
    "images_per_s": 100.0,
    "step_s": 0.1,
    "data_wait_s": 0.01,
    "checkpoint": "somewhere",
}


class Noted:
    """A gauge that keeps what it was set to."""

    values: ClassVar = {}

    def __init__(self, name, description, tag_keys):
        self.name = name
        assert description and tag_keys == ("run", "rank")

    def set(self, value, tags):
        self.values[self.name] = (value, tags)


@pytest.fixture
def noted(monkeypatch):
    monkeypatch.setattr(gauges, "Gauge", Noted)
    monkeypatch.setattr(Noted, "values", {})
    return Noted.values


def test_a_rank_sets_its_gauges_after_an_epoch(noted):
    Gauges("first", 1, Score("f2", "F2")).update(EPOCH)
    assert set(noted) == {f"raytrain_{name}" for name in METRICS}
    tags = {"run": "first", "rank": "1"}
    assert noted["raytrain_score"] == (0.9, tags) and noted["raytrain_images_per_s"] == (
        100.0,
        tags,
    )


def test_what_is_not_finite_is_left_out(noted):
    Gauges("first", 0, Score("f2", "F2")).update(EPOCH | {"train_loss": float("nan")})
    assert "raytrain_train_loss" not in noted and "raytrain_valid_loss" in noted


def drawn():
    """The names of the metrics in the dashboard."""
    content = json.loads((ROOT / "deploy" / "grafana.json").read_text())
    expressions = [target["expr"] for panel in content["panels"] for target in panel["targets"]]
    return {name for text in expressions for name in re.findall(r"ray_\w+", text)}


def test_the_dashboard_draws_only_what_is_exported():
    assert drawn() <= {f"ray_raytrain_{name}" for name in METRICS}
    assert {
        "ray_raytrain_images_per_s",
        "ray_raytrain_score",
        "ray_raytrain_data_wait_s",
    } <= drawn()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def head(no_cluster, tmp_path):
    """(address of a head, address of the metrics that it exports)."""
    port, metrics = free_port(), free_port()
    words = (
        f"--head --port={port} --num-cpus=2 --num-gpus=0 --metrics-export-port={metrics} --block"
    )
    env = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    env = {name: value for name, value in env.items() if name != "RAY_ADDRESS"}
    # The tests' own Ray exports nothing.
    env |= {"RAY_enable_metrics_collection": "1", "RAY_metrics_report_interval_ms": "1000"}
    log = (tmp_path / "head.log").open("w")
    command = ["ray", "start", *words.split(), "--include-dashboard=true", "--disable-usage-stats"]
    process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    yield f"127.0.0.1:{port}", f"http://127.0.0.1:{metrics}/metrics"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


def exported(url):
    """{(metric, run, rank): value} of all gauges of raytrain."""
    try:
        text = urllib.request.urlopen(url, timeout=5).read().decode()
    except OSError:
        return {}
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("ray_raytrain_"):
                key = sample.name, sample.labels["run"], sample.labels["rank"]
                found[key] = sample.value
    return found


@pytest.mark.slow
def test_every_metric_of_the_dashboard_is_exported_by_a_run(head, dataset, tmp_path):
    address, url = head
    end = time.monotonic() + 60
    while not exported_by_ray(url) and time.monotonic() < end:
        time.sleep(1)
    stage = ["--set", "stages.1.size=32", "--set", "stages.1.epochs=200", "--stages", "1"]
    where = ["--dataset", dataset.path, "--storage", tmp_path / "runs", "--name", "watched"]
    words = ["train", "--config", "smoke", *stage, "--num-workers", "2", *where]
    process = subprocess.Popen(
        [str(BIN / "raytrain"), *map(str, words)],
        env=os.environ | {"RAY_ADDRESS": address},
        stdout=(tmp_path / "train.log").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    wanted = {(name, "watched", rank) for name in drawn() for rank in ("0", "1")}
    end = time.monotonic() + 120
    while not wanted <= set(exported(url)) and time.monotonic() < end:
        time.sleep(1)
    found = exported(url)
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    assert wanted <= set(found), (tmp_path / "train.log").read_text()
    assert found["ray_raytrain_images_per_s", "watched", "0"] > 0
    assert 0 <= found["ray_raytrain_score", "watched", "0"] <= 1


def exported_by_ray(url):
    try:
        return urllib.request.urlopen(url, timeout=5).read()
    except OSError:
        return b""
