"""Where tiles lie: by size and device, as asked, and never in another order than the run began in."""

import numpy as np
import pytest
import torch
from handmade import encoded, scene, write_dataset

from raytrain.errors import ConfigError, StorageError
from raytrain.tiles import cache, placement
from raytrain.tiles.feeds import CacheFeed
from raytrain.tiles.sampling import ShuffleWindow
from raytrain.tiles.stream import StreamFeed
from raytrain.worker import Worker

CPU, GPU = torch.device("cpu"), torch.device("cuda")
GB = 10**9


@pytest.mark.parametrize(
    ("choice", "size", "device", "wanted"),
    [
        ("auto", 8 * GB, CPU, (False, "no GPU")),
        ("cache", 8 * GB, CPU, (False, "as asked")),
        ("cache", GB, GPU, (False, "as asked")),
        ("device", 70 * GB, GPU, (True, "as asked")),
        ("auto", 8 * GB, GPU, (True, "at most 50% of the GPU's 80 GB that are free")),
        ("auto", 41 * GB, GPU, (False, "more than 50% of the GPU's 80 GB that are free")),
    ],
)
def test_tiles_go_to_the_gpu_where_they_leave_it_room(choice, size, device, wanted, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (80 * GB, 85 * GB))
    assert placement.goes_to_gpu(choice, size, device) == wanted


def test_the_gpu_is_refused_where_there_is_none():
    with pytest.raises(ConfigError, match="needs a GPU"):
        placement.goes_to_gpu("device", GB, CPU)


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYTRAIN_CACHE", str(tmp_path / "cache"))
    named = {f"tile_{n}": (encoded(scene(n)), "a") for n in range(12)}
    return write_dataset(tmp_path / "dataset", named, ["a"])


def opened(dataset, **changes):
    settings = {"choice": "auto", "window_gb": 1.0, "resumed": None} | changes
    return placement.open_tiles(dataset, 64, Worker(), **settings)


def test_where_tiles_are_kept_is_logged_with_their_bytes_and_the_reason(dataset, logged):
    found = opened(dataset)
    assert isinstance(found.feed, CacheFeed) and found.window is None
    assert logged[-1] == f"tiles: in {found.store.directory}, 0 MB at 64 px (no GPU)"
    streamed = opened(dataset, choice="stream")
    assert isinstance(streamed.feed, StreamFeed) and streamed.window is None
    assert (
        logged[-1]
        == "tiles: streamed from the shards, 3 of 3 in a window, 0 MB at 64 px (as asked)"
    )
    rows = np.array([3, 11, 0])
    assert torch.equal(
        next(iter(found.feed(iter([rows])))), next(iter(streamed.feed(iter([rows]))))
    )
    found.feed.close()
    streamed.feed.close()


def test_tiles_that_fit_no_disk_are_streamed_and_why_is_said(dataset, monkeypatch, logged):
    def full(*args, **options):
        raise StorageError("the decoded tiles need 9 GB, /cache has 1 GB free")

    monkeypatch.setattr(placement, "open_store", full)
    assert isinstance(opened(dataset).feed, StreamFeed)
    assert "(the decoded tiles need 9 GB, /cache has 1 GB free)" in logged[-1]
    with pytest.raises(StorageError):
        opened(dataset, choice="cache")


def test_a_run_keeps_the_order_it_began_in(dataset):
    small = 1e-9  # one shard in a window
    assert opened(dataset, choice="stream", window_gb=small).window == 1
    # Begun in windows, it keeps them in the cache; begun over all shards, it cannot be streamed in small windows.
    assert opened(dataset, choice="cache", window_gb=small, resumed=ShuffleWindow(2)).window == 2
    assert opened(dataset, choice="stream", window_gb=small, resumed=ShuffleWindow(2)).window == 2
    assert opened(dataset, choice="stream", resumed=ShuffleWindow(None)).window is None
    with pytest.raises(ConfigError, match="shuffles the tiles of all shards together"):
        opened(dataset, choice="stream", window_gb=small, resumed=ShuffleWindow(None))


def test_the_store_of_a_run_is_the_one_that_the_cache_opens(dataset):
    found = opened(dataset)
    again = cache.open_store(dataset, 64)
    assert again.decoded == 0 and again.directory == found.store.directory
