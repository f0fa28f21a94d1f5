"""Paths of fields, such as train.wd or stages.2.lr, as a space uses them. Numbers count from 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from pydantic import BaseModel

from raytrain.config import Recipe, Stage, merge, with_fields
from raytrain.config.overrides import nested_model

STAGES = "stages"


def stage_of(path: str) -> int | None:
    """Returns the number of the stage that a path leads into, or None if it leads into none."""
    first, _, rest = path.partition(".")
    number = rest.partition(".")[0]
    if first != STAGES or not number.isdecimal():
        return None
    return int(number)


def is_rate(path: str) -> bool:
    """Whether a path leads to the learning rate of a stage, or to one rate of its pair."""
    return stage_of(path) is not None and path.split(".")[2:3] == ["lr"]


def is_stage_name(path: str) -> bool:
    """Whether a path leads to the name of a stage."""
    return stage_of(path) is not None and path.split(".")[2:] == ["name"]


def takes_pair(path: str) -> bool:
    """Whether a path leads to the learning rate of a stage, which may be a pair."""
    return is_rate(path) and path.endswith(".lr")


def overlap(one: str, other: str) -> bool:
    """Whether two paths lead to the same field, or one to a part of the other."""
    # With a dot at the end, stages.1 is no part of stages.12.
    inside = f"{one}.".startswith(f"{other}.")
    around = f"{other}.".startswith(f"{one}.")
    return inside or around


@lru_cache(maxsize=1000)
def holds_fields(path: str) -> bool:
    """Whether a path leads to a group of fields, such as data.augment or a whole stage."""
    model: type[BaseModel] = Recipe
    keys = path.split(".")
    # The list of stages is no group of fields, and each stage of it is one.
    if stage_of(path) is not None:
        model = Stage
        keys = keys[2:]
    for key in keys:
        if key not in model.model_fields:
            return False
        below = nested_model(model, key)
        if below is None:
            return False
        model = below
    return True


def value_at(values: Mapping[str, Any], path: str) -> Any:
    """Returns the value at a path of nested values, or None where there is none."""
    below: Any = values
    for key in path.split("."):
        if isinstance(below, Mapping):
            below = below.get(key)
        elif isinstance(below, Sequence) and key.isdecimal() and 1 <= int(key) <= len(below):
            below = below[int(key) - 1]
        else:
            return None
    return below


def laid_over(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested values with other ones at some paths.

    A group of fields that is given in part keeps the others: with {flip: none} at data.augment,
    its rotation stays.

    Args:
        values: nested values of a recipe.
        changes: values by path.

    Raises:
        ConfigError: a path that does not exist.
    """
    whole = {}
    for path, value in changes.items():
        below = value_at(values, path)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        # Numbers by label are no fields: {} means none of them.
        if both and holds_fields(path):
            value = merge(below, value)
        whole[path] = value
    return with_fields(values, whole)
