"""Four bands of 16 bits on their way to the network: every feed gives the values of the files."""

import hashlib
import json

import numpy as np
import pytest
import torch
from handmade import encoded, scene, tiff, write_dataset

from raytrain.data import images
from raytrain.data.tile_format import TileFormat
from raytrain.tiles import cache
from raytrain.tiles.feeds import CacheFeed, DeviceFeed
from raytrain.tiles.stream import StreamFeed

CPU = torch.device("cpu")
SIDE = 24
VALUES = np.random.default_rng(0).integers(0, 65536, (10, SIDE, SIDE, 5), np.uint16)
# Values above 32,767 are negative for a type that has a sign.
VALUES[0, 0, 0] = [0, 255, 256, 32768, 65535]
WANTED = [np.array([3, 1, 4]), np.array([0, 9]), np.array([2, 6, 5, 3])]


def dataset_of(path, bands, dtype="uint16"):
    form = TileFormat(len(bands), dtype, bands)
    tiles = {f"t{i}": (tiff(values.astype(dtype)), "a") for i, values in enumerate(VALUES)}
    return write_dataset(path, tiles, ["a"], tile_size=SIDE, form=form)


@pytest.fixture
def four(tmp_path):
    return dataset_of(tmp_path / "dataset", (1, 2, 3, 4))


def wanted_of(rows):
    return VALUES[rows][..., :4]


def test_the_cache_holds_the_values_of_the_files_in_its_own_file(four, tmp_path):
    store = cache.open_store(four, SIDE, directory=tmp_path / "cache")
    assert store.pixels.dtype == np.uint16
    np.testing.assert_array_equal(store.pixels, VALUES[..., :4])
    file = store.directory / "tiles.u16"
    content = json.loads((store.directory / "store.json").read_text())
    assert (content["channels"], content["dtype"]) == (4, "uint16")
    assert file.stat().st_size == cache.store_bytes(four, SIDE) == 10 * SIDE * SIDE * 4 * 2
    assert cache.open_store(four, SIDE, directory=tmp_path / "cache").decoded == 0


def test_damage_in_the_cache_is_found_and_decoded_again(four, tmp_path):
    store = cache.open_store(four, SIDE, directory=tmp_path / "cache")
    store.lease.close()
    np.memmap(store.directory / "tiles.u16", np.uint16, "r+")[-1] ^= 1
    again = cache.open_store(four, SIDE, directory=tmp_path / "cache")
    assert again.decoded == np.diff(four.shard_starts)[-1]
    np.testing.assert_array_equal(again.pixels, VALUES[..., :4])


def test_a_store_of_16_bits_makes_room_by_its_own_size(four, tmp_path, monkeypatch):
    other = dataset_of(tmp_path / "other", (5,))
    first = cache.open_store(four, SIDE, directory=tmp_path / "cache")
    first.lease.close()
    room = cache.store_bytes(four, SIDE) + cache.store_bytes(other, SIDE)
    monkeypatch.setenv("RAYTRAIN_CACHE_GB", str((room - 1) / 1e9))
    second = cache.open_store(other, SIDE, directory=tmp_path / "cache")
    assert second.directory.exists() and not first.directory.exists()


def test_formats_have_stores_of_their_own_and_rgb_of_8_bits_keeps_its_key(tmp_path):
    names = set()
    for number, (bands, dtype) in enumerate(
        [((1, 2, 3), "uint8"), ((1, 2, 3), "uint16"), ((3, 2, 1), "uint8")]
    ):
        data = dataset_of(tmp_path / str(number), bands, dtype)
        names.add(cache.open_store(data, SIDE, directory=tmp_path / "cache").directory.name)
    assert len(names) == 3
    plain = write_dataset(tmp_path / "rgb", {"a": (encoded(scene(0)), "a")}, ["a"])
    store = cache.open_store(plain, 64, directory=tmp_path / "cache")
    content = {
        "dataset": plain.hash,
        "size": 64,
        "decoder": images.DECODER_VERSION,
        "rows": 1,
    }
    assert json.loads((store.directory / "store.json").read_text()) == content
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    assert store.directory.name == key and (store.directory / "tiles.u8").exists()


@pytest.mark.parametrize("kind", ["cache", "device", "stream", "stream by processes"])
def test_every_feed_gives_the_values_of_the_files(four, tmp_path, kind):
    if kind.startswith("stream"):
        processes = 2 if kind.endswith("processes") else 0
        feed = StreamFeed(four, SIDE, window=None, processes=processes, device=CPU)
    else:
        pixels = cache.open_store(four, SIDE, directory=tmp_path / "cache").pixels
        feed = {"cache": CacheFeed, "device": DeviceFeed}[kind](pixels, CPU)
    found = list(feed(iter(WANTED)))
    feed.close()
    for rows, picture in zip(WANTED, found, strict=True):
        assert picture.dtype == torch.uint16 and picture.shape == (len(rows), 4, SIDE, SIDE)
        assert picture.is_contiguous(memory_format=torch.channels_last)
        np.testing.assert_array_equal(picture.permute(0, 2, 3, 1).numpy(), wanted_of(rows))


def test_tiles_of_8_bits_and_five_bands_go_the_same_ways(tmp_path):
    data = dataset_of(tmp_path / "dataset", (5, 1, 2, 3, 4), "uint8")
    pixels = cache.open_store(data, SIDE, directory=tmp_path / "cache").pixels
    wanted = VALUES.astype(np.uint8)[..., [4, 0, 1, 2, 3]]
    np.testing.assert_array_equal(pixels, wanted)
    (found,) = CacheFeed(pixels, CPU)(iter([np.arange(10)]))
    assert found.dtype == torch.uint8
    np.testing.assert_array_equal(found.permute(0, 2, 3, 1).numpy(), wanted)
