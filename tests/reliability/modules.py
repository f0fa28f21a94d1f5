"""All figures, in the order of the table."""

import canary
import damage
import disk
import diverged
import hostile
import messages
import ranks
import wrong
from figures import Figure

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
    ],
    key=lambda figure: int(figure.id[1:]),
)
