"""Ingest: makes a dataset directory from labelled pictures with Ray Data.

The rows of the index table are shuffled once and cut into shards. A Ray Data task checks each file
of a shard (the gate) and writes those that pass to a Parquet file. Splits and manifest follow.

- A task writes its shard itself. So the sha256 in the manifest is that of the written bytes, memory
  is bounded by one shard, and a task that Ray repeats writes the same file again.
- Everything is written to `<out>.partial`, which is renamed at the end.
- The same input gives the same bytes on any machine.
- Until the end, `progress/` holds a record of each finished shard. An ingest that was killed
  continues after the shards whose record still fits their input files.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from raytrain import storage
from raytrain.data import dataset as ds
from raytrain.data import images, pixels, row_labels, splits
from raytrain.data.bands import BandRule, KeptBands, as_picture
from raytrain.data.contents import contents, trouble
from raytrain.data.images import BadImage
from raytrain.data.inspection import weather_rules
from raytrain.data.listing import left_out_lines
from raytrain.data.sources import DividedTiles
from raytrain.data.tile_format import TileFormat
from raytrain.distributed.nodes import Places, check_machines, spread
from raytrain.distributed.session import (
    actors,
    blocks_of,
    cpus,
    quiet_dataset,
    session,
    to_go,
)
from raytrain.distributed.waiting import with_machine
from raytrain.errors import DataError, StorageError, masked

logger = logging.getLogger(__name__)


# A record of a shard or of a file that cannot be used, as it is written to JSON.
Record = dict[str, Any]
# A row of a shard, in the order of `ds.SHARD_SCHEMA`: image_name, image, width, height, crc32,
# target (uint8 (K,), or None where it is unknown).
ShardRow = tuple[str, bytes, int, int, int, np.ndarray[Any, Any] | None]
# What becomes of the bands of TIFF files: 8-bit RGB by a rule, or tiles of a format; without either
# the gate refuses other files than pictures.
Bands = BandRule | TileFormat | None
# Files that a broken disk or store may refuse before the search for a usable one ends.
FIRST_FILES = 64
# Seconds between two lines about the progress.
PROGRESS_SECONDS = 1.0
# By the kind of most bad files: what many of them mean, and what to do about it.
_TIFF_FLAGS = (
    "give --bands 1,2,3,4 to keep the bands of TIFF files as they are, or --bands 3,2,1 --scale "
    "0,10000 to make RGB of them, or store the tiles with 8 bits"
)
ADVICE = {
    "contradicting-labels": (
        "rows of one tile have different labels, as in a table with one row for each label",
        "write all labels of a tile in one cell, or give --join-rows",
    ),
    "ambiguous-name": (
        "several folders hold a picture of that name, so the label could go to the wrong one",
        "write the names as folder/name",
    ),
    "missing": (
        "the labels or the list name pictures that are not there",
        "check --images, and how tiles are named",
    ),
    "unsafe-name": (
        "such names may lead out of the folder, or cannot be printed",
        "correct the names",
    ),
    "16-bit": ("values above 255 would become white, or lose their lower bits", _TIFF_FLAGS),
    "bands": ("it is not clear which bands are red, green and blue", _TIFF_FLAGS),
    "several-labels": (
        "a tile of this task has exactly one label",
        "correct the labels, or choose another --task",
    ),
    "no-labels": (
        "a tile without labels teaches nothing, unless it is meant so",
        "label the tiles, or give --allow-empty",
    ),
}
# The advice for all other kinds.
WRONG_FOLDER = (
    "so many bad files usually mean a wrong folder or a broken download",
    "correct the files",
)
# Bytes of picture files in a shard. A process holds about four times as much.
SHARD_BYTES = 2**26
# Tasks for each CPU, so that no CPU is idle for long at the end, and the most shards of a task.
TASKS_OF_CPU = 8
MOST_SHARDS_OF_TASK = 16
# What the manifest takes from the record of a shard, as far as it is there.
ENTRY_KEYS = ("file", "rows", "sha256", "labels", "unknown")
# What an ingest into an object store that was stopped may have left there.
LEFT_IN_STORE = {
    "shards",
    "progress",
    "splits",
    "quarantine.jsonl",
    "unlisted.txt",
    row_labels.FILE,
}


@dataclass(frozen=True)
class Ingested:
    """The result of `ingest`.

    Attributes:
        dataset: the dataset, opened.
        already_there: whether it was there before, made from the same input.
        counts: what the gate counted, as in the manifest.
        pids: ids of the processes that wrote shards; empty where the dataset was there before.
    """

    dataset: ds.Dataset
    already_there: bool
    counts: dict[str, int]
    pids: list[int]


def ingest(
    tiles: DividedTiles,
    out: str,
    *,
    max_bad: int | None = None,
    bands: BandRule | KeptBands | None = None,
    wait_s: float = 0.0,
) -> Ingested:
    """Makes a dataset directory, or opens it if it is already there.

    An ingest of the same input that was killed is continued.

    Args:
        tiles: labelled pictures with their division into parts, from `data.sources`.
        out: dataset directory or URI to make.
        max_bad: how many files may be unusable. With more of them nothing is written. The default
            is 10 or 0.1 % of the rows, whichever is larger.
        bands: what becomes of the bands of TIFF files, unless their pixels are 8-bit grey or RGB.
            Kept bands have the type of the first usable file, in the order of the labels.
        wait_s: seconds to wait for a machine of the cluster; 0 for none.

    Returns:
        The dataset and how it was made.

    Raises:
        DataError: too many bad files, no training or no validation tiles, or `out` holds something
            else.
        StorageError: `out` cannot be written, or another process is writing it.
    """
    out = storage.absolute(out)
    source = dict(tiles.source)
    if bands is not None:
        source["bands"] = asdict(bands)
    # Through JSON, as the manifest was: it has lists where there are tuples here.
    existing = _existing_dataset(out, json.loads(json.dumps(source)))
    if existing is not None:
        return Ingested(existing, True, existing.manifest["gate"], [])
    budget = max_bad
    if budget is None:
        budget = max(10, tiles.rows // 1000)
    _check_budget(tiles.unusable(), budget, out, tiles.rows)
    ds.check_parts(tiles.rule.by, tiles.usable()["part"].value_counts().to_dict())
    _log_input(tiles)
    chosen: Bands
    if isinstance(bands, KeptBands):
        chosen = _format_of_first(tiles.usable(), bands)
    else:
        chosen = bands
    with with_machine(wait_s):
        written = _build(out, tiles, source, budget, chosen)
    # From an earlier ingest that had too many bad files.
    storage.remove(_quarantine_path(out))
    dataset = ds.open_dataset(out)
    pids = sorted({int(record["pid"]) for record in written})
    return Ingested(dataset, False, dataset.manifest["gate"], pids)


def _log_input(tiles: DividedTiles) -> None:
    """Logs what was found, before the first picture is opened."""
    logger.info(f"labels: {tiles.tiles}")
    logger.info(f"classes and their tiles: {tiles.tiles.counts()}")
    logger.info(f"split {tiles.rule.by}: {tiles}")
    for line in (*tiles.tiles.remarks, *_broken_rules(tiles)):
        logger.info(f"labels: {line}")
    for line in left_out_lines(tiles.tiles.left_out):
        logger.info(line)


def _format_of_first(index: pd.DataFrame, kept: KeptBands) -> TileFormat:
    """The format of tiles that keep bands: that of the first usable file.

    It depends on the order of the labels alone, not on the processes. If no file can be used, the
    gate says why of each.

    Args:
        index: rows of the index table.
        kept: the bands.

    Raises:
        StorageError, OSError: the disk or the store is broken.
        ConfigError: a package that reads TIFF files is not installed.
    """
    refused: list[BadImage] = []
    paths = index["path"].to_list()
    for path, content in zip(paths, contents(paths), strict=True):
        try:
            if isinstance(content, BadImage):
                raise content
            found = pixels.format_of(content, kept.bands)
        except BadImage as error:
            refused.append(error)
            cause = trouble(refused, FIRST_FILES)
            if cause is not None:
                raise cause from None
            continue
        logger.info(f"tiles keep {found}, as in {masked(storage.name_of(path))}")
        return found
    return TileFormat(len(kept.bands), bands=kept.bands)


def _broken_rules(tiles: DividedTiles) -> Iterator[str]:
    """A line for each rule about Planet's weather labels that some tiles break.

    `raytrain data check` can check other rules as well.
    """
    index = tiles.usable()
    index = index[index["known"]]
    classes = tiles.tiles.classes
    for rule in weather_rules(classes):
        targets = np.stack(list(index["target"]))  # uint8 (rows, K)
        broken = index["image_name"].iloc[rule.broken_by(targets, classes)]
        if len(broken):
            yield f"{len(broken)} tiles break the rule {rule}, such as {broken.iloc[0]}"


def _existing_dataset(out: str, source: Record) -> ds.Dataset | None:
    """The dataset that is at `out` already, or None where one can be written.

    Args:
        out: absolute path or URI.
        source: what the manifest will record about the input.

    Raises:
        DataError: something else is there, or a dataset that was made from other input.
    """
    files = storage.names(out)
    folders = storage.names(out, directories=True)
    if "dataset.json" not in files:
        # A local ingest that was stopped leaves `<out>.partial`, and nothing at `out`.
        if all(storage.is_uri(out) and _is_left(name) for name in files + folders):
            return None
        raise DataError(
            f"{out} exists and is not a dataset",
            "ingest writes a directory of its own and overwrites nothing",
            "give another --out",
        )
    dataset = ds.open_dataset(out)
    known = dataset.manifest["source"]
    if known == source:
        return dataset
    different = []
    for key in {**known, **source}:
        if known.get(key) != source.get(key):
            different.append(key.replace("test_folders", "test folders"))
    raise DataError(
        f"{out} holds a dataset made with other {' and '.join(different)}",
        "ingest never overwrites a dataset; runs may depend on it",
        "give another --out, or remove that directory first",
    )


def _is_left(name: str) -> bool:
    """Whether an ingest that was stopped may have left a file or folder of this name."""
    return name in LEFT_IN_STORE or name.startswith(storage.PROBES)


def _build(
    out: str, tiles: DividedTiles, source: Record, budget: int, bands: Bands
) -> list[Record]:
    """Writes the dataset to `<out>.partial` and renames it.

    Unusable input leaves nothing behind. A stop leaves the finished shards.

    Returns:
        The records of all shards.
    """
    # An object store cannot rename. There the manifest, which is written last, makes the dataset.
    partial = out if storage.is_uri(out) else f"{out}.partial"
    storage.make_dir(partial)
    index = tiles.usable()
    blocks = _blocks(index, tiles.rule.seed, bands)
    with storage.locked(partial, "is ingesting into"):
        try:
            written = _write_shards(blocks, partial, bands)
            bad = tiles.unusable()
            for record in written:
                bad += record["bad"]
            _check_budget(bad, budget, out, tiles.rows)
            form = bands if isinstance(bands, TileFormat) else TileFormat()
            _finish(partial, index, bad + tiles.left_out(), written, tiles, source, form)
        except DataError:
            storage.remove(partial)
            raise
        if partial != out:
            storage.move_directory(partial, out)
    return written


def _quarantine_path(out: str) -> str:
    """Path of the quarantine list that is written instead of a dataset with too many bad files."""
    return storage.join(storage.parent(out), f"{storage.name_of(out)}.quarantine.jsonl")


def _check_budget(bad: list[Record], budget: int, out: str, rows: int) -> None:
    """Refuses more than `budget` bad files, after writing the list of them.

    Args:
        bad: quarantine records.
        budget: largest number of them.
        out: path of the dataset.
        rows: number of tiles, for the message.

    Raises:
        DataError: with advice for the most frequent kind.
    """
    if len(bad) <= budget:
        return
    path = _quarantine_path(out)
    storage.write_text(path, _jsonl(bad))
    counts = Counter(record["kind"] for record in bad).most_common()
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts)
    most_frequent, _ = counts[0]
    why, fix = ADVICE.get(most_frequent, WRONG_FOLDER)
    # Where most tiles are bad, accepting that would not be good advice.
    if 2 * len(bad) <= rows:
        fix += ", or raise --max-bad"
    raise DataError(
        f"{len(bad)} of {rows} tiles cannot be used ({kinds}), more than --max-bad {budget}; "
        "no dataset was written",
        why,
        f"look at {path}; then {fix}",
    )


def _jsonl(records: list[Record]) -> str:
    """Quarantine records as JSON lines, in an order that does not depend on the processes."""
    records = sorted(records, key=lambda record: (record["image_name"], record["row"]))
    lines = [json.dumps(record, sort_keys=True) + "\n" for record in records]
    return "".join(lines)


def rows_per_shard(rows: int) -> int:
    """Largest number of rows in a shard: a sixteenth of all, but between 64 and 1,024.

    It depends on the number of rows alone, so that a dataset has the same bytes on any machine.
    """
    sixteenth = math.ceil(rows / 16)
    return int(np.clip(sixteenth, 64, 1024))


def _blocks(index: pd.DataFrame, seed: int, bands: Bands) -> list[pd.DataFrame]:
    """The rows of each shard, with the shard's number (`shard`) and `_key` (`key`).

    Args:
        index: rows that can be used, as `DividedTiles.usable` returns them.
        seed: of the shuffle.
        bands: what becomes of the bands of TIFF files.
    """
    blocks: list[pd.DataFrame] = []
    # Tiles without a target are in shards of their own, behind all others. So a test folder changes
    # neither the rows nor the bytes of the others, and training reads no shard in vain.
    for known in (True, False):
        tiles = index[index["known"] == known]
        # Shuffled once, so that a shard is a random sample of the tiles.
        order = np.random.default_rng([seed, len(tiles)]).permutation(len(tiles))
        sizes = [_file_size(stamp) for stamp in tiles["stamp"].to_list()]
        for rows in _cut(order, sizes, rows_per_shard(len(tiles))):
            block = tiles.iloc[rows]
            columns = block[["image_name", "path", "row", "target", "known"]]
            blocks.append(columns.assign(shard=len(blocks), key=_key(block, bands)))
    return blocks


def _file_size(stamp: str) -> int:
    """Bytes of a file by its stamp, `SIZE MTIME_NS`; 0 where that is empty, since it is unknown."""
    if not stamp:
        return 0
    return int(stamp.split()[0])


def _cut(
    order: np.ndarray[Any, Any], sizes: list[int], most: int
) -> Iterator[np.ndarray[Any, Any]]:
    """Cuts an order of rows into pieces of at most `most` rows and `SHARD_BYTES` bytes of files.

    Args:
        order: int64 (N,), row numbers.
        sizes: bytes of the file of each row, by row number; 0 where they are unknown.
        most: largest number of rows in a piece.

    Yields:
        Consecutive pieces of `order`. A file that is larger than the limit is a piece of its own.
    """
    start = 0
    held = 0  # bytes of the files in the current piece
    for i, row in enumerate(order):
        too_many = i - start == most
        too_large = held + sizes[row] > SHARD_BYTES
        if i > start and (too_many or too_large):
            yield order[start:i]
            start = i
            held = 0
        held += sizes[row]
    if start < len(order):
        yield order[start:]


def _key(block: pd.DataFrame, bands: Bands) -> str:
    """A hash of everything that a shard is made from: files, labels, rule for TIFF files, schema.

    Empty where the time of change of a file is unknown, as in an object store.
    """
    if (block["stamp"] == "").any():
        return ""
    files = block[["image_name", "path", "stamp"]].to_csv(index=False)
    targets = np.stack(list(block["target"])).tobytes()
    if not block["known"].all():
        targets = b"unknown" + block["known"].to_numpy(np.uint8).tobytes() + targets
    return hashlib.sha256(f"{ds.SCHEMA_VERSION} {bands} {files}".encode() + targets).hexdigest()


def _write_shards(blocks: list[pd.DataFrame], path: str, bands: Bands) -> list[Record]:
    """Writes the shards that are not there yet. Returns the records of all, in their order."""
    written = _written_before(path, blocks)
    done_before = {record["shard"] for record in written}
    left = [block for block in blocks if block["shard"].iloc[0] not in done_before]
    if blocks:
        logger.info(f"ingest: {len(blocks)} shards of up to {len(blocks[0])} tiles")
    else:
        logger.info("ingest: no usable row")
    if written:
        logger.info(f"ingest: {len(written)} shards are there from an earlier, unfinished ingest")
    logged_at = -math.inf
    for done, record in enumerate(_gated(left, path, bands)):
        written.append(record)
        now = time.monotonic()
        if done == 0:
            # The first shard also waits for Ray to start, so the time per shard counts from here.
            began = now
            continue
        is_last = done + 1 == len(left)
        if is_last or now - logged_at > PROGRESS_SECONDS:
            logged_at = now
            remaining = to_go(done, len(left) - 1, began)
            logger.info(f"ingest: {len(written)} of {len(blocks)} shards, {remaining}")
    written.sort(key=lambda record: int(record["shard"]))
    numbers = [record["shard"] for record in written]
    # A lost or repeated shard would be a fault in Ray or here, and the dataset would lack tiles.
    if numbers != list(range(len(blocks))):
        raise RuntimeError(f"Ray Data returned the shards {numbers} of {len(blocks)}")
    return written


def _gated(blocks: list[pd.DataFrame], path: str, bands: Bands) -> Iterator[Record]:
    """Runs `gate_shard` for each block in a Ray session. Yields the records as shards are done."""
    if not blocks:
        return
    with session():
        pictures = [file for block in blocks for file in block["path"]]
        check_machines(Places({"--out": path}, {"--images": spread(pictures)}))
        joined = _joined(blocks, cpus())
        data = quiet_dataset(joined).map_batches(
            Gate,
            fn_constructor_kwargs={"path": path, "bands": bands},
            batch_size=None,
            batch_format="pandas",
            compute=actors(len(joined)),
        )
        for batch in blocks_of(data):
            for record in batch["record"]:
                yield json.loads(record)


def _joined(blocks: list[pd.DataFrame], cluster_cpus: int) -> list[pd.DataFrame]:
    """Joins the rows of several shards into one task where there are many of them.

    Ray's driver takes 20 ms for a task, and a CPU 0.5 s for a shard of Planet's tiles. With one
    shard in each task, the driver would be the limit from some 25 CPUs on.

    Args:
        blocks: the rows of each shard.
        cluster_cpus: number of CPUs of the cluster.
    """
    together = len(blocks) // (max(1, cluster_cpus) * TASKS_OF_CPU)
    together = max(1, min(together, MOST_SHARDS_OF_TASK))
    if together == 1:
        return blocks
    starts = range(0, len(blocks), together)
    return [pd.concat(blocks[start : start + together]) for start in starts]


def _written_before(path: str, blocks: list[pd.DataFrame]) -> list[Record]:
    """Finds the shards of an earlier ingest that can be kept, and removes everything else.

    Args:
        path: the directory that the dataset is written to.
        blocks: the shards to make, as `_blocks` returns them.

    Returns:
        The records of the shards that can be kept.
    """
    keys = {int(block["shard"].iloc[0]): block["key"].iloc[0] for block in blocks}
    sizes = _shard_sizes(path)
    names = storage.names(storage.join(path, "progress"))
    kept = []
    for name in names:
        record = _read_record(storage.join(path, "progress", name))
        if record and _can_be_kept(record, keys, sizes):
            kept.append(record)
    # All files at the top: lists that are written last, and a part of one that a kill left.
    for name in ("splits", *storage.names(path)):
        storage.remove(storage.join(path, name))
    kept_files = {record["file"] for record in kept}
    for file in sizes.keys() - kept_files:
        storage.remove(storage.join(path, "shards", file))
    kept_names = {_record_name(record["shard"]) for record in kept}
    for name in set(names) - kept_names:
        storage.remove(storage.join(path, "progress", name))
    for folder in ("shards", "progress"):
        storage.make_dir(storage.join(path, folder))
    return kept


def _can_be_kept(record: Record, keys: dict[int, str], sizes: dict[str, int]) -> bool:
    """Whether a shard is complete and would be made again from the same input.

    Args:
        record: of the shard.
        keys: `_key` of each shard to make, by its number.
        sizes: bytes of each shard file that is there, by its name.
    """
    # Without a key it is unknown whether the files have changed.
    if not record["key"] or keys.get(record["shard"]) != record["key"]:
        return False
    if sizes.get(record["file"]) != record["bytes"]:
        return False
    # Older versions recorded no hash of the labels.
    if "labels" not in record:
        return False
    # The reason why a file was bad may be gone, such as missing rights, with no change to the file.
    return not record["bad"]


def _shard_sizes(path: str) -> dict[str, int]:
    """Bytes of the shard files in a dataset directory, by file name."""
    return {file.path: file.size for file in storage.files(storage.join(path, "shards"))}


def _record_name(shard: int) -> str:
    """File name of a shard's record in `progress/`."""
    return f"{shard:05}.json"


