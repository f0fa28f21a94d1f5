"""What is shown of many runs, read from one small file of each.

    <run>/summary.json   epochs, seconds, last (the last row of history.csv)

A run of an earlier version has no such file, and its history.csv is read in its place. Imports
neither torch nor ray.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from raytrain import runs, storage
from raytrain.runs import Run

FILE = "summary.json"
HISTORY = "history.csv"
# Runs that are read at the same time: an object store takes some 30 ms to answer.
AT_ONCE = 32


@dataclass(frozen=True)
class Summary:
    """What a run has reached.

    Attributes:
        epochs: number of epochs that have ended.
        seconds: of all of them together.
        last: the last row of history.csv by column; empty before the first epoch has ended.
    """

    epochs: int = 0
    seconds: float = 0.0
    last: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """A directory below a storage path.

    Attributes:
        run: the directory.
        is_run: whether a run is in it, or the winner of a search.
        is_search: whether a search is in it.
        summary: of the run.
    """

    run: Run
    is_run: bool
    is_search: bool
    summary: Summary


def write(run: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes the file of a run.

    Args:
        run: the run directory.
        rows: of history.csv.

    Raises:
        StorageError: it cannot be written.
    """
    found = _of_rows(list(rows))
    content = {"epochs": found.epochs, "seconds": found.seconds, "last": dict(found.last)}
    # It can be made again from history.csv, so it need not survive a power cut.
    text = json.dumps(content, indent=1) + "\n"
    storage.write_bytes(storage.join(run, FILE), text.encode(), durable=False)


def read(run: Run) -> Summary:
    """Returns what a run has reached."""
    try:
        content = storage.read_json(storage.join(run.path, FILE))
        return Summary(content["epochs"], content["seconds"], content["last"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return _of_history(run)


def _of_history(run: Run) -> Summary:
    try:
        text = storage.read_bytes(storage.join(run.path, HISTORY)).decode()
    except FileNotFoundError:
        return Summary()
    rows = []
    for cells in csv.DictReader(text.splitlines()):
        rows.append({name: float(cell) for name, cell in cells.items()})
    return _of_rows(rows)


def _of_rows(rows: list[Any]) -> Summary:
    if not rows:
        return Summary()
    return Summary(len(rows), sum(float(row["seconds"]) for row in rows), rows[-1])


def every(path: str) -> list[Entry]:
    """Returns the runs and searches under a storage path, sorted by name.

    Args:
        path: storage path.
    """
    base = storage.absolute(path)
    found = [Run(storage.join(base, name)) for name in storage.names(base, directories=True)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        entries = list(pool.map(_entry, found))
    return [entry for entry in entries if entry.is_run or entry.is_search]


def _entry(run: Run) -> Entry:
    # One request tells what a directory is.
    files = storage.names(run.path)
    is_run = "config.yaml" in files
    is_search = runs.SEARCH in files
    summary = Summary()
    if is_run and FILE in files:
        summary = read(run)
    elif is_run and HISTORY in files:
        summary = _of_history(run)
    return Entry(run, is_run, is_search, summary)
