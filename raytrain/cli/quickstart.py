"""The command `raytrain quickstart`: synthetic tiles to a report; no data, GPU or account needed.

Next to the network's score it prints two scores on the same validation tiles that need no network:
of the best constant set of labels, and of a logistic regression on the mean and standard deviation
of each colour channel. Heavy modules are imported inside the functions.
"""

from __future__ import annotations

import logging
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.types import PositiveInt

from raytrain import runs, storage
from raytrain.cli.job import check_written
from raytrain.config import load_recipe
from raytrain.data.sources import images_in
from raytrain.distributed.environment import check_session
from raytrain.log import duration, only

if TYPE_CHECKING:
    from raytrain.data.dataset import Dataset

logger = logging.getLogger(__name__)

TILES = 2000
VALID = 0.2
WORKERS = 2
SEED = 0


def quickstart(
    *,
    out: Annotated[str, Parameter(help="directory for tiles, dataset and run")] = "quickstart",
    num_workers: Annotated[
        PositiveInt | None,
        Parameter(help="number of Ray Train workers; default: 2, or 1 if memory is short"),
    ] = None,
) -> None:
    """Try everything in minutes, from synthetic tiles to a report: no data, GPU or account."""
    check_written("--out", out)
    check_session()
    run_quickstart(out, num_workers)


def run_quickstart(out: str, num_workers: int | None) -> None:
    """Runs all steps, and prints where the report is and what to type next.

    Args:
        out: directory for tiles, dataset and run; what is there already is used again.
        num_workers: number of Ray Train workers; None: two, or one if memory is too short for two.

    Raises:
        ResourceError: there is too little memory; nothing was started.
    """
    from raytrain.distributed import preflight, train
    from raytrain.evaluation.baselines import summary
    from raytrain.report.conclude import conclude

    began = time.monotonic()
    num_workers = _workers(num_workers)
    preflight.check_group(load_recipe("quickstart", {"num_workers": num_workers}))
    base = Path(out).expanduser().absolute()
    dataset = _dataset(base, began)
    storage_path = str(base / "runs")
    overrides = {"dataset": dataset.path, "storage": storage_path, "num_workers": num_workers}
    recipe = load_recipe("quickstart", overrides)
    run = train.train(recipe, name=runs.new_name("quickstart")).run
    scores = compare(dataset, run.path)
    storage.write_json(storage.join(run.path, "baselines.json"), scores)
    report = conclude(run.path).report
    for line in summary(scores, len(dataset.part_rows("random", "valid"))):
        logger.info(line)
    logger.info(f"done in {duration(time.monotonic() - began)}\nreport: {report}")
    program = _program()
    show = [program, "runs", "show", run.name, "--storage", storage_path]
    logger.info(f"next: {shlex.join(show)}")
    logger.info(
        f"with your own tiles: {shlex.quote(program)} ingest --images DIR --labels CSV --out mydata"
    )


def _dataset(base: Path, began: float) -> Dataset:
    """The dataset of synthetic tiles, made where it is not there yet."""
    from raytrain.data import synthetic
    from raytrain.distributed.ingest import ingest

    logger.info(f"painting {TILES} synthetic tiles in {base / 'tiles'}")
    folder, labels = synthetic.write(base / "tiles", TILES, SEED)
    tiles = images_in(str(folder)).label_from_file(str(labels)).split(valid=VALID)
    # One line about the dataset is enough here, without the progress of every shard.
    with only("raytrain.cli"):
        done = ingest(tiles, str(base / "dataset"))
    elapsed = duration(time.monotonic() - began)
    logger.info(f"dataset {done.dataset.path}: {done.dataset.rows} synthetic tiles ({elapsed})")
    return done.dataset


def _program() -> str:
    """The program as a user types it: its name if the shell finds it, else its path."""
    if shutil.which("raytrain"):
        return "raytrain"
    return str(Path(sys.executable).with_name("raytrain"))


def _workers(asked: int | None) -> int:
    """The number of workers asked for, or as many as fit into memory.

    Raises:
        ResourceError: too little memory; raised before a tile is painted.
    """
    from raytrain.data import synthetic
    from raytrain.distributed.memory import available, check_memory, workers_that_fit

    classes = len(synthetic.CLASSES)
    recipe = load_recipe("quickstart", {"num_workers": asked or WORKERS})
    fitting = workers_that_fit(recipe, classes)
    if asked or not fitting:
        check_memory(recipe, classes)
        return recipe.num_workers
    memory = available()
    if fitting < WORKERS and memory:
        free = f"{memory.free / 1e9:.1f} GB"
        logger.info(f"{fitting} worker instead of {WORKERS}: {free} are {memory.bound}")
    return fitting


def compare(dataset: Dataset, run: str) -> dict[str, Any]:
    """Scores of the network and of two baselines, on the validation part of a run.

    Args:
        dataset: the dataset with the split `random`.
        run: path of the run directory with predictions of the validation part.

    Returns:
        Scores by `model`, `constant` and `logistic`, as baselines.json keeps them.
    """
    from raytrain.data import images
    from raytrain.data.dataset import read_images
    from raytrain.evaluation import baselines, predictions

    found = predictions.read(storage.join(run, "predictions.parquet"))
    contents = read_images(dataset, range(dataset.rows))
    features = baselines.colour_features(images.decode(content) for content in contents)
    train_rows = dataset.part_rows("random", "train")
    valid_rows = dataset.part_rows("random", "valid")
    scores = baselines.compare(
        (features[train_rows], dataset.targets[train_rows]),
        (features[valid_rows], dataset.targets[valid_rows]),
        dataset.classes,
    )
    return scores | baselines.of_model(found)
