"""What a run directory holds, read into one record. Every file but history.csv may be missing.

    config.yaml  env.json  history.csv  metrics.jsonl  predictions.parquet  baselines.json     (DESIGN, run directory)

Works the same on a local path and a URI. Neither torch nor ray.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from raytrain import storage
from raytrain.config import Recipe, parse_yaml, validate
from raytrain.errors import DataError, typed
from raytrain.evaluation import predictions as prediction_files
from raytrain.evaluation.predictions import Predictions
from raytrain.evaluation.thresholds import Judgement, judge

HISTORY_COLUMNS = (
    "stage",
    "size",
    "epoch",
    "lr",
    "train_loss",
    "valid_loss",
    "accuracy",
    "f2",
    "f2_best",
    "images_per_s",
    "seconds",
)
STEP_COLUMNS = ("stage", "epoch", "step", "lr", "momentum", "loss")
SYNTHETIC_PREFIX = "synthetic_"


@dataclass(frozen=True)
class Record:
    """A run, or the evaluation of a predictions file: then recipe, env, history and steps are empty.

    `history` has HISTORY_COLUMNS, `steps` STEP_COLUMNS; both are tables without rows where there is nothing.
    """

    path: str
    recipe: Recipe | None = None
    env: dict[str, Any] = field(default_factory=dict)
    history: pd.DataFrame = field(
        default_factory=lambda: pd.DataFrame(columns=list(HISTORY_COLUMNS))
    )
    steps: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(STEP_COLUMNS)))
    predictions: Predictions | None = None
    judgement: Judgement | None = None
    baselines: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The run's name: the last part of its place."""
        return storage.name_of(self.path)

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names over the whole list of stages, so that stage n is entry n - 1."""
        return self.recipe.stage_names if self.recipe else ()

    @property
    def synthetic(self) -> bool:
        """True if env.json says so, or all tiles bear the names that synthetic tiles have."""
        names = self.predictions.names if self.predictions else ()
        named = len(names) > 0 and all(name.startswith(SYNTHETIC_PREFIX) for name in names)
        return bool(self.env.get("synthetic")) or named

    @property
    def dataset(self) -> str | None:
        """Place of the dataset, if anything names it."""
        meta = self.predictions.meta if self.predictions else {}
        known = (self.recipe and self.recipe.dataset, self.env.get("dataset"), meta.get("dataset"))
        found = next((path for path in known if isinstance(path, str) and path), None)
        return found and storage.with_keys_of(found, self.path)


def read_run(path: str) -> Record:
    """Reads a run directory.

    Raises:
        DataError: no history.csv (nothing was trained yet), or a file that is damaged.
        ConfigError: a config.yaml that is no recipe of this version.
        StorageError: the file system cannot be reached.
    """
    path = storage.absolute(path)
    history = _history(path)
    config = _content(path, "config.yaml").decode()
    label = storage.join(path, "config.yaml")
    record = Record(
        path=path,
        recipe=validate(parse_yaml(config, label), label, config) if config else None,
        env=_json(path, "env.json"),
        history=history,
        steps=_steps(_content(path, "metrics.jsonl"), path),
        baselines=_json(path, "baselines.json"),
    )
    predictions = storage.join(path, "predictions.parquet")
    return _judged(record, predictions) if storage.exists(predictions) else record


def read_evaluation(out: str, predictions_path: str, judgement: Judgement | None = None) -> Record:
    """The record of an evaluation without a run: predictions, and a judgement if they have targets.

    Args:
        out: directory of the evaluation.
        predictions_path: of the file.
        judgement: of these predictions, where they were judged already: it takes most of the time.

    Raises:
        DataError: the predictions cannot be used.
    """
    return _judged(Record(path=storage.absolute(out)), predictions_path, judgement)


def _judged(record: Record, path: str, judgement: Judgement | None = None) -> Record:
    predictions = prediction_files.read(path)
    if judgement is None and predictions.target is not None:
        judgement = judge(predictions)
    return replace(record, predictions=predictions, judgement=judgement)


def _history(path: str) -> pd.DataFrame:
    content = _content(path, "history.csv")
    file = storage.join(path, "history.csv")
    if not content.strip():
        raise DataError(
            f"{path} has no history.csv",
            "a run writes it after its first epoch; without it there is nothing to report",
            f"raytrain runs list --storage {typed(storage.parent(storage.absolute(path)))}",
        )
    table = pd.read_csv(io.BytesIO(content))
    missing = [column for column in HISTORY_COLUMNS if column not in table.columns]
    if missing:
        raise DataError(
            f"{file} has no column {missing[0]}",
            "it is not the history of a run",
            "give a run directory",
        )
    return table


def _steps(content: bytes, path: str) -> pd.DataFrame:
    try:
        rows = [json.loads(line) for line in content.splitlines()]
    except ValueError as error:
        raise _damaged(path, "metrics.jsonl", error) from None
    return pd.DataFrame(rows, columns=list(STEP_COLUMNS))


def _json(path: str, name: str) -> dict[str, Any]:
    try:
        content = json.loads(_content(path, name) or b"{}")
    except ValueError as error:
        raise _damaged(path, name, error) from None
    return content if isinstance(content, dict) else {}


def _damaged(path: str, name: str, error: ValueError) -> DataError:
    return DataError(
        f"{storage.join(path, name)} is damaged: {error}",
        "the report would show something else than the run did",
        f"remove {name}, the report does without it; then raytrain runs report {storage.name_of(path)}",
    )


def _content(path: str, name: str) -> bytes:
    """The bytes of a file of the run, none if it is not there."""
    try:
        return storage.read_bytes(storage.join(path, name))
    except FileNotFoundError:
        return b""
