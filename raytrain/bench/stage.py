"""A stage of a recipe that is opened for training. No Ray.

No other module of the bench touches the training loop's own objects: all of them train, validate
and save through the methods of `OpenStage`, so a change of the loop stops here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack

import torch

from raytrain.config import Recipe
from raytrain.data.dataset import Dataset
from raytrain.models.precision import dtype_of
from raytrain.tiles.sampling import Rows
from raytrain.training.epoch import EpochRecord
from raytrain.training.loop import begin_epoch, between_steps, train_step, validate
from raytrain.training.services import Hooks
from raytrain.training.setup import opened
from raytrain.training.stage import begin_stage, range_test
from raytrain.training.step import Outcome
from raytrain.worker import Worker


class OpenStage:
    """One stage of a new run, ready for its first step: network, optimiser, tiles, saver.

    Attributes:
        recipe: with its precision resolved, so `train.precision` is no longer auto.
        stage: the settings of the stage.
        number: of the stage in the recipe, from 1.
        dataset: what the tiles come from.
        worker: this process and its device.
        train_rows: row numbers of an epoch's training tiles, int64 (n,).
        valid_rows: row numbers of the validation tiles, int64 (m,).
        model: the network itself.
        network: the network as it is trained, wrapped by DDP where there are several processes.
        optimizer: of the weights that the stage trains.
        trained: those weights.
        saver: writes the checkpoints, and knows what one costs.
    """

    def __init__(
        self, recipe: Recipe, dataset: Dataset, number: int, worker: Worker, run: str
    ) -> None:
        """Builds the network, opens the tiles and starts the stage.

        Args:
            recipe: complete; one of its stages is opened.
            dataset: an opened dataset with the recipe's split.
            number: of the stage, from 1.
            worker: this process; all processes of a group open the stage together.
            run: directory of the run, where checkpoints are written.
        """
        self._closing = ExitStack()
        parts = opened(recipe, dataset, run, worker, Hooks())
        self._job, self._state, self._services = self._closing.enter_context(parts)
        self.recipe = self._job.recipe
        self.stage = self._job.stage(number)
        self.number = number
        self.dataset = dataset
        self.worker = worker
        self.train_rows = self._job.train_rows
        self.valid_rows = self._job.valid_rows
        self.model = self._state.model
        self.saver = self._services.saver
        try:
            self._stepper = begin_stage(self._job, self._state, self._services, number)
        except BaseException:
            # Nobody else can close it: the caller never gets an object that failed to open.
            self.close()
            raise
        self.network = self._stepper.network
        self.optimizer = self._stepper.optimizer
        self.trained = self._stepper.weights

    def batches(self, epoch: int) -> list[Rows]:
        """The global batches of an epoch (from 1) in order, each int64 (B,)."""
        return self._job.batches(self.number, epoch)

    def fetched(self, batches: Iterable[Rows]) -> Iterator[dict[str, torch.Tensor]]:
        """Brings batches to the device, fetching ahead as training does.

        Returns:
            For each batch: image uint8 (B, 3, H, W), target float (B, K), index int64 (B,).
        """
        dtype = dtype_of(self.recipe.train.precision)
        return self._job.source.batches(iter(batches), dtype)

    def augmented(
        self, images: torch.Tensor, rows: Rows, epoch: int, position: int
    ) -> torch.Tensor:
        """Augments and normalises the tiles of a global batch.

        Args:
            images: uint8 (B, 3, H, W).
            rows: their row numbers, int64 (B,).
            epoch: from 1; the random draws of a batch depend on its epoch and position.
            position: of the batch in the epoch, from 0.

        Returns:
            Pixels (B, 3, S, S) at the size of the stage's last epoch.
        """
        draws = self._stepper.plan(rows, epoch, position).draws.augment
        return self._stepper.augmented(images, draws, self.stage.epochs)

    def steps(self, epoch: int) -> Iterator[EpochRecord]:
        """Trains through an epoch (from 1). Gives the record of the epoch after every step."""
        record, steps = begin_epoch(self._job, self._state, self._stepper, epoch)
        while record.steps_left:
            train_step(self._job, self._state, self._stepper, record, steps)
            yield record

    def train_on(self, rows: Rows, position: int) -> Outcome:
        """Trains one step on a global batch, int64 (B,), as the batch at a position of epoch 1."""
        return self._stepper(rows, 1, position)

    def train_through(self, batches: Sequence[Rows]) -> Iterator[Outcome]:
        """Trains a step on each global batch, as those of epoch 1; tiles are fetched ahead."""
        return self._stepper.epoch(batches, 1)

    def save_if_due(self, record: EpochRecord) -> None:
        """Starts a checkpoint within the epoch if the saver's interval has passed."""
        between_steps(self._job, self._state, self._services, self._stepper, record)

    def validate(self, epoch: int) -> None:
        """Computes the metrics of all validation tiles, as after an epoch (from 1)."""
        validate(self._job, self._state, self._services, self.number, epoch)

    def range_test(self, number: int) -> None:
        """Runs the learning rate range test of a stage, which may be another one than this."""
        range_test(self._job, self._state, self._services, number)

    def close(self) -> None:
        """Ends the threads and processes that fetch tiles and write checkpoints."""
        self._closing.close()
