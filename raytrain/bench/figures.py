"""Figures that a bench measured: each as median and spread, as one table for people and as JSON with every value."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

PACKAGES = ("torch", "torchvision", "numpy", "pillow", "pyarrow", "ray")
HEADINGS = ("what", "median", "spread", "unit", "of")


@dataclass(frozen=True)
class Figure:
    """One thing that was measured one or more times.

    Attributes:
        name: in JSON, such as train.stage-1-128.ratio; no two figures of a bench share it.
        label: for people.
        unit: of the values; empty for a ratio.
        values: in the order in which they were measured.
        about: network, size, batch: what it was measured on.
    """

    name: str
    label: str
    unit: str
    values: tuple[float, ...]
    about: str = ""

    @property
    def median(self) -> float:
        """The middle value, or the mean of the two in the middle."""
        return float(np.median(self.values))

    @property
    def spread(self) -> tuple[float, float]:
        """The smallest and the largest value."""
        return min(self.values), max(self.values)


def table(figures: Sequence[Figure]) -> str:
    """The figures as aligned columns: what, median, spread (empty for a single value), unit, of."""
    rows = [HEADINGS, *map(_cells, figures)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADINGS))]
    left = (True, False, False, True, True)
    lines = (
        "  ".join(
            cell.ljust(w) if to_left else cell.rjust(w)
            for cell, w, to_left in zip(row, widths, left, strict=True)
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def _cells(figure: Figure) -> tuple[str, ...]:
    low, high = figure.spread
    spread = f"{number(low)} to {number(high)}" if len(figure.values) > 1 else ""
    return figure.label, number(figure.median), spread, figure.unit, figure.about


def number(value: float) -> str:
    """A value with about four digits: 12,345, 123.4, 12.34, 1.234."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    digits = 1 if abs(value) >= 100 else 2 if abs(value) >= 10 else 3
    return f"{value:.{digits}f}"


def document(figures: Sequence[Figure], command: str) -> dict[str, Any]:
    """All that is known of a bench, for JSON: machine, command, and each figure with median, spread and values."""
    entries = [
        asdict(figure) | {"median": figure.median, "min": figure.spread[0], "max": figure.spread[1]}
        for figure in figures
    ]
    return {"machine": machine(), "command": command, "figures": entries}


def machine() -> dict[str, Any]:
    """What the figures were measured on, and when (local time with its offset)."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": _gpu(),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def machine_line() -> str:
    """The machine in a line, to stand above a table."""
    found = machine()
    return (
        f"{found['cpu']}, {found['cores']} cores, {found['gpu'] or 'no GPU'}, torch {found['packages'].get('torch')}, "
        f"Python {found['python']}, {found['date'][:10]}"
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _gpu() -> str | None:
    # Nothing was measured on a GPU by a process that never loaded torch.
    torch = sys.modules.get("torch")
    return str(torch.cuda.get_device_name()) if torch and torch.cuda.is_available() else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
