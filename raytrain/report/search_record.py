"""Reads the directory of a search into one record. Only search.yaml must exist.

    read_setup(directory)     search.yaml alone: what is searched, and by which score
    read_search(directory)    everything that the page of a search shows

The files are search.yaml, trials.json, finals.json and model.json in `<storage>/<name>`, and
history.csv of each stage in `<storage>/stages/<key>`. Works on local paths and on URIs. Imports
neither torch nor ray.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from raytrain import registry, runs, storage
from raytrain.config import Recipe, parse_yaml, validate
from raytrain.errors import ConfigError, DataError
from raytrain.evaluation.score import Score
from raytrain.report import search_finals, search_model
from raytrain.report.search_finals import Finals
from raytrain.report.search_model import Advice
from raytrain.search import space_file
from raytrain.search import table as trial_tables
from raytrain.search.space import GIVEN, Draw, Space
from raytrain.search.table import Table, Trial

# An object store answers a small request in about 50 ms, whatever else it does meanwhile.
READERS = 16


@dataclass(frozen=True)
class Setup:
    """Content of search.yaml.

    Attributes:
        name: of the search.
        score: the objective.
        num_samples: number of trials that were asked for; None for any.
        given: the recipe that the search started from.
        content: of the space, as its file holds it.
    """

    name: str
    score: Score
    num_samples: int | None
    given: Recipe
    content: Mapping[str, Any]

    @cached_property
    def space(self) -> Space | None:
        """The space; None where it cannot be read, as one of another version."""
        try:
            return space_file.read(self.content, self.given)
        except ConfigError:
            return None

    @property
    def first_stage(self) -> int:
        """Number of the first stage that a trial trains, from 1."""
        return self.given.selected[0]

    def recipe_of(self, trial: Trial) -> Recipe | None:
        """Returns the recipe of a trial; None where its values do not fit the space any more."""
        if self.space is None:
            return None
        try:
            return self.space.recipe(Draw(trial.schedule or GIVEN, trial.values))
        except ConfigError:
            return None


@dataclass(frozen=True)
class SearchRecord:
    """What is known about a search.

    Attributes:
        path: its directory.
        setup: content of search.yaml.
        table: its trials.
        finals: what the reruns say; empty before that.
        advice: what the model says; empty while nothing is finished.
        histories: rows of history.csv of each stage that has some, by key.
    """

    path: str
    setup: Setup
    table: Table
    finals: Finals = field(default_factory=Finals)
    advice: Advice = field(default_factory=Advice)
    histories: Mapping[str, pd.DataFrame] = field(default_factory=dict)

    @property
    def score(self) -> Score:
        """The objective."""
        return self.setup.score

    def recipe_of(self, trial: Trial) -> Recipe | None:
        """As `Setup.recipe_of`."""
        return self.setup.recipe_of(trial)

    def curve_of(self, trial: Trial) -> pd.DataFrame:
        """Returns the epochs of all stages of a trial below each other; none before the first."""
        parts = []
        for key in trial.keys:
            if key not in self.histories:
                break
            parts.append(self.histories[key])
        if not parts:
            return pd.DataFrame()
        return pd.concat(parts, ignore_index=True)


def read_setup(directory: str) -> Setup:
    """Reads search.yaml.

    Raises:
        ConfigError: its recipe is not one of this version.
        DataError: the file is missing or damaged.
    """
    path = storage.join(directory, runs.SEARCH)
    try:
        text = storage.read_bytes(path).decode()
        content = parse_yaml(text, path)
        objective = content["objective"]
        score = Score(
            str(objective["key"]), str(objective["name"]), bool(objective["higher_is_better"])
        )
        recipe = dict(content["recipe"])
    except (FileNotFoundError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} is missing or damaged: {error!r}",
            "it says what is searched, and by which score",
            "start another search with --name; its stages are found where they are",
        ) from None
    return Setup(
        name=str(content.get("name") or storage.name_of(directory)),
        score=score,
        num_samples=content.get("num_samples"),
        given=validate(recipe, path),
        content=content.get("space") or {},
    )


def read_search(directory: str) -> SearchRecord:
    """Reads the directory of a search, whether it has ended or not.

    Args:
        directory: path or URI of `<storage>/<name>`.

    Raises:
        ConfigError: as `read_setup`.
        DataError: a file is damaged.
        StorageError: the file system cannot be reached.
    """
    directory = storage.absolute(directory)
    setup = read_setup(directory)
    table = trial_tables.read(directory)
    stages = storage.join(storage.parent(directory), runs.STAGES)
    return SearchRecord(
        path=directory,
        setup=setup,
        table=table,
        finals=search_finals.read(directory),
        advice=search_model.read(directory),
        histories=_histories(stages, _begun(table)),
    )


def main_column(columns: Sequence[str], score: Score) -> Score:
    """Returns the score that the epochs of a history have: the objective, or that of the task.

    The objective may be a score under a fitted decision, which is known at the end of a stage only.
    """
    if score.key in columns:
        return score
    return registry.evaluation(registry.judged_by(columns)).SCORE


def _begun(table: Table) -> list[str]:
    """Keys of the stages that have an outcome, and of those that open trials may train now."""
    keys: dict[str, None] = {}
    for trial in table.trials:
        begun = len(trial.parts)
        if trial.is_open:
            begun += 1
        keys.update(dict.fromkeys(trial.keys[:begun]))
    return list(keys)


def _histories(stages: str, keys: Sequence[str]) -> dict[str, pd.DataFrame]:
    paths = [storage.join(stages, key, "history.csv") for key in keys]
    with ThreadPoolExecutor(READERS) as pool:
        tables = list(pool.map(_history, paths))
    found = {}
    for key, rows in zip(keys, tables, strict=True):
        if len(rows):
            found[key] = rows
    return found


def _history(path: str) -> pd.DataFrame:
    """The whole lines of a history.csv; no rows where there is none."""
    try:
        content = storage.read_bytes(path)
    except FileNotFoundError:
        return pd.DataFrame()
    # A line without its end was cut off by a crash, or is just being written.
    whole = content[: content.rfind(b"\n") + 1]
    if not whole:
        return pd.DataFrame()
    return pd.read_csv(io.BytesIO(whole))
