"""The range tests of a run: read from `lr-find/`, drawn as PNG beside their tables. Neither torch nor ray."""

from __future__ import annotations

import io
from dataclasses import dataclass

import pandas as pd

from raytrain import storage
from raytrain.report import plots


@dataclass(frozen=True)
class RangeTest:
    """A stage's curve (columns step, lr, loss, smoothed) and the peak learning rate that each rule reads off it."""

    stage: str
    curve: pd.DataFrame
    suggestions: dict[str, float]


def read(run: str) -> list[RangeTest]:
    """The range tests of a run directory by name of stage; none where there is no `lr-find`."""
    folder = storage.join(run, "lr-find")
    stages = [
        name.removesuffix(".json") for name in storage.names(folder) if name.endswith(".json")
    ]
    return [
        RangeTest(
            stage,
            pd.read_csv(io.BytesIO(storage.read_bytes(storage.join(folder, f"{stage}.csv")))),
            storage.read_json(storage.join(folder, f"{stage}.json")),
        )
        for stage in sorted(stages)
    ]


def draw(run: str) -> list[str]:
    """Writes a picture of every range test of a run directory. Returns their places."""
    paths = []
    for test in read(run):
        paths.append(storage.join(run, "lr-find", f"{test.stage}.png"))
        storage.write_bytes(paths[-1], plots.range_test(test.curve, test.suggestions))
    return paths
