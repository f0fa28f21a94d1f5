"""Chains and their prefixes as arrays, and what lies between two sets of them. No torch, no ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raytrain.search.chains import Axes, Axis, Chain

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Point:
    """A chain after some of its stages.

    Attributes:
        chain: the whole chain.
        stages: how many of its stages are done, from 1.
    """

    chain: Chain
    stages: int

    @property
    def key(self) -> str:
        """Of the last stage that is done."""
        return self.chain.keys[self.stages - 1]

    @property
    def ended(self) -> bool:
        """Whether all stages are done."""
        return self.stages == self.chain.length


def end(chain: Chain) -> Point:
    """Returns a chain after all of its stages."""
    return Point(chain, chain.length)


@dataclass(frozen=True, eq=False)
class Rows:
    """Points as arrays: P points, G fields outside the stages, S stages, F fields a stage.

    Attributes:
        schedules: number of the list of stages, int64 (P,).
        stages: number of stages that are done, int64 (P,).
        shared: coordinates of the fields outside the stages, float64 (P, G).
        fields: coordinates of the fields of the stages, float64 (P, S, F); 0 where there is none.
        present: where a stage is done and has the field, bool (P, S, F).
        ordered: where near coordinates mean near values, bool (P, S, F).
    """

    schedules: Array
    stages: Array
    shared: Array
    fields: Array
    present: Array
    ordered: Array


@dataclass(frozen=True, eq=False)
class Gaps:
    """What lies between two sets of A and B points; all that does not depend on hyperparameters.

    Attributes:
        lists: whether both are of the same list, bool (A, B).
        levels: whether both also have as many stages done, bool (A, B).
        shared: squared distance in each field outside the stages, float64 (G, A, B).
        both: whether both are of the same list and have done a stage, bool (S, A, B).
        later: how many stages both together have done since, int64 (S, A, B).
        fields: squared distance in each field of each stage, float64 (S, F, A, B).
        present: whether the stage has that field, bool (S, F, A, B).
        trail: squared distance over all fields of a stage and of those before it, float64
            (S, A, B).
    """

    lists: Array
    levels: Array
    shared: Array
    both: Array
    later: Array
    fields: Array
    present: Array
    trail: Array


class Encoder:
    """Turns points into rows."""

    def __init__(self, axes: Axes) -> None:
        """Takes the fields that a search draws."""
        self._axes = axes
        self._numbers = {name: number for number, name in enumerate(axes.stages)}
        self._depth = max(len(stages) for stages in axes.stages.values())
        self._width = max(_widest(stages) for stages in axes.stages.values())

    def rows(self, points: Sequence[Point]) -> Rows:
        """Returns points as arrays."""
        count = len(points)
        size = (count, self._depth, self._width)
        rows = Rows(
            schedules=np.zeros(count, np.int64),
            stages=np.zeros(count, np.int64),
            shared=np.zeros((count, len(self._axes.shared))),
            fields=np.zeros(size),
            present=np.zeros(size, bool),
            ordered=np.zeros(size, bool),
        )
        for number, point in enumerate(points):
            self._fill(rows, number, point)
        return rows

    def _fill(self, rows: Rows, number: int, point: Point) -> None:
        chain = point.chain
        rows.schedules[number] = self._numbers[chain.schedule]
        rows.stages[number] = point.stages
        rows.shared[number] = chain.shared
        for stage in range(point.stages):
            axes = self._axes.stages[chain.schedule][stage]
            width = len(axes)
            rows.fields[number, stage, :width] = chain.stages[stage]
            rows.present[number, stage, :width] = True
            rows.ordered[number, stage, :width] = [axis.ordered for axis in axes]

    def gaps(self, first: Rows, second: Rows) -> Gaps:
        """Returns what lies between two sets of points."""
        lists = first.schedules[:, None] == second.schedules[None]
        number = np.arange(1, self._depth + 1)[:, None, None]
        # Stages done since each one, less than 0 where it is not done itself.
        one = first.stages[None, :, None] - number
        other = second.stages[None, None, :] - number
        fields = _squared(first.fields, second.fields, first.ordered)
        present = np.moveaxis(first.present[:, None] & second.present[None], (2, 3), (0, 1))
        return Gaps(
            lists=lists,
            levels=lists & (first.stages[:, None] == second.stages[None]),
            shared=self._shared(first, second),
            both=lists & (np.minimum(one, other) >= 0),
            later=np.maximum(one, 0) + np.maximum(other, 0),
            fields=fields,
            present=present,
            trail=np.cumsum((fields * present).sum(axis=1), axis=0),
        )

    def _shared(self, first: Rows, second: Rows) -> Array:
        ordered = np.array([axis.ordered for axis in self._axes.shared], bool)
        distance = first.shared[:, None] - second.shared[None]
        squared = np.where(ordered, distance**2, distance != 0)
        return np.moveaxis(squared, 2, 0)


def _widest(stages: Sequence[tuple[Axis, ...]]) -> int:
    """The most fields of a stage."""
    return max((len(stage) for stage in stages), default=0)


def _squared(first: Array, second: Array, ordered: Array) -> Array:
    """Squared distances of the fields of stages, float64 (S, F, A, B).

    Two choices without an order are 1 apart, as the ends of a range are.
    """
    distance = first[:, None] - second[None]
    squared = np.where(ordered[:, None], distance**2, distance != 0)
    return np.moveaxis(squared, (2, 3), (0, 1))
