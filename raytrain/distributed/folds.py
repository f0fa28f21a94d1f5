"""Cross-validation: one run for each fold of a family of splits, and their predictions in one file.

    planned(recipe, family, name)        checks what can be known before
    train_folds(recipe, family, name)    begins, or goes on where an earlier call has ended
    resume_folds(folds, overrides)       goes on

`raytrain data split DATASET --folds 5 --name cv` makes the family cv: the splits cv-1 to cv-5. The
runs N-cv-1 to N-cv-5 lie beside the directory `<storage>/N`, which holds recipe.yaml, folds.json
(what is done) and, when all are done, predictions.parquet: every tile predicted by the run that was
not trained on it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from raytrain import runs, storage, tracking
from raytrain.config import (
    Recipe,
    different_fields,
    merge,
    nested,
    overridden,
    parse_yaml,
    validate,
)
from raytrain.data.dataset import Dataset, open_dataset
from raytrain.distributed import environment, slots
from raytrain.distributed.controllers import end_controllers
from raytrain.distributed.fold_limits import Limit, in_words, threads_of_worker, with_threads
from raytrain.distributed.folds_at_once import Fold, Work, train_at_once
from raytrain.distributed.memory import groups_that_fit
from raytrain.distributed.messages import Stop
from raytrain.distributed.preflight import check_group, check_recipe, refuse_range, use_gpu
from raytrain.distributed.session import cpus, session, to_go
from raytrain.distributed.train import resume, train
from raytrain.distributed.waiting import wait_for_room
from raytrain.errors import (
    ConfigError,
    DataError,
    Interrupted,
    StorageError,
    UnfinishedError,
    exit_code_of,
)
from raytrain.evaluation import predictions
from raytrain.evaluation.own_metrics import Metric
from raytrain.evaluation.predictions import Predictions
from raytrain.log import duration
from raytrain.machine import usable_cpus
from raytrain.runlock import held

logger = logging.getLogger(__name__)

RECIPE = "recipe.yaml"
PREDICTIONS = "predictions.parquet"
# What `meta` of the predictions calls the part of the dataset that they cover.
PART = "out-of-fold"


@dataclass(frozen=True)
class Folds:
    """A cross-validation that was begun.

    Attributes:
        path: of its directory.
        recipe: that all runs share, but for the split.
        family: name of the family of splits.
        splits: their names, in the order of the folds.
        dataset_hash: of the dataset.
        done: names of the splits whose run is complete.
    """

    path: str
    recipe: Recipe
    family: str
    splits: tuple[str, ...]
    dataset_hash: str
    done: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name that the user gave."""
        return storage.name_of(self.path)

    @property
    def storage(self) -> str:
        """Where the runs are."""
        return storage.parent(self.path)

    @property
    def predictions(self) -> str:
        """Path of the out-of-fold predictions."""
        return storage.join(self.path, PREDICTIONS)

    def run_name(self, split: str) -> str:
        """Name of the run that validates a fold."""
        return f"{self.name}-{split}"

    def run(self, split: str) -> runs.Run:
        """The run that validates a fold, begun or not."""
        return runs.Run(storage.join(self.storage, self.run_name(split)))

    def recipe_of(self, split: str) -> Recipe:
        """The recipe of the run that validates a fold."""
        return _with_split(self.recipe, split)

    def is_done(self, split: str) -> bool:
        """Whether the run that validates a fold is complete, and still there."""
        if split not in self.done:
            return False
        return storage.exists(storage.join(self.run(split).path, "config.yaml"))


def train_folds(
    recipe: Recipe,
    family: str,
    name: str,
    *,
    metrics: Sequence[Metric] = (),
    wait_s: float = 0.0,
) -> Folds:
    """Trains one run for each fold, as many at once as fit, and joins their predictions.

    The same call again goes on: complete runs stay, the one that was cut is resumed.

    Args:
        recipe: its `dataset` is set; its split does not matter.
        family: name of the family of splits.
        name: of the directory under `recipe.storage`, and beginning of the names of the runs.
        metrics: as for `train`.
        wait_s: seconds to wait for room for one fold in the cluster; 0 for none.

    Returns:
        The complete cross-validation.

    Raises:
        ConfigError: one of that name was begun with another recipe or family.
        RaytrainError: as `train`.
    """
    new = checked(recipe, family, name)
    with held(new.path):
        folds = _begun_or_new(new, threads=recipe.train.threads)
        _write_recipe(folds)
        _write_state(folds)
        return _train_all(folds, metrics, wait_s)


