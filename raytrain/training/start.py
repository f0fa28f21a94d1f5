"""Where a run begins: its own latest checkpoint, else `init_from`, else initial weights, else
random; in this order.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from raytrain import registry, storage
from raytrain.checkpoints import fitting, layout, reading
from raytrain.checkpoints.layout import BEGINNING, Position
from raytrain.checkpoints.reading import Checkpoint
from raytrain.config import Recipe
from raytrain.data.dataset import Dataset
from raytrain.errors import DataError, StorageError
from raytrain.models import initial_weights
from raytrain.tiles.sampling import ShuffleWindow
from raytrain.training import optim
from raytrain.training.ema import Ema
from raytrain.training.epoch import Rates
from raytrain.training.optim import Rate
from raytrain.training.rank_state import RankState
from raytrain.worker import Worker

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """How far a run is, and what is restored beside weights.

    Args:
        position: after which it resumes.
        parent: path of the checkpoint that its weights come from.
        optimizer: state of the optimiser, within a stage.
        ranks: what each rank held, within an epoch.
        rates: of each step of the epoch so far, within an epoch.
        lr: peak rate of the stage, `lr_scale` included.
        frozen_lr: peak rate of the head, without `lr_scale`, in the stage that the weights come
            from; None where that stage was not frozen.
        unnamed: number of a stage that ended in a crash after its last epoch: the checkpoint with
            its name is still to be written; 0 for none.
        window: of the shuffle of a run that resumes, which must not change; None for a new run.
        lr_scale: factor on all peak rates, below 1 after a divergence.
    """

    position: Position = BEGINNING
    parent: str | None = None
    optimizer: dict[str, Any] | None = None
    ranks: tuple[RankState, ...] = ()
    rates: tuple[Rates, ...] = ()
    lr: Rate | None = None
    frozen_lr: float | None = None
    unnamed: int = 0
    window: ShuffleWindow | None = None
    lr_scale: float = 1.0

    def epochs_done(self, number: int) -> int:
        """Complete epochs of a stage."""
        if self.position.stage != number:
            return 0
        return self.position.epochs

    def steps_done(self, number: int, epoch: int) -> int:
        """Steps done of an epoch that is not complete."""
        if (self.position.stage, self.position.epochs + 1) != (number, epoch):
            return 0
        return self.position.steps

    def resumes(self, number: int) -> bool:
        """Whether a stage is resumed, not begun."""
        return self.position.stage == number and self.position > (number, 0, 0)


def begin(
    recipe: Recipe, dataset: Dataset, run: str, model: nn.Sequential, worker: Worker
) -> tuple[Start, Checkpoint | None]:
    """Loads the weights that a run begins with into the model.

    Rank 0 chooses the checkpoint and every rank reads it: one that does not see the latest files
    begins nowhere else.

    Args:
        recipe: of the run.
        dataset: opened.
        run: its directory.
        model: whose weights are replaced.
        worker: this process.

    Returns:
        Where it begins, and the checkpoint that the weights come from, if any.

    Raises:
        ConfigError: the checkpoint is for other classes, another network or other pixels.
        DataError: the run's own checkpoint was trained on other tiles.
        StorageError: this rank cannot read what rank 0 can.
    """
    own, skipped = _latest(run, worker)
    for sentence in skipped:
        logger.warning(f"skipped a checkpoint: {sentence}")
    source = own or initial(recipe, dataset)
    if source is None:
        logger.info(f"new run, from {_fresh(recipe, model)}")
        return Start(), None
    fitting.check_start(source, recipe, dataset)
    if own:
        _check_same_data(own, recipe, dataset)
    weights = source.judged_weights()
    if own is not None or recipe.train.ema > 0:
        # Averages are kept apart here. A run that keeps none starts from them instead: the score
        # is theirs.
        weights = source.weights()
    model.load_state_dict(weights)
    if own is None:
        logger.info(f"new run, from {_origin(source)}{_other_data(source, recipe, dataset)}")
        return Start(parent=source.path, frozen_lr=_frozen_lr(source.meta)), source
    logger.info(f"resuming {_readable(own.position)}, from {_origin(own)}")
    _log_changes(own, worker)
    return _resumed(own, recipe, run), own


def _latest(run: str, worker: Worker) -> tuple[Checkpoint | None, list[str]]:
    """The run's own latest checkpoint, and a sentence for each that was skipped (on rank 0)."""
    own: Checkpoint | None = None
    skipped: list[str] = []
    if worker.leads:
        own, skipped = reading.find_latest(storage.join(run, "checkpoints"))
    if worker.world == 1:
        return own, skipped
    chosen = [own.path if own else None]
    dist.broadcast_object_list(chosen, src=0)
    if worker.leads or chosen[0] is None:
        return own, skipped
    try:
        return reading.read(chosen[0]), []
    except reading.DamagedCheckpoint as error:
        raise StorageError(
            f"rank {worker.rank} cannot read the checkpoint that rank 0 resumes from: {error}",
            "the ranks would train from different weights",
            "the same command again when all machines see the same files under --storage",
        ) from None


