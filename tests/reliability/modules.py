"""All figures, in the order of the table."""

import disk
from figures import Figure

FIGURES: list[Figure] = sorted([*disk.FIGURES], key=lambda figure: int(figure.id[1:]))