def planned(recipe: Recipe, family: str, name: str) -> Folds:
    """What `train_folds` would train, without training.

    Raises:
        RaytrainError: what `train_folds` would raise before it starts anything.
    """
    return _begun_or_new(checked(recipe, family, name), threads=recipe.train.threads)


def _begun_or_new(given: Folds, *, threads: int | None) -> Folds:
    """The cross-validation of a command: the one that was begun under its name, or a new one."""
    begun = find(given.path)
    if begun is not None:
        return _continued(begun, given, threads=threads)
    refuse_taken(given)
    tracking.check(given.recipe.mlflow)
    return given


def resume_folds(
    folds: Folds,
    overrides: Mapping[str, Any],
    *,
    metrics: Sequence[Metric] = (),
    wait_s: float = 0.0,
) -> Folds:
    """Goes on with a cross-validation.

    Args:
        folds: that was begun.
        overrides: nested values of the fields that a resumed run may change.
        metrics: the functions that `train_folds` was given.
        wait_s: as for `train_folds`.

    Raises:
        RaytrainError: as `train_folds`.
    """
    changed = overridden(folds.recipe.model_dump(), overrides)
    recipe = validate(changed, "the command line")
    refuse_range(recipe, "a cross-validation")
    # The directory, or a dataset that is named by another path, may have been moved.
    where = {"storage": folds.storage, "dataset": storage.absolute(recipe.dataset or "")}
    folds = replace(folds, recipe=recipe.model_copy(update=where))
    with held(folds.path):
        _write_recipe(folds)
        return _train_all(folds, metrics, wait_s)


def checked(recipe: Recipe, family: str, name: str) -> Folds:
    """Checks what can be known before anything starts, and resolves what all folds share.

    Raises:
        RaytrainError: as `train` for the first fold, or as `family_of`.
    """
    runs.check_name(name)
    if recipe.dataset is None:
        raise ConfigError(
            "no dataset is given",
            "there is nothing to train on",
            "--dataset DIR, as written by raytrain ingest --out DIR",
        )
    refuse_range(recipe, "a cross-validation")
    check_group(recipe)
    splits = family_of(open_dataset(recipe.dataset), family)
    first, dataset = check_recipe(_with_split(recipe, splits[0]))
    _refuse_start(first, dataset)
    path = storage.join(first.storage, name)
    # Absolute paths, but nothing that was computed from the tiles of one fold.
    where = {key: getattr(first, key) for key in ("dataset", "storage", "init_from", "model")}
    folds = Folds(path, recipe.model_copy(update=where), family, splits, dataset.hash)
    return _with_threads_of_machine(folds, dataset)


def _with_split(recipe: Recipe, split: str) -> Recipe:
    data = recipe.data.model_copy(update={"split": split})
    return recipe.model_copy(update={"data": data})


def _refuse_start(recipe: Recipe, dataset: Dataset) -> None:
    """Refuses a checkpoint that was trained on tiles of the dataset: a fold would judge by them."""
    if recipe.init_from is None:
        return
    meta = storage.read_json(storage.join(recipe.init_from, "meta.json"))
    if meta.get("dataset_hash") != dataset.hash:
        return
    raise ConfigError(
        f"--init-from {recipe.init_from} was trained on tiles of this dataset",
        "each fold must be judged by tiles that its network has never seen",
        "leave --init-from out, or give a checkpoint of another dataset",
    )


def _with_threads_of_machine(folds: Folds, dataset: Dataset) -> Folds:
    """The folds with the number of threads that each worker has on this machine.

    Resolved once: all folds then compute alike, whatever else runs on the machine later. A cluster
    is asked once it is connected.
    """
    recipe = folds.recipe
    if recipe.train.threads is not None or environment.connects():
        return folds
    limit = _limit(recipe, _most(recipe, dataset))
    at_once = min(len(folds.splits), limit.at_once(slots.resources()))
    cpus_here = usable_cpus()
    threads = threads_of_worker(cpus_here, recipe.num_workers, at_once)
    return replace(folds, recipe=with_threads(recipe, threads))


