"""`--wait`: room that is there, and room that never comes."""

import pytest
import ray

from raytrain.cli.main import run_command
from raytrain.config import load_recipe
from raytrain.distributed import waiting
from raytrain.distributed.waiting import wait_for_room
from raytrain.errors import ResourceError


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


@pytest.mark.parametrize("flag", [["--restarts", "2"], ["--folds", "cv"]])
def test_commands_that_wait_by_themselves_refuse_it(flag, capsys):
    assert run_command(["train", "--config", "smoke", "--wait", "9", *flag]) == 2
    assert f"--wait and {flag[0]} cannot be used together" in capsys.readouterr().err