def _read_record(path: str) -> Record | None:
    """A shard's record, or None where a power cut has left only a part of it."""
    try:
        found: Record = json.loads(storage.read_bytes(path))
    except ValueError:
        return None
    return found


class Gate:
    """`gate_shard` as a Ray Data actor.

    A fixed pool of processes shares the shards. Ray would run short tasks all in one process.
    """

    def __init__(self, path: str, bands: Bands) -> None:
        self.path = path
        self.bands = bands

    def __call__(self, block: pd.DataFrame) -> pd.DataFrame:
        """Returns one row for each shard, whose column `record` is its record as JSON.

        As nested values, the records of two shards could have columns of different types.

        Args:
            block: the rows of one shard or of several, one after the other.
        """
        records = []
        for _, rows in block.groupby("shard", sort=False):
            record = gate_shard(rows, self.path, self.bands)
            records.append({"record": json.dumps(record)})
        return pd.DataFrame(records)


def gate_shard(block: pd.DataFrame, path: str, bands: Bands = None) -> Record:
    """Checks the files of one shard, writes the shard and then its record.

    Args:
        block: rows of the index table with the number (`shard`) and the key (`key`) of their shard.
        path: the directory that the dataset is written to.
        bands: what becomes of the bands of TIFF files.

    Returns:
        The record: shard, key, counts, bad, names, pid, and what `_write_shard` returns.

    Raises:
        StorageError, OSError: no file could be read, each for the same outer reason.
    """
    entries = block.to_dict("records")
    paths = [entry["path"] for entry in entries]
    rows: list[ShardRow] = []
    counts: Counter[str] = Counter()
    refused: list[BadImage] = []
    bad: list[Record] = []
    for entry, content in zip(entries, contents(paths), strict=True):
        try:
            image, picture = _accepted(content, entry["path"], bands)
        except BadImage as error:
            refused.append(error)
            bad.append(_quarantine_record(entry, error, content))
            continue
        counts.update([f"mode {picture.mode}", *picture.odd])
        rows.append(_shard_row(entry, image, picture))
    cause = trouble(refused, len(block))
    if cause is not None:
        # The disk or the store is at fault, not the files: they must not go to the quarantine.
        raise cause
    shard = int(block["shard"].iloc[0])
    record = {
        "shard": shard,
        "key": block["key"].iloc[0],
        **_write_shard(path, shard, rows),
        "counts": counts,
        "bad": bad,
        "names": [row[0] for row in rows],
        "pid": os.getpid(),
    }
    # After the shard: a record promises that its shard is complete. It can be made again, so it
    # need not survive a power cut.
    storage.write_bytes(
        storage.join(path, "progress", _record_name(shard)),
        json.dumps(record).encode(),
        durable=False,
    )
    return record


