"""How long an ingest and an epoch take, as a straight line in the number of tiles: measured at two sizes, and compared at two.

    python tests/scale/model.py [A B C D]     sizes in tiles; A and B make the line, C and D are predicted

It starts the commands as a user does. Tiles are generated; an epoch is ResNet-18 at 64 px on all CPUs, validation included.
"""

import csv
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from raytrain.bench.files import write_labelled
from raytrain.bench.generate import write_tiles

SIZES = (1000, 4000, 8000, 12000)
PROGRAM = [sys.executable, "-c", "from raytrain.cli.main import main; main()"]
EPOCHS = 3


def run(*words):
    """Runs a raytrain command. Returns its seconds."""
    began = time.perf_counter()
    done = subprocess.run([*PROGRAM, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return time.perf_counter() - began


def measured(folder, original, tiles):
    """Seconds of an ingest, and of an epoch, the fastest of those after the first."""
    images, labels = write_labelled(original, tiles, folder / "tiles")
    out = folder / "dataset"
    ingest = run("ingest", "--images", images, "--labels", labels, "--out", out)
    recipe = ["--config", "smoke", "--model.arch", "resnet18", "--model.weights", "none"]
    stage = ["--set", "stages.1.size=64", "--set", f"stages.1.epochs={EPOCHS}", "--stages", "1"]
    where = ["--dataset", out, "--storage", folder / "runs", "--name", "run"]
    run("train", *recipe, *stage, "--train.batch-size", "64", *where)
    with (folder / "runs" / "run" / "history.csv").open() as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    return ingest, min(seconds[1:])


def line(sizes, seconds):
    """Seconds without a tile, and for each tile."""
    slope = (seconds[1] - seconds[0]) / (sizes[1] - sizes[0])
    return seconds[0] - slope * sizes[0], slope


def main(sizes):
    with tempfile.TemporaryDirectory() as temporary:
        original = write_tiles(f"{temporary}/original", 600)
        found = []
        for tiles in sizes:
            found.append(measured(Path(temporary) / str(tiles), original, tiles))
            print(
                f"{tiles:,} tiles: ingest {found[-1][0]:.1f} s, epoch {found[-1][1]:.1f} s",
                flush=True,
            )
    for number, what in enumerate(("ingest", "epoch")):
        start, each = line(sizes, [seconds[number] for seconds in found[:2]])
        print(f"{what}: {start:.1f} s + {each * 1000:.2f} ms a tile")
        for tiles, seconds in zip(sizes[2:], found[2:], strict=True):
            expected = start + each * tiles
            error = expected / seconds[number] - 1
            print(
                f"  {tiles:,} tiles: expected {expected:.1f} s, measured {seconds[number]:.1f} s ({error:+.0%})"
            )


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or SIZES)
