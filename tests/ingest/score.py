"""Rate and memory of ingest on as many tiles as the competition has, against a plain pool running the same gate:

    RAYTRAIN_REAL_DATA=DIR python tests/ingest/score.py --out DIR [--tiles 40479] [--pairs 3]
    RAYTRAIN_REAL_DATA=DIR python tests/ingest/score.py --out DIR --against OTHER [--pairs 3]

Real tiles are repeated under new names (hard links). Pool and ingest alternate; of both the start is left out: of the pool by
a first round of work, of ingest by subtracting the time of an ingest of 128 tiles, two shards, in the same run. Then once four times as many tiles.
Memory is PSS of this process and all of Ray's, sampled twice a second, above that of the idle cluster. Five minutes on two
cores and 4 GB of disk; nothing else may run beside it.

`--against OTHER` compares with another checkout of raytrain instead: both ingest the same files in turn, each time in a process
and a Ray of its own.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import psutil
import ray

import raytrain
from raytrain import storage
from raytrain.data import images
from raytrain.data.sources import DividedTiles, images_in
from raytrain.distributed.environment import QUIET
from raytrain.distributed.ingest import ingest

sys.path.append(str(Path(__file__).parents[1]))
from test_real import REAL


def gate(path: str) -> int:
    """What ingest does to a file, without keeping it."""
    return images.inspect(storage.read_bytes(path), path).width


def linked(out: Path, tiles: int) -> tuple[DividedTiles, list[str]]:
    """So many tiles under new names in `out`, labelled and divided, and their paths."""
    source = REAL / "planet"
    tags = pd.read_csv(source / "train_v2.csv", index_col=0)["tags"]
    files = sorted((source / "train-jpg").iterdir())
    out.mkdir(parents=True)
    originals = [Path(shutil.copy(file, out.parent / f"original-{file.name}")) for file in files]
    labels = {}
    for number in range(tiles):
        name = f"tile_{number}"
        os.link(originals[number % len(files)], out / f"{name}.jpg")
        labels[name] = tags[files[number % len(files)].stem]
    for original in originals:
        original.unlink()
    pd.DataFrame({"image_name": labels.keys(), "tags": labels.values()}).to_csv(
        f"{out}.csv", index=False
    )
    return divided(out), [str(out / f"{name}.jpg") for name in labels]


def divided(folder: Path) -> DividedTiles:
    """The tiles of a folder that `linked` made."""
    return images_in(str(folder)).label_from_file(f"{folder}.csv").split()


class Memory(threading.Thread):
    """Samples PSS of this process and its descendants, and the use of the object store, until `stop`."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.stopped = threading.Event()
        self.pss: list[int] = []
        self.store: list[float] = []

    def run(self) -> None:
        while not self.stopped.wait(0.5):
            self.pss.append(pss())
            total, free = ray.cluster_resources(), ray.available_resources()
            self.store.append(total["object_store_memory"] - free.get("object_store_memory", 0))

    def stop(self) -> tuple[int, float]:
        """The largest PSS and object store use, bytes."""
        self.stopped.set()
        self.join()
        return max(self.pss), max(self.store)


def pss() -> int:
    """Bytes, shared pages counted in parts, of this process and its descendants."""
    total = 0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue  # it has ended
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def timed_ingest(divided: DividedTiles, out: Path) -> float:
    """Seconds of an ingest; the dataset is removed."""
    began = time.monotonic()
    ingest(divided, str(out))
    seconds = time.monotonic() - began
    shutil.rmtree(out)
    return seconds


