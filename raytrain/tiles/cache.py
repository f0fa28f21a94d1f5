"""Keeps the decoded tiles of a dataset on a local disk, memory-mapped by every training process.

    <cache>/<key>/tiles.u8           uint8 (rows, size, size, C), or tiles.u16 of uint16
    <cache>/<key>/shard-00000.json   crc32 of the pixels of that shard, written when it is complete
    <cache>/<key>/store.json         what the store holds; its mtime is when it was last opened

Opening a store compares all pixels with their crc32; each process of a node checks its share.
Pixels that changed since the store was filled are decoded again. The check reads the 8 GB of
Planet at 256 px, which training reads next anyway. It takes 1.2 s on one core (measured: 6.7 GB/s).
Changes while a run has the store open are not detected.

The first process that needs a shard decodes it under a kernel lock. The lock ends with the process,
so a killed process leaves nothing locked. The key covers the hash of the dataset, the tile size,
the version of the decoder, and channels and type of tiles other than 8-bit RGB. So a second run
decodes nothing.

`RAYTRAIN_CACHE` names the folder. `RAYTRAIN_CACHE_GB` limits its size (default 100). When space is
needed, the least recently opened stores are removed first, but never one that is in use.
Imports neither torch nor ray.
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
from typing import IO, Any, Literal
from zlib import crc32

import numpy as np

from raytrain import storage
from raytrain.config import Recipe
from raytrain.data import images
from raytrain.data.dataset import POOL_FROM_TILES, PROGRESS_EVERY_S, Dataset, read_shard
from raytrain.data.pixels import decode
from raytrain.data.tile_format import TileFormat
from raytrain.errors import ConfigError, DataError, StorageError
from raytrain.machine import cache_directory, cache_limit

logger = logging.getLogger(__name__)

# Held while stores are made or removed.
CACHE_LOCK = "cache.lock"
# By the type of the pixels.
PIXELS_FILES = {"uint8": "tiles.u8", "uint16": "tiles.u16"}
CONTENT_FILE = "store.json"
# Every process that has a store open holds a shared lock on this file of the store.
LEASE_FILE = "in-use.lock"
# Between two checks whether other processes have finished their shards.
WAIT_S = 0.05


@dataclass(frozen=True)
class Layout:
    """How a store holds its pixels.

    Attributes:
        rows: number of tiles.
        size: their side in pixels.
        tiles: their format.
    """

    rows: int
    size: int
    tiles: TileFormat

    @property
    def file(self) -> str:
        """Name of the file with the pixels."""
        return PIXELS_FILES[self.tiles.dtype]

    @property
    def bytes(self) -> int:
        """Size of that file."""
        values = self.rows * self.size * self.size * self.tiles.channels
        return values * self.tiles.bytes_per_value

    def mapped(self, root: Path, mode: Literal["r", "r+"]) -> np.memmap[Any, Any]:
        """Maps the pixels, (rows, size, size, C), to read them or to write them too."""
        shape = (self.rows, self.size, self.size, self.tiles.channels)
        return np.memmap(root / self.file, self.tiles.dtype, mode, shape=shape)


@dataclass(frozen=True)
class Shard:
    """A shard of the dataset. Its tiles are the rows [first, first + rows) of the store."""

    number: int
    path: str
    sha256: str
    first: int
    rows: int


@dataclass(frozen=True)
class Store:
    """A filled store.

    Attributes:
        directory: the folder of the store.
        pixels: uint8 or uint16 (rows, size, size, C), a read-only memory map.
        decoded: number of tiles that this process decoded when it opened the store.
        lease: the open lock file that keeps the store from being removed.
    """

    directory: Path
    pixels: np.ndarray[Any, Any]
    decoded: int
    lease: IO[bytes]

    @property
    def size(self) -> int:
        """Side of the stored tiles in pixels."""
        return int(self.pixels.shape[1])


def stored_size(native: int, stage_sizes: Sequence[int]) -> int:
    """Chooses the side at which tiles are stored.

    That is the native side if it is at most twice the side of the largest stage. Otherwise it is
    the side of the largest stage. The choice depends on all stages of the recipe, even if a run
    trains only some of them: chained runs of parts of one recipe then see equal pixels.

    Args:
        native: side of the tiles in the dataset, pixels.
        stage_sizes: sides of all stages of the recipe, pixels.
    """
    largest = max(stage_sizes)
    if native <= 2 * largest:
        return native
    return largest


def kept_size(recipe: Recipe, dataset: Dataset) -> int:
    """Returns the side at which the tiles of a run are stored, pixels.

    Raises:
        ConfigError: `data.stored_size` is larger than the tiles.
    """
    wanted = recipe.data.stored_size
    if wanted is None:
        return stored_size(dataset.tile_size, [stage.size for stage in recipe.stages])
    if wanted > dataset.tile_size:
        raise ConfigError(
            f"data.stored_size = {wanted}, but the tiles of {dataset.path} have "
            f"{dataset.tile_size} px",
            "enlarged tiles take more space and show nothing more",
            f"--data.stored-size {dataset.tile_size}, or leave it out",
        )
    return wanted


def store_bytes(dataset: Dataset, size: int) -> int:
    """Returns the bytes on disk of the decoded tiles of a dataset, with a side of `size` pixels."""
    return _layout(dataset, size).bytes


def _layout(dataset: Dataset, size: int) -> Layout:
    return Layout(dataset.rows, size, dataset.tile_format)


def open_store(
    dataset: Dataset,
    size: int,
    *,
    directory: Path | None = None,
    processes: int = 1,
    turn: tuple[int, int] = (0, 1),
) -> Store:
    """Opens the store of a dataset and decodes what is missing.

    Several processes may do so at the same time.

    Args:
        dataset: an opened dataset.
        size: side of the stored tiles, pixels.
        directory: the cache folder; None for the default one.
        processes: CPUs that this caller may use for decoding.
        turn: (position, callers) among the processes of this node. Each one verifies its share of
            the shards, and begins to decode at another shard.

    Raises:
        DataError: a shard is damaged, or a picture no longer passes the checks of the decoder.
        StorageError: the disk is too small or cannot be written.
    """
    directory = directory or cache_directory()
    position, callers = turn
    with _storage_errors(directory):
        root, lease = _make_store(dataset, size, directory)
        shards = _shards(dataset)
        layout = _layout(dataset, size)
        pixels = layout.mapped(root, "r")
        for shard in shards[position::callers]:
            _drop_if_damaged(root, shard, pixels)
        # Each process begins at its own position, so that they do not compete for the same shard.
        rotated = shards[position:] + shards[:position]
        decoded = _fill(root, rotated, layout, processes)
        return Store(root, pixels, decoded, lease)


def check_store(dataset: Dataset, size: int, directory: Path | None = None) -> None:
    """Raises the errors that `open_store` would raise before it decodes.

    It makes the cache folder, and removes nothing in it.

    Args:
        dataset: an opened dataset.
        size: side of the stored tiles, pixels.
        directory: the cache folder; None for the default one.

    Raises:
        ConfigError: RAYTRAIN_CACHE_GB is not a number.
        StorageError: the disk is too small or cannot be written.
    """
    directory = directory or cache_directory()
    with _storage_errors(directory):
        root = directory / _key(_content(dataset, size))
        directory.mkdir(parents=True, exist_ok=True)
        with storage.file_lock(directory / CACHE_LOCK):
            if (root / CONTENT_FILE).exists():
                # Fails if this process has no permission to take a lease.
                with (root / LEASE_FILE).open("ab"):
                    return
            used, removable = 0, 0
            for store, held in _store_sizes(directory).items():
                if _is_in_use(store):
                    used += held
                else:
                    removable += held
            _check_room(directory, store_bytes(dataset, size), used, removable)


@contextmanager
def _storage_errors(directory: Path) -> Iterator[None]:
    """Turns an error of the operating system into a StorageError that names the cache folder."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write the tile cache {directory}: {error.strerror or error}",
            "decoded tiles are kept there so that they are decoded once",
            "export RAYTRAIN_CACHE=DIR with a folder on a local disk",
        ) from None


