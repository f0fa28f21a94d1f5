"""The gate: every kind of bad picture has its word, and good ones of any mode become RGB."""

import io

import numpy as np
import pytest
from PIL import Image

from raytrain.data import images


def encoded(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(mode="RGB", size=(64, 48), seed=0):
    channels = len(Image.new(mode, (1, 1)).getbands())
    shape = (size[1], size[0], channels) if channels > 1 else (size[1], size[0])
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8), mode)


JPEG = encoded(noise())
BAD = {
    "empty": b"",
    "not-an-image": b"hello, I am text\n" * 20,
    "truncated": JPEG[: len(JPEG) // 2],
    "too-small": encoded(noise(size=(8, 64))),
    "too-large": JPEG + b"\0" * images.MAX_BYTES,
    "too-many-pixels": encoded(Image.new("L", (4097, 4097)), "PNG"),
    "16-bit": encoded(Image.fromarray(np.full((32, 32), 300, np.uint16)), "PNG"),
    "animated": encoded(noise("L"), "GIF", save_all=True, append_images=[noise("L", seed=1)]),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_picture_is_named_by_its_kind(kind):
    with pytest.raises(images.BadImage) as caught:
        images.inspect(BAD[kind])
    assert caught.value.kind == kind


@pytest.mark.parametrize("content", [b"<html><body>no</body></html>", b"<svg xmlns='x'/>", bytes(range(256))])
def test_pages_and_noise_are_no_images(content):
    with pytest.raises(images.BadImage) as caught:
        images.inspect(content)
    assert caught.value.kind == "not-an-image"


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_of_every_mode_decode_as_pillow_converts_them(mode):
    content = encoded(noise(mode))
    assert images.inspect(content).mode == mode
    wanted = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    np.testing.assert_array_equal(images.decode(content), wanted)


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


def test_a_png_named_jpg_passes():
    assert images.inspect(encoded(noise(), "PNG")).width == 64


def test_no_damage_of_a_tiff_or_its_exif_gets_past_the_gate_as_another_error():
    exif = Image.Exif()
    exif[0x0112] = 6
    tiff, jpeg = encoded(noise(size=(32, 32)), "TIFF"), encoded(noise(size=(32, 32)), "JPEG", exif=exif)
    # The directory of a TIFF lies behind its header or at its end, the tags of a JPEG at its start.
    places = [(tiff, at) for at in [*range(4, 300), *range(-300, 0)]] + [(jpeg, at) for at in range(2, 200)]
    kinds = set()
    for content, at in places:
        damaged = bytearray(content)
        damaged[at] ^= 0xFF
        try:
            images.decode(bytes(damaged))
        except images.BadImage as error:
            kinds.add(error.kind)
    assert kinds <= set(BAD) and len(kinds) >= 2
