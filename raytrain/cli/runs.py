"""The commands `raytrain runs list`, `show`, `compare`, `report` and `prune`.

A search is listed beside the runs; when it has ended, its name is that of a run, too.
"""

from __future__ import annotations

import csv
from typing import Annotated

from cyclopts import App, Parameter

from raytrain import registry, runs, storage, summaries
from raytrain.cli.flags import Storage
from raytrain.cli.job import check_written
from raytrain.data.names import visible
from raytrain.errors import ConfigError
from raytrain.summaries import Summary

runs_app = App(
    name="runs",
    help="List runs and searches, show their history, write their reports, remove unused stages.",
)


@runs_app.command(name="list")
def list_runs(*, where: Storage = "runs") -> None:
    """List all runs and searches under a storage path with their best score."""
    for entry in summaries.every(where):
        words = []
        if entry.is_run:
            words.append(_run_in_words(entry.summary))
        if entry.is_search:
            words.append(_search_in_words(entry.run))
        print(f"{visible(entry.run.name)}  {'; '.join(words)}")


@runs_app.command
def show(run: str, /, *, where: Storage = "runs") -> None:
    """Show the history and the checkpoints of a run; of a search, its best trials."""
    search = runs.find_search(run, where)
    if search is not None:
        _show_search(search)
        if not storage.exists(storage.join(search.path, "config.yaml")):
            return
    found = runs.find(run, where)
    print(f"{found.path}\ncheckpoints: {', '.join(found.checkpoints)}")
    for row in _history(found):
        print("  ".join(f"{key} {float(value):.4g}" for key, value in row.items()))


@runs_app.command
def compare(one: str, two: str, /, *, where: Storage = "runs") -> None:
    """Show two runs side by side: settings that differ, scores and time."""
    from raytrain.report.run_comparison import compared

    print(compared(runs.find(one, where), runs.find(two, where)))


@runs_app.command
def report(run: str, /, *, where: Storage = "runs") -> None:
    """Write the report of a run again; of a search, its page and trials.csv."""
    check_written("--storage", where)
    search = runs.find_search(run, where)
    if search is not None:
        _report_search(search)
        if not storage.exists(storage.join(search.path, "config.yaml")):
            return
    # matplotlib takes a second to import.
    from raytrain.report.conclude import conclude

    print(f"report: {conclude(runs.find(run, where).path).report}")


@runs_app.command
def prune(
    *,
    stages: Annotated[
        bool, Parameter(negative="", help="remove trained stages that no search refers to")
    ] = False,
    dry_run: Annotated[bool, Parameter(negative="", help="only list what would go")] = False,
    where: Storage = "runs",
) -> None:
    """Remove trained stages that no search in the storage refers to any more.

    Stages of searches that are there stay, whatever became of the trial, and so does a stage that
    is being trained.
    """
    if not stages:
        raise ConfigError(
            "raytrain runs prune does not say what to remove",
            "only stages of searches that were removed can go",
            "raytrain runs prune --stages --dry-run",
        )
    check_written("--storage", where)
    from raytrain.search import prune as pruning

    found = pruning.unused(where)
    removed = list(found.unused)
    verb = "would free"
    if not dry_run:
        removed = pruning.remove(where, found.unused)
        verb = "freed"
    for stage in removed:
        print(f"{stage.key}  {stage.size / 1e6:.1f} MB")
    freed = sum(stage.size for stage in removed)
    kept = found.kept + len(found.unused) - len(removed)
    print(f"{len(removed)} stages {verb} {freed / 1e9:.2f} GB; {kept} stages of searches stay")
    if found.training:
        print(f"{found.training} more are being trained and stay")


def _search_in_words(search: runs.Run) -> str:
    # pandas takes half a second to import, and a storage may have no search.
    from raytrain.report.search_record import read_setup
    from raytrain.report.trials import summary
    from raytrain.search import table

    return summary(table.read(search.path), read_setup(search.path))


def _show_search(search: runs.Run) -> None:
    from raytrain.report.search_record import read_search
    from raytrain.report.search_text import commands, printed

    print(f"search {search.path}")
    print(printed(search.path))
    for command in commands(read_search(search.path)):
        print(f"next: {command.line}")


def _report_search(search: runs.Run) -> None:
    from raytrain.report import search_page
    from raytrain.report.search_record import read_search
    from raytrain.report.trials import write_trials

    record = read_search(search.path)
    print(f"trials: {write_trials(record.table, record.setup)}")
    print(f"search: {search_page.write_page(record)}")


def _run_in_words(summary: Summary) -> str:
    """The best score of a run, with its name.

    It is found by its column, so that no dataset has to be opened to list runs.
    """
    last = summary.last
    if not last:
        return "no epoch yet"
    score = registry.evaluation(registry.judged_by(last)).SCORE
    return f"best {score.name} {float(last[score.best_key]):.4f} after {summary.epochs} epochs"


def _history(run: runs.Run) -> list[dict[str, str]]:
    """The rows of history.csv, one per epoch; none before the first epoch has ended."""
    try:
        text = storage.read_bytes(storage.join(run.path, "history.csv")).decode()
    except FileNotFoundError:
        return []
    return list(csv.DictReader(text.splitlines()))
