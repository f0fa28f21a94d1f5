"""The space of a search that is given none. It is made from the given recipe, which lies in it.

    weight decay    the recipe's times 0.3, 1 and 3
    rates           of each stage the recipe's peak rate times 1/4, 1/2, 1, 2 and 4; a pair keeps
                    its ratio
    stages          same: those of the recipe
                    once: without the stages that freeze the body again. Their epochs go to the
                    stages after them, so an epoch shows as many tiles as before
                    ramp: the same, and the first stage has half its size

For the lesson's stages, `once` is 128, 128 and 256 px with 5, 5 and 10 epochs, and `ramp` begins
with 64 px. Sizes and epochs follow the recipe: one of 64 px is never trained at 256. A list that
would be equal to another one is left out. `values` gives the space in the form of a space file,
which can be written to one and changed.
"""

from __future__ import annotations

from typing import Any

from raytrain.config import LAYER_GROUPS, Recipe, Stage
from raytrain.search import space_file
from raytrain.search.distributions import rounded
from raytrain.search.space import Space

WD_FACTORS = (0.3, 1, 3)
RATE_FACTORS = (0.25, 0.5, 1, 2, 4)
# Of a recipe without weight decay.
WD = (0.0, 0.001, 0.01)
# The networks take multiples of 32 pixels, their stride, without a waste of borders.
STRIDE = 32
# `once` and `ramp` may cost more than the recipe.
MOST_COST = 1.5


def space(given: Recipe) -> Space:
    """Returns the default space of a recipe.

    Raises:
        ConfigError: the recipe leaves nothing to search.
    """
    return space_file.read(values(given), given)


def values(given: Recipe) -> dict[str, Any]:
    """Returns the default space of a recipe as a space file holds it."""
    content: dict[str, Any] = {"train.wd": {"choice": _weight_decays(given.train.wd)}}
    if given.select is not None:
        # Other lists have other numbers.
        for number, stage in given.selected_stages():
            if given.lr is None:
                content[f"stages.{number}.lr"] = _rates(stage)
        return content
    plain = given.without_stage_names().stages
    lists = {"same": list(plain)}
    once = _once(plain)
    for name, stages in (("once", once), ("ramp", _ramp(once))):
        if stages not in lists.values():
            lists[name] = stages
    # The names that a user gave to these stages would not fit those of the other lists.
    lists["same"] = list(given.stages)
    written = {}
    for name, stages in lists.items():
        written[name] = [_stage(stage, given) for stage in stages]
    content["stages"] = {"choice": written}
    content["at_most"] = {"cost": MOST_COST}
    return content


def _weight_decays(given: float) -> list[float]:
    if given == 0:
        return list(WD)
    decays = []
    for factor in WD_FACTORS:
        # The recipe's own value is kept to its last digit.
        decay = given if factor == 1 else rounded(factor * given)
        if decay < 1:
            decays.append(decay)
    return decays


def _rates(stage: Stage) -> dict[str, Any]:
    """The distribution of a stage's rate."""
    peak = stage.lr
    ratio = None
    if isinstance(peak, tuple):
        ratio = peak[0] / peak[1]
        peak = peak[1]
    rates = []
    for factor in RATE_FACTORS:
        rates.append(factor * peak)
    drawn: dict[str, Any] = {"choice": rates}
    if ratio is not None:
        drawn["ratio"] = ratio
    return drawn


def _stage(stage: Stage, given: Recipe) -> dict[str, Any]:
    """A stage as a space file holds it, with a drawn rate unless a range test finds it."""
    written = stage.model_dump(mode="json", exclude_none=True)
    if given.lr is None:
        written["lr"] = _rates(stage)
    return written


def _once(stages: tuple[Stage, ...]) -> list[Stage]:
    """The stages without those after the first that train the head alone."""
    kept: list[Stage] = []
    epochs_left = 0
    for number, stage in enumerate(stages, 1):
        trains_body = stage.frozen_groups < LAYER_GROUPS - 1
        is_last = number == len(stages)
        if kept and not trains_body and not is_last:
            epochs_left += stage.epochs
            continue
        kept.append(stage.model_copy(update={"epochs": stage.epochs + epochs_left}))
        epochs_left = 0
    return kept


def _ramp(stages: list[Stage]) -> list[Stage]:
    """The same stages with half the size in the first one; unchanged if that is too small."""
    first, *rest = stages
    half = first.size // 2 // STRIDE * STRIDE
    if half < STRIDE or first.start_size is not None:
        return stages
    return [first.model_copy(update={"size": half}), *rest]
