"""Ends the controllers of worker groups, for a command that ends at once.

A thread in `TorchTrainer.fit` waits for the controller of its group without a timeout. One that
still waits when the session ends may hang or crash this process. The module relies on internals of
Ray 2.60: no public function ends that wait, or names the controller.
"""

from __future__ import annotations

from contextlib import suppress

import ray

CONTROLLER = "TrainController"
# States in which a controller can be ended.
LIVING = ("DEPENDENCIES_UNREADY", "PENDING_CREATION", "ALIVE")


def end_controllers() -> None:
    """Ends all controllers that this process has started. `fit` then raises an error of Ray."""
    worker = ray._private.worker.global_worker
    # Where the head of the cluster is gone, so are the controllers.
    with suppress(ray.exceptions.RayError):
        for state in LIVING:
            actors = ray._private.state.state.actor_table(None, worker.current_job_id, state)
            for actor in actors.values():
                if actor["ActorClassName"] == CONTROLLER:
                    worker.core_worker.kill_actor(ray.ActorID.from_hex(actor["ActorID"]), True)
