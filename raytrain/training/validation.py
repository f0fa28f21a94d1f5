"""Logits of every validation tile exactly once, for any number of workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from raytrain.tiles.feeds import Source
from raytrain.tiles.sampling import Rows
from raytrain.training.inference import Inference, logits_of
from raytrain.worker import Worker

Logits = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Judged:
    """A validation.

    Args:
        metrics: of the task, by name.
        names: of N tiles on rank 0, none on the others. Of the next two likewise.
        logits: float (N, K).
        target: uint8 (N, K).
    """

    metrics: dict[str, Any]
    names: tuple[str, ...]
    logits: Logits
    target: Logits


def rank_logits(
    model: nn.Module,
    source: Source,
    rows: Rows,
    how: Inference,
    *,
    batch: int,
    beat: Callable[[], None],
) -> Logits:
    """Logits of this rank's rows.

    Args:
        model: without DDP; put into evaluation mode.
        source: of tiles.
        rows: int64 (N,) rows of the dataset.
        how: tiles become logits.
        batch: tiles at once.
        beat: called when the tiles of a batch are there, for the watchdog.

    Returns:
        (N, K), float64 in fp64, else float32.
    """
    model.eval()
    wanted = (rows[start : start + batch] for start in range(0, len(rows), batch))
    # A rank without a row still has K columns.
    classes = source.targets.shape[1]
    found = [torch.zeros(0, classes, dtype=how.dtype, device=source.targets.device)]
    for tensors in source.batches(wanted, how.dtype):
        beat()
        found.append(logits_of(model, tensors["image"], how))
    logits: Logits = torch.cat(found).cpu().numpy()
    return logits


def gathered_logits(rows: Rows, logits: Logits, worker: Worker) -> tuple[Rows, Logits] | None:
    """Rows and logits of all ranks in rank order on rank 0, None on the others."""
    if worker.world == 1:
        return rows, logits
    parts: list[Any] | None = None
    if worker.leads:
        parts = [None] * worker.world
    dist.gather_object((rows, logits), parts)
    if parts is None:
        return None
    all_rows = [part[0] for part in parts]
    all_logits = [part[1] for part in parts]
    return np.concatenate(all_rows), np.concatenate(all_logits)


def shared_metrics(metrics: dict[str, Any] | None, worker: Worker) -> dict[str, Any] | None:
    """What rank 0 has found, on every rank.

    Args:
        metrics: of rank 0; whatever the other ranks give does not count.
        worker: of this process.
    """
    if worker.world == 1:
        return metrics
    found = [metrics]
    dist.broadcast_object_list(found)
    return found[0]


def prove_cover(rows: Rows, wanted: Rows) -> None:
    """Checks that validation saw every tile once: a metric over other tiles would be a lie.

    Args:
        rows: int64 that were judged, in any order.
        wanted: int64, ascending.

    Raises:
        RuntimeError: they are not the same rows.
    """
    if np.array_equal(np.sort(rows), wanted):
        return
    raise RuntimeError(
        f"validation saw {len(rows)} tiles, {len(np.unique(rows))} different; {len(wanted)} exist"
    )
