"""Runs in MLflow, for a recipe with `mlflow`: settings, metrics of each epoch, how the run ended.

    <run>/mlflow.json   the address of MLflow and the id that the run has there

The driver begins and ends the run there. Rank 0 sends the metrics. Training never waits long for
MLflow, and never ends because of it. Imports neither torch nor ray, and MLflow only where it is
used.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from raytrain import lineage, storage
from raytrain.config import Recipe
from raytrain.errors import ConfigError, ResourceError, masked

logger = logging.getLogger(__name__)

FILE = "mlflow.json"
EXPERIMENT = "raytrain"
# How MLflow names the ends of a run.
FINISHED, STOPPED, FAILED = "FINISHED", "KILLED", "FAILED"
# Variables of MLflow with other values than its own, unless they are set. By default, MLflow asks
# a server that does not answer for 16 minutes, and reports to its makers how it is used.
VARIABLES = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
# The position of an epoch, which is the step there, and the path of its checkpoint.
NO_METRICS = ("stage", "epoch", "checkpoint")
# MLflow's limit on the characters of a parameter, and on the parameters of one request.
PARAMETER_CHARACTERS = 6000
PARAMETERS = 100


def check(uri: str | None) -> None:
    """Checks that MLflow is installed and answers at an address.

    Args:
        uri: as a recipe has it; None is always right.

    Raises:
        ConfigError: the address is none of MLflow's, or its package is missing.
        ResourceError: it does not answer.
    """
    if uri is None:
        return
    _check_form(uri)
    try:
        _client(uri).search_experiments(max_results=1)
    except ImportError as error:
        raise ConfigError(
            f"--mlflow {uri} needs a package that is not installed: {error.name}",
            "it is an extra of raytrain",
            "pip install 'raytrain[mlflow]'; or leave --mlflow out",
        ) from None
    except Exception as error:
        raise ResourceError(
            f"MLflow does not answer at {uri}: {_first_line(error)}",
            "the run could not be recorded there",
            "correct --mlflow or start its server, such as: mlflow server; or leave --mlflow out",
        ) from None


def _check_form(uri: str) -> None:
    parts = urlsplit(uri)
    if parts.password:
        raise ConfigError(
            f"--mlflow names a password for {parts.hostname}",
            "the address is written into the files of the run",
            "export MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, "
            "and leave them out of the address",
        )
    if parts.scheme == "sqlite" and not parts.path.startswith("//"):
        raise ConfigError(
            f"--mlflow {uri} is a relative path",
            "each worker would look for it in another folder",
            "four slashes and the whole path, such as --mlflow sqlite:////data/mlflow.db",
        )
    if parts.scheme not in ("http", "https", "sqlite"):
        raise ConfigError(
            f"--mlflow {uri} is no address of MLflow",
            "the run could not be recorded there",
            "--mlflow http://HOST:5000, or --mlflow sqlite:////data/mlflow.db",
        )


def begin(path: str, recipe: Recipe) -> None:
    """Begins a run in MLflow, or goes on with the one that was begun there before.

    What MLflow refuses is told in the log.

    Args:
        path: the run directory.
        recipe: complete; nothing is done where it has no `mlflow`.

    Raises:
        StorageError: mlflow.json cannot be written.
    """
    if recipe.mlflow is None:
        return
    try:
        client = _client(recipe.mlflow)
        known = _run_id(path, recipe.mlflow)
        if known is not None:
            client.update_run(known, status="RUNNING")
            return
        run_id = _create(client, path, recipe)
    except Exception as error:
        logger.warning(f"MLflow at {recipe.mlflow} has no run: {_first_line(error)}")
        return
    storage.write_json(storage.join(path, FILE), {"uri": recipe.mlflow, "run_id": run_id})
    logger.info(f"MLflow at {recipe.mlflow} has the run as {run_id}")


def _create(client: Any, path: str, recipe: Recipe) -> str:
    from mlflow.entities import Param

    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    found = client.get_experiment_by_name(name)
    experiment = found.experiment_id if found else client.create_experiment(name)
    tags = {"raytrain.run": masked(path)}
    for key, value in lineage.lineage().items():
        if value is not None:
            tags[f"raytrain.{key}"] = str(value)
    run_id: str = client.create_run(
        experiment, run_name=storage.name_of(path), tags=tags
    ).info.run_id
    settings = _parameters(recipe.model_dump(mode="json"))
    for start in range(0, len(settings), PARAMETERS):
        part = settings[start : start + PARAMETERS]
        client.log_batch(run_id, params=[Param(key, value) for key, value in part])
    return run_id


def _parameters(values: Any, prefix: str = "") -> list[tuple[str, str]]:
    """The settings of a recipe by their paths, such as ("stages.1.size", "128").

    Args:
        values: nested mappings and lists.
        prefix: of the paths, with its dot.
    """
    found = []
    for key, value in values.items():
        # MLflow allows no other characters in a name.
        name = prefix + re.sub(r"[^\w. :/-]", "_", str(key))
        if key == "stages":
            value = {str(number): stage for number, stage in enumerate(value, 1)}
        if isinstance(value, Mapping) and value:
            found += _parameters(value, f"{name}.")
        elif value is not None:
            found.append((name, masked(str(value))[:PARAMETER_CHARACTERS]))
    return found


class Epochs:
    """Sends the metrics of epochs to MLflow. What it could not send, it sends later."""

    def __init__(self, path: str, recipe: Recipe) -> None:
        """Sends nothing yet.

        Args:
            path: the run directory.
            recipe: of the run.
        """
        self.path = path
        self.recipe = recipe
        self.waiting: list[tuple[int, Mapping[str, Any], int]] = []
        self.failing = False

    def report(self, metrics: Mapping[str, Any]) -> None:
        """Sends the metrics of an epoch; its step is the number of the epoch in the schedule.

        Args:
            metrics: as a hook of the training loop gets them.
        """
        before = self.recipe.stages[: metrics["stage"] - 1]
        step = sum(stage.epochs for stage in before) + metrics["epoch"]
        self.waiting.append((step, metrics, int(time.time() * 1000)))
        try:
            self._send()
        except Exception as error:
            if not self.failing:
                logger.warning(
                    f"MLflow got no metrics of epoch {step}: {_first_line(error)}; "
                    "training goes on, and they are sent after a later epoch"
                )
            self.failing = True
            return
        self.waiting.clear()
        self.failing = False

    def _send(self) -> None:
        from mlflow.entities import Metric

        uri = self.recipe.mlflow
        assert uri is not None  # nobody else makes one of these
        run_id = _run_id(self.path, uri)
        if run_id is None:
            # It was told when the run could not be begun there.
            return
        found = []
        for step, metrics, milliseconds in self.waiting:
            for name, value in metrics.items():
                if name not in NO_METRICS and isinstance(value, int | float):
                    found.append(Metric(name, float(value), milliseconds, step))
        _client(uri).log_batch(run_id, metrics=found)


def end(path: str, recipe: Recipe, status: str) -> None:
    """Ends the run in MLflow.

    Args:
        path: the run directory.
        recipe: of the run.
        status: FINISHED, STOPPED or FAILED.
    """
    if recipe.mlflow is None:
        return
    try:
        run_id = _run_id(path, recipe.mlflow)
        if run_id is not None:
            _client(recipe.mlflow).set_terminated(run_id, status)
    except Exception as error:
        logger.warning(f"MLflow does not know how the run ended: {_first_line(error)}")


def _run_id(path: str, uri: str) -> str | None:
    """The id of a run in the MLflow of an address; None where it has none there."""
    try:
        content = storage.read_json(storage.join(path, FILE))
    except (FileNotFoundError, ValueError):
        return None
    if content.get("uri") != uri:
        return None
    return str(content["run_id"])


def _client(uri: str) -> Any:
    """MLflow's client. Raises ImportError where it is not installed."""
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    # They tell of each table that they make in a new database.
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]
