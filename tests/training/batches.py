"""What tests see of the batches of a run, and how they disturb it: the program itself offers no such hook."""

import sys
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from unittest.mock import patch

import ray

from raytrain.training import loop
from raytrain.training.step import Stepper


@dataclass(frozen=True)
class Batch:
    """What a pass sees: the part, the position, and the rank's tiles before anything is computed with them."""

    part: str
    stage: int
    epoch: int
    number: int
    tensors: dict


class _SeenSource:
    """A source of tiles that gives each batch to a function."""

    def __init__(self, source, function):
        self.source, self.function, self.targets = source, function, source.targets

    def batches(self, wanted, dtype):
        for number, tensors in enumerate(self.source.batches(wanted, dtype)):
            self.function(number, tensors)
            yield tensors


def ignored(batch):
    """Does nothing with a batch."""


@contextmanager
def batches_seen(function):
    """Gives each batch of this process to a function, which may change its tensors or raise."""
    real_next, real_validate = Stepper.next_batch, loop.validate

    def next_batch(self, plan, fetched):
        tensors = real_next(self, plan, fetched)
        function(Batch("train", self.number, plan.epoch, plan.number, tensors))
        return tensors

    def validate(job, state, services, number, epoch):
        def seen(i, tensors):
            function(Batch("valid", number, epoch, i, tensors))

        observed = replace(job, source=_SeenSource(job.source, seen))
        return real_validate(observed, state, services, number, epoch)

    with (
        patch.object(Stepper, "next_batch", next_batch),
        patch.object(loop, "validate", validate),
    ):
        yield


def observed(worker, function):
    """The function of a worker group with each batch given to `function(rank, batch)`, in the workers."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

    def observed_worker(config):
        rank = ray.train.get_context().get_world_rank()
        with batches_seen(partial(function, rank)):
            return worker(config)

    return observed_worker
