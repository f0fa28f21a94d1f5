"""`raytrain doctor`: each fault is named with its level and its machine, and a sound set-up ends with 0."""

import json
import os
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import ray

from raytrain import machine
from raytrain.cli.main import run_command
from raytrain.distributed import diagnosis, doctor, links
from raytrain.distributed.diagnosis import FAILURE, NOTE, OK, Here, diagnosed, of_links, of_ports
from raytrain.distributed.nodes import Answer
from raytrain.machine import Cache, Directory, File, Gpus, Question

MB = 10**6
STORAGE = "/shared/runs"
DATASET = "/shared/planet/dataset.json"
HERE_FILE = File(DATASET, "", 10, "0" * 64)


def node(name, gpus=0):
    return {
        "NodeManagerHostname": name,
        "NodeManagerAddress": "10.0.0.2",
        "Resources": {"GPU": gpus},
    }


@pytest.fixture(scope="module")
def sound():
    """Facts of a machine with a GPU on which nothing is wrong."""
    return replace(
        machine.facts(Question()),
        host="b",
        name_address="10.0.0.2",
        interfaces=("lo", "eth0"),
        interface_variables={},
        cpus=8,
        cpu_quota=None,
        shared_memory=8000 * MB,
        open_files=65_535,
        cache=Cache("/cache", "", 10**12, 10**12, "of b"),
        directories=(Directory(STORAGE, "", True),),
        files=(HERE_FILE,),
        gpus=Gpus(1),
    )


def found(sound, change=None, *, gpus=1, ahead_s=0.0, needed=10**9):
    """What is said of two machines, the second of which has another fact."""
    here = replace(sound, host="a", cache=replace(sound.cache, identity="of a"))
    other = replace(sound, **(change or {}))
    answers = [Answer(node("a", gpus=1), here), Answer(node("b", gpus=gpus), other, "", ahead_s)]
    return diagnosed(answers, Here(here, (HERE_FILE,), needed))


def bad(findings):
    return [finding for finding in findings if finding.level != OK]


def test_a_sound_set_up_is_ok(sound):
    findings = found(sound)
    assert [finding.level for finding in findings] == [OK, OK]
    assert [finding.machine for finding in findings] == ["a (10.0.0.2)", "b (10.0.0.2)"]


