"""Ingest: index table -> Ray Data tasks pass each file through the gate -> Parquet shards, splits, manifest.

Each task writes its shard itself, so the sha256 in the manifest is that of the bytes that were written, memory is
bounded by one shard, and a task that Ray repeats writes the same file again. Everything goes into `<out>.partial`,
which is renamed at the end; the same input gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from raytrain import storage
from raytrain.data import dataset as ds
from raytrain.data import images, sources, splits
from raytrain.distributed.cluster import actors, blocks_of, quiet_dataset, session, to_go
from raytrain.errors import DataError


@dataclass(frozen=True)
class Source:
    """What a dataset is made from; stored in its manifest and compared before a second ingest is skipped."""

    labels_sha256: str
    form: sources.LabelFormat
    image_folder: str
    classes: tuple[str, ...]
    valid: float
    seed: int

    def content(self) -> dict[str, Any]:
        """As JSON gives it back."""
        return asdict(self) | {"classes": list(self.classes)}


@dataclass(frozen=True)
class Ingested:
    """The result of `ingest`."""

    dataset: ds.Dataset
    already_there: bool
    counts: dict[str, int]
    pids: list[int]


def ingest(
    image_folder: str,
    label_file: str,
    out: str,
    *,
    classes: list[str] | None = None,
    valid: float = 0.2,
    seed: int = 42,
    max_bad: int | None = None,
    form: sources.LabelFormat = sources.KAGGLE_FORMAT,
    say: Callable[[str], None] = print,
) -> Ingested:
    """Makes a dataset directory (or says that it is there).

    Args:
        image_folder: directory or URI with the pictures directly inside.
        label_file: CSV or Parquet, one row a tile.
        form: how it is to be read.
        out: dataset directory or URI to make.
        classes: the labels in target order; by default all labels of the file, sorted.
        valid: share of rows that validate.
        seed: of the split and of the order in which rows are written.
        max_bad: unusable files before nothing is written; by default the larger of 10 and 0.1 % of the rows.
        say: receives progress lines.

    Raises:
        DataError: labels or folder cannot be used, too many bad files, or `out` holds something else.
        StorageError: `out` cannot be written.
    """
    out, image_folder = storage.absolute(out), storage.absolute(image_folder)
    labels = sources.read_labels(storage.absolute(label_file), form, classes)
    source = Source(labels.sha256, form, storage.name_of(image_folder), tuple(labels.classes), valid, seed)
    there = _already_there(out, source)
    if there:
        return Ingested(there, True, there.manifest["gate"], [])
    found = sources.find_images(image_folder)
    parts = splits.random_parts(len(labels.table), valid, seed)
    index, bad = sources.index_table(labels, found, parts)
    budget = max(10, len(labels.table) // 1000) if max_bad is None else max_bad
    _check_budget(bad, budget, out, len(labels.table))
    for note, count in labels.notes.items():
        say(f"labels: {count} {note}") if count else None
    unlisted = len(set(found.values())) - index["path"].nunique()
    say(f"images: {unlisted} pictures without a row in the label file are left out") if unlisted else None
    written = _build(out, index, bad, budget, labels, source, say)
    storage.remove(quarantine_beside(out))
    dataset = ds.open_dataset(out)
    return Ingested(dataset, False, dataset.manifest["gate"], sorted({int(shard["pid"]) for shard in written}))


def _build(
    out: str,
    index: pd.DataFrame,
    bad: list[dict[str, Any]],
    budget: int,
    labels: sources.Labels,
    source: Source,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Writes the dataset beside its place and renames it; whatever goes wrong, nothing is left there."""
    # An object store cannot rename; there the manifest, written last, makes the dataset.
    partial = f"{out}.partial" if not storage.is_uri(out) else out
    storage.remove(partial)
    storage.make_dir(storage.join(partial, "shards"))
    try:
        written = _write_shards(index, partial, source.seed, say)
        bad = bad + [record for shard in written for record in json.loads(shard["bad"])]
        _check_budget(bad, budget, out, len(labels.table))
        _finish(partial, index, bad, written, labels, source)
    except BaseException:
        storage.remove(partial)
        raise
    if partial != out:
        storage.move_directory(partial, out)
    return written


def quarantine_beside(out: str) -> str:
    """Place of the quarantine list when there were too many bad files and no dataset was written."""
    return f"{out}.quarantine.jsonl"


def gate_shard(batch: pd.DataFrame, place: str) -> pd.DataFrame:
    """One Ray Data task: reads and checks the files of one shard, writes the shard.

    Args:
        batch: rows of the index table with their `shard` number.
        place: the dataset directory to write into.

    Returns:
        One row: shard, file, rows, sha256, counts and bad (JSON), sizes (JSON), pid.
    """
    rows, bad, modes = [], [], Counter[str]()
    for entry in batch.to_dict("records"):
        try:
            content = storage.read_bytes(entry["path"])
            picture = images.inspect(content)
        except images.BadImage as error:
            bad.append({"image_name": entry["image_name"], "kind": error.kind, "detail": error.detail})
            continue
        except FileNotFoundError:
            bad.append({"image_name": entry["image_name"], "kind": "missing", "detail": "vanished during ingest"})
            continue
        modes[f"mode {picture.mode}"] += 1
        rows.append({"image_name": entry["image_name"], "image": content, "width": picture.width,
                     "height": picture.height, "crc32": picture.crc32, "target": entry["target"]})  # fmt: skip
    shard = int(batch["shard"].iloc[0])
    file = f"part-{shard:05}.parquet"
    content = ds.shard_bytes(pa.Table.from_pylist(rows, schema=ds.SHARD_SCHEMA))
    if rows:
        storage.write_bytes(storage.join(place, "shards", file), content)
    sizes = Counter(f"{row['width']}x{row['height']}" for row in rows)
    record = {"shard": shard, "file": file, "rows": len(rows), "sha256": hashlib.sha256(content).hexdigest(),
              "modes": json.dumps(modes), "sizes": json.dumps(sizes), "bad": json.dumps(bad), "pid": os.getpid(),
              "names": json.dumps([row["image_name"] for row in rows])}  # fmt: skip
    return pd.DataFrame([record])


