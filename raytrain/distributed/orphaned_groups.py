"""Frees the CPUs and GPUs of worker groups whose controller has died.

A placement group that an actor has made stays until the whole job ends, also after the actor has
died. Ray Train starts an actor to remove it (`PlacementGroupCleaner`), but names the group to that
actor only once all workers run. A trial whose process is killed in these seconds leaves a group
that nobody uses and nobody removes, and the next trial would wait for its CPUs forever.

The module relies on internals of Ray 2.60.
"""

from __future__ import annotations

import logging
from typing import Any

import ray
from ray.core.generated import gcs_pb2
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.util.placement_group import PlacementGroup, remove_placement_group

logger = logging.getLogger(__name__)


class FreesOrphaned(WorkerGroupCallback):  # type: ignore[misc]  # ray is untyped for mypy
    """Frees what is orphaned each time before a worker group looks for room."""

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        """Called in the process of the controller, again after each wait for room."""
        remove_orphaned()


def remove_orphaned() -> int:
    """Removes the placement groups of this job whose maker has died.

    Returns:
        How many there were.
    """
    job = ray.get_runtime_context().get_job_id()
    accessor = ray._private.state.state._connect_and_get_accessor()
    removed = 0
    for content in accessor.get_placement_group_table():
        group = gcs_pb2.PlacementGroupTableData.FromString(content)
        # Another job may have its reasons.
        if group.creator_job_id.hex() != job or not _is_orphaned(group):
            continue
        identifier = ray.PlacementGroupID(group.placement_group_id)
        logger.warning(f"removing the placement group of a dead process: {identifier.hex()}")
        remove_placement_group(PlacementGroup(identifier))
        removed += 1
    return removed


def _is_orphaned(group: gcs_pb2.PlacementGroupTableData) -> bool:
    """Returns whether an actor has made the group and has died since."""
    if group.state == gcs_pb2.PlacementGroupTableData.REMOVED or group.is_detached:
        return False
    # Of a group that the driver itself has made, Ray says that its actor is dead.
    made_by_driver = ray.ActorID(group.creator_actor_id).is_nil()
    return bool(group.creator_actor_dead) and not made_by_driver
