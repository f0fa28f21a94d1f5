"""What `import raytrain` offers to notebooks and scripts.

    dataset = raytrain.open_dataset("planet")
    recipe = raytrain.load_recipe("planet-resnet18", {"dataset": "planet"})
    run = raytrain.train(recipe, name="first")
    model = raytrain.load_model("first")

Each function does what the command of its name does, and leaves the same files. Objects draw
themselves: a notebook shows a `Figure`, a script saves it. Torch and Ray are imported by the
functions that need them.
"""

from __future__ import annotations

import base64
import io
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from PIL import Image

from raytrain import log, registry, runs, storage, tile_sheets, tracking
from raytrain.config import Recipe, load_recipe
from raytrain.data import dataset as datasets
from raytrain.data.drawing import drawn
from raytrain.data.sources import DividedTiles, Images, images_at, images_in
from raytrain.distributed import environment
from raytrain.errors import ConfigError, DataError
from raytrain.evaluation import predictions as prediction_files
from raytrain.report import plots, sheet
from raytrain.report.record import Record, evaluation_record, read_run

if TYPE_CHECKING:
    from raytrain.data.bands import BandRule, KeptBands
    from raytrain.evaluation.own_metrics import Metric
    from raytrain.training.trained_model import TrainedModel

__all__ = [
    "Dataset",
    "Evaluation",
    "Figure",
    "Run",
    "Search",
    "evaluate",
    "images_at",
    "images_in",
    "ingest",
    "load_model",
    "load_recipe",
    "open_dataset",
    "open_run",
    "predict",
    "resume",
    "train",
    "tune",
]


# Objects that draw themselves


@dataclass(frozen=True)
class Figure:
    """A picture. A notebook shows it; elsewhere `save` writes it.

    Example:
        ```python
        raytrain.open_dataset("planet").show_batch().save("batch.png")
        ```

    Attributes:
        png: bytes of the PNG file.
    """

    png: bytes

    def save(self, path: str) -> str:
        """Writes the PNG file, and returns its path.

        Raises:
            StorageError: it cannot be written.
        """
        path = storage.absolute(str(path))
        storage.write_bytes(path, self.png)
        return path

    @property
    def image(self) -> Image.Image:
        """The picture for Pillow."""
        return Image.open(io.BytesIO(self.png), formats=("PNG",))

    def _repr_png_(self) -> bytes:
        """Called by a notebook."""
        return self.png

    def __repr__(self) -> str:
        width, height = self.image.size
        return f"Figure({width} x {height} pixels; .save('figure.png') writes it)"


@dataclass(frozen=True, repr=False)
class Dataset(datasets.Dataset):
    """An opened dataset: `dataset[0]` is a picture and its labels.

    Example:
        ```python
        dataset = raytrain.open_dataset("planet")
        picture, labels = dataset[0]
        dataset.show_batch(augmented=True)
        ```
    """

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> tuple[Image.Image, tuple[str, ...]]:
        """Returns a tile as it is drawn, RGB, and its labels.

        Args:
            row: from 0; negative numbers count from the end.

        Raises:
            IndexError: there is no such row.
            DataError: its shard cannot be read.
        """
        if not -self.rows <= row < self.rows:
            raise IndexError(f"row {row} of a dataset of {self.rows} tiles")
        row %= self.rows
        (pixels,) = datasets.decoded_images(self, [row], self.tile_size)
        return Image.fromarray(drawn(pixels)), datasets.labels_of(self, row)

    def show_batch(
        self,
        *,
        tiles: int | None = None,
        part: str = "train",
        label: str | None = None,
        augmented: bool = False,
        recipe: Recipe | None = None,
        seed: int = 42,
    ) -> Figure:
        """Draws randomly chosen tiles with their labels.

        Args:
            tiles: number of tiles; 24 by default, 8 where they are augmented.
            part: train, valid or test of the dataset's first split, or all.
            label: only tiles with this label.
            augmented: draw each tile as validation sees it, and beside it as training may see it.
            recipe: whose augmentation is drawn; by default that of the lesson.
            seed: of the choice of tiles and of the augmentation.

        Raises:
            DataError: there is no such part or label.
        """
        augment = None
        if augmented:
            augment = (recipe or load_recipe(None)).data.augment
        if not self.splits:
            part = "all"
        options = tile_sheets.SheetOptions(
            part=part, label=label, augment=augment, tiles=tiles, seed=seed
        )
        rows = tile_sheets.chosen(self, options)
        return Figure(tile_sheets.drawn(self, rows, options))

    def __repr__(self) -> str:
        splits = ", ".join(self.splits) or "none"
        return (
            f"Dataset {self.path}: {self.rows:,} tiles of {self.tile_size} px, "
            f"{len(self.classes)} classes ({self.task}), splits: {splits}"
        )