class Gate:
    """`gate_shard` as an actor: a fixed pool of processes shares the shards, however short their work is."""

    def __init__(self, place: str) -> None:
        self.place = place

    def __call__(self, batch: pd.DataFrame) -> pd.DataFrame:
        return gate_shard(batch, self.place)


def rows_per_shard(rows: int) -> int:
    """Depends on the number of rows alone, so that a dataset is the same bytes on any machine."""
    return int(np.clip(-(-rows // 16), 64, 1024))


def _write_shards(index: pd.DataFrame, place: str, seed: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    order = np.random.default_rng([seed, len(index)]).permutation(len(index))
    size = rows_per_shard(len(index))
    blocks = [
        index.iloc[order[start : start + size]][["image_name", "path", "target"]].assign(shard=i)
        for i, start in enumerate(range(0, len(index), size))
    ]
    with session():
        data = quiet_dataset(blocks).map_batches(
            Gate,
            fn_constructor_kwargs={"place": place},
            batch_size=None,
            batch_format="pandas",
            compute=actors(len(blocks)),
        )
        written, began = [], time.monotonic()
        for batch in blocks_of(data):
            written += batch.to_dict("records")
            left = to_go(len(written), len(blocks), began)
            say(f"ingest: shard {len(written)} of {len(blocks)} written (by process {batch['pid'].iloc[0]}), {left}")
    written.sort(key=lambda record: record["shard"])
    if [record["shard"] for record in written] != list(range(len(blocks))):
        raise RuntimeError(f"Ray Data returned the shards {[r['shard'] for r in written]} of {len(blocks)}")
    return written


def _finish(
    place: str, index: pd.DataFrame, bad: list[dict[str, Any]], written: list[dict[str, Any]],
    labels: sources.Labels, source: Source,
) -> None:  # fmt: skip
    kept = {name for shard in written for name in json.loads(shard["names"])}
    if not kept:
        raise DataError(
            "no usable picture is left", "a dataset without rows cannot be trained on", "see the quarantine"
        )
    usable = index[index["image_name"].isin(kept)]
    split = splits.as_split(usable["image_name"].to_list(), usable["part"].to_numpy())
    content = ds.split_bytes(split)
    storage.write_bytes(storage.join(place, "splits", "random.parquet"), content)
    bad = sorted(bad, key=lambda record: record["image_name"])
    storage.write_text(storage.join(place, "quarantine.jsonl"), _jsonl(bad))
    sizes, modes = _total(written, "sizes"), _total(written, "modes")
    shards = [{key: shard[key] for key in ("file", "rows", "sha256")} for shard in written if shard["rows"]]
    sides = max(sizes, key=lambda key: (sizes[key], key)).split("x")
    manifest = {
        "schema_version": ds.SCHEMA_VERSION,
        "task": "multi-label",
        "classes": labels.classes,
        "tile_size": max(map(int, sides)),
        "shards": shards,
        "splits": [ds.split_entry("random", content, split)],
        "source": source.content(),
        "gate": {"rows in the label file": len(labels.table), "tiles": len(kept)}
        | {f"quarantined: {kind}": n for kind, n in sorted(Counter(r["kind"] for r in bad).items())}
        | {f"size {key}": n for key, n in sorted(sizes.items())} | dict(sorted(modes.items())),
    }  # fmt: skip
    storage.write_json(storage.join(place, "dataset.json"), manifest)


def _total(written: list[dict[str, Any]], key: str) -> dict[str, int]:
    total: Counter[str] = Counter()
    for shard in written:
        total.update(json.loads(shard[key]))
    return dict(total)


def _jsonl(records: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(record, sort_keys=True) + "\n" for record in records)


def _already_there(out: str, source: Source) -> ds.Dataset | None:
    files, folders = storage.names(out), storage.names(out, directories=True)
    if "dataset.json" not in files:
        # In an object store an ingest that was cut leaves these; locally it leaves only `<out>.partial`.
        ours = {"shards", "splits", "quarantine.jsonl"} if storage.is_uri(out) else set()
        if set(files + folders) <= ours:
            return None
        raise DataError(
            f"{out} exists and is not a dataset",
            "ingest writes a directory of its own and overwrites nothing",
            "give another --out",
        )
    dataset = ds.open_dataset(out)
    if dataset.manifest["source"] != source.content():
        raise DataError(
            f"{out} holds a dataset made from other labels or settings, or from a folder of another name",
            "ingest never overwrites a dataset; runs may depend on it",
            "give another --out, or remove that directory first",
        )
    return dataset


def _check_budget(bad: list[dict[str, Any]], budget: int, out: str, rows: int) -> None:
    if len(bad) <= budget:
        return
    place = quarantine_beside(out)
    storage.write_text(place, _jsonl(sorted(bad, key=lambda record: record["image_name"])))
    kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(record["kind"] for record in bad).most_common())
    raise DataError(
        f"{len(bad)} of {rows} tiles cannot be used ({kinds}), more than --max-bad {budget}; no dataset was written",
        "so many bad files usually mean a wrong folder or a broken download",
        f"look at {place}; then correct the files, or raise --max-bad",
    )
