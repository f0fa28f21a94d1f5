"""The `RAYTRAIN_*` variables that set fields of a recipe."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from raytrain.config.names import SELECTION
from raytrain.config.overrides import leaf_paths, merge, nested, stage_field_hint
from raytrain.config.recipe import STAGE_ONLY, Recipe
from raytrain.errors import ConfigError, did_you_mean

ENV_PREFIX = "RAYTRAIN_"
# Variables with the prefix that are not fields of a recipe.
ENV_OTHER = {"RAYTRAIN_CACHE", "RAYTRAIN_CACHE_GB", "RAYTRAIN_REAL_DATA", "RAYTRAIN_TORCH_INDEX"}
# Flags of commands that are not fields of a recipe, so that no variable sets them.
FLAGS_ONLY = {
    "config",
    "set",
    "name",
    "resume",
    "folds",
    "restarts",
    "dry-run",
    "print-config",
    "space",
    "num-samples",
    "out",
}


def environment(env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The `RAYTRAIN_*` variables as nested values.

    `RAYTRAIN_TRAIN__BATCH_SIZE=32` sets `train.batch_size`.

    Raises:
        ConfigError: a variable that names no field.
    """
    variables = os.environ if env is None else env
    values: dict[str, Any] = {}
    for name, value in variables.items():
        # An empty variable counts as unset: `RAYTRAIN_DATASET= raytrain ...` is how a shell
        # leaves one out for a single command.
        if not name.startswith(ENV_PREFIX) or name in ENV_OTHER or not value:
            continue
        # Two underscores separate the levels, since names of fields hold single ones.
        path = name.removeprefix(ENV_PREFIX).lower().split("__")
        if path not in _variable_paths():
            raise _no_setting(name, value)
        values = merge(values, nested(path, value))
    return values


def _no_setting(name: str, value: str) -> ConfigError:
    """The error for a variable that would be ignored, and how to set what was meant, if known."""
    words = name.removeprefix(ENV_PREFIX).lower().split("__")
    what = f"the environment variable {name} names no setting"
    if words[0] == "stages":
        # RAYTRAIN_STAGES=3-4 means a selection; any other value meant the list itself.
        chosen = "1"
        if re.fullmatch(SELECTION, value):
            chosen = value
        return ConfigError(
            what,
            "the list of stages comes from a YAML file (--config); a variable only selects from it",
            f"unset {name}; --stages {chosen} or {ENV_PREFIX}SELECT={chosen} selects, "
            "`stages:` in the file sets the list",
        )
    flag = words[0].replace("_", "-")
    if len(words) == 1 and flag in FLAGS_ONLY:
        return ConfigError(
            what, f"--{flag} is given on the command line only", f"unset {name}, and give --{flag}"
        )
    if words[-1] in STAGE_ONLY:
        why, fix = stage_field_hint(words[-1], value)
        return ConfigError(what, why, f"unset {name}; {fix}")
    paths = _variable_paths()
    # RAYTRAIN_WD means train.wd, though the names of other variables are more similar.
    same_last_word = [path for path in paths if path[-1] == words[-1]]
    known = [ENV_PREFIX + "__".join(path).upper() for path in same_last_word or paths]
    known += sorted(ENV_OTHER)
    return ConfigError(
        f"{what}.{did_you_mean(name, known)}",
        "it would be ignored silently otherwise",
        f"unset {name}",
    )


def _variable_paths() -> list[list[str]]:
    """The paths of the fields that a variable can set: all single values, not the stages."""
    return [path.split(".") for path in leaf_paths(Recipe) if path != "stages"]
