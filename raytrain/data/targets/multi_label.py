"""Multi-label: any number of labels per tile, as in the competition. Neither torch nor ray."""

from __future__ import annotations

from raytrain.data.label_format import KAGGLE_FORMAT, LabelFormat
from raytrain.data.labels import Labels

# The competition's columns image_name,tags, with white space between the labels of a tile.
FORMAT = KAGGLE_FORMAT
RECIPE = "planet-resnet18"


def adapted(form: LabelFormat) -> LabelFormat:
    """Returns the user's format: it needs no change."""
    return form


def checked(labels: Labels) -> Labels:
    """Returns the labels: every row can be used."""
    return labels


def check_empty(allow_empty: bool) -> None:
    """Does nothing: a tile may have no label if the user says so."""