def timed_pool(paths: list[str]) -> float:
    """Seconds of a pool of two processes for the gate of all files, from the moment that both work."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(gate, paths[:400], chunksize=10)
        began = time.monotonic()
        list(pool.imap_unordered(gate, paths, chunksize=64))
        return time.monotonic() - began


def seconds_of_checkout(checkout: Path, out: Path) -> float:
    """Seconds of an ingest by the raytrain in a folder, in a process of its own; its start is left out."""
    command = [sys.executable, __file__, "--out", str(out), "--once"]
    env = os.environ | {"PYTHONPATH": str(checkout)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert Path(found["raytrain"]).is_relative_to(checkout.resolve()), (
        f"it was {found['raytrain']} that ran"
    )
    return float(found["seconds"])


def ingest_once(out: Path) -> None:
    """Prints the seconds of an ingest of the tiles that are there, without its start, and which raytrain it was."""
    ray.init(address="local", num_cpus=2, log_to_driver=False)
    start = statistics.median(timed_ingest(divided(out / "few"), out / "dataset") for _ in range(3))
    seconds = timed_ingest(divided(out / "once"), out / "dataset") - start
    ray.shutdown()
    print(json.dumps({"seconds": seconds, "raytrain": str(Path(raytrain.__file__).resolve())}))


def compare(out: Path, other: Path, tiles: int, pairs: int) -> None:
    """Prints the rate of this checkout and of another one, in turn, and their ratio."""
    here = Path(__file__).resolve().parents[2]
    linked(out / "few", 128)
    linked(out / "once", tiles)
    ratios = []
    for pair in range(pairs):
        sides = (other, here) if pair % 2 == 0 else (here, other)
        seconds = {side: seconds_of_checkout(side, out) for side in sides}
        ratios.append(seconds[other] / seconds[here])
        print(
            f"other {tiles / seconds[other]:.0f} tiles/s, here {tiles / seconds[here]:.0f} tiles/s, ratio {ratios[-1]:.3f}"
        )
    print(
        f"here / other, median: {statistics.median(ratios):.3f} (lowest {min(ratios):.3f}, highest {max(ratios):.3f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="a folder that is made and removed")
    parser.add_argument("--tiles", type=int, default=40479)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--against", type=Path, help="another checkout of raytrain to compare with")
    parser.add_argument(
        "--once", action="store_true", help=argparse.SUPPRESS
    )  # what --against starts
    args = parser.parse_args()
    if args.once:
        return ingest_once(args.out)
    if args.against:
        compare(args.out, args.against.resolve(), args.tiles, args.pairs)
        return shutil.rmtree(args.out)
    few, _ = linked(args.out / "few", 128)
    once, paths = linked(args.out / "once", args.tiles)
    ray.init(address="local", num_cpus=2, log_to_driver=False)
    start = statistics.median(timed_ingest(few, args.out / "dataset") for _ in range(3))
    print(f"an ingest of 128 tiles: {start:.1f} s, taken as the start")
    ratios = []
    for _ in range(args.pairs):
        pool, ours = timed_pool(paths), timed_ingest(once, args.out / "dataset") - start
        ratios.append(pool / ours)
        print(
            f"pool {len(paths) / pool:.0f} tiles/s, ingest {len(paths) / ours:.0f} tiles/s, ratio {ratios[-1]:.3f}"
        )
    print(
        f"ratio, median: {statistics.median(ratios):.3f} (lowest {min(ratios):.3f}, highest {max(ratios):.3f})"
    )
    four, _ = linked(args.out / "four", 4 * args.tiles)
    idle, watched = pss(), []
    for name, divided in (("1x", once), ("4x", four)):
        memory = Memory()
        memory.start()
        ours = timed_ingest(divided, args.out / "dataset") - start
        peak, store = memory.stop()
        watched.append(ours)  # sampling takes its share: the two are compared with each other
        print(
            f"{name}: {ours:.1f} s, {ours / watched[0]:.2f} of 1x; PSS {(peak - idle) / 2**30:.2f} GB above "
            f"the idle cluster, object store {store / 2**30:.2f} GB"
        )
    ray.shutdown()
    shutil.rmtree(args.out)


if __name__ == "__main__":
    os.environ.update(QUIET)
    main()
