"""What `raytrain bench` measures with Ray.

Ingest, predict, memory of the driver, and the time from a command to its first optimiser step.
"""

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
from pathlib import Path

import ray
import torch

from raytrain import registry
from raytrain.bench import growth
from raytrain.bench.figures import Figure
from raytrain.bench.files import write_labelled
from raytrain.bench.generate import workplace
from raytrain.checkpoints import writing
from raytrain.config import Recipe
from raytrain.data.dataset import Dataset
from raytrain.data.sources import DividedTiles, images_in
from raytrain.distributed import gpus
from raytrain.distributed.ingest import ingest
from raytrain.distributed.predict import predict, processes
from raytrain.distributed.session import cpus, session
from raytrain.distributed.train import train
from raytrain.log import heard
from raytrain.models.precision import agreed_precision
from raytrain.tiles.cache import kept_size
from raytrain.training import transforms

# A logger among those of the other parts of the bench: `raytrain bench` prints these messages, and
# not those of the training and ingest that it measures.
logger = logging.getLogger("raytrain.bench.ray")


# A moment of a command: key of its figure, label, and the regular expression of the line that it
# prints then.
Moment = tuple[str, str, str]

TILES = "tiles/s"
# Files in the ingest that is measured, and in the short one whose time is taken for the start.
INGESTED = 8192
START_TILES = 128
WORKERS = 2
# Seconds until a process is killed, and seconds in which a process that gets SIGINT may end.
PATIENCE_S = 300.0
POLITE_S = 30.0
# Epochs between two lines about the progress.
EPOCHS_PER_LINE = 25
# Lines of a command that appear in the message if it fails.
LAST_LINES = 20
# Moments of `raytrain train`, in their order.
MOMENTS = (
    ("ray", "Ray runs, all is checked", r"starting \d+ CPU worker"),
    ("network", "workers run, network built", r"new run, from "),
    ("tiles", "tiles opened", r"tiles: (?!rank )"),
    ("step", "first step done", r"stage \d+ epoch 1: first step of "),
)
EMPTY_MOMENTS = (
    ("import", "imports", "imported"),
    ("ray", "Ray runs", "ray runs"),
    ("begin", "workers run", "begin"),
)
# The empty trainer imports no more than it needs, and asks for the same resources as ours.
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
    run_config=ray.train.RunConfig(
        storage_path=sys.argv[1], logging_config=ray.train.LoggingConfig("ERROR")
    ),
).fit()
print("begin", result.return_value, flush=True)
ray.shutdown()
"""


def ingest_rate(dataset: Dataset, rounds: int, count: int = INGESTED) -> list[Figure]:
    """Measures the tiles per second of an ingest, without its start.

    The start is the time of an ingest of a few tiles. It is subtracted.

    Args:
        dataset: its pictures are the files to ingest, repeated under new names.
        rounds: how often to measure.
        count: number of files.
    """
    rates = []
    starts = []
    with tempfile.TemporaryDirectory(prefix="raytrain-bench-") as directory, session():
        many = _divided(dataset, count, Path(directory) / "many")
        few = _divided(dataset, min(START_TILES, count // 2), Path(directory) / "few")
        more_tiles = len(many.table) - len(few.table)
        for number in range(rounds):
            start_s = _ingest_seconds(few, f"{directory}/few-{number}")
            whole_s = _ingest_seconds(many, f"{directory}/many-{number}")
            # On a busy machine the few may take longer than the many.
            rate = more_tiles / max(whole_s - start_s, 1e-9)
            starts.append(start_s)
            rates.append(rate)
            logger.info(f"ingest: round {number + 1} of {rounds}: {rate:.0f} tiles/s")
        about = f"{count} files, {cpus()} CPUs"
    start_label = f"ingest of {len(few.table)} tiles, Ray runs"
    return [
        Figure("ingest", "ingest, without its start", TILES, tuple(rates), about),
        Figure("ingest.start", start_label, "s", tuple(starts), about),
    ]


def _divided(dataset: Dataset, count: int, directory: Path) -> DividedTiles:
    """Writes `count` pictures of the dataset with their labels as files, ready to ingest."""
    folder, labels = write_labelled(dataset, count, directory)
    return images_in(str(folder)).label_from_file(str(labels)).split()


def _ingest_seconds(tiles: DividedTiles, out: str) -> float:
    """Seconds that an ingest takes."""
    began = time.monotonic()
    ingest(tiles, out)
    return time.monotonic() - began


def driver_growth(tiles: int = growth.TILES, epochs: int = growth.EPOCHS) -> list[Figure]:
    """Measures the memory of the driver after each epoch of a run with one worker.

    Also measures the largest part of Ray's object store that the run uses.

    Args:
        tiles: number of generated tiles.
        epochs: of the run.
    """
    resident: list[int] = []  # bytes
    stored: list[float] = []  # MB

    def note(line: str) -> None:
        if not re.match(r"stage 1/1 .* epoch ", line):
            return
        resident.append(growth.resident_bytes())
        stored.append(_object_store_used() / 1e6)
        if len(resident) % EPOCHS_PER_LINE == 0:
            logger.info(f"  driver: {len(resident)} of {epochs} epochs")

    with (
        workplace(None, tiles, growth.SIDE) as dataset,
        tempfile.TemporaryDirectory(prefix="raytrain-bench-") as runs,
    ):
        settings = {"dataset": dataset.path, "storage": runs, "use_gpu": False}
        recipe = growth.recipe_of(epochs).model_copy(update=settings)
        with session():
            logger.info(f"growth with epochs: the driver of {epochs} epochs in Ray")
            with heard(note):
                train(recipe, name="growth")
    about = f"{growth.ABOUT}, {epochs} epochs"
    return [
        *growth.memory_figures(resident, "driver"),
        Figure("growth.store", "object store of Ray, at most", "MB", (max(stored),), about),
    ]


def _object_store_used() -> float:
    """Bytes of Ray's object store that are in use."""
    whole = ray.cluster_resources().get("object_store_memory", 0.0)
    free = ray.available_resources().get("object_store_memory", 0.0)
    return float(whole - free)


