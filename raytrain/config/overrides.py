"""Fields of a recipe by their path, such as `train.wd` or `stages.2.lr`: `--set`, search spaces.

Names in a path are separated by dots, and numbers count from 1.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from raytrain.config.recipe import LESSON_STAGES, STAGE_ONLY, Recipe, Stage, by_label
from raytrain.errors import ConfigError, did_you_mean


def parse_assignments(texts: Iterable[str], flag: str = "--set") -> dict[str, Any]:
    """Reads what `--set` was given: `PATH=VALUE`, such as `stages.2.lr=1e-5,0.002`.

    Args:
        texts: one for each `--set`. The value is YAML; the rate of a stage may also be a pair
            of numbers separated by a comma.
        flag: that they were given to, for messages.

    Returns:
        Values by path. Whether a path exists is checked by `set_field`.

    Raises:
        ConfigError: no equals sign, no value, a value that is not YAML, or a path given twice.
    """
    fields: dict[str, Any] = {}
    for text in texts:
        path, equals, written = text.partition("=")
        path = path.strip()
        if not equals or not path or not written.strip():
            raise ConfigError(
                f'{flag} "{text}" is not of the form PATH=VALUE',
                "a field is set by its path, an equals sign and its value; null unsets a field",
                f"{flag} stages.1.lr=0.01 (raytrain train --print-config shows the fields)",
            )
        if path in fields:
            raise ConfigError(
                f"{flag} {path} is given twice",
                "only one of the two values could be used",
                f"leave one of them out, such as {flag} {text}",
            )
        fields[path] = _parse_value(path, written, flag)
    return fields


def _parse_value(path: str, written: str, flag: str) -> Any:
    from yaml import YAMLError

    from raytrain.config import yaml_values

    try:
        value = yaml_values.load(written)
    except YAMLError:
        raise ConfigError(
            f"{flag} {path}={written}: the value is not valid YAML",
            "values are written as in a recipe file",
            f'{flag} "{path}=..." with a value as raytrain train --print-config shows it',
        ) from None
    is_rate = re.fullmatch(r"stages\.\d+\.lr", path) is not None
    if is_rate and isinstance(value, str) and "," in value:
        # pydantic turns the texts into numbers, and refuses what is not a pair of them.
        return [part.strip() for part in value.split(",")]
    return value


def with_fields(values: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested values with values at some paths, as `set_field` sets them.

    The whole list `stages` is set first, so that a path into it changes the new list.

    Raises:
        ConfigError: a path that does not exist.
    """
    changed: dict[str, Any] = copy.deepcopy(_without_range(values, fields))
    for path in sorted(fields, key=lambda path: (path != "stages", path)):
        # A copy, because a later path may change a part of this value.
        set_field(changed, path, copy.deepcopy(fields[path]))
    return changed


def set_field(values: dict[str, Any], path: str, value: Any) -> None:
    """Sets one field of a recipe by its path, in place. The value itself is not checked.

    Args:
        values: nested fields of a recipe; those left out have their default.
        path: names separated by dots, such as `train.wd`. Numbers count from 1: `stages.2.lr`
            is the rate of the second stage, `stages.2.lr.1` the first rate of its pair.
            Below `data.repeat` stands a label.
        value: the new value.

    Raises:
        ConfigError: the recipe has no such field or no such stage.
    """
    keys = path.split(".")
    if keys[0] != "stages" or len(keys) == 1:
        _set_in(values, Recipe, keys, path, value)
        return
    stages = _listed_stages(values)
    values["stages"] = stages
    index = _stage_index(path, keys[1], len(stages))
    if len(keys) == 2:
        stages[index] = value
    else:
        _set_in(stages[index], Stage, keys[2:], path, value)


