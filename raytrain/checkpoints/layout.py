"""Names of checkpoints and of their files, and the position of a run."""

from __future__ import annotations

from typing import NamedTuple

from raytrain.config import names

# Maps each other file of a checkpoint to its SHA-256. Written last.
MANIFEST = "MANIFEST.json"
# All files that a manifest may name.
FILES = {"model.safetensors", "ema.safetensors", "train_state.pt", "meta.json"}

# The checkpoint of the last epoch, and that of the epoch with the best score.
LAST = names.LAST
BEST = names.BEST
# Prefix of the names of checkpoints within an epoch.
STEP = names.STEP
# Checkpoints within an epoch that are kept: the newest, and one more in case that one is damaged.
KEPT_STEPS = 2


class Position(NamedTuple):
    """How far a run is.

    Attributes:
        stage: number of the stage, from 1.
        epochs: whole epochs done in the stage.
        steps: steps done in the epoch after them.
    """

    stage: int = 0
    epochs: int = 0
    steps: int = 0


BEGINNING = Position()


def goes_on_within(name: str) -> bool:
    """Whether checkpoints of this name hold the state to resume training within a stage."""
    return is_named(name, LAST) or name.startswith(STEP)


def is_named(name: str, wanted: str) -> bool:
    """Whether a directory is the checkpoint of a name, or the one that was being replaced.

    A stage may have a name such as `best-of-all`, which only begins in the same way.
    """
    return name in (wanted, f"{wanted}{names.OLD}")


def step_name(step: int) -> str:
    """Returns the name of the checkpoint after a number of steps of the run.

    Names in alphabetical order are steps in order.
    """
    return f"{STEP}{step:08}"
