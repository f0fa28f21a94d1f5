"""What `raytrain bench` measures of Ray: ingest, predict, and the way from a command to its first optimiser step."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import ray
import torch

from raytrain.bench import growth
from raytrain.bench.figures import Figure
from raytrain.bench.files import write_labelled
from raytrain.bench.generate import workplace
from raytrain.checkpoints import writing
from raytrain.config import Recipe
from raytrain.data.dataset import Dataset
from raytrain.data.sources import DividedTiles, images_in
from raytrain.distributed import gpus
from raytrain.distributed.cluster import cpus, session
from raytrain.distributed.ingest import ingest
from raytrain.distributed.predict import predict, processes
from raytrain.distributed.train import train
from raytrain.log import heard
from raytrain.models import networks
from raytrain.models.precision import agreed_precision
from raytrain.tiles.cache import stored_size
from raytrain.training import transforms

# One with the other parts of the bench: what they train and ingest is not printed.
logger = logging.getLogger("raytrain.bench.ray")


TILES = "tiles/s"
INGESTED, START_TILES = 8192, 128
WORKERS = 2
# Until a process is given up, and until one that was asked to end is made to.
PATIENCE_S, POLITE_S = 300.0, 30.0
# Moments of `raytrain train`, by the line that it says then.
MOMENTS = (
    ("ray", "Ray runs, all is checked", r"starting \d+ CPU workers"),
    ("network", "workers run, network built", r"new run, from "),
    ("tiles", "tiles opened", r"tiles: (?!rank )"),
    ("step", "first step done", r"stage \d+ epoch 1: first step of "),
)
# The empty trainer imports no more than it needs, and takes the same resources as ours.
EMPTY_MOMENTS = (
    ("import", "imports", "imported"),
    ("ray", "Ray runs", "ray runs"),
    ("begin", "workers run", "begin"),
)
EMPTY = """
import logging, sys, time
import ray, ray.train, ray.train.torch
print("imported", flush=True)
ray.init(address="local", log_to_driver=False, logging_level=logging.ERROR)
print("ray runs", flush=True)

def empty(config):
    return time.time()

cpus = max(0.01, min(1.0, (ray.cluster_resources()["CPU"] - 1) / WORKERS))
result = ray.train.torch.TorchTrainer(
    empty,
    scaling_config=ray.train.ScalingConfig(num_workers=WORKERS, resources_per_worker={"CPU": cpus}),
    run_config=ray.train.RunConfig(storage_path=sys.argv[1], logging_config=ray.train.LoggingConfig("ERROR")),
).fit()
print("begin", result.return_value, flush=True)
ray.shutdown()
"""


def ingest_rate(dataset: Dataset, rounds: int, count: int = INGESTED) -> list[Figure]:
    """Tiles per second of an ingest of `count` files, without its start, which is an ingest of two shards.

    The files are the dataset's own pictures, repeated under new names.
    """
    rates, starts = [], []
    with tempfile.TemporaryDirectory(prefix="raytrain-bench-") as directory, session():
        many = _divided(dataset, count, Path(directory) / "many")
        few = _divided(dataset, min(START_TILES, count // 2), Path(directory) / "few")
        for number in range(rounds):
            starts.append(_ingest_seconds(few, f"{directory}/few-{number}"))
            whole = _ingest_seconds(many, f"{directory}/many-{number}")
            rates.append((len(many.table) - len(few.table)) / max(whole - starts[-1], 1e-9))
            logger.info(f"ingest: round {number + 1} of {rounds}: {rates[-1]:.0f} tiles/s")
        about = f"{count} files, {cpus()} CPUs"
    return [
        Figure("ingest", "ingest, without its start", TILES, tuple(rates), about),
        Figure(
            "ingest.start", f"ingest of {len(few.table)} tiles, Ray runs", "s", tuple(starts), about
        ),
    ]


def _divided(dataset: Dataset, count: int, directory: Path) -> DividedTiles:
    folder, labels = write_labelled(dataset, count, directory)
    return images_in(str(folder)).label_from_file(str(labels)).split()


def _ingest_seconds(tiles: DividedTiles, out: str) -> float:
    began = time.monotonic()
    ingest(tiles, out)
    return time.monotonic() - began


def driver_growth(tiles: int = growth.TILES, epochs: int = growth.EPOCHS) -> list[Figure]:
    """Memory of the driver by epoch of a run of one worker, and the most of Ray's object store that it takes."""
    resident, stored = list[int](), list[float]()

    def note(line: str) -> None:
        if re.match(r"stage 1/1 .* epoch ", line):
            resident.append(growth.resident_bytes())
            stored.append(_object_store_used() / 1e6)
            if len(resident) % 25 == 0:
                logger.info(f"  driver: {len(resident)} of {epochs} epochs")

    with (
        workplace(None, tiles, growth.SIDE) as dataset,
        tempfile.TemporaryDirectory(prefix="raytrain-bench-") as runs,
    ):
        settings = {"dataset": dataset.path, "storage": runs, "use_gpu": False}
        with session():
            logger.info(f"growth with epochs: the driver of {epochs} epochs in Ray")
            with heard(note):
                train(growth.recipe_of(epochs).model_copy(update=settings), name="growth")
    about = f"{growth.ABOUT}, {epochs} epochs"
    return [
        *growth.memory_figures(resident, "driver"),
        Figure("growth.store", "object store of Ray, at most", "MB", (max(stored),), about),
    ]


