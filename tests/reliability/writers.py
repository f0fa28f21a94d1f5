"""Everything of the program that writes, as it works, and what must hold whenever it was disturbed."""

import contextlib
import hashlib
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import py7zr
import torch
from workshop import recipe

from raytrain import runs
from raytrain.checkpoints import reading, writing
from raytrain.checkpoints.history import (
    EpochRow,
    History,
    RankRow,
    StepRow,
    read_epochs,
    read_ranks,
    read_steps,
)
from raytrain.checkpoints.saver import Saver
from raytrain.data import synthetic
from raytrain.data.dataset import Dataset, add_splits, all_names, damages, open_dataset
from raytrain.data.download import download
from raytrain.data.sources import images_in
from raytrain.data.splits import as_split
from raytrain.distributed import ingest as ingesting
from raytrain.errors import DataError
from raytrain.runlock import held
from raytrain.tiles import cache

TILES, SIDE, ROWS = 12, 32, 4
CLASSES = ("clear", "cloudy", "primary")


class Invalid(Exception):
    """A state that no disturbance may leave behind."""


@dataclass(frozen=True)
class Writer:
    """A part of the program that writes.

    Attributes:
        name: of it.
        begin: makes the state before, in an empty folder.
        work: what is disturbed.
        state: "old" or "new", by what the program itself finds there; raises `Invalid`. It also proves that the same work,
            done again and not disturbed, comes to its end.
    """

    name: str
    begin: Callable[[Path], None]
    work: Callable[[Path], None]
    state: Callable[[Path], str]


def _require(good: bool, what: str) -> None:
    if not good:
        raise Invalid(what)


