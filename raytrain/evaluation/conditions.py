"""What a user states about the tiles that are judged, whatever their task. No torch, no ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from raytrain.evaluation.metrics import Array
from raytrain.evaluation.predictions import Predictions
from raytrain.evaluation.rules import Exclusive


@dataclass(frozen=True)
class Conditions:
    """What is known about the tiles beside their predictions.

    Attributes:
        group_of: group of each tile by its name, such as its scene. Tiles of one group are alike:
            they are resampled together, and no rule is judged on a group that it was fitted on.
            None: every tile counts on its own.
        exclusive: labels of which a tile has exactly one.
        seed: of halves and resamples.
    """

    group_of: Mapping[str, str] | None = None
    exclusive: Exclusive | None = None
    seed: int = 0

    def groups(self, names: tuple[str, ...]) -> Array | None:
        """Returns the group of each named tile, str (N,), or None without groups."""
        if self.group_of is None:
            return None
        return np.array([self.group_of[name] for name in names], dtype=object)


PLAIN = Conditions()


def by_name(predictions: Predictions) -> Predictions:
    """Returns the judged predictions sorted by name, so that the order of a file does not matter.

    Those without a known target are left out.
    """
    judged = predictions.judged()
    order = np.argsort(np.array(judged.names), kind="stable")
    return judged.taken(order)
