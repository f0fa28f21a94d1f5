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
    "R26", "processes and temporary files left behind under Ray", "0",
    list({case.name: case for figure in UNDER_RAY for case in figure.cases}.values()),
    lambda outcomes: f"{sum(numbers(outcomes, 'left')):.0f} of {len(numbers(outcomes, 'left'))} runs",
    lambda outcomes: not sum(numbers(outcomes, "left")),
)  # fmt: skip

FIGURES: list[Figure] = sorted(
    [
        *ranks.FIGURES,
        *disk.FIGURES,
        *damage.FIGURES,
        *hostile.FIGURES,
        *diverged.FIGURES,
        *wrong.FIGURES,
        *canary.FIGURES,
        *messages.FIGURES,
        *UNDER_RAY,
        LEFT_BEHIND,
    ],
    key=lambda figure: int(figure.id[1:]),
)
