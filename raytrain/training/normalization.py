"""Which mean and deviation normalise the channels of a run's tiles."""

from __future__ import annotations

import logging

from raytrain.config import IMAGENET, OF_DATASET, Recipe, Statistics
from raytrain.data.channels import channel_statistics
from raytrain.data.dataset import Dataset
from raytrain.data.tile_format import RGB_CHANNELS, TileFormat
from raytrain.errors import ConfigError
from raytrain.tiles.cache import kept_size

logger = logging.getLogger(__name__)


def check(recipe: Recipe, tiles: TileFormat) -> None:
    """Refuses a normalisation of another number of channels than the tiles have.

    Raises:
        ConfigError: ImageNet's of other than three channels, or numbers for other channels.
    """
    normalize = recipe.data.normalize
    if normalize == IMAGENET and tiles.channels != RGB_CHANNELS:
        raise ConfigError(
            f"data.normalize = {IMAGENET}, but the dataset holds {tiles}",
            "ImageNet has statistics of red, green and blue alone",
            "--data.normalize dataset takes the statistics of the training tiles",
        )
    if isinstance(normalize, Statistics) and len(normalize.mean) != tiles.channels:
        raise ConfigError(
            f"data.normalize has {len(normalize.mean)} means, but the dataset holds {tiles}",
            "each channel is normalised by its own mean and standard deviation",
            "--data.normalize dataset takes the statistics of the training tiles",
        )


def resolved(recipe: Recipe, dataset: Dataset) -> Recipe:
    """The recipe with the numbers that `data.normalize = dataset` stands for.

    They are those of the training part of the recipe's split, at the size at which tiles are kept.
    A recipe with another normalisation is returned as it is.

    Args:
        recipe: of a run that starts. One that resumes holds the numbers already.
        dataset: opened.

    Raises:
        ConfigError: see `check`.
        DataError: a tile is damaged.
    """
    check(recipe, dataset.tile_format)
    if recipe.data.normalize != OF_DATASET:
        return recipe
    size = kept_size(recipe, dataset)
    means, deviations = channel_statistics(dataset, recipe.data.split, size)
    found = Statistics(mean=tuple(means), std=tuple(deviations))
    logger.info(f"normalisation: {found}")
    data = recipe.data.model_copy(update={"normalize": found})
    return recipe.model_copy(update={"data": data})
