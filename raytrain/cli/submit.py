"""`raytrain train --print-submit`: the line that submits the same command as a Ray job.

The line can be given again: it begins the run, goes on with it, or says that it is complete.
Imports neither torch nor ray.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raytrain import lineage, storage, tracking
from raytrain.config import ENV_PREFIX, NAMED_WEIGHTS, Recipe, field_paths, recipe_names
from raytrain.errors import ConfigError, masked

# Seconds that Ray gives a stopped job to write its checkpoint. By itself it gives 3.
STOP_WAIT_S = 60
STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
# A variable that `ray job submit` reads, too.
SERVER = "RAY_API_SERVER_ADDRESS"
UNKNOWN_SERVER = "http://HEAD:8265"
# Flags of the command that the submission replaces, and whether a value follows.
REPLACED = {"--print-submit": False, "--name": True, "--resume": True}


def submission(
    words: Sequence[str],
    name: str,
    *,
    folder: Path,
    environment: Mapping[str, str] = os.environ,
) -> str:
    """Returns the shell line that submits a command as a job.

    Args:
        words: arguments of the command, without the program and without `train`.
        name: of the run.
        folder: that the line will be typed in. A checkout of raytrain is uploaded with the job.
        environment: of this process.

    Raises:
        ConfigError: the command holds the keys of a URI.
    """
    entry = [*_kept(words), "--name", name, "--resume", "auto"]
    _refuse_keys(entry)
    line = ["ray", "job", "submit", "--address", environment.get(SERVER, UNKNOWN_SERVER)]
    commit = None
    if is_uploaded(folder):
        line += ["--working-dir", "."]
        commit = lineage.commit(folder)
        entry = ["python", "jobs/train.py", *entry]
    else:
        entry = ["raytrain", "train", *entry]
    line += ["--runtime-env-json", json.dumps({"env_vars": {STOP_WAIT: str(STOP_WAIT_S)}})]
    metadata = {"run": name}
    if commit is not None:
        metadata[lineage.COMMIT_KEY] = commit
    line += ["--metadata-json", json.dumps(metadata)]
    # Ray takes an id only once, and the shell makes a new one for each submission.
    identifier = f"{shlex.quote(name)}-$(date +%s)"
    return f"{shlex.join(line)} --submission-id {identifier} -- {shlex.join(entry)}"


def is_uploaded(folder: Path) -> bool:
    """Returns whether the line uploads the folder that it is typed in: a checkout of raytrain."""
    return (folder / "jobs" / "train.py").exists()


def _kept(words: Sequence[str]) -> list[str]:
    """Returns the arguments without those that the submission replaces."""
    kept = []
    is_value = False
    for word in words:
        if is_value:
            is_value = False
            continue
        flag, equals, _ = word.partition("=")
        if flag not in REPLACED:
            kept.append(word)
            continue
        is_value = REPLACED[flag] and not equals
    return kept


def _refuse_keys(words: Sequence[str]) -> None:
    for word in words:
        if masked(word) == word:
            continue
        raise ConfigError(
            f"the submission would hold the keys of {masked(word)}",
            "Ray logs the command line of a job",
            "give the keys to the machines as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )


def refuse_variables(given: Mapping[str, Any]) -> None:
    """Refuses settings that only the environment of this process has.

    Args:
        given: nested values of `config.environment`.

    Raises:
        ConfigError: there are some.
    """
    if not given:
        return
    paths = sorted(field_paths(given))
    names = [ENV_PREFIX + path.upper().replace(".", "__") for path in paths]
    raise ConfigError(
        f"the submission would not have {', '.join(names)}, which this command has",
        "a job gets the flags of its line, and not the variables of this shell",
        f"unset {' '.join(names)}, and give flags instead",
    )


def check_paths(recipe: Recipe, config: str | None, folder: Path) -> None:
    """Refuses paths that a job would not find, or whose files nobody would find again.

    Args:
        recipe: as the user gave it.
        config: name or file that the recipe comes from.
        folder: that the line will be typed in.

    Raises:
        ConfigError: a path is relative.
    """
    if recipe.mlflow is not None:
        tracking.check_form(recipe.mlflow)
    paths = {"--dataset": recipe.dataset, "--storage": recipe.storage}
    if recipe.model.weights not in NAMED_WEIGHTS:
        paths["--model.weights"] = recipe.model.weights
    # RUN and RUN:CHECKPOINT are looked up in the storage.
    if recipe.init_from is not None and "/" in recipe.init_from:
        paths["--init-from"] = recipe.init_from
    if config is not None and config not in recipe_names() and not _is_sent(config, folder):
        paths["--config"] = config
    for flag, path in paths.items():
        if path is None or storage.is_uri(path) or os.path.isabs(os.path.expanduser(path)):
            continue
        raise ConfigError(
            f"{flag} {path} is relative",
            "a job starts in a folder that Ray chose, on a machine that it chose",
            f"{flag} with a path on a disk that every machine reaches, or an s3:// or gs:// URI",
        )


def _is_sent(file: str, folder: Path) -> bool:
    """Whether a job finds a file under the same relative path in the folder that it is sent."""
    return is_uploaded(folder) and (folder / file).resolve().is_relative_to(folder.resolve())
