"""Reads a space file: from the path of a field to how its value is drawn.

    train.wd: {choice: [0.003, 0.01, 0.03]}
    stages:
      choice:
        lesson:
          - {size: 128, epochs: 5, freeze: true, lr: {loggrid: [0.002, 0.03, 5]}}
          - {size: 256, epochs: 5, lr: {loggrid: [0.0005, 0.008, 5], ratio: 0.05}}
        short:
          - {size: 256, epochs: 5, lr: 0.01}
    at_most: {cost: 1.5}

Without `stages`, a path such as stages.2.lr leads into the list of the recipe. With it, such a path
leads into every list. Lists may also stand in a list without names: their names are 1, 2, and so
on. The distributions are those of `distributions`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raytrain.config import Recipe, with_fields
from raytrain.errors import ConfigError, did_you_mean
from raytrain.search import distributions, paths, space_checks
from raytrain.search.distributions import as_text, is_distribution
from raytrain.search.refusals import refuse_keys
from raytrain.search.space import GIVEN, Drawn, Schedule, Space

AT_MOST = "at_most"
_EXAMPLE = "train.wd: {choice: [0.003, 0.01, 0.03]}"
_EXAMPLE_OF_LISTS = (
    "stages: {choice: {long: [{size: 128, epochs: 5, lr: 0.01}], "
    "short: [{size: 128, epochs: 2, lr: 0.01}]}}"
)


@dataclass(frozen=True)
class _List:
    """A list of stages of a space file.

    Attributes:
        name: of the list.
        stages: its stages without the values that are drawn.
        fields: that are drawn in it.
    """

    name: str
    stages: list[Any]
    fields: tuple[Drawn, ...]


def read(content: Mapping[Any, Any], given: Recipe) -> Space:
    """Reads a space and checks all of it.

    Every choice and both ends of every range are tried in the recipe, in each list of stages.

    Args:
        content: of a YAML file.
        given: the recipe that the search starts from.

    Raises:
        ConfigError: nothing is searched, or something in it can never be drawn or used.
    """
    refuse_keys(content, "the space")
    entries = {}
    for path, how in _entries(content):
        if path in entries:
            raise _drawn_twice(path, path)
        entries[path] = how
    most_cost = _most_cost(entries.pop(AT_MOST, None))
    lists = _lists(entries.pop(paths.STAGES, None), given)
    schedules = [_schedule(found, entries, given) for found in lists]
    if not schedules:
        schedules = [_own_schedule(entries, given)]
    for path in _in_stages(entries):
        # Each list has read those by now.
        del entries[path]
    shared = _drawn_fields(entries, given.model_dump(mode="json"))
    found = Space(given, shared, tuple(schedules), most_cost)
    space_checks.check(found)
    return found


def _entries(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Paths with what stands there. Groups of fields may be nested, as in a recipe."""
    for key, how in content.items():
        if not isinstance(key, str) or not key.strip():
            raise ConfigError(
                f"the space has the key {key!r}, which is not the path of a field",
                "each key says which field is drawn",
                _EXAMPLE,
            )
        path = prefix + key
        nests = isinstance(how, Mapping) and not is_distribution(how)
        # What else is no distribution is refused where it is read.
        if nests and paths.holds_fields(path):
            yield from _entries(how, f"{path}.")
        else:
            yield path, how


def _most_cost(limits: Any) -> float | None:
    """The highest cost of a chain, from `at_most`."""
    if limits is None:
        return None
    example = "at_most: {cost: 1.5}"
    if not isinstance(limits, Mapping) or list(limits) != ["cost"]:
        hint = ""
        if isinstance(limits, Mapping):
            hint = did_you_mean(str(next(iter(limits), "")), ["cost"])
        raise ConfigError(
            f"{AT_MOST} = {limits!r} is not understood.{hint}",
            "it limits the cost of a trial, and nothing else; the given recipe costs 1",
            example,
        )
    cost = distributions.plain(limits["cost"])
    if isinstance(cost, int | float) and not isinstance(cost, bool) and 0 < cost < math.inf:
        return float(cost)
    raise ConfigError(
        f"{AT_MOST}: the cost {cost!r} is not a number above 0",
        "the given recipe costs 1",
        example,
    )


def _lists(how: Any, given: Recipe) -> list[_List]:
    """The lists of stages, or none where `stages` is not drawn."""
    if how is None:
        return []
    if not isinstance(how, Mapping) or list(how) != ["choice"]:
        raise ConfigError(
            f"the space draws {paths.STAGES} by {how!r}",
            "whole lists of stages are drawn by a choice of them",
            _EXAMPLE_OF_LISTS,
        )
    if given.select is not None:
        raise ConfigError(
            f"the space draws {paths.STAGES}, and --stages {given.select} selects from one list",
            "the same numbers would select other stages in each list",
            "leave out --stages",
        )
    choice = distributions.plain(how["choice"])
    if isinstance(choice, list):
        # Without names, their numbers are the names.
        choice = {str(number): stages for number, stages in enumerate(choice, 1)}
    if not isinstance(choice, Mapping) or not choice:
        raise ConfigError(
            f"the space draws {paths.STAGES} from {choice!r}",
            "there is no list of stages to draw",
            _EXAMPLE_OF_LISTS,
        )
    _refuse_equal(choice)
    return [_list(name, stages) for name, stages in choice.items()]


def _refuse_equal(lists: Mapping[str, Any]) -> None:
    names: dict[str, str] = {}
    for name, stages in lists.items():
        text = as_text(_without_names(stages))
        if text in names:
            raise ConfigError(
                f"the lists {names[text]} and {name} of the space are equal",
                "each list has the same weight, and equal ones are one",
                "leave one of them out",
            )
        names[text] = name