def _listed_stages(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The stages of nested values as dictionaries that can be changed."""
    stages = values.get("stages")
    if stages is None:
        return [stage.model_dump(exclude_none=True) for stage in LESSON_STAGES]
    if isinstance(stages, list | tuple) and all(isinstance(stage, Mapping) for stage in stages):
        return [dict(stage) for stage in stages]
    raise ConfigError(
        f"stages = {stages!r} is not a list of stages",
        "no field of a stage can be set in it",
        "stages: [{size: 128, epochs: 5, lr: 0.01}]",
    )


def _stage_index(path: str, word: str, count: int) -> int:
    """Position in the list, from 0, of a stage that a path names, from 1."""
    if word.isdecimal() and int(word) == 0:
        raise _counted_from_one(path, f"stages.{word}", "stages.1", "the first stage")
    if not word.isdecimal() or int(word) > count:
        rest = path.removeprefix(f"stages.{word}")
        raise ConfigError(
            f'"{path}" names the stage {word}, and the recipe has {_stages_in_words(count)}',
            f"stages are numbered from 1 to {count}",
            f"stages.{count}{rest} for the last stage",
        )
    return int(word) - 1


def _stages_in_words(count: int) -> str:
    if count == 1:
        return "1 stage"
    return f"{count} stages"


def _counted_from_one(path: str, zero: str, one: str, what: str) -> ConfigError:
    return ConfigError(
        f'"{path}": numbers in a path count from 1, and {one} is {what}',
        f"{zero} does not exist",
        one + path.removeprefix(zero),
    )


def _set_in(
    target: dict[str, Any], model: type[BaseModel], keys: Sequence[str], path: str, value: Any
) -> None:
    """Sets a field below one of the nested models.

    Args:
        target: the model's fields, changed in place.
        model: the model that has the first of `keys`.
        keys: what is left of the path.
        path: the whole path, for messages.
        value: the new value.
    """
    key, *rest = keys
    if key not in model.model_fields:
        raise _no_field(path, keys, model)
    if not rest:
        target[key] = value
        return
    if model is Stage and key == "lr":
        target[key] = _with_rate(target.get(key), rest, path, value)
        return
    nested = nested_model(model, key)
    if holds_labels(model, key):
        numbers = by_label(target.get(key) or {})
        # A word such as `balanced` holds no number that could stay.
        kept = numbers if isinstance(numbers, Mapping) else {}
        # What is left of the path is one label, which may hold dots.
        target[key] = {**kept, ".".join(rest): value}
        return
    if nested is None:
        raise _no_field(path, rest, None)
    below = target.get(key)
    if below is None:
        # What is left out, or null, takes the other values from the defaults.
        below = {}
    if not isinstance(below, Mapping):
        raise _no_field(path, rest, None)
    changed = dict(below)
    target[key] = changed
    _set_in(changed, nested, rest, path, value)


def _with_rate(rates: Any, keys: Sequence[str], path: str, value: Any) -> list[Any]:
    """The pair of a stage's rates with one of them replaced; `keys` is `["1"]` or `["2"]`."""
    whole = path.rpartition(".")[0]
    if keys[0] == "0":
        raise _counted_from_one(path, f"{whole}.0", f"{whole}.1", "the first rate of the pair")
    if not isinstance(rates, list | tuple):
        raise ConfigError(
            f'"{path}" names one rate of a pair, and this stage has the single rate {rates}',
            "a single rate has no parts",
            f"{whole} sets the rate",
        )
    if len(keys) > 1 or keys[0] not in ("1", "2"):
        raise ConfigError(
            f'"{path}": a pair of rates has the parts 1 and 2',
            "1 is the rate of the first layer group, 2 that of the head",
            f"{whole}.2",
        )
    changed = list(rates)
    changed[int(keys[0]) - 1] = value
    return changed


def _no_field(path: str, keys: Sequence[str], model: type[BaseModel] | None) -> ConfigError:
    """The error for a path that does not exist.

    Args:
        path: the whole path.
        keys: what is left of it, from the first key that does not exist on.
        model: the model that lacks the key; None if a single value stands there.
    """
    show = "raytrain train --print-config shows every field with its value"
    wrong = ".".join(keys)
    prefix = path.removesuffix(wrong)  # such as "train.", or "" at the top
    what = f'the recipe has no field "{path}"'
    if model is None:
        return ConfigError(what, f"{prefix.rstrip('.')} is a single value", show)
    if model is not Stage and keys[-1] in STAGE_ONLY:
        return ConfigError(what, *stage_field_hint(keys[-1]))
    known = [f"{prefix}{field}" for field in model.model_fields]
    nearest = did_you_mean(f"{prefix}{keys[0]}", known)
    return ConfigError(f"{what}.{nearest}", f"there are {', '.join(known)}", show)


def stage_field_hint(field: str, value: Any = None) -> tuple[str, str]:
    """Why a field cannot be set for the whole run, and how it is set for a stage.

    Args:
        field: one of `STAGE_ONLY`.
        value: what it was to be; None if that is not known.

    Returns:
        The reason and the command to type, as `ConfigError` takes them.
    """
    written = "VALUE" if value is None else str(value)
    if isinstance(value, list | tuple):
        written = ",".join(map(str, value))
    why = f"{_stage_noun(field)} belongs to a stage, and each stage has its own"
    fix = (
        f"--set stages.1.{field}={written} sets it for the first stage; "
        f"or write `{field}:` into the stages of a recipe file, as --print-config prints one"
    )
    return why, fix


def _stage_noun(field: str) -> str:
    if field == "lr":
        return "a peak learning rate"
    return f"the field {field}"


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lays one nested dictionary over another; lists are replaced as a whole."""
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def overridden(values: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The nested fields of a recipe with others laid over them.

    A number of workers replaces a range, whose two numbers are two fields.
    """
    return merge(_without_range(values, above), above)


def _without_range(values: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a recipe's fields; without the largest number where others set the number alone."""
    kept = dict(values)
    if "num_workers" in fields and "max_workers" not in fields:
        kept["max_workers"] = None
    return kept


def nested(keys: Sequence[str], value: Any) -> dict[str, Any]:
    """A value as nested dictionaries: ["train", "wd"] and 0.1 give {"train": {"wd": 0.1}}."""
    first, *rest = keys
    if not rest:
        return {first: value}
    return {first: nested(rest, value)}


def field_paths(values: Mapping[str, Any], prefix: str = "") -> set[str]:
    """The paths of the fields that nested values set, such as train.wd."""
    paths = set[str]()
    for key, value in values.items():
        if isinstance(value, Mapping):
            paths |= field_paths(value, f"{prefix}{key}.")
        else:
            paths.add(f"{prefix}{key}")
    return paths


def refuse_set_twice(flags: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
    """Refuses a field that is given by a flag of its own and by `--set`.

    Args:
        flags: nested values of the flags.
        fields: values by path.

    Raises:
        ConfigError: with both flags.
    """
    for flag in sorted(field_paths(flags)):
        for path in fields:
            # One may hold the other: --set train={...} and --train.wd.
            if f"{flag}.".startswith(f"{path}.") or f"{path}.".startswith(f"{flag}."):
                name = "stages" if flag == "select" else flag.replace("_", "-")
                raise ConfigError(
                    f"--{name} and --set {path} set the same field",
                    "only one of the two values could be used",
                    f"leave out --{name} or --set {path}",
                )


def nested_model(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    """The model that a field holds, also where it may be None; else None."""
    annotation = model.model_fields[key].annotation
    options: Sequence[Any] = (annotation,)
    # `Augment | None`, but not tuple[Stage, ...]: a list is no nested model.
    if isinstance(annotation, UnionType):
        options = [option for option in get_args(annotation) if option is not NoneType]
    # A field that may also be a word, such as data.normalize, is set as a whole.
    if len(options) != 1:
        return None
    only = options[0]
    if isinstance(only, type) and issubclass(only, BaseModel):
        return only
    return None


def holds_labels(model: type[BaseModel], key: str) -> bool:
    """Whether a field holds numbers by label, such as data.repeat."""
    annotation = model.model_fields[key].annotation
    return any(get_origin(kind) is dict for kind in (annotation, *get_args(annotation)))


def leaf_paths(model: type[BaseModel], prefix: str = "") -> list[str]:
    """The paths of all fields below a model that hold a value and no further fields."""
    paths = []
    for key in model.model_fields:
        nested = nested_model(model, key)
        if nested is None:
            paths.append(f"{prefix}{key}")
        else:
            paths += leaf_paths(nested, f"{prefix}{key}.")
    return paths