@dataclass(frozen=True, repr=False)
class Run(runs.Run):
    """A run that was trained, and its files.

    Example:
        ```python
        run = raytrain.open_run("first")
        run.plot_losses()
        run.show_results()
        ```
    """

    @cached_property
    def _record(self) -> Record:
        return read_run(self.path)

    @property
    def history(self) -> pd.DataFrame:
        """The rows of history.csv, one for each epoch."""
        return self._record.history

    @property
    def steps(self) -> pd.DataFrame:
        """The lines of metrics.jsonl, one for each step; no rows without that file."""
        return self._record.steps

    @property
    def report(self) -> str:
        """Path of its report, a page for a browser."""
        return storage.join(self.path, "report.html")

    def plot_losses(self) -> Figure:
        """Draws the loss of every step, and both losses of every epoch."""
        record = self._record
        return Figure(plots.losses(record.steps, record.history, record.stage_names))

    def plot_lr(self) -> Figure:
        """Draws the learning rate of each layer group, and the momentum.

        Raises:
            DataError: the run has no metrics.jsonl.
        """
        record = self._record
        if not len(record.steps):
            raise DataError(
                f"{self.path} has no metrics.jsonl",
                "the rates of single steps are unknown",
                "run.history has the highest rate of each epoch",
            )
        return Figure(plots.schedule(record.steps, record.stage_names))

    def plot_scores(self) -> Figure:
        """Draws the scores on the validation part by epoch."""
        record = self._record
        task = registry.evaluation(record.task)
        picture = plots.scores(record.history, record.stage_names, task.METRICS, task.SCORE)
        return Figure(picture)

    def show_results(self) -> Figure:
        """Draws the validation tiles with the best, the median and the worst score.

        Below each tile are its score and its labels: those that are right, missed and false.

        Raises:
            DataError: there are no predictions, or the dataset is gone.
        """
        return _results(self._record)

    def load_model(self, checkpoint: str = "last") -> TrainedModel:
        """Returns the model of one of its checkpoints, see `load_model`."""
        return load_model(f"{self.name}:{checkpoint}", storage_path=storage.parent(self.path))

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.path}"


@dataclass(frozen=True, repr=False)
class Search(Run):
    """A search that has ended, which is also the run of its winner.

    Example:
        ```python
        search = raytrain.tune(raytrain.load_recipe("planet-resnet18", {"dataset": "planet"}))
        search.trials.sort_values("score")
        raytrain.train(search.best, name="winner")
        ```
    """

    @property
    def trials(self) -> pd.DataFrame:
        """The rows of trials.csv, one for each trial."""
        content = storage.read_bytes(storage.join(self.path, "trials.csv"))
        return pd.read_csv(io.BytesIO(content))

    @property
    def best(self) -> Recipe:
        """The recipe of the winner."""
        return load_recipe(storage.join(self.path, "best.yaml"))

    @property
    def page(self) -> str:
        """Path of its page for a browser."""
        return storage.join(self.path, "search.html")


@dataclass(frozen=True, repr=False)
class Evaluation:
    """How good some predictions are.

    Example:
        ```python
        judged = raytrain.evaluate(raytrain.open_run("first"))
        print(judged)
        judged.labels.sort_values("gain")
        ```

    Attributes:
        scores: by their names.
        labels: a row for each label, with its scores.
        text: the same as the command prints it.
        report: path of the report; empty where none was written.
    """

    scores: Mapping[str, float]
    labels: pd.DataFrame
    text: str
    report: str = ""

    def __repr__(self) -> str:
        return self.text


