"""All figures, in the order of the table."""

import damage
import disk
import diverged
import hostile
import kills
import wrong
from figures import Figure

FIGURES: list[Figure] = sorted(
    [*kills.FIGURES, *disk.FIGURES, *damage.FIGURES, *hostile.FIGURES, *diverged.FIGURES, *wrong.FIGURES],
    key=lambda figure: int(figure.id[1:]),
)
