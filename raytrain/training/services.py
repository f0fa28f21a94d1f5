"""What serves a run while it trains: the saver, the decisions between steps, the watchdog, and
callers outside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from raytrain.checkpoints.saver import Saver
from raytrain.evaluation.own_metrics import Metric
from raytrain.training.decision import Decisions, Wishes
from raytrain.training.state import Metrics
from raytrain.training.watchdog import Saves, Watchdog


def _nothing(metrics: Metrics) -> None:
    """Nobody listens."""


@dataclass(frozen=True)
class Hooks:
    """What a run calls outside.

    Args:
        report: every rank, after each epoch, with its metrics.
        saved: every rank, after those epochs whose checkpoint is being written.
        stop: rank 0, between steps: the reason to stop now, such as the name of a signal, or None.
        keep: rank 0, between steps: whether a checkpoint is wanted now, since a machine will be
            taken away.
        stalled: called from another thread when no batch has begun for long, after the stacks were
            written.
        saves: what other ranks are writing.
        metrics: of the user's own, given in Python; those that the recipe names are added.
    """

    report: Callable[[Metrics], None] = _nothing
    saved: Callable[[Metrics], None] = _nothing
    stop: Callable[[], str | None] = lambda: None
    keep: Callable[[], bool] = lambda: False
    stalled: Callable[[], None] = lambda: None
    saves: Saves = field(default_factory=Saves)
    metrics: tuple[Metric, ...] = ()


@dataclass(frozen=True)
class Services:
    """What works beside the algorithm; `wishes` belongs to rank 0."""

    saver: Saver
    wishes: Wishes
    decisions: Decisions
    watchdog: Watchdog
    hooks: Hooks
