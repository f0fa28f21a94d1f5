"""Fields in which two recipes differ, as files hold them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raytrain.config.loading import parse_yaml
from raytrain.config.recipe import Recipe
from raytrain.errors import masked


def different_fields(one: Recipe, two: Recipe) -> set[str]:
    """Returns the paths of the fields whose values differ, such as `train.wd`.

    A list, such as that of the stages, counts as one value. Keys of URIs do not count, since files
    do not hold them.
    """
    return _different(_as_written(one), _as_written(two))


def _as_written(recipe: Recipe) -> dict[str, Any]:
    return parse_yaml(masked(recipe.to_yaml()), "recipe")


def _different(one: Mapping[str, Any], two: Mapping[str, Any], prefix: str = "") -> set[str]:
    found = set()
    for key in one.keys() | two.keys():
        first = one.get(key)
        second = two.get(key)
        if isinstance(first, Mapping) and isinstance(second, Mapping):
            found |= _different(first, second, f"{prefix}{key}.")
        elif first != second:
            found.add(f"{prefix}{key}")
    return found
