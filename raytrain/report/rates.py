"""The learning rate range tests of a run: reads the tables in `lr-find/` and draws a PNG of each.

Imports neither torch nor ray.
"""

from __future__ import annotations

import io
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


def read(run: str) -> list[RangeTest]:
    """Reads the range tests of a run directory.

    Returns:
        The tests in the order of the stage names; an empty list if there is no `lr-find` folder.
    """
    folder = storage.join(run, "lr-find")
    stages = []
    for name in storage.names(folder):
        if name.endswith(".json"):
            stages.append(name.removesuffix(".json"))
    return [_read_test(folder, stage) for stage in sorted(stages)]


def draw(run: str) -> list[str]:
    """Draws every range test of a run directory.

    Returns:
        The paths of the PNG files, in the order of `read`.
    """
    paths = []
    for test in read(run):
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
