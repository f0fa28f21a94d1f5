"""The version of a checkpoint's format, and one reader for each version before it.

`meta.json` says `schema_version`. A change of the format raises `VERSION` and adds a function that
lifts what the version before wrote, so that every other module knows today's format alone.
`tests/frozen` keeps files of each version.
"""

from __future__ import annotations

from typing import Any

from raytrain import registry
from raytrain.errors import ConfigError

VERSION = 2
# Of networks for another task or other tiles than 8-bit RGB: programs that know neither refuse it.
EXTENDED_VERSION = 3
KEY = "schema_version"

Values = dict[str, Any]


def version_of(meta: Values) -> int:
    """The version that a `meta.json` was written in.

    Raises:
        TypeError, ValueError: it does not say what the checkpoint is.
    """
    if not isinstance(meta, dict):
        raise TypeError("meta.json holds no object")
    return int(meta.get(KEY, 1))


def written_version(*, extended: bool) -> int:
    """The version that a checkpoint is written in.

    Args:
        extended: whether its `meta.json` says what older programs do not know.
    """
    if extended:
        return EXTENDED_VERSION
    return VERSION


def lifted_meta(meta: Values, path: str) -> Values:
    """The content of a `meta.json` as this version writes it.

    Args:
        meta: as it was read.
        path: of the checkpoint, for the error.

    Raises:
        ConfigError: it was written by a newer version.
        KeyError, TypeError, ValueError: it does not say what the checkpoint is.
    """
    version = version_of(meta)
    if version > EXTENDED_VERSION:
        raise ConfigError(
            f"the checkpoint {path} has format {version}, this raytrain reads up to "
            f"{EXTENDED_VERSION}",
            "a newer raytrain wrote it; what it means cannot be known here",
            "pip install --upgrade raytrain, or give another checkpoint",
        )
    if version == 1:
        meta = _meta_from_1(meta)
    return _with_score(meta)


def lifted_train_state(state: Values, version: int) -> Values:
    """The content of a `train_state.pt` as this version writes it.

    Args:
        state: as it was read.
        version: that its `meta.json` said when it was read.
    """
    if version == 1:
        state = _train_state_from_1(state)
    return state


def _meta_from_1(meta: Values) -> Values:
    """Version 1, up to 29 November 2026, says no version. The earliest files lack some keys."""
    added = {
        "epoch_steps": 0,
        "window": None,  # all shards were shuffled together
        "lr_scale": 1.0,
        "ema_updates": 0,
    }
    return added | meta | {KEY: VERSION}


def _with_score(meta: Values) -> Values:
    """Adds which metric judged it. Files up to 29 November 2026 have its value alone."""
    if "metric" in meta:
        return meta
    key = registry.evaluation(meta.get("task", registry.DEFAULT)).SCORE.key
    return meta | {"metric": key, "score": meta.get(key)}


def _train_state_from_1(state: Values) -> Values:
    """Version 1: the earliest hold the optimiser's state alone."""
    if "param_groups" in state:
        return {"optimizer": state}
    return state
