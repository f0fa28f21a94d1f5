"""Logits of every validation tile exactly once, whatever the number of workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from raytrain.models.precision import autocast, dtype_of
from raytrain.tiles import sampling
from raytrain.tiles.feeds import Source
from raytrain.training import transforms
from raytrain.worker import Worker

Logits = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Judged:
    """A validation: its metrics, and of each of N tiles its name, its logits (N, K) and its target (N, K)."""

    metrics: dict[str, Any]
    names: tuple[str, ...]
    logits: Logits
    target: Logits


def gather_logits(
    mine: sampling.Rows, found: Logits, worker: Worker
) -> tuple[sampling.Rows, Logits]:
    """Rows and logits of all ranks, in rank order, on every rank."""
    parts: list[tuple[sampling.Rows, Logits]] = [(mine, found)] * worker.world
    if worker.world > 1:
        dist.all_gather_object(parts, (mine, found))
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def prove_cover(names: tuple[str, ...], wanted: int) -> None:
    """Raises RuntimeError unless the names are `wanted` different ones: a metric over other tiles would be a lie."""
    if len(set(names)) != len(names) or len(names) != wanted:
        raise RuntimeError(
            f"validation saw {len(names)} tiles, {len(set(names))} different; {wanted} exist"
        )


def rank_logits(
    model: nn.Module,
    source: Source,
    rows: sampling.Rows,
    *,
    size: int,
    batch: int,
    normalize: str,
    precision: str,
    on_batch: Callable[[int, dict[str, torch.Tensor]], None],
) -> Logits:
    """Logits (len(rows), K) of this rank's rows; float64 in fp64, else float32.

    `model` is the unwrapped module: no collective may depend on how many batches a rank has.
    """
    model.eval()
    dtype, device = dtype_of(precision), source.targets.device
    wanted = (rows[start : start + batch] for start in range(0, len(rows), batch))
    found = [torch.zeros(0, source.targets.shape[1], dtype=dtype, device=device)]
    for i, tensors in enumerate(source.batches(wanted, dtype)):
        on_batch(i, tensors)
        pixels = transforms.valid_pixels(tensors["image"], size, normalize, dtype)
        with torch.inference_mode(), autocast(precision, device):
            found.append(model(pixels).to(dtype))
    logits: Logits = torch.cat(found).cpu().numpy()
    return logits
