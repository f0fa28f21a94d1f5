"""How long an ingest and an epoch take, as a straight line in the number of tiles: measured at two sizes, compared at two.

    python tests/scale/model.py ingest [A B C D]     sizes in tiles; A and B make the line, C and D are predicted
    python tests/scale/model.py epoch [A B C D]

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

SIZES = {"ingest": (10_000, 40_000, 20_000, 80_000), "epoch": (1000, 4000, 8000, 12_000)}
PROGRAM = [sys.executable, "-c", "from raytrain.cli.main import main; main()"]
EPOCHS = 3


def run(*words):
    """Runs a raytrain command. Returns its seconds."""
    began = time.perf_counter()
    done = subprocess.run([*PROGRAM, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return time.perf_counter() - began


def ingested(folder, original, tiles):
    """(directory of a new dataset, seconds of its ingest)."""
    images, labels = write_labelled(original, tiles, folder / "tiles")
    out = folder / "dataset"
    return out, run("ingest", "--images", images, "--labels", labels, "--out", out)


def ingest(folder, original, tiles):
    """Seconds of an ingest."""
    _, seconds = ingested(folder, original, tiles)
    return seconds


def epoch(folder, original, tiles):
    """Seconds of an epoch, the fastest of those after the first."""
    dataset, _ = ingested(folder, original, tiles)
    recipe = ["--config", "smoke", "--model.arch", "resnet18", "--model.weights", "none"]
    stage = ["--set", "stages.1.size=64", "--set", f"stages.1.epochs={EPOCHS}", "--stages", "1"]
    where = ["--dataset", dataset, "--storage", folder / "runs", "--name", "run"]
    run("train", *recipe, *stage, "--train.batch-size", "64", *where)
    with (folder / "runs" / "run" / "history.csv").open() as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    return min(seconds[1:])


def line(sizes, seconds):
    """Seconds without a tile, and for each tile."""
    slope = (seconds[1] - seconds[0]) / (sizes[1] - sizes[0])
    return seconds[0] - slope * sizes[0], slope


def main(what, sizes):
    measure = {"ingest": ingest, "epoch": epoch}[what]
    with tempfile.TemporaryDirectory() as temporary:
        original = write_tiles(f"{temporary}/original", 600)
        # The first command of all reads the packages from the disk.
        ingest(Path(temporary) / "first", original, 600)
        seconds = []
        for tiles in sizes:
            seconds.append(measure(Path(temporary) / str(tiles), original, tiles))
            print(f"{tiles:,} tiles: {what} {seconds[-1]:.1f} s", flush=True)
    start, each = line(sizes, seconds)
    print(f"{what}: {start:.1f} s + {each * 1000:.2f} ms a tile")
    for tiles, found in zip(sizes[2:], seconds[2:], strict=True):
        expected = start + each * tiles
        error = expected / found - 1
        print(
            f"  {tiles:,} tiles: expected {expected:.1f} s, measured {found:.1f} s ({error:+.0%})"
        )


if __name__ == "__main__":
    main(sys.argv[1], [int(word) for word in sys.argv[2:]] or SIZES[sys.argv[1]])