def _most(recipe: Recipe, dataset: Dataset) -> int | None:
    """How many folds fit into the memory of this machine; None for any."""
    return groups_that_fit(recipe, len(dataset.classes), dataset.tile_format.channels)


def _limit(recipe: Recipe, most: int | None) -> Limit:
    """What decides how many folds train at once.

    Raises:
        ConfigError, ResourceError: as `use_gpu`.
    """
    return Limit(recipe.num_workers, use_gpu(recipe), recipe.train.threads, most)


def plan_in_words(folds: Folds) -> str:
    """Returns how many folds would be trained, and how many at once on this machine.

    Raises:
        RaytrainError: the dataset, or the GPUs that are asked for, cannot be used.
    """
    left = len(_left(folds))
    if environment.connects():
        return f"{in_words(left, 1)}, or as many at once as the cluster holds when they start"
    most = _most(folds.recipe, _checked_dataset(folds))
    at_once = _limit(folds.recipe, most).at_once(slots.resources())
    return f"{in_words(left, at_once)}; threads per worker: {folds.recipe.train.threads}"


def family_of(dataset: Dataset, family: str) -> tuple[str, ...]:
    """Returns the splits of a family, in the order of their folds.

    Raises:
        DataError: the dataset has no such family, or not all of its splits.
    """
    splits: list[str] = []
    while f"{family}-{len(splits) + 1}" in dataset.splits:
        splits.append(f"{family}-{len(splits) + 1}")
    fix = f"raytrain data split {dataset.path} --folds 5 --name NAME, then --folds NAME"
    if len(splits) < 2:
        known = ", ".join(dataset.splits) or "none"
        raise DataError(
            f"{dataset.path} has no folds {family}-1, {family}-2 ... (it has the splits: {known})",
            "each fold is validated by a run that was trained on the others",
            fix,
        )
    folds = int(dataset.split(splits[0])["fold"].max()) + 1
    if folds != len(splits):
        raise DataError(
            f"{dataset.path} has the splits {splits[0]} to {splits[-1]}, but they are not all the "
            "folds of one division",
            "tiles would be predicted twice, or not at all",
            fix,
        )
    return tuple(splits)


def find(path: str) -> Folds | None:
    """Reads the cross-validation in a directory; None where there is none.

    Raises:
        DataError: its files are damaged, or one of them is missing.
    """
    state = storage.join(path, runs.FOLDS)
    if not storage.exists(state):
        return None
    text = storage.join(path, RECIPE)
    try:
        content = storage.read_json(state)
        written = storage.with_keys_of(storage.read_bytes(text).decode(), path)
        return Folds(
            path=path,
            recipe=validate(parse_yaml(written, text), text, written),
            family=content["family"],
            splits=tuple(content["splits"]),
            dataset_hash=content["dataset_hash"],
            done=tuple(content["done"]),
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{state} or {RECIPE} beside it is damaged ({error!r})",
            "it would be unknown which folds are trained, and how",
            "start again with another --name; the runs of single folds remain",
        ) from None


def opened(path: str) -> Folds:
    """Reads the cross-validation in a directory that has one.

    Raises:
        DataError: as `find`.
    """
    found = find(path)
    assert found is not None  # the caller has seen its folds.json
    return found


def refuse_taken(folds: Folds) -> None:
    """Refuses a cross-validation whose name, or that of one of its runs, is taken.

    Raises:
        ConfigError: it is.
    """
    for name in (folds.name, *map(folds.run_name, folds.splits)):
        runs.refuse_taken(name, folds.storage)


def _continued(begun: Folds, given: Folds, *, threads: int | None) -> Folds:
    """The cross-validation that the same command began; refuses another command.

    What a resumed run may change is taken from the new command.

    Args:
        begun: as it was begun.
        given: as the new command has it.
        threads: that the new command asks for; None where it leaves them open.
    """
    recipe = given.recipe
    if threads is None and begun.recipe.train.threads is not None:
        # Resolved by the first command; this machine may have other CPUs.
        train = recipe.train.model_copy(update={"threads": begun.recipe.train.threads})
        recipe = recipe.model_copy(update={"train": train})
    different = different_fields(begun.recipe, recipe)
    changed = sorted(different - {*runs.PLACEMENT, "storage", "data.split"})
    if given.family != begun.family:
        changed.insert(0, f"--folds {given.family} instead of {begun.family}")
    if changed:
        raise ConfigError(
            f"the folds {begun.name} were begun in another way: {', '.join(changed)}",
            "folds of different recipes cannot be joined",
            f"{runs.resume_command(begun.name, begun.storage)}, or another --name",
        )
    return replace(begun, recipe=recipe)


