"""What pydantic found wrong in a recipe, in words for its user."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, ValidationError

from raytrain.config.overrides import nested_model, stage_field_hint
from raytrain.config.recipe import STAGE_NAME_ERROR, STAGE_ONLY, Recipe, Stage
from raytrain.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


def as_config_error(error: ValidationError, label: str = "", text: str = "") -> ConfigError:
    """Pydantic's error as one of ours: key, line in `text`, value, allowed range, nearest key.

    Args:
        error: raised by a model of this module.
        label: what the values come from; empty for flags.
        text: the YAML text of the values; empty if there is none.
    """
    # A tuple that lost a bad item is reported again as too short; the item itself says enough.
    found = [e for e in error.errors() if e["type"] != "too_short" or error.error_count() == 1]
    what = "; ".join(_sentence(e, text) for e in found)
    if label:
        what = f"{label}: {what}"
    for entry in found:
        if entry["type"] == STAGE_NAME_ERROR:
            return ConfigError(
                what,
                "the checkpoint of a stage has its name, and --init-from RUN:NAME finds it",
                "give each stage another name, with letters, digits, _, . and -: "
                "--set stages.1.name=first-256; null takes the name of its number and size",
            )
        field = _stage_field_of(entry)
        if field is not None:
            return ConfigError(what, *stage_field_hint(field, entry.get("input")))
    return ConfigError(
        what,
        "a run with a setting that is not understood would not be the run you meant",
        "raytrain train --print-config shows every key with its value",
    )


def _stage_field_of(entry: ErrorDetails) -> str | None:
    """The field of a stage that was given to the whole run, or None if the mistake is another."""
    location = entry["loc"]
    if not location or "stages" in location:
        return None
    last = str(location[-1])
    if last not in STAGE_ONLY:
        return None
    # `lr` is also a field of the recipe, which only takes `auto` and `lesson`.
    if entry["type"] == "extra_forbidden" or location == ("lr",):
        return last
    return None


def _sentence(entry: ErrorDetails, text: str) -> str:
    path = _without_branches(entry["loc"])
    value = entry.get("input")
    line = _line_of(path, text)
    key = _key(path)
    where = key
    if line is not None:
        where = f"{key} (line {line})"
    kind = entry["type"]
    if kind == "extra_forbidden" and _stage_field_of(entry) is not None:
        # The nearest key would mislead: the field exists, but in a stage.
        return f'unknown key "{where}"'
    if kind == "extra_forbidden":
        known = _model_at(path[:-1]).model_fields
        return f'unknown key "{where}".{did_you_mean(str(path[-1]), known)}'
    if kind == "missing":
        return f"{where} is missing"
    if kind == "model_type":
        first = next(iter(_model_at(path).model_fields))
        return f"{where} = {value!r}: it has fields of its own, such as {key}.{first}"
    message = entry["msg"].removeprefix("Value error, ")
    # A mistake of a whole model has no value to show but all of its fields.
    if kind in ("value_error", STAGE_NAME_ERROR) and not path:
        return f"{where}: {message}"
    return f"{where} = {value!r}: {message}"


def _without_branches(location: Sequence[int | str]) -> tuple[int | str, ...]:
    """Pydantic's path of a mistake without the names of types.

    A field of type `float | tuple[float, float]` is reported once for each of its types, with
    the type's name as a part of the path.
    """
    path = []
    # Names of types are `float`, `tuple`, or hold brackets: `tuple[float, float]`.
    for part in location:
        is_type = isinstance(part, str) and (
            part in ("float", "tuple") or re.fullmatch(r"\w+", part) is None
        )
        if not is_type:
            path.append(part)
    return tuple(path)


def _key(path: Sequence[int | str]) -> str:
    """A path as users write it: numbers count from 1."""
    parts = [str(part + 1) if isinstance(part, int) else part for part in path]
    return ".".join(parts) or "recipe"


def _model_at(path: Sequence[int | str]) -> type[BaseModel]:
    """The model at a path; the whole recipe for a path that does not lead to one."""
    model: type[BaseModel] = Recipe
    for part in path:
        if part == "stages":
            model = Stage
        elif isinstance(part, str):
            model = nested_model(model, part) or Recipe
    return model


def _line_of(path: Sequence[int | str], text: str) -> int | None:
    """Line of a key in YAML text, counted from 1; None if the text does not hold it."""
    if not text:
        return None
    import yaml

    node = yaml.compose(text)
    line = None
    for part in path:
        if isinstance(node, yaml.MappingNode):
            pair = next((p for p in node.value if p[0].value == part), None)
            if pair is None:
                return None
            key_node, node = pair
            line = key_node.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            if part >= len(node.value):
                return line
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return line
    return line
