"""Decoded tiles of a dataset on this node's disk, mapped by every process that trains on them.

    <cache>/<key>/tiles.u8           uint8 (rows, size, size, 3)
    <cache>/<key>/shard-00000.json   crc32 of that shard's pixels, written when they are complete
    <cache>/<key>/store.json         what the store holds; its time of change says when it was last opened

Whatever changed in a store since it was filled is found when it is opened, and decoded again: all pixels are compared
with their crc32, each process of a node its share. That reads the 8 GB of Planet at 256 px, which training reads next
anyway, and takes 1.2 s of a core's time (measured: 6.7 GB/s). What changes while a run has it open is not found.

The first process that needs a shard decodes it, under a lock of the kernel that ends with the process, so a killed
process leaves nothing locked. The key covers the dataset's hash, the tile size and the decoder's version; a second run
decodes nothing. `RAYTRAIN_CACHE` names the folder, `RAYTRAIN_CACHE_GB` the most it may hold (default 100): the stores
that were not opened for longest go first, never one that is in use. No torch, no ray.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from zlib import crc32

import numpy as np

from raytrain import storage
from raytrain.data import images
from raytrain.data.dataset import POOL_FROM_TILES, PROGRESS_EVERY_S, Dataset, read_shard
from raytrain.errors import ConfigError, DataError, StorageError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shard:
    """Where a shard's tiles come from and where they go: rows [first, first + rows) of the store."""

    number: int
    path: str
    sha256: str
    first: int
    rows: int


@dataclass(frozen=True)
class Store:
    """A filled store. `pixels` is a read-only map, uint8 (rows, size, size, 3); `decoded` counts this process's work."""

    directory: Path
    pixels: np.ndarray[Any, Any]
    decoded: int
    lease: IO[bytes]

    @property
    def size(self) -> int:
        """Side of the stored tiles, pixels."""
        return int(self.pixels.shape[1])


def stored_size(native: int, stage_sizes: Sequence[int]) -> int:
    """Side at which tiles are stored: native when that is at most twice the largest stage, else the largest stage.

    It depends on the recipe's whole list of stages, so that chained runs of parts of the list see equal pixels.
    """
    largest = max(stage_sizes)
    return native if native <= 2 * largest else largest


def default_directory() -> Path:
    """`RAYTRAIN_CACHE`, else `raytrain` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("RAYTRAIN_CACHE") or f"{base}/raytrain").expanduser()


def store_bytes(dataset: Dataset, size: int) -> int:
    """Bytes on disk of the dataset's store."""
    return dataset.rows * size * size * 3


def open_store(
    dataset: Dataset,
    size: int,
    *,
    directory: Path | None = None,
    processes: int = 1,
    turn: tuple[int, int] = (0, 1),
) -> Store:
    """Opens the store of a dataset, decoding what is missing; several processes may do so at once.

    Args:
        dataset: an opened dataset.
        size: side of the stored tiles, pixels.
        directory: cache folder.
        processes: CPUs that this caller may use for decoding.
        turn: (position, callers) among the processes of this node; each verifies its share and starts with it.

    Raises:
        DataError: a shard is damaged, or a picture no longer passes the gate.
        StorageError: the disk is too small or cannot be written.
    """
    directory = directory or default_directory()
    with _failures(directory):
        root, lease = _make_store(dataset, size, directory)
        shards = _shards(dataset)
        shape = (dataset.rows, size, size, 3)
        pixels = np.memmap(root / "tiles.u8", np.uint8, "r", shape=shape)
        for shard in shards[turn[0] :: turn[1]]:
            _drop_if_damaged(root, shard, pixels)
        decoded = _fill(root, shards[turn[0] :] + shards[: turn[0]], shape, processes)
        return Store(root, pixels, decoded, lease)


