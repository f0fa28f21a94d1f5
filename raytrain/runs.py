"""The run directory: create, find, list, load; and what a person may call a checkpoint.

`<storage>/<run>/` holds config.yaml, env.json, history.csv, metrics.jsonl, checkpoints/, predictions.parquet,
thresholds.json, pictures, report.html and model_card.md. Imports neither torch nor ray.
"""

from __future__ import annotations

import os
import platform
import secrets
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from raytrain import storage
from raytrain.config import Recipe, parse_yaml, validate
from raytrain.errors import ConfigError, did_you_mean, typed

if TYPE_CHECKING:
    from raytrain.data.dataset import Dataset

# What a resumed run may change: where it runs, not what it computes.
PLACEMENT = ("num_workers", "use_gpu", "tiles")
PACKAGES = ("raytrain", "ray", "torch", "torchvision", "numpy", "pandas", "pyarrow", "pillow", "pydantic")


@dataclass(frozen=True)
class Run:
    """A run directory that was found."""

    place: str

    @property
    def name(self) -> str:
        """The run's name, the last part of its place."""
        return storage.name_of(self.place)

    @property
    def recipe(self) -> Recipe:
        """The resolved configuration it was started with, and the keys that its own place came with."""
        place = storage.join(self.place, "config.yaml")
        text = storage.read_bytes(place).decode()
        return validate(parse_yaml(storage.with_keys_of(text, self.place), place), place, text)

    @property
    def checkpoints(self) -> list[str]:
        """Names of its checkpoints, such as stage-2-128 and last."""
        found = storage.names(storage.join(self.place, "checkpoints"), directories=True)
        return [name for name in found if not name.endswith(".partial")]


def new_name(label: str) -> str:
    """A name that no other run has: label, local time, four hexadecimal digits."""
    return f"{label}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def create(recipe: Recipe, name: str, dataset: Dataset) -> Run:
    """Makes the run directory with config.yaml and env.json.

    Raises:
        ConfigError: the name is taken.
        StorageError: the storage cannot be written.
    """
    run = Run(storage.join(storage.absolute(recipe.storage), name))
    refuse_taken(name, recipe.storage)
    storage.make_dir(run.place)
    storage.write_text(storage.join(run.place, "config.yaml"), recipe.to_yaml())
    storage.write_json(storage.join(run.place, "env.json"), environment(dataset))
    return run


def refuse_taken(name: str, place: str) -> None:
    """Refuses the name of a run, search or range test that is there.

    Raises:
        ConfigError: it is taken.
    """
    base = storage.join(storage.absolute(place), name)
    if any(storage.exists(storage.join(base, file)) for file in ("config.yaml", "trials.csv", "lr-find")):
        raise ConfigError(
            f'there is already a run "{name}" in {place}',
            "a second one under its name would mix two results",
            f"raytrain train --resume {name} --storage {typed(place)}, or another --name",
        )


def environment(dataset: Dataset) -> dict[str, Any]:
    """Versions, machine, command and dataset, as env.json keeps them. No variables: they may hold secrets."""
    return {
        "command": " ".join(sys.argv),
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "host": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpus": len(os.sched_getaffinity(0)),
        "versions": {name: metadata.version(name) for name in PACKAGES if _installed(name)},
        "dataset": dataset.place,
        "dataset_hash": dataset.hash,
        "tiles": dataset.rows,
        "synthetic": is_synthetic(dataset),
    }


def is_synthetic(dataset: Dataset) -> bool:
    """True for tiles that were painted, not photographed: their folder is named so."""
    return "synthetic" in str(dataset.manifest["source"]["images"])


def find(name: str, place: str) -> Run:
    """The run of a name under a storage path; a path of a run directory is taken as it is.

    Raises:
        ConfigError: no such run, with the nearest name.
    """
    for candidate in (storage.join(storage.absolute(place), name), storage.absolute(name)):
        if storage.exists(storage.join(candidate, "config.yaml")):
            return Run(candidate)
    known = [run.name for run in every(place)]
    raise ConfigError(
        f'there is no run "{name}" in {place}.{did_you_mean(name, known)}',
        "a run is looked up under --storage (default RAYTRAIN_STORAGE, else ./runs)",
        f"raytrain runs list --storage {typed(place)}",
    )


def every(place: str) -> list[Run]:
    """All runs under a storage path, by name."""
    base = storage.absolute(place)
    places = [storage.join(base, name) for name in storage.names(base, directories=True)]
    return [Run(p) for p in places if storage.exists(storage.join(p, "config.yaml"))]


def placement(run: Run, overrides: dict[str, Any]) -> dict[str, Any]:
    """Those of some settings that a run may go on with.

    Raises:
        ConfigError: another field would change; the storage is only where the run is looked for.
    """
    changed = sorted(overrides.keys() - {*PLACEMENT, "storage"})
    if changed:
        raise ConfigError(
            f"--resume goes on with the settings of {run.name}; {', '.join(changed)} cannot change now",
            "half of the run would have been trained in another way",
            f"leave it out, or start a new run with --init-from {run.name}",
        )
    return {key: overrides[key] for key in PLACEMENT if key in overrides}


def find_checkpoint(text: str, place: str) -> str:
    """The place of a checkpoint given as a path, as RUN (its last) or as RUN:best, RUN:stage-2-128.

    Raises:
        ConfigError: there is none.
    """
    path = storage.absolute(text)
    if storage.exists(storage.join(path, "MANIFEST.json")):
        return path
    name, _, which = text.partition(":") if not storage.is_uri(text) else (text, "", "")
    if "/" in name and not storage.exists(storage.join(storage.absolute(name), "config.yaml")):
        raise ConfigError(
            f"there is no checkpoint at {text}", "a checkpoint is a directory with a MANIFEST.json, written last",
            f"raytrain runs list --storage {typed(place)}",
        )  # fmt: skip
    run = find(name, place)
    which = which or "last"
    # A crash in the middle of a save leaves the previous checkpoint of that name as NAME.old.
    for candidate in (which, f"{which}.old"):
        found = storage.join(run.place, "checkpoints", candidate)
        if storage.exists(storage.join(found, "MANIFEST.json")):
            return found
    raise ConfigError(
        f'the run {run.name} has no checkpoint "{which}".{did_you_mean(which, run.checkpoints)}',
        f"it has: {', '.join(run.checkpoints) or 'none yet'}",
        f"raytrain runs show {run.name} --storage {typed(place)}",
    )


def write_failure(run: Run, error: BaseException, exit_code: int) -> None:
    """Leaves failure.json in the run directory: a Ray job itself reports only 0 or 1."""
    content = {"exit_code": exit_code, "error": type(error).__name__, "message": str(error)}
    storage.write_json(storage.join(run.place, "failure.json"), content)


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
