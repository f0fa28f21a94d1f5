"""The run directory: create, find, list and load it; and the ways to name a checkpoint.

`<storage>/<run>/` holds config.yaml, env.json, history.csv, metrics.jsonl, checkpoints/,
predictions.parquet, thresholds.json, pictures, report.html and model_card.md. Imports neither
torch nor ray.
"""

from __future__ import annotations

import platform
import re
import secrets
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raytrain import lineage, storage
from raytrain.config import Recipe, field_paths, names, parse_yaml, validate
from raytrain.errors import ConfigError, did_you_mean, typed
from raytrain.machine import usable_cpus, versions

if TYPE_CHECKING:
    from raytrain.data.dataset import Dataset

# What a resumed run may change: where it runs and how often it saves, not what it computes.
PLACEMENT = (
    "num_workers",
    "max_workers",
    "use_gpu",
    "tiles",
    "dataset",
    "train.stall_s",
    "train.save_every_s",
    "mlflow",
)
# Below the storage path: the stages of all searches, see `training/stages.py`.
STAGES = names.STAGES
# In the directory of a cross-validation, see `distributed/folds.py`.
FOLDS = "folds.json"
# In the directory of a search: recipe, space and flags, see `search/table.py` for its trials.
SEARCH = "search.yaml"


@dataclass(frozen=True)
class Run:
    """An existing run directory, given by its path or URI."""

    path: str

    @property
    def name(self) -> str:
        """The run's name, the last part of its path."""
        return storage.name_of(self.path)

    @property
    def recipe(self) -> Recipe:
        """The resolved configuration the run was started with.

        config.yaml holds no keys of URIs; those in this run's own path are put back.
        """
        path = storage.join(self.path, "config.yaml")
        text = storage.read_bytes(path).decode()
        return validate(parse_yaml(storage.with_keys_of(text, self.path), path), path, text)

    @property
    def checkpoints(self) -> list[str]:
        """Names of its checkpoints, such as stage-2-128 and last."""
        found = storage.names(storage.join(self.path, "checkpoints"), directories=True)
        # A process that was killed while it wrote a checkpoint leaves NAME.partial.
        return [name for name in found if not name.endswith(".partial")]


# Names


def new_name(label: str) -> str:
    """A name no other run has: label, local time, four hexadecimal digits.

    Args:
        label: any text; characters that are not allowed in a name become hyphens.
    """
    plain = re.sub(r"[^\w.]+", "-", label[:40]).strip("-")
    # The digits keep two runs apart that start within the same second.
    return f"{plain or 'run'}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def check_name(name: str) -> str:
    """Returns the name a user gives to a new run, search or range test, if it is allowed.

    Raises:
        ConfigError: not every system allows a directory of that name, or commands would
            mistake it for something else.
    """
    why = names.wrong_name(name)
    if not why:
        return name
    raise ConfigError(
        f'the name "{names.shown(name)}" {why}',
        "a directory gets this name, and every command finds the run by it",
        "--name with letters, digits, _, . and -, such as --name first",
    )


def refuse_taken(name: str, path: str) -> None:
    """Refuses the name of an existing run, search or range test, and a name that is not allowed.

    Args:
        name: name of a new run, search or range test.
        path: storage path.

    Raises:
        ConfigError: the name is taken, or as in `check_name`.
    """
    check_name(name)
    base = storage.join(storage.absolute(path), name)
    # A run, a search, a range test and a cross-validation each have one of these.
    for file in ("config.yaml", SEARCH, "trials.csv", "lr-find", FOLDS):
        if not storage.exists(storage.join(base, file)):
            continue
        raise ConfigError(
            f'there is already a run "{name}" in {path}',
            "a second one under its name would mix two results",
            _instead_of_taken(base, name, path),
        )


def _instead_of_taken(base: str, name: str, path: str) -> str:
    """What to type where a name is taken.

    Args:
        base: the directory of that name.
        name: of the run, search, range test or cross-validation in it.
        path: storage path, as the user gave it.
    """
    if storage.exists(storage.join(base, SEARCH)):
        return f"{resume_search_command(name, path)}, or another --name"
    for file in ("config.yaml", FOLDS):
        if storage.exists(storage.join(base, file)):
            return f"{resume_command(name, path)}, or another --name"
    # A range test or a judgement of decision rules: there is nothing to go on with.
    return "another --name"


# Creating a run


