"""Duplicates: the hash by hand, what counts as the same, what does not, and how long forty thousand tiles take."""

import numpy as np
import pytest
from handmade import encoded, scene, tiff, write_dataset
from PIL import Image

from raytrain.data import duplicates
from raytrain.data.duplicates import dhash, fingerprints, groups
from raytrain.data.tile_format import TileFormat
from raytrain.tiles import cache

RNG = np.random.default_rng(0)


def found(tmp_path, *pictures, **options):
    """(kind, rows) of the groups among some pictures."""
    dataset = write_dataset(
        tmp_path / "set", {f"t{i}": (picture, "") for i, picture in enumerate(pictures)}, ["a"]
    )
    return [(group.kind, group.rows) for group in groups(fingerprints(dataset, **options))]


def test_the_hash_of_a_picture_with_known_steps():
    steps = np.array(
        [0, 10, 20, 30, 20, 10, 0, 50, 50]
    )  # rises 3 times, falls 3 times, rises, stays
    grey = np.kron(np.tile(steps, (8, 1)), np.ones((4, 4))).astype(np.uint8)
    assert dhash(Image.fromarray(grey)) == int("11100010" * 8, 2)
    grey[:4] = (
        255 - grey[:4]
    )  # the first eight bits: every step turns round, equal neighbours stay equal
    assert dhash(Image.fromarray(grey)) == int("00011100" + "11100010" * 7, 2)


def test_equal_bytes_equal_pixels_and_near_copies_are_told_apart(tmp_path):
    one, two, three = scene(1), scene(2), scene(3)
    pictures = [
        encoded(one),
        encoded(two),
        encoded(three),
        encoded(one),
        encoded(two, compress_level=1),
    ]
    again = encoded(three, "JPEG", quality=75)
    assert found(tmp_path, *pictures, again, encoded(scene(4))) == [
        ("equal bytes", (0, 3)),
        ("equal pixels", (1, 4)),
        ("near duplicates", (2, 5)),
    ]


def test_tiles_of_four_bands_are_compared_by_values_and_by_what_is_drawn(tmp_path):
    form = TileFormat(4, "uint16", (1, 2, 3, 4))
    # Of each scene a tile of values up to 10,000, with a fourth band of its own.
    one, two, three = (
        np.dstack([scene(seed), scene(seed)[:, :, :1]]).astype(np.uint16) * 39 for seed in (1, 2, 3)
    )
    brighter = three + 40
    contents = [tiff(one), tiff(two), tiff(three), tiff(one), tiff(brighter)]
    tiles = {f"t{i}": (content, "") for i, content in enumerate(contents)}
    dataset = write_dataset(tmp_path / "set", tiles, ["a"], form=form)
    prints = fingerprints(dataset)
    assert set(prints["mode"]) == {"4 bands of 16 bits"}
    assert [(group.kind, group.rows) for group in groups(prints)] == [
        ("equal bytes", (0, 3)),
        ("near duplicates", (2, 4)),
    ]
    fast = fingerprints(dataset, decode=False)
    assert set(fast["mode"]) == {"4 bands of 16 bits"} and not fast["grey"].any()


@pytest.mark.parametrize(
    "change",
    [
        lambda tile: encoded(tile, "JPEG", quality=75),
        lambda tile: encoded(tile.astype(int).clip(0, 253) + 2),
        lambda tile: encoded(tile[2:-2, 2:-2]),
        lambda tile: encoded(Image.fromarray(tile).resize((96, 96))),
    ],
    ids=["jpeg", "brighter", "cropped", "smaller"],
)
def test_a_changed_copy_is_near(tmp_path, change):
    textured = scene(5, 128)
    assert found(tmp_path, encoded(textured), change(textured), encoded(scene(6))) == [
        ("near duplicates", (0, 1))
    ]


def test_even_tiles_are_not_near_though_their_hashes_are(tmp_path):
    """Cloud and haze: a slope in brightness gives every tile the same hash."""
    slope = np.linspace(0, 20, 64)[None, :, None]
    cloud = slope + RNG.normal(200, 1, (64, 64, 3))
    darker = slope + RNG.normal(150, 1, (64, 64, 3))
    greenish = slope + RNG.normal(200, 1, (64, 64, 3)) - [10, 0, 10]
    flat = [np.full((64, 64, 3), 90), np.full((64, 64, 3), 92)]
    noise = [RNG.normal(120, 1, (64, 64, 3)) for _ in range(2)]
    tiles = [cloud, darker, greenish, *flat, *noise]
    hashes = [dhash(Image.fromarray(tile.astype(np.uint8)).convert("L")) for tile in tiles[:3]]
    assert max((hashes[0] ^ other).bit_count() for other in hashes[1:]) <= duplicates.MAX_DISTANCE
    assert found(tmp_path, *map(encoded, tiles)) == []


def test_a_flipped_or_turned_copy_is_another_tile(tmp_path):
    tile = scene(7)
    assert found(tmp_path, encoded(tile), encoded(tile[:, ::-1]), encoded(np.rot90(tile))) == []