def predict_rate(recipe: Recipe, dataset: Dataset, rounds: int) -> list[Figure]:
    """Measures the tiles per second of predicting the whole dataset, and the start of predict.

    The start ends when every process has returned its first block.

    Args:
        recipe: its network gets random weights. The tile size is that of the last selected stage.
        dataset: the tiles to predict.
        rounds: how often to measure.
    """
    rates = []
    starts = []
    with tempfile.TemporaryDirectory(prefix="raytrain-bench-") as directory, session():
        path = _checkpoint(recipe, dataset, f"{directory}/checkpoint")
        count = processes(gpus.usable(None), len(dataset.shards))
        for number in range(rounds):
            lines = _Lines()
            with heard(lines.add):
                predict(
                    path, f"{directory}/{number}.parquet", dataset_path=dataset.path, part="all"
                )
            start_s, rate = _after_first_blocks(lines, count)
            starts.append(start_s)
            rates.append(rate)
            logger.info(
                f"predict: round {number + 1} of {rounds}: {rate:.0f} tiles/s after {start_s:.1f} s"
            )
    size = recipe.stage(recipe.selected[1]).size
    about = (
        f"{recipe.model.arch} {size} px, {dataset.rows} tiles in {len(dataset.shards)} shards, "
        f"{count} processes"
    )
    start_label = "predict: first block of every process, Ray runs"
    return [
        Figure("predict", "predict, without its start", TILES, tuple(rates), about),
        Figure("predict.start", start_label, "s", tuple(starts), about),
    ]


@dataclass
class _Lines:
    """Lines with the time at which each one came, in seconds since this object was made."""

    began: float = field(default_factory=time.monotonic)
    timed: list[tuple[float, str]] = field(default_factory=list)

    def add(self, line: str) -> None:
        self.timed.append((time.monotonic() - self.began, line))