def _shards(dataset: Dataset) -> list[Shard]:
    shards = []
    for number, entry in enumerate(dataset.manifest["shards"]):
        path = dataset.shards[number]
        first = int(dataset.shard_starts[number])
        shards.append(Shard(number, path, entry["sha256"], first, entry["rows"]))
    return shards


def _make_store(dataset: Dataset, size: int, directory: Path) -> tuple[Path, IO[bytes]]:
    """Makes the store if it does not exist. Returns its folder and the lease of this process."""
    content = _content(dataset, size)
    root = directory / _key(content)
    directory.mkdir(parents=True, exist_ok=True)
    with storage.file_lock(directory / CACHE_LOCK):
        if not (root / CONTENT_FILE).exists():
            layout = _layout(dataset, size)
            make_room(directory, layout.bytes)
            _reserve(root, layout)
            storage.write_json(str(root / CONTENT_FILE), content)
        # The lease keeps other processes from removing the store for as long as this one lives.
        lease = (root / LEASE_FILE).open("ab")
        fcntl.flock(lease, fcntl.LOCK_SH)
        os.utime(root / CONTENT_FILE)
        return root, lease


def _content(dataset: Dataset, size: int) -> dict[str, Any]:
    content: dict[str, Any] = {
        "dataset": dataset.hash,
        "size": size,
        "decoder": images.DECODER_VERSION,
        "rows": dataset.rows,
    }
    tiles = dataset.tile_format
    # Not of RGB of 8 bits, whose stores keep the keys that they have.
    if not tiles.is_plain:
        content |= {"channels": tiles.channels, "dtype": tiles.dtype}
    return content


