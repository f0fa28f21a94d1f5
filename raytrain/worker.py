"""This process among the workers of a run, and the device that it computes on."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Worker:
    """This process among the workers of a run.

    Args:
        rank: from 0, over all machines.
        world: number of workers.
        local_rank, local_world: the same on this machine.
        device: that trains.
        cpus: of this machine, which its workers share.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    cpus: int = 1

    @property
    def leads(self) -> bool:
        """True on rank 0, which alone writes."""
        return self.rank == 0

    @property
    def cpu_share(self) -> int:
        """CPUs for this worker, at least 1."""
        return max(1, self.cpus // self.local_world)
