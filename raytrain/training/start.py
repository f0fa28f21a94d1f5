"""Where a run begins: its own latest checkpoint, else `init_from`, else weights, else random; in this order."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from raytrain import storage
from raytrain.checkpoints import fitting, layout, reading
from raytrain.config import Recipe
from raytrain.data.dataset import Dataset
from raytrain.errors import DataError, StorageError
from raytrain.models import initial_weights, networks
from raytrain.tiles.sampling import ShuffleWindow
from raytrain.training.ema import Ema
from raytrain.worker import Worker

logger = logging.getLogger(__name__)


RankState = dict[str, Any]


@dataclass(frozen=True)
class Start:
    """How far a run is, the checkpoint it came from, and what is restored beside weights.

    `optimizer`: its state, within a stage. Within an epoch, `ranks`: what each rank held, and `rates`: (rate per layer
    group, momentum) of each step so far.
    `unnamed` is a stage that ended in a crash after its last epoch: the checkpoint with its name is still to write.
    `order` holds the window that tiles are shuffled in, where a run goes on: it must not change.
    `lr_scale` is the factor on all peak rates, below 1 after a divergence; `lr` and the optimiser's state include it.
    """

    position: layout.Position = layout.BEGINNING
    parent: str | None = None
    optimizer: dict[str, Any] | None = None
    ranks: tuple[RankState, ...] = ()
    rates: tuple[tuple[list[float], float], ...] = ()
    lr: Any = None
    unnamed: int = 0
    order: ShuffleWindow | None = None
    lr_scale: float = 1.0

    def epochs_done(self, number: int) -> int:
        """Whole epochs of a stage that a run which goes on has behind it."""
        return self.position.epochs if self.position.stage == number else 0

    def steps_done(self, number: int, epoch: int) -> int:
        """Steps of an epoch that a run which goes on has behind it."""
        at = (self.position.stage, self.position.epochs + 1) == (number, epoch)
        return self.position.steps if at else 0

    def resumes(self, number: int) -> bool:
        """Whether a stage is gone on with, not begun."""
        return self.position.stage == number and self.position > (number, 0, 0)


def begin(
    recipe: Recipe, dataset: Dataset, run: str, model: nn.Sequential, worker: Worker
) -> tuple[Start, reading.Checkpoint | None]:
    """Loads the weights that a run begins with into the model.

    Rank 0 chooses the checkpoint and every rank reads it: one that does not see the latest files begins nowhere else.

    Args:
        recipe: of the run.
        dataset: opened.
        run: its directory.
        model: whose weights are replaced.
        worker: this process.

    Raises:
        ConfigError: the checkpoint is for other classes, another network or other pixels.
        DataError: the run's own checkpoint was trained on other tiles.
        StorageError: this rank cannot read what rank 0 can.
    """
    own, skipped = _latest(run, worker)
    for sentence in skipped:
        logger.info(f"skipped a checkpoint: {sentence}")
    source = own or initial(recipe, dataset)
    if source is None:
        logger.info(f"new run, from {_fresh(recipe, model)}")
        return Start(), None
    fitting.check_fits(source, dataset.classes, recipe.model.arch, recipe.data.normalize)
    if own:
        _check_same_data(own, recipe, dataset)
    # A checkpoint's F2 is that of its averages: a run that keeps none starts from them.
    goes_on = own is not None or recipe.train.ema > 0
    model.load_state_dict(source.weights() if goes_on else source.judged_weights())
    f2 = source.meta["f2"]
    origin = f"{source.path} ({'not judged' if f2 is None else f'F2 {f2:.4f}'})"
    if own is None:
        logger.info(f"new run, from {origin}{_other_data(source, recipe, dataset)}")
        return Start(parent=source.path), source
    logger.info(f"resuming {_readable(own.position)}, from {origin}")
    _say_changes(own, worker)
    return _resumed(own, recipe, run), own


def _latest(run: str, worker: Worker) -> tuple[reading.Checkpoint | None, list[str]]:
    own, skipped = (
        reading.find_latest(storage.join(run, "checkpoints")) if worker.rank == 0 else (None, [])
    )
    if worker.world == 1:
        return own, skipped
    chosen = [own.path if own else None]
    dist.broadcast_object_list(chosen, src=0)
    if worker.rank == 0 or chosen[0] is None:
        return own, skipped
    try:
        return reading.read(chosen[0]), []
    except reading.DamagedCheckpoint as error:
        raise StorageError(
            f"rank {worker.rank} cannot read the checkpoint that rank 0 goes on from: {error}",
            "the ranks would train from different weights",
            "the same command again when all machines see the same files under --storage",
        ) from None


def initial(recipe: Recipe, dataset: Dataset) -> reading.Checkpoint | None:
    """The checkpoint that `init_from` names, with its classes in the dataset's order where that is asked for.

    Raises:
        ConfigError: it is damaged.
    """
    if recipe.init_from is None:
        return None
    found = reading.load(recipe.init_from)
    return fitting.remapped(found, dataset.classes) if recipe.remap_labels else found


def averages(model: nn.Module, decay: float, source: reading.Checkpoint | None) -> Ema | None:
    """Averages that go on from the checkpoint's, where it has any; None for a run that averages none."""
    if not decay:
        return None
    averaged = source.ema_weights() if source else None
    ema = Ema(model, decay, source.meta["ema_updates"] if source and averaged else 0)
    if averaged:
        ema.module.load_state_dict(averaged)
    return ema