def _tree(folder: Path) -> dict[str, str]:
    """sha256 of every file."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


# Checkpoints: `best` and `last` over those of the epoch before, then one within the epoch, with thinning.

BEFORE = {"best": (1, 0), "last": (2, 0), "step-00000003": (2, 1), "step-00000004": (2, 2)}
AFTER = ({"best": (3, 0), "last": (3, 0)}, {"step-00000007": (3, 1)})


def snapshot(epochs: int, steps: int) -> writing.Snapshot:
    """A state whose weights tell its position."""
    model = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(model.weight, 10 * epochs + steps)
    meta = {
        "stage": 1,
        "epoch": epochs,
        "epoch_steps": steps,
        "step": 10 * epochs + steps,
        "classes": ["a", "b"],
    }
    return writing.snapshot(model, meta, {"optimizer": {"state": {}}}, model)


def _checkpoints(folder: Path) -> None:
    for name, position in BEFORE.items():
        writing.write(str(folder / "checkpoints" / name), snapshot(*position))


def _save(folder: Path) -> None:
    with contextlib.closing(Saver(str(folder / "checkpoints"), 0.0)) as saver:
        saver.claim()
        for entries in AFTER:
            saver.save([(name, snapshot(*position)) for name, position in entries.items()], 0.0)
            saver.wait()


def _latest(folder: Path) -> tuple[int, int]:
    found, _ = reading.find_latest(str(folder / "checkpoints"))
    _require(found is not None, "no checkpoint can be read")
    assert found is not None
    _require(
        found.weights()["weight"][0, 0].item() == 10 * found.position.epochs + found.position.steps,
        "other weights",
    )
    return found.position[1:]


def _checkpoint_state(folder: Path) -> str:
    latest = _latest(folder)
    _require(latest in ((2, 2), (3, 0), (3, 1)), f"the latest checkpoint is that of {latest}")
    bests = [
        path for name in ("best", "best.old") if (path := folder / "checkpoints" / name).exists()
    ]
    _require(
        any(_readable(path) for path in bests), "neither the old best nor the new one can be read"
    )
    _save(folder)
    _require(_latest(folder) == (3, 1), "the next save does not stand")
    left = {path.name for path in (folder / "checkpoints").iterdir()}
    _require(
        left == {"best", "last", "step-00000004", "step-00000007"}, f"left behind: {sorted(left)}"
    )
    return "new" if latest == (3, 1) else "old"


def _readable(path: Path) -> bool:
    with contextlib.suppress(reading.DamagedCheckpoint):
        return reading.read(str(path)) is not None
    return False


# The record of a run, and its directory with the lock.


def _row(epoch: int) -> tuple[EpochRow, list[StepRow], list[RankRow]]:
    scores = {"accuracy": 0.9, "f2": 0.8, "f2_best": 0.8}
    row = EpochRow(1, 64, epoch, 0.1, 0.5, 0.5, scores, 100.0, 1.0)
    steps = [StepRow(1, epoch, 2 * (epoch - 1) + i, [0.1], 0.9, 0.5) for i in range(2)]
    return row, steps, [RankRow(1, epoch, rank, "host", 2, 0.1) for rank in range(2)]


def _record(folder: Path) -> None:
    _write_row(History(str(folder)), 1)


def _next_row(folder: Path) -> None:
    _write_row(History(str(folder), (1, 1)), 2)


def _write_row(history: History, epoch: int) -> None:
    history.add(*_row(epoch))
    history.write(durable=True)


def _record_state(folder: Path) -> str:
    epochs, steps, ranks = (read(str(folder)) for read in (read_epochs, read_steps, read_ranks))
    _require(
        len(epochs) in (1, 2) and len(steps) in (2, 4),
        f"{len(epochs)} epochs and {len(steps)} steps",
    )
    _require(len(ranks) in (2, 4), f"{len(ranks)} rows of ranks")
    _next_row(folder)
    _require(
        len(read_epochs(str(folder))) == 2 and len(read_steps(str(folder))) == 4,
        "the next epoch is not recorded",
    )
    return "new" if len(epochs) == 2 and len(steps) == 4 else "old"


def _create(dataset: Dataset, folder: Path) -> None:
    with held(str(folder / "runs" / "a")):
        runs.create(
            recipe(dataset.path).model_copy(update={"storage": str(folder / "runs")}), "a", dataset
        )


def _run_state(dataset: Dataset, folder: Path) -> str:
    found = {run.name: run for run in runs.every(str(folder / "runs"))}
    if "a" in found:
        _require(found["a"].recipe.dataset == dataset.path, "another recipe")
        with held(found["a"].path):
            return "new" if (folder / "runs" / "a" / "env.json").exists() else "old"
    _create(dataset, folder)
    return "old"


# Datasets: ingest as it is, but for Ray's way of handing out the shards, and a second split.


def painted(folder: Path) -> None:
    """Writes the pictures and their labels."""
    (folder / "tiles").mkdir()
    for i in range(TILES):
        (folder / "tiles" / f"t_{i}.jpg").write_bytes(synthetic.encoded(0, i))
    rows = "".join(f"t_{i},{CLASSES[i % 3]} {CLASSES[0]}\n" for i in range(TILES))
    (folder / "labels.csv").write_text(f"image_name,tags\n{rows}")


def ingest(folder: Path) -> None:
    """`raytrain ingest` of `painted` tiles in this process."""
    ingest_from(str(folder / "tiles"), str(folder / "labels.csv"), str(folder / "out"))


def ingest_from(images: str, labels: str, out: str) -> None:
    """`raytrain ingest` in this process."""
    tiles = images_in(images).label_from_file(labels).split(by="random", valid=0.25)
    gated, rows = ingesting._gated, ingesting.rows_per_shard
    ingesting._gated = lambda blocks, path, bands: (
        ingesting.gate_shard(block, path, bands) for block in blocks
    )
    ingesting.rows_per_shard = lambda count: ROWS
    try:
        ingesting.ingest(tiles, out)
    finally:
        ingesting._gated, ingesting.rows_per_shard = gated, rows


def _dataset_state(folder: Path) -> str:
    before = "old"
    with contextlib.suppress(DataError):
        found = open_dataset(str(folder / "out"))
        before = "new"
        _require(
            found.rows == TILES and not damages(found),
            f"it opens with {found.rows} rows and {damages(found)}",
        )
    ingest(folder)
    found = open_dataset(str(folder / "out"))
    _require(found.rows == TILES and not damages(found), "the ingest that went on is not whole")
    left = sorted(path.name for path in folder.iterdir())
    _require(left == ["labels.csv", "out", "tiles"], f"left behind: {left}")
    names = {path.name for path in (folder / "out").iterdir()}
    _require(
        names == {"dataset.json", "labels.parquet", "quarantine.jsonl", "shards", "splits"},
        f"the dataset holds {sorted(names)}",
    )
    return before


def _copied(dataset: Dataset, folder: Path) -> None:
    shutil.copytree(dataset.path, folder / "data")


def _divide(folder: Path) -> None:
    dataset = open_dataset(str(folder / "data"))
    parts = np.array(["valid" if i % 2 else "train" for i in range(dataset.rows)], object)
    add_splits(dataset, {"second": as_split(all_names(dataset), parts)})


def _split_state(folder: Path) -> str:
    found = open_dataset(str(folder / "data"))
    _require(not damages(found), f"{damages(found)}")
    before = "new" if len(found.manifest["splits"]) == 2 else "old"
    _divide(folder)
    found = open_dataset(str(folder / "data"))
    _require(
        len(found.split("second")) == found.rows and not damages(found),
        "the split that was added is not whole",
    )
    return before


# The tile cache.


def _fill(dataset: Dataset, folder: Path) -> None:
    cache.open_store(dataset, SIDE, directory=folder / "cache")


def _cache_state(dataset: Dataset, wanted: np.ndarray, folder: Path) -> str:
    store = cache.open_store(dataset, SIDE, directory=folder / "cache")
    _require(np.array_equal(store.pixels, wanted), "tiles of the cache are other ones")
    _require(
        cache.open_store(dataset, SIDE, directory=folder / "cache").decoded == 0,
        "the next opening decodes again",
    )
    return "new" if store.decoded == 0 else "old"


# Archives.


def _archive(kind: str, folder: Path) -> None:
    (source := folder / "source" / "train-jpg").mkdir(parents=True)
    for i in range(3):
        (source / f"train_{i}.jpg").write_bytes(synthetic.encoded(0, i))
    labels = "".join(f"train_{i},clear primary\n" for i in range(3))
    (folder / "source" / "train_v2.csv").write_text(f"image_name,tags\n{labels}")
    with tarfile.open(folder / "all.tar", "w") as archive:
        for part in ("train-jpg", "train_v2.csv"):
            archive.add(folder / "source" / part, part)
    if kind == "tar.7z":
        with py7zr.SevenZipFile(folder / "all.tar.7z", "w") as packed:
            packed.write(folder / "all.tar", "all.tar")
        (folder / "all.tar").unlink()


def _unpack(kind: str, folder: Path) -> None:
    download(str(folder / "planet"), str(folder / f"all.{kind}"))


def _extraction_state(kind: str, folder: Path) -> str:
    wanted, out = _tree(folder / "source"), folder / "planet"
    there = [part for part in ("train-jpg", "train_v2.csv") if (out / part).exists()]
    found = (
        {name: sha for name, sha in _tree(out).items() if name in wanted} if out.exists() else {}
    )
    complete = {name: sha for name, sha in wanted.items() if name.split("/")[0] in there}
    _require(found == complete, f"{sorted(found)} under the final names")
    _unpack(kind, folder)
    record = json.loads((out / "download.json").read_text())["archives"][f"all.{kind}"]
    _require(
        record["unpacked"]
        and {k: v for k, v in _tree(out).items() if k != "download.json"} == wanted,
        "another tree",
    )
    return "new" if len(there) == 2 else "old"


def writer(name: str, folder: Path) -> Writer:
    """A writer by its name; the folder gets what its work needs."""
    if name.startswith("unpacking "):
        kind = name.split()[1]
        return Writer(
            name, partial(_archive, kind), partial(_unpack, kind), partial(_extraction_state, kind)
        )
    if name in ALONE:
        return Writer(name, *ALONE[name])
    (shared := folder / "shared").mkdir()
    painted(shared)
    ingest(shared)
    dataset = open_dataset(str(shared / "out"))
    if name == "run":
        return Writer(name, _nothing, partial(_create, dataset), partial(_run_state, dataset))
    if name == "split":
        return Writer(name, partial(_copied, dataset), _divide, _split_state)
    wanted = np.array(cache.open_store(dataset, SIDE, directory=folder / "wanted").pixels)
    return Writer(name, _nothing, partial(_fill, dataset), partial(_cache_state, dataset, wanted))


def _nothing(folder: Path) -> None:
    pass


ALONE = {
    "checkpoints": (_checkpoints, _save, _checkpoint_state),
    "history": (_record, _next_row, _record_state),
    "ingest": (painted, ingest, _dataset_state),
}
NAMES = (*ALONE, "run", "split", "tile cache", "unpacking tar", "unpacking tar.7z")
