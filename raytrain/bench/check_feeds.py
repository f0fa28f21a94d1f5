"""Of a check: that no step waits for the device, and that every feed gives the right pictures under load. No ray."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from raytrain.bench.check_numbers import in_stage
from raytrain.bench.verdicts import NEEDS_GPU, Found, Setting, Skip, Verdict, tried
from raytrain.data.dataset import open_dataset
from raytrain.tiles.cache import open_store, stored_size
from raytrain.tiles.feeds import CacheFeed, DeviceFeed, Feed
from raytrain.tiles.sampling import Rows
from raytrain.tiles.stream import StreamFeed
from raytrain.training.loop import Trainer
from raytrain.training.step import Stepper

BATCHES = 200
# About 2 ms of the training stream for each batch, so that copies get ahead of it.
BUSY_CYCLES = 4_000_000
FEEDS = ("device", "cache", "stream")


def waits(setting: Setting) -> Iterator[Verdict]:
    """Steps from the second one on, while torch refuses every wait of the host for the device."""
    for tiles in FEEDS:
        for how in ("eager", "graphs"):
            yield tried("waits", f"{tiles}, {how}", partial(_no_wait, setting, tiles, how))


def _no_wait(setting: Setting, tiles: str, how: str) -> Found:
    if tiles == "device" and not setting.on_gpu:
        raise Skip(NEEDS_GPU)
    done = [0]

    def work(trainer: Trainer, step: Stepper) -> None:
        # Longer than one epoch of the few tiles: no epoch's end falls into the steps that are watched.
        batches = (trainer.batches(1, 1) * setting.steps)[: setting.steps + 1]
        outcomes = step.epoch(
            [rows for rows in batches if len(rows) == setting.batch][: setting.steps], 1
        )
        trainer.model.train()
        next(outcomes)
        with _waits_refused(setting.on_gpu):
            for _ in outcomes:
                done[0] += 1

    in_stage(
        setting,
        how,
        [{}],
        {"tiles": tiles, "precision": "bf16" if setting.on_gpu else "fp32"},
        work,
    )
    return True, f"{done[0]} steps without a wait", {"steps": done[0]}


@contextmanager
def _waits_refused(on_gpu: bool) -> Iterator[None]:
    if not on_gpu:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def feeds(setting: Setting) -> Iterator[Verdict]:
    """Checksums of the pictures of many batches, on a training stream that is busy, against those of the store."""
    dataset = open_dataset(setting.dataset)
    side = stored_size(dataset.tile_size, [setting.size])
    store = open_store(dataset, side)
    device = torch.device(setting.device)
    streamed = StreamFeed(
        dataset, side, window=None, processes=2 if setting.on_gpu else 0, device=device
    )
    made: dict[str, Feed] = {
        "device": DeviceFeed(store.pixels, device),
        "cache": CacheFeed(store.pixels, device),
        "stream": streamed,
    }
    chance = np.random.default_rng(0)
    count = BATCHES if setting.on_gpu else setting.steps
    wanted = [chance.integers(0, dataset.rows, setting.batch) for _ in range(count)]
    for name, feed in made.items():
        with closing(feed):
            yield tried("feeds", name, partial(_same_pictures, feed, store.pixels, wanted, device))


def _same_pictures(
    feed: Feed, pixels: np.ndarray[Any, Any], wanted: list[Rows], device: torch.device
) -> Found:
    paths = _weights(pixels.shape[1:], device)
    found = torch.stack(list(_sums(feed(iter(wanted)), paths, device))).cpu()
    host = _weights(pixels.shape[1:], torch.device("cpu"))
    right = torch.stack([_sum(torch.from_numpy(pixels[rows]), host) for rows in wanted])
    wrong = int((found != right).sum())
    return wrong == 0, f"{wrong} of {len(wanted)} batches differ from the store", {"wrong": wrong}


def _sums(
    pictures: Iterable[torch.Tensor], paths: torch.Tensor, device: torch.device
) -> Iterator[torch.Tensor]:
    for picture in pictures:
        if device.type == "cuda":
            torch.cuda._sleep(BUSY_CYCLES)
        yield _sum(picture.permute(0, 2, 3, 1), paths)


def _sum(picture: torch.Tensor, paths: torch.Tensor) -> torch.Tensor:
    """A number that another tile, place or colour would change: int64, which overflows alike on every device."""
    order = torch.arange(1, len(picture) + 1, device=picture.device)
    return ((picture.long() * paths).flatten(1).sum(1) * order).sum()


def _weights(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """A random weight of each place and colour."""
    chance = np.random.default_rng(1)
    return torch.from_numpy(chance.integers(1, 2**20, shape)).to(device)