def rank_state(model: nn.Module, ema: Ema | None, outcomes: list[torch.Tensor]) -> RankState:
    """What a rank holds within an epoch that the others do not: BatchNorm statistics, and its shares of the losses."""
    return {
        "statistics": networks.running_statistics(model),
        "averaged": networks.running_statistics(ema.module) if ema else [],
        "outcomes": torch.stack(outcomes),
    }


def gathered(state: RankState, worker: Worker, group: dist.ProcessGroup | None) -> list[RankState]:
    """The states of all ranks in their order, in host memory, on rank 0; elsewhere empty. All ranks call it together."""
    state = {
        key: [t.cpu() for t in value] if isinstance(value, list) else value.cpu()
        for key, value in state.items()
    }
    if worker.world == 1:
        return [state]
    states: list[Any] = [None] * worker.world
    dist.gather_object(state, states if worker.rank == 0 else None, dst=0, group=group)
    return states if worker.rank == 0 else []


def restore(
    ranks: tuple[RankState, ...], model: nn.Module, ema: Ema | None, worker: Worker
) -> list[torch.Tensor]:
    """Gives this rank what it held within the epoch. Returns its outcomes of the epoch's steps so far.

    For another number of ranks: the mean of the statistics, and rank 0 takes over all shares of the losses.
    """
    alike = len(ranks) == worker.world
    with torch.no_grad():
        for key, module in (("statistics", model), ("averaged", ema.module if ema else None)):
            buffers = networks.running_statistics(module) if module is not None else []
            for i, buffer in enumerate(buffers):
                held = [ranks[worker.rank][key][i]] if alike else [rank[key][i] for rank in ranks]
                buffer.copy_(torch.stack(held).mean(0) if len(held) > 1 else held[0])
    outcomes = torch.stack([rank["outcomes"] for rank in ranks])
    mine = outcomes[worker.rank] if alike else outcomes.sum(0) * (worker.rank == 0)
    return list(mine.to(worker.device))


def _fresh(recipe: Recipe, model: nn.Sequential) -> str:
    state = initial_weights.body_weights(recipe.model.arch, recipe.model.weights)
    if state is None:
        return "random weights"
    initial_weights.load_body(model, state, recipe.model.weights)
    return f"weights {recipe.model.weights}"


def _resumed(own: reading.Checkpoint, recipe: Recipe, run: str) -> Start:
    state, lr = own.train_state() or {}, own.meta["lr"]
    # Checkpoints from before November 2026 hold the optimiser's state alone.
    optimizer = state if "param_groups" in state else state.get("optimizer")
    return Start(
        own.position,
        own.path,
        optimizer,
        tuple(state.get("ranks", ())),
        tuple(state.get("rates", ())),
        tuple(lr) if isinstance(lr, list) else lr,
        _unnamed(own, recipe, run),
        ShuffleWindow(own.meta.get("window")),
        own.meta.get("lr_scale", 1.0),
    )


def _unnamed(own: reading.Checkpoint, recipe: Recipe, run: str) -> int:
    number = own.position.stage
    named = storage.join(run, "checkpoints", recipe.stage_names[number - 1], layout.MANIFEST)
    complete = own.position == (number, recipe.stages[number - 1].epochs, 0)
    return number if complete and not storage.exists(named) else 0


def _check_same_data(own: reading.Checkpoint, recipe: Recipe, dataset: Dataset) -> None:
    if _data_of(own) != (dataset.hash, dataset.split_hash(recipe.data.split)):
        raise DataError(
            f"the dataset {dataset.path} is not the one that {own.path} was trained on",
            "tiles or their parts have changed since; validation tiles could have been trained on",
            "start a new run with --init-from that checkpoint, or restore the dataset",
        )


def _other_data(source: reading.Checkpoint, recipe: Recipe, dataset: Dataset) -> str:
    if _data_of(source) == (dataset.hash, dataset.split_hash(recipe.data.split)):
        return ""
    return "; it was trained on other tiles or another split: tiles that validate here may have trained it"


def _data_of(checkpoint: reading.Checkpoint) -> tuple[str, str]:
    return checkpoint.meta["dataset_hash"], checkpoint.meta["split_hash"]


def _readable(position: layout.Position) -> str:
    if position.steps:
        return (
            f"in stage {position.stage} epoch {position.epochs + 1} after its step {position.steps}"
        )
    return f"after stage {position.stage} epoch {position.epochs}"


def _say_changes(own: reading.Checkpoint, worker: Worker) -> None:
    """Says what keeps the rest of the run from having the bits of an undisturbed one."""
    for key, now, thing in (
        ("world", worker.world, "workers"),
        ("threads", torch.get_num_threads(), "threads a worker"),
    ):
        if own.meta[key] != now:
            logger.info(
                f"  {own.meta[key]} {thing} so far, {now} from here: the same tiles in the same order, last bits may differ"
            )