# Data


def open_dataset(path: str) -> Dataset:
    """Opens a dataset.

    Example:
        ```python
        dataset = raytrain.open_dataset("planet")
        print(dataset, dataset.classes)
        ```

    Args:
        path: path or URI of its directory.

    Raises:
        DataError: it is no dataset, or a damaged one.
    """
    found = datasets.open_dataset(str(path))
    return Dataset(found.path, found.manifest)


def ingest(
    tiles: DividedTiles,
    out: str,
    *,
    max_bad: int | None = None,
    bands: BandRule | KeptBands | None = None,
) -> Dataset:
    """Makes a dataset of labelled pictures, or opens it if it is there.

    Example:
        ```python
        tiles = raytrain.images_in("train-jpg").label_from_file("train_v2.csv")
        dataset = raytrain.ingest(tiles.split(by="random", valid=0.2, seed=42), "planet")
        ```

    Args:
        tiles: pictures with their labels and their division into parts.
        out: directory or URI of the dataset.
        max_bad: how many files may be unusable; the default is 10 or 0.1 %.
        bands: what becomes of the bands of TIFF files.

    Raises:
        DataError: too many bad files, or no tiles to train or validate on.
        StorageError: `out` cannot be written.
    """
    with _session():
        from raytrain.distributed.ingest import ingest as run_ingest

        done = run_ingest(tiles, str(out), max_bad=max_bad, bands=bands)
    return Dataset(done.dataset.path, done.dataset.manifest)


# Training


def train(recipe: Recipe, *, name: str | None = None, metrics: Sequence[Metric] = ()) -> Run:
    """Trains a new run, and writes its thresholds and report.

    Example:
        ```python
        recipe = raytrain.load_recipe("planet-resnet18", {"dataset": "planet"})
        run = raytrain.train(recipe, name="first")
        ```

    Args:
        recipe: with its dataset.
        name: of the run; a unique one by default.
        metrics: further functions on (probabilities, targets).

    Raises:
        RaytrainError: the class that fits the failure.
    """
    with _session():
        from raytrain.distributed.train import train as run_train

        tracking.check(recipe.mlflow)
        done = run_train(recipe, name=name or runs.new_name("train"), metrics=metrics)
    return _concluded(done.run)


def resume(
    run: Run | str,
    overrides: Mapping[str, Any] | None = None,
    *,
    storage_path: str | None = None,
    metrics: Sequence[Metric] = (),
) -> Run:
    """Resumes a run from its last checkpoint.

    Example:
        ```python
        raytrain.resume("first", {"num_workers": 4})
        ```

    Args:
        run: or its name.
        overrides: nested values of the fields that may change, such as the number of workers.
        storage_path: where a name is looked up; RAYTRAIN_STORAGE or ./runs by default.
        metrics: the functions that `train` was given.

    Raises:
        RaytrainError: the class that fits the failure.
    """
    found = run if isinstance(run, runs.Run) else open_run(run, storage_path=storage_path)
    changes = runs.placement(found, dict(overrides or {}))
    with _session():
        from raytrain.distributed.train import resume as run_resume

        done = run_resume(found, changes, metrics=metrics)
    return _concluded(done.run)


def open_run(name: str, *, storage_path: str | None = None) -> Run:
    """Opens a run, or a search, by its name or path.

    Example:
        ```python
        raytrain.open_run("first").history
        ```

    Args:
        name: of the run, or path of its directory.
        storage_path: where a name is looked up; RAYTRAIN_STORAGE or ./runs by default.

    Raises:
        ConfigError: there is no such run.
    """
    place = storage_path or load_recipe(None).storage
    search = runs.find_search(name, place)
    if search is not None:
        return Search(search.path)
    return Run(runs.find(name, place).path)


