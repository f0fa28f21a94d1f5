"""The run directory: create, find, list, load; and what a person may call a checkpoint.

`<storage>/<run>/` holds config.yaml, env.json, history.csv, metrics.jsonl, checkpoints/, predictions.parquet,
thresholds.json, pictures, report.html and model_card.md. Imports neither torch nor ray.
"""

from __future__ import annotations

import os
import platform
import re
import secrets
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from raytrain import storage
from raytrain.config import Recipe, parse_yaml, validate
from raytrain.errors import ConfigError, did_you_mean, typed

if TYPE_CHECKING:
    from raytrain.data.dataset import Dataset

# What a resumed run may change: where it runs and how often it saves, not what it computes.
PLACEMENT = ("num_workers", "use_gpu", "tiles", "dataset", "train.stall_s", "train.save_every_s")
# Names that mean something else where runs are named.
RESERVED = ("stages", "auto")
# Of a file name on Linux, less what a name gets while it is written.
MOST_NAME_BYTES = 255 - len("..01234567.partial")
# The first five mean something in a path, in RUN:CHECKPOINT or in a URI; the others no file may have on some systems.
NOT_IN_NAMES = '/\\:?#%*"<>|'
PACKAGES = (
    "raytrain",
    "ray",
    "torch",
    "torchvision",
    "numpy",
    "pandas",
    "pyarrow",
    "pillow",
    "pydantic",
)


@dataclass(frozen=True)
class Run:
    """A run directory that was found."""

    path: str

    @property
    def name(self) -> str:
        """The run's name, the last part of its place."""
        return storage.name_of(self.path)

    @property
    def recipe(self) -> Recipe:
        """The resolved configuration it was started with, and the keys that its own place came with."""
        path = storage.join(self.path, "config.yaml")
        text = storage.read_bytes(path).decode()
        return validate(parse_yaml(storage.with_keys_of(text, self.path), path), path, text)

    @property
    def checkpoints(self) -> list[str]:
        """Names of its checkpoints, such as stage-2-128 and last."""
        found = storage.names(storage.join(self.path, "checkpoints"), directories=True)
        return [name for name in found if not name.endswith(".partial")]


def new_name(label: str) -> str:
    """A name that no other run has: label, local time, four hexadecimal digits. The label may be any text."""
    plain = re.sub(r"[^\w.]+", "-", label[:40]).strip("-")
    return f"{plain or 'run'}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def check_name(name: str) -> str:
    """Returns a name that a user gives to a new run, search or range test.

    Raises:
        ConfigError: it cannot be that of a directory everywhere, or commands would take it for something else.
    """
    if why := _why_no_name(name):
        shown = "".join(c if c.isprintable() else f"<U+{ord(c):04X}>" for c in name[:60])
        raise ConfigError(
            f'the name "{shown}{"..." if len(name) > 60 else ""}" {why}',
            "a directory gets this name, and every command finds the run by it",
            "--name with letters, digits, _, . and -, such as --name first",
        )
    return name


def _why_no_name(name: str) -> str:
    size = len(name.encode("utf-8", "surrogatepass"))
    if not name:
        return "is empty"
    if size > MOST_NAME_BYTES:
        return f"has {size} bytes; {MOST_NAME_BYTES} are the most"
    if name.strip() != name:
        return "begins or ends with a blank"
    if not name.isprintable():
        return "has a character that cannot be printed"
    if name in (".", ".."):
        return "means another directory"
    if name[0] in "-~":
        return f"begins with {name[0]}"
    if name.casefold() in RESERVED:
        return "is reserved"
    odd = next((c for c in name if c in NOT_IN_NAMES), None)
    return "" if odd is None else f"has the character {odd}"


def create(recipe: Recipe, name: str, dataset: Dataset) -> Run:
    """Makes the run directory with config.yaml and env.json.

    Raises:
        ConfigError: the name is taken.
        StorageError: the storage cannot be written.
    """
    run = Run(storage.join(storage.absolute(recipe.storage), name))
    refuse_taken(name, recipe.storage)
    storage.make_dir(run.path)
    storage.write_text(storage.join(run.path, "config.yaml"), recipe.to_yaml())
    tiles = {"split_hash": dataset.split_hash(recipe.data.split)}
    storage.write_json(storage.join(run.path, "env.json"), environment(dataset) | tiles)
    return run


