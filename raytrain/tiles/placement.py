"""Decides where the tiles of a run are kept: on the GPU, in the tile cache, or in their shards.

The choice depends on the size of the tiles, unless the recipe names one. It is logged with its
reason.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist

from raytrain.data.dataset import Dataset
from raytrain.errors import ConfigError, ResourceError, StorageError
from raytrain.log import EVERY_RANK, duration
from raytrain.machine import cache_directory
from raytrain.tiles.cache import Store, check_store, open_store, store_bytes
from raytrain.tiles.feeds import CacheFeed, DeviceFeed, Feed
from raytrain.tiles.sampling import ShuffleWindow
from raytrain.tiles.stream import StreamFeed, stream_window
from raytrain.worker import Worker

logger = logging.getLogger(__name__)

# Of the GPU's free memory. The rest is for the network, the optimiser and the activations.
SHARE_OF_GPU = 0.5


@dataclass(frozen=True)
class Tiles:
    """The opened tiles of a run.

    Attributes:
        feed: yields the pictures of batches.
        size: side of the decoded tiles, pixels.
        window: number of shards that are shuffled together; None for all.
        store: the decoded tiles in the cache, or None if this rank streams them.
    """

    feed: Feed
    size: int
    window: int | None
    store: Store | None


def open_tiles(
    dataset: Dataset,
    size: int,
    worker: Worker,
    *,
    choice: str,
    window_gb: float,
    resumed: ShuffleWindow | None,
) -> Tiles:
    """Opens the tiles of a dataset for this process. All ranks call it together.

    Args:
        dataset: an opened dataset.
        size: side of the decoded tiles, pixels.
        worker: this process.
        choice: auto, device, cache or stream.
        window_gb: gigabytes of encoded tiles that streaming may hold in a window.
        resumed: the window of a run that resumes, whose order of tiles must not change; None for a
            new run, which may choose.

    Raises:
        ConfigError: `device` without a GPU, or streaming in a run that shuffles more shards
            together than a window holds.
        DataError, StorageError: as `open_store`.
        ResourceError: the tiles do not fit into the memory of the GPU.
    """
    store, reason = _store(dataset, size, worker, choice)
    # If a single rank has to stream, all ranks shuffle in windows: their order must be the same.
    largest = None
    if _on_any_rank(store is None, worker.world):
        largest = stream_window(dataset, window_gb)
    window = _shuffle_window(largest, resumed, reason)
    if store is None:
        feed: Feed = _streamed(dataset, size, worker, window)
        shards = len(dataset.shards)
        where = f"streamed from the shards, {window or shards} of {shards} in a window"
    else:
        feed, where, reason = _stored(store, worker.device, choice)
    if worker.leads:
        megabytes = store_bytes(dataset, size) / 1e6
        logger.info(f"tiles: {where}, {megabytes:.0f} MB at {size} px ({reason})")
    return Tiles(feed, size, window, store)


def _shuffle_window(largest: int | None, resumed: ShuffleWindow | None, reason: str) -> int | None:
    """Chooses how many shards are shuffled together.

    Args:
        largest: the most shards that may be; None for all.
        resumed: the window of a run that resumes, None for a new run.
        reason: why tiles are streamed on this rank; empty if they are not.
    """
    if resumed is None:
        return largest
    if resumed.shards is None and largest is not None:
        raise ConfigError(
            "this run shuffles the tiles of all shards together, but streamed tiles "
            f"({reason or 'on another rank'}) are shuffled in windows",
            "the run would continue in another order than it began in",
            "--tiles cache on a disk with room (export RAYTRAIN_CACHE=DIR), "
            "or a new run with --init-from and --tiles stream",
        )
    return resumed.shards


def _streamed(dataset: Dataset, size: int, worker: Worker, window: int | None) -> StreamFeed:
    # One of the CPUs of each process is left for the training thread.
    processes = max(0, worker.cpus // worker.local_world - 1)
    return StreamFeed(dataset, size, window=window, processes=processes, device=worker.device)


def _stored(store: Store, device: torch.device, choice: str) -> tuple[Feed, str, str]:
    """Returns the feed of a filled store, where its tiles are, and why."""
    on_gpu, reason = goes_to_gpu(choice, store.pixels.nbytes, device)
    if on_gpu:
        return _uploaded(store, device), "on the GPU", reason
    return CacheFeed(store.pixels, device), f"in {store.directory}", reason


def _uploaded(store: Store, device: torch.device) -> DeviceFeed:
    """Copies the tiles of a store into the memory of the GPU.

    Raises:
        ResourceError: they do not fit.
    """
    try:
        return DeviceFeed(store.pixels, device)
    except torch.OutOfMemoryError:
        free, total = torch.cuda.mem_get_info(device)
    # Raised outside the handler: the traceback of the first error would keep the partly filled
    # copy alive.
    raise ResourceError(
        f"decoded tiles of {store.pixels.nbytes / 1e9:.1f} GB do not fit into the GPU's memory: "
        f"{free / 1e9:.1f} GB of its {total / 1e9:.1f} GB are free",
        "training reads the tiles from there, and needs more memory for the network",
        "--tiles cache, or leave --tiles out",
    )


def planned_tiles(dataset: Dataset, size: int, device: torch.device, choice: str) -> str:
    """Describes where the tiles of a run would be kept, for a dry run.

    It raises the errors that `open_tiles` raises before it decodes.

    Args:
        dataset: an opened dataset.
        size: side of the decoded tiles, pixels.
        device: the device that would train.
        choice: auto, device, cache or stream.

    Raises:
        ConfigError: `device` without a GPU.
        StorageError: the tiles cannot be cached, and `choice` is cache or device.
    """
    if choice == "stream":
        return "tiles: streamed from the shards (as asked)"
    needed = store_bytes(dataset, size)
    try:
        check_store(dataset, size)
    except StorageError as error:
        if choice != "auto":
            raise
        return f"tiles: streamed from the shards ({error.what})"
    cached = f"tile cache: {needed / 1e6:.0f} MB at {size} px in {cache_directory()}"
    on_gpu, reason = goes_to_gpu(choice, needed, device)
    if not on_gpu:
        return cached
    return f"{cached}, and on the GPU ({reason})"


def goes_to_gpu(choice: str, size: int, device: torch.device) -> tuple[bool, str]:
    """Decides whether decoded tiles are copied to the GPU or stay in host memory.

    Args:
        choice: auto, device or cache.
        size: bytes of the decoded tiles.
        device: the device that trains.

    Returns:
        Whether they are copied to the GPU, and the reason.

    Raises:
        ConfigError: `choice` is device, and there is no GPU.
    """
    if choice == "device" and device.type != "cuda":
        raise ConfigError(
            "--tiles device needs a GPU, but this worker has none",
            "device means the GPU's own memory",
            "--tiles cache, or leave it out",
        )
    if choice != "auto":
        return choice == "device", "as asked"
    if device.type != "cuda":
        return False, "no GPU"
    free, _ = torch.cuda.mem_get_info(device)
    limit = f"{SHARE_OF_GPU:.0%} of the GPU's {free / 1e9:.0f} GB that are free"
    if size <= SHARE_OF_GPU * free:
        return True, f"at most {limit}"
    return False, f"more than {limit}"


def _store(dataset: Dataset, size: int, worker: Worker, choice: str) -> tuple[Store | None, str]:
    """Opens and fills the store. Returns it, or None and the reason why the tiles are streamed."""
    if choice == "stream":
        return None, "as asked"
    began = time.monotonic()
    processes = max(1, worker.cpus // worker.local_world)
    turn = (worker.local_rank, worker.local_world)
    try:
        store = open_store(dataset, size, processes=processes, turn=turn)
    except StorageError as error:
        if choice != "auto":
            raise
        return None, error.what
    seconds = duration(time.monotonic() - began)
    logger.info(
        f"tiles: rank {worker.rank} of {worker.world} decoded {store.decoded} of {dataset.rows} "
        f"at {size} px in {seconds}, the others were in {store.directory}",
        extra=EVERY_RANK,
    )
    return store, ""


def _on_any_rank(flag: bool, world: int) -> bool:
    """Whether the flag is set on any rank. All ranks call it together."""
    flags = [flag] * world
    if world > 1:
        dist.all_gather_object(flags, flag)
    return any(flags)