def create(
    recipe: Recipe, name: str, dataset: Dataset, machines: Mapping[str, Any] | None = None
) -> Run:
    """Makes the run directory with config.yaml and env.json.

    Args:
        recipe: complete.
        name: of the run.
        dataset: that it trains on.
        machines: versions and source of each machine of the cluster, by its name, for env.json.

    Raises:
        ConfigError: the name is taken.
        StorageError: the storage cannot be written.
    """
    run = Run(storage.join(storage.absolute(recipe.storage), name))
    refuse_taken(name, recipe.storage)
    storage.make_dir(run.path)
    storage.write_text(storage.join(run.path, "config.yaml"), recipe.to_yaml())
    content = environment(dataset)
    content["machines"] = dict(machines or {})
    content["split_hash"] = dataset.split_hash(recipe.data.split)
    storage.write_json(storage.join(run.path, "env.json"), content)
    return run


def write_attempt(run: Run, machines: Mapping[str, Any]) -> None:
    """Adds to env.json what goes on with the run now: it may be other code on other machines.

    Args:
        run: that goes on.
        machines: as for `create`.

    Raises:
        StorageError: it cannot be written.
    """
    path = storage.join(run.path, "env.json")
    try:
        content = storage.read_json(path)
    except (FileNotFoundError, ValueError):
        # A damaged file ends no run; the later attempts are at least known then.
        content = {}
    started = time.strftime("%Y-%m-%d %H:%M:%S %z")
    attempt = {"started": started, **lineage.lineage(), "machines": dict(machines)}
    content.setdefault("later_attempts", []).append(attempt)
    storage.write_json(path, content)


def environment(dataset: Dataset) -> dict[str, Any]:
    """Versions, machine, command and dataset, as env.json keeps them.

    Environment variables are left out, because they may hold secrets.
    """
    return {
        "command": " ".join(sys.argv),
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "host": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        # The CPUs this process may use, which a container or taskset can restrict.
        "cpus": usable_cpus(),
        "versions": versions(),
        **lineage.lineage(),
        "dataset": dataset.path,
        "dataset_hash": dataset.hash,
        "tiles": dataset.rows,
        "synthetic": is_synthetic(dataset),
    }


def is_synthetic(dataset: Dataset) -> bool:
    """Whether the tiles were generated instead of photographed: their folder is named so."""
    return "synthetic" in str(dataset.manifest["source"]["images"])


# Finding a run and its checkpoints


def find(name: str, path: str) -> Run:
    """The run of a name under a storage path.

    Args:
        name: a run's name, or the path of a run directory.
        path: storage path; a run of that name there comes before a directory of that path.

    Raises:
        ConfigError: no such run, with the nearest name.
    """
    for candidate in (storage.join(storage.absolute(path), name), storage.absolute(name)):
        if storage.exists(storage.join(candidate, "config.yaml")):
            return Run(candidate)
    known = [run.name for run in every(path)]
    raise ConfigError(
        f'there is no run "{name}" in {path}.{did_you_mean(name, known)}',
        "a run is looked up under --storage (default RAYTRAIN_STORAGE, else ./runs)",
        f"raytrain runs list --storage {typed(path)}",
    )


def begun(name: str, path: str) -> Run | None:
    """The run of a name under a storage path; None where it was not begun.

    Unlike `find`, it takes no run from elsewhere: a new run of this name would be made there.
    """
    found = Run(storage.join(storage.absolute(path), name))
    if storage.exists(storage.join(found.path, "config.yaml")):
        return found
    return None


def find_folds(name: str, path: str) -> Run | None:
    """The directory of the cross-validation of a name; None where there is none.

    Args:
        name: its name, or the path of its directory.
        path: storage path; one of that name there comes before a directory of that path.
    """
    return _holding(FOLDS, name, path)


def find_search(name: str, path: str) -> Run | None:
    """The directory of the search of a name; None where there is none.

    Args:
        name: its name, or the path of its directory.
        path: storage path; one of that name there comes before a directory of that path.
    """
    return _holding(SEARCH, name, path)


def _holding(file: str, name: str, path: str) -> Run | None:
    """The directory of a name under a storage path, or at a path, that holds a file."""
    for candidate in (storage.join(storage.absolute(path), name), storage.absolute(name)):
        if storage.exists(storage.join(candidate, file)):
            return Run(candidate)
    return None


def every_search(path: str) -> list[Run]:
    """The directories of all searches under a storage path, sorted by name."""
    base = storage.absolute(path)
    paths = [storage.join(base, name) for name in storage.names(base, directories=True)]
    return [Run(p) for p in paths if storage.exists(storage.join(p, SEARCH))]


def every(path: str) -> list[Run]:
    """All runs under a storage path, sorted by name."""
    base = storage.absolute(path)
    paths = [storage.join(base, name) for name in storage.names(base, directories=True)]
    return [Run(p) for p in paths if storage.exists(storage.join(p, "config.yaml"))]