def check_store(dataset: Dataset, size: int, directory: Path | None = None) -> None:
    """Refuses what `open_store` would refuse before it decodes. Makes the cache folder, and removes nothing in it.

    Raises:
        ConfigError: RAYTRAIN_CACHE_GB is no number.
        StorageError: the disk is too small or cannot be written.
    """
    directory = directory or default_directory()
    with _failures(directory):
        root = directory / _key(_content(dataset, size))
        directory.mkdir(parents=True, exist_ok=True)
        with _locked(directory / "cache.lock"):
            if (root / "store.json").exists():
                with (root / "in-use.lock").open("ab"):
                    return
            held = _held(directory)
            used = sum(held[root] for root in held if _is_in_use(root))
            _check_room(directory, store_bytes(dataset, size), used, sum(held.values()) - used)


@contextmanager
def _failures(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write the tile cache {directory}: {error.strerror or error}",
            "decoded tiles are kept there so that they are decoded once",
            "export RAYTRAIN_CACHE=DIR with a folder on a local disk",
        ) from None


def _shards(dataset: Dataset) -> list[Shard]:
    starts = np.concatenate([[0], np.cumsum(dataset.shard_rows)])[:-1]
    return [
        Shard(i, path, entry["sha256"], int(first), entry["rows"])
        for i, (path, first, entry) in enumerate(
            zip(dataset.shards, starts, dataset.manifest["shards"], strict=True)
        )
    ]


def _make_store(dataset: Dataset, size: int, directory: Path) -> tuple[Path, IO[bytes]]:
    content = _content(dataset, size)
    root = directory / _key(content)
    directory.mkdir(parents=True, exist_ok=True)
    with _locked(directory / "cache.lock"):
        if not (root / "store.json").exists():
            _make_room(directory, store_bytes(dataset, size))
            _reserve(root, store_bytes(dataset, size))
            storage.write_json(str(root / "store.json"), content)
        # The lease keeps other processes from removing the store for as long as this one lives.
        lease = (root / "in-use.lock").open("ab")
        fcntl.flock(lease, fcntl.LOCK_SH)
        os.utime(root / "store.json")
        return root, lease


def _content(dataset: Dataset, size: int) -> dict[str, Any]:
    return {
        "dataset": dataset.hash,
        "size": size,
        "decoder": images.DECODER_VERSION,
        "rows": dataset.rows,
    }


