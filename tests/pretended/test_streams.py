"""Feeds that copy to a GPU on a stream and a thread of their own, on pretended streams."""

import numpy as np
import pytest
import torch
from handmade import encoded, scene, write_dataset

from raytrain.tiles.feeds import CacheFeed, ahead, ahead_on_gpu, copying_stream
from raytrain.tiles.stream import StreamFeed

THIRD = torch.device("cuda", 3)
ROWS = [np.array([3, 1]), np.array([0, 2]), np.array([5, 4])]


def pictures():
    return (torch.full((1,), n) for n in range(100))


def test_an_epoch_that_is_left_leaves_the_device_of_its_thread_as_it_was(streams):
    streams.device = 3
    fetched = ahead_on_gpu(pictures(), copying_stream(THIRD))
    assert [int(next(fetched)) for _ in range(5)] == [0, 1, 2, 3, 4]
    fetched.close()
    assert streams.device == 3 and streams.current().device == THIRD


def test_an_epoch_to_its_end_leaves_it_too(streams):
    streams.device = 3
    assert len(list(ahead_on_gpu(pictures(), copying_stream(THIRD)))) == 100
    assert streams.device == 3


def test_what_a_thread_was_making_ends_in_that_thread():
    import threading

    ended = []

    def items():
        try:
            yield from range(100)
        finally:
            ended.append(threading.current_thread() is threading.main_thread())

    found = ahead(items(), 2)
    assert next(found) == 0
    found.close()
    assert ended == [False]


@pytest.fixture
def feeds(tmp_path, streams, monkeypatch):
    """Both feeds that copy, as on a GPU, whose tensors stay here."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    real_to, real_empty = torch.Tensor.to, torch.empty
    monkeypatch.setattr(
        torch.Tensor,
        "to",
        lambda tensor, target, **options: (
            tensor if target == THIRD else real_to(tensor, target, **options)
        ),
    )
    monkeypatch.setattr(
        torch, "empty", lambda *shape, pin_memory=False, **options: real_empty(*shape, **options)
    )
    named = {f"tile_{n}": (encoded(scene(n)), "a") for n in range(6)}
    dataset = write_dataset(tmp_path / "dataset", named, ["a"])
    pixels = np.stack([scene(n) for n in range(6)])
    return [
        CacheFeed(pixels, THIRD),
        StreamFeed(dataset, 64, window=None, processes=0, device=THIRD),
    ]


def test_a_feed_copies_on_one_stream_in_all_its_epochs(feeds, streams):
    assert len(streams.made) == 2, "one of each feed"
    for feed in feeds:
        for _ in range(3):
            found = list(feed(iter(ROWS)))
            for rows, picture in zip(ROWS, found, strict=True):
                wanted = np.stack([scene(n) for n in rows])
                np.testing.assert_array_equal(picture.permute(0, 2, 3, 1).numpy(), wanted)
        feed.close()
    assert len(streams.made) == 2


def test_on_a_cpu_there_is_no_stream(streams):
    assert copying_stream(torch.device("cpu")) is None and streams.made == []
