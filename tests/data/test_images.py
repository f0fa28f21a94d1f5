"""The gate: every kind of bad picture has its word, and good ones of any mode become RGB."""

import io

import numpy as np
import pytest
import tifffile
from odd_images import COUNTED, JPEG, PNG, QUARANTINED, encoded, noise
from PIL import Image

from raytrain.data import images


@pytest.mark.parametrize("case", QUARANTINED)
def test_a_bad_picture_is_named_by_its_kind(case):
    content, suffix, kind = QUARANTINED[case]
    with pytest.raises(images.BadImage) as caught:
        images.inspect(content, f"tile{suffix}")
    assert caught.value.kind == kind and caught.value.detail


@pytest.mark.parametrize("case", COUNTED)
def test_an_odd_picture_passes_and_its_oddity_is_said(case):
    content, suffix, count = COUNTED[case]
    picture = images.inspect(content, f"tile{suffix}")
    said = {f"mode {picture.mode}", f"size {picture.width}x{picture.height}", *picture.odd}
    assert count in said
    assert images.decode(content).shape == (picture.height, picture.width, 3)


def test_an_ordinary_picture_is_not_odd():
    assert images.inspect(JPEG, "tile.JPG").odd == () and images.inspect(PNG, "tile").odd == ()


@pytest.mark.parametrize(
    ("size", "decoded"),
    [(64, 64), (60, 64), (65, 128), (128, 128), (200, 256), (256, 256), (300, 256)],
)
@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_a_smaller_copy_comes_from_no_fewer_pixels_than_it_has(mode, size, decoded, monkeypatch):
    smooth = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)).resize(
        (256, 256)
    )
    content = encoded(
        smooth
        if mode == "RGB"
        else Image.merge("CMYK", [*smooth.split(), Image.new("L", (256, 256))])
    )
    seen = []
    monkeypatch.setattr(
        images, "rgb", lambda image, rgb=images.rgb: (seen.append(image.size), rgb(image))[1]
    )
    found = images.decode(content, size)
    assert seen == [(decoded, decoded)] and found.shape == (size, size, 3)
    whole = (
        Image.open(io.BytesIO(content))
        .convert("RGB")
        .resize((size, size), Image.Resampling.BILINEAR)
    )
    assert np.abs(found.astype(int) - np.asarray(whole, int)).mean() < 3


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_of_every_mode_decode_as_pillow_converts_them(mode):
    content = encoded(noise(mode))
    assert images.inspect(content).mode == mode
    wanted = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    np.testing.assert_array_equal(images.decode(content), wanted)


def test_the_fourth_band_of_a_tiff_is_not_taken_for_transparency():
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.full((32, 32, 4), 100, np.uint8), photometric="rgb")
    with pytest.raises(images.BadImage) as caught:
        images.inspect(buffer.getvalue())
    assert caught.value.kind == "bands"


def test_transparency_is_laid_over_black():
    rgba = Image.new("RGBA", (32, 32), (200, 100, 50, 0))
    assert images.decode(encoded(rgba, "PNG")).max() == 0
    solid = Image.new("RGBA", (32, 32), (200, 100, 50, 255))
    assert images.decode(encoded(solid, "PNG"))[0, 0].tolist() == [200, 100, 50]


def test_the_orientation_of_the_camera_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(noise(size=(64, 48)), "PNG", exif=exif.tobytes())
    picture = images.inspect(content)
    assert (picture.width, picture.height) == (48, 64)


def test_another_size_is_resized_and_the_same_size_is_left_alone():
    content = encoded(noise(size=(64, 64)), "PNG")
    np.testing.assert_array_equal(images.decode(content, 64), images.decode(content))
    assert images.decode(content, 32).shape == (32, 32, 3)
    assert images.decode(encoded(noise(size=(64, 48)), "PNG"), 64).shape == (64, 64, 3)


def test_no_damage_of_a_tiff_or_its_exif_gets_past_the_gate_as_another_error():
    exif = Image.Exif()
    exif[0x0112] = 6
    tiff, jpeg = (
        encoded(noise(size=(32, 32)), "TIFF"),
        encoded(noise(size=(32, 32)), "JPEG", exif=exif),
    )
    # The directory of a TIFF lies behind its header or at its end, the tags of a JPEG at its start.
    paths = [(tiff, at) for at in [*range(4, 300), *range(-300, 0)]] + [
        (jpeg, at) for at in range(2, 200)
    ]
    kinds = set()
    for content, at in paths:
        damaged = bytearray(content)
        damaged[at] ^= 0xFF
        try:
            images.decode(bytes(damaged))
        except images.BadImage as error:
            kinds.add(error.kind)
    assert kinds <= {kind for _, _, kind in QUARANTINED.values()} and len(kinds) >= 2
