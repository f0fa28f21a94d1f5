"""Names of checkpoints and of their files, and how far a run is."""

from __future__ import annotations

from typing import NamedTuple

MANIFEST = "MANIFEST.json"


FILES = {"model.safetensors", "ema.safetensors", "train_state.pt", "meta.json"}


LAST, BEST, STEP = "last", "best", "step-"


# Of those within an epoch: the newest, and one to fall back on.
KEPT_STEPS = 2


class Position(NamedTuple):
    """How far a run is: its stage (from 1), the whole epochs done in it, the steps done in the epoch after them."""

    stage: int = 0
    epochs: int = 0
    steps: int = 0


BEGINNING = Position()


def goes_on_within(name: str) -> bool:
    """Whether a checkpoint of this name holds what training goes on with within a stage."""
    return name.startswith((LAST, STEP))


def step_name(step: int) -> str:
    """Name of the checkpoint after so many steps of the run: names in order are steps in order."""
    return f"{STEP}{step:08}"
