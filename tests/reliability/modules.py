"""All figures, in the order of the table."""

import canary
import damage
import deaths
import disk
import diverged
import hangs
import hostile
import messages
import ranks
import refusals
import stops
import wrong
from figures import Figure, numbers

UNDER_RAY = [*deaths.FIGURES, *hangs.FIGURES, *stops.FIGURES, *refusals.FIGURES]

LEFT_BEHIND = Figure(
    "R26",
    "processes and temporary files left behind under Ray",
    "0",
    list({case.name: case for figure in UNDER_RAY for case in figure.cases}.values()),
    lambda outcomes: (
        f"{sum(numbers(outcomes, 'left')):.0f} of {len(numbers(outcomes, 'left'))} runs"
    ),
    # A case that broke off says nothing about what it left.
    lambda outcomes: (
        len(numbers(outcomes, "left")) == len(outcomes) > 0 == sum(numbers(outcomes, "left"))
    ),
)
KEYS = Figure(
    "R24",
    "keys of environment and URIs in files and lines of runs, and in files of Ray",
    "0",
    [*canary.CASES, *deaths.CASES],
    canary.told,
    lambda outcomes: sum(numbers(outcomes, "searched")) > 0 == sum(numbers(outcomes, "keys")),
)

FIGURES: list[Figure] = sorted(
    [
        *ranks.FIGURES,
        *disk.FIGURES,
        *damage.FIGURES,
        *hostile.FIGURES,
        *diverged.FIGURES,
        *wrong.FIGURES,
        KEYS,
        *messages.FIGURES,
        *UNDER_RAY,
        LEFT_BEHIND,
    ],
    key=lambda figure: int(figure.id[1:]),
)