def _object_store_used() -> float:
    whole, free = (
        found.get("object_store_memory", 0.0)
        for found in (ray.cluster_resources(), ray.available_resources())
    )
    return float(whole - free)


def predict_rate(recipe: Recipe, dataset: Dataset, rounds: int) -> list[Figure]:
    """Tiles per second of predicting the whole dataset, and its start: the seconds until every process gave a first block.

    The network is the recipe's with random weights, its tiles of the size of the last selected stage.
    """
    rates, starts = [], []
    with tempfile.TemporaryDirectory(prefix="raytrain-bench-") as directory, session():
        path = _checkpoint(recipe, dataset, f"{directory}/checkpoint")
        count = processes(gpus.usable(None), len(dataset.shards))
        for number in range(rounds):
            lines = _Lines()
            out = f"{directory}/{number}.parquet"
            with heard(lines.add):
                predict(path, out, dataset_path=dataset.path, part="all")
            start, rate = _after_first_blocks(lines, count)
            starts.append(start)
            rates.append(rate)
            logger.info(
                f"predict: round {number + 1} of {rounds}: {rates[-1]:.0f} tiles/s after {starts[-1]:.1f} s"
            )
    size = recipe.stages[recipe.selected[1] - 1].size
    about = f"{recipe.model.arch} {size} px, {dataset.rows} tiles in {len(dataset.shards)} shards, {count} processes"
    return [
        Figure("predict", "predict, without its start", TILES, tuple(rates), about),
        Figure(
            "predict.start",
            "predict: first block of every process, Ray runs",
            "s",
            tuple(starts),
            about,
        ),
    ]


@dataclass
class _Lines:
    """Lines with the seconds since this was made."""

    began: float = field(default_factory=time.monotonic)
    said: list[tuple[float, str]] = field(default_factory=list)

    def add(self, line: str) -> None:
        self.said.append((time.monotonic() - self.began, line))


def _after_first_blocks(lines: _Lines, processes: int) -> tuple[float, float]:
    """Seconds until every process has given a block, and the rate from then on (of all, where there are no more)."""
    found = [
        (at, int(match[1]))
        for at, line in lines.said
        if (match := re.match(r"predict: (\d+) of", line))
    ]
    (start, before), (end, total) = found[min(processes, len(found)) - 1], found[-1]
    return start, (total - before) / (end - start) if end > start else total / end


def _checkpoint(recipe: Recipe, dataset: Dataset, path: str) -> str:
    """A checkpoint of random weights with what `predict` asks of one."""
    stage = recipe.stages[recipe.selected[1] - 1]
    model = networks.build(recipe.model.arch, len(dataset.classes), recipe.model.dropout)
    size = stored_size(dataset.tile_size, [stage.size for stage in recipe.stages])
    meta = {
        "task": "multi-label",
        "arch": recipe.model.arch,
        "classes": dataset.classes,
        "split": recipe.data.split,
        "normalize": recipe.data.normalize,
        "size": stage.size,
        "stage": recipe.selected[1],
        "epoch": stage.epochs,
        "precision": agreed_precision(recipe.train.precision, torch.device("cpu"), 1),
        "resize": {"stored_size": size, "rule": transforms.RESIZE_RULE},
    }
    writing.save(path, model, meta)
    return path


