"""The position of this process among the worker processes of a run."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


def _cpu() -> torch.device:
    return torch.device("cpu")


@dataclass(frozen=True)
class Worker:
    """The position of this process in a run. By default the run has this one process alone.

    Attributes:
        rank: number of this process among all processes of the run, from 0.
        world: number of processes of the run.
        local_rank: number of this process among those on the same machine, from 0.
        local_world: number of processes of the run on this machine.
        device: the device that this process computes on.
        cpus: CPUs that all processes of the run on this machine share.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    device: torch.device = field(default_factory=_cpu)
    cpus: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process is rank 0, which alone writes files and decides for all ranks."""
        return self.rank == 0

    @property
    def cpu_share(self) -> int:
        """CPUs for this process: an equal part of the machine's, at least 1."""
        return max(1, self.cpus // self.local_world)


def compute_device(gpu: bool) -> torch.device:
    """The device that a process computes on.

    Args:
        gpu: whether it was given a GPU. What torch sees does not say so: Ray may leave GPUs visible
            to processes that asked for none.
    """
    return torch.device("cuda" if gpu else "cpu")
