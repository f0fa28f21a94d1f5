"""The rule that decides which epoch is kept as the checkpoint `best`."""

from __future__ import annotations

from raytrain.checkpoints.history import History
from raytrain.training.state import Metrics


def is_best(metrics: Metrics, history: History) -> bool:
    """Whether an epoch is better than all before it: the rule behind the checkpoint `best`."""
    f2: float = metrics["f2"]
    return f2 > history.best