def test_copies_of_copies_are_one_group_and_a_tile_is_in_one_group_at_most(tmp_path):
    tile = scene(8)
    near = [encoded(tile, "JPEG", quality=quality) for quality in (95, 85, 75)]
    assert found(tmp_path, encoded(tile), *near, encoded(tile)) == [
        ("near duplicates", (0, 1, 2, 3, 4))
    ]


def test_without_pixels_only_equal_bytes_are_found(tmp_path):
    tile = scene(9)
    pictures = [encoded(tile), encoded(tile, "JPEG"), encoded(tile)]
    assert found(tmp_path, *pictures, decode=False) == [("equal bytes", (0, 2))]


def test_several_processes_give_the_same_fingerprints(tmp_path, monkeypatch):
    dataset = write_dataset(
        tmp_path / "set", {f"t{i}": (encoded(scene(i)), "") for i in range(10)}, ["a"]
    )
    alone = fingerprints(dataset, processes=1)
    monkeypatch.setattr(duplicates, "POOL_FROM_TILES", 1)
    assert (fingerprints(dataset, processes=2) == alone).all()
    assert cache.POOL_FROM_TILES > 1


def hashed(count, seed=0):
    """Fingerprints of tiles that have nothing in common."""
    rng = np.random.default_rng(seed)
    prints = np.zeros(count, duplicates.FINGERPRINT)
    prints["content"], prints["pixels"] = rng.integers(1, 2**63, (2, count, 2), dtype=np.uint64)
    prints["dhash"] = rng.integers(0, 2**64, count, dtype=np.uint64)
    prints["grey"] = rng.integers(0, 256, (count, 32, 32), dtype=np.uint8)
    return prints


def test_forty_thousand_tiles_are_compared_in_seconds_and_every_planted_pair_is_found():
    import time

    prints = hashed(40_479)
    for row in range(0, 40_000, 400):
        prints[row + 1] = prints[row]
        prints[row + 1]["pixels"] += 1
        prints[row + 1]["content"] += 1
        prints[row + 1]["dhash"] ^= np.uint64(0b1011 << (row % 50))
    began = time.process_time()
    pairs = [group.rows for group in groups(prints)]
    assert pairs == [(row, row + 1) for row in range(0, 40_000, 400)]
    assert time.process_time() - began < 30  # 1 to 2 seconds when nothing else runs


def test_a_flood_of_near_copies_stays_small_in_memory(monkeypatch):
    monkeypatch.setattr(duplicates, "MAX_LINKS", 500)
    prints = hashed(300)
    for field in ("dhash", "grey", "colour"):
        prints[field][:200] = prints[field][0]
    held = []
    components = duplicates._components
    monkeypatch.setattr(
        duplicates, "_components", lambda links, n: held.append(len(links)) or components(links, n)
    )
    assert len(duplicates.near(prints)) <= 500 + 300
    # A block of 64 tiles adds at most its pairs with all others.
    assert held and max(held) <= 2 * 500 + duplicates.BLOCK * 300
    assert [group.rows for group in groups(prints)] == [tuple(range(200))]


def alike_in_all_pairs(prints):
    """Pairs by the three conditions, each of all pairs."""
    found = []
    units = duplicates._unit(prints["grey"])
    for first in range(len(prints)):
        for second in range(first + 1, len(prints)):
            distance = (int(prints["dhash"][first]) ^ int(prints["dhash"][second])).bit_count()
            colours = np.abs(prints["colour"][first] - prints["colour"][second])
            if (
                distance <= duplicates.MAX_DISTANCE
                and colours.max() <= duplicates.MAX_COLOUR
                and units[first] @ units[second] >= duplicates.MIN_CORRELATION
            ):
                found.append((first, second))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_near_pairs_are_those_of_all_pairs(seed):
    rng = np.random.default_rng(seed)
    prints = hashed(300, seed)
    # Few pictures and hashes, and colours at all distances, also exactly at the limit and at both ends.
    prints["grey"] = prints["grey"][rng.integers(0, 5, 300)]
    prints["dhash"] = prints["dhash"][:1] ^ (
        np.uint64(1) << rng.integers(0, 64, 300).astype(np.uint64)
    )
    prints["colour"] = rng.integers(0, 13, (300, 3)) * np.float32(2.0)
    prints["colour"][:60] += 231
    prints["colour"][60:120] += rng.random((60, 3), np.float32)
    pairs = duplicates.near(prints)
    assert sorted(map(tuple, pairs.tolist())) == alike_in_all_pairs(prints)
    assert len(pairs) > 100


def test_neighbours_in_colour_never_wrap_around():
    prints = hashed(2)
    prints["dhash"], prints["grey"] = prints["dhash"][0], prints["grey"][0]
    prints["colour"] = [[0, 4, 255], [0, 8, 0]]
    assert len(duplicates.near(prints)) == 0
