"""The tile cache: decodes once, is shared, survives kills, notices damage, stays within its size."""

import json
import subprocess
import sys

import numpy as np
import pytest

from raytrain.data import images
from raytrain.data.dataset import read_images
from raytrain.errors import ConfigError, DataError, StorageError
from raytrain.tiles import cache


def test_cached_tiles_are_the_decoded_tiles_and_the_second_opening_decodes_nothing(
    dataset, tmp_path
):
    first = cache.open_store(dataset, 256, directory=tmp_path)
    assert first.decoded == dataset.rows
    for row, content in enumerate(read_images(dataset, range(dataset.rows))):
        np.testing.assert_array_equal(first.pixels[row], images.decode(content, 256))
    assert cache.open_store(dataset, 256, directory=tmp_path).decoded == 0


def test_several_processes_fill_one_store_each_shard_once(dataset, tmp_path):
    code = (
        "import sys, pathlib; from raytrain.tiles import cache; from raytrain.data.dataset import open_dataset\n"
        "d = open_dataset(sys.argv[1])\n"
        "s = cache.open_store(d, 32, directory=pathlib.Path(sys.argv[2]), turn=(int(sys.argv[3]), 3))\n"
        "print(s.decoded, int(s.pixels.astype(int).sum()))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, dataset.path, str(tmp_path), str(turn)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for turn in range(3)
    ]
    printed = [process.communicate()[0].split() for process in processes]
    assert sum(int(decoded) for decoded, _ in printed) == dataset.rows
    assert len({total for _, total in printed}) == 1


def test_a_pool_decodes_the_same_pixels(dataset, tmp_path, monkeypatch):
    alone = cache.open_store(dataset, 64, directory=tmp_path / "a")
    monkeypatch.setattr(cache, "POOL_FROM_TILES", 1)
    pooled = cache.open_store(dataset, 64, directory=tmp_path / "b", processes=2)
    assert pooled.decoded == dataset.rows
    np.testing.assert_array_equal(alone.pixels, pooled.pixels)


def test_damaged_pixels_are_decoded_again(dataset, tmp_path):
    store = cache.open_store(dataset, 32, directory=tmp_path)
    wanted = np.array(store.pixels)
    damaged = np.memmap(store.directory / "tiles.u8", np.uint8, "r+")
    damaged[100] ^= 1
    damaged.flush()
    again = cache.open_store(dataset, 32, directory=tmp_path)
    assert again.decoded == np.diff(dataset.shard_starts)[0]
    np.testing.assert_array_equal(again.pixels, wanted)


def test_a_marker_that_is_damaged_is_no_marker(dataset, tmp_path):
    store = cache.open_store(dataset, 32, directory=tmp_path)
    (store.directory / "shard-00000.json").write_bytes(b"\xff{")
    assert (
        cache.open_store(dataset, 32, directory=tmp_path).decoded
        == np.diff(dataset.shard_starts)[0]
    )


def test_a_disk_that_fails_while_tiles_are_decoded_is_a_storage_error(
    dataset, tmp_path, monkeypatch
):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "_decode_shard", full)
    with pytest.raises(StorageError, match=r"cannot write the tile cache .*: No space left"):
        cache.open_store(dataset, 32, directory=tmp_path)


def test_a_shard_that_was_being_written_by_a_killed_process_is_decoded_again(dataset, tmp_path):
    store = cache.open_store(dataset, 32, directory=tmp_path)
    (store.directory / "shard-00001.json").unlink()
    assert (
        cache.open_store(dataset, 32, directory=tmp_path).decoded
        == np.diff(dataset.shard_starts)[1]
    )


def test_a_picture_that_changed_since_ingest_is_refused(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "crc32", lambda content: 0)
    with pytest.raises(DataError, match="do not match the crc32"):
        cache.open_store(dataset, 32, directory=tmp_path)


