"""Ingest: index table -> Ray Data tasks pass each file through the gate -> Parquet shards, splits, manifest.

Each task writes its shard itself, so the sha256 in the manifest is that of the bytes that were written, memory is
bounded by one shard, and a task that Ray repeats writes the same file again. Everything goes into `<out>.partial`,
which is renamed at the end; the same input gives the same bytes. A shard's record lies in `progress/` until then: an
ingest that was killed goes on after the shards whose record fits the files as they are now.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from raytrain import storage
from raytrain.data import dataset as ds
from raytrain.data import images, splits
from raytrain.data.bands import BandRule, as_picture
from raytrain.data.contents import contents, trouble
from raytrain.data.images import BadImage
from raytrain.data.inspection import weather_rules
from raytrain.data.listing import left_out_lines
from raytrain.data.sources import DividedTiles
from raytrain.distributed.cluster import actors, blocks_of, quiet_dataset, session, to_go
from raytrain.distributed.nodes import check_reach
from raytrain.errors import DataError, StorageError, masked

logger = logging.getLogger(__name__)


Record = dict[str, Any]
PROGRESS_SECONDS = 1.0
# What many bad files of one kind mean, and what to do about them.
WRONG_FOLDER = (
    "so many bad files usually mean a wrong folder or a broken download",
    "correct the files",
)
_TIFF_FLAGS = "give --bands 3,2,1 --scale 0,10000 for TIFF files, or store the tiles with 8 bits"
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
    "no-labels": (
        "a tile without labels teaches nothing, unless it is meant so",
        "label the tiles, or give --allow-empty",
    ),
}
SHARD_BYTES = 2**26  # of files; a process holds some four times as much


@dataclass(frozen=True)
class Ingested:
    """The result of `ingest`: pids of the processes that wrote shards, none where the dataset was there."""

    dataset: ds.Dataset
    already_there: bool
    counts: dict[str, int]
    pids: list[int]


def ingest(
    tiles: DividedTiles, out: str, *, max_bad: int | None = None, bands: BandRule | None = None
) -> Ingested:
    """Makes a dataset directory, goes on with one that was killed, or says that it is there.

    Args:
        tiles: what `data.sources` found: images, labels and the division.
        out: dataset directory or URI to make.
        max_bad: unusable files before nothing is written; by default the larger of 10 and 0.1 % of the rows.
        bands: how TIFF files with other than 8-bit grey or RGB pixels become pictures.

    Raises:
        DataError: too many bad files, no training or no validation tiles, or `out` holds something else.
        StorageError: `out` cannot be written, or another process writes it.
    """
    out = storage.absolute(out)
    source = tiles.source | ({"bands": asdict(bands)} if bands else {})
    there = _already_there(out, json.loads(json.dumps(source)))
    if there:
        return Ingested(there, True, there.manifest["gate"], [])
    budget = max(10, len(tiles.table) // 1000) if max_bad is None else max_bad
    _check_budget(tiles.unusable(), budget, out, len(tiles.table))
    ds.check_parts(tiles.rule.by, tiles.usable()["part"].value_counts().to_dict())
    logger.info(f"labels: {tiles.tiles}")
    logger.info(f"classes and their tiles: {tiles.tiles.counts()}")
    logger.info(f"split {tiles.rule.by}: {tiles}")
    for line in (*tiles.tiles.remarks, *_broken_rules(tiles)):
        logger.info(f"labels: {line}")
    for line in left_out_lines(tiles.tiles.left_out):
        logger.info(line)
    written = _build(out, tiles, source, budget, bands)
    storage.remove(quarantine_beside(out))
    dataset = ds.open_dataset(out)
    return Ingested(
        dataset, False, dataset.manifest["gate"], sorted({int(shard["pid"]) for shard in written})
    )


def _broken_rules(tiles: DividedTiles) -> Iterator[str]:
    """What Planet's weather labels contradict, before any picture is opened; `data check` also takes other rules."""
    index, classes = tiles.usable(), tiles.tiles.classes
    for rule in weather_rules(classes):
        broken = index["image_name"][rule.broken_by(np.stack(list(index["target"])), classes)]
        if len(broken):
            yield f"{len(broken)} tiles break the rule {rule}, such as {broken.iloc[0]}"


