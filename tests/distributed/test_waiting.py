"""`--wait`: room that is there, that an autoscaler makes, and that never comes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

from raytrain.config import load_recipe
from raytrain.distributed import supervisor, waiting
from raytrain.distributed.waiting import wait_for_room, with_machine
from raytrain.errors import ResourceError

BIN = Path(sys.executable).parent
MACHINES = 2
# What Ray's provider of pretended machines calls the head, and the id that it has there.
HEAD = "ray.head.default"
HEAD_ID = "f" * 51 + "00000"


def recipe(workers, **fields):
    return load_recipe("smoke", {"num_workers": workers, **fields})


def groups():
    return [group["state"] for group in ray.util.placement_group_table().values()]


def test_room_that_is_there_is_given_back(cluster):
    wait_for_room(recipe(2), 30)
    assert set(groups()) <= {"REMOVED"}
    assert ray.cluster_resources()["CPU"] == 2


def test_without_room_what_is_missing_is_told_again_and_again(cluster, monkeypatch, logged):
    monkeypatch.setattr(waiting, "TOLD_EVERY_S", 1.0)
    monkeypatch.setattr(waiting, "LOOK_EVERY_S", 0.2)
    with pytest.raises(ResourceError, match=r"; --wait 3 is over") as caught:
        wait_for_room(recipe(3), 3)
    assert "3 workers take 3 CPUs, the cluster declares 2" in caught.value.what
    assert len(logged) >= 2 and logged[0].startswith("waiting for room: 3 workers take 3 CPUs")
    assert set(groups()) <= {"REMOVED"}


def test_a_range_waits_for_its_smallest_number(cluster):
    wait_for_room(recipe("2:8"), 30)


def test_no_wait_asks_for_nothing(monkeypatch):
    monkeypatch.setattr(waiting, "placement_group", None)
    wait_for_room(recipe(4000), 0)


def test_where_machines_turn_out_to_have_gpus_it_waits_for_those(cluster, monkeypatch):
    monkeypatch.setattr(waiting, "LOOK_EVERY_S", 0.2)
    monkeypatch.setattr(waiting.gpus, "usable", lambda wanted: ["a machine with a GPU"])
    with pytest.raises(ResourceError, match="2 workers take 2 GPUs, the cluster declares 0"):
        wait_for_room(recipe(2), 2)
    wait_for_room(recipe(2, use_gpu=False), 2)


def test_it_waits_for_the_cpus_that_the_command_sets(cluster, monkeypatch):
    monkeypatch.setattr(waiting, "LOOK_EVERY_S", 0.2)
    wait_for_room(recipe(1), 30, worker_cpus=2)
    with pytest.raises(ResourceError, match="1 worker takes 4 CPUs, the cluster declares 2"):
        wait_for_room(recipe(1), 1, worker_cpus=4)


def test_a_worker_with_a_gpu_waits_for_its_share_of_the_cpus_too(cluster, monkeypatch):
    asked = []
    monkeypatch.setattr(waiting, "_wait", lambda workers, each, *rest: asked.append(each))
    monkeypatch.setattr(waiting, "cpus_of_gpu_worker", lambda: 7)
    wait_for_room(recipe(1, use_gpu=True), 30)
    assert asked == [waiting.ANY_GPU, {"CPU": 7, "GPU": 1.0}]


def test_a_session_begins_once_there_is_a_machine(cluster, monkeypatch):
    with with_machine(30):
        assert set(groups()) <= {"REMOVED"}
    monkeypatch.setattr(waiting, "placement_group", None)
    with with_machine(0):
        pass


def test_each_attempt_of_a_supervised_run_waits(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(
        supervisor, "supervise", lambda first, again, *rest: commands.extend([first, again])
    )
    given = recipe(2, storage=str(tmp_path))
    supervisor.supervise_run(given, "one", 3, 600.0)
    supervisor.supervise_folds(given, "cv", "two", 3, 600.0)
    assert len(commands) == 4
    assert all("--wait 600" in " ".join(words) for words in commands)
    commands.clear()
    supervisor.supervise_run(given, "one", 3)
    assert all("--wait" not in words for words in commands)


# An autoscaler


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def pretended_machines(head_address):
    """A configuration of Ray's autoscaler whose machines are further raylets of this computer.

    It is that of `ray.cluster_utils.AutoscalingCluster`, which ends every Ray of the computer. Ray knows the provider by a name,
    too, but then reads a file that its wheel lacks.
    """
    worker = {
        "resources": {"CPU": 1, "object_store_memory": 100_000_000},
        "node_config": {},
        "min_workers": 0,
        "max_workers": MACHINES,
    }
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    lists = (
        "initialization",
        "setup",
        "head_setup",
        "worker_setup",
        "head_start_ray",
        "worker_start_ray",
    )
    return {
        "cluster_name": "pretended",
        "max_workers": MACHINES,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "launch_multiple": True,
            "head_node_id": HEAD_ID,
            "gcs_address": head_address,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {HEAD: head, "one-cpu": worker},
        "head_node_type": HEAD,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        **{f"{name}_commands": [] for name in lists},
    }


@pytest.fixture
def autoscaled(no_cluster, tmp_path):
    """The address of a head without CPUs, whose autoscaler starts up to two machines of one CPU."""
    port = free_port()
    address = f"{ray.util.get_node_ip_address()}:{port}"
    (tmp_path / "autoscaling.json").write_text(json.dumps(pretended_machines(address)))
    command = f"ray start --head --port={port} --num-cpus=0 --num-gpus=0 --include-dashboard=false --block"
    env = os.environ | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    }
    env.pop("RAY_ADDRESS", None)
    log = (tmp_path / "head.log").open("w")
    head = subprocess.Popen(
        [*command.split(), f"--autoscaling-config={tmp_path}/autoscaling.json"],
        env=env,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    yield address
    os.killpg(head.pid, signal.SIGKILL)
    head.wait(10)


def raytrain(address, *words):
    """Runs a command on the cluster. Returns what it has printed, and its exit code."""
    done = subprocess.run(
        [str(BIN / "raytrain"), *map(str, words)],
        env=os.environ | {"RAY_ADDRESS": address},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
    )
    return done.stdout, done.returncode


def answers(address):
    host, _, port = address.partition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.skipif(not ray.__version__.startswith("2.60."), reason="a private module of Ray 2.60")
def test_an_autoscaler_makes_room(autoscaled, tiles, tmp_path):
    end = time.monotonic() + 60
    while not answers(autoscaled) and time.monotonic() < end:
        time.sleep(0.5)
    data, runs = tmp_path / "data", tmp_path / "runs"
    ingest = ["ingest", "--images", tiles[0], "--labels", tiles[1], "--out", data]
    said, code = raytrain(autoscaled, *ingest, "--wait", "120")
    assert code == 0, said
    train = ["train", "--config", "smoke", "--dataset", data, "--storage", runs, "--name", "r"]
    said, code = raytrain(autoscaled, *train, "--num-workers", "2")
    assert code == 5 and "--wait 600" in said, said
    said, code = raytrain(autoscaled, *train, "--num-workers", "3", "--wait", "20")
    assert code == 5, said
    assert "3 workers take 3 CPUs" in said and "--wait 20 is over" in said
    assert not runs.exists() or not list(runs.glob("*/config.yaml"))
    said, code = raytrain(autoscaled, *train, "--num-workers", "2", "--wait", "120")
    assert code == 0 and "starting 2 CPU workers" in said, said
    predict = ["predict", "--checkpoint", "r", "--storage", runs, "--dataset", data]
    said, code = raytrain(autoscaled, *predict, "--out", tmp_path / "p.parquet", "--wait", "120")
    assert code == 0, said
