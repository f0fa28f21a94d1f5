"""What each field of a chain is worth by the model, for a picture. No torch, no ray."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from raytrain.search.advice import FieldWorth
from raytrain.search.chains import Axes, Axis, Chain
from raytrain.search.points import Array
from raytrain.search.regression import Posterior

# Levels of an ordered field, its ends included.
LEVELS = 9


def worth_of_fields(posterior: Posterior, axes: Axes, best: Chain) -> list[FieldWorth]:
    """Returns what the choice of each field changes, with all others as in the best chain.

    Args:
        posterior: what the model expects.
        axes: the fields that are drawn.
        best: the chain whose fields are changed, one at a time.
    """
    heard = [point.chain for point in posterior.evidence.points]
    found = []
    for field, axis in enumerate(axes.shared):
        levels = _levels(axis, [chain.shared[field] for chain in heard])
        changed = [replace(best, shared=_put(best.shared, field, level)) for level in levels]
        found.append(_worth(posterior, axis, levels, changed))
    alike = [chain for chain in heard if chain.schedule == best.schedule]
    for stage, stage_axes in enumerate(axes.stages[best.schedule]):
        for field, axis in enumerate(stage_axes):
            levels = _levels(axis, [chain.stages[stage][field] for chain in alike])
            changed = [_with_field(best, stage, field, level) for level in levels]
            found.append(_worth(posterior, axis, levels, changed))
    return found


def _levels(axis: Axis, heard: list[float]) -> list[float]:
    """Coordinates over the range of a field, or the choices that were heard of."""
    if axis.ordered:
        return [float(level) for level in np.linspace(0, 1, LEVELS)]
    return sorted(set(heard))


def _put(values: tuple[float, ...], field: int, level: float) -> tuple[float, ...]:
    return (*values[:field], level, *values[field + 1 :])


def _with_field(chain: Chain, stage: int, field: int, level: float) -> Chain:
    changed = _put(chain.stages[stage], field, level)
    stages = (*chain.stages[:stage], changed, *chain.stages[stage + 1 :])
    return replace(chain, stages=stages)


def _worth(
    posterior: Posterior, axis: Axis, levels: list[float], changed: list[Chain]
) -> FieldWorth:
    ends = posterior.ends(changed)
    errors = posterior.covariance(changed)
    high = int(np.argmax(ends.mean))
    low = int(np.argmin(ends.mean))
    # Errors of two levels go together: the difference is known better than either.
    spread = errors[high, high] + errors[low, low] - 2 * errors[high, low]
    return FieldWorth(
        schedule=changed[0].schedule,
        path=axis.path,
        levels=_array(levels),
        mean=ends.mean,
        sd=ends.sd,
        worth=float(ends.mean[high] - ends.mean[low]),
        worth_sd=float(np.sqrt(max(spread, 0.0))),
    )


def _array(values: list[float]) -> Array:
    return np.array(values, np.float64)
