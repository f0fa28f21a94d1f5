"""Chains of stages, as the model of a search sees them. No torch, no ray.

A trial is a chain: each stage is trained from the weights of the one before it. Two chains that
begin alike share those stages, which are trained once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """A field that a search draws.

    Attributes:
        path: of the field, such as train.wd or stages.2.lr.
        ordered: whether near coordinates mean near values. The coordinate of an ordered field is
            the quantile of its value in its distribution, from 0 to 1. That of another one is the
            number of the choice, from 0.
    """

    path: str
    ordered: bool = True


@dataclass(frozen=True)
class Axes:
    """All fields that a search draws.

    Attributes:
        shared: those outside the stages.
        stages: for each list of stages by its name, those of each of its stages.
    """

    shared: tuple[Axis, ...]
    stages: Mapping[str, tuple[tuple[Axis, ...], ...]]


@dataclass(frozen=True)
class Chain:
    """The stages of a trial.

    Attributes:
        schedule: name of its list of stages.
        shared: coordinates of the fields outside the stages, in the order of the axes.
        stages: for each stage, the coordinates of its fields.
        keys: of the stages. Chains with the same key share that stage and all before it.
        costs: of the stages, where the whole given recipe costs 1.
    """

    schedule: str
    shared: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]
    keys: tuple[str, ...]
    costs: tuple[float, ...]

    @property
    def length(self) -> int:
        """Number of stages."""
        return len(self.keys)

    @property
    def cost(self) -> float:
        """Of all stages, where the whole given recipe costs 1."""
        return sum(self.costs)

    def cost_left(self, trained: Collection[str]) -> float:
        """Of the stages whose keys are not among those that are trained."""
        costs = zip(self.keys, self.costs, strict=True)
        return sum(cost for key, cost in costs if key not in trained)
