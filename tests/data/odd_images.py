"""25 kinds of bad or odd pictures, each with its verdict: the kind in the quarantine, or the count in the manifest."""

import io
import struct
import zlib

import numpy as np
import tifffile
from PIL import Image

from raytrain.data import images


def encoded(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(mode="RGB", size=(64, 48), seed=0):
    channels = len(Image.new(mode, (1, 1)).getbands())
    shape = (size[1], size[0], channels) if channels > 1 else (size[1], size[0])
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode) if mode == "1" else Image.fromarray(pixels, mode)


def png_of_size(width, height):
    """A PNG whose header promises more pixels than any file of that length could be asked to hold."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def four_bands(values=(100, 200, 300, 400), size=32):
    buffer = io.BytesIO()
    pixels = np.broadcast_to(np.array(values, np.uint16), (size, size, len(values)))
    tifffile.imwrite(buffer, pixels, photometric="minisblack", planarconfig="contig")
    return buffer.getvalue()


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(noise(size=(64, 32)), exif=exif)


JPEG = encoded(noise())
PNG = encoded(noise(), "PNG")
# Content and suffix of the file, by the kind under which it must stand in the quarantine.
QUARANTINED = {
    "no bytes": (b"", ".jpg", "empty"),
    "random bytes": (np.random.default_rng(3).bytes(5000), ".jpg", "not-an-image"),
    "a web page": (b"<!doctype html><html><body>Sign in</body></html>", ".jpg", "not-an-image"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", ".png", "not-an-image"),
    "JPEG cut in its header": (JPEG[:30], ".jpg", "not-an-image"),
    "JPEG cut at half": (JPEG[: len(JPEG) // 2], ".jpg", "truncated"),
    "JPEG without end marker": (JPEG[:-2], ".jpg", "truncated"),
    "PNG cut at half": (PNG[: len(PNG) // 2], ".png", "truncated"),
    "16-bit grey": (
        encoded(Image.fromarray(np.full((32, 32), 300, np.uint16)), "PNG"),
        ".png",
        "16-bit",
    ),
    "4-band TIFF": (four_bands(), ".tif", "bands"),
    "one pixel": (encoded(noise(size=(1, 1)), "PNG"), ".png", "too-small"),
    "4097 x 4097": (png_of_size(4097, 4097), ".png", "too-many-pixels"),
    "12,000 x 12,000": (png_of_size(12_000, 12_000), ".png", "too-many-pixels"),
    "30,000 x 30,000": (png_of_size(30_000, 30_000), ".png", "too-many-pixels"),
    "animation": (
        encoded(noise("L"), "GIF", save_all=True, append_images=[noise("L", seed=1)]),
        ".gif",
        "animated",
    ),
    "over 20 MB": (JPEG + b"\0" * images.MAX_BYTES, ".jpg", "too-large"),
}
# Likewise, by the count under which the manifest must hold it.
COUNTED = {
    "PNG named .jpg": (PNG, ".jpg", "mislabelled"),
    "turned by the camera": (rotated(), ".jpg", "orientation applied"),
    "another size": (encoded(noise(size=(200, 100))), ".jpg", "size 200x100"),
    "grey": (encoded(noise("L")), ".jpg", "mode L"),
    "black and white": (encoded(noise("1"), "PNG"), ".png", "mode 1"),
    "palette": (encoded(noise().convert("P"), "PNG"), ".png", "mode P"),
    "transparency": (encoded(noise("RGBA"), "PNG"), ".png", "mode RGBA"),
    "grey with transparency": (encoded(noise("LA"), "PNG"), ".png", "mode LA"),
    "CMYK": (encoded(noise("CMYK")), ".jpg", "mode CMYK"),
}
