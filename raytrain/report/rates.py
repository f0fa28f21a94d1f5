"""The learning rate range tests of a run: reads the tables in `lr-find/` and draws a PNG of each.

Imports neither torch nor ray.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from raytrain import storage
from raytrain.report import plots


@dataclass(frozen=True)
class RangeTest:
    """The range test before one stage.

    Attributes:
        stage: name of the stage.
        curve: columns step, lr, loss and smoothed; one row for each step of the test.
        suggestions: the peak learning rate that each rule takes from the curve, by rule.
    """

    stage: str
    curve: pd.DataFrame
    suggestions: dict[str, float]


def read(run: str, stage_names: Sequence[str] = ()) -> list[RangeTest]:
    """Reads the range tests of a run directory.

    Args:
        run: the directory.
        stage_names: in the order of the stages.

    Returns:
        The tests in this order, and those of other stages after them by their names; an empty list
        if there is no `lr-find` folder.
    """
    folder = storage.join(run, "lr-find")
    stages = set()
    for name in storage.names(folder):
        if name.endswith(".json"):
            stages.add(name.removesuffix(".json"))
    ordered = [name for name in stage_names if name in stages]
    ordered += sorted(stages.difference(ordered))
    return [_read_test(folder, stage) for stage in ordered]


def draw(run: str, stage_names: Sequence[str] = ()) -> list[str]:
    """Draws every range test of a run directory.

    Args:
        run: the directory.
        stage_names: in the order of the stages.

    Returns:
        The paths of the PNG files, in the order of `read`.
    """
    paths = []
    for test in read(run, stage_names):
        path = storage.join(run, "lr-find", f"{test.stage}.png")
        storage.write_bytes(path, plots.range_test(test.curve, test.suggestions))
        paths.append(path)
    return paths


def _read_test(folder: str, stage: str) -> RangeTest:
    # pandas gets bytes, not a path: only `storage` can read both local paths and URIs.
    content = storage.read_bytes(storage.join(folder, f"{stage}.csv"))
    curve = pd.read_csv(io.BytesIO(content))
    suggestions = storage.read_json(storage.join(folder, f"{stage}.json"))
    return RangeTest(stage, curve, suggestions)
