"""The space of a search: which fields it draws, and the recipe that each draw gives.

`space_file.read` makes a space of the content of a YAML file. No torch, no ray.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from raytrain.config import Recipe, parse_assignments, validate
from raytrain.errors import ConfigError, did_you_mean
from raytrain.search import paths
from raytrain.search.chains import Axes, Axis
from raytrain.search.distributions import Distribution, as_text, plain
from raytrain.search.refusals import leaves, refuse_fixed, refuse_keys, refuse_unused

# Name of the given recipe's own list of stages.
GIVEN = "recipe"
# The flag of a trial of one's own.
TRY = "--try"
# How often a neighbour has another list of stages, where the space has several.
OTHER_LIST = 0.1


@dataclass(frozen=True)
class Draw:
    """What a search has drawn.

    Attributes:
        schedule: name of the list of stages; `recipe` for that of the given recipe.
        values: by path. Stages count from 1.
    """

    schedule: str
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """JSON that is equal for equal draws."""
        return as_text(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Returns what `from_json` reads."""
        return {"schedule": self.schedule, "values": dict(self.values)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Draw:
        """Reads a draw of a table."""
        return cls(content["schedule"], dict(content["values"]))


class Coordinates(NamedTuple):
    """A draw as a `Chain` holds it: the first three of its attributes."""

    schedule: str
    shared: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Drawn:
    """A field that is drawn.

    Attributes:
        path: of the field.
        distribution: how its value is drawn.
    """

    path: str
    distribution: Distribution

    @property
    def axis(self) -> Axis:
        """The field as the model sees it."""
        return Axis(self.path, self.distribution.ordered)


@dataclass(frozen=True)
class Schedule:
    """A list of stages.

    Attributes:
        name: of the list.
        values: nested values of the given recipe with this list. A field that is drawn has any
            value there, or none.
        fields: that are drawn in its stages, those of earlier stages first.
        trained: first and last stage that is trained, from 1.
    """

    name: str
    values: Mapping[str, Any]
    fields: tuple[Drawn, ...]
    trained: tuple[int, int]

    def fields_of(self, number: int) -> tuple[Drawn, ...]:
        """The fields that are drawn in a stage, counted from 1."""
        return tuple(drawn for drawn in self.fields if paths.stage_of(drawn.path) == number)

    @property
    def numbers(self) -> range:
        """The stages that are trained, from 1."""
        first, last = self.trained
        return range(first, last + 1)


@dataclass(frozen=True)
class Space:
    """Fields and how their values are drawn. Checked by `space_file.read`.

    Attributes:
        given: the recipe that the search was given. It holds the fields that are not drawn.
        shared: fields outside the stages.
        schedules: the lists of stages, one of which is drawn.
        most_cost: the highest cost of a chain, where the given recipe costs 1; None for any.
    """

    given: Recipe
    shared: tuple[Drawn, ...]
    schedules: tuple[Schedule, ...]
    most_cost: float | None = None

    @cached_property
    def axes(self) -> Axes:
        """The fields as the model sees them."""
        stages = {}
        for schedule in self.schedules:
            axes = []
            for number in schedule.numbers:
                axes.append(tuple(drawn.axis for drawn in schedule.fields_of(number)))
            stages[schedule.name] = tuple(axes)
        return Axes(tuple(drawn.axis for drawn in self.shared), stages)

    @property
    def size(self) -> int | None:
        """Number of different draws; None if there is no end of them."""
        shared = _count(self.shared)
        of_lists = [_count(schedule.fields) for schedule in self.schedules]
        if shared is None:
            return None
        total = 0
        for count in of_lists:
            if count is None:
                return None
            # Two lists have no draw in common: a draw names its list.
            total += shared * count
        return total

    def draw(self, rng: np.random.Generator) -> Draw:
        """Draws a list of stages, and a value for each field that is drawn in it."""
        schedule = self.schedules[int(rng.integers(len(self.schedules)))]
        values = {}
        for drawn in (*self.shared, *schedule.fields):
            values[drawn.path] = drawn.distribution.value(drawn.distribution.draw(rng))
        return Draw(schedule.name, values)

    def near(self, draw: Draw, rng: np.random.Generator) -> Draw:
        """Draws a neighbour: each field moves with probability 1/2, and at least one does.

        Sometimes it has another list of stages. Fields that both lists draw then keep their
        values, and the others are drawn.

        Args:
            draw: of this space. A value outside it is drawn anew.
            rng: source of the random numbers.
        """
        schedule = self._find(draw.schedule)
        others = [other for other in self.schedules if other.name != draw.schedule]
        if others and (schedule is None or rng.random() < OTHER_LIST):
            other = others[int(rng.integers(len(others)))]
            return self._moved(draw, other, set(), rng)
        assert schedule is not None  # a space has at least one list
        movable = []
        for drawn in (*self.shared, *schedule.fields):
            if drawn.distribution.levels != 1:
                movable.append(drawn.path)
        moving = {path for path in movable if rng.random() < 0.5}
        if movable and not moving:
            moving = {movable[int(rng.integers(len(movable)))]}
        return self._moved(draw, schedule, moving, rng)

    def _moved(
        self, draw: Draw, schedule: Schedule, moving: set[str], rng: np.random.Generator
    ) -> Draw:
        """The draw with a list of stages, where the fields of some paths move."""
        values = {}
        for drawn in (*self.shared, *schedule.fields):
            values[drawn.path] = _next_value(drawn, draw.values, drawn.path in moving, rng)
        return Draw(schedule.name, values)

    def recipe(self, draw: Draw) -> Recipe:
        """Returns the recipe of a draw, or of a trial of one's own. It takes 0.2 ms.

        Raises:
            ConfigError: there is no such list of stages, a path does not exist, or a value is out
                of range. No draw of this space is refused.
        """
        return assembled(self.schedule(draw.schedule), draw.values, "the drawn configuration")

    def schedule(self, name: str) -> Schedule:
        """Returns the list of stages of a name.

        Raises:
            ConfigError: there is none.
        """
        found = self._find(name)
        if found is not None:
            return found
        if name == GIVEN:
            values = self.given.model_dump(mode="json")
            return Schedule(GIVEN, values, (), self.given.selected)
        known = [schedule.name for schedule in self.schedules]
        raise ConfigError(
            f'the space has no list of stages "{name}".{did_you_mean(name, known)}',
            f"it has {', '.join(known)}",
            f"stages={known[0]}",
        )

    def coordinates(self, draw: Draw) -> Coordinates | None:
        """Returns where a draw stands in the space; None where it lies outside."""
        schedule = self._find(draw.schedule)
        if schedule is None:
            return None
        by_path = {}
        for drawn in (*self.shared, *schedule.fields):
            if drawn.path not in draw.values:
                return None
            coordinate = drawn.distribution.coordinate(draw.values[drawn.path])
            if coordinate is None:
                return None
            by_path[drawn.path] = coordinate
        # A trial of one's own may set a field that is not drawn.
        if len(by_path) < len(draw.values):
            return None
        stages = []
        for number in schedule.numbers:
            fields = schedule.fields_of(number)
            stages.append(tuple(by_path[drawn.path] for drawn in fields))
        shared = tuple(by_path[drawn.path] for drawn in self.shared)
        return Coordinates(schedule.name, shared, tuple(stages))

    def locate(self, recipe: Recipe) -> Draw | None:
        """Returns the draw that gives a recipe, or None if the space has none.

        Recipes are equal if they train alike: `freeze: 2` is `freeze: true`, and the batch size of
        a stage may be that of the recipe.
        """
        wanted = _resolved(recipe)
        for schedule in self.schedules:
            draw = self._draw_in(schedule, wanted)
            if draw is None:
                continue
            # The drawn fields agree. All others have to, as well.
            found = _resolved(self.recipe(draw))
            if as_text(found) == as_text(wanted):
                return draw
        return None

    def given_draw(self) -> Draw:
        """Returns the draw of the given recipe. Where it lies outside, it has no coordinates."""
        return self.locate(self.given) or Draw(GIVEN)

    def tried(self, text: str) -> Draw:
        """Reads a trial of one's own, such as `train.wd=0.02 stages.4.lr=0.003`.

        It is the given recipe with other values, which need not lie in the space. `stages=NAME`
        chooses one of its lists. What is drawn in that list and not given is at its median.

        Args:
            text: assignments with blanks between them; a value with a blank stands in quotes.

        Raises:
            ConfigError: it is no such text, or a field that does not exist, is out of range, or
                is the same for all trials.
        """
        refuse_keys(text, TRY)
        assigned = plain(parse_assignments(_words(text), TRY))
        name = str(assigned.pop(paths.STAGES, GIVEN))
        schedule = self.schedule(name)
        set_paths: set[str] = set()
        for path, value in assigned.items():
            set_paths |= leaves(path, value)
        refuse_fixed(sorted(set_paths), f"{TRY} sets")
        refuse_unused(set_paths, self.given, f"{TRY} sets")
        values = {}
        # The given recipe has values of its own.
        if name != GIVEN:
            for drawn in schedule.fields:
                values[drawn.path] = drawn.distribution.value(drawn.distribution.middle)
        draw = Draw(name, values | assigned)
        recipe = assembled(schedule, draw.values, f"{TRY} '{text}'")
        return self.locate(recipe) or draw

    def _draw_in(self, schedule: Schedule, wanted: Mapping[str, Any]) -> Draw | None:
        """The draw with a list of stages whose fields have the values of a resolved recipe."""
        # Paths into stages would lead into others.
        if len(wanted["stages"]) != len(schedule.values["stages"]):
            return None
        values = {}
        for drawn in (*self.shared, *schedule.fields):
            found = self._value_in(schedule, drawn, paths.value_at(wanted, drawn.path))
            if found is None:
                return None
            values[drawn.path] = found[0]
        return Draw(schedule.name, values)

    def _value_in(self, schedule: Schedule, drawn: Drawn, wanted: Any) -> tuple[Any] | None:
        """The value that is drawn where a resolved recipe has another form of it.

        In a tuple, since null may be drawn, too.
        """
        coordinate = drawn.distribution.coordinate(wanted)
        if coordinate is not None:
            value = drawn.distribution.value(coordinate)
            if value == wanted:
                # The same number as the space writes it: 10 where the recipe has 10.0.
                return (value,)
            return (wanted,)
        if drawn.distribution.ordered:
            return None
        # A choice may be written in part: {flip: none} stands for a whole augmentation.
        for choice in drawn.distribution.to_check():
            recipe = assembled(schedule, {drawn.path: choice}, "the space")
            whole = paths.value_at(_resolved(recipe), drawn.path)
            if as_text(whole) == as_text(wanted):
                return (choice,)
        return None

    def _find(self, name: str) -> Schedule | None:
        for schedule in self.schedules:
            if schedule.name == name:
                return schedule
        return None


def assembled(schedule: Schedule, values: Mapping[str, Any], label: str) -> Recipe:
    """Returns the recipe with a list of stages and with values at some paths.

    Args:
        schedule: the list of stages.
        values: by path. A mapping of fields is laid over those of the recipe.
        label: what the values come from, for messages.

    Raises:
        ConfigError: a path that does not exist, or a value out of range.
    """
    return validate(paths.laid_over(schedule.values, values), label)


def _words(text: str) -> list[str]:
    """The assignments of `--try`."""
    example = "--try 'train.wd=0.02 stages.1.lr=0.003'"
    try:
        words = shlex.split(text)
    except ValueError:
        raise ConfigError(
            f'{TRY} "{text}" has a quote that does not end', "it cannot be read", example
        ) from None
    if not words:
        raise ConfigError(
            f"{TRY} is empty", "the given recipe is the first trial of a search anyway", example
        )
    return words


def _count(fields: tuple[Drawn, ...]) -> int | None:
    """Number of different values of some fields together; None if there is no end of them."""
    product = 1
    for drawn in fields:
        levels = drawn.distribution.levels
        if levels is None:
            return None
        product *= levels
    return product


def _next_value(
    drawn: Drawn, values: Mapping[str, Any], moves: bool, rng: np.random.Generator
) -> Any:
    """The value of a field of a neighbour."""
    distribution = drawn.distribution
    coordinate = None
    if drawn.path in values:
        coordinate = distribution.coordinate(values[drawn.path])
    # The other list of stages may lack the field, or a trial of one's own have another value.
    if coordinate is None:
        return distribution.value(distribution.draw(rng))
    if not moves:
        return values[drawn.path]
    return distribution.value(distribution.near(coordinate, rng))


def _resolved(recipe: Recipe) -> dict[str, Any]:
    """The fields of a recipe, equal for recipes that train alike."""
    values: dict[str, Any] = json.loads(recipe.without_stage_names().model_dump_json())
    for stage, resolved in zip(recipe.stages, values["stages"], strict=True):
        resolved["freeze"] = stage.frozen_groups
        resolved["batch_size"] = recipe.batch_size(stage)
        resolved["augment"] = recipe.augment(stage).model_dump(mode="json")
    return values