def _after_first_blocks(lines: _Lines, processes: int) -> tuple[float, float]:
    """Reads start and rate of predict off its lines.

    Args:
        lines: of predict, one for each block.
        processes: number of processes that predict.

    Returns:
        The seconds until every process has returned a block, and the tiles per second from then on.
        Where no more blocks follow, the rate is that of all tiles.
    """
    found: list[tuple[float, int]] = []  # (seconds, tiles done)
    for seconds, line in lines.timed:
        match = re.match(r"predict: (\d+) of", line)
        if match:
            found.append((seconds, int(match[1])))
    # All processes begin with a block at the same time, so the first ones are of one process each.
    start, before = found[min(processes, len(found)) - 1]
    end, total = found[-1]
    if end > start:
        return start, (total - before) / (end - start)
    return start, total / end


def _checkpoint(recipe: Recipe, dataset: Dataset, path: str) -> str:
    """Writes a checkpoint of random weights with everything that `predict` reads.

    Returns:
        Its path.
    """
    number = recipe.selected[1]
    stage = recipe.stage(number)
    model = registry.training(dataset.task).network(recipe.model, len(dataset.classes))
    size = kept_size(recipe, dataset)
    meta = {
        "task": dataset.task,
        "arch": recipe.model.arch,
        "classes": dataset.classes,
        "split": recipe.data.split,
        "normalize": recipe.data.normalize,
        "size": stage.size,
        "stage": number,
        "epoch": stage.epochs,
        "precision": agreed_precision(recipe.train.precision, torch.device("cpu"), 1),
        "resize": {"stored_size": size, "rule": transforms.RESIZE_RULE},
    }
    writing.save(path, model, meta)
    return path


def start_times(recipe: Recipe, dataset: Dataset, rounds: int) -> list[Figure]:
    """Measures the time from `raytrain train` with two CPU workers to its first optimiser step.

    An empty TorchTrainer is measured for comparison. Both run as processes of their own, in turn.
    A first round does not count: it decodes all tiles. Nothing else may use Ray at the same time.

    Args:
        recipe: to train.
        dataset: to train on.
        rounds: how often to measure.
    """
    number = min(WORKERS, cpus())
    imports: list[float] = []
    ours: list[list[float]] = []
    theirs: list[list[float]] = []
    with tempfile.TemporaryDirectory(prefix="raytrain-bench-") as directory:
        settings = {"dataset": dataset.path, "num_workers": number, "use_gpu": False}
        path = Path(directory) / "recipe.yaml"
        path.write_text(recipe.model_copy(update=settings).to_yaml())
        for n in range(rounds + 1):
            imports.append(_seconds_of("import raytrain.distributed.train"))
            ours.append(_moments(_train_command(path, f"{directory}/{n}"), MOMENTS))
            theirs.append(_moments(_empty_command(number, f"{directory}/empty"), EMPTY_MOMENTS))
            counts = f"round {n} of {rounds}" if n else "a first round, which does not count"
            logger.info(
                f"start: {counts}: first step after {ours[-1][-1]:.1f} s, "
                f"empty trainer after {theirs[-1][-1]:.1f} s"
            )
    stage = recipe.stage(recipe.selected[0])
    about = (
        f"{number} CPU workers, {recipe.model.arch} {stage.size} px "
        f"batch {recipe.batch_size(stage)}"
    )
    return start_figures(imports[1:], ours[1:], theirs[1:], about)


