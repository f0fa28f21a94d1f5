"""The tasks by name, and the four modules of each, loaded when they are used.

    raytrain/data/targets/<module>.py        how labels become targets
    raytrain/evaluation/tasks/<module>.py    metrics and predictions
    raytrain/tasks/<module>.py               head and loss (torch)
    raytrain/report/<module>.py              what a report shows

Only this module knows a task by its name. Imports neither torch nor ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from raytrain.errors import DataError, did_you_mean

# Name of each task in dataset.json and on the command line, and name of its modules.
MODULES = {"multi-label": "multi_label"}
# Of datasets that name none, and of an ingest without --task.
DEFAULT = "multi-label"


def targets(task: str) -> Any:
    """Returns the module of a task in `raytrain.data.targets`."""
    return _module("raytrain.data.targets", task)


def evaluation(task: str) -> Any:
    """Returns the module of a task in `raytrain.evaluation.tasks`."""
    return _module("raytrain.evaluation.tasks", task)


def training(task: str) -> Any:
    """Returns the module of a task in `raytrain.tasks`. It imports torch."""
    return _module("raytrain.tasks", task)


def drawing(task: str) -> Any:
    """Returns the module of a task in `raytrain.report`."""
    return _module("raytrain.report", task)


def check(task: str) -> None:
    """Refuses the name of an unknown task.

    Raises:
        DataError: there is no such task.
    """
    if task in MODULES:
        return
    raise DataError(
        f'there is no task "{task}".{did_you_mean(task, MODULES)}',
        "the task decides what labels, loss and metrics mean",
        f"one of {', '.join(MODULES)}; a newer raytrain may know more of them",
    )


def _module(room: str, task: str) -> Any:
    check(task)
    return import_module(f"{room}.{MODULES[task]}")
