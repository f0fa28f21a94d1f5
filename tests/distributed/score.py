"""What a run under Ray loses to the same loop alone: `python tests/distributed/score.py --out SCRATCH [--only saves,epochs,busy]`.

saves    one stage of 150 epochs of about a second: with checkpoints / without any before the stage's end; at least 0.98
epochs   epochs 2 to 8 of a stage, as a user runs it / the same loop without Ray that writes no file; at least 0.95
busy     the same two beside one process that takes a core; at least 0.8

ResNet-18 at 64 px (saves: at 48 px, for epochs of a second), batch 64, one worker with a thread for each core, on the real
tiles under RAYTRAIN_REAL_DATA. A rate is training tiles by the time from the line of the first epoch to that of the last:
validation and files are in it. The sides take turns; a ratio is of the two sides of a round. The table goes to standard
output.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-c", "from raytrain.cli.main import main; main()"]
REAL = Path(os.environ.get("RAYTRAIN_REAL_DATA", ROOT.parent / "shared" / "data"))
RECIPE = """
model: {{arch: resnet18, weights: none, dropout: 0.5}}
train: {{batch_size: 64}}
stages:
  - {{size: {size}, epochs: {epochs}, freeze: false, lr: [0.001, 0.001]}}
"""
NEVER = "1e9"
CONTENTION = "other processes take the CPU"
PARTS = {
    "saves": (48, 150, 3, 0.98),
    "epochs": (64, 8, 10, 0.95),
    "busy": (64, 8, 5, 0.8),
}  # px, epochs, rounds, target


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, help="folder for the dataset and the runs")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, a,b")
    parser.add_argument(
        "--pairs", type=int, help="rounds; by default 3 of saves, 10 of epochs, 5 of busy"
    )
    parser.add_argument("--alone", nargs=2, metavar=("RECIPE", "DATASET"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        return alone(*arguments.alone)
    out = Path(arguments.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    surroundings(out)
    dataset = ingested(out)
    print(
        "| part | ratio: median (range) | target | rates of the two sides, tiles a second |\n|---|---|---|---|"
    )
    for part in arguments.only.split(","):
        print(measured(part, out, dataset, arguments.pairs), flush=True)
    print(f"\n{time.strftime('%Y-%m-%d')}, {os.cpu_count()} CPUs")
    return 0


def surroundings(out):
    """A home and a cache of its own, and Ray without tokens."""
    home = out / "home"
    home.mkdir(exist_ok=True)
    os.environ.update(HOME=str(home), RAYTRAIN_CACHE=str(home / "cache"), RAY_AUTH_MODE="disabled")
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), os.environ.get("PYTHONPATH", "")]
    ).rstrip(os.pathsep)


def ingested(out):
    """The dataset of the real tiles: 481 to train on, 120 to validate."""
    path = out / "planet"
    if not (path / "dataset.json").exists():
        tiles = REAL / "planet"
        command = [
            "ingest",
            "--images",
            tiles,
            "--subfolders",
            "--labels",
            tiles / "train_v2.csv",
            "--out",
            path,
        ]
        subprocess.run([*PROGRAM, *map(str, command)], check=True, stdout=subprocess.DEVNULL)
    return path


def measured(part, out, dataset, pairs):
    """A row of the table."""
    size, epochs, rounds, target = PARTS[part]
    rounds = pairs or rounds
    recipe = out / f"{part}.yaml"
    recipe.write_text(RECIPE.format(size=size, epochs=epochs))
    rates, ratios, said = ([], []), [], []
    for number in range(rounds):
        with beside(busy=part == "busy"):
            sides = [
                lambda: user(recipe, dataset, out, []),
                lambda: other(part, recipe, dataset, out),
            ]
            order = (0, 1) if number % 2 == 0 else (1, 0)
            found = {side: sides[side]() for side in order}
        for side in (0, 1):
            rates[side].append(found[side][0])
        said.append(found[0][1])
        ratios.append(rates[0][-1] / rates[1][-1])
        print(
            f"{part} {number + 1} of {rounds}: {rates[0][-1]:.0f} / {rates[1][-1]:.0f}",
            file=sys.stderr,
            flush=True,
        )
    both = " / ".join(f"{statistics.median(side):.0f}" for side in rates)
    line = f"; {CONTENTION!r} said in {sum(said)} of {rounds} runs" if part != "saves" else ""
    return f"| {part} | {spread(ratios)} | at least {target} | {both}{line} |"


def spread(found):
    return f"{statistics.median(found):.3f} ({min(found):.3f} to {max(found):.3f})"


@contextmanager
def beside(busy):
    """A process that takes a core, at the usual niceness."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()
            process.wait()


def user(recipe, dataset, out, flags):
    """(tiles a second, whether contention was said) of `raytrain train`."""
    name = f"run-{time.time_ns()}"
    command = [
        "train",
        "--config",
        recipe,
        "--dataset",
        dataset,
        "--storage",
        out / "runs",
        "--name",
        name,
        *flags,
    ]
    return timed([*PROGRAM, *map(str, command)])


def other(part, recipe, dataset, out):
    if part == "saves":
        return user(recipe, dataset, out, ["--train.save-every-s", NEVER])
    return timed(
        [sys.executable, __file__, "--out", str(out), "--alone", str(recipe), str(dataset)]
    )


def timed(command):
    """Runs a command that says a line for each epoch."""
    times, contention = [], False
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        text = []
        for line in process.stdout:
            text.append(line)
            contention |= CONTENTION in line
            if "  epoch " in line and " img/s" in line:
                times.append(time.monotonic())
    if process.returncode or len(times) < 2:
        raise RuntimeError(f"{command} ended with {process.returncode}: {''.join(text[-20:])}")
    return TRAINING_TILES * (len(times) - 1) / (times[-1] - times[0]), contention


TRAINING_TILES = 481


def alone(recipe, dataset):
    """The loop in this process, without Ray, and with nothing written."""
    from unittest.mock import patch

    from raytrain.checkpoints.history import History
    from raytrain.checkpoints.saver import Saver
    from raytrain.config import load_recipe
    from raytrain.data.dataset import open_dataset
    from raytrain.evaluation import predictions
    from raytrain.training.loop import fit
    from raytrain.training.services import Hooks
    from raytrain.worker import Worker

    def nothing(*some, **more):
        return None

    class Ended(Exception):
        pass

    settings = load_recipe(recipe, {"dataset": dataset})
    epochs = settings.stages[0].epochs

    def report(metrics):
        if metrics["epoch"] == epochs:
            raise Ended

    hooks = Hooks(report=report)
    worker = Worker(cpus=len(os.sched_getaffinity(0)))
    silent = [(Saver, "save"), (Saver, "keep_best"), (History, "write"), (predictions, "write")]
    with tempfile.TemporaryDirectory() as run:
        for owner, name in silent:
            patch.object(owner, name, nothing).start()
        try:
            fit(settings, open_dataset(settings.dataset), run, worker, hooks)
        except Ended:
            return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