def _key(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _reserve(root: Path, layout: Layout) -> None:
    """Makes the folder of a store anew, with a file for all of its pixels."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    try:
        with (root / layout.file).open("wb") as file:
            # Not a sparse file: writing into the map of one on a full disk kills the process
            # with SIGBUS.
            os.posix_fallocate(file.fileno(), 0, layout.bytes)
    except OSError:
        shutil.rmtree(root, ignore_errors=True)
        raise


def make_room(directory: Path, needed: int) -> None:
    """Removes unused stores until new files fit, the least recently opened ones first.

    Args:
        directory: the cache folder, whose lock is held.
        needed: bytes of the new files.

    Raises:
        StorageError: they do not fit into the limit, or not on the disk.
    """
    limit = cache_limit()
    sizes = _store_sizes(directory)
    for root in sizes:
        within_limit = sum(sizes.values()) + needed <= limit
        if within_limit and shutil.disk_usage(directory).free > needed:
            break
        if _remove_unused(root):
            sizes[root] = 0
    _check_room(directory, needed, used=sum(sizes.values()), removable=0)


def _store_sizes(directory: Path) -> dict[Path, int]:
    """Bytes of each store, of pixels or of rows, the least recently opened one first."""

    def last_opened(content_file: Path) -> float:
        return content_file.stat().st_mtime

    sizes = {}
    for content_file in sorted(directory.glob(f"*/{CONTENT_FILE}"), key=last_opened):
        root = content_file.parent
        sizes[root] = sum(file.stat().st_size for file in root.glob("*.u*"))
    return sizes


def _check_room(directory: Path, needed: int, used: int, removable: int) -> None:
    """Checks that a new store fits.

    Args:
        directory: the cache folder.
        needed: bytes of the new store.
        used: bytes of the stores that stay.
        removable: bytes of the stores that can be removed for it.

    Raises:
        StorageError: it does not fit into the limit, or not on the disk.
    """
    limit = cache_limit()
    free = shutil.disk_usage(directory).free + removable
    if used + needed > limit:
        # Rounded up to whole gigabytes.
        enough = -(-(used + needed) // 10**9)
        raise StorageError(
            f"the decoded tiles need {needed / 1e9:.1f} GB in addition to {used / 1e9:.1f} GB in "
            f"use, but the tile cache may hold {limit / 1e9:.1f} GB",
            "decoded tiles are kept on disk so that they are decoded once",
            f"export RAYTRAIN_CACHE_GB={enough}",
        )
    if free < needed:
        raise StorageError(
            f"the decoded tiles need {needed / 1e9:.1f} GB, "
            f"{directory} has {free / 1e9:.1f} GB free",
            "decoded tiles are kept on disk so that they are decoded once",
            "export RAYTRAIN_CACHE=DIR with a folder on a larger disk",
        )


def _is_in_use(root: Path) -> bool:
    # An exclusive lock is refused while any process holds its shared lock, the lease.
    with storage.file_lock(root / LEASE_FILE, wait=False) as unused:
        return not unused


def _remove_unused(root: Path) -> bool:
    """Removes a store unless it is in use. Returns whether it was removed."""
    with storage.file_lock(root / LEASE_FILE, wait=False) as unused:
        if unused:
            shutil.rmtree(root)
        return unused


def _drop_if_damaged(root: Path, shard: Shard, pixels: np.ndarray[Any, Any]) -> None:
    """Removes the marker of a shard whose pixels have changed, so that it is decoded again."""
    marker = _marker(root, shard)
    with storage.file_lock(_shard_lock(root, shard)):
        if not marker.exists():
            return
        found = _checksum(pixels[shard.first : shard.first + shard.rows])
        # Compared as bytes: a damaged marker may no longer be JSON.
        if marker.read_bytes().strip() != str(found).encode():
            marker.unlink()


def _fill(root: Path, shards: list[Shard], layout: Layout, processes: int) -> int:
    """Decodes the missing shards together with other processes, and waits until all are complete.

    Returns:
        The number of tiles that this process decoded.
    """
    decoded = 0
    logged_at = time.monotonic()
    while True:
        missing = [shard for shard in shards if not _marker(root, shard).exists()]
        if not missing:
            return decoded
        before = decoded
        for rows in _decode_shards(missing, root, layout, processes):
            decoded += rows
            if time.monotonic() - logged_at > PROGRESS_EVERY_S:
                logged_at = time.monotonic()
                logger.info(f"  tiles: {decoded} of {layout.rows} decoded by this process")
        if decoded == before:
            # Other processes are decoding all that is missing.
            time.sleep(WAIT_S)


def _decode_shards(
    missing: list[Shard], root: Path, layout: Layout, processes: int
) -> Iterator[int]:
    """Decodes shards, in a process pool if there are many tiles. Yields the tiles of each one."""
    tiles = sum(shard.rows for shard in missing)
    if processes <= 1 or tiles < POOL_FROM_TILES:
        for shard in missing:
            yield _decode_shard(shard, root, layout)
        return
    # spawn: a forked copy of a process that runs Ray's threads may inherit a lock that nobody
    # will ever release.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context) as pool:
        count = len(missing)
        yield from pool.map(_decode_shard, missing, [root] * count, [layout] * count)


def _decode_shard(shard: Shard, root: Path, layout: Layout) -> int:
    """Decodes a shard unless another process has its lock. Returns the number of tiles decoded."""
    with storage.file_lock(_shard_lock(root, shard), wait=False) as locked:
        if not locked or _marker(root, shard).exists():
            return 0
        pixels = layout.mapped(root, "r+")
        view = pixels[shard.first : shard.first + shard.rows]
        table = read_shard(shard.path, ["image_name", "image", "crc32"], shard.sha256)
        columns = [column.to_pylist() for column in table.columns]
        for row, (name, content, check) in enumerate(zip(*columns, strict=True)):
            where = f"{name} in {shard.path}"
            view[row] = decode_checked(content, check, layout.size, where, layout.tiles)
        # The marker comes last: it promises that the pixels are complete.
        pixels.flush()
        storage.write_json(str(_marker(root, shard)), _checksum(view))
        return shard.rows


def decode_checked(
    content: bytes, check: int, size: int, where: str, tiles: TileFormat
) -> np.ndarray[Any, Any]:
    """Decodes a tile after comparing its encoded bytes with their checksum.

    Args:
        content: the encoded picture.
        check: crc32 of `content` that was written at ingest.
        size: side of the decoded tile, pixels.
        where: name of the tile in an error message.
        tiles: format of the dataset's tiles.

    Returns:
        uint8 or uint16 (size, size, C).

    Raises:
        DataError: the picture is damaged.
    """
    try:
        if crc32(content) == check:
            return decode(content, tiles, size)
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
    """The file that says that the pixels of a shard are complete; it holds their crc32."""
    return root / f"shard-{shard.number:05}.json"


def _shard_lock(root: Path, shard: Shard) -> Path:
    return root / f"shard-{shard.number:05}.lock"
