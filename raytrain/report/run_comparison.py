"""Two runs side by side, for `raytrain runs compare`: settings that differ, scores, seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raytrain import summaries
from raytrain.config import Recipe, different_fields
from raytrain.errors import masked
from raytrain.log import duration
from raytrain.runs import Run
from raytrain.summaries import Summary

# Columns of history.csv that are no results.
POSITION = ("stage", "epoch", "size", "lr", "seconds", "images_per_s")
# What a setting is called that one of the runs does not have.
NONE = "-"
# Characters of a value; longer ones are cut.
WIDTH = 60


def compared(one: Run, two: Run) -> str:
    """Returns the table of two runs."""
    lines = [("", one.name, two.name)]
    settings = _settings(one.recipe, two.recipe)
    lines += settings
    if not settings:
        lines.append(("settings", "equal", "equal"))
    lines += _results(summaries.read(one), summaries.read(two))
    return _table(lines)


def _settings(one: Recipe, two: Recipe) -> list[tuple[str, str, str]]:
    found = []
    first = one.model_dump(mode="json")
    second = two.model_dump(mode="json")
    for path in sorted(different_fields(one, two)):
        if path == "stages":
            found += _stages(first["stages"], second["stages"])
        else:
            found.append((path, _text(_value(first, path)), _text(_value(second, path))))
    return found


def _stages(one: Sequence[Any], two: Sequence[Any]) -> list[tuple[str, str, str]]:
    """The fields of stages that differ, by the number of the stage, from 1."""
    found = []
    for number in range(max(len(one), len(two))):
        first = one[number] if number < len(one) else {}
        second = two[number] if number < len(two) else {}
        for key in {**first, **second}:
            mine = first.get(key)
            other = second.get(key)
            if mine != other:
                found.append((f"stages.{number + 1}.{key}", _text(mine), _text(other)))
    return found


def _value(values: Any, path: str) -> Any:
    for key in path.split("."):
        values = values.get(key) if isinstance(values, dict) else None
    return values


def _results(one: Summary, two: Summary) -> list[tuple[str, str, str]]:
    found = [
        ("epochs", str(one.epochs), str(two.epochs)),
        ("time", duration(one.seconds), duration(two.seconds)),
    ]
    for name in {**one.last, **two.last}:
        if name not in POSITION:
            found.append((name, _number(one.last.get(name)), _number(two.last.get(name))))
    return found


def _number(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value:.4f}"


def _text(value: Any) -> str:
    if value is None:
        return NONE
    text = masked(str(value))
    if len(text) > WIDTH:
        text = f"{text[: WIDTH - 3]}..."
    return text


def _table(lines: Sequence[tuple[str, str, str]]) -> str:
    width = max(len(name) for name, _, _ in lines)
    width_of_first = max(len(first) for _, first, _ in lines)
    rows = [f"{name:{width}}  {first:{width_of_first}}  {second}" for name, first, second in lines]
    return "\n".join(rows)
