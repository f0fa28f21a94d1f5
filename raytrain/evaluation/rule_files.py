"""The file thresholds.json: fitted decision rules, and the one that is recommended.

    {"default": 0.2, "global": t, "per_class": {label: t}, "shrunk": {label: t},
     "expected": {"temperature": T}, "exactly_one": {"labels": [...], "alone": [...]},
     "recommended": NAME}

`exactly_one` is there only where a group was stated. Files of earlier versions have neither
`shrunk` nor `expected`. Imports neither torch nor ray.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from raytrain import storage
from raytrain.errors import ConfigError, DataError, typed
from raytrain.evaluation import rules
from raytrain.evaluation.metrics import THRESHOLD, Array
from raytrain.evaluation.rules import Decision, Exclusive

NAME = "thresholds.json"
FIX = "raytrain evaluate P.parquet --out DIR writes DIR/thresholds.json"


@dataclass(frozen=True, eq=False)
class Chosen:
    """A decision, the name of its rule, and why it was chosen."""

    name: str
    decision: Decision
    why: str

    @property
    def sentence(self) -> str:
        """What a user reads about it."""
        return (
            f"labels are decided by: {rules.title(self.name)} ({self.decision.words}), {self.why}"
        )


def write(
    path: str,
    fitted: Mapping[str, Decision],
    recommended: str,
    classes: tuple[str, ...],
    exclusive: Exclusive | None = None,
) -> None:
    """Writes the file.

    Args:
        path: path or URI.
        fitted: decisions by the name of their rule.
        recommended: name of one of them.
        classes: names of the K labels.
        exclusive: the group of the rules that have one.

    Raises:
        StorageError: it cannot be written.
    """
    content: dict[str, Any] = {}
    for name in rules.RULES:
        content[name] = fitted[name].to_json(classes)
    # One number is enough where all labels have the same threshold.
    content[rules.DEFAULT] = THRESHOLD
    content["global"] = next(iter(content["global"].values()))
    if exclusive is not None:
        content["exactly_one"] = {"labels": exclusive.labels, "alone": exclusive.alone}
    content["recommended"] = recommended
    storage.write_json(path, content)


def read(path: str, classes: tuple[str, ...], rule: str | None = None) -> Chosen:
    """Reads one decision of the file.

    Args:
        path: path or URI.
        classes: names of the K labels of the predictions.
        rule: name of a rule, or None for the recommended one.

    Raises:
        ConfigError: the file does not have this rule.
        DataError: the file is missing, was not written by raytrain, or was fitted for other
            labels.
    """
    content = _content(path)
    name = content.get("recommended")
    why = f"as {path} recommends"
    if rule is not None:
        name = rule
        why = "as --rule asks"
    try:
        base = str(name).removesuffix(rules.EXACTLY_ONE)
        found = content.get(base)
        if rule is not None and found is None:
            raise _not_in_file(path, rule)
        decision = _decision(path, base, found, content, classes)
        if name != base:
            if rule is not None and "exactly_one" not in content:
                raise _not_in_file(path, rule)
            decision = _with_group(decision, content["exactly_one"], classes)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, error) from None
    return Chosen(str(name), decision, why)


def _content(path: str) -> dict[str, Any]:
    try:
        return dict(storage.read_json(path))
    except FileNotFoundError:
        raise DataError(f"there is no thresholds file {path}", "", FIX) from None
    except (ValueError, TypeError) as error:
        raise _damaged(path, error) from None


def _decision(
    path: str, name: str, found: Any, content: Mapping[str, Any], classes: tuple[str, ...]
) -> Decision:
    """The decision of a rule without a group; raises KeyError or the like for a damaged file."""
    # Every file has the thresholds of all labels, which tell whose it is.
    own = _cuts(path, dict(content["per_class"]), classes)
    if name == "expected":
        temperature = float(found["temperature"])
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature {temperature}")
        return rules.ExpectedFbeta(temperature)
    if name in (rules.DEFAULT, "global"):
        found = dict.fromkeys(classes, found)
    elif name not in rules.RULES:
        raise KeyError(name)
    if name == "per_class":
        return rules.Thresholds(own)
    return rules.Thresholds(_cuts(path, dict(found), classes))


def _cuts(path: str, found: Mapping[str, Any], classes: tuple[str, ...]) -> Array:
    """Checked thresholds in the order of the classes, float64 (K,)."""
    cuts = {label: float(threshold) for label, threshold in found.items()}
    other = sorted(set(cuts).symmetric_difference(classes))
    if other:
        state = "missing"
        if other[0] in cuts:
            state = "unknown to the predictions"
        raise DataError(
            f'{path} was fitted for other classes: "{other[0]}" is {state}',
            "labels would be decided by the wrong thresholds",
            FIX,
        )
    # NaN is outside too.
    if not all(0.0 <= cut <= 1.0 for cut in cuts.values()):
        raise DataError(
            f"{path} has a threshold outside 0 to 1",
            "a label would be predicted always or never",
            FIX,
        )
    return np.array([cuts[label] for label in classes], np.float64)


def _with_group(decision: Decision, found: Any, classes: tuple[str, ...]) -> Decision:
    exclusive = Exclusive(tuple(found["labels"]), tuple(found["alone"]))
    exclusive.check(classes)
    return rules.WithGroup(decision, exclusive, classes)


def _damaged(path: str, error: Exception) -> DataError:
    return DataError(
        f"{path} is not a thresholds file ({error!r})", "no label could be decided", FIX
    )


def _not_in_file(path: str, rule: str) -> ConfigError:
    group = ""
    if rule.endswith(rules.EXACTLY_ONE):
        group = " --exactly-one LABEL,LABEL"
    return ConfigError(
        f"{path} has no rule {rule}",
        "an earlier version wrote it, or it was written without a group of labels",
        f"raytrain evaluate P.parquet{group} --out DIR, then --thresholds DIR/{NAME}; "
        f"or leave --rule out ({typed(path)} recommends one)",
    )