def _accepted(content: bytes | BadImage, path: str, bands: Bands) -> tuple[bytes, images.Picture]:
    """The bytes to store for a file, and what the gate found out about them.

    Raises:
        BadImage: the file cannot be used.
    """
    if isinstance(content, BadImage):
        raise content
    if isinstance(bands, TileFormat):
        # The original file is stored, and its values are kept.
        return content, pixels.inspect(content, bands, storage.name_of(path))
    image = as_picture(content, path, bands)
    # The suffix is compared with the format, and a TIFF that was converted has become a PNG.
    name = storage.name_of(path) if image is content else ""
    return image, images.inspect(image, name)


def _shard_row(entry: Record, image: bytes, picture: images.Picture) -> ShardRow:
    """The row of an accepted picture."""
    target = None
    if entry["known"]:
        target = entry["target"]
    return (
        entry["image_name"],
        image,
        picture.width,
        picture.height,
        picture.crc32,
        target,
    )


def _write_shard(path: str, shard: int, rows: list[ShardRow]) -> Record:
    """Writes a shard, unless it has no rows.

    Returns:
        What its record holds about the file: bytes, sizes, and what `ds.shard_entry` returns.
    """
    file = f"part-{shard:05}.parquet"
    content = ds.shard_bytes(rows)
    if rows:
        storage.write_bytes(storage.join(path, "shards", file), content)
    names = [row[0] for row in rows]
    targets = [row[-1] for row in rows]
    sizes = Counter(f"{width}x{height}" for _, _, width, height, _, _ in rows)
    entry = ds.shard_entry(file, content, names, targets)
    return {"bytes": len(content), **entry, "sizes": sizes}


