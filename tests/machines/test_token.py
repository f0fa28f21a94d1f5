"""Machines whose Ray asks for a token: jobs are stopped and given again, and the doctor finds planted faults."""

import json
import re
import shutil
import tempfile
import time
from pathlib import Path

import pytest
import yaml
from namespaced import SUBNET, Cluster, run, why_not

from raytrain import storage
from raytrain.config import load_recipe

WHY_NOT = why_not()
pytestmark = [
    pytest.mark.machines,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
]
# Of the form that Ray's own tokens have, and found nowhere else.
TOKEN = "c4a7a21c" * 8
KEY = "AKIDCANARY00"
SECRET = "c4n4ry5ecret"


@pytest.fixture(scope="module")
def machines():
    import ray

    ray.shutdown()
    folder = Path(tempfile.mkdtemp(prefix="m-"))
    sound = {"cpus": 1, "on_debian": True, "token": TOKEN}
    with Cluster(folder, [sound, sound, sound | {"cpus": 2}]) as found:
        yield found
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def recipe(machines, dataset):
    shutil.copytree(dataset.path, machines.shared / "dataset")
    fields = {
        "dataset": str(machines.shared / "dataset"),
        "storage": str(machines.shared / "runs"),
        "train": {"batch_size": 16, "threads": 1, "save_every_s": 1},
        "stages": [{"size": 32, "epochs": 40, "lr": 0.01}],
    }
    path = machines.shared / "recipe.yaml"
    path.write_text(load_recipe("smoke", fields).to_yaml())
    return path


def wait_until(condition, seconds, what):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what()
        time.sleep(0.2)


def exit_code(said):
    return int(re.findall(r"raytrain ends with exit code (\d+)", said)[-1])


def stopped_and_given_again(machines, job, line, begun, identifier):
    """Stops a job once it has begun, gives the same line again, and once more when it is complete."""
    log = machines.folder / f"{identifier}.log"
    process = machines.submitted(log, job, *line, identifier=identifier)
    wait_until(begun, 120, log.read_text)
    stop = ["ray", "job", "stop", "--address", machines.dashboard, identifier]
    assert machines.outside(*stop).returncode == 0
    process.wait(90)
    again = machines.submit(job, *line)
    assert again.returncode == 0, again.stdout + again.stderr
    last = machines.submit(job, *line)
    assert last.returncode == 0, last.stdout + last.stderr
    return log.read_text(), again.stdout, last.stdout


def test_a_training_that_is_stopped_goes_on_with_the_same_line(machines, recipe):
    saved = machines.shared / "runs" / "first" / "checkpoints" / "last" / "meta.json"
    line = ["--config", recipe, "--num-workers", "2", "--name", "first", "--resume", "auto"]
    first, again, last = stopped_and_given_again(machines, "train", line, saved.exists, "train-1")
    # Ray gives the head of this test 3 seconds; the job brings its own 60.
    assert exit_code(first) == 75
    assert "resuming" in again and "the run first is complete" in last
    env = json.loads((machines.shared / "runs" / "first" / "env.json").read_text())
    assert env["submission_id"] == "train-1" and len(env["machines"]) == 3
    [later] = env["later_attempts"]
    assert later["submission_id"] != "train-1" and len(later["machines"]) == 3


def test_a_search_that_is_stopped_goes_on_with_the_same_line(machines, recipe):
    space = machines.shared / "space.yaml"
    space.write_text(yaml.safe_dump({"stages.1.lr": {"loggrid": [0.003, 0.03, 3]}}))
    table = machines.shared / "runs" / "search" / "trials.json"

    def begun():
        return table.exists() and bool(
            list((machines.shared / "runs").glob("stages/*/history.csv"))
        )

    limits = ["--space", space, "--num-samples", "2", "--reruns", "0"]
    line = ["--config", recipe, *limits, "--name", "search", "--resume", "auto"]
    first, again, last = stopped_and_given_again(machines, "tune", line, begun, "tune-1")
    assert exit_code(first) in (75, 143)
    assert "winner: trial" in again and "winner: trial" in last


def test_an_ingest_that_is_stopped_goes_on_with_the_same_line(machines, tiles):
    images = shutil.copytree(tiles[0], machines.shared / "images")
    labels = shutil.copy(tiles[1], machines.shared)
    out = machines.shared / "ingested"
    line = ["--images", images, "--labels", labels, "--out", out]

    def begun():
        return (machines.shared / "ingested.partial").exists() or out.exists()

    _, again, last = stopped_and_given_again(machines, "ingest", line, begun, "ingest-1")
    assert "160 tiles" in again and "is there already" in last


def test_without_the_token_nothing_is_submitted(machines, recipe):
    line = ["ray", "job", "submit", "--address", machines.dashboard, "--", "python", "-V"]
    refused = machines.outside(*line, RAY_AUTH_MODE="disabled")
    assert refused.returncode != 0
    refused = machines.outside(*line, RAY_AUTH_TOKEN="0" * 64)
    assert refused.returncode != 0


