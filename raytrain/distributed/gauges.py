"""Gauges of a run, which Ray exports with its own metrics; `deploy/grafana.json` draws them.

A gauge of `METRICS` is exported as `ray_raytrain_NAME`, with the tags `run` and `rank`. Each rank
sets its own after every epoch.
"""

from __future__ import annotations

import math

from ray.util.metrics import Gauge

from raytrain.evaluation.score import Score
from raytrain.training.state import Metrics

PREFIX = "raytrain_"
SCORE = "score"
# By name: what it is. Metrics of an epoch, except for the score, whose name follows from the task.
METRICS = {
    "images_per_s": "training tiles per second, all ranks together",
    "step_s": "seconds of a training step",
    "data_wait_s": "seconds of an epoch in which the rank waited for tiles",
    "train_loss": "smoothed training loss",
    "valid_loss": "validation loss",
    SCORE: "score of the task on the validation part",
    "stage": "number of the stage, from 1",
    "epoch": "number of the epoch in its stage, from 1",
}


class Gauges:
    """The gauges of one rank of a run."""

    def __init__(self, run: str, rank: int, score: Score) -> None:
        """Makes the gauges.

        Args:
            run: its name.
            rank: of this process.
            score: of the task.
        """
        self.score = score
        self.tags = {"run": run, "rank": str(rank)}
        self.gauges = {
            name: Gauge(f"{PREFIX}{name}", description=text, tag_keys=("run", "rank"))
            for name, text in METRICS.items()
        }

    def update(self, metrics: Metrics) -> None:
        """Sets the gauges to the metrics of an epoch."""
        values = metrics | {SCORE: metrics[self.score.key]}
        for name, gauge in self.gauges.items():
            value = float(values[name])
            # Prometheus has a NaN, and Ray refuses it.
            if math.isfinite(value):
                gauge.set(value, tags=self.tags)
