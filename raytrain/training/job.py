"""What a run is given: recipe, dataset, tiles, and where it begins. Nothing here changes while it
trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from raytrain.config import Recipe, Stage
from raytrain.data.dataset import Dataset
from raytrain.evaluation.own_metrics import Metric
from raytrain.registry import Evaluation, Loss
from raytrain.tiles import sampling
from raytrain.tiles.feeds import Source
from raytrain.tiles.placement import Tiles
from raytrain.training.start import Start
from raytrain.worker import Worker


@dataclass(frozen=True)
class Job:
    """What one process of a run is given.

    Args:
        recipe: complete, with absolute paths; its precision is the one that all ranks agreed on.
        dataset: opened.
        path: of the run directory.
        worker: this process.
        start: where the run begins.
        backoff: factor on the peak rates from the checkpoint on that this attempt begins with; 1.0,
            or less after a divergence.
        tiles: decoded tiles in front of the network.
        source: tiles and targets of batches, by row.
        train_rows, valid_rows: int64 rows of the dataset, ascending. `data.repeat` lets a row stand
            several times in the first.
        valid_names: names of the tiles of `valid_rows` on rank 0; None on the others.
        loss: of a batch, the sum over its tiles.
        task: metrics of a validation, and what says which epoch is best.
        own_metrics: further metrics by name, which decide nothing.
    """

    recipe: Recipe
    dataset: Dataset
    path: str
    worker: Worker
    start: Start
    backoff: float
    tiles: Tiles
    source: Source
    train_rows: sampling.Rows
    valid_rows: sampling.Rows
    valid_names: pa.StringArray | None
    loss: Loss
    task: Evaluation
    own_metrics: Mapping[str, Metric]

    def stage(self, number: int) -> Stage:
        """A stage by its number, which counts from 1 over the whole list of the recipe."""
        return self.recipe.stage(number)

    def stages_left(self) -> list[int]:
        """Numbers of the selected stages that are not complete.

        A stage whose checkpoint still lacks its name is among them, though it has no epoch left.
        """
        first, last = self.recipe.selected
        left = []
        for number in range(first, last + 1):
            end = (number, self.stage(number).epochs, 0)
            if end > self.start.position or number == self.start.unnamed:
                left.append(number)
        return left

    def epochs_left(self, number: int) -> range:
        """Epochs of a stage, from 1, that are not complete."""
        return range(self.start.epochs_done(number) + 1, self.stage(number).epochs + 1)

    def ends_with(self, number: int, epoch: int) -> bool:
        """Whether the run is complete after an epoch of a stage."""
        last = self.recipe.selected[1]
        return number == last and epoch == self.stage(last).epochs

    def batches(self, number: int, epoch: int) -> list[sampling.Rows]:
        """The global batches of an epoch, in order: the same for any number of workers."""
        train = self.recipe.train
        order = sampling.epoch_order(
            self.train_rows,
            self.dataset.shard_starts,
            (train.seed, number, epoch),
            self.tiles.window,
        )
        batch_size = self.recipe.batch_size(self.stage(number))
        return sampling.global_batches(order, batch_size, self.worker.world, train.drop_last)