def tune(
    recipe: Recipe,
    space: Mapping[str, Any] | None = None,
    *,
    name: str | None = None,
    num_samples: int = 30,
    **options: Any,
) -> Search:
    """Searches fields of a recipe, and names a winner.

    Example:
        ```python
        search = raytrain.tune(recipe, {"train.wd": {"choice": [0.003, 0.01, 0.03]}})
        run = raytrain.train(search.best)
        ```

    Args:
        recipe: that the search begins with.
        space: content of a space file; made from the recipe by default.
        name: of the search; a unique one by default.
        num_samples: number of trials, the given recipe among them.
        options: `budget_s` (seconds that it may take), `tries` (trials of your own, such as
            `["train.wd=0.02"]`), `reruns` of each finalist, `objective` (name of a score),
            `method` (model or random), `trial_cpus` and `trial_gpus`.

    Raises:
        RaytrainError: the class that fits the failure.
    """
    name = name or runs.new_name("tune")
    with _session():
        from raytrain.distributed.search import search
        from raytrain.distributed.search_setup import Options
        from raytrain.report import search_files

        directory = storage.join(storage.absolute(recipe.storage), name)

        def show() -> None:
            search_files.write(directory)

        chosen = Options(num_samples, **options)
        found = search(recipe, space, chosen, name=name, changed=show)
    return Search(_concluded(runs.Run(found.directory)).path)


# Models and predictions


def load_model(
    checkpoint: str, *, storage_path: str | None = None, device: str = "cpu", tta: bool = False
) -> TrainedModel:
    """Returns a trained model, a `torch.nn.Module` that takes pictures. It needs no Ray.

    The last checkpoint of a run decides labels as the run recommends. Others use a threshold of
    0.2, where labels have thresholds.

    Example:
        ```python
        model = raytrain.load_model("first")
        model.probabilities(["tile-1.jpg", "tile-2.jpg"])
        model.labels(Image.open("tile-1.jpg"))
        ```

    Args:
        checkpoint: RUN (its last one), RUN:stage-2-128, or the path of either.
        storage_path: where a run is looked up; RAYTRAIN_STORAGE or ./runs by default.
        device: where it computes, such as cuda.
        tta: average over the 8 symmetries of each picture.

    Raises:
        ConfigError: there is no such checkpoint, or it is damaged.
    """
    path = runs.find_checkpoint(str(checkpoint), storage_path or load_recipe(None).storage)
    import torch

    from raytrain.training import trained_model

    model = trained_model.load(path, torch.device(device), tta=tta)
    if storage.name_of(path) != "last":
        return model
    thresholds = storage.join(storage.parent(storage.parent(path)), "thresholds.json")
    task = registry.evaluation(model.task)
    if task.HAS_THRESHOLDS and storage.exists(thresholds):
        model.decision = task.decision(thresholds, None, model.classes)
    return model


def predict(
    checkpoint: Run | str,
    tiles: datasets.Dataset | Images | str,
    *,
    out: str | None = None,
    part: str = "valid",
    tta: bool = False,
    storage_path: str | None = None,
) -> pd.DataFrame:
    """Predicts many tiles with Ray, and returns the probability of each label.

    Example:
        ```python
        table = raytrain.predict("first", raytrain.images_in("test-jpg"), out="test.parquet")
        ```

    Args:
        checkpoint: a run, RUN:stage-2-128, or the path of a checkpoint.
        tiles: a dataset, pictures, or the path of a dataset or of a folder of pictures.
        out: file of predictions to write, which `evaluate` and `raytrain submission` read.
        part: part of a dataset's split: train, valid, test or all.
        tta: average over the 8 symmetries of each tile.
        storage_path: where a run is looked up; RAYTRAIN_STORAGE or ./runs by default.

    Returns:
        float64, a row for each tile by its name, a column for each label.

    Raises:
        RaytrainError: the class that fits the failure.
    """
    name = checkpoint.path if isinstance(checkpoint, runs.Run) else str(checkpoint)
    path = runs.find_checkpoint(name, storage_path or load_recipe(None).storage)
    dataset_path, sources = _tiles(tiles)
    with _session(), tempfile.TemporaryDirectory(prefix="raytrain-") as folder:
        from raytrain.distributed.predict import predict as run_predict

        file = storage.absolute(str(out or storage.join(folder, "predictions.parquet")))
        run_predict(path, file, dataset_path=dataset_path, part=part, sources=sources, tta=tta)
        found = prediction_files.read(file)
    index = pd.Index(found.names, name="image_name")
    return pd.DataFrame(found.probability, index=index, columns=list(found.classes))


