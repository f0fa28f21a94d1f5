"""Actors that Ray Train starts beside the workers, and that a session which this process started does without.

Each one wakes a hundred times a second. On two cores a training step waits for them, since it waits for its slower thread.
"""

from __future__ import annotations

from typing import Any

import ray
import ray.train.torch
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

# The first hands out shards of Ray Data, and workers read their tiles themselves. The second removes the workers' place when
# the controller has died, and the place ends with the session.
UNUSED = (DatasetsCallback, PlacementGroupCleanerCallback)


class Unannounced(FixedScalingPolicy):  # type: ignore[misc]  # ray is untyped for mypy
    """A fixed number of workers, of which no autoscaler is told: on this machine there is none."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Does not start the actor that would pass on what is needed."""

    def _maybe_send_resource_request(self) -> None:
        """Asks for nothing."""


def leave_unused_actors_out(trainer: ray.train.torch.TorchTrainer) -> None:
    """Leaves them out. In a session that others started it does nothing: there they may be needed."""
    node = ray._private.worker._global_node
    if node is None or not node.head:
        return
    run = trainer._initialize_and_run_controller

    def with_fewer(*, scaling_policy: Any, callbacks: list[Any], **more: Any) -> Any:
        kept = [one for one in callbacks if not isinstance(one, UNUSED)]
        return run(
            scaling_policy=Unannounced(scaling_policy.scaling_config), callbacks=kept, **more
        )

    trainer._initialize_and_run_controller = with_fewer