def start_figures(
    imports: Sequence[float],
    ours: Sequence[Sequence[float]],
    theirs: Sequence[Sequence[float]],
    about: str,
) -> list[Figure]:
    """Makes figures of the ends, of their difference, and of the parts between the moments.

    Args:
        imports: seconds of the imports alone, a value for each round.
        ours: seconds from the command to each of `MOMENTS`, a list for each round.
        theirs: the same of the empty trainer and `EMPTY_MOMENTS`.
        about: what was measured on.
    """
    whole = tuple(moments[-1] for moments in ours)
    empty = tuple(moments[-1] for moments in theirs)
    excess = tuple(a - b for a, b in zip(whole, empty, strict=True))
    empty_label = "empty TorchTrainer: command to its function"
    return [
        Figure("start", "command to first step", "s", whole, about),
        Figure("start.empty", empty_label, "s", empty, about),
        Figure("start.excess", "the difference", "s", excess, about),
        Figure(
            "start.import", "  imports, alone", "s", tuple(imports), "in the first part of the next"
        ),
        *_parts("start", MOMENTS, ours, about),
        *_parts("start.empty", EMPTY_MOMENTS, theirs, "empty TorchTrainer"),
    ]


def _parts(
    name: str, moments: Sequence[Moment], rounds: Sequence[Sequence[float]], about: str
) -> list[Figure]:
    """A figure for the part before each moment, which begins at the moment before it.

    Args:
        name: the names of the figures begin with it.
        moments: of a command.
        rounds: seconds from the command to each moment, a list for each round.
        about: what was measured on.
    """
    figures = []
    for i, (key, label, _) in enumerate(moments):
        seconds = []
        for found in rounds:
            # The first part begins with the command.
            began = found[i - 1] if i else 0.0
            seconds.append(found[i] - began)
        figures.append(Figure(f"{name}.{key}", f"  until {label}", "s", tuple(seconds), about))
    return figures


def _train_command(recipe: Path, storage: str) -> list[str]:
    """The command line of `raytrain train`, without relying on an installed script."""
    program = [sys.executable, "-c", "from raytrain.cli.main import main; main()"]
    return [*program, "train", "--config", str(recipe), "--storage", storage, "--name", "bench"]


def _empty_command(workers: int, storage: str) -> list[str]:
    """The command line of the empty trainer."""
    return [sys.executable, "-c", EMPTY.replace("WORKERS", str(workers)), storage]


def _seconds_of(code: str) -> float:
    """Seconds that a new process takes to run some Python code."""
    command = [sys.executable, "-c", code]
    began = time.monotonic()
    subprocess.run(command, check=True, env=_environment(), capture_output=True)
    return time.monotonic() - began


def _environment() -> dict[str, str]:
    """The environment of a measured process, which starts a local Ray of its own.

    It is that of this process, in which the command line has set variables of Ray.
    """
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


def _moments(command: list[str], moments: Sequence[Moment]) -> list[float]:
    """Starts a command, waits for the line of each moment in turn, and ends it.

    Returns:
        For each moment the seconds since the start of the command. A line that ends with a time of
        the clock (seconds since 1970) comes from another process: then that time counts.

    Raises:
        RuntimeError: the command ended before the last moment.
    """
    began = time.monotonic()
    began_clock = time.time()
    found: list[float] = []
    lines: list[str] = []
    with _started(command) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            _, _, expected = moments[len(found)]
            if not re.match(expected, line):
                continue
            clock = re.search(r" (\d{9,}\.\d+)$", line.rstrip())
            if clock:
                found.append(float(clock[1]) - began_clock)
            else:
                found.append(time.monotonic() - began)
            if len(found) == len(moments):
                return found
    _, _, missing = moments[len(found)]
    last_lines = "".join(lines[-LAST_LINES:])
    raise RuntimeError(f"no line {missing} from {' '.join(command)}:\n{last_lines}")


@contextmanager
def _started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Starts a command in a process group of its own.

    At the end it gets SIGINT, and is killed if that does not end it. It is also killed after
    `PATIENCE_S` seconds.
    """
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=_environment(),
        start_new_session=True,
    )
    # The whole group is killed: Ray's processes would outlive the command.
    watch = threading.Timer(PATIENCE_S, os.killpg, (process.pid, signal.SIGKILL))
    watch.start()
    try:
        yield process
    finally:
        watch.cancel()
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            # Not `wait`: a process whose output nobody reads could not end.
            process.communicate(timeout=POLITE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