def _train_all(folds: Folds, metrics: Sequence[Metric], wait_s: float) -> Folds:
    """Trains the runs that are left, and joins the predictions of all."""
    with _failure_recorded(folds):
        dataset = _checked_dataset(folds)
        # Before Ray starts, whose processes take memory as well.
        most = _most(folds.recipe, dataset)
    # A session that does not begin is no failure of the folds: with --restarts it is tried again.
    with session(), _failure_recorded(folds):
        if _left(folds):
            wait_for_room(folds.recipe, wait_s)
            folds = _Training(folds, metrics, _limit(folds.recipe, most)).run()
        predictions.write(folds.predictions, join(folds, dataset))
    return folds


def _left(folds: Folds) -> list[Fold]:
    """The folds that are not complete."""
    return [
        Fold(split, folds.run_name(split), number, len(folds.splits))
        for number, split in enumerate(folds.splits, 1)
        if not folds.is_done(split)
    ]


class _Training:
    """Trains the folds that are left, one after the other or several at once."""

    def __init__(self, folds: Folds, metrics: Sequence[Metric], limit: Limit) -> None:
        self.folds = folds
        self.metrics = metrics
        self.limit = limit
        self.left = _left(folds)
        self.began = time.monotonic()

    def run(self) -> Folds:
        """Trains all that are left. Returns the cross-validation with all folds done."""
        total = len(self.left)
        logger.info(in_words(total, self._at_once()))
        while self.left:
            if self._at_once() > 1:
                self._train_several()
            else:
                self._train_next(total)
        return self.folds

    def _at_once(self) -> int:
        """How many folds train at once now. A cluster may grow, so this is asked again."""
        return min(len(self.left), self.limit.at_once(slots.resources()))

    def _train_next(self, total: int) -> None:
        """Trains one fold, in the main thread.

        Args:
            total: number of folds that were left at first.
        """
        fold = self.left[0]
        logger.info(f"{fold}: {fold.run}")
        _train_one(self.folds, fold.split, self.metrics)
        self._done(fold)
        logger.info(
            f"{fold} is done, {duration(time.monotonic() - self.began)} after the start, "
            f"{to_go(total - len(self.left), total, self.began)}"
        )

    def _train_several(self) -> None:
        """Trains the folds that are left, as many at once as fit."""
        self._resolve_threads()
        work = Work(
            folds=tuple(self.left),
            train=self._train_beside_others,
            at_once=lambda: self.limit.at_once(slots.resources()),
            done=self._done,
            end_groups=end_controllers,
            began=self.began,
        )
        train_at_once(work)

    def _resolve_threads(self) -> None:
        """Divides the CPUs of a cluster among the folds.

        A worker on CPUs alone would take all of its node that its own group leaves it. Recorded, so
        that all folds that follow compute alike.
        """
        if self.limit.threads is not None or self.limit.gpu:
            return
        threads = threads_of_worker(cpus(), self.limit.workers, self._at_once())
        self.limit = replace(self.limit, threads=threads)
        self.folds = replace(self.folds, recipe=with_threads(self.folds.recipe, threads))
        _write_recipe(self.folds)
        logger.info(f"threads per worker: {threads}, in all folds that follow")

    def _train_beside_others(self, fold: Fold, stop: Stop) -> None:
        _train_one(self.folds, fold.split, self.metrics, stop)

    def _done(self, fold: Fold) -> None:
        """Notes that a fold is complete. Never called by two threads at a time."""
        self.left.remove(fold)
        self.folds = replace(self.folds, done=tuple({*self.folds.done, fold.split}))
        _write_state(self.folds)


