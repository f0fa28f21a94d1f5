"""Chains and their prefixes as arrays, and what lies between two sets of them. No torch, no ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raytrain.search.chains import Axes, Axis, Chain
from raytrain.search.families import Families

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
    """Points as arrays: P points, L lists, G fields outside the stages, S stages, F fields a stage.

    Attributes:
        stages: number of stages that are done, int64 (P,).
        lists: float64 (P, L), rows of length 1. A prefix that several lists share has a part of
            each.
        families: of the prefix that ends at each stage, int64 (P, S); -1 where it is not reached.
        shared: coordinates of the fields outside the stages, float64 (P, G).
        fields: coordinates of the fields of the stages, float64 (P, S, F); 0 where there is none.
        present: where a stage is reached and has the field, bool (P, S, F).
        ordered: where near coordinates mean near values, bool (P, S, F).
    """

    stages: Array
    lists: Array
    families: Array
    shared: Array
    fields: Array
    present: Array
    ordered: Array


@dataclass(frozen=True, eq=False)
class Gaps:
    """What lies between two sets of A and B points; all that does not depend on hyperparameters.

    Attributes:
        lists: 1 for points of the same list, 0 for those of two lists, float64 (A, B).
        levels: whether both are ends of the same prefix of a list, bool (A, B).
        shared: squared distance in each field outside the stages, float64 (G, A, B).
        both: whether both have done a stage, and all before it are stages of the same list, bool
            (S, A, B).
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
        self.schedules = tuple(axes.stages)
        self._axes = axes
        self._depth = max(len(stages) for stages in axes.stages.values())
        self._width = max(_widest(stages) for stages in axes.stages.values())

    def families(self, chains: Sequence[Chain]) -> Families:
        """Returns what chains tell about lists that begin alike."""
        return Families.of(self.schedules, chains)

    def rows(self, points: Sequence[Point], families: Families) -> Rows:
        """Returns points as arrays."""
        count = len(points)
        fields = np.zeros((count, self._depth, self._width))
        rows = Rows(
            stages=np.array([point.stages for point in points], np.int64),
            lists=np.zeros((count, len(self.schedules))),
            families=np.full((count, self._depth), -1, np.int64),
            shared=np.zeros((count, len(self._axes.shared))),
            fields=fields,
            present=np.zeros(fields.shape, bool),
            ordered=np.zeros(fields.shape, bool),
        )
        for number, point in enumerate(points):
            self._fill(rows, number, point, families)
        return rows

    def _fill(self, rows: Rows, number: int, point: Point, families: Families) -> None:
        chain = point.chain
        members = families.members(chain.schedule, point.stages)
        rows.lists[number, members] = 1 / np.sqrt(len(members))
        rows.shared[number] = chain.shared
        for stage in range(point.stages):
            axes = self._axes.stages[chain.schedule][stage]
            width = len(axes)
            rows.families[number, stage] = families.family(chain.schedule, stage + 1)
            rows.fields[number, stage, :width] = chain.stages[stage]
            rows.present[number, stage, :width] = True
            rows.ordered[number, stage, :width] = [axis.ordered for axis in axes]

    def gaps(self, first: Rows, second: Rows) -> Gaps:
        """Returns what lies between two sets of points."""
        reached = (first.families[:, None] == second.families[None]) & (first.families >= 0)[
            :, None
        ]
        # A stage counts only where all before it are of the same list, too.
        both = np.moveaxis(np.logical_and.accumulate(reached, axis=2), 2, 0)
        present = np.moveaxis(first.present[:, None] & second.present[None], (2, 3), (0, 1))
        fields = _squared(first.fields, second.fields, first.ordered)
        return Gaps(
            lists=first.lists @ second.lists.T,
            levels=_same_level(first, second),
            shared=self._shared(first, second),
            both=both,
            later=_later(first, second, self._depth),
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


def _same_level(first: Rows, second: Rows) -> Array:
    """Whether both have as many stages done of the same list, bool (A, B)."""
    one = first.families[np.arange(len(first.stages)), first.stages - 1]
    other = second.families[np.arange(len(second.stages)), second.stages - 1]
    same = one[:, None] == other[None]
    return np.asarray(same & (first.stages[:, None] == second.stages[None]))


def _later(first: Rows, second: Rows, depth: int) -> Array:
    """How many stages both together have done since each stage, int64 (S, A, B)."""
    number = np.arange(1, depth + 1)[:, None]
    one = np.maximum(first.stages - number, 0)
    other = np.maximum(second.stages - number, 0)
    return one[:, :, None] + other[:, None, :]
