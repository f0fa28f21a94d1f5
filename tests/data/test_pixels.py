"""Tiles of other formats than 8-bit RGB: which files hold one, and which values become its channels."""

import io

import numpy as np
import pytest
import tifffile
from handmade import encoded, tiff, write_dataset
from odd_images import JPEG, PNG, four_bands

from raytrain.data import channels, dataset, drawing, images, pixels
from raytrain.data.tile_format import TileFormat
from raytrain.errors import DataError

FOUR = TileFormat(4, "uint16", (1, 2, 3, 4))
RANDOM = np.random.default_rng(0)
VALUES = RANDOM.integers(0, 65536, (40, 40, 5), np.uint16)


def written(values, **options):
    sink = io.BytesIO()
    tifffile.imwrite(sink, values, photometric="minisblack", **options)
    return sink.getvalue()


def kind_of(content, form):
    with pytest.raises(images.BadImage) as caught:
        pixels.inspect(content, form, "tile.tif")
    assert caught.value.detail
    return caught.value.kind


# The format


def test_a_dataset_of_8_bit_rgb_says_nothing_of_its_format():
    assert TileFormat.from_manifest({}) == TileFormat() and TileFormat().content() == {}
    assert TileFormat().is_plain and str(TileFormat()) == "8-bit RGB"


@pytest.mark.parametrize(
    "form",
    [
        FOUR,
        TileFormat(3, "uint8", (3, 2, 1)),
        TileFormat(1, "uint16", (8,)),
        TileFormat(3, "uint16"),
    ],
)
def test_every_other_format_comes_back_from_its_keys(form):
    assert not form.is_plain and TileFormat.from_manifest(form.content()) == form
    assert str(form).startswith("band")


@pytest.mark.parametrize(
    "keys",
    [
        {"channels": 0},
        {"channels": "4"},
        {"dtype": "float32"},
        {"channels": 4, "bands": [1, 2, 3]},
        {"bands": [1, 2, 0]},
        {"bands": "123"},
    ],
)
def test_a_manifest_with_an_impossible_format_is_refused(tmp_path, keys):
    with pytest.raises(ValueError, match=next(iter(reversed(keys)))):
        TileFormat.from_manifest(keys)
    write_dataset(tmp_path / "d", {"a": (PNG, "x")}, ["x"])
    file = tmp_path / "d" / "dataset.json"
    file.write_text(file.read_text().replace("{", "{" + str(keys).replace("'", '"')[1:-1] + ",", 1))
    with pytest.raises(DataError, match="is damaged"):
        dataset.open_dataset(str(tmp_path / "d"))


# Decoding


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("bands", [(1, 2, 3, 4), (4, 2), (5,), (3, 2, 1)])
@pytest.mark.parametrize("order", ["contig", "separate"])
@pytest.mark.parametrize("endian", ["<", ">"])
def test_the_values_of_the_file_are_the_values_of_the_tile(dtype, bands, order, endian):
    values = VALUES.astype(dtype)
    stored = values if order == "contig" else np.moveaxis(values, 2, 0)
    content = written(stored, planarconfig=order, byteorder=endian)
    form = TileFormat(len(bands), dtype, bands)
    for size in (None, 40):
        tile = pixels.decode(content, form, size)
        assert tile.dtype == np.dtype(dtype) and tile.flags.c_contiguous
        np.testing.assert_array_equal(tile, values[:, :, [band - 1 for band in bands]])
    found = pixels.inspect(content, form, "tile.tif")
    assert (found.width, found.height, found.odd) == (40, 40, ())
    assert found.mode == f"5 bands of {8 * np.dtype(dtype).itemsize} bits"
    assert pixels.format_of(content, bands) == form


def test_a_compressed_file_has_the_same_values():
    content = written(VALUES, planarconfig="contig", compression="zlib")
    np.testing.assert_array_equal(pixels.decode(content, FOUR), VALUES[:, :, :4])


def test_a_resize_of_8_bits_is_that_of_an_rgb_picture():
    values = RANDOM.integers(0, 256, (50, 50, 3), np.uint8)
    form = TileFormat(3, "uint8", (1, 2, 3))
    np.testing.assert_array_equal(
        pixels.decode(tiff(values), form, 20), images.decode(encoded(values), 20)
    )


def test_a_resize_of_16_bits_keeps_the_bits_below_those_of_8():
    # To half the side, bilinear with antialias: weights 1, 3, 3, 1 of 8 on each axis.
    values = RANDOM.integers(0, 65536, (64, 64, 4), np.uint16)
    weights = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64
    tile = pixels.decode(tiff(values), FOUR, 32)
    window = values[9:13, 21:25].astype(float)
    wanted = np.einsum("yxc,yx->c", window, weights)
    np.testing.assert_allclose(tile[5, 11], wanted, atol=0.51)
    assert tile.dtype == np.uint16


def test_other_pictures_hold_red_green_and_blue():
    values = RANDOM.integers(0, 256, (20, 20, 3), np.uint8)
    picture = encoded(values)
    form = TileFormat(2, "uint8", (3, 1))
    np.testing.assert_array_equal(pixels.decode(picture, form), values[:, :, [2, 0]])
    assert pixels.inspect(picture, form).mode == "RGB"
    assert kind_of(picture, TileFormat(4, "uint8", (1, 2, 3, 4))) == "bands"
    assert kind_of(JPEG, TileFormat(3, "uint16", (1, 2, 3))) == "16-bit"


