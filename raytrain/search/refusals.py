"""Fields that a search does not draw, with the reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from raytrain.config import Recipe, field_paths
from raytrain.errors import ConfigError, masked
from raytrain.search import paths

_STAGE_NAME = "it names a checkpoint and changes no result"
_SAME_RESULT = "it changes no result"
_SAME_MACHINE = "what a trial computes with is the same for all of them"
# Paths, each with the reason.
FIXED = {
    "dataset": "scores on different tiles cannot be compared",
    "data.split": "scores on different validation tiles cannot be compared",
    "storage": "it is where the whole search is stored",
    "select": "a trial trains all stages that --stages selects",
    "metrics": "they judge a run and do not change it",
    "remap_labels": "it only says whether a checkpoint is accepted",
    "num_workers": _SAME_MACHINE,
    "max_workers": _SAME_MACHINE,
    "use_gpu": _SAME_MACHINE,
    "tiles": _SAME_RESULT,
    "data.window_gb": "whether and how tiles are streamed is the same for all trials",
    "data.stored_size": "all trials read the same tiles, as large as the largest stage needs",
    "train.precision": "the number format is chosen once for all trials",
    "train.threads": _SAME_MACHINE,
    "train.execution": "how the network runs is chosen once for all trials",
    "train.save_every_s": _SAME_RESULT,
    "train.stall_s": _SAME_RESULT,
    "init_from": "a checkpoint is looked up and checked for the given recipe alone",
    "train.seed": "the best of several seeds is the luckiest; finalists run again with fresh ones",
}


def refuse_keys(content: Any, what: str) -> None:
    """Refuses the access keys of a URI.

    Args:
        content: of a space or of a trial.
        what: it is, for the message.

    Raises:
        ConfigError: there are keys in it.
    """
    if masked(str(content)) == str(content):
        return
    raise ConfigError(
        f"{what} holds the keys of a URI",
        "drawn values stand in tables and files that others may read",
        "leave the keys out of it, and export AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    )


def refuse_fixed(drawn: Iterable[str], what: str) -> None:
    """Refuses fields that are the same for all trials of a search.

    Args:
        drawn: paths of fields.
        what: says who sets them, such as "the space draws".

    Raises:
        ConfigError: one of them is.
    """
    for path in drawn:
        reason = FIXED.get(path)
        if paths.is_stage_name(path):
            reason = _STAGE_NAME
        if reason is not None:
            raise ConfigError(
                f"{what} {path}, which is the same for all trials",
                reason,
                f"leave it out; --set {path}=VALUE sets it for the whole search",
            )


def refuse_unused(drawn: Iterable[str], given: Recipe, what: str) -> None:
    """Refuses fields that the given recipe would never use.

    Args:
        drawn: paths of fields.
        given: recipe of the search.
        what: says who sets them, such as "the space draws".

    Raises:
        ConfigError: with the setting that replaces the field.
    """
    found = sorted(set(drawn))
    for path in found:
        if paths.is_rate(path):
            _refuse_found_rate(path, found, given, what)
        if path == "model.weights" and (given.init_from is not None or "init_from" in found):
            raise ConfigError(
                f"{what} model.weights, and trials start from init_from",
                "the weights of the checkpoint replace all others",
                "leave out one of the two",
            )


def _refuse_found_rate(path: str, found: list[str], given: Recipe, what: str) -> None:
    """Refuses the rate of a stage where a range test finds it."""
    if given.lr is None and "lr" not in found:
        return
    setting = "a drawn lr"
    if given.lr is not None:
        setting = f"lr: {given.lr}"
    raise ConfigError(
        f"{what} {path}, and {setting} replaces it",
        "a range test finds the rate of each stage, so the drawn one is never used",
        "leave out --lr to search rates, or leave the rates out of the space",
    )


def leaves(path: str, value: Any) -> set[str]:
    """Returns the paths of the fields that a value sets: of a group of fields, those in it."""
    if isinstance(value, Mapping) and value and paths.holds_fields(path):
        return field_paths(value, f"{path}.")
    return {path}
