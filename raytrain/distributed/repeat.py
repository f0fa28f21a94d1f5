"""One command that begins a run or a search and goes on with it: `--resume auto --name NAME`.

A job that is submitted again, a Kubernetes job with a backoff limit and a spot machine that comes
back all give the command of the beginning again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from raytrain import runs, storage, tracking
from raytrain.checkpoints import layout, reading
from raytrain.config import Recipe, different_fields
from raytrain.distributed import search_finals, search_setup
from raytrain.distributed.preflight import check_recipe
from raytrain.distributed.search import BEST, Found
from raytrain.distributed.search_setup import Options
from raytrain.errors import ConfigError, RaytrainError
from raytrain.search import default, table

logger = logging.getLogger(__name__)

# Options that a search keeps, and their flags. The others are limits and resources.
FIXED_OPTIONS = {
    "tries": "--try",
    "reruns": "--reruns",
    "objective": "--objective",
    "method": "--search",
}


def changes_of(run: runs.Run, recipe: Recipe) -> dict[str, Any]:
    """Returns what the command that is given again changes in a run that it began.

    Args:
        run: that was begun under the name that the command has.
        recipe: of the command, as the user gave it.

    Returns:
        Nested values of `runs.PLACEMENT`, for `train.resume`.

    Raises:
        ConfigError: the run was begun with another recipe.
        RaytrainError: as `check_recipe`.
    """
    # What the run holds was resolved in the same way when it began.
    resolved, _ = check_recipe(recipe, run)
    if run.checkpoints:
        # Only of a run without checkpoints the start has been looked up.
        resolved = _with_start(resolved, run)
    may_differ = {*runs.PLACEMENT, "storage"}
    changed = sorted(different_fields(run.recipe, resolved) - may_differ)
    if changed:
        raise ConfigError(
            f"the run {run.name} was begun with another recipe: {', '.join(changed)}",
            "half of it would be trained in another way",
            f"{runs.resume_command(run.name, storage.parent(run.path))}, or another --name",
        )
    return _only(resolved.model_dump(), runs.PLACEMENT)


def _with_start(recipe: Recipe, run: runs.Run) -> Recipe:
    """The recipe with the path of the checkpoint that it starts from."""
    if recipe.init_from is None or run.recipe.init_from is None:
        return recipe
    try:
        path = runs.find_checkpoint(recipe.init_from, recipe.storage)
    except RaytrainError:
        # It was needed for the beginning alone, and may have been removed.
        logger.info(f"{recipe.init_from} is not there any more; {run.name} does not need it now")
        path = run.recipe.init_from
    return recipe.model_copy(update={"init_from": path})


def _only(values: dict[str, Any], paths: tuple[str, ...]) -> dict[str, Any]:
    """Returns the nested values of some paths, nested as before."""
    found: dict[str, Any] = {}
    for path in paths:
        group, _, key = path.rpartition(".")
        if group:
            found.setdefault(group, {})[key] = values[group][key]
        else:
            found[key] = values[key]
    return found


def options_of(
    directory: str, recipe: Recipe, content: Mapping[str, Any] | None, options: Options
) -> Options:
    """Returns the options with which the command that is given again goes on with a search.

    Args:
        directory: of the search that it began.
        recipe: of the command, as the user gave it.
        content: of its space file; None for the default space.
        options: of the command. Limits and resources may be other ones than before.

    Raises:
        ConfigError: the search was begun in another way.
        RaytrainError: as `check_recipe`.
    """
    known = search_setup.read(directory)
    resolved, _ = check_recipe(tracking.unrecorded(recipe, "a search"))
    if content is None:
        content = default.values(resolved)
    changed = sorted(different_fields(known.recipe, resolved) - {"storage"})
    if search_setup.as_written(content) != known.content:
        changed.append("--space")
    if options.objective is None:
        # The command leaves it to the task, which search.yaml names.
        options = replace(options, objective=known.options.objective)
    for field, flag in FIXED_OPTIONS.items():
        if getattr(options, field) != getattr(known.options, field):
            changed.append(flag)
    if changed:
        name = storage.name_of(directory)
        raise ConfigError(
            f"the search {name} was begun in another way: {', '.join(changed)}",
            "its trials could not be compared any more",
            f"{runs.resume_search_command(name, storage.parent(directory))}, or another --name",
        )
    return options


def is_complete(run: runs.Run) -> bool:
    """Returns whether a run has a checkpoint of its last epoch."""
    recipe = run.recipe
    _, last = recipe.selected
    end = layout.Position(last, recipe.stages[last - 1].epochs)
    return reading.furthest(storage.join(run.path, "checkpoints")) >= end


def found_by(directory: str, options: Options) -> Found | None:
    """Returns what a search has found that has nothing left to do; None for any other.

    Args:
        directory: of the search.
        options: of the command that is given again, as `options_of` returns them.
    """
    known = search_setup.read(directory).options
    if (known.num_samples, known.budget_s) != (options.num_samples, options.budget_s):
        return None
    if storage.exists(storage.join(directory, "failure.json")):
        return None
    trials = table.read(directory).trials
    if any(trial.state is table.State.OPEN for trial in trials):
        return None
    # Where time is limited, a search may end with fewer trials.
    if options.budget_s is None and len(trials) < options.num_samples:
        return None
    try:
        content = storage.read_json(storage.join(directory, search_finals.FILE))
    except FileNotFoundError:
        return None
    best = storage.join(directory, BEST)
    return Found(directory, content["winner"], content["reason"], best)