def _quarantine_record(entry: Record, error: BadImage, content: bytes | BadImage) -> Record:
    """The quarantine record of a file that the gate has refused.

    Args:
        entry: its row of the index table.
        error: why it was refused.
        content: its bytes, or why they could not be read.
    """
    sha256 = ""
    # Of a file that is too large only the beginning was read, so its hash is unknown.
    if isinstance(content, bytes) and 0 < len(content) <= images.MAX_BYTES:
        sha256 = hashlib.sha256(content).hexdigest()
    return {
        "image_name": entry["image_name"],
        "path": masked(entry["path"]),
        "row": int(entry["row"]),
        "kind": error.kind,
        "detail": error.detail,
        "sha256": sha256,
    }


def _finish(
    path: str,
    index: pd.DataFrame,
    bad: list[Record],
    written: list[Record],
    tiles: DividedTiles,
    source: Record,
    form: TileFormat,
) -> None:
    """Writes the split, the lists and, last of all, the manifest, which makes it a dataset.

    Args:
        path: the directory that the dataset is written to.
        index: rows that were given to the gate.
        bad: quarantine records.
        written: records of the shards, in their order.
        tiles: the input.
        source: what the manifest records about the input.
        form: of the tiles.

    Raises:
        StorageError: a shard is no longer there.
        DataError: no picture is usable.
    """
    _check_shards(path, written)
    kept: set[str] = set()
    for record in written:
        kept.update(record["names"])
    if not kept:
        raise DataError(
            "no usable picture is left",
            "a dataset without rows cannot be trained on",
            "see the quarantine",
        )
    usable = index[index["image_name"].isin(kept)]
    split_name = tiles.rule.by
    split = splits.as_split(usable["image_name"].to_list(), usable["part"].to_numpy())
    split_content = ds.split_bytes(split)
    storage.write_bytes(storage.join(path, "splits", f"{split_name}.parquet"), split_content)
    storage.write_text(storage.join(path, "quarantine.jsonl"), _jsonl(bad))
    unlisted = tiles.tiles.unlisted
    if unlisted:
        lines = [masked(picture) + "\n" for picture in unlisted]
        storage.write_text(storage.join(path, "unlisted.txt"), "".join(lines))
    labels = _labels_content(index, written)
    storage.write_bytes(storage.join(path, row_labels.FILE), labels)
    manifest: Record = {
        "task": tiles.tiles.task,
        "classes": tiles.tiles.classes,
        "tile_size": _tile_size(_total(written, "sizes")),
        **form.content(),
        "shards": _shard_entries(written),
        "splits": [ds.split_entry(split_name, split_content, split)],
        row_labels.HASH_KEY: hashlib.sha256(labels).hexdigest(),
        "source": source,
        "gate": _gate_counts(tiles, len(kept), bad, written),
    }
    manifest = {"schema_version": ds.schema_version(manifest), **manifest}
    storage.remove(storage.join(path, "progress"))
    storage.write_json(storage.join(path, "dataset.json"), manifest)


