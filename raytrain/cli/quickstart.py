"""`raytrain quickstart`: synthetic tiles -> dataset -> training -> report, with no data, GPU or account.

Beside the network's F2 stand two answers on the same validation tiles that need no network: the best constant set of
labels, and a logistic regression on the mean and deviation of each colour channel.
"""

from __future__ import annotations

import logging
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from raytrain import runs, storage
from raytrain.config import load_recipe
from raytrain.data import images, synthetic
from raytrain.data.dataset import Dataset, read_images
from raytrain.data.sources import images_in
from raytrain.distributed.ingest import ingest
from raytrain.distributed.memory import available, check_memory, workers_that_fit
from raytrain.distributed.preflight import check_group
from raytrain.distributed.train import train
from raytrain.evaluation import baselines, metrics, predictions
from raytrain.log import duration, only
from raytrain.report.conclude import conclude

logger = logging.getLogger(__name__)


TILES = 2000
VALID = 0.2
WORKERS = 2
SEED = 0


def quickstart(out: str, num_workers: int | None) -> None:
    """Runs the whole way and prints where the report is and what to type next.

    Args:
        out: directory for tiles, dataset and run; what is there already is used again.
        num_workers: Ray Train workers; None: two, or one where there is no memory for two.

    Raises:
        ResourceError: there is no memory for it; nothing was started.
    """
    began = time.monotonic()
    num_workers = _workers(num_workers)
    check_group(load_recipe("quickstart", {"num_workers": num_workers}))
    base = Path(out).expanduser().absolute()
    logger.info(f"painting {TILES} synthetic tiles in {base / 'tiles'}")
    folder, labels = synthetic.write(base / "tiles", TILES, SEED)
    tiles = images_in(str(folder)).label_from_file(str(labels)).split(valid=VALID)
    with only("raytrain.cli"):
        done = ingest(tiles, str(base / "dataset"))
    logger.info(
        f"dataset {done.dataset.path}: {done.dataset.rows} synthetic tiles ({duration(time.monotonic() - began)})"
    )
    overrides = {
        "dataset": done.dataset.path,
        "storage": str(base / "runs"),
        "num_workers": num_workers,
    }
    run = train(load_recipe("quickstart", overrides), name=runs.new_name("quickstart")).run
    scores = compare(done.dataset, run.path)
    storage.write_json(storage.join(run.path, "baselines.json"), scores)
    report = conclude(run.path).report
    for line in _summary(scores, len(done.dataset.part_rows("random", "valid"))):
        logger.info(line)
    logger.info(f"done in {duration(time.monotonic() - began)}\nreport: {report}")
    program = (
        "raytrain" if shutil.which("raytrain") else str(Path(sys.executable).with_name("raytrain"))
    )
    logger.info(
        f"next: {shlex.join([program, 'runs', 'show', run.name, '--storage', str(base / 'runs')])}"
    )
    logger.info(
        f"with your own tiles: {shlex.quote(program)} ingest --images DIR --labels CSV --out mydata"
    )


def _workers(asked: int | None) -> int:
    """The number of workers that was asked for, or the one that memory has room for; refused before a tile is painted."""
    recipe = load_recipe("quickstart", {"num_workers": asked or WORKERS})
    fitting = workers_that_fit(recipe, len(synthetic.CLASSES))
    if asked or not fitting:
        check_memory(recipe, len(synthetic.CLASSES))
        return recipe.num_workers
    bound = available()
    if fitting < WORKERS and bound:
        logger.info(
            f"{fitting} worker instead of {WORKERS}: {bound.free / 1e9:.1f} GB are {bound.bound}"
        )
    return fitting


def compare(dataset: Dataset, run: str) -> dict[str, Any]:
    """F2 of the network (threshold 0.2) and of two answers without one, on the validation part of a run."""
    found = predictions.read(storage.join(run, "predictions.parquet"))
    assert found.target is not None
    train_rows, valid_rows = (dataset.part_rows("random", part) for part in ("train", "valid"))
    train_target, valid_target = dataset.targets[train_rows], dataset.targets[valid_rows]
    features = baselines.colour_features(
        images.decode(content) for content in read_images(dataset, range(dataset.rows))
    )
    scores = baselines.compare(
        (features[train_rows], train_target), (features[valid_rows], valid_target), dataset.classes
    )
    return scores | {"model": {"f2": metrics.f2(found.logits, found.target)}}


def _summary(scores: dict[str, Any], tiles: int) -> list[str]:
    network = scores["model"]["f2"]
    constant, logistic = scores["constant"], scores["logistic"]
    return [
        f"F2 on {tiles} synthetic validation tiles (no Planet result):",
        f"  {network:.4f}  the network, threshold 0.2",
        f"  {logistic['f2']:.4f}  logistic regression on colour mean and deviation ({network - logistic['f2']:+.4f})",
        f"  {constant['f2']:.4f}  always {' '.join(constant['labels'])} ({network - constant['f2']:+.4f})",
    ]
