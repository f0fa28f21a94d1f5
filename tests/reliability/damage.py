"""R7 and R21: a bit that flipped, a tile or a label that changed, a shard that went: found by what is run before use."""

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow.parquet as pq
import torch
import writers
from figures import Case, Checks, Figure, Outcome
from group import run_alone
from sentences import flaw_of
from workshop import dataset, recipe

from raytrain.checkpoints import reading, writing
from raytrain.data import dataset as ds
from raytrain.data import row_labels
from raytrain.data.download import download
from raytrain.errors import DataError
from raytrain.tiles import cache

FLIPS, QUICK_FLIPS = 200, 20
Found = Callable[[str], str]


@contextmanager
def flipped(path: Path, chance: random.Random) -> Iterator[str]:
    """One bit of a file is another one for a while; gives where."""
    good = path.read_bytes()
    at, bit = chance.randrange(len(good)), chance.randrange(8)
    bad = bytearray(good)
    bad[at] ^= 1 << bit
    path.write_bytes(bad)
    yield f"bit {bit} of byte {at} in {path.name}"
    path.write_bytes(good)


def flips(kind: str, quick: bool, folder: Path) -> Outcome:
    """Flips in the files of a kind; `find` says what is wrong where one was not found."""
    checks, chance = Checks(), random.Random(f"{kind} {quick}")
    files, find = KINDS[kind](folder)
    for _ in range(QUICK_FLIPS if quick else FLIPS - QUICK_FLIPS):
        # By their sizes: each bit of all files is as likely as any other.
        file = chance.choices(files, [path.stat().st_size for path in files])[0]
        with flipped(file, chance) as where:
            wrong = find(file.name)
            checks.add(not wrong, f"{kind}, {where}: {wrong}")
    return checks.outcome()


def _checkpoint(folder: Path) -> tuple[list[Path], Found]:
    """The newest checkpoint is passed over, with a sentence, and the one before is taken."""
    model = torch.nn.Linear(8, 8)
    meta = {"stage": 1, "classes": ["a", "b"], "arch": "resnet18", "normalize": "imagenet"}
    for epoch, name in ((1, "stage-1-64"), (2, "last")):
        state = {"optimizer": torch.optim.AdamW(model.parameters()).state_dict()}
        writing.save(str(folder / name), model, meta | {"epoch": epoch}, state, model)

    def find(name: str) -> str:
        found, skipped = reading.find_latest(str(folder))
        return (
            ""
            if found is not None and found.position == (1, 1, 0) and len(skipped) == 1
            else f"{found}, {skipped}"
        )

    return sorted((folder / "last").iterdir()), find


def _made(folder: Path) -> ds.Dataset:
    writers.painted(folder)
    writers.ingest(folder)
    return ds.open_dataset(str(folder / "out"))


def _opened(path: str, directory: Path) -> cache.Store:
    """What a training process reads before its first step."""
    data = ds.open_dataset(path)
    data.part_rows("random", "train")
    return cache.open_store(data, writers.SIDE, directory=directory)


def _shard(folder: Path) -> tuple[list[Path], Found]:
    data = _made(folder)

    def find(name: str) -> str:
        shutil.rmtree(folder / "cache", ignore_errors=True)
        try:
            _opened(data.path, folder / "cache")
        except DataError as error:
            return flaw_of(error) or (
                "" if name in error.what else f"{name} is not named: {error.what}"
            )
        return "not found"

    return [*map(Path, data.shards), *Path(data.path).glob("splits/*")], find


def _cached(folder: Path) -> tuple[list[Path], Found]:
    """Damaged pixels are decoded again; a flip in what the cache knows of itself may cost that too."""
    data = _made(folder)
    store = _opened(data.path, folder / "cache")
    wanted, root = np.array(store.pixels), store.directory

    def find(name: str) -> str:
        again = _opened(data.path, folder / "cache")
        if not np.array_equal(again.pixels, wanted):
            return "other pixels"
        return "" if again.decoded else "not noticed"

    return [root / "tiles.u8", *root.glob("shard-*.json")], find