def find_checkpoint(text: str, storage_path: str) -> str:
    """The path of a checkpoint.

    Args:
        text: a path, RUN (its last checkpoint), or RUN:CHECKPOINT such as RUN:best.
        storage_path: where a run is looked up.

    Raises:
        ConfigError: there is no such checkpoint.
    """
    path = storage.absolute(text)
    if storage.exists(storage.join(path, "MANIFEST.json")):
        return path
    name, which = _run_and_checkpoint(text, storage_path)
    if "/" in name and not storage.exists(storage.join(storage.absolute(name), "config.yaml")):
        raise ConfigError(
            f"there is no checkpoint at {text}",
            "a checkpoint is a directory with a MANIFEST.json, written last",
            f"raytrain runs list --storage {typed(storage_path)}",
        )
    run = find(name, storage_path)
    which = which or "last"
    # A crash in the middle of a save leaves the previous checkpoint of that name as NAME.old.
    for candidate in (which, f"{which}.old"):
        found = storage.join(run.path, "checkpoints", candidate)
        if storage.exists(storage.join(found, "MANIFEST.json")):
            return found
    raise ConfigError(
        f'the run {run.name} has no checkpoint "{which}".{did_you_mean(which, run.checkpoints)}',
        f"it has: {', '.join(run.checkpoints) or 'none yet'}",
        f"raytrain runs show {run.name} --storage {typed(storage_path)}",
    )


def _run_and_checkpoint(text: str, path: str) -> tuple[str, str]:
    """The two parts of RUN:CHECKPOINT; the second is empty where only a run is named."""
    if storage.is_uri(text):
        return text, ""
    # The name of a run from before names were checked may hold a colon.
    if storage.exists(storage.join(storage.absolute(path), text, "config.yaml")):
        return text, ""
    name, colon, which = text.rpartition(":")
    if not colon:
        return text, ""
    return name, which


# Resuming a run


def resume_command(name: str, path: str) -> str:
    """The command that resumes a run, as a user types it."""
    return f"raytrain train --resume {shlex.quote(name)} --storage {shlex.quote(path)}"


def resume_search_command(name: str, path: str) -> str:
    """The command that goes on with a search, as a user types it."""
    return f"raytrain tune --resume {shlex.quote(name)} --storage {shlex.quote(path)}"


def placement(run: Run, overrides: dict[str, Any]) -> dict[str, Any]:
    """The settings a run may change when it is resumed, out of those that were given.

    Args:
        run: the run to resume.
        overrides: nested values of fields. `storage` is only where the run is looked up, and is
            left out. `preflight.check_recipe` checks that a dataset is the run's.

    Raises:
        ConfigError: another field would change.
    """
    changed = sorted(field_paths(overrides) - {*PLACEMENT, "storage"})
    if changed:
        raise ConfigError(
            f"--resume continues with the settings of {run.name}; "
            f"{', '.join(changed)} cannot change now",
            "half of the run would have been trained in another way",
            f"leave it out, or start a new run with --init-from {run.name}",
        )
    return {key: value for key, value in overrides.items() if key != "storage"}


def trained_on(run: Run) -> dict[str, str]:
    """`dataset_hash` and `split_hash` of the tiles that a run trains on, as far as it knows them.

    A run of an earlier version may have recorded only one of them, or none.
    """
    for name in run.checkpoints:
        known = _hashes(storage.join(run.path, "checkpoints", name, "meta.json"))
        if known:
            return known
    # Before its first checkpoint.
    return _hashes(storage.join(run.path, "env.json"))


def _hashes(path: str) -> dict[str, str]:
    try:
        content = storage.read_json(path)
        return {key: content[key] for key in ("dataset_hash", "split_hash") if key in content}
    except (FileNotFoundError, ValueError, TypeError):
        return {}


def write_paths(run: Run, recipe: Recipe) -> None:
    """Updates the paths of dataset and storage, and MLflow's address, if they are other ones now.

    Raises:
        StorageError: it cannot be written.
    """
    known = run.recipe
    places = {field: getattr(recipe, field) for field in ("dataset", "storage", "mlflow")}
    moved = known.model_copy(update=places)
    if moved != known:
        storage.write_text(storage.join(run.path, "config.yaml"), moved.to_yaml())


def write_failure(run: Run, error: BaseException, exit_code: int) -> None:
    """Writes failure.json into the run directory: a Ray job itself reports only 0 or 1."""
    content = {"exit_code": exit_code, "error": type(error).__name__, "message": str(error)}
    storage.write_json(storage.join(run.path, "failure.json"), content)