def _labels_content(index: pd.DataFrame, written: list[Record]) -> bytes:
    """The file with names and targets of all rows, in the order of the shards.

    Args:
        index: rows that were given to the gate.
        written: records of the shards, in their order.
    """
    with_rows = [record for record in written if record["rows"]]
    names: list[str] = []
    for record in with_rows:
        names += record["names"]
    positions = pd.Index(index["image_name"]).get_indexer(names)
    kept = index.iloc[positions]
    targets = np.stack(list(kept["target"]))
    columns = row_labels.target_rows(targets, kept["known"].to_numpy(np.bool_))
    rows = [record["rows"] for record in with_rows]
    sizes = [record["bytes"] for record in with_rows]
    return row_labels.content(pa.array(names, pa.string()), columns, rows, sizes)


def _check_shards(path: str, written: list[Record]) -> None:
    """Checks that all shards are still there with their sizes.

    Raises:
        StorageError: one is missing or has another size. On an object store, which has no locks,
            a second ingest into the same path may have removed it.
    """
    sizes = _shard_sizes(path)
    for record in written:
        # A shard without rows has no file.
        if record["rows"] and sizes.get(record["file"]) != record["bytes"]:
            raise StorageError(
                f"{record['file']} is no longer in {path} as it was written",
                "another process works there",
                "run the command again",
            )


