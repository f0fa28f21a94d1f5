"""Opens what a run works with, in one stated order, and closes it.

The order matters, since each step needs what the ones before have settled:

1. the process: memory, number formats, threads, and a precision that all ranks agree on
2. what can be refused without a network
3. the network, with random weights drawn from the seed
4. the weights it begins with: the run's own checkpoint, else `init_from`, else initial weights
5. the network on its device, and its averages
6. the tiles, decoded or mapped; a run that resumes keeps the order of its tiles
7. on rank 0 the names of the validation tiles, for the predictions
8. the history up to where the run begins
9. what works beside the algorithm; nothing of it is started here
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import pyarrow as pa
import torch

from raytrain import registry, storage
from raytrain.checkpoints.history import History
from raytrain.checkpoints.saver import Saver
from raytrain.config import Recipe
from raytrain.data.dataset import Dataset, names_alone
from raytrain.evaluation import own_metrics
from raytrain.models import networks
from raytrain.models.precision import agreed_precision, dtype_of, keep_fp32
from raytrain.tasks.choice import loss_of, resolved
from raytrain.tiles import sampling
from raytrain.tiles.cache import kept_size
from raytrain.tiles.feeds import Source
from raytrain.tiles.placement import Tiles, open_tiles
from raytrain.training import normalization
from raytrain.training import start as starting
from raytrain.training.decision import Decisions, Wishes
from raytrain.training.job import Job
from raytrain.training.memory import keep_freed_memory
from raytrain.training.services import Hooks, Services
from raytrain.training.start import Start
from raytrain.training.state import TrainState
from raytrain.training.watchdog import Watchdog
from raytrain.worker import Worker

logger = logging.getLogger(__name__)

Parts = tuple[Job, TrainState, Services]


@contextlib.contextmanager
def opened(
    recipe: Recipe,
    dataset: Dataset,
    run: str,
    worker: Worker,
    hooks: Hooks,
    backoff: float = 1.0,
) -> Iterator[Parts]:
    """Opens a run in one process; all ranks do so together.

    The module says in which order, and why.

    Args:
        recipe: complete, with absolute paths.
        dataset: opened.
        run: its directory.
        worker: this process.
        hooks: see there.
        backoff: factor on the peak rates from the checkpoint on that the run begins with.

    Raises:
        ConfigError, DataError, ResourceError, StorageError: see the steps.
    """
    recipe = resolved(_prepared_process(recipe, worker), dataset.task)
    recipe = normalization.resolved(recipe, dataset)
    train_rows, valid_rows = _rows(recipe, dataset)
    networks.check_batch_norm(recipe.model.batch_norm, worker.device.type)
    model = _seeded_network(recipe, dataset)
    start, source = starting.begin(recipe, dataset, run, model, worker)
    networks.to_device(model, worker.device, dtype_of(recipe.train.precision))
    ema = starting.averages(model, recipe.train.ema, source)
    tiles = _opened_tiles(recipe, dataset, worker, start)
    task = registry.training(dataset.task)
    targets = task.device_targets(dataset.targets, worker.device)
    job = Job(
        recipe=recipe,
        dataset=dataset,
        path=run,
        worker=worker,
        start=start,
        backoff=backoff,
        tiles=tiles,
        source=Source(tiles.feed, targets),
        train_rows=train_rows,
        valid_rows=valid_rows,
        valid_names=_names(dataset, valid_rows, worker),
        loss=loss_of(recipe, dataset, worker.device),
        task=registry.evaluation(dataset.task),
        own_metrics=own_metrics.combined(recipe.metrics, hooks.metrics, dataset.task),
    )
    history = History(run, (start.position.stage, start.position.epochs))
    state = TrainState(model, ema, history, start.lr_scale * backoff, newest=start.parent)
    services = _services(job, hooks)
    with (
        contextlib.closing(tiles.feed),
        contextlib.closing(services.saver),
        contextlib.closing(services.watchdog),
    ):
        yield job, state, services


def _rows(recipe: Recipe, dataset: Dataset) -> tuple[sampling.Rows, sampling.Rows]:
    """The rows to train on, some of them repeated, and those that validate."""
    train_rows = sampling.training_rows(recipe, dataset)
    valid_rows = dataset.part_rows(recipe.data.split, "valid")
    sampling.check_batches(recipe, len(train_rows), len(valid_rows))
    if recipe.data.repeat:
        logger.info(sampling.repeated_in_words(train_rows))
    return train_rows, valid_rows


def _names(dataset: Dataset, valid_rows: sampling.Rows, worker: Worker) -> pa.StringArray | None:
    """The names of the validation tiles on rank 0, None on the others.

    They are read before the watchdog starts: a dataset without labels.parquet takes minutes.
    """
    if not worker.leads:
        return None
    return names_alone(dataset, valid_rows)


def _prepared_process(recipe: Recipe, worker: Worker) -> Recipe:
    """Sets up this process. Returns the recipe with the precision that all ranks agreed on."""
    keep_freed_memory()
    keep_fp32()
    torch.set_num_threads(recipe.train.threads or worker.cpu_share)
    precision = agreed_precision(recipe.train.precision, worker.device, worker.world)
    train = recipe.train.model_copy(update={"precision": precision})
    return recipe.model_copy(update={"train": train})


def _seeded_network(recipe: Recipe, dataset: Dataset) -> networks.Network:
    """The network with random weights from the recipe's seed, the same on every rank."""
    torch.manual_seed(sampling.seed_of(recipe.train.seed, 0))
    return registry.training(dataset.task).network(
        recipe.model, len(dataset.classes), dataset.tile_format.channels
    )


def _opened_tiles(recipe: Recipe, dataset: Dataset, worker: Worker, start: Start) -> Tiles:
    return open_tiles(
        dataset,
        kept_size(recipe, dataset),
        worker,
        choice=recipe.tiles,
        window_gb=recipe.data.window_gb,
        resumed=start.window,
    )


def _services(job: Job, hooks: Hooks) -> Services:
    train = job.recipe.train
    saver = Saver(storage.join(job.path, "checkpoints"), train.save_every_s)
    wishes = Wishes(hooks.stop, hooks.keep, saver.due)
    decisions = Decisions(job.worker, wishes.action, saver.interval_s)
    watchdog = Watchdog(
        job.path,
        job.worker.rank,
        train.stall_s,
        stalled=hooks.stalled,
        writes=lambda: saver.writing,
        saves=hooks.saves,
    )
    return Services(saver, wishes, decisions, watchdog, hooks)
