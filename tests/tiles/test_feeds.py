"""Feeds: what they give, in which order, and what they leave behind."""

import threading

import numpy as np
import pytest
import torch

from raytrain.tiles.feeds import CacheFeed, Source, ahead
from raytrain.training.memory import keep_freed_memory

CHANCE = np.random.default_rng(0)
PIXELS = CHANCE.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
TARGETS = torch.from_numpy(CHANCE.integers(0, 2, (20, 5), dtype=np.uint8))
WANTED = [np.array([3, 1, 4]), np.array([15, 9]), np.array([2, 6, 5, 3])]


def test_the_cache_gives_the_tiles_asked_for_in_channels_last_memory(tmp_path):
    file = np.memmap(tmp_path / "tiles.u8", np.uint8, "w+", shape=PIXELS.shape)
    file[:] = PIXELS
    mapped = np.memmap(tmp_path / "tiles.u8", np.uint8, "r", shape=PIXELS.shape)
    found = list(CacheFeed(mapped, torch.device("cpu"))(iter(WANTED)))
    for rows, picture in zip(WANTED, found, strict=True):
        np.testing.assert_array_equal(picture.permute(0, 2, 3, 1).numpy(), PIXELS[rows])
        assert picture.is_contiguous(memory_format=torch.channels_last)


def test_targets_and_row_numbers_come_with_the_pictures():
    source = Source(CacheFeed(PIXELS, torch.device("cpu")), TARGETS)
    for rows, batch in zip(WANTED, source.batches(iter(WANTED), torch.float64), strict=True):
        assert batch["index"].tolist() == rows.tolist()
        assert batch["target"].dtype == torch.float64 and torch.equal(
            batch["target"], TARGETS[rows].double()
        )


def test_what_a_thread_makes_ahead_keeps_its_order_and_its_bound():
    made = []

    def items():
        for n in range(10):
            made.append(n)
            yield n

    found = ahead(items(), 2)
    assert [next(found), next(found)] == [0, 1]
    # Two waiting, one in the thread's hands.
    assert len(made) <= 2 + 2 + 1
    assert list(found) == list(range(2, 10))


def test_an_error_in_the_thread_is_raised_where_the_item_is_wanted():
    def items():
        yield 1
        raise OSError("the disk is gone")

    found = ahead(items(), 2)
    assert next(found) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(found)


def test_an_abandoned_feed_ends_its_thread():
    before = threading.active_count()
    found = ahead(iter(range(1000)), 2)
    next(found)
    assert threading.active_count() == before + 1
    found.close()
    assert threading.active_count() == before


def test_the_allocator_takes_the_settings_where_it_is_glibc():
    import platform

    assert keep_freed_memory() is (platform.libc_ver()[0] == "glibc")