@contextmanager
def _failure_recorded(folds: Folds) -> Iterator[None]:
    """Writes failure.json where a fold fails or is stopped, and says how all folds go on."""
    storage.remove(storage.join(folds.path, "failure.json"))
    again = runs.resume_command(folds.name, folds.storage)
    try:
        yield
    except BaseException as raised:
        error = _with_resume(raised, again)
        # The storage may be what failed. The user needs the error itself, not this second one.
        with suppress(StorageError):
            runs.write_failure(runs.Run(folds.path), error, exit_code_of(error))
        if error is not raised:
            raise error from None
        logger.info(f"all folds go on with: {again}")
        raise


def _with_resume(error: BaseException, again: str) -> BaseException:
    """The error of folds that a signal has stopped, with the command that resumes all of them.

    Its own advice, if it has one, resumes the run of one fold alone. Other errors stay as they are.
    """
    if isinstance(error, UnfinishedError):
        return UnfinishedError(error.what, error.why, again)
    if isinstance(error, Interrupted):
        return Interrupted(error.number, f"\n  next: {again}")
    return error


def _checked_dataset(folds: Folds) -> Dataset:
    """The dataset; refuses another one than that of the folds that are done."""
    assert folds.recipe.dataset is not None  # `checked` refuses a recipe without one
    dataset = open_dataset(folds.recipe.dataset)
    if dataset.hash == folds.dataset_hash:
        return dataset
    raise DataError(
        f"the dataset {dataset.path} is not the one that {folds.name} was begun on",
        "folds of different tiles cannot be joined",
        f"{runs.resume_command(folds.name, folds.storage)} --dataset PATH of the same dataset",
    )


def _train_one(
    folds: Folds, split: str, metrics: Sequence[Metric], stop: Stop | None = None
) -> None:
    """Begins the run of a fold, or goes on with it.

    Args:
        folds: all of them.
        split: of the fold.
        metrics: as for `train`.
        stop: as for `train`.
    """
    run = folds.run(split)
    if not storage.exists(storage.join(run.path, "config.yaml")):
        train(folds.recipe_of(split), name=run.name, metrics=metrics, stop=stop)
        return
    # The run may have been begun with another dataset path, or other workers.
    values = folds.recipe.model_dump()
    placed: dict[str, Any] = {}
    for field in runs.PLACEMENT:
        keys = field.split(".")
        value = values
        for key in keys:
            value = value[key]
        placed = merge(placed, nested(keys, value))
    resume(run, placed, metrics=metrics, stop=stop)


def _write_recipe(folds: Folds) -> None:
    storage.write_text(storage.join(folds.path, RECIPE), folds.recipe.to_yaml())


def _write_state(folds: Folds) -> None:
    content = {
        "family": folds.family,
        "splits": folds.splits,
        "dataset_hash": folds.dataset_hash,
        "done": sorted(folds.done),
    }
    storage.write_json(storage.join(folds.path, runs.FOLDS), content)


def join(folds: Folds, dataset: Dataset) -> Predictions:
    """Joins the predictions of all runs: every tile by the run that was not trained on it.

    Raises:
        DataError: predictions of a run are missing or damaged, or not those of its fold.
    """
    found = []
    for split in folds.splits:
        path = storage.join(folds.run(split).path, PREDICTIONS)
        part = predictions.read(path)
        table = dataset.split(split)
        expected = set(table.loc[table["part"] == "valid", "image_name"])
        if len(part.names) != len(expected) or set(part.names) != expected:
            raise DataError(
                f"{path} does not hold the {len(expected)} tiles of the fold {split}",
                "a tile would be missing, or judged by a network that was trained on it",
                f"remove the run {folds.run_name(split)}, then "
                f"{runs.resume_command(folds.name, folds.storage)}",
            )
        found.append(part)
    sizes = [len(part.names) for part in found]
    # The column `fold` of a split counts from 0, the names of the splits from 1.
    fold = np.repeat(np.arange(len(found), dtype=np.int32), sizes)
    meta = {
        "task": dataset.task,
        "split": folds.family,
        "part": PART,
        "dataset": dataset.path,
    }
    targets = []
    for part in found:
        assert part.target is not None  # tiles of a fold have known targets
        targets.append(part.target)
    return Predictions(
        names=tuple(name for part in found for name in part.names),
        logits=np.concatenate([part.logits for part in found]),
        target=np.concatenate(targets),
        classes=found[0].classes,
        meta=meta,
        fold=fold,
    )