def _build(
    out: str, tiles: DividedTiles, source: Record, budget: int, bands: BandRule | None
) -> list[Record]:
    """Writes the dataset beside its place and renames it; unusable tiles leave nothing, a stop leaves what is done."""
    # An object store cannot rename; there the manifest, written last, makes the dataset.
    partial = f"{out}.partial" if not storage.is_uri(out) else out
    storage.make_dir(partial)
    index = tiles.usable()
    blocks = _blocks(index, tiles.rule.seed, bands)
    with storage.locked(partial, "is ingesting into"):
        try:
            written = _write_shards(blocks, partial, bands)
            bad = tiles.unusable() + [record for shard in written for record in shard["bad"]]
            _check_budget(bad, budget, out, len(tiles.table))
            _finish(partial, index, bad + tiles.left_out(), written, tiles, source)
        except DataError:
            storage.remove(partial)
            raise
        if partial != out:
            storage.move_directory(partial, out)
    return written


def quarantine_beside(out: str) -> str:
    """Place of the quarantine list when there were too many bad files and no dataset was written."""
    return storage.join(storage.parent(out), f"{storage.name_of(out)}.quarantine.jsonl")


def gate_shard(block: pd.DataFrame, path: str, bands: BandRule | None = None) -> Record:
    """One Ray Data task: reads and checks the files of one shard, writes the shard and then its record.

    Args:
        block: rows of the index table with the number (`shard`) and the key (`key`) of their shard.
        path: the dataset directory to write into.
        bands: for TIFF files.

    Returns:
        The record: shard, key, file, rows, bytes, sha256, labels, counts, sizes, bad, names, pid.
    """
    rows, bad, counts = [], [], Counter[str]()
    entries = block.to_dict("records")
    refused = []
    for entry, content in zip(entries, contents([entry["path"] for entry in entries]), strict=True):
        try:
            if isinstance(content, BadImage):
                raise content
            image = as_picture(content, entry["path"], bands)
            picture = images.inspect(
                image, storage.name_of(entry["path"]) if image is content else ""
            )
        except BadImage as error:
            refused.append(error)
            bad.append(_bad(entry, error, content))
        else:
            counts.update([f"mode {picture.mode}", *picture.odd])
            rows.append(
                (
                    entry["image_name"],
                    image,
                    picture.width,
                    picture.height,
                    picture.crc32,
                    entry["target"],
                )
            )
    if cause := trouble(refused, len(block)):
        raise cause
    shard = int(block["shard"].iloc[0])
    file = f"part-{shard:05}.parquet"
    written = ds.shard_bytes(rows)
    if rows:
        storage.write_bytes(storage.join(path, "shards", file), written)
    names = [row[0] for row in rows]
    record = {
        "shard": shard,
        "key": block["key"].iloc[0],
        "bytes": len(written),
        "counts": counts,
        **ds.shard_entry(file, written, names, [row[-1] for row in rows]),
        "sizes": Counter(f"{row[2]}x{row[3]}" for row in rows),
        "bad": bad,
        "names": names,
        "pid": os.getpid(),
    }
    storage.write_bytes(
        storage.join(path, "progress", f"{shard:05}.json"),
        json.dumps(record).encode(),
        durable=False,
    )
    return record


def _bad(entry: Record, error: BadImage, content: bytes | BadImage) -> Record:
    """The quarantine record of a file; the hash of one that was read whole."""
    sha256 = ""
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


class Gate:
    """`gate_shard` as an actor: a fixed pool of processes shares the shards, however short their work is."""

    def __init__(self, path: str, bands: BandRule | None) -> None:
        self.path, self.bands = path, bands

    def __call__(self, block: pd.DataFrame) -> pd.DataFrame:
        record = gate_shard(block, self.path, self.bands)
        return pd.DataFrame([{"record": json.dumps(record)}])