WITHOUT_SUCH_A_TILE = {
    "nothing": (b"", "empty"),
    "20 MB": (b"II*\0" + b"\0" * (images.MAX_BYTES + 1), "too-large"),
    "text": (b"no picture at all", "not-an-image"),
    "a PNG": (PNG, "bands"),
    "a JPEG": (JPEG, "bands"),
    "three bands": (four_bands((1, 2, 3)), "bands"),
    "8 bits": (tiff(VALUES.astype(np.uint8)), "16-bit"),
    "signed values": (tiff(VALUES.astype(np.int16)), "16-bit"),
    "real values": (tiff(VALUES.astype(np.float32)), "16-bit"),
    "three pages": (
        written(np.zeros((3, 20, 20, 4), np.uint16), planarconfig="contig"),
        "animated",
    ),
    "a part": (tiff(VALUES)[:3000], "truncated"),
    "15 pixels a side": (four_bands(size=15), "too-small"),
    "4097 pixels a side": (
        written(np.zeros((4097, 4097), np.uint8), compression="zlib"),
        "too-many-pixels",
    ),
}


@pytest.mark.parametrize("case", WITHOUT_SUCH_A_TILE)
def test_a_file_without_such_a_tile_is_named_by_its_kind(case):
    content, kind = WITHOUT_SUCH_A_TILE[case]
    assert kind_of(content, FOUR) == kind


def test_no_damage_gets_past_the_gate_as_another_error():
    generator = np.random.default_rng(5)
    whole = tiff(VALUES[:20, :20, :4])
    # The header and the directory, where all that can be misread stands.
    places = [*range(64), *range(len(whole) - 400, len(whole))]
    kinds = set()
    for _ in range(300):
        damaged = bytearray(whole)
        for place in generator.choice(places, 3):
            damaged[place % len(whole)] = generator.integers(256)
        try:
            pixels.inspect(bytes(damaged), FOUR)
            kinds.add("")
        except images.BadImage as error:
            kinds.add(error.kind)
    assert {"", "truncated", "16-bit"} <= kinds


def test_a_tiff_of_another_name_is_counted():
    assert pixels.inspect(four_bands(), FOUR, "tile.png").odd == ("mislabelled",)


def test_tiles_of_8_bit_rgb_go_through_their_own_decoder(monkeypatch):
    monkeypatch.setattr(images, "decode", lambda content, size: (content, size))
    assert pixels.decode(PNG, TileFormat(), 7) == (PNG, 7)


# Drawing


def test_three_channels_are_drawn():
    values = RANDOM.integers(0, 256, (20, 20, 5), np.uint8)
    np.testing.assert_array_equal(drawing.drawn(values), values[:, :, [2, 1, 0]])
    np.testing.assert_array_equal(drawing.drawn(values[:, :, :3]), values[:, :, :3])
    for channels_ in (1, 2):
        np.testing.assert_array_equal(
            drawing.drawn(values[:, :, :channels_]), values[:, :, [0, 0, 0]]
        )


def test_16_bits_are_stretched_from_the_2nd_to_the_98th_percentile():
    tile = np.arange(10000, dtype=np.uint16).reshape(100, 100, 1) + 500
    found = drawing.drawn(tile)[:, :, 0].ravel()
    assert (found[:200] == 0).all() and (found[-200:] == 255).all()
    assert abs(int(found[5000]) - 128) <= 1
    assert drawing.drawn(np.full((20, 20, 4), 9, np.uint16)).max() == 0


# Statistics of the channels


def some_tiles(path, count, form=FOUR, sides=(20, 20)):
    generator = np.random.default_rng(3)
    low = 1000 * np.arange(1, 5)
    values = [generator.integers(low, 4 * low, (*sides, 4)).astype(np.uint16) for _ in range(count)]
    tiles = {f"t{i}": (tiff(tile), "a") for i, tile in enumerate(values)}
    parts = ["valid" if i % 3 == 0 else "train" for i in range(count)]
    data = write_dataset(path, tiles, ["a"], {"random": parts}, tile_size=20, form=form)
    return data, [tile for tile, part in zip(values, parts, strict=True) if part == "train"]


def test_the_statistics_are_those_of_the_training_part_alone(tmp_path):
    data, values = some_tiles(tmp_path / "d", 12)
    means, deviations = channels.channel_statistics(data, "random", 20)
    train = np.stack(values).reshape(-1, 4) / 65535
    np.testing.assert_allclose(means, train.mean(0), atol=1e-8)
    np.testing.assert_allclose(deviations, train.std(0), atol=1e-8)


def test_of_many_tiles_the_same_ones_are_always_read(tmp_path, monkeypatch):
    data, _ = some_tiles(tmp_path / "d", 40)
    monkeypatch.setattr(channels, "MOST_TILES", 9)
    read = []
    plain = channels.decoded_images

    def noted(data, rows, size):
        read.extend(rows)
        return plain(data, rows, size)

    monkeypatch.setattr(channels, "decoded_images", noted)
    first = channels.channel_statistics(data, "random", 20)
    once = list(read)
    assert first == channels.channel_statistics(data, "random", 20) and read == 2 * once
    assert len(set(once)) == 9 and set(once) <= set(data.part_rows("random", "train").tolist())


def test_a_channel_of_one_value_is_named_and_divides_nothing(tmp_path, logged):
    flat = np.full((20, 20, 4), 500, np.uint16)
    flat[:, :10, 0] = 700
    tiles = {name: (tiff(flat), "a") for name in "ab"}
    parts = {"random": ["train", "valid"]}
    data = write_dataset(tmp_path / "d", tiles, ["a"], parts, tile_size=20, form=FOUR)
    means, deviations = channels.channel_statistics(data, "random", 20)
    assert deviations[1:] == [1, 1, 1] and deviations[0] == pytest.approx(100 / 65535, abs=1e-8)
    assert means[1] == pytest.approx(500 / 65535, abs=1e-8)
    assert "channel 2 has the same value" in "\n".join(logged)