def _without_names(stages: Any) -> Any:
    """A list of stages without their names, which change no result; anything else as it is."""
    if not isinstance(stages, list):
        return stages
    plain = []
    for stage in stages:
        if isinstance(stage, Mapping):
            stage = {key: how for key, how in stage.items() if key != "name"}
        plain.append(stage)
    return plain


def _list(name: str, stages: Any) -> _List:
    if name == GIVEN:
        raise ConfigError(
            f'the space has a list of stages with the name "{GIVEN}"',
            "this name stands for the list of the given recipe",
            "give it another one, such as lesson",
        )
    is_list = isinstance(stages, list) and all(isinstance(stage, Mapping) for stage in stages)
    if not is_list or not stages:
        raise ConfigError(
            f"the list {name} of the space is {stages!r}, and not a list of stages",
            "a trial trains its stages one after the other",
            _EXAMPLE_OF_LISTS,
        )
    kept = []
    fields = []
    for number, stage in enumerate(stages, 1):
        values, drawn = _split(f"{paths.STAGES}.{number}", stage)
        kept.append(values)
        fields += drawn
    return _List(name, kept, tuple(fields))


def _split(prefix: str, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Drawn]]:
    """Splits the fields of a stage into those with a value and those that are drawn."""
    kept: dict[str, Any] = {}
    fields: list[Drawn] = []
    for key, how in values.items():
        path = f"{prefix}.{key}"
        is_mapping = isinstance(how, Mapping)
        # The only group of fields in a stage is its augmentation.
        if is_mapping and paths.holds_fields(path) and not is_distribution(how):
            kept[key], below = _split(path, how)
            fields += below
        elif is_mapping:
            fields.append(Drawn(path, distributions.read(path, how)))
        elif isinstance(how, list):
            kept[key], below = _split_pair(path, how)
            fields += below
        else:
            kept[key] = how
    return kept, fields


def _split_pair(path: str, values: Sequence[Any]) -> tuple[list[Any], list[Drawn]]:
    """The same for a pair of rates, each of which may be drawn."""
    kept = []
    fields = []
    for number, how in enumerate(values, 1):
        value = how
        if is_distribution(how):
            drawn = Drawn(f"{path}.{number}", distributions.read(f"{path}.{number}", how))
            fields.append(drawn)
            # A rate of a pair can only be set where there is a pair.
            value = _any_value(drawn)
        kept.append(value)
    return kept, fields


def _any_value(drawn: Drawn) -> Any:
    return drawn.distribution.value(drawn.distribution.middle)


def _schedule(found: _List, entries: Mapping[str, Any], given: Recipe) -> Schedule:
    """A list of the space, with the paths of the space that lead into it."""
    values = given.model_dump(mode="json")
    values[paths.STAGES] = [dict(stage) for stage in found.stages]
    by_path = _in_stages(entries)
    for path in by_path:
        _refuse_missing(path, found)
        _refuse_drawn_in_list(path, found)
    fields = (*found.fields, *_drawn_fields(by_path, values))
    for drawn in found.fields:
        value = _any_value(drawn)
        # Laid over a group of fields, it would stay below what is drawn.
        if not isinstance(value, Mapping):
            values = with_fields(values, {drawn.path: value})
    count = len(found.stages)
    return Schedule(found.name, values, _by_stage(fields), (1, count))


def _own_schedule(entries: Mapping[str, Any], given: Recipe) -> Schedule:
    """The list of the given recipe, with the paths of the space that lead into it."""
    values = given.model_dump(mode="json")
    fields = _drawn_fields(_in_stages(entries), values)
    return Schedule(GIVEN, values, _by_stage(fields), given.selected)


def _in_stages(entries: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that lead into a stage."""
    found = {}
    for path, how in entries.items():
        if paths.stage_of(path) is not None:
            found[path] = how
    return found


def _by_stage(fields: Sequence[Drawn]) -> tuple[Drawn, ...]:
    """The fields in the order of their stages, in which the model sees them."""
    return tuple(sorted(fields, key=lambda drawn: paths.stage_of(drawn.path) or 0))


def _refuse_missing(path: str, found: _List) -> None:
    number = paths.stage_of(path)
    count = len(found.stages)
    if number is None or number <= count:
        return
    stages = "stages"
    if count == 1:
        stages = "stage"
    raise ConfigError(
        f"the space draws {path}, and its list {found.name} has {count} {stages}",
        "a path leads into every list of stages",
        "write the distribution into the stages of the lists that have it",
    )


def _refuse_drawn_in_list(path: str, found: _List) -> None:
    for drawn in found.fields:
        if paths.overlap(path, drawn.path):
            raise ConfigError(
                f"the space draws {path}, and its list {found.name} draws {drawn.path} itself",
                "a path leads into every list, and only one of the two could be used",
                f"leave out {path}, or write it into the lists that lack it",
            )


def _drawn_fields(entries: Mapping[str, Any], values: Mapping[str, Any]) -> tuple[Drawn, ...]:
    """The fields of some paths.

    Args:
        entries: paths with their distributions as written.
        values: nested values of the recipe, which know whether a path exists.
    """
    fields: list[Drawn] = []
    for path, how in entries.items():
        # Only the path is checked here.
        with_fields(values, {path: None})
        for other in fields:
            if paths.overlap(path, other.path):
                raise _drawn_twice(other.path, path)
        fields.append(Drawn(path, distributions.read(path, how)))
    return tuple(fields)


def _drawn_twice(one: str, other: str) -> ConfigError:
    what = f"{one} and {other}"
    if one == other:
        what = f"{one} twice"
    return ConfigError(
        f"the space draws {what}",
        "both set the same field, and only one of them could be used",
        "leave one of them out",
    )
