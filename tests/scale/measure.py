"""Figures for docs/scale.md: what a million tiles, a thousand shards and a thousand runs cost one process.

    python tests/scale/measure.py labels [ROWS]      a label file on the driver of an ingest
    python tests/scale/measure.py pictures [ROWS]    the same, joined with pictures and cut into shards
    python tests/scale/measure.py opening [SHARDS]   opening a dataset, at 30 ms a request
    python tests/scale/measure.py rank [ROWS]        the memory that labels take in one rank
    python tests/scale/measure.py runs [RUNS]        raytrain runs list, at 30 ms a request
    python tests/scale/measure.py duplicates [TILES] near duplicates, beside the comparison of all pairs

Each makes its own input in a temporary folder.
"""

import contextlib
import io
import json
import multiprocessing
import sys
import tempfile
import threading
import time
from pathlib import Path
from zlib import crc32

import numpy as np
import pandas as pd
import pyarrow as pa
from slow_store import BUCKET, mounted

from raytrain import summaries
from raytrain.data import dataset as ds
from raytrain.data import duplicates, row_labels, sources
from raytrain.data.labels import read_labels
from raytrain.data.splits import as_split, random_parts
from raytrain.distributed.ingest import _blocks as blocks_of
from raytrain.tiles.rows import with_mapped_rows

MB = 10**6
DELAY_S = 0.03
CLASSES = [f"label-{number:02}" for number in range(17)]
ROWS_OF_SHARD = 1024


class Memory:
    """The anonymous memory of this process while something runs, looked at every 20 ms."""

    def __enter__(self):
        self.before = self.most = _anonymous()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._look)
        self.thread.start()
        self.began = time.perf_counter()
        return self

    def __exit__(self, *raised):
        self.seconds = time.perf_counter() - self.began
        self.ended.set()
        self.thread.join()
        self.kept = _anonymous() - self.before

    def _look(self):
        while not self.ended.wait(0.02):
            self.most = max(self.most, _anonymous())

    def __str__(self):
        peak = (self.most - self.before) / MB
        return f"{self.seconds:.1f} s, at most {peak:.0f} MB, kept {self.kept / MB:.0f} MB"


def _anonymous():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no RssAnon")


def label_file(folder, rows):
    """Writes a label file as Planet's. Returns its path."""
    path = folder / "labels.csv"
    generator = np.random.default_rng(0)
    with path.open("w") as file:
        file.write("image_name,tags\n")
        for row in range(rows):
            few = generator.choice(17, 1 + row % 4, replace=False)
            file.write(f"train_{row},{' '.join(CLASSES[number] for number in sorted(few))}\n")
    return str(path)


def labels(folder, rows=1_000_000):
    """A label file alone."""
    path = label_file(folder, rows)
    with Memory() as memory:
        found = read_labels(path)
        targets = found.targets
    print(f"labels of {rows:,} rows: {memory} ({targets.shape[1]} classes)")


def pictures(folder, rows=1_000_000):
    """All that an ingest does before Ray starts, but for listing the folder of the pictures."""
    path = label_file(folder, rows)
    names = [f"train_{row}" for row in range(rows)]
    table = pd.DataFrame(
        {
            "image_name": names,
            "file": [f"{name}.jpg" for name in names],
            "path": [f"/shared/planet/train-jpg/{name}.jpg" for name in names],
            "stamp": ["15000 1700000000000000000"] * rows,
        }
    )
    found = sources.Images(table, {"images": "a folder"}, "", ())
    with Memory() as memory:
        divided = found.label_from_file(path).split()
        shards = blocks_of(divided.usable(), divided.rule.seed, None)
    print(f"labels and pictures of {rows:,} rows: {memory} ({len(shards):,} shards)")


