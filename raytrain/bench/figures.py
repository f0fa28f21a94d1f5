"""The figures of a bench: median and spread, as a table for people and as JSON with every value."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from raytrain.machine import usable_cpus

# Packages whose versions influence the figures.
PACKAGES = ("torch", "torchvision", "numpy", "pillow", "pyarrow", "ray")
HEADINGS = ("what", "median", "spread", "unit", "of")
# Alignment of the columns above: words to the left, numbers to the right.
TO_LEFT = (True, False, False, True, True)


@dataclass(frozen=True)
class Figure:
    """One quantity that was measured one or more times.

    Attributes:
        name: key in the JSON, such as train.stage-1-128.ratio; unique within a bench.
        label: the same for people, in the table.
        unit: of the values; empty for a ratio.
        values: in the order in which they were measured.
        about: what it was measured on, such as network, size and batch.
    """

    name: str
    label: str
    unit: str
    values: tuple[float, ...]
    about: str = ""

    @property
    def median(self) -> float:
        """The middle value, or the mean of the two middle values."""
        return float(np.median(self.values))

    @property
    def spread(self) -> tuple[float, float]:
        """The smallest and the largest value."""
        return min(self.values), max(self.values)


def table(figures: Sequence[Figure]) -> str:
    """Formats figures as a table with aligned columns.

    The columns are those of `HEADINGS`. The spread of a single value stays empty.
    """
    rows: list[tuple[str, ...]] = [HEADINGS]
    for figure in figures:
        rows.append(_cells(figure))
    widths = _widths(rows)
    lines = [_line(row, widths) for row in rows]
    return "\n".join(lines)


def _cells(figure: Figure) -> tuple[str, ...]:
    spread = ""
    if len(figure.values) > 1:
        low, high = figure.spread
        spread = f"{number(low)} to {number(high)}"
    return figure.label, number(figure.median), spread, figure.unit, figure.about


def _widths(rows: Sequence[tuple[str, ...]]) -> list[int]:
    """The length of the longest cell of each column."""
    widths = []
    for column in zip(*rows, strict=True):
        lengths = [len(cell) for cell in column]
        widths.append(max(lengths))
    return widths


def _line(row: tuple[str, ...], widths: Sequence[int]) -> str:
    cells = []
    for cell, width, to_left in zip(row, widths, TO_LEFT, strict=True):
        if to_left:
            cells.append(cell.ljust(width))
        else:
            cells.append(cell.rjust(width))
    # The last column is padded as well; spaces at the end of a line would be noise.
    return "  ".join(cells).rstrip()


def number(value: float) -> str:
    """Formats a value with about four digits: 12,345, 123.4, 12.34, 1.234."""
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size >= 100:
        return f"{value:.1f}"
    if size >= 10:
        return f"{value:.2f}"
    return f"{value:.3f}"


def document(figures: Sequence[Figure], command: str) -> dict[str, Any]:
    """The content of the JSON file of a bench.

    Args:
        figures: all figures that were measured.
        command: the command line that measured them.

    Returns:
        The machine, the command, and each figure with its median, minimum, maximum and values.
    """
    entries = []
    for figure in figures:
        low, high = figure.spread
        summary = {"median": figure.median, "min": low, "max": high}
        entries.append(asdict(figure) | summary)
    return {"machine": machine(), "command": command, "figures": entries}


def machine() -> dict[str, Any]:
    """The machine and the package versions of this process, and the local time with its offset."""
    return {
        "cpu": _cpu(),
        # The cores that this process may use, which a container can limit.
        "cores": usable_cpus(),
        "gpu": _gpu(),
        "python": platform.python_version(),
        "packages": _versions(),
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def machine_line() -> str:
    """The machine in one line, to be printed above a table."""
    found = machine()
    gpu = found["gpu"] or "no GPU"
    torch_version = found["packages"].get("torch")
    day = found["date"][:10]
    return (
        f"{found['cpu']}, {found['cores']} cores, {gpu}, torch {torch_version}, "
        f"Python {found['python']}, {day}"
    )


def _cpu() -> str:
    """The name of the CPU, by Linux as "model name : ..." once for each core."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpu() -> str | None:
    # Not imported here: a process that never loaded torch has measured nothing on a GPU.
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return str(torch.cuda.get_device_name())


def _versions() -> dict[str, str]:
    """The versions of those of `PACKAGES` that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
