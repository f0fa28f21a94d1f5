"""What model.json of a search holds: what each field is worth by the model. No torch, no ray."""

from __future__ import annotations

from typing import Any

from raytrain.search.advice import Advisor, FieldWorth
from raytrain.search.advisor import ModelAdvisor
from raytrain.search.space import Drawn, Space
from raytrain.search.table import Table

FILE = "model.json"


def content(advisor: Advisor, space: Space, table: Table, sign: float) -> dict[str, Any]:
    """Returns the content of model.json; without fields before a chain is finished.

    Args:
        advisor: of the search.
        space: that it draws from.
        table: of the search.
        sign: 1, or -1 where a lower score is better: the model hears it turned.
    """
    found: dict[str, Any] = {"fields": []}
    if not isinstance(advisor, ModelAdvisor):
        return found
    for worth in advisor.field_worth():
        found["fields"].append({"path": worth.path, "levels": _levels(worth, space, sign)})
    gains = [trial.gain for trial in table.trials if trial.gain is not None]
    noise = advisor.noise()
    if gains and noise is not None:
        found["promise"] = {"gain": gains[-1], "noise": noise}
    return found


def _levels(worth: FieldWorth, space: Space, sign: float) -> list[dict[str, Any]]:
    drawn = _drawn(space, worth)
    levels: dict[str, dict[str, Any]] = {}
    for coordinate, mean, sd in zip(worth.levels, worth.mean, worth.sd, strict=True):
        label = _label(drawn.distribution.value(float(coordinate)))
        # Several coordinates may stand for one value of a grid.
        levels.setdefault(label, {"label": label, "mean": sign * float(mean), "sd": float(sd)})
    return list(levels.values())


def _drawn(space: Space, worth: FieldWorth) -> Drawn:
    for drawn in (*space.shared, *space.schedule(worth.schedule).fields):
        if drawn.path == worth.path:
            return drawn
    raise KeyError(worth.path)  # the model knows only fields of its space


def _label(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list):
        return " to ".join(_label(part) for part in value)
    return str(value)