def _archive(folder: Path) -> tuple[list[Path], Found]:
    """Archives whose size and sha256 a first download has recorded, and whose files are gone."""
    kinds = ("tar", "tar.7z")
    for kind in kinds:
        (folder / kind).mkdir()
        writers.writer(f"unpacking {kind}", folder).begin(folder / kind)
        writers.writer(f"unpacking {kind}", folder).work(folder / kind)
        shutil.rmtree(folder / kind / "planet" / "train-jpg")

    def find(name: str) -> str:
        kind = name.removeprefix("all.")
        try:
            download(str(folder / kind / "planet"), str(folder / kind / name))
        except DataError as error:
            shutil.rmtree(folder / kind / "planet" / "train-jpg", ignore_errors=True)
            return flaw_of(error)
        return "not found"

    return [folder / kind / f"all.{kind}" for kind in kinds], find


KINDS = {"checkpoint": _checkpoint, "shard": _shard, "cached tiles": _cached, "archive": _archive}


# What somebody did to a dataset after it was written, with all checksums of Parquet and of pictures right.


def _rewritten(shard: Path, change: Callable[[dict], None]) -> None:
    rows = pq.read_table(shard).to_pylist()
    change(rows[0])
    shard.write_bytes(
        ds.shard_bytes(
            [(*list(row.values())[:-1], np.array(row["target"], np.uint8)) for row in rows]
        )
    )


def _other_tile(shard: Path) -> None:
    other = pq.read_table(shard).to_pylist()[1]
    _rewritten(shard, lambda row: row.update(image=other["image"], crc32=other["crc32"]))


def _other_label(shard: Path) -> None:
    _rewritten(shard, lambda row: row.update(target=[1 - row["target"][0], *row["target"][1:]]))


def _other_labels_file(shard: Path) -> None:
    file = shard.parents[1] / row_labels.FILE
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


CHANGES = {"a tile": _other_tile, "a label": _other_label, "a shard": Path.unlink}
CHANGES["labels.parquet"] = _other_labels_file


def changed(what: str, tiles: str, folder: Path) -> Outcome:
    """Training of a dataset that has changed since it was written; tiles decoded anew, or cached before the change."""
    # A cache of its own: other cases have cached the same tiles.
    with patch.dict(os.environ, RAYTRAIN_CACHE=str(folder / "cache")):
        return _changed(what, tiles, folder)


def _changed(what: str, tiles: str, folder: Path) -> Outcome:
    checks, path = Checks(), dataset(folder / "data", 64)
    if tiles == "cached before":
        cache.open_store(ds.open_dataset(path), 64)
    shard = Path(ds.open_dataset(path).shards[1])
    CHANGES[what](shard)
    settings = recipe(path, (32, 64), epochs=1).model_copy(
        update={"tiles": "stream" if tiles == "streamed" else "cache"}
    )
    try:
        run_alone(settings, folder / "run")
        checks.add(False, f"{what} changed, tiles {tiles}: trained all the same")
    except DataError as error:
        named = row_labels.FILE if what == row_labels.FILE else shard.name
        checks.add(
            named in error.what,
            f"{what} changed, tiles {tiles}: the shard is not named in {error.what}",
        )
        checks.add(not flaw_of(error), flaw_of(error))
    checks.add(not list(folder.glob("run/checkpoints/*")), "a checkpoint was written")
    return checks.outcome()


def _refused(outcomes: list[Outcome]) -> str:
    return f"{sum(o.passed == o.of for o in outcomes)}/{len(outcomes)}"


# A tile that changes after it was cached changes nothing: the cache holds the one that dataset.json names. Nor does a
# label in a shard: labels.parquet holds it. `data check` finds both.
TRIED = [
    (what, tiles)
    for what in ("a tile", "a label", "a shard")
    for tiles in ("decoded anew", "cached before", "streamed")
]
TRIED.remove(("a tile", "cached before"))
TRIED.remove(("a label", "cached before"))
TRIED.append(("labels.parquet", "cached before"))

FIGURES = [
    Figure(
        "R7",
        "bits flipped in checkpoint, shard, cached tiles, archive, and found",
        f"{FLIPS} of {FLIPS} in each",
        [
            Case(f"{which} flips in {kind}", partial(flips, kind, quick), quick)
            for kind in KINDS
            for which, quick in (("some", True), ("other", False))
        ],
    ),
    Figure(
        "R21",
        "a tile or label changed when its shard is decoded, a shard or labels.parquet at a start: refused by name",
        "all",
        [
            Case(
                f"changed {what}, tiles {tiles}",
                partial(changed, what, tiles),
                tiles == "cached before",
            )
            for what, tiles in TRIED
        ],
        _refused,
    ),
]