def _tile_size(sizes: dict[str, int]) -> int:
    """The longer side, in pixels, of the most frequent tile size.

    Args:
        sizes: number of tiles by size, such as 256x256.
    """
    # Of sizes that are equally frequent, always the same one.
    most_frequent = max(sizes, key=lambda size: (sizes[size], size))
    return max(int(side) for side in most_frequent.split("x"))


def _shard_entries(written: list[Record]) -> list[Record]:
    """What the manifest holds about the shards that have rows."""
    entries = []
    for record in written:
        if record["rows"]:
            entries.append({key: record[key] for key in ENTRY_KEYS if key in record})
    return entries


def _gate_counts(
    tiles: DividedTiles, kept: int, bad: list[Record], written: list[Record]
) -> dict[str, int]:
    """What the manifest counts, in words that `raytrain ingest` prints.

    Args:
        tiles: the input.
        kept: number of tiles in the dataset.
        bad: quarantine records.
        written: records of the shards.
    """
    counts = {"rows of the labels": len(tiles.table), "tiles": kept}
    unknown = sum(record.get("unknown", 0) for record in written)
    if unknown:
        counts["tiles without a target, of test folders"] = unknown
    unlisted = len(tiles.tiles.unlisted)
    if unlisted:
        counts["pictures without labels, see unlisted.txt"] = unlisted
    for note, count in tiles.tiles.notes.items():
        if count:
            counts[note] = count
    kinds = Counter(record["kind"] for record in bad)
    for kind, count in sorted(kinds.items()):
        counts[f"quarantined: {kind}"] = count
    for size, count in sorted(_total(written, "sizes").items()):
        counts[f"size {size}"] = count
    counts.update(sorted(_total(written, "counts").items()))
    return counts


def _total(written: list[Record], key: str) -> dict[str, int]:
    """The sum over all shards of the counts that their records have under a key."""
    total: Counter[str] = Counter()
    for record in written:
        total.update(record[key])
    return dict(total)
