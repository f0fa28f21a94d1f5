"""Stages that no search of a storage refers to any more. No torch, no ray.

unused(path)             finds them
remove(path, stages)     removes those that are still unused
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from raytrain import runlock, runs, storage
from raytrain.errors import ConfigError, typed
from raytrain.search import table


@dataclass(frozen=True)
class Stage:
    """A stage that is stored.

    Attributes:
        path: its run directory.
        size: of its files, bytes.
    """

    path: str
    size: int

    @property
    def key(self) -> str:
        """The name of its directory."""
        return storage.name_of(self.path)


@dataclass(frozen=True)
class Found:
    """The stages of a storage.

    Attributes:
        unused: that no search refers to.
        kept: number of the others.
        training: number of the unused ones that a process trains now; they stay, too.
    """

    unused: tuple[Stage, ...]
    kept: int
    training: int


def unused(path: str) -> Found:
    """Finds the stages that no table of a search under a storage path refers to.

    Args:
        path: of the storage.

    Raises:
        DataError: a table is damaged, so that it is unknown which stages it refers to.
        StorageError: the storage cannot be read.
    """
    folder = storage.join(storage.absolute(path), runs.STAGES)
    # Before the tables: a stage that begins meanwhile is in a table, but not in this list.
    keys = storage.names(folder, directories=True)
    referred = _referred(path)
    stages = []
    training = 0
    for key in keys:
        if key in referred:
            continue
        stage = storage.join(folder, key)
        if runlock.is_held(stage):
            training += 1
            continue
        size = sum(file.size for file in storage.files(stage, recursive=True))
        stages.append(Stage(stage, size))
    return Found(tuple(stages), len(keys) - len(stages) - training, training)


def _referred(path: str) -> set[str]:
    """Keys of the stages of all trials, whatever became of them."""
    keys: set[str] = set()
    for search in runs.every_search(path):
        for trial in table.read(search.path).trials:
            keys.update(trial.keys)
    return keys


def remove(path: str, stages: Sequence[Stage]) -> list[Stage]:
    """Removes stages that are unused.

    Args:
        path: of the storage.
        stages: as `unused` found them.

    Returns:
        Those that were removed: a process may have begun to train others.

    Raises:
        ConfigError: a search runs there, which may be about to use them.
        StorageError: one cannot be removed.
    """
    _refuse_running(runs.every_search(path), path)
    removed = []
    for stage in stages:
        if runlock.is_held(stage.path):
            continue
        storage.remove(stage.path)
        removed.append(stage)
    return removed


def _refuse_running(searches: Iterable[runs.Run], path: str) -> None:
    for search in searches:
        if runlock.is_held(search.path):
            raise ConfigError(
                f"the search {search.name} runs in {path}",
                "its next trial may need a stage that would be removed",
                "wait until it has ended, or look with "
                f"raytrain runs prune --stages --dry-run --storage {typed(path)}",
            )
