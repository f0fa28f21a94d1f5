"""What a run calls outside: lines, metrics, and the questions whether to stop or to save."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from raytrain.training.step import Batch
from raytrain.training.watchdog import Saves

Metrics = dict[str, Any]


@dataclass(frozen=True)
class Hooks:
    """Where lines, metrics and (in tests) batches go. Every rank calls `report` after each epoch, and `saved` after those of
    them whose checkpoint is being written.

    Rank 0 asks between steps: `stop` for the reason to stop now, such as the name of a signal, or None; `keep` whether a
    checkpoint is wanted now, for example since a machine will be taken away. `stalled` is called, from another thread, in a
    process whose batches have stopped coming, after it has told where it stands. `saves`: what other ranks write.
    """

    report: Callable[[Metrics], None] = lambda metrics: None
    saved: Callable[[Metrics], None] = lambda metrics: None
    on_batch: Callable[[Batch], None] = lambda batch: None
    on_stage_end: Callable[[int, nn.Module], None] = lambda stage, model: None
    stop: Callable[[], str | None] = lambda: None
    keep: Callable[[], bool] = lambda: False
    stalled: Callable[[], None] = lambda: None
    saves: Saves = field(default_factory=Saves)
