"""Streaming from shards: the cached pixels in the keyed order, bounded by its window, exact after a restart."""

import numpy as np
import pytest
import torch
from handmade import encoded, scene, write_dataset

from raytrain import storage
from raytrain.errors import DataError
from raytrain.tiles import sampling
from raytrain.tiles.cache import open_store
from raytrain.tiles.stream import ShardWindow, StreamFeed, stream_window

CPU = torch.device("cpu")
TILES, PER_SHARD = 22, 4


@pytest.fixture
def shards(tmp_path):
    """Six shards of four tiles, the last of two."""
    named = {f"tile_{n}": (encoded(scene(n)), "a" if n % 2 else "a b") for n in range(TILES)}
    return write_dataset(tmp_path / "dataset", named, ["a", "b"], rows_per_shard=PER_SHARD)


def batches(dataset, window, size=5):
    order = sampling.epoch_order(np.arange(TILES), dataset.shard_starts, (42, 1, 1), window)
    return sampling.global_batches(order, size, 1, False)


@pytest.mark.parametrize("processes", [0, 2])
def test_streamed_tiles_are_the_cached_ones_in_the_order_asked_for(shards, tmp_path, processes):
    store = open_store(shards, 64, directory=tmp_path / "cache")
    feed = StreamFeed(shards, 64, window=2, processes=processes, device=CPU)
    abandoned = feed(iter(batches(shards, 2)))
    next(abandoned)
    # An epoch that was broken off leaves nothing behind for the next one.
    for _ in range(2):
        found = list(feed(iter(batches(shards, 2))))
        assert len(found) == 5
        for rows, picture in zip(batches(shards, 2), found, strict=True):
            np.testing.assert_array_equal(picture.permute(0, 2, 3, 1).numpy(), store.pixels[rows])
            assert picture.is_contiguous(memory_format=torch.channels_last)
    feed.close()


@pytest.mark.parametrize(("window", "size"), [(1, 3), (2, 5), (3, 4), (6, 5)])
def test_a_window_reads_each_shard_once_an_epoch_and_holds_no_more_than_two_windows(
    shards, window, size, monkeypatch
):
    held = ShardWindow(shards, window)
    read, most = [], 0
    reading = held._read
    monkeypatch.setattr(held, "_read", lambda shard: (read.append(shard), reading(shard))[1])
    for rows in batches(shards, window, size):
        names = [where.split()[0] for _, _, where in held.encoded(rows)]
        assert names == [f"tile_{row}" for row in rows]
        most = max(most, len(held.held))
    held.close()
    assert sorted(read) == list(range(6))
    assert most <= 2 * window


def test_the_window_is_what_the_gigabytes_hold_of_the_largest_shard(shards):
    largest = max(storage.size(path) for path in shards.shards)
    assert stream_window(shards, largest * 2.5 / 1e9) == 2
    assert stream_window(shards, largest / 2 / 1e9) == 1
    assert stream_window(shards, largest * 6 / 1e9) is None


@pytest.mark.parametrize("processes", [0, 1])
def test_a_damaged_tile_is_named_and_its_parts_survive_the_decoder(shards, processes, monkeypatch):
    encoded_rows = ShardWindow.encoded

    def damaged(self, rows):
        found = encoded_rows(self, rows)
        return [(content, check + (7 in rows), where) for content, check, where in found]

    monkeypatch.setattr(ShardWindow, "encoded", damaged)
    feed = StreamFeed(shards, 64, window=6, processes=processes, device=CPU)
    with pytest.raises(DataError) as caught:
        list(feed(iter([np.array([1, 2]), np.array([7, 3])])))
    assert "tile_7 in " in caught.value.what and "crc32" in caught.value.what and caught.value.fix
    feed.close()


def test_a_missing_shard_is_an_error_of_its_own(shards):
    storage.remove(shards.shards[2])
    feed = StreamFeed(shards, 64, window=1, processes=0, device=CPU)
    with pytest.raises(DataError, match="part-00002"):
        list(feed(iter([np.array([0, 1]), np.array([9])])))
    feed.close()
