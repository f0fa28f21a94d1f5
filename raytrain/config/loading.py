"""How a recipe file, the environment and flags become one validated recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from raytrain import storage
from raytrain.config.environment import environment
from raytrain.config.mistakes import as_config_error
from raytrain.config.names import SELECTION, shown
from raytrain.config.overrides import overridden, refuse_set_twice, with_fields
from raytrain.config.recipe import Recipe
from raytrain.errors import ConfigError, did_you_mean


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    files = resources.files("raytrain.recipes").iterdir()
    return sorted(f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml"))


def load_recipe(
    source: str | None,
    overrides: Mapping[str, Any] | None = None,
    fields: Mapping[str, Any] | None = None,
) -> Recipe:
    """Reads a recipe. Flags override `RAYTRAIN_*` variables, which override the file.

    Example:
        ```python
        recipe = raytrain.load_recipe("planet-resnet50", {"dataset": "planet"})
        recipe = raytrain.load_recipe("mine.yaml", fields={"train.batch_size": 32})
        ```

    Args:
        source: a recipe's name, the path of a YAML file, or None for the defaults.
        overrides: nested dictionary with the fields that flags set, as `Recipe.model_dump`
            gives them.
        fields: values by path, as `--set` gives them; see `set_field`.

    Raises:
        ConfigError: unknown recipe, unreadable YAML, unknown key, value out of range, or a
            field that is in `overrides` and in `fields`.
    """
    text = ""
    label = "the command line"
    if source:
        text = _recipe_text(source)
        label = source
    flags = overrides or {}
    values = overridden(parse_yaml(text, label), environment())
    values = overridden(values, flags)
    if not fields:
        return validate(values, label, text)
    # Both are flags, so neither can override the other.
    refuse_set_twice(flags, fields)
    # Checked without `fields` first: any mistake that is found afterwards is in `fields`.
    _checked(values, label, text)
    recipe = _checked(with_fields(values, fields), "--set")
    _check_selection(recipe, label)
    return recipe


def validate(values: Mapping[str, Any], label: str, text: str = "") -> Recipe:
    """Checks nested values against the models. All mistakes are named at once.

    Args:
        values: nested dictionary with the fields.
        label: what the values come from, for messages.
        text: the YAML text of the values, which gives messages the numbers of lines.

    Raises:
        ConfigError: with the keys, the values, the allowed ranges and the nearest known key.
    """
    recipe = _checked(values, label, text)
    _check_selection(recipe, label)
    return recipe


def _checked(values: Mapping[str, Any], label: str, text: str = "") -> Recipe:
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise as_config_error(error, label, text) from None


def _check_selection(recipe: Recipe, label: str) -> None:
    names = recipe.stage_names
    if recipe.select is None or recipe.select in names:
        return
    count = len(names)
    if re.fullmatch(SELECTION, recipe.select) is None:
        raise ConfigError(
            f"--stages {shown(recipe.select)}: {label} has no stage of this name."
            f"{did_you_mean(recipe.select, names)}",
            f"its stages 1 to {count} are {', '.join(names)}",
            f"--stages 1-{count}, or --stages {names[-1]}",
        )
    first, last = recipe.selected
    if 1 <= first <= last <= count:
        return
    raise ConfigError(
        f"--stages {recipe.select}: {label} has the stages 1 to {count}",
        "there is nothing to select",
        f"--stages 1-{count}",
    )


def parse_yaml(text: str, label: str) -> dict[str, Any]:
    """Reads YAML text that must be a mapping (or empty).

    Raises:
        ConfigError: broken YAML with its line, or another shape than a mapping.
    """
    import yaml

    from raytrain.config import yaml_values

    try:
        values = yaml_values.load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = ""
        if mark:
            where = f" at line {mark.line + 1}"  # PyYAML counts lines from 0
        raise ConfigError(
            f"{label} is not valid YAML{where}: {getattr(error, 'problem', error)}",
            "the recipe cannot be read",
            "correct that line; `raytrain train --print-config` prints a recipe that works",
        ) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{label} holds a {type(values).__name__}, not keys with values",
            "",
            "raytrain train --print-config shows the keys",
        )
    return values


def _recipe_text(source: str) -> str:
    names = recipe_names()
    if source in names:
        return resources.files("raytrain.recipes").joinpath(f"{source}.yaml").read_text()
    if storage.is_uri(source) and storage.exists(source):
        return storage.read_bytes(source).decode()
    path = Path(source).expanduser()
    if path.is_file():
        return path.read_text()
    raise ConfigError(
        f'no recipe "{source}": it is neither a file nor one of {", ".join(names)}.'
        f"{did_you_mean(source, names)}",
        "there is nothing to run",
        f"raytrain train --config {names[0]} --print-config",
    )
