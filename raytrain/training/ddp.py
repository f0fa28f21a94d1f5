"""The network of a stage for several ranks, built so that its sums do not depend on when the
process began.
"""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from raytrain.models.networks import in_channels
from raytrain.models.precision import autocast, dtype_of
from raytrain.worker import Worker

WARM_UP_PASSES, WARM_UP_TILES = 2, 2
# Two numbers have the same sum in any order.
ORDER_MATTERS_FROM = 3


def wrapped(model: nn.Module, worker: Worker, passes: int, size: int, precision: str) -> nn.Module:
    """DDP built anew: a wrapper made while parameters were frozen would never synchronise them
    later.

    Args:
        model: of this rank, frozen as in the stage; rank 0's weights and buffers are given to all.
        worker: this process; all ranks call this together.
        passes: that a batch is computed in.
        size: side of the stage's tiles, pixels.
        precision: as in the recipe.
    """
    if worker.world == 1:
        return model
    devices = [worker.device] if worker.device.type == "cuda" else None
    with warnings.catch_warnings():
        # torch 2.15 renames broadcast_buffers; older ones do not know the new name.
        warnings.simplefilter("ignore", FutureWarning)
        network = DistributedDataParallel(
            model,
            device_ids=devices,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            # Which weights train is settled for a stage. With several passes torch cannot leave out
            # their reduction.
            static_graph=passes == 1,
        )
    if worker.world >= ORDER_MATTERS_FROM:
        _warm_up(network, size, precision, worker.device)
    return network


def _warm_up(
    network: DistributedDataParallel, size: int, precision: str, device: torch.device
) -> None:
    """Two passes that change nothing, after which DDP has put its gradients into their final
    buckets.

    It does so after the first backward pass of a process; gradients in other buckets are summed
    over ranks in another order. A run that goes on would otherwise take its first step with other
    bits than one that was never stopped.
    """
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    shape = (WARM_UP_TILES, in_channels(network.module), size, size)
    pixels = torch.zeros(shape, dtype=dtype_of(precision), device=device)
    network.train()
    for _ in range(WARM_UP_PASSES):
        with autocast(precision, device):
            logits = network(pixels.contiguous(memory_format=torch.channels_last))
        logits.sum().backward()
        network.zero_grad(set_to_none=True)
    with torch.no_grad():
        for buffer, kept in buffers:
            buffer.copy_(kept)
