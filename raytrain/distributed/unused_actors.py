"""Leaves out actors that Ray Train starts in addition to the workers and that nothing here needs.

Each of these actors wakes up a hundred times a second. On two cores that delays training, since
every step waits for its slowest thread. The module relies on internals of Ray 2.60.
"""

from __future__ import annotations

from typing import Any

import ray
import ray.train.torch
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

# DatasetsCallback hands out shards of Ray Data, but the workers read their tiles themselves.
# PlacementGroupCleanerCallback removes the workers' placement group if the controller has died, but
# the group ends with the session in any case.
UNUSED = (DatasetsCallback, PlacementGroupCleanerCallback)


class Unannounced(FixedScalingPolicy):  # type: ignore[misc]  # ray is untyped for mypy
    """A fixed number of workers that is not announced to an autoscaler.

    A session on this machine alone has no autoscaler.
    """

    def after_controller_start(self, train_run_context: Any) -> None:
        """Does not start the actor that would announce the resources."""

    def _maybe_send_resource_request(self) -> None:
        """Requests nothing."""


def leave_unused_actors_out(trainer: ray.train.torch.TorchTrainer) -> None:
    """Makes a trainer start without the unused actors.

    Does nothing in a session that this process has not started: on a cluster they may be needed.
    """
    node = ray._private.worker._global_node
    if node is None or not node.head:
        return
    run_controller = trainer._initialize_and_run_controller

    def run_with_fewer_actors(*, scaling_policy: Any, callbacks: list[Any], **options: Any) -> Any:
        kept = [callback for callback in callbacks if not isinstance(callback, UNUSED)]
        policy = Unannounced(scaling_policy.scaling_config)
        return run_controller(scaling_policy=policy, callbacks=kept, **options)

    trainer._initialize_and_run_controller = run_with_fewer_actors
