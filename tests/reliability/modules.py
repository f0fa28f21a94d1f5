"""All figures, in the order of the table."""

from figures import Figure

FIGURES: list[Figure] = []
