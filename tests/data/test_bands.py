"""TIFF tiles of other bands and 16 bits: which values become which pixels, and what is refused."""

import importlib.util
import io

import numpy as np
import pytest
import tifffile
from odd_images import PNG, four_bands
from PIL import Image

from raytrain.data import bands, images
from raytrain.data.bands import BandRule, KeptBands
from raytrain.errors import ConfigError

RULE = BandRule((3, 2, 1), 100, 300)


def tiff(pixels, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def test_bands_are_chosen_scaled_and_clipped():
    content = bands.as_picture(four_bands((50, 200, 300, 999)), "tile.TIF", RULE)
    assert images.decode(content)[5, 7].tolist() == [
        255,
        128,
        0,
    ]  # 300, round(255 * 0.5), 50 below 100
    assert images.inspect(content).mode == "RGB"


def test_pixels_stay_in_place_whether_bands_come_first_or_last():
    pixels = np.random.default_rng(0).integers(100, 300, (4, 20, 30)).astype(np.uint16)
    first = tiff(pixels, photometric="minisblack", planarconfig="separate")
    last = tiff(np.moveaxis(pixels, 0, 2), photometric="minisblack", planarconfig="contig")
    wanted = np.rint(255 * (pixels[[2, 1, 0]].transpose(1, 2, 0) - 100.0) / 200)
    for content in (first, last):
        np.testing.assert_array_equal(images.decode(bands.to_png(content, RULE)), wanted)


def test_one_band_may_be_all_three():
    content = bands.to_png(tiff(np.full((20, 20), 200, np.uint16)), BandRule((1, 1, 1), 100, 300))
    assert images.decode(content)[0, 0].tolist() == [128, 128, 128]


def test_other_files_stay_as_they_are():
    assert (
        bands.as_picture(PNG, "tile.png", RULE) is PNG
        and bands.as_picture(PNG, "tile.tif", None) is PNG
    )


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "empty"),
        (b"II*\0" + b"\0" * (images.MAX_BYTES + 1), "too-large"),
        (PNG, "not-an-image"),
        (four_bands((1, 2)), "bands"),
        (tiff(np.zeros((3, 2, 20, 20), np.uint16), photometric="minisblack"), "animated"),
        (four_bands()[: len(four_bands()) // 2], "truncated"),
        (tiff(np.zeros((4097, 4097), np.uint8), compression="zlib"), "too-many-pixels"),
    ],
)
def test_what_cannot_be_used_is_named_by_its_kind(content, kind):
    with pytest.raises(images.BadImage) as caught:
        bands.to_png(content, RULE)
    assert caught.value.kind == kind


def test_the_flags_state_a_rule():
    assert bands.parse("3,2,1", "0,10000") == BandRule((3, 2, 1), 0, 10000)
    assert bands.parse(None, None) is None
    for flags in (
        ("3,2", "0,255"),
        ("3,2,0", "0,255"),
        ("a,b,c", "0,255"),
        ("3,2,1", "5,5"),
        ("3,2,1", "9"),
        (None, "0,255"),
    ):
        with pytest.raises(ConfigError, match="three bands, counted from 1"):
            bands.parse(*flags)


def test_bands_without_a_scale_are_kept():
    assert bands.parse("1,2,3,4", None) == KeptBands((1, 2, 3, 4))
    assert bands.parse("3,2,1", None) == KeptBands((3, 2, 1))
    assert bands.parse("5", None) == KeptBands((5,))
    for flag in ("1,0", "1,1", "red", "", "1,,2"):
        with pytest.raises(ConfigError, match="each is named once"):
            bands.parse(flag, None)


def test_a_compression_that_needs_another_package_is_no_fault_of_the_file():
    sink = io.BytesIO()
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(sink, "TIFF", compression="tiff_lzw")
    if importlib.util.find_spec("imagecodecs"):
        assert bands.all_bands(sink.getvalue()).shape == (20, 20, 3)
        return
    with pytest.raises(ConfigError, match="need the package imagecodecs"):
        bands.all_bands(sink.getvalue())
