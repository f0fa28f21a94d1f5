"""Draws of a space as chains of stages, and back. No torch, no ray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from raytrain.config import Recipe
from raytrain.search import advice
from raytrain.search.chains import Chain
from raytrain.search.space import Draw, Space
from raytrain.search.table import Kind, Trial


@dataclass(frozen=True)
class Stages:
    """The stages of a recipe.

    Attributes:
        keys: name them by everything that makes their result.
        costs: where the given recipe costs 1.
        names: of the checkpoints that they leave behind, whatever the recipe calls them.
    """

    keys: tuple[str, ...]
    costs: tuple[float, ...]
    names: tuple[str, ...]

    @property
    def cost(self) -> float:
        """Of all stages."""
        return sum(self.costs)


class Candidates:
    """Draws chains of a space, and remembers which draw each was."""

    def __init__(self, space: Space, stages_of: Callable[[Recipe], Stages]) -> None:
        """Starts with no draw.

        Args:
            space: where draws come from.
            stages_of: the stages of a recipe.
        """
        self.space = space
        self._stages_of = stages_of
        self._known: dict[str, Stages] = {}
        # By the key of the last stage.
        self._draws: dict[str, Draw] = {}

    @property
    def source(self) -> advice.Source:
        """The space as an advisor takes it."""
        return advice.Source(self.space.axes, self.draw, self.near)

    def draw(self, rng: np.random.Generator) -> Chain | None:
        """Draws a chain; None if it costs more than the space allows."""
        return self._chain(self.space.draw(rng))

    def near(self, chain: Chain, rng: np.random.Generator) -> Chain | None:
        """Draws a neighbour of a chain; None if it costs more than the space allows."""
        return self._chain(self.space.near(self.draw_of(chain), rng))

    def draw_of(self, chain: Chain) -> Draw:
        """Returns the draw that gave a chain."""
        return self._draws[chain.keys[-1]]

    def stages(self, draw: Draw) -> Stages:
        """Returns the stages of a draw."""
        found = self._known.get(draw.text)
        if found is None:
            found = self._stages_of(self.space.recipe(draw))
            self._known[draw.text] = found
        return found

    def trial(self, number: int, kind: Kind, draw: Draw) -> Trial:
        """Returns the row of a draw, with coordinates if the space holds it."""
        stages = self.stages(draw)
        coordinates = self.space.coordinates(draw)
        place = None
        if coordinates is not None:
            place = (coordinates.shared, coordinates.stages)
            self._draws[stages.keys[-1]] = draw
        return Trial(
            number=number,
            kind=kind,
            schedule=draw.schedule,
            values=dict(draw.values),
            coordinates=place,
            keys=stages.keys,
            costs=stages.costs,
            names=stages.names,
        )

    def rerun(self, number: int, of: Trial, seed: int) -> Trial:
        """Returns the row of a trial that repeats another one with a fresh seed."""
        recipe = self.space.recipe(Draw(of.schedule, of.values))
        train = recipe.train.model_copy(update={"seed": seed})
        stages = self._stages_of(recipe.model_copy(update={"train": train}))
        return Trial(
            number=number,
            kind=Kind.RERUN,
            schedule=of.schedule,
            values=dict(of.values),
            coordinates=of.coordinates,
            keys=stages.keys,
            costs=stages.costs,
            names=stages.names,
            seed=seed,
            rerun_of=of.number,
        )

    def remember(self, trial: Trial) -> None:
        """Takes a trial of an earlier attempt, whose neighbours may be drawn."""
        if trial.coordinates is not None and trial.kind is not Kind.RERUN:
            self._draws[trial.keys[-1]] = Draw(trial.schedule, trial.values)

    def _chain(self, draw: Draw) -> Chain | None:
        stages = self.stages(draw)
        most = self.space.most_cost
        if most is not None and stages.cost > most:
            return None
        coordinates = self.space.coordinates(draw)
        assert coordinates is not None  # it was drawn from this space
        self._draws[stages.keys[-1]] = draw
        return Chain(
            schedule=coordinates.schedule,
            shared=coordinates.shared,
            stages=coordinates.stages,
            keys=stages.keys,
            costs=stages.costs,
        )


def chain_of(trial: Trial) -> Chain | None:
    """Returns the chain of a trial; None where the space does not hold it."""
    if trial.coordinates is None:
        return None
    shared, stages = trial.coordinates
    return Chain(trial.schedule, shared, stages, trial.keys, trial.costs)
