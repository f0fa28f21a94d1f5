"""Runs in MLflow, for a recipe with `mlflow`: settings, metrics of each epoch, how the run ended.

    <run>/mlflow.json   the address of MLflow and the id that the run has there

The driver begins and ends the run there. Rank 0 sends the metrics, in a thread of its own, so that
training neither waits for MLflow nor ends because of it. Imports neither torch nor ray, and MLflow
only where it is used.
"""

from __future__ import annotations

import logging
import os
import queue
import re
import sqlite3
import threading
import time
from collections.abc import Mapping
from contextlib import closing
from types import TracebackType
from typing import Any
from urllib.parse import SplitResult, urlsplit

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
# Seconds that the end of training waits for metrics that are not sent yet.
LAST_WAIT_S = 20.0
# Seconds to wait for a file of SQLite that another process writes.
SQLITE_S = 5.0

# An epoch that is not sent yet: its step, its metrics, and when it ended, in ms since 1970.
Epoch = tuple[int, Mapping[str, Any], int]


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
    check_form(uri)
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


def check_form(uri: str) -> None:
    """Checks an address without asking MLflow.

    Raises:
        ConfigError: it is none of MLflow's, or it holds a name, a password or a relative path.
    """
    parts = _parts(uri)
    if parts.username or parts.password:
        raise ConfigError(
            f"--mlflow holds a name or a password for {parts.hostname}",
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


def _parts(uri: str) -> SplitResult:
    try:
        parts = urlsplit(uri)
        known = parts.scheme in ("http", "https", "sqlite")
    except ValueError:
        # Such as a bracket that is never closed.
        known = False
    if known:
        return parts
    raise ConfigError(
        f"--mlflow {uri} is no address of MLflow",
        "the run could not be recorded there",
        "--mlflow http://HOST:5000, or --mlflow sqlite:////data/mlflow.db",
    )


def folder(uri: str | None) -> str | None:
    """Returns the folder of a file of SQLite, which every machine has to reach; else None."""
    if uri is None or _parts(uri).scheme != "sqlite":
        return None
    return storage.parent(_sqlite_path(uri))


def _sqlite_path(uri: str) -> str:
    # Of sqlite:////data/mlflow.db, the path is //data/mlflow.db.
    return _parts(uri).path.removeprefix("/")


def unrecorded(recipe: Recipe, what: str) -> Recipe:
    """Returns the recipe without `mlflow`, for a command whose runs are not recorded there.

    Args:
        recipe: of the command.
        what: the command does, for the log.
    """
    if recipe.mlflow is None:
        return recipe
    logger.info(f"{what} is not recorded in MLflow, only runs of raytrain train are")
    return recipe.model_copy(update={"mlflow": None})


def begin(path: str, recipe: Recipe) -> None:
    """Begins a run in MLflow, or goes on with the one that was begun there before.

    What MLflow refuses is told in the log.

    Args:
        path: the run directory.
        recipe: complete; nothing is done where it has no `mlflow`.

    Raises:
        StorageError: mlflow.json cannot be written.
    """
    uri = recipe.mlflow
    if uri is None:
        return
    try:
        client = _client(uri)
        run_id = _run_id(path, uri)
        is_new = run_id is None
        if run_id is None:
            run_id = _create(client, path)
        else:
            client.update_run(run_id, status="RUNNING")
    except Exception as error:
        logger.warning(f"MLflow at {uri} does not record this run: {_first_line(error)}")
        return
    logger.info(f"MLflow at {uri} has the run as {run_id}")
    if not is_new:
        return
    # Before the settings: if they are refused, the next start goes on with this run.
    storage.write_json(storage.join(path, FILE), {"uri": uri, "run_id": run_id})
    try:
        _send_settings(client, run_id, recipe)
    except Exception as error:
        logger.warning(f"MLflow at {uri} has no settings of this run: {_first_line(error)}")


def _create(client: Any, path: str) -> str:
    tags = {"raytrain.run": masked(path)}
    for key, value in lineage.lineage().items():
        if value is not None:
            tags[f"raytrain.{key}"] = str(value)
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    created = client.create_run(
        _experiment(client, name), run_name=storage.name_of(path), tags=tags
    )
    return str(created.info.run_id)


def _experiment(client: Any, name: str) -> str:
    """The id of the experiment of a name, which is made if there is none."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name))
    except MlflowException:
        # Another run made it in between, such as the next fold.
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)


def _send_settings(client: Any, run_id: str, recipe: Recipe) -> None:
    from mlflow.entities import Param

    settings = _parameters(recipe.model_dump(mode="json"))
    for start in range(0, len(settings), PARAMETERS):
        part = settings[start : start + PARAMETERS]
        client.log_batch(run_id, params=[Param(key, value) for key, value in part])


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
    """Sends the metrics of epochs to MLflow, in a thread. A context manager.

    What could not be sent is sent with the next epoch. The end waits `LAST_WAIT_S` for the rest.
    """

    def __init__(self, path: str, recipe: Recipe) -> None:
        """Sends nothing yet.

        Args:
            path: the run directory.
            recipe: of the run, with `mlflow`.
        """
        assert recipe.mlflow is not None
        self.path = path
        self.uri = recipe.mlflow
        self.stages = recipe.stages
        self.waiting: list[Epoch] = []
        self.failing = False
        # None is put in at the end.
        self.arriving: queue.SimpleQueue[Epoch | None] = queue.SimpleQueue()
        # A daemon: MLflow may hang for long, and the process must be able to end.
        self.thread = threading.Thread(target=self._send_all, daemon=True, name="mlflow")

    def __enter__(self) -> Epochs:
        self.thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.arriving.put(None)
        self.thread.join(LAST_WAIT_S)
        lost = len(self.waiting)
        # Without a run there, nothing fails, and `begin` has told why.
        if lost and (self.failing or self.thread.is_alive()):
            noun = "epoch" if lost == 1 else "epochs"
            logger.warning(f"MLflow lacks the metrics of {lost} {noun}; history.csv has them")

    def report(self, metrics: Mapping[str, Any]) -> None:
        """Takes the metrics of an epoch; its step is the number of the epoch in the schedule.

        Args:
            metrics: as a hook of the training loop gets them.
        """
        before = self.stages[: metrics["stage"] - 1]
        step = sum(stage.epochs for stage in before) + metrics["epoch"]
        self.arriving.put((step, metrics, int(time.time() * 1000)))

    def _send_all(self) -> None:
        """Sends what arrives, until the end."""
        while True:
            arrived = self.arriving.get()
            if arrived is not None:
                self.waiting.append(arrived)
            self._try_to_send()
            if arrived is None:
                return

    def _try_to_send(self) -> None:
        if not self.waiting:
            return
        try:
            sent = self._send()
        except Exception as error:
            if not self.failing:
                logger.warning(
                    f"MLflow got no metrics of epoch {self.waiting[-1][0]}: {_first_line(error)}; "
                    "training goes on, and they are sent after a later epoch"
                )
            self.failing = True
            return
        self.failing = False
        if sent:
            self.waiting.clear()

    def _send(self) -> bool:
        """Sends all that wait. Returns whether there is a run to send them to."""
        from mlflow.entities import Metric

        run_id = _run_id(self.path, self.uri)
        if run_id is None:
            return False
        found = []
        for step, metrics, milliseconds in self.waiting:
            for name, value in metrics.items():
                if name not in NO_METRICS and isinstance(value, int | float):
                    found.append(Metric(name, float(value), milliseconds, step))
        _client(self.uri).log_batch(run_id, metrics=found)
        return True


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
    if _parts(uri).scheme == "sqlite":
        _open_sqlite(_sqlite_path(uri))
    return MlflowClient(tracking_uri=uri)


def _open_sqlite(path: str) -> None:
    """Opens a file of SQLite for writing: MLflow tries that for 101 s before it gives up."""
    with closing(sqlite3.connect(path, timeout=SQLITE_S)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return masked(lines[0])