def _key(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _reserve(root: Path, size: int) -> None:
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    try:
        with (root / "tiles.u8").open("wb") as file:
            # Not a sparse file: a disk that fills up later would kill the process that writes into the map.
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError:
        shutil.rmtree(root, ignore_errors=True)
        raise


def _limit() -> int:
    text = os.environ.get("RAYTRAIN_CACHE_GB") or "100"
    try:
        return int(float(text) * 1e9)
    except ValueError:
        raise ConfigError(
            f'the environment variable RAYTRAIN_CACHE_GB = "{text}" is not a number',
            "it limits the tile cache, in gigabytes",
            "export RAYTRAIN_CACHE_GB=100",
        ) from None


def _make_room(directory: Path, needed: int) -> None:
    limit = _limit()
    held = _held(directory)
    for root in held:
        if sum(held.values()) + needed <= limit and shutil.disk_usage(directory).free > needed:
            break
        if _remove_unused(root):
            held[root] = 0
    _check_room(directory, needed, sum(held.values()), 0)


def _held(directory: Path) -> dict[Path, int]:
    """Bytes of the tiles of each store, the one that was not opened for longest first."""
    stores = sorted(directory.glob("*/store.json"), key=lambda path: path.stat().st_mtime)
    return {path.parent: (path.parent / "tiles.u8").stat().st_size for path in stores}


def _check_room(directory: Path, needed: int, used: int, removable: int) -> None:
    """Refuses a store of so many bytes beside `used` ones that stay, where it has no room after `removable` ones went."""
    limit, free = _limit(), shutil.disk_usage(directory).free + removable
    if used + needed > limit:
        raise StorageError(
            f"the decoded tiles need {needed / 1e9:.1f} GB beside {used / 1e9:.1f} GB in use, the tile cache "
            f"may hold {limit / 1e9:.1f} GB",
            "decoded tiles are kept on disk so that they are decoded once",
            f"export RAYTRAIN_CACHE_GB={-(-(used + needed) // 10**9)}",
        )
    if free < needed:
        raise StorageError(
            f"the decoded tiles need {needed / 1e9:.1f} GB, {directory} has {free / 1e9:.1f} GB free",
            "decoded tiles are kept on disk so that they are decoded once",
            "export RAYTRAIN_CACHE=DIR with a folder on a larger disk",
        )


def _is_in_use(root: Path) -> bool:
    with (root / "in-use.lock").open("ab") as lease:
        try:
            fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def _remove_unused(root: Path) -> bool:
    with (root / "in-use.lock").open("ab") as lease:
        try:
            fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        shutil.rmtree(root)
        return True


def _drop_if_damaged(root: Path, shard: Shard, pixels: np.ndarray[Any, Any]) -> None:
    marker = _marker(root, shard)
    with _locked(root / f"shard-{shard.number:05}.lock"):
        if marker.exists():
            found = _checksum(pixels[shard.first : shard.first + shard.rows])
            # Not parsed: what is damaged may be no JSON any more.
            if marker.read_bytes().strip() != str(found).encode():
                marker.unlink()


def _fill(root: Path, shards: list[Shard], shape: tuple[int, ...], processes: int) -> int:
    """Decodes what no other process has decoded or is decoding, then waits for the others. Returns tiles decoded."""
    decoded, said = 0, time.monotonic()
    while missing := [shard for shard in shards if not _marker(root, shard).exists()]:
        before = decoded
        for rows in _map(processes, missing, root, shape):
            decoded += rows
            if time.monotonic() - said > PROGRESS_EVERY_S:
                said = time.monotonic()
                logger.info(f"  tiles: {decoded} of {shape[0]} decoded by this process")
        if decoded == before:
            time.sleep(0.05)
    return decoded


def _map(processes: int, missing: list[Shard], root: Path, shape: tuple[int, ...]) -> Iterator[int]:
    if processes > 1 and sum(shard.rows for shard in missing) >= POOL_FROM_TILES:
        # spawn: a fork of a process that runs Ray's threads may inherit a lock that nobody will release.
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            yield from pool.map(
                _decode_shard, missing, [root] * len(missing), [shape] * len(missing)
            )
    else:
        yield from (_decode_shard(shard, root, shape) for shard in missing)


def _decode_shard(shard: Shard, root: Path, shape: tuple[int, ...]) -> int:
    """Decodes one shard unless another process has it. Returns the number of tiles decoded."""
    with _locked(root / f"shard-{shard.number:05}.lock", wait=False) as mine:
        if not mine or _marker(root, shard).exists():
            return 0
        pixels = np.memmap(root / "tiles.u8", np.uint8, "r+", shape=shape)
        view = pixels[shard.first : shard.first + shard.rows]
        table = read_shard(shard.path, ["image_name", "image", "crc32"], shard.sha256)
        for row, (name, content, check) in enumerate(
            zip(*(c.to_pylist() for c in table.columns), strict=True)
        ):
            view[row] = decode_checked(content, check, shape[1], f"{name} in {shard.path}")
        pixels.flush()
        storage.write_json(str(_marker(root, shard)), _checksum(view))
        return shard.rows


def decode_checked(content: bytes, check: int, size: int, where: str) -> np.ndarray[Any, Any]:
    """An encoded tile as uint8 (size, size, 3), after its crc32 was compared with `check`.

    Raises:
        DataError: damaged; the sentence names the tile by `where`.
    """
    try:
        if crc32(content) == check:
            return images.decode(content, size)
        reason = "its bytes do not match the crc32 written at ingest"
    except images.BadImage as error:
        reason = f"{error.kind}: {error.detail}"
    raise DataError(
        f"the picture {where} is damaged ({reason})",
        "the network would learn from wrong pixels",
        "raytrain data check DATASET; then ingest again into a new directory",
    )


def _checksum(pixels: np.ndarray[Any, Any]) -> int:
    return crc32(np.ascontiguousarray(pixels).data)


def _marker(root: Path, shard: Shard) -> Path:
    return root / f"shard-{shard.number:05}.json"


@contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Holds the file's lock; with wait=False yields False where another process holds it."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
