"""Reads `model.json` of a search: what the model says of the fields, and of the next trial.

    {"fields": [{"path": "train.wd", "levels": [{"label": "0.01", "mean": 0.93, "sd": 0.001}]}],
     "promise": {"gain": 0.0004, "noise": 0.0015}}

Imports neither torch nor ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raytrain import storage

FILE = "model.json"


@dataclass(frozen=True)
class Level:
    """A value of a field.

    Attributes:
        label: the value as text.
        mean: objective that the model expects with it, all other fields as in the best chain.
        sd: standard deviation of that.
    """

    label: str
    mean: float
    sd: float


@dataclass(frozen=True)
class Field:
    """A drawn field, and what its values are worth."""

    path: str
    levels: tuple[Level, ...]

    @property
    def worth(self) -> float:
        """The highest mean less the lowest."""
        means = [level.mean for level in self.levels]
        return max(means) - min(means)


@dataclass(frozen=True)
class Promise:
    """What the next trial promises.

    Attributes:
        gain: expected improvement over the best trial.
        noise: standard deviation of the score of a recipe over seeds.
    """

    gain: float
    noise: float


@dataclass(frozen=True)
class Advice:
    """What the model says.

    Attributes:
        fields: those that are drawn.
        promise: of the next trial; None where it is not known.
    """

    fields: tuple[Field, ...] = ()
    promise: Promise | None = None


def read(directory: str) -> Advice:
    """Reads the file of a search; empty where there is none yet, or it is not one of this version.

    It is written anew after each stage, so nothing is lost with it.
    """
    try:
        return _advice(storage.read_json(storage.join(directory, FILE)))
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return Advice()


def _advice(content: Mapping[str, Any]) -> Advice:
    fields = []
    for row in content.get("fields") or ():
        levels = tuple(_level(level) for level in row["levels"])
        if levels:
            fields.append(Field(str(row["path"]), levels))
    promise = None
    found = content.get("promise")
    if found:
        promise = Promise(float(found["gain"]), float(found["noise"]))
    return Advice(tuple(fields), promise)


def _level(row: Mapping[str, Any]) -> Level:
    return Level(str(row["label"]), float(row["mean"]), float(row["sd"]))
