"""What a search is begun with, and keeps in search.yaml.

    <storage>/<name>/search.yaml    recipe, space, objective, flags, and what machines decide

A search that is resumed takes all of it from there, except for its limits and its resources.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from typing import Any

import yaml

from raytrain import runs, storage
from raytrain.config import Recipe, parse_yaml, validate
from raytrain.data.dataset import Dataset
from raytrain.distributed.trial import Completion
from raytrain.errors import ConfigError, DataError, masked
from raytrain.evaluation.score import Score
from raytrain.models import operations
from raytrain.search import space_file
from raytrain.search.candidates import Candidates, Stages
from raytrain.search.cost import Costs
from raytrain.search.space import Draw, Space
from raytrain.search.table import Kind
from raytrain.tiles.cache import stored_size
from raytrain.training import stage_keys
from raytrain.training.stage_keys import Facts

logger = logging.getLogger(__name__)

METHODS = ("model", "random")
# Their versions change what a stage computes.
PACKAGES = ("torch", "torchvision")


@dataclass(frozen=True)
class Options:
    """What a user asks of a search beside its recipe and its space.

    Attributes:
        num_samples: number of trials, the given recipe and tried ones among them.
        budget_s: seconds that the search may take, reruns included; None for any.
        tries: trials of the user's own, see `Space.tried`.
        reruns: how often the finalists run again.
        objective: name of a score; None for that of the task.
        method: one of METHODS.
        trial_cpus: CPUs of a trial; None for one, or for a GPU's share.
        trial_gpus: GPUs of a trial; None for one where there are any.
    """

    num_samples: int
    budget_s: float | None = None
    tries: tuple[str, ...] = ()
    reruns: int = 2
    objective: str | None = None
    method: str = "model"
    trial_cpus: float | None = None
    trial_gpus: float | None = None


@dataclass(frozen=True)
class Setup:
    """Everything that stays the same while a search runs, however often it is resumed.

    Attributes:
        recipe: that the search was given, with absolute paths.
        content: of the space, as its file holds it.
        options: what was asked for.
        score: the objective.
        facts: what the machines decide about training.
        stored_size: side of the decoded tiles, pixels.
    """

    recipe: Recipe
    content: Mapping[str, Any]
    options: Options
    score: Score
    facts: Facts
    stored_size: int

    @property
    def space(self) -> Space:
        """The space."""
        return space_file.read(self.content, self.recipe)

    def write(self, directory: str) -> None:
        """Writes search.yaml.

        Raises:
            StorageError: it cannot be written.
        """
        content = {
            "name": storage.name_of(directory),
            **as_written(asdict(self.options)),
            "objective": asdict(self.score),
            "recipe": self.recipe.model_dump(mode="json"),
            "space": as_written(self.content),
            "facts": self.facts.to_json(),
            "stored_size": self.stored_size,
            "versions": versions(),
        }
        text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120)
        storage.write_text(storage.join(directory, runs.SEARCH), masked(text))


def stored_size_of(space: Space, dataset: Dataset) -> int:
    """Side of the decoded tiles for all trials, by the largest stage that any of them may have."""
    if space.given.data.stored_size is not None:
        return space.given.data.stored_size
    sizes = [stage.size for stage in space.given.stages]
    for schedule in space.schedules:
        sizes += [stage["size"] for stage in schedule.values["stages"]]
        for drawn in schedule.fields:
            if drawn.path.endswith(".size"):
                sizes += [int(size) for size in drawn.distribution.to_check()]
    return stored_size(dataset.tile_size, sizes)


def candidates_of(setup: Setup, dataset: Dataset) -> Candidates:
    """Returns what draws the trials of a search.

    Args:
        setup: of the search.
        dataset: opened.
    """
    completion = Completion(dataset, setup.facts, setup.stored_size)
    per_pixel = partial(operations.per_pixel, channels=dataset.tile_format.channels)
    costs = Costs.relative_to(setup.recipe, per_pixel)
    keys = stage_keys.Keys(dataset, setup.facts)

    def stages_of(drawn: Recipe) -> Stages:
        whole = completion(drawn)
        first, last = whole.selected
        return Stages(
            keys=keys.of(whole),
            costs=costs.of(whole),
            names=whole.default_stage_names[first - 1 : last],
        )

    return Candidates(setup.space, stages_of)


def own_draws(space: Space, options: Options) -> list[tuple[Kind, Draw]]:
    """Returns the trials that a search begins with: the given recipe, and those of the user.

    One that is tried and equal to another one is left out.
    """
    found = [(Kind.GIVEN, space.given_draw())]
    for text in options.tries:
        draw = space.tried(text)
        if all(draw.text != known.text for _, known in found):
            found.append((Kind.TRIED, draw))
        else:
            logger.info(f"--try '{text}' is a trial of this search already")
    return found


def versions() -> dict[str, Any]:
    """Returns the versions that a search cannot change."""
    found: dict[str, Any] = {"code": stage_keys.CODE_VERSION}
    for name in PACKAGES:
        found[name] = metadata.version(name)
    return found


def read(directory: str) -> Setup:
    """Reads search.yaml.

    Raises:
        ConfigError: the search was begun with other versions.
        DataError: the file is missing or damaged.
    """
    path = storage.join(directory, runs.SEARCH)
    try:
        text = storage.with_keys_of(storage.read_bytes(path).decode(), directory)
        content = parse_yaml(text, path)
        known = content["versions"]
        options = Options(
            num_samples=int(content["num_samples"]),
            budget_s=content["budget_s"],
            tries=tuple(content["tries"]),
            reruns=int(content["reruns"]),
            objective=content["objective"]["key"],
            method=content["method"],
            trial_cpus=content["trial_cpus"],
            trial_gpus=content["trial_gpus"],
        )
        score = Score(**content["objective"])
        facts = Facts(**content["facts"])
        stored_size = int(content["stored_size"])
        recipe = dict(content["recipe"])
        space = dict(content["space"])
    except (FileNotFoundError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} is missing or damaged: {error!r}",
            "it says what is searched",
            "start another search with --name; its stages are found where they are",
        ) from None
    _check_versions(directory, known)
    # The directory may have been moved since.
    recipe["storage"] = storage.parent(directory)
    return Setup(validate(recipe, path), space, options, score, facts, stored_size)


def _check_versions(directory: str, known: Mapping[str, Any]) -> None:
    now = versions()
    changed = []
    for name, version in now.items():
        if known.get(name) != version:
            changed.append(f"{name} {known.get(name)} is now {version}")
    if not changed:
        return
    raise ConfigError(
        f"the search {storage.name_of(directory)} cannot go on: {', '.join(changed)}",
        "its stages would not be trained alike any more",
        "install what it was begun with, or start another search with --name",
    )


def as_written(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a space as its file holds it: with lists in place of tuples."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, tuple):
            value = list(value)
        elif isinstance(value, Mapping):
            value = as_written(value)
        found[key] = value
    return found
