"""Where the tiles of a run lie: on the GPU, in this node's cache, or in their shards; chosen by size, said with the reason."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist

from raytrain.data.dataset import Dataset
from raytrain.errors import ConfigError, ResourceError, StorageError
from raytrain.log import EVERY_RANK, duration
from raytrain.tiles.cache import Store, check_store, default_directory, open_store, store_bytes
from raytrain.tiles.feeds import CacheFeed, DeviceFeed, Feed
from raytrain.tiles.stream import StreamFeed, stream_window
from raytrain.worker import Worker

logger = logging.getLogger(__name__)


# Of the GPU's free memory; the rest is for the network, its optimiser and what a step computes.
SHARE_OF_GPU = 0.5


@dataclass(frozen=True)
class Placed:
    """The tiles of a run: their feed, their side in pixels, and the shards that are shuffled together (None: all)."""

    feed: Feed
    size: int
    window: int | None
    store: Store | None


def place_tiles(
    dataset: Dataset,
    size: int,
    worker: Worker,
    *,
    choice: str,
    window_gb: float,
    order: tuple[int | None] | None,
) -> Placed:
    """Opens the tiles of a dataset for this process.

    Args:
        dataset: an opened dataset.
        size: side of the decoded tiles, pixels.
        worker: this process; all ranks call this together.
        choice: auto, device, cache or stream.
        window_gb: encoded tiles that streaming may hold in a window.
        order: the window of a run that goes on, whose order of tiles must not change; None for a new run.

    Raises:
        ConfigError: `device` without a GPU, or `stream` for a run that shuffles more together than a window holds.
        DataError, StorageError: as `open_store`.
        ResourceError: they do not fit into the GPU's memory.
    """
    store, reason = _store(dataset, size, worker, choice)
    streamed = _any(store is None, worker.world)
    largest = stream_window(dataset, window_gb) if streamed else None
    if order == (None,) and largest is not None:
        raise _other_order(reason)
    window = order[0] if order else largest
    if store is None:
        processes = max(0, worker.cpus // worker.local_world - 1)
        feed: Feed = StreamFeed(
            dataset, size, window=window, processes=processes, device=worker.device
        )
        shards = len(dataset.shards)
        path = f"streamed from the shards, {window or shards} of {shards} in a window"
    else:
        on_gpu, reason = goes_to_gpu(choice, store.pixels.nbytes, worker.device)
        feed = _uploaded(store, worker.device) if on_gpu else CacheFeed(store.pixels, worker.device)
        path = "on the GPU" if on_gpu else f"in {store.directory}"
    if worker.rank == 0:
        logger.info(
            f"tiles: {path}, {store_bytes(dataset, size) / 1e6:.0f} MB at {size} px ({reason})"
        )
    return Placed(feed, size, window, store)


def _uploaded(store: Store, device: torch.device) -> DeviceFeed:
    """The tiles of a store in the GPU's memory.

    Raises:
        ResourceError: they do not fit.
    """
    try:
        return DeviceFeed(store.pixels, device)
    except torch.OutOfMemoryError:
        free, whole = torch.cuda.mem_get_info(device)
    raise ResourceError(
        f"decoded tiles of {store.pixels.nbytes / 1e9:.1f} GB do not fit into the GPU's memory, of whose {whole / 1e9:.1f} GB "
        f"{free / 1e9:.1f} GB are free",
        "training reads them from there, and needs room beside them",
        "--tiles cache, or leave --tiles out",
    )


def planned(dataset: Dataset, size: int, device: torch.device, choice: str) -> str:
    """Where a run here would have its tiles, in words; refuses what `place_tiles` refuses before it decodes.

    Raises:
        ConfigError: `device` without a GPU.
        StorageError: the cache was asked for, or the GPU's memory behind it, and cannot be written or is too small.
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
    on_gpu, reason = goes_to_gpu(choice, needed, device)
    behind = f", and on the GPU ({reason})" if on_gpu else ""
    return f"tile cache: {needed / 1e6:.0f} MB at {size} px in {default_directory()}{behind}"


def goes_to_gpu(choice: str, size: int, device: torch.device) -> tuple[bool, str]:
    """Whether decoded tiles of so many bytes go to the GPU or stay in host memory, and why.

    Raises:
        ConfigError: they are to go there and there is none.
    """
    if choice == "device" and device.type != "cuda":
        raise ConfigError(
            "--tiles device needs a GPU, this worker has none",
            "device means the GPU's own memory",
            "--tiles cache, or leave it out",
        )
    if choice != "auto":
        return choice == "device", "as asked"
    if device.type != "cuda":
        return False, "no GPU"
    free = torch.cuda.mem_get_info(device)[0]
    fits = size <= SHARE_OF_GPU * free
    return (
        fits,
        f"{'at most' if fits else 'more than'} {SHARE_OF_GPU:.0%} of the GPU's {free / 1e9:.0f} GB that are free",
    )


def _store(dataset: Dataset, size: int, worker: Worker, choice: str) -> tuple[Store | None, str]:
    """The filled store, or None and the reason why there is none."""
    if choice == "stream":
        return None, "as asked"
    began = time.monotonic()
    try:
        store = open_store(
            dataset,
            size,
            processes=max(1, worker.cpus // worker.local_world),
            turn=(worker.local_rank, worker.local_world),
        )
    except StorageError as error:
        if choice != "auto":
            raise
        return None, error.what
    logger.info(
        f"tiles: rank {worker.rank} of {worker.world} decoded {store.decoded} of {dataset.rows} at {size} px"
        f" in {duration(time.monotonic() - began)}, the others were in {store.directory}",
        extra=EVERY_RANK,
    )
    return store, ""


def _other_order(reason: str) -> ConfigError:
    return ConfigError(
        f"this run shuffles the tiles of all shards together, streamed ones ({reason or 'on another rank'}) come in windows",
        "it would go on in another order than it began",
        "--tiles cache on a disk with room (export RAYTRAIN_CACHE=DIR), or a new run with --init-from and --tiles stream",
    )


def _any(flag: bool, world: int) -> bool:
    """Whether the flag is set on any rank, on every rank."""
    flags = [flag] * world
    if world > 1:
        dist.all_gather_object(flags, flag)
    return any(flags)
