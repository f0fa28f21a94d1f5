"""Placement groups of dead processes give their CPUs back; those of living ones stay."""

import time

import pytest
import ray
from ray.util.placement_group import (
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from raytrain.distributed.orphaned_groups import remove_orphaned


def makers(number):
    """So many processes, each of which holds a placement group of one CPU, as a controller of Ray Train does."""

    class Maker:
        def make(self):
            self.group = placement_group([{"CPU": 1}])
            return self.group.wait(30)

    found = [ray.remote(num_cpus=0)(Maker).remote() for _ in range(number)]
    assert all(ray.get([maker.make.remote() for maker in found]))
    return found


def free_cpus():
    return ray.available_resources().get("CPU", 0)


def removed_within(seconds):
    """Waits until Ray knows of the death. Returns how many groups were removed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        removed = remove_orphaned()
        if removed:
            return removed
        time.sleep(0.1)
    return 0


@pytest.mark.usefixtures("cluster")
def test_only_the_group_of_a_dead_process_is_removed():
    own = placement_group([{"GPU": 1}])  # of this process, which is no actor; it waits for room
    alive, dead = makers(2)
    assert remove_orphaned() == 0
    ray.kill(dead)
    assert removed_within(30) == 1
    end = time.monotonic() + 30
    while free_cpus() != 1 and time.monotonic() < end:
        time.sleep(0.1)
    assert free_cpus() == 1
    assert remove_orphaned() == 0
    ray.kill(alive)
    assert removed_within(30) == 1
    assert placement_group_table(own)["state"] == "PENDING"
    remove_placement_group(own)