def evaluate(predictions: Run | str, *, out: str | None = None) -> Evaluation:
    """Judges predictions of tiles with known labels.

    Example:
        ```python
        raytrain.evaluate("first").labels
        ```

    Args:
        predictions: a run, its name, or the path of a file of predictions.
        out: directory for thresholds, tables and the report; none by default.

    Raises:
        DataError: there are no predictions with labels.
    """
    found = prediction_files.read(_predictions_path(predictions))
    judgement = registry.evaluation(found.task).judge(found)
    report = ""
    if out is not None:
        from raytrain.report.conclude import conclude_predictions

        report = conclude_predictions(storage.absolute(str(out)), found).report
    record = evaluation_record("", found, judgement)
    sections = registry.drawing(found.task).sections(record)
    scores = {}
    if sections.headline is not None:
        scores[sections.headline.name] = sections.headline.value
    labels = pd.DataFrame()
    if sections.table is not None:
        labels = sections.table.rows.set_index("label")
    return Evaluation(scores, labels, registry.evaluation(found.task).table(judgement), report)


# What these share


@contextmanager
def _session() -> Iterator[None]:
    """Checks the environment, and shows progress where the program has set up no logging."""
    environment.quiet_ray()
    environment.check_session()
    if logging.getLogger("raytrain").hasHandlers():
        yield
        return
    with log.printed():
        yield


def _concluded(run: runs.Run) -> Run:
    """Writes what people read of a run, as the command does."""
    from raytrain.report.conclude import conclude

    conclude(run.path)
    return Run(run.path)


def _tiles(tiles: datasets.Dataset | Images | str) -> tuple[str | None, list[Images]]:
    """Path of the dataset or None, and pictures of their own."""
    if isinstance(tiles, datasets.Dataset):
        return tiles.path, []
    if isinstance(tiles, Images):
        return None, [tiles]
    path = storage.absolute(str(tiles))
    if storage.exists(storage.join(path, "dataset.json")):
        return path, []
    return None, [images_in(path)]


def _predictions_path(predictions: Run | str) -> str:
    if isinstance(predictions, runs.Run):
        return storage.join(predictions.path, "predictions.parquet")
    path = storage.absolute(str(predictions))
    if str(predictions).endswith(".parquet") or storage.exists(path):
        if storage.exists(storage.join(path, "predictions.parquet")):
            return storage.join(path, "predictions.parquet")
        return path
    return storage.join(open_run(str(predictions)).path, "predictions.parquet")


def _results(record: Record) -> Figure:
    """The sheet of tiles of a report as one picture."""
    if record.judgement is None:
        raise DataError(
            f"{record.path} has no predictions with labels",
            "there is nothing to compare",
            f"raytrain runs show {record.name}",
        )
    found = registry.drawing(record.task).sections(record).sheet
    if not found.cards:
        raise ConfigError(found.note or "there are too few tiles to choose from")
    rows = []
    for kind, cards in found.cards.items():
        cells = []
        for card in cards:
            labels: list[str] = []
            for line in card.lines:
                # One label each, so that the sheet breaks its lines between them.
                labels += line.text.split(", ")
            name = f"{card.name} {card.score:.2f}"
            cells.append(sheet.Cell(_pixels(card.picture), name, tuple(labels)))
        rows.append(sheet.Row(cells, kind))
    return Figure(sheet.draw(rows, f"{record.name}: validation tiles, each with its own score"))


def _pixels(uri: str) -> np.ndarray[Any, Any]:
    """The pixels of a picture in a data: URI, uint8 (H, W, 3)."""
    content = base64.b64decode(uri.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(content), formats=("JPEG",)).convert("RGB"))
