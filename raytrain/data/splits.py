"""Which rows validate: pure functions from rows to parts. No torch, no ray."""

from __future__ import annotations

from typing import Any

import numpy as np


def random_parts(rows: int, valid: float = 0.2, seed: int = 42) -> np.ndarray[Any, Any]:
    """Draws the lesson's random split: validation = the first `int(valid * rows)` of a seeded permutation.

    Legacy RandomState on purpose: fastai 1 used `np.random.permutation` after `np.random.seed`, and only the same
    generator gives the lesson's 8,095 validation rows of the 40,479 (fastai 1.0.21 data_block.py:167-171).

    Returns:
        str array (rows,) of "train" and "valid".
    """
    order = np.random.RandomState(seed).permutation(rows)
    parts = np.full(rows, "train", dtype=object)
    parts[order[: int(valid * rows)]] = "valid"
    return parts