def refuse_taken(name: str, path: str) -> None:
    """Refuses the name of a run, search or range test that is there, and what is no name.

    Raises:
        ConfigError: it is taken, or as `check_name`.
    """
    check_name(name)
    base = storage.join(storage.absolute(path), name)
    if any(
        storage.exists(storage.join(base, file))
        for file in ("config.yaml", "trials.csv", "lr-find")
    ):
        raise ConfigError(
            f'there is already a run "{name}" in {path}',
            "a second one under its name would mix two results",
            f"{resume_command(name, path)}, or another --name",
        )


def resume_command(name: str, path: str) -> str:
    """What a user types to go on with a run."""
    return f"raytrain train --resume {shlex.quote(name)} --storage {shlex.quote(path)}"


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
        "dataset": dataset.path,
        "dataset_hash": dataset.hash,
        "tiles": dataset.rows,
        "synthetic": is_synthetic(dataset),
    }


def is_synthetic(dataset: Dataset) -> bool:
    """True for tiles that were painted, not photographed: their folder is named so."""
    return "synthetic" in str(dataset.manifest["source"]["images"])


def find(name: str, path: str) -> Run:
    """The run of a name under a storage path; a path of a run directory is taken as it is.

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


def every(path: str) -> list[Run]:
    """All runs under a storage path, by name."""
    base = storage.absolute(path)
    paths = [storage.join(base, name) for name in storage.names(base, directories=True)]
    return [Run(p) for p in paths if storage.exists(storage.join(p, "config.yaml"))]


def placement(run: Run, overrides: dict[str, Any]) -> dict[str, Any]:
    """Those of some settings that a run may go on with.

    Raises:
        ConfigError: another field would change; the storage is only where the run is looked for. Whether a dataset is
            that of the run is for `preflight.check_recipe` to say.
    """
    changed = sorted(_paths(overrides) - {*PLACEMENT, "storage"})
    if changed:
        raise ConfigError(
            f"--resume goes on with the settings of {run.name}; {', '.join(changed)} cannot change now",
            "half of the run would have been trained in another way",
            f"leave it out, or start a new run with --init-from {run.name}",
        )
    return {key: value for key, value in overrides.items() if key != "storage"}


def _paths(values: Mapping[str, Any], prefix: str = "") -> set[str]:
    """The paths of the fields that nested values set, such as train.wd."""
    paths = set[str]()
    for key, value in values.items():
        paths |= (
            _paths(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}"}
        )
    return paths


def trained_on(run: Run) -> dict[str, str]:
    """`dataset_hash` and `split_hash` of the tiles that a run trains on, as far as it has written them down."""
    for name in run.checkpoints:
        if known := _hashes(storage.join(run.path, "checkpoints", name, "meta.json")):
            return known
    return _hashes(storage.join(run.path, "env.json"))


def _hashes(path: str) -> dict[str, str]:
    try:
        content = storage.read_json(path)
        return {key: content[key] for key in ("dataset_hash", "split_hash") if key in content}
    except (FileNotFoundError, ValueError, TypeError):
        return {}


def write_paths(run: Run, recipe: Recipe) -> None:
    """Writes into config.yaml where dataset and storage of a run are now, if they have moved since it was written.

    Raises:
        StorageError: it cannot be written.
    """
    known = run.recipe
    moved = known.model_copy(update={"dataset": recipe.dataset, "storage": recipe.storage})
    if moved != known:
        storage.write_text(storage.join(run.path, "config.yaml"), moved.to_yaml())


def find_checkpoint(text: str, storage_path: str) -> str:
    """The place of a checkpoint given as a path, as RUN (its last) or as RUN:best, RUN:stage-2-128.

    Raises:
        ConfigError: there is none.
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
    """The two parts of RUN:CHECKPOINT; the name of a run from before names were checked may hold a colon."""
    if storage.is_uri(text) or storage.exists(
        storage.join(storage.absolute(path), text, "config.yaml")
    ):
        return text, ""
    name, colon, which = text.rpartition(":")
    return (name, which) if colon else (text, "")


def write_failure(run: Run, error: BaseException, exit_code: int) -> None:
    """Leaves failure.json in the run directory: a Ray job itself reports only 0 or 1."""
    content = {"exit_code": exit_code, "error": type(error).__name__, "message": str(error)}
    storage.write_json(storage.join(run.path, "failure.json"), content)


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