def start_times(recipe: Recipe, dataset: Dataset, rounds: int) -> list[Figure]:
    """From `raytrain train` with two CPU workers to its first optimiser step, in parts, against an empty TorchTrainer.

    Both are processes of their own, in turn; a first round, after which all tiles are decoded, does not count. Nothing
    else may run in Ray meanwhile.
    """
    number = min(WORKERS, cpus())
    with tempfile.TemporaryDirectory(prefix="raytrain-bench-") as directory:
        settings = {"dataset": dataset.path, "num_workers": number, "use_gpu": False}
        path = Path(directory) / "recipe.yaml"
        path.write_text(recipe.model_copy(update=settings).to_yaml())
        imports: list[float] = []
        ours: list[list[float]] = []
        theirs: list[list[float]] = []
        for n in range(rounds + 1):
            imports.append(_seconds_of("import raytrain.distributed.train"))
            ours.append(_moments(_train_command(path, f"{directory}/{n}"), MOMENTS))
            theirs.append(_moments(_empty_command(number, f"{directory}/empty"), EMPTY_MOMENTS))
            counts = f"round {n} of {rounds}" if n else "a first round, which does not count"
            logger.info(
                f"start: {counts}: first step after {ours[-1][-1]:.1f} s, empty trainer after {theirs[-1][-1]:.1f} s"
            )
    stage = recipe.stages[recipe.selected[0] - 1]
    about = f"{number} CPU workers, {recipe.model.arch} {stage.size} px batch {recipe.batch_size(stage)}"
    return start_figures(imports[1:], ours[1:], theirs[1:], about)


def start_figures(
    imports: Sequence[float],
    ours: Sequence[Sequence[float]],
    theirs: Sequence[Sequence[float]],
    about: str,
) -> list[Figure]:
    """Of moments in seconds since the command, a list per round: the parts between them, the ends and their difference."""
    whole, empty = [round_[-1] for round_ in ours], [round_[-1] for round_ in theirs]
    excess = tuple(a - b for a, b in zip(whole, empty, strict=True))
    return [
        Figure("start", "command to first step", "s", tuple(whole), about),
        Figure(
            "start.empty", "empty TorchTrainer: command to its function", "s", tuple(empty), about
        ),
        Figure("start.excess", "the difference", "s", excess, about),
        Figure(
            "start.import", "  imports, alone", "s", tuple(imports), "in the first part of the next"
        ),
        *_parts("start", MOMENTS, ours, about),
        *_parts("start.empty", EMPTY_MOMENTS, theirs, "empty TorchTrainer"),
    ]


def _parts(
    name: str,
    moments: Sequence[tuple[str, str, str]],
    rounds: Sequence[Sequence[float]],
    about: str,
) -> list[Figure]:
    differences = [[b - a for a, b in pairwise([0.0, *found])] for found in rounds]
    return [
        Figure(
            f"{name}.{key}",
            f"  until {label}",
            "s",
            tuple(parts[i] for parts in differences),
            about,
        )
        for i, (key, label, _) in enumerate(moments)
    ]


def _train_command(recipe: Path, storage: str) -> list[str]:
    program = [sys.executable, "-c", "from raytrain.cli.main import main; main()"]
    return [*program, "train", "--config", str(recipe), "--storage", storage, "--name", "bench"]


def _empty_command(workers: int, storage: str) -> list[str]:
    return [sys.executable, "-c", EMPTY.replace("WORKERS", str(workers)), storage]


def _seconds_of(code: str) -> float:
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-c", code], check=True, env=_environment(), capture_output=True
    )
    return time.monotonic() - began


def _environment() -> dict[str, str]:
    """This process's, in which the command line has set Ray's variables; with a local Ray of each process's own."""
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


def _moments(command: list[str], moments: Sequence[tuple[str, str, str]]) -> list[float]:
    """Seconds from the start of a command until it says each of the lines; then it is ended.

    A line that ends with a time of the clock (seconds since 1970) happened then: it was in another process.
    """
    began, clock, found, said = time.monotonic(), time.time(), list[float](), list[str]()
    with _started(command) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if not re.match(moments[len(found)][2], line):
                continue
            at = re.search(r" (\d{9,}\.\d+)$", line.rstrip())
            found.append(float(at[1]) - clock if at else time.monotonic() - began)
            if len(found) == len(moments):
                return found
    raise RuntimeError(
        f"no line {moments[len(found)][2]} from {' '.join(command)}:\n{''.join(said[-20:])}"
    )


@contextmanager
def _started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A process in a group of its own, which is ended at the end, or after some minutes: politely, then by force."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=_environment(),
        start_new_session=True,
    )
    watch = threading.Timer(PATIENCE_S, os.killpg, (process.pid, signal.SIGKILL))
    watch.start()
    try:
        yield process
    finally:
        watch.cancel()
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=POLITE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
