"""The commands `raytrain runs list`, `raytrain runs show` and `raytrain runs report`."""

from __future__ import annotations

import csv

from cyclopts import App

from raytrain import registry, runs, storage
from raytrain.cli.flags import Storage
from raytrain.cli.job import check_written
from raytrain.data.names import visible

runs_app = App(name="runs", help="List runs, show their history, write their reports.")


@runs_app.command(name="list")
def list_runs(*, where: Storage = "runs") -> None:
    """List all runs under a storage path with their best score."""
    for run in runs.every(where):
        rows = _history(run)
        best = "no epoch yet"
        if rows:
            best = f"{_best(rows)} after {len(rows)} epochs"
        print(f"{visible(run.name)}  {best}")


@runs_app.command
def show(run: str, /, *, where: Storage = "runs") -> None:
    """Show the history and the checkpoints of a run."""
    found = runs.find(run, where)
    print(f"{found.path}\ncheckpoints: {', '.join(found.checkpoints)}")
    for row in _history(found):
        print("  ".join(f"{key} {float(value):.4g}" for key, value in row.items()))


@runs_app.command
def report(run: str, /, *, where: Storage = "runs") -> None:
    """Write the report of a run again."""
    check_written("--storage", where)
    # matplotlib takes a second to import.
    from raytrain.report.conclude import conclude

    print(f"report: {conclude(runs.find(run, where).path).report}")


def _best(rows: list[dict[str, str]]) -> str:
    """The best score in the rows of history.csv, with its name.

    It is found by its column, so that no dataset has to be opened to list runs.
    """
    last = rows[-1]
    score = registry.evaluation(registry.judged_by(last)).SCORE
    return f"best {score.name} {float(last[score.best_key]):.4f}"


def _history(run: runs.Run) -> list[dict[str, str]]:
    """The rows of history.csv, one per epoch; none before the first epoch has ended."""
    try:
        text = storage.read_bytes(storage.join(run.path, "history.csv")).decode()
    except FileNotFoundError:
        return []
    return list(csv.DictReader(text.splitlines()))
