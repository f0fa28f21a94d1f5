"""Parts of the check: no step waits for the device, and feeds give the right pictures. No Ray."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from raytrain.bench.check_common import opened_stage
from raytrain.bench.stage import OpenStage
from raytrain.bench.verdicts import NEEDS_GPU, Found, Setting, Skip, Verdict, tried
from raytrain.data.dataset import open_dataset
from raytrain.tiles.cache import open_store, stored_size
from raytrain.tiles.feeds import CacheFeed, DeviceFeed, Feed
from raytrain.tiles.sampling import Rows
from raytrain.tiles.stream import StreamFeed

# Batches that are compared, for each feed.
BATCHES = 200
# GPU cycles, about 2 ms: the training stream is busy so long for each batch, so that the copies of
# later batches get ahead of it and could overwrite what it still reads.
BUSY_CYCLES = 4_000_000
FEEDS = ("device", "cache", "stream")
# uint8 (N, S, S, 3): the decoded tiles of a dataset.
Pixels = np.ndarray[Any, Any]


def waits(setting: Setting) -> Iterator[Verdict]:
    """Trains from the second step on while torch refuses that the host waits for the device."""
    for tiles in FEEDS:
        for how in ("eager", "graphs"):
            yield tried("waits", f"{tiles}, {how}", partial(_no_wait, setting, tiles, how))


def _no_wait(setting: Setting, tiles: str, how: str) -> Found:
    if tiles == "device" and not setting.on_gpu:
        raise Skip(NEEDS_GPU)
    with opened_stage(setting, how, [{}], tiles=tiles, precision=setting.precision) as opened:
        outcomes = opened.train_through(_full_batches(opened, setting))
        opened.model.train()
        # The first step may wait: it allocates memory and starts the threads.
        next(outcomes)
        done = 0
        with _waits_refused(setting.on_gpu):
            for _ in outcomes:
                done += 1
    return Found(True, f"{done} steps without a wait", {"steps": done})


def _full_batches(opened: OpenStage, setting: Setting) -> list[Rows]:
    """Batches for the steps that are watched, repeated where an epoch has too few of them.

    All are given as one epoch, so that no end of an epoch, where waiting is right, is watched.
    """
    repeated = opened.batches(1) * setting.steps
    full = [rows for rows in repeated[: setting.steps + 1] if len(rows) == setting.batch]
    return full[: setting.steps]


@contextmanager
def _waits_refused(on_gpu: bool) -> Iterator[None]:
    """Makes torch raise RuntimeError where the host waits for the GPU; on a CPU nothing waits."""
    if not on_gpu:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def feeds(setting: Setting) -> Iterator[Verdict]:
    """Compares checksums of many batches of each feed to those of the decoded tiles.

    On a GPU the training stream is kept busy meanwhile.
    """
    dataset = open_dataset(setting.dataset)
    side = stored_size(dataset.tile_size, [setting.size])
    store = open_store(dataset, side)
    device = torch.device(setting.device)
    processes = 0
    batches = setting.steps
    if setting.on_gpu:
        processes = 2
        batches = BATCHES
    streamed = StreamFeed(dataset, side, window=None, processes=processes, device=device)
    made: dict[str, Feed] = {
        "device": DeviceFeed(store.pixels, device),
        "cache": CacheFeed(store.pixels, device),
        "stream": streamed,
    }
    generator = np.random.default_rng(0)
    wanted = [generator.integers(0, dataset.rows, setting.batch) for _ in range(batches)]
    for name, feed in made.items():
        with closing(feed):
            yield tried("feeds", name, partial(_same_pictures, feed, store.pixels, wanted, device))


def _same_pictures(feed: Feed, pixels: Pixels, wanted: list[Rows], device: torch.device) -> Found:
    """Compares the batches of a feed to the pixels of the store.

    Args:
        feed: to be checked.
        pixels: the right ones, uint8 (N, S, S, 3).
        wanted: rows of each batch, int64 (B,).
        device: where the feed puts its batches.
    """
    weights = _weights(pixels.shape[1:], device)
    host_weights = _weights(pixels.shape[1:], torch.device("cpu"))
    # Read at the end: reading each sum would make the host wait, and no copy would get ahead.
    found = torch.stack(list(_checksums(feed(iter(wanted)), weights, device))).cpu()
    right = []
    for rows in wanted:
        right.append(_checksum(torch.from_numpy(pixels[rows]), host_weights))
    wrong = int((found != torch.stack(right)).sum())
    detail = f"{wrong} of {len(wanted)} batches differ from the store"
    return Found(wrong == 0, detail, {"wrong": wrong})


def _checksums(
    pictures: Iterable[torch.Tensor], weights: torch.Tensor, device: torch.device
) -> Iterator[torch.Tensor]:
    """The checksum of each batch, uint8 (B, 3, S, S), on its device."""
    for picture in pictures:
        if device.type == "cuda":
            # torch has no public way to keep a stream busy for some time.
            torch.cuda._sleep(BUSY_CYCLES)
        # To (B, S, S, 3), the order of the store.
        yield _checksum(picture.permute(0, 2, 3, 1), weights)


def _checksum(pictures: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """A number, int64 (), that another tile, position or colour would change.

    Args:
        pictures: uint8 (B, S, S, 3).
        weights: int64 (S, S, 3).
    """
    # The sums overflow, but integers do so in the same way on every device.
    order = torch.arange(1, len(pictures) + 1, device=pictures.device)
    of_each = (pictures.long() * weights).flatten(1).sum(1)
    return (of_each * order).sum()


def _weights(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """A random weight for each position and colour, int64; the same on every device."""
    generator = np.random.default_rng(1)
    return torch.from_numpy(generator.integers(1, 2**20, shape)).to(device)