def rows_per_shard(rows: int) -> int:
    """Depends on the number of rows alone, so that a dataset is the same bytes on any machine."""
    return int(np.clip(-(-rows // 16), 64, 1024))


def _blocks(index: pd.DataFrame, seed: int, bands: BandRule | None) -> list[pd.DataFrame]:
    """The rows of each shard, shuffled once, with its number and the hash of what it will be made from."""
    order = np.random.default_rng([seed, len(index)]).permutation(len(index))
    sizes = [int(stamp.split()[0]) if stamp else 0 for stamp in index["stamp"]]
    blocks = [index.iloc[rows] for rows in _cut(order, sizes, rows_per_shard(len(index)))]
    return [
        block[["image_name", "path", "row", "target"]].assign(shard=i, key=_key(block, bands))
        for i, block in enumerate(blocks)
    ]


def _cut(
    order: np.ndarray[Any, Any], sizes: list[int], most: int
) -> Iterator[np.ndarray[Any, Any]]:
    """Pieces of an order of rows: at most `most` rows, and not more than SHARD_BYTES of files where their sizes are known."""
    start = held = 0
    for i, row in enumerate(order):
        if i > start and (i - start == most or held + sizes[row] > SHARD_BYTES):
            yield order[start:i]
            start, held = i, 0
        held += sizes[row]
    if start < len(order):
        yield order[start:]


def _key(block: pd.DataFrame, bands: BandRule | None) -> str:
    if (block["stamp"] == "").any():
        return ""
    files = block[["image_name", "path", "stamp"]].to_csv(index=False)
    targets = np.stack(list(block["target"])).tobytes()
    return hashlib.sha256(f"{ds.SCHEMA_VERSION} {bands} {files}".encode() + targets).hexdigest()


def _write_shards(blocks: list[pd.DataFrame], path: str, bands: BandRule | None) -> list[Record]:
    written = _written_before(path, blocks)
    left = [
        block
        for block in blocks
        if block["shard"].iloc[0] not in {record["shard"] for record in written}
    ]
    logger.info(
        f"ingest: {len(blocks)} shards of up to {len(blocks[0])} tiles"
        if blocks
        else "ingest: no usable row"
    )
    logger.info(
        f"ingest: {len(written)} shards are there from an earlier, unfinished ingest"
    ) if written else None
    began = said = 0.0
    for done, record in enumerate(_gated(left, path, bands)):
        written.append(record)
        now = time.monotonic()
        began = began or now  # the first shard's time is mostly Ray's start
        if done and (now - said > PROGRESS_SECONDS or done + 1 == len(left)):
            said = now
            logger.info(
                f"ingest: {len(written)} of {len(blocks)} shards, {to_go(done, len(left) - 1, began)}"
            )
    written.sort(key=lambda record: int(record["shard"]))
    if [record["shard"] for record in written] != list(range(len(blocks))):
        raise RuntimeError(
            f"Ray Data returned the shards {[r['shard'] for r in written]} of {len(blocks)}"
        )
    return written


def _gated(blocks: list[pd.DataFrame], path: str, bands: BandRule | None) -> Iterator[Record]:
    if not blocks:
        return
    with session():
        check_reach(path, "--out")
        data = quiet_dataset(blocks).map_batches(
            Gate,
            fn_constructor_kwargs={"place": path, "bands": bands},
            batch_size=None,
            batch_format="pandas",
            compute=actors(len(blocks)),
        )
        for batch in blocks_of(data):
            yield from map(json.loads, batch["record"])


def _written_before(path: str, blocks: list[pd.DataFrame]) -> list[Record]:
    """Records of the shards that are complete and would be made again from the same files; all else is removed."""
    keys = {int(block["shard"].iloc[0]): block["key"].iloc[0] for block in blocks}
    sizes = {file.path: file.size for file in storage.files(storage.join(path, "shards"))}
    kept = []
    names = storage.names(storage.join(path, "progress"))
    for name in names:
        record = _record(storage.join(path, "progress", name))
        # A shard with bad files is made again: they may have been mended meanwhile. So is one of files whose time of
        # change is not known.
        if (
            record
            and record["key"]
            and keys.get(record["shard"]) == record["key"]
            and sizes.get(record["file"]) == record["bytes"]
            and not record["bad"]
            and "labels" in record
        ):
            kept.append(record)
    # All files at the top: the lists that are written last, and what a kill left in the middle of writing one.
    for name in ("splits", *storage.names(path)):
        storage.remove(storage.join(path, name))
    for file in set(sizes) - {record["file"] for record in kept}:
        storage.remove(storage.join(path, "shards", file))
    for name in set(names) - {f"{record['shard']:05}.json" for record in kept}:
        storage.remove(storage.join(path, "progress", name))
    for folder in ("shards", "progress"):
        storage.make_dir(storage.join(path, folder))
    return kept


def _record(path: str) -> Record | None:
    """A shard's record, or None where a power cut left it torn."""
    try:
        found: Record = json.loads(storage.read_bytes(path))
    except ValueError:
        return None
    return found


def _finish(
    path: str,
    index: pd.DataFrame,
    bad: list[Record],
    written: list[Record],
    tiles: DividedTiles,
    source: Record,
) -> None:
    sizes_there = {file.path: file.size for file in storage.files(storage.join(path, "shards"))}
    lost = [
        shard["file"]
        for shard in written
        if shard["rows"] and sizes_there.get(shard["file"]) != shard["bytes"]
    ]
    if lost:
        raise StorageError(
            f"{lost[0]} is no longer in {path} as it was written",
            "another process works there",
            "run the command again",
        )
    kept = {name for shard in written for name in shard["names"]}
    if not kept:
        raise DataError(
            "no usable picture is left",
            "a dataset without rows cannot be trained on",
            "see the quarantine",
        )
    usable = index[index["image_name"].isin(kept)]
    name = tiles.rule.by
    split = splits.as_split(usable["image_name"].to_list(), usable["part"].to_numpy())
    content = ds.split_bytes(split)
    storage.write_bytes(storage.join(path, "splits", f"{name}.parquet"), content)
    storage.write_text(storage.join(path, "quarantine.jsonl"), _jsonl(bad))
    unlisted = tiles.tiles.unlisted
    storage.write_text(
        storage.join(path, "unlisted.txt"), "\n".join([*map(masked, unlisted), ""])
    ) if unlisted else None
    sizes = _total(written, "sizes")
    sides = max(sizes, key=lambda key: (sizes[key], key)).split("x")
    manifest = {
        "schema_version": ds.SCHEMA_VERSION,
        "task": "multi-label",
        "classes": tiles.tiles.classes,
        "tile_size": max(map(int, sides)),
        "shards": [
            {key: shard[key] for key in ("file", "rows", "sha256", "labels")}
            for shard in written
            if shard["rows"]
        ],
        "splits": [ds.split_entry(name, content, split)],
        "source": source,
        "gate": {"rows of the labels": len(tiles.table), "tiles": len(kept)}
        | ({"pictures without labels, see unlisted.txt": len(unlisted)} if unlisted else {})
        | {note: n for note, n in tiles.tiles.notes.items() if n}
        | {f"quarantined: {kind}": n for kind, n in sorted(Counter(r["kind"] for r in bad).items())}
        | {f"size {key}": n for key, n in sorted(sizes.items())}
        | dict(sorted(_total(written, "counts").items())),
    }
    storage.remove(storage.join(path, "progress"))
    storage.write_json(storage.join(path, "dataset.json"), manifest)


def _total(written: list[Record], key: str) -> dict[str, int]:
    total: Counter[str] = Counter()
    for shard in written:
        total.update(shard[key])
    return dict(total)


def _jsonl(records: list[Record]) -> str:
    records = sorted(records, key=lambda record: (record["image_name"], record["row"]))
    return "".join(json.dumps(record, sort_keys=True) + "\n" for record in records)


def _already_there(out: str, source: Record) -> ds.Dataset | None:
    files, folders = storage.names(out), storage.names(out, directories=True)
    if "dataset.json" not in files:
        # In an object store an ingest that was cut leaves these; locally it leaves only `<out>.partial`.
        ours = (
            {"shards", "progress", "splits", "quarantine.jsonl", "unlisted.txt"}
            if storage.is_uri(out)
            else set()
        )
        if set(files + folders) <= ours:
            return None
        raise DataError(
            f"{out} exists and is not a dataset",
            "ingest writes a directory of its own and overwrites nothing",
            "give another --out",
        )
    dataset = ds.open_dataset(out)
    if dataset.manifest["source"] != source:
        known = dataset.manifest["source"]
        other = [key for key in {**known, **source} if known.get(key) != source.get(key)]
        raise DataError(
            f"{out} holds a dataset made with other {' and '.join(other)}",
            "ingest never overwrites a dataset; runs may depend on it",
            "give another --out, or remove that directory first",
        )
    return dataset


def _check_budget(bad: list[Record], budget: int, out: str, rows: int) -> None:
    if len(bad) <= budget:
        return
    path = quarantine_beside(out)
    storage.write_text(path, _jsonl(bad))
    counts = Counter(record["kind"] for record in bad).most_common()
    kinds = ", ".join(f"{n} {kind}" for kind, n in counts)
    why, fix = ADVICE.get(counts[0][0], WRONG_FOLDER)
    raise DataError(
        f"{len(bad)} of {rows} tiles cannot be used ({kinds}), more than --max-bad {budget}; no dataset was written",
        why,
        f"look at {path}; then {fix}{'' if 2 * len(bad) > rows else ', or raise --max-bad'}",
    )