def initial(recipe: Recipe, dataset: Dataset) -> Checkpoint | None:
    """The checkpoint that `init_from` names, with its classes in the dataset's order where that is
    asked for.

    Raises:
        ConfigError: it is damaged.
    """
    if recipe.init_from is None:
        return None
    found = reading.load(recipe.init_from)
    if recipe.remap_labels:
        return fitting.remapped(found, dataset.classes)
    return found


def averages(model: nn.Module, decay: float, source: Checkpoint | None) -> Ema | None:
    """Averages that continue those of a checkpoint, where it has any; None for a run that averages
    none.
    """
    if not decay:
        return None
    averaged = source.ema_weights() if source else None
    if source is None or averaged is None:
        return Ema(model, decay)
    ema = Ema(model, decay, source.meta["ema_updates"])
    ema.module.load_state_dict(averaged)
    return ema


def _fresh(recipe: Recipe, model: nn.Sequential) -> str:
    """Loads initial weights, where the recipe names any. Returns what the run begins from, in
    words.
    """
    state = initial_weights.body_weights(recipe.model.arch, recipe.model.weights)
    if state is None:
        return "random weights"
    initial_weights.load_body(model, state, recipe.model.weights)
    return f"weights {recipe.model.weights}"


def _frozen_lr(meta: dict[str, Any]) -> float | None:
    """The peak rate of the head in the stage of a checkpoint; None if the stage was not frozen."""
    if "recipe" not in meta:
        return None
    stage = meta["recipe"]["stages"][meta["stage"] - 1]
    # A number of layer groups, or true.
    if not stage["freeze"]:
        return None
    return optim.head_rate(_rate(meta["lr"]))


def _rate(lr: float | list[float]) -> Rate:
    """A peak rate as it stands in JSON, which has no tuples."""
    if isinstance(lr, list):
        return lr[0], lr[1]
    return lr


def _resumed(own: Checkpoint, recipe: Recipe, run: str) -> Start:
    state = own.train_state() or {}
    frozen_lr = _frozen_lr(own.meta)
    if frozen_lr is not None:
        # A factor of this run, which its later stages get anyway.
        frozen_lr /= own.meta["lr_scale"]
    return Start(
        position=own.position,
        parent=own.path,
        optimizer=state.get("optimizer"),
        ranks=tuple(state.get("ranks", ())),
        rates=tuple(state.get("rates", ())),
        lr=_rate(own.meta["lr"]),
        frozen_lr=frozen_lr,
        unnamed=_unnamed(own, recipe, run),
        window=ShuffleWindow(own.meta["window"]),
        lr_scale=own.meta["lr_scale"],
    )


def _unnamed(own: Checkpoint, recipe: Recipe, run: str) -> int:
    """The number of a complete stage that has no checkpoint of its name yet, else 0."""
    number = own.position.stage
    if own.position != (number, recipe.stage(number).epochs, 0):
        return 0
    named = storage.join(run, "checkpoints", recipe.stage_names[number - 1], layout.MANIFEST)
    if storage.exists(named):
        return 0
    return number


def _check_same_data(own: Checkpoint, recipe: Recipe, dataset: Dataset) -> None:
    if _is_of(own, recipe, dataset):
        return
    raise DataError(
        f"the dataset {dataset.path} is not the one that {own.path} was trained on",
        "tiles or their parts have changed since; validation tiles could have been trained on",
        "start a new run with --init-from that checkpoint, or restore the dataset",
    )


def _other_data(source: Checkpoint, recipe: Recipe, dataset: Dataset) -> str:
    if _is_of(source, recipe, dataset):
        return ""
    return (
        "; it was trained on other tiles or another split: "
        "tiles that validate here may have trained it"
    )


def _is_of(checkpoint: Checkpoint, recipe: Recipe, dataset: Dataset) -> bool:
    """Whether a checkpoint was trained on this dataset with this split."""
    meta = checkpoint.meta
    theirs = (meta["dataset_hash"], meta["split_hash"])
    return theirs == (dataset.hash, dataset.split_hash(recipe.data.split))


def _origin(checkpoint: Checkpoint) -> str:
    score = checkpoint.meta["score"]
    if score is None:
        return f"{checkpoint.path} (not judged)"
    name = registry.evaluation(checkpoint.meta["task"]).SCORE.name
    return f"{checkpoint.path} ({name} {score:.4f})"


def _readable(position: Position) -> str:
    if position.steps:
        return (
            f"in stage {position.stage} epoch {position.epochs + 1} after its step {position.steps}"
        )
    return f"after stage {position.stage} epoch {position.epochs}"


def _log_changes(own: Checkpoint, worker: Worker) -> None:
    """Logs what keeps the rest of the run from having the bits of an undisturbed one."""
    changes = (
        ("world", worker.world, "workers"),
        ("threads", torch.get_num_threads(), "threads per worker"),
    )
    for key, now, thing in changes:
        before = own.meta[key]
        if before != now:
            logger.info(
                f"  {before} {thing} so far, {now} from here: "
                "the same tiles in the same order, last bits may differ"
            )