def test_the_oldest_store_that_nobody_uses_makes_room(dataset, tmp_path, monkeypatch):
    code = (
        "import sys, pathlib; from raytrain.tiles import cache; from raytrain.data.dataset import open_dataset\n"
        "cache.open_store(open_dataset(sys.argv[1]), 32, directory=pathlib.Path(sys.argv[2]))"
    )
    subprocess.run([sys.executable, "-c", code, dataset.path, str(tmp_path)], check=True)
    (unused,) = tmp_path.glob("*/store.json")
    in_use = cache.open_store(dataset, 48, directory=tmp_path)
    room = cache.store_bytes(dataset, 48) + cache.store_bytes(dataset, 40)
    monkeypatch.setenv("RAYTRAIN_CACHE_GB", str(room / 1e9))
    cache.open_store(dataset, 40, directory=tmp_path)
    assert not unused.exists() and (in_use.directory / "store.json").exists()


def test_too_small_a_disk_is_refused_before_anything_is_decoded(dataset, tmp_path, monkeypatch):
    full = type("Usage", (), {"free": 1000})()
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: full)
    with pytest.raises(StorageError, match=r"RAYTRAIN_CACHE=DIR"):
        cache.open_store(dataset, 32, directory=tmp_path)


def test_the_limit_of_the_cache_holds_and_must_be_a_number(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("RAYTRAIN_CACHE_GB", "0.000001")
    with pytest.raises(StorageError, match="RAYTRAIN_CACHE_GB=1"):
        cache.open_store(dataset, 32, directory=tmp_path)
    for text in ("10GB", "inf"):
        monkeypatch.setenv("RAYTRAIN_CACHE_GB", text)
        with pytest.raises(ConfigError, match="is not a number"):
            cache.open_store(dataset, 32, directory=tmp_path)
    assert not list(tmp_path.glob("*/*"))


def test_a_disk_that_fills_up_while_the_store_is_reserved_leaves_nothing(
    dataset, tmp_path, monkeypatch
):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "posix_fallocate", full)
    with pytest.raises(StorageError, match="No space left"):
        cache.open_store(dataset, 32, directory=tmp_path)
    assert not list(tmp_path.glob("*/*"))


@pytest.mark.parametrize(
    ("native", "sizes", "stored"),
    [
        (256, [128, 256], 256),
        (256, [128], 256),
        (256, [64, 96], 96),
        (28, [28], 28),
        (256, [512], 256),
    ],
)
def test_native_size_is_kept_up_to_twice_the_largest_stage(native, sizes, stored):
    assert cache.stored_size(native, sizes) == stored


def test_the_store_says_what_it_holds(dataset, tmp_path):
    store = cache.open_store(dataset, 32, directory=tmp_path)
    content = json.loads((store.directory / "store.json").read_text())
    assert content == {
        "dataset": dataset.hash,
        "size": 32,
        "decoder": images.DECODER_VERSION,
        "rows": dataset.rows,
    }


def test_two_processes_share_one_mapping_of_the_tiles(dataset, tmp_path):
    cache.open_store(dataset, 128, directory=tmp_path)
    code = (
        "import sys, pathlib; from raytrain.tiles import cache; from raytrain.data.dataset import open_dataset\n"
        "s = cache.open_store(open_dataset(sys.argv[1]), 128, directory=pathlib.Path(sys.argv[2]))\n"
        "s.pixels.sum(); print('ready', flush=True); input()\n"
        "lines = open('/proc/self/smaps').read().split('tiles.u8')[1].splitlines()\n"
        "print(*[next(l.split()[1] for l in lines if l.startswith(key)) for key in ('Rss:', 'Pss:')])"
    )

    def start():
        command = [sys.executable, "-c", code, dataset.path, str(tmp_path)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "ready\n"
        return process

    def sizes(process):
        process.stdin.write("\n")
        process.stdin.flush()
        return [int(kilobytes) for kilobytes in process.stdout.readline().split()]

    first, second = start(), start()
    resident, proportional = sizes(first)
    for process in (first, second):
        process.communicate("\n" if process is second else None)
    assert resident >= cache.store_bytes(dataset, 128) // 1024
    assert proportional < 0.6 * resident
