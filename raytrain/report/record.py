"""Reads the files of a run directory into one record. Every file but history.csv may be missing.

The files are config.yaml, env.json, history.csv, metrics.jsonl, predictions.parquet and
baselines.json. Works on local paths and on URIs. Imports neither torch nor ray.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from raytrain import registry, storage
from raytrain.config import Recipe, parse_yaml, validate
from raytrain.errors import DataError, typed
from raytrain.evaluation import predictions as prediction_files
from raytrain.evaluation.predictions import Predictions

# Those of every task; the task's own scores follow.
HISTORY_COLUMNS = (
    "stage",
    "size",
    "epoch",
    "lr",
    "train_loss",
    "valid_loss",
    "images_per_s",
    "seconds",
)
STEP_COLUMNS = ("stage", "epoch", "step", "lr", "momentum", "loss")
# raytrain/data/synthetic.py begins the names of its tiles with this.
SYNTHETIC_PREFIX = "synthetic_"


def _no_history() -> pd.DataFrame:
    return pd.DataFrame(columns=list(HISTORY_COLUMNS))


def _no_steps() -> pd.DataFrame:
    return pd.DataFrame(columns=list(STEP_COLUMNS))


@dataclass(frozen=True)
class Record:
    """What is known about a run, or about a predictions file that was evaluated without its run.

    Attributes:
        path: the run directory, or the output directory of the evaluation.
        recipe: content of config.yaml.
        env: content of env.json.
        history: columns HISTORY_COLUMNS and the scores, one row for each epoch; no rows without
            a run.
        steps: columns STEP_COLUMNS, one row for each step; no rows without metrics.jsonl.
        predictions: of the validation part, or of the evaluated file.
        judgement: of these predictions by their task, if they have targets.
        baselines: content of baselines.json.
    """

    path: str
    recipe: Recipe | None = None
    env: dict[str, Any] = field(default_factory=dict)
    history: pd.DataFrame = field(default_factory=_no_history)
    steps: pd.DataFrame = field(default_factory=_no_steps)
    predictions: Predictions | None = None
    judgement: Any = None
    baselines: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The run's name: the last part of its path."""
        return storage.name_of(self.path)

    @property
    def task(self) -> str:
        """Name of the task, as the predictions or the columns of the history tell it."""
        if self.predictions is not None:
            return self.predictions.task
        return registry.judged_by(self.history.columns)

    @property
    def score_names(self) -> dict[str, str]:
        """The scores of the history by column, with their names: the task's and the user's own."""
        module = registry.evaluation(self.task)
        names = dict(module.METRICS)
        for column in self.history.columns:
            if column not in (*HISTORY_COLUMNS, *names, module.SCORE.best_key):
                names[column] = column
        return names

    @property
    def part(self) -> str:
        """The part of the split that was predicted, in words."""
        if self.predictions is None:
            return ""
        part = str(self.predictions.meta.get("part", ""))
        if part == "valid":
            return "validation"
        return part

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of all stages of the recipe, trained or not: stage n is entry n - 1."""
        if self.recipe is None:
            return ()
        return self.recipe.stage_names

    @property
    def synthetic(self) -> bool:
        """Whether env.json declares the tiles synthetic, or all tile names look synthetic."""
        if self.env.get("synthetic"):
            return True
        # An evaluation has no env.json, so the names are all that is known there.
        if self.predictions is None or not self.predictions.names:
            return False
        return all(name.startswith(SYNTHETIC_PREFIX) for name in self.predictions.names)

    @property
    def dataset(self) -> str | None:
        """Path of the dataset, if a file of the run names it."""
        candidates: list[object] = []
        if self.recipe is not None:
            candidates.append(self.recipe.dataset)
        candidates.append(self.env.get("dataset"))
        if self.predictions is not None:
            candidates.append(self.predictions.meta.get("dataset"))
        for path in candidates:
            if isinstance(path, str) and path:
                # Files never hold the keys of a URI; take those of the run's own path.
                return storage.with_keys_of(path, self.path)
        return None


def read_run(path: str) -> Record:
    """Reads a run directory.

    Args:
        path: path or URI of the directory.

    Raises:
        DataError: there is no history.csv (nothing was trained yet), or a file is damaged.
        ConfigError: config.yaml is not a recipe of this version.
        StorageError: the file system cannot be reached.
    """
    path = storage.absolute(path)
    # First, since it is the only file that must exist.
    history = _read_history(path)
    record = Record(
        path=path,
        recipe=_read_recipe(path),
        env=_read_json(path, "env.json"),
        history=history,
        steps=_read_steps(path),
        baselines=_read_json(path, "baselines.json"),
    )
    predictions = storage.join(path, "predictions.parquet")
    if not storage.exists(predictions):
        return record
    return _with_predictions(record, prediction_files.read(predictions))


def evaluation_record(out: str, predictions: Predictions, judgement: Any = None) -> Record:
    """Makes the record of predictions without their run.

    Args:
        out: output directory of the evaluation.
        predictions: what was evaluated.
        judgement: of these predictions, if the caller has it; fitting again is slow.

    Returns:
        A record with predictions, and with a judgement if the predictions have targets.

    Raises:
        DataError: the predictions cannot be judged.
    """
    return _with_predictions(Record(path=storage.absolute(out)), predictions, judgement)


def _with_predictions(record: Record, predictions: Predictions, judgement: Any = None) -> Record:
    # A report judges: tiles without a target are left out, unless no tile has one.
    predictions = predictions.judged()
    if judgement is None and predictions.target is not None:
        judgement = registry.evaluation(predictions.task).judge(predictions)
    return replace(record, predictions=predictions, judgement=judgement)


def _read_recipe(path: str) -> Recipe | None:
    text = _read_optional(path, "config.yaml").decode()
    if not text:
        return None
    label = storage.join(path, "config.yaml")
    return validate(parse_yaml(text, label), label, text)


def _read_history(path: str) -> pd.DataFrame:
    content = _read_optional(path, "history.csv")
    if not content.strip():
        raise DataError(
            f"{path} has no history.csv",
            "a run writes it after its first epoch; without it there is nothing to report",
            f"raytrain runs list --storage {typed(storage.parent(storage.absolute(path)))}",
        )
    table = pd.read_csv(io.BytesIO(content))
    task = registry.evaluation(registry.judged_by(table.columns))
    for column in (*HISTORY_COLUMNS, *task.METRICS, task.SCORE.best_key):
        if column not in table.columns:
            raise DataError(
                f"{storage.join(path, 'history.csv')} has no column {column}",
                "it is not the history of a run",
                "give a run directory",
            )
    return table


def _read_steps(path: str) -> pd.DataFrame:
    """The lines of metrics.jsonl as rows; other keys than STEP_COLUMNS are left out."""
    content = _read_optional(path, "metrics.jsonl")
    try:
        rows = [json.loads(line) for line in content.splitlines()]
    except ValueError as error:
        raise _damaged(path, "metrics.jsonl", error) from None
    return pd.DataFrame(rows, columns=list(STEP_COLUMNS))


def _read_json(path: str, name: str) -> dict[str, Any]:
    """The object in a JSON file; empty if the file is missing or holds something else."""
    content = _read_optional(path, name)
    if not content:
        return {}
    try:
        found = json.loads(content)
    except ValueError as error:
        raise _damaged(path, name, error) from None
    if not isinstance(found, dict):
        return {}
    return found


def _read_optional(path: str, name: str) -> bytes:
    """The bytes of a file of the run; no bytes if it does not exist."""
    try:
        return storage.read_bytes(storage.join(path, name))
    except FileNotFoundError:
        return b""


def _damaged(path: str, name: str, error: ValueError) -> DataError:
    report = f"raytrain runs report {storage.name_of(path)}"
    return DataError(
        f"{storage.join(path, name)} is damaged: {error}",
        "the report would not show what the run did",
        f"remove {name}, which the report does not need; then type {report}",
    )
