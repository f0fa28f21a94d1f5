"""The rule that decides which epoch is kept as the checkpoint `best`."""

from __future__ import annotations

from raytrain.checkpoints.history import History
from raytrain.evaluation.score import Score
from raytrain.training.state import Metrics


def is_best(metrics: Metrics, history: History, score: Score) -> bool:
    """Whether an epoch is better than all before it: the rule behind the checkpoint `best`.

    Args:
        metrics: of the epoch.
        history: of all epochs before it.
        score: the task's own.
    """
    return score.is_better(metrics[score.key], score.best(history.values(score.key)))