def written(folder, rows, shards=None):
    """A dataset of so many rows, whose shards are empty files of one byte: nobody reads them here."""
    (folder / "shards").mkdir(parents=True)
    (folder / "splits").mkdir()
    names = [f"train_{row}" for row in range(rows)]
    targets = (np.random.default_rng(0).random((rows, 17)) < 0.15).astype(np.uint8)
    shards = shards or -(-rows // ROWS_OF_SHARD)
    counts = [len(part) for part in np.array_split(np.arange(rows), shards)]
    entries = []
    for number, count in enumerate(counts):
        file = f"part-{number:05}.parquet"
        (folder / "shards" / file).write_bytes(b"x")
        entries.append({"file": file, "rows": count, "sha256": f"{crc32(file.encode()):064x}"})
    column = row_labels.target_rows(targets, np.ones(rows, np.bool_))
    content = row_labels.content(pa.array(names), column, counts, [1] * len(counts))
    (folder / row_labels.FILE).write_bytes(content)
    split = as_split(names, random_parts(rows))
    parts = ds.split_bytes(split)
    (folder / "splits" / "random.parquet").write_bytes(parts)
    manifest = {
        "schema_version": 1,
        "classes": CLASSES,
        "tile_size": 256,
        "shards": entries,
        "splits": [ds.split_entry("random", parts, split)],
        "source": {"images": "made up"},
        row_labels.HASH_KEY: ds.hashlib.sha256(content).hexdigest(),
    }
    (folder / "dataset.json").write_text(json.dumps(manifest))
    return len(content)


def opening(folder, shards=1000):
    """What every command does first, on a store that is far away."""
    rows = shards * 64
    written(folder / BUCKET / "dataset", rows, shards)
    store = mounted(folder, DELAY_S)
    began = time.perf_counter()
    found = ds.open_dataset("s3://bucket/dataset")
    train = found.part_rows("random", "train")
    assert len(train) and found.targets.any()
    seconds = time.perf_counter() - began
    print(
        f"opening {shards:,} shards at {DELAY_S * 1000:.0f} ms a request: {seconds:.2f} s, "
        f"{store.requests} requests"
    )


def rank(folder, rows=1_000_000):
    """The first rank of all, which writes what the others map and holds the names of validation, and another rank."""
    size = written(folder / "dataset", rows)
    path = str(folder / "dataset")
    # In processes of their own: memory that was freed is used again.
    for number in range(2):
        process = multiprocessing.get_context("spawn").Process(
            target=_open_as_rank, args=(path, folder / "cache", number)
        )
        process.start()
        process.join()
        assert process.exitcode == 0
    print(f"labels.parquet of {rows:,} rows: {size / MB:.1f} MB")


def _open_as_rank(path, cache, number):
    with Memory() as memory:
        found = with_mapped_rows(ds.open_dataset(path), "random", cache)
        train = found.part_rows("random", "train")
        valid = found.part_rows("random", "valid")
        batch = found.targets[train[:4096]]
        names = ds.names_alone(found, valid) if number == 0 else None
    print(
        f"rank {number}: {memory} ({len(train):,} + {len(valid):,} rows, batch {batch.shape}, {0 if names is None else len(names):,} names)"
    )


def run_list(folder, runs=1000):
    """`raytrain runs list` of many runs."""
    from raytrain.cli.main import run_command
    from raytrain.config import load_recipe

    recipe = load_recipe("smoke").to_yaml()
    for number in range(runs):
        run = folder / BUCKET / "runs" / f"run-{number:04}"
        run.mkdir(parents=True)
        (run / "config.yaml").write_text(recipe)
        row = {"stage": 1, "epoch": 1, "seconds": 60.0, "f2": 0.9, "f2_best": 0.9}
        summaries.write(str(run), [row])
    store = mounted(folder, DELAY_S)
    began = time.perf_counter()
    said = io.TextIOWrapper(io.BytesIO())
    with contextlib.redirect_stdout(said):
        assert run_command(["runs", "list", "--storage", "s3://bucket/runs"]) == 0
    seconds = time.perf_counter() - began
    said.seek(0)
    assert len(said.read().splitlines()) == runs
    print(
        f"runs list of {runs:,} runs at {DELAY_S * 1000:.0f} ms a request: {seconds:.2f} s, "
        f"{store.requests} requests"
    )


def all_pairs(prints):
    """Pairs by comparing every hash with every other, as before 30 November 2026."""
    hashes = np.ascontiguousarray(prints["dhash"])
    found = [np.zeros((0, 2), np.int64)]
    for start in range(0, len(prints), duplicates.BLOCK):
        block = hashes[start : start + duplicates.BLOCK]
        distance = np.bitwise_count(block[:, None] ^ hashes[start:][None])
        close = np.triu(distance <= duplicates.MAX_DISTANCE, 1)
        if not close.any():
            continue
        first = np.flatnonzero(close.any(1))
        second = np.flatnonzero(close.any(0))
        alike = duplicates._alike(prints[start + first], prints[start + second])
        alike &= close[np.ix_(first, second)]
        row, column = np.nonzero(alike)
        found.append(start + np.stack([first[row], second[column]], 1))
    return np.concatenate(found)


def near_duplicates(folder, tiles=400_000):
    """Fingerprints with the colours of Planet's tiles: means 76, 86, 79, deviations 24, 19, 17 (601 tiles)."""
    generator = np.random.default_rng(0)
    prints = np.zeros(tiles, duplicates.FINGERPRINT)
    # Colours of a tile are correlated: mostly it is brighter or darker as a whole.
    brightness = generator.normal(0, 1, (tiles, 1))
    own = generator.normal(0, 0.35, (tiles, 3))
    colours = np.array([76, 86, 79]) + np.array([24, 19, 17]) * (0.94 * brightness + own)
    prints["colour"] = np.clip(colours, 0, 255)
    prints["dhash"] = generator.integers(0, 2**64, tiles, dtype=np.uint64)
    pictures = generator.integers(0, 256, (1000, 32, 32), dtype=np.uint8)
    prints["grey"] = pictures[np.arange(tiles) % 1000]
    for row in range(0, tiles - 1, 100):
        prints[row + 1] = prints[row]
        prints["dhash"][row + 1] ^= np.uint64(0b1011 << (row % 50))
        prints["colour"][row + 1] += 1
    began = time.perf_counter()
    found = duplicates.near(prints)
    middle = time.perf_counter()
    expected = all_pairs(prints)
    ended = time.perf_counter()
    assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, expected.tolist()))
    grid, every = middle - began, ended - middle
    print(
        f"near duplicates of {tiles:,} tiles: {len(found):,} pairs in {grid:.1f} s, "
        f"by all pairs in {every:.1f} s, a ratio of {grid / every:.2f}"
    )


PARTS = {
    "labels": labels,
    "pictures": pictures,
    "opening": opening,
    "rank": rank,
    "runs": run_list,
    "duplicates": near_duplicates,
}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in PARTS:
        sys.exit(__doc__)
    numbers = [int(word) for word in sys.argv[2:]]
    with tempfile.TemporaryDirectory() as temporary:
        PARTS[sys.argv[1]](Path(temporary), *numbers)
