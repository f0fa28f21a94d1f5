"""Predictions that tests of decisions share."""

import numpy as np

from raytrain.evaluation import metrics
from raytrain.evaluation.predictions import Predictions

CLASSES = ("clear", "water", "road", "haze", "mine", "bare")


def some(rows=600, noise=1.5, seed=0):
    """Tiles whose logits say the truth, apart from noise."""
    generator = np.random.default_rng(seed)
    target = (generator.random((rows, 6)) < np.geomspace(0.8, 0.05, 6)).astype(np.uint8)
    logits = np.where(target, 2.0, -2.0) + generator.normal(size=target.shape) * noise
    return Predictions(
        tuple(f"t{i}" for i in range(rows)), logits.astype(np.float32), target, CLASSES, {}
    )


def calibrated(rows=2000, shift=3.0, seed=0):
    """Labels drawn with the probabilities that the logits had before they were shifted: one threshold suits all."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(-1.0, 3.0, size=(rows, 6))
    target = (generator.random(logits.shape) < metrics.sigmoid(logits)).astype(np.uint8)
    return Predictions(
        tuple(f"t{i}" for i in range(rows)),
        (logits + shift).astype(np.float32),
        target,
        CLASSES,
        {},
    )
