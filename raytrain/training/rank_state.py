"""What a rank holds within an epoch that the others do not: gathered for a checkpoint, and restored
from it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from raytrain.models.networks import running_statistics
from raytrain.training.ema import Ema
from raytrain.worker import Worker

# statistics, averaged: of each BatchNorm, its running mean and variance; outcomes: (steps, 2).
RankState = dict[str, Any]


def rank_state(model: nn.Module, ema: Ema | None, outcomes: list[torch.Tensor]) -> RankState:
    """BatchNorm statistics of this rank, and its shares of the losses of the epoch's steps."""
    return {
        "statistics": running_statistics(model),
        "averaged": running_statistics(ema.module) if ema else [],
        "outcomes": torch.stack(outcomes),
    }


def gathered(state: RankState, worker: Worker, group: dist.ProcessGroup | None) -> list[RankState]:
    """The states of all ranks in their order, in host memory, on rank 0; elsewhere empty. All ranks
    call it together.
    """
    mine = {
        "statistics": [tensor.cpu() for tensor in state["statistics"]],
        "averaged": [tensor.cpu() for tensor in state["averaged"]],
        "outcomes": state["outcomes"].cpu(),
    }
    if worker.world == 1:
        return [mine]
    if not worker.leads:
        dist.gather_object(mine, None, dst=0, group=group)
        return []
    states: list[Any] = [None] * worker.world
    dist.gather_object(mine, states, dst=0, group=group)
    return states


def restore(
    ranks: tuple[RankState, ...], model: nn.Module, ema: Ema | None, worker: Worker
) -> list[torch.Tensor]:
    """Gives this rank what it held within the epoch. Returns its outcomes of the epoch's steps so
    far.

    For another number of ranks: the mean of the statistics, and rank 0 takes over all shares of the
    losses.
    """
    same_number = len(ranks) == worker.world
    theirs = ranks
    if same_number:
        theirs = (ranks[worker.rank],)
    _restore_statistics(running_statistics(model), [rank["statistics"] for rank in theirs])
    if ema:
        averaged = running_statistics(ema.module)
        _restore_statistics(averaged, [rank["averaged"] for rank in theirs])
    outcomes = torch.stack([rank["outcomes"] for rank in ranks])  # (ranks, steps, 2)
    if same_number:
        mine = outcomes[worker.rank]
    else:
        mine = outcomes.sum(0) * worker.leads
    return list(mine.to(worker.device))


@torch.no_grad()
def _restore_statistics(buffers: list[torch.Tensor], statistics: list[list[torch.Tensor]]) -> None:
    """Sets each buffer to what a rank held, or to the mean of what several held."""
    for i, buffer in enumerate(buffers):
        held = [one[i] for one in statistics]
        if len(held) == 1:
            buffer.copy_(held[0])
        else:
            buffer.copy_(torch.stack(held).mean(0))
