"""What the machines of a cluster are asked before a command starts, and what is refused."""

import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import ray

from raytrain import machine, storage
from raytrain.cli.main import run_command
from raytrain.distributed import nodes
from raytrain.distributed.nodes import Places, ask, check_machines, other_versions, spread
from raytrain.errors import DataError, ResourceError, StorageError
from raytrain.evaluation import predictions
from raytrain.machine import Question


@pytest.fixture
def two(cluster, monkeypatch):
    """The machine of the tests, counted twice."""
    found = ray.nodes() * 2
    monkeypatch.setattr(nodes, "working_nodes", lambda: found)
    return found


@pytest.fixture
def altered(two, monkeypatch):
    """A function that changes the facts of the second machine."""

    def alter(change):
        asked = nodes.ask

        def ask_and_change(found, question):
            first, second = asked(found, question)
            return [first, replace(second, facts=change(second.facts))]

        monkeypatch.setattr(nodes, "ask", ask_and_change)

    return alter


def test_a_machine_answers_with_its_facts(cluster, tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    question = Question((str(tmp_path),), "", (str(tmp_path / "file"),))
    [answer] = ask(ray.nodes(), question)
    assert answer.facts.source == machine.source_hash()
    assert answer.facts.files == (machine.seen_file(str(tmp_path / "file")),)
    assert answer.facts.directories == (machine.Directory(str(tmp_path), "", False),)
    assert abs(answer.clock_s) < 1 and answer.facts.gpus is None


def test_nothing_is_asked_where_a_command_has_its_own_session(
    in_this_process, tmp_path, monkeypatch
):
    monkeypatch.setattr(nodes, "ask", None)
    assert check_machines(Places({"--storage": str(tmp_path)})) == []


def test_a_sound_cluster_passes_and_nothing_stays_behind(two, tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    places = Places({"--storage": str(tmp_path / "runs")}, {"--dataset": [f"{tmp_path}/file"]})
    assert len(check_machines(places)) == 2
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_machine_with_a_disk_of_its_own_is_named(two, tmp_path, monkeypatch):
    # The machine sees nothing of what is written here.
    monkeypatch.setattr(storage, "write_bytes", lambda path, content: None)
    with pytest.raises(
        StorageError,
        match=r"the machine \S+ \([0-9.]+\) cannot use .*: what the asking machine wrote",
    ) as caught:
        check_machines(Places({"--out": str(tmp_path)}))
    assert "--out that every machine reaches" in caught.value.fix


def test_a_file_that_a_machine_does_not_see_is_named(altered, tmp_path):
    path = str(tmp_path / "dataset.json")
    (tmp_path / "dataset.json").write_text("{}")
    altered(lambda facts: replace(facts, files=(machine.File(path, "no such file"),)))
    with pytest.raises(DataError, match=f"cannot read {path} .--dataset.: no such file"):
        check_machines(Places(read={"--dataset": [path]}))


def test_another_file_of_the_same_path_is_named(altered, tmp_path):
    path = str(tmp_path / "dataset.json")
    (tmp_path / "dataset.json").write_text("{}")
    altered(lambda facts: replace(facts, files=(machine.File(path, "", 2, "0" * 64),)))
    with pytest.raises(DataError, match="another file of that name is there"):
        check_machines(Places(read={"--dataset": [path]}))


def test_a_file_that_only_this_machine_lacks_is_its_own_fault(altered, tmp_path):
    path = str(tmp_path / "list.txt")
    altered(lambda facts: replace(facts, files=(machine.File(path, "", 2, "0" * 64),)))
    with pytest.raises(DataError, match=f"this machine cannot read {path} .--images.: no such"):
        check_machines(Places(read={"--images": [path]}))


def test_a_machine_that_fails_says_why(cluster, monkeypatch):
    def facts(question):
        raise ImportError("no module named psutil")

    monkeypatch.setattr(machine, "facts", facts)
    [answer] = ask(ray.nodes(), Question())
    assert answer.facts is None and answer.silence == "ImportError: no module named psutil"


def test_a_file_that_no_machine_has_is_left_to_the_command(two, tmp_path):
    check_machines(Places(read={"--init-from": [str(tmp_path / "gone")]}))


def test_other_source_code_is_refused(altered):
    altered(lambda facts: replace(facts, source="0123456789abcdef"))
    with pytest.raises(ResourceError, match="runs other source code of raytrain"):
        check_machines(Places())


def test_another_package_is_a_warning(altered, logged):
    altered(lambda facts: replace(facts, versions=facts.versions | {"torch": "2.0"}))
    check_machines(Places())
    assert len(logged) == 1 and "has other packages than this one: torch 2.0 (here " in logged[0]


def test_versions_are_compared_in_both_directions():
    assert other_versions({"a": "1", "b": "2"}, {"a": "1", "c": "3"}) == (
        "b 2 (here none), c none (here 3)"
    )
    assert other_versions({"a": "1"}, {"a": "1"}) == ""


def test_a_machine_that_is_gone_is_named_and_not_waited_for(cluster, tmp_path, monkeypatch):
    gone = ray.nodes()[0] | {"NodeID": "0" * 56, "NodeManagerHostname": "gone"}
    monkeypatch.setattr(nodes, "working_nodes", lambda: [*ray.nodes(), gone])
    with pytest.raises(ResourceError, match=r"the machine gone .* does not answer"):
        check_machines(Places({"--storage": str(tmp_path)}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [0, 1, 8, 9, 1000])
def test_compared_files_are_the_first_the_last_and_some_between(count):
    paths = [str(number) for number in range(count)]
    found = spread(paths)
    assert len(found) == min(count, 8) and len(set(found)) == len(found)
    if found:
        assert found[0] == paths[0] and found[-1] == paths[-1]


@pytest.mark.parametrize(
    "command", ["train", "tune --space", "tune --thresholds", "lr-find", "ingest"]
)
def test_every_command_whose_work_is_spread_asks_every_machine_first(
    command, cluster, tiles, dataset, tmp_path, monkeypatch, capsys
):
    gone = ray.nodes()[0] | {"NodeID": "0" * 56, "NodeManagerHostname": "gone"}
    monkeypatch.setattr(nodes, "working_nodes", lambda: [*ray.nodes(), gone])
    (tmp_path / "space.yaml").write_text("train.wd: {uniform: [0.1, 0.2]}")
    target = np.array([[0, 1], [1, 0]] * 8, np.uint8)
    found = predictions.Predictions(
        tuple(map(str, range(16))), target - 0.5, target, ("a", "b"), {}
    )
    predictions.write(str(tmp_path / "p.parquet"), found)
    run = ["--name", "s", "--storage", str(tmp_path / "runs")]
    recipe = ["--config", "smoke", "--dataset", dataset.path, *run]
    pictures = ["--images", str(tiles[0]), "--labels", str(tiles[1])]
    arguments = {
        "train": ["train", *recipe],
        "tune --space": ["tune", *recipe, "--space", str(tmp_path / "space.yaml")],
        "tune --thresholds": ["tune", *run, "--thresholds", str(tmp_path / "p.parquet")],
        "lr-find": ["lr-find", *recipe],
        "ingest": ["ingest", *pictures, "--out", str(tmp_path / "out")],
    }[command]
    assert run_command(arguments) == 5
    assert "the machine gone " in capsys.readouterr().err
    written = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(written) == ["p.parquet", "space.yaml"]


# The facts of one machine


def test_two_machines_with_one_cache_folder_have_one_identity(tmp_path, monkeypatch):
    identities = []
    for folder in ("a", "b", "a"):
        monkeypatch.setenv("RAYTRAIN_CACHE", str(tmp_path / folder))
        identities.append(machine.facts(Question()).cache.identity)
    assert identities[0] == identities[2] != identities[1]
    assert [path.name for path in (tmp_path / "a").iterdir()] == [machine.CACHE_ID]


def test_the_speed_of_a_directory_is_measured_on_request(tmp_path):
    [directory] = machine.facts(Question((str(tmp_path),), megabytes=1)).directories
    assert directory.mb_per_s > 0 and list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_made_is_a_problem(tmp_path):
    (tmp_path / "file").touch()
    [directory] = machine.facts(Question((str(tmp_path / "file" / "runs"),))).directories
    assert "file" in directory.problem and not directory.sees_marker


def test_a_name_without_an_address_has_none(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "no-such-host.invalid")
    assert machine.facts(Question()).name_address == ""


def test_a_name_server_that_is_away_does_not_hold_the_facts_up(monkeypatch):
    answers = threading.Event()
    monkeypatch.setattr(machine, "NAME_S", 0.01)
    monkeypatch.setattr(machine.socket, "gethostbyname", lambda name: answers.wait(60))
    # Without the limit this would wait for the event.
    assert machine.facts(Question()).name_address == ""
    answers.set()


def test_interfaces_have_an_address(monkeypatch):
    import socket

    inet = SimpleNamespace(family=socket.AF_INET)
    link = SimpleNamespace(family=socket.AF_PACKET)
    monkeypatch.setattr("psutil.net_if_addrs", lambda: {"eth0": [link, inet], "eth1": [link]})
    assert machine.interfaces() == ("eth0",)
