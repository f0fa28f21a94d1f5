"""Keeps targets and parts of a dataset's rows on a local disk, mapped by all processes there.

    <cache>/<key>/targets.u8   uint8 (rows, K)
    <cache>/<key>/known.u8     uint8 (rows,): 1 where the target is known
    <cache>/<key>/parts.u8     uint8 (rows,): 1 + the position in PARTS; 0 in no part of the split

    <cache>/<key>/store.json   what they hold, and the crc32 of each file

The first process of a machine writes them, and the others read neither labels nor split. Every
process compares the files with their crc32, and writes them again if one has changed. Names are not
kept: only rank 0 needs them, for the predictions. Imports neither torch nor ray.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from raytrain import storage
from raytrain.data import row_labels
from raytrain.data.dataset import PARTS, Array, Dataset, MappedRows
from raytrain.errors import StorageError
from raytrain.machine import cache_directory
from raytrain.tiles.cache import CACHE_LOCK, CONTENT_FILE, make_room

logger = logging.getLogger(__name__)

TARGETS = "targets.u8"
KNOWN = "known.u8"
PARTS_FILE = "parts.u8"
FILES = (TARGETS, KNOWN, PARTS_FILE)
# End of the names of files that are not complete.
NEW = ".new"
# Starting a process takes a second or two. The labels of so many rows take 30 MB.
APART_FROM_ROWS = 200_000


def with_mapped_rows(dataset: Dataset, split: str, directory: Path | None = None) -> Dataset:
    """Returns a dataset whose targets and parts are mapped from the disk of this machine.

    Where that disk cannot be written, the dataset is returned as it is, and reads them itself.

    Args:
        dataset: an opened dataset.
        split: name of the split whose parts are kept.
        directory: the cache folder; None for the default one.

    Raises:
        DataError: labels or split are not those that were written.
        StorageError: the dataset cannot be read.
    """
    if split not in dataset.splits:
        # What reads its parts says so.
        return dataset
    directory = directory or cache_directory()
    content = {
        "dataset": dataset.hash,
        "labels": dataset.manifest.get(row_labels.HASH_KEY),
        "split": dataset.split_hash(split),
        "rows": dataset.rows,
        "classes": len(dataset.classes),
    }
    root = directory / hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # Held while the rows are read: the other processes wait, and find the files.
        with storage.file_lock(directory / CACHE_LOCK):
            mapped = _verified(dataset, split, root)
            if mapped is None:
                _make_room(directory, dataset)
                _write_apart(dataset, split, root, content)
                mapped = _mapped(dataset, split, root)
            os.utime(root / CONTENT_FILE)
            return replace(dataset, mapped=mapped)
    # Only of the cache. A StorageError is of the dataset, which must be read in any case.
    except OSError as error:
        logger.info(f"labels are kept in memory, since {directory} cannot be used: {error}")
        return dataset


def _make_room(directory: Path, dataset: Dataset) -> None:
    needed = dataset.rows * (len(dataset.classes) + 2)
    try:
        make_room(directory, needed)
    except StorageError as error:
        raise OSError(error.what) from None


def _write_apart(dataset: Dataset, split: str, root: Path, content: dict[str, Any]) -> None:
    """Calls `_write`, for many rows in a process of its own, whose memory is given back.

    Raises:
        OSError: the cache cannot be written, or that process was killed.
    """
    if dataset.rows < APART_FROM_ROWS:
        _write(dataset, split, root, content)
        return
    # spawn: a forked copy of a process that runs Ray's threads may inherit a lock that nobody will
    # ever release.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            pool.submit(_write, dataset, split, root, content).result()
        except BrokenProcessPool:
            raise OSError("the process that wrote them was killed") from None


def _write(dataset: Dataset, split: str, root: Path, content: dict[str, Any]) -> None:
    parts = np.zeros(dataset.rows, np.uint8)
    for number, part in enumerate(PARTS, 1):
        parts[dataset.part_rows(split, part)] = number
    arrays = {TARGETS: dataset.targets, KNOWN: dataset.known.view(np.uint8), PARTS_FILE: parts}
    sums = {name: crc32(np.ascontiguousarray(values).data) for name, values in arrays.items()}
    try:
        root.mkdir(exist_ok=True)
        for name, values in arrays.items():
            # A new file: other processes may have mapped the one that is there.
            written = root / f"{name}{NEW}"
            values.tofile(written)
            written.replace(root / name)
        # Last: it promises that the others are complete.
        (root / CONTENT_FILE).write_text(json.dumps(content | {"crc32": sums}))
    except OSError:
        shutil.rmtree(root, ignore_errors=True)
        raise


def _verified(dataset: Dataset, split: str, root: Path) -> MappedRows | None:
    """Maps the files of an earlier process; None where one is missing or has changed."""
    try:
        sums = json.loads((root / CONTENT_FILE).read_text())["crc32"]
        mapped = _mapped(dataset, split, root)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    arrays = {TARGETS: mapped.targets, KNOWN: mapped.known, PARTS_FILE: mapped.parts}
    for name, values in arrays.items():
        # The map itself: a copy would take the memory that mapping saves.
        if sums.get(name) != crc32(values.data):
            return None
    return mapped


def _mapped(dataset: Dataset, split: str, root: Path) -> MappedRows:
    rows = dataset.rows
    return MappedRows(
        targets=_map(root / TARGETS, (rows, len(dataset.classes))),
        known=_map(root / KNOWN, (rows,)).view(np.bool_),
        split=split,
        parts=_map(root / PARTS_FILE, (rows,)),
    )


def _map(path: Path, shape: tuple[int, ...]) -> Array:
    # "c": writable in memory alone, since torch warns of arrays that are not. Nobody writes.
    return np.memmap(path, np.uint8, "c", shape=shape)