@pytest.fixture
def store(machines):
    """A store outside of the machines, which they reach; gives the query of its URIs."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address=f"{SUBNET}.254", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"?scheme=http&endpoint_override={host}:{port}&region=us-east-1&allow_bucket_creation=true"
    server.stop()


def test_keys_are_in_no_log_file_or_detail_of_a_job(machines, recipe, store):
    uri = f"s3://{KEY}:{SECRET}@canary-bucket/runs{store}"
    fields = yaml.safe_load(recipe.read_text())
    fields |= {"storage": uri, "num_workers": 2}
    fields["stages"] = [{"size": 32, "epochs": 1, "lr": 0.01}]
    with_keys = machines.folder / "with-keys.yaml"
    with_keys.write_text(yaml.safe_dump(fields))
    # A folder that all machines see, and that is not searched: the user has written the keys there.
    head = machines.machines[0]
    place = machines.folder / "local" / "with-keys.yaml"
    assert head.shell("cp", with_keys, place).returncode == 0
    said = machines.submit("train", "--config", place, "--name", "canary")
    assert said.returncode == 0, said.stdout
    assert head.shell("rm", place).returncode == 0
    with_keys.unlink()

    secrets = (KEY, SECRET, TOKEN)
    for text in (said.stdout, said.stderr, machines.read("/api/jobs/")):
        assert not any(secret in text for secret in secrets)
    written = {file.path: file for file in storage.files(uri, recursive=True)}
    assert any(path.endswith("predictions.parquet") for path in written)
    contents = [storage.read_bytes(storage.join(uri, path)) for path in written]
    contents += [path.read_bytes() for path in machines.shared.rglob("*") if path.is_file()]
    contents += [path.read_bytes() for path in machines.folder.glob("*.log")]
    for content in contents:
        assert not any(secret.encode() in content for secret in secrets)
    for machine in machines.machines:
        # The logs of Ray, of its workers and of its jobs.
        logs = machine.shell("grep", "-rhE", "|".join(secrets), f"{machines.folder}/local/tmp")
        assert logs.stdout == ""


# The doctor


def doctor(machines, *words):
    done = machines.submit("doctor", *words)
    lines = [
        line for line in done.stdout.splitlines() if line.startswith(("ok ", "note ", "failure "))
    ]
    return done.returncode, lines, done.stdout


def test_the_doctor_finds_a_sound_set_up_and_then_each_planted_fault(machines, recipe):
    where = ["--storage", machines.shared / "runs", "--dataset", machines.shared / "dataset"]
    code, lines, said = doctor(machines, *where)
    assert code == 0, said
    assert sum(line.startswith("ok ") for line in lines) == 3
    assert not any(line.startswith("failure ") for line in lines)
    assert sum("its host name has the address 127.0.1.1" in line for line in lines) == 3

    first, second, third = machines.machines
    # A link of 10 Mbit/s, and no way from the second machine to the third.
    run(
        *[
            "tc",
            "qdisc",
            "add",
            "dev",
            "rtv3",
            "root",
            "tbf",
            "rate",
            "10mbit",
            "burst",
            "32kbit",
            "latency",
            "400ms",
        ]
    )
    run("ip", "-n", second.namespace, "route", "add", "prohibit", third.address)
    shared_memory = "mount -o remount,size=64m /dev/shm"
    assert second.shell("sh", "-c", shared_memory).returncode == 0
    raylet = second.shell("pgrep", "-o", "raylet").stdout.strip()
    assert second.shell("prlimit", "--pid", raylet, "--nofile=300:300").returncode == 0
    cache = f"rm -rf {machines.folder}/local/cache; mkdir -p {machines.shared}/cache; "
    cache += f"ln -s {machines.shared}/cache {machines.folder}/local/cache"
    for machine in (first, second):
        assert machine.shell("sh", "-c", cache).returncode == 0
    private = f"cp -r {machines.shared}/dataset {machines.folder}/local/dataset"
    assert first.shell("sh", "-c", private).returncode == 0
    local = machines.folder / "local"

    code, lines, said = doctor(
        machines, "--storage", local / "runs", "--dataset", local / "dataset", "--bandwidth"
    )
    assert code != 0, said

    def found(level, machine, words):
        return any(line.startswith(level) and machine in line and words in line for line in lines)

    assert found("failure", "node2", "what the asking machine wrote is not there"), said
    assert found("failure", "node3", "dataset.json: no such file"), said
    assert found("note", "node2", "/dev/shm has 64 MiB"), said
    assert found("failure", "node2", "may open 300 files"), said
    assert found("failure", "node1", "one tile cache is shared by node1"), said
    assert found("failure", "node2", "cannot connect to node3"), said
    assert found("failure", "node3", "its network "), said
