"""How long the reruns of a search will take. No torch, no ray."""

from __future__ import annotations

from raytrain.search.finalists import BEST
from raytrain.search.table import Kind, State, Table


def seconds_of_reruns(table: Table, reruns: int, slots: int) -> float:
    """Returns the expected seconds of the reruns that have not ended.

    Each finalist counts with the mean cost of a complete trial, and with all of its reruns. So this
    is an upper bound where finalists share stages, or where a worse one is left out.

    Args:
        table: of the search.
        reruns: how often each finalist runs again.
        slots: how many trials run at once.

    Returns:
        0 as long as no two trials are complete: nothing would run again.
    """
    complete = []
    for trial in table.of_kind(Kind.GIVEN, Kind.TRIED, Kind.DRAWN):
        if trial.state is State.COMPLETE:
            complete.append(trial)
    if len(complete) < 2:
        return 0.0
    own = sum(trial.is_own_outside for trial in complete)
    # The best ones, the given recipe, and the user's own that the model does not know.
    finalists = min(BEST + 1 + own, len(complete))
    mean_cost = sum(sum(trial.costs) for trial in complete) / len(complete)
    cost = finalists * reruns * mean_cost - _cost_rerun(table)
    return max(0.0, cost) * _seconds_per_cost(table) / max(1, slots)


def _cost_rerun(table: Table) -> float:
    """Cost of the reruns, or of their stages, that have ended."""
    cost = 0.0
    for trial in table.of_kind(Kind.RERUN):
        ended = len(trial.keys)
        if trial.is_open:
            ended = len(trial.parts)
        cost += sum(trial.costs[:ended])
    return cost


def _seconds_per_cost(table: Table) -> float:
    """Seconds that a trial trains for a cost of 1, whoever trained its stages."""
    seconds = 0.0
    cost = 0.0
    for trial in table.trials:
        for part, part_cost in zip(trial.parts, trial.costs, strict=False):
            seconds += part.seconds
            cost += part_cost
    return seconds / cost