FAULTS = {
    "raytrain version differs": ({"source": "0" * 16}, FAILURE, "other source code of raytrain"),
    "another package differs": ({"versions": {"torch": "2.0"}}, FAILURE, "other packages:"),
    "storage not shared": (
        {"directories": (Directory(STORAGE, "what the asking machine wrote is not there", False),)},
        FAILURE,
        f"cannot use {STORAGE}: what the asking machine wrote is not there",
    ),
    "storage read-only": (
        {"directories": (Directory(STORAGE, "cannot write: Read-only file system", True),)},
        FAILURE,
        "Read-only file system",
    ),
    "dataset unseen": ({"files": (File(DATASET, "no such file"),)}, FAILURE, "no such file"),
    "another dataset": ({"files": (File(DATASET, "", 10, "1" * 64),)}, FAILURE, "another file"),
    "cache disk too small": (
        {"cache": Cache("/cache", "", 10**6, 10**12, "of b")},
        NOTE,
        "so tiles are streamed",
    ),
    "cache limit too small": (
        {"cache": Cache("/cache", "", 10**12, 10**6, "of b")},
        NOTE,
        "may hold 0.0 GB, so tiles are streamed",
    ),
    "cache not writable": (
        {"cache": Cache("/cache", "Permission denied")},
        FAILURE,
        "cannot be written: Permission denied",
    ),
    "small /dev/shm": ({"shared_memory": 64 * 2**20}, FAILURE, "/dev/shm has 64 MiB"),
    "small /dev/shm without GPUs": (
        {"shared_memory": 64 * 2**20, "gpus": None},
        NOTE,
        "/dev/shm has 64 MiB",
    ),
    "too few open files": ({"open_files": 256}, FAILURE, "may open 256 files, 400 are needed"),
    "few open files": ({"open_files": 1024}, NOTE, "may open 1024 files, which is enough"),
    "host name on loopback": ({"name_address": "127.0.1.1"}, NOTE, "the address 127.0.1.1"),
    "host name unresolved": ({"name_address": ""}, NOTE, "has no address"),
    "unknown interface": (
        {"interface_variables": {"GLOO_SOCKET_IFNAME": "eth9"}},
        FAILURE,
        'GLOO_SOCKET_IFNAME="eth9" names no network interface',
    ),
    "interface on loopback": (
        {"interface_variables": {"GLOO_SOCKET_IFNAME": "lo"}},
        FAILURE,
        "which no other machine reaches",
    ),
    "quota below affinity": ({"cpu_quota": 0.5}, NOTE, "its quota is 0.5 CPUs"),
    "GPUs without CUDA": (
        {"gpus": Gpus(0, "no driver")},
        FAILURE,
        "declares 1 GPUs, torch sees 0 (no driver)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_its_level_and_its_machine(fault, sound):
    change, level, words = FAULTS[fault]
    if "versions" in change:
        change = {"versions": sound.versions | change["versions"]}
    [finding] = bad(found(sound, change))
    assert (finding.level, finding.machine) == (level, "b (10.0.0.2)")
    assert words in finding.what and str(finding).startswith(f"{level:8}b (10.0.0.2): ")
    assert finding.fix or level == NOTE


@pytest.mark.parametrize(("ahead_s", "level"), [(5.0, NOTE), (-5.0, NOTE), (90.0, FAILURE)])
def test_a_wrong_clock_is_named(ahead_s, level, sound):
    [finding] = bad(found(sound, ahead_s=ahead_s))
    assert finding.level == level and f"{abs(ahead_s):.1f} s" in finding.what


def test_a_cache_that_two_machines_share_is_named(sound):
    findings = found(sound, {"cache": replace(sound.cache, identity="of a")})
    [finding] = bad(findings)
    assert finding.level == FAILURE and "a (10.0.0.2), b (10.0.0.2)" in finding.what


def test_a_machine_that_does_not_answer_is_named(sound):
    [finding] = diagnosed([Answer(node("b"), None, "nothing within 60 s")], Here(sound))
    assert finding.level == FAILURE and "does not answer: nothing within 60 s" in finding.what


def test_a_file_that_nobody_has_is_told_of_nobody_else(sound):
    missing = File(DATASET, "no such file")
    answers = [Answer(node("b", gpus=1), replace(sound, files=(missing,)))]
    assert bad(diagnosed(answers, Here(sound, (missing,)))) == []


# Networks


def test_the_machine_whose_links_are_all_slow_is_named():
    seconds = {("a", "b"): 0.1, ("b", "c"): 60.0, ("c", "d"): None, ("d", "a"): 0.1}
    [finding] = of_links(seconds, 64)
    assert (finding.level, finding.machine) == (FAILURE, "c") and "1.1 MB/s" in finding.what


def test_of_two_machines_the_link_is_named():
    [finding] = of_links({("a", "b"): 1.0}, 64)
    assert (finding.level, finding.machine) == (NOTE, "a and b")


def test_fast_links_are_ok():
    assert [finding.level for finding in of_links({("a", "b"): 0.1}, 64)] == [OK]


def test_a_blocked_port_is_named():
    [finding] = of_ports([("a", "b")])
    assert (finding.level, finding.machine, finding.what) == (FAILURE, "a", "cannot connect to b")


def test_every_pair_of_a_few_machines_is_tried_and_the_neighbours_of_many():
    few, many = [{"NodeID": n} for n in range(4)], [{"NodeID": n} for n in range(9)]
    assert len(links.pairs(few)) == 6 and len(links.pairs(many)) == 9
    assert len(links.neighbours(few[:2])) == 1


def test_links_of_a_real_ray_are_tried_and_measured(cluster):
    here = ray.nodes() * 2
    assert links.blocked(here) == []
    [seconds] = links.measured(here).values()
    assert seconds > 0


# Secrets


@pytest.fixture
def token(tmp_path):
    file = tmp_path / "auth_token"
    file.write_text("secret")
    file.chmod(0o600)
    return file


@pytest.mark.parametrize(("mode", "count"), [(0o600, 0), (0o640, 1), (0o644, 1)])
def test_a_token_that_others_can_read_is_a_failure(mode, count, token):
    token.chmod(mode)
    findings = doctor.secrets(None, {"RAY_AUTH_TOKEN_PATH": str(token)})
    assert len(findings) == count
    assert all(f"chmod 600 {token}" in str(finding) for finding in findings)


@pytest.fixture
def dashboard_of():
    """A function that starts a server, which answers every request with a status: HOST:PORT of it."""
    started = []

    def start(host, status):
        class Answers(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.end_headers()

            def log_message(self, *words):
                """Says nothing."""

        server = ThreadingHTTPServer((host, 0), Answers)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started.append(server)
        return f"{host}:{server.server_address[1]}"

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(("status", "count"), [(200, 1), (401, 0)])
def test_a_dashboard_that_answers_without_a_token_is_a_failure(status, count, dashboard_of, token):
    variables = {"RAY_AUTH_TOKEN_PATH": str(token)}
    own = ray.util.get_node_ip_address()
    findings = doctor.secrets(dashboard_of(own, status), variables)
    assert len(findings) == count
    assert all("takes jobs from everybody" in str(finding) for finding in findings)
    # Only this machine reaches it.
    assert doctor.secrets(dashboard_of("127.0.0.1", status), variables) == []


def test_without_a_dashboard_nobody_is_asked(token):
    variables = {"RAY_AUTH_TOKEN_PATH": str(token)}
    assert doctor.secrets("", variables) == doctor.secrets(None, variables) == []
    assert not doctor.is_open("127.0.0.1:9")


# The command


def test_the_command_looks_at_this_machine_without_a_ray(tmp_path, dataset, capsys, monkeypatch):
    monkeypatch.setattr(ray, "init", None)
    where = ["--storage", str(tmp_path / "runs"), "--dataset", dataset.path]
    assert run_command(["doctor", *where]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ok ") and "CPUs" in lines[0]
    assert all(line.startswith(("ok ", "note ")) for line in lines)


def test_the_command_ends_with_5_where_something_would_fail(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert run_command(["doctor", "--storage", str(tmp_path / "file" / "runs")]) == 5
    assert "failure " in capsys.readouterr().out


def test_a_cluster_without_machines_that_work_says_so(cluster, monkeypatch):
    monkeypatch.setattr(doctor.environment, "connects", lambda: True)
    monkeypatch.setattr(doctor, "working_nodes", list)
    found = doctor.examine(None, None, False)
    assert found.is_sound and len(found.answers) == 1
    assert any("no machine that may work now" in str(finding) for finding in found.findings)


def test_facts_are_printed_as_json(tmp_path, capsys):
    assert run_command(["doctor", "--storage", str(tmp_path), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    [facts] = [entry["facts"] for entry in content["machines"].values()]
    assert facts["cpus"] == len(os.sched_getaffinity(0))
    assert facts["directories"][0]["mb_per_s"] > 0
    assert {finding["level"] for finding in content["findings"]} <= {"ok", "note"}


def test_links_need_a_cluster(capsys):
    assert run_command(["doctor", "--bandwidth"]) == 2
    assert "export RAY_ADDRESS=HOST:6379" in capsys.readouterr().err


def test_the_needed_open_files_leave_room_for_the_default_of_ubuntu():
    laptop = diagnosis.OPEN_FILES + 16 * diagnosis.OPEN_FILES_OF_CPU
    assert laptop + diagnosis.OPEN_FILES_OF_MACHINE < 1024
