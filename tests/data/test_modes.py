"""Every mode and bit depth that Pillow, tifffile or a PNG can hold is read to the right pixels, or refused by its kind.

Right pixels are worked out here from the samples, by the formulas of the formats; nothing is asked of Pillow's conversions.
"""

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from raytrain.data import images

SIDE = 32
REFUSED = {"16-bit", "bands"}


def verdict(content):
    """The pixels that the gate lets through, or the kind under which it refuses."""
    try:
        picture = images.inspect(content)
    except images.BadImage as error:
        assert error.detail
        return error.kind
    pixels = images.decode(content)
    assert pixels.shape == (picture.height, picture.width, 3) and pixels.dtype == np.uint8
    return pixels


def blocks(bands, levels=256, seed=0):
    """Samples (SIDE, SIDE, bands) in blocks of 16 pixels: few enough colours for a palette, large enough for a JPEG."""
    coarse = np.random.default_rng(seed).integers(0, levels, (2, 2, bands))
    return coarse.repeat(16, 0).repeat(16, 1)


def rgb_of_grey(samples, most=255):
    return np.rint(samples[..., :1] * 255 / most).repeat(3, 2)


def over_black(colour, alpha, most=255):
    return np.rint(colour * (alpha / most) * 255 / most)


def rgb_of_cmyk(samples):
    return np.rint((255 - samples[..., :3]) * (255 - samples[..., 3:]) / 255)


def rgb_of_ycbcr(samples):
    """JFIF 1.02: full range, BT.601."""
    y, cb, cr = (samples[..., i].astype(float) - (0, 128, 128)[i] for i in range(3))
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], 2)
    return np.clip(np.rint(rgb), 0, 255)


def rgb_of_lab(samples):
    """TIFF 6.0: L in 0..255, a and b signed; CIE 15 to XYZ (D50), IEC 61966-2-1 to sRGB."""
    lightness = samples[..., 0] * 100 / 255
    a, b = (
        samples[..., 1].astype(np.int8).astype(float),
        samples[..., 2].astype(np.int8).astype(float),
    )
    fy = (lightness + 16) / 116
    f = np.stack([fy + a / 500, fy, fy - b / 200], -1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * (0.9642, 1.0, 0.8249)
    to_linear = np.array(  # D50-adapted sRGB, Lindbloom
        [
            [3.1338561, -1.6168667, -0.4906146],
            [-0.9787684, 1.9161415, 0.0334540],
            [0.0719453, -0.2289914, 1.4052427],
        ]
    )
    linear = np.clip(xyz @ to_linear.T, 0, 1)
    return np.rint(
        255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    )


# PNG: bit depths and colour types of the specification, written here.

COLOURS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # samples of a pixel by colour type
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
PALETTE = np.random.default_rng(1).integers(0, 256, (256, 3), dtype=np.uint8)


def png(samples, depth, colour, transparent=b""):
    """A PNG of integer samples (SIDE, SIDE, n); `transparent` is the content of tRNS."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    if depth == 16:
        rows = samples.astype(">u2").reshape(SIDE, -1).view(np.uint8)
    else:
        shifts = np.arange(depth - 1, -1, -1)
        rows = np.packbits(((samples.reshape(SIDE, -1, 1) >> shifts) & 1).reshape(SIDE, -1), axis=1)
    lines = np.concatenate([np.zeros((SIDE, 1), np.uint8), rows], 1).tobytes()
    header = struct.pack(">IIBBBBB", SIDE, SIDE, depth, colour, 0, 0, 0)
    extra = chunk(b"PLTE", PALETTE[: 2**depth].tobytes()) if colour == 3 else b""
    extra += chunk(b"tRNS", transparent) if transparent else b""
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + extra + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("colour", "depth"), [(c, d) for c, depths in DEPTHS.items() for d in depths]
)
def test_a_png_of_every_depth_and_colour_type(colour, depth):
    most = 2**depth - 1
    samples = np.random.default_rng(depth).integers(0, most + 1, (SIDE, SIDE, COLOURS[colour]))
    found = verdict(png(samples, depth, colour))
    if depth == 16:
        assert isinstance(found, str) and found == "16-bit"
        return
    wanted = {
        0: lambda: rgb_of_grey(samples, most),
        2: lambda: samples,
        3: lambda: PALETTE[samples[..., 0]],
        4: lambda: over_black(samples[..., :1], samples[..., 1:]).repeat(3, 2),
        6: lambda: over_black(samples[..., :3], samples[..., 3:]),
    }[colour]()
    assert np.abs(found.astype(int) - wanted).max() <= 1


def test_a_colour_that_a_png_declares_transparent_is_black():
    grey = blocks(1)
    clear = int(grey[0, 0, 0])
    found = verdict(png(grey, 8, 0, struct.pack(">H", clear)))
    assert np.array_equal(found, np.where(grey == clear, 0, grey).repeat(3, 2))
    index = blocks(1, 16)
    alpha = bytes(int(i != index[0, 0, 0]) * 255 for i in range(16))
    found = verdict(png(index, 4, 3, alpha))
    assert np.array_equal(found, np.where(index == index[0, 0, 0], 0, PALETTE[index[..., 0]]))


# TIFF: sample types, bands, colours and layouts that tifffile writes.

TYPES = ("u1", "u2", "u4", "i1", "i2", "i4", "f2", "f4", "f8")
LAYOUTS = list(itertools.product(("contig", "separate"), (None, "zlib"), ("<", ">")))


def tiff(pixels, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def in_layout(samples, layout):
    """Samples (H, W, n) and the options of a layout, in the order of axes that it wants."""
    planes, compression, order = layout
    pixels = np.moveaxis(samples, 2, 0).copy() if planes == "separate" else samples
    return pixels, {"planarconfig": planes, "compression": compression, "byteorder": order}


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("bands", [1, 2, 3, 4, 5])
def test_a_tiff_of_every_sample_type_and_number_of_bands(bands, layout):
    for kind in TYPES:
        most = 100 if kind == "i1" else 255 if kind == "u1" else 3000
        samples = np.random.default_rng(bands).integers(0, most, (SIDE, SIDE, bands)).astype(kind)
        for photometric in ("minisblack", "rgb") if bands >= 3 else ("minisblack",):
            if bands == 1:
                content = tiff(
                    samples[..., 0],
                    photometric=photometric,
                    compression=layout[1],
                    byteorder=layout[2],
                )
            else:
                pixels, options = in_layout(samples, layout)
                content = tiff(pixels, photometric=photometric, **options)
            found = verdict(content)
            right = samples if bands == 3 else samples.repeat(3, 2) if bands == 1 else None
            if kind == "u1" and (bands == 1 or (bands == 3 and photometric == "rgb")):
                assert np.array_equal(found, right), (kind, photometric)
            else:
                assert isinstance(found, str) and found in REFUSED, (kind, photometric, found)


@pytest.mark.parametrize("alpha", ["unassalpha", "assocalpha", "unspecified"])
@pytest.mark.parametrize("kind", ["u1", "u2", "i1"])
@pytest.mark.parametrize("bands", [2, 4])
def test_a_tiff_with_one_band_more_than_its_colours_is_refused(bands, kind, alpha):
    samples = np.full((SIDE, SIDE, bands), 100, kind)
    content = tiff(
        samples,
        photometric="minisblack" if bands == 2 else "rgb",
        extrasamples=[alpha],
        planarconfig="contig",
    )
    assert verdict(content) == "bands"


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_tiff_of_every_8_bit_colour(layout):
    contiguous = layout[0] == "contig"
    cmyk, three, grey = blocks(4), blocks(3, seed=2), blocks(1, seed=3)[..., 0].astype(np.uint8)
    lab = np.stack([three[..., 0] // 2 + 64, three[..., 1] % 32, 256 - three[..., 2] % 32], 2)
    flat = {"compression": layout[1], "byteorder": layout[2]}

    def of(samples, photometric):
        pixels, options = in_layout(samples.astype(np.uint8), layout)
        return verdict(tiff(pixels, photometric=photometric, **options))

    assert np.array_equal(of(cmyk, "separated"), rgb_of_cmyk(cmyk))
    assert np.array_equal(
        verdict(tiff(grey, photometric="miniswhite", **flat)), 255 - grey[..., None].repeat(3, 2)
    )
    colours = np.random.default_rng(4).integers(0, 65536, (3, 256), dtype=np.uint16)
    found = verdict(tiff(grey, photometric="palette", colormap=colours, **flat))
    assert np.array_equal(found, np.moveaxis(colours[:, grey] >> 8, 0, 2))
    for bit in (True, False):
        found = verdict(
            tiff(grey > 100 if bit else grey <= 100, photometric="minisblack", byteorder=layout[2])
        )
        assert np.array_equal(found, np.where((grey > 100) == bit, 255, 0)[..., None].repeat(3, 2))
    found = of(three, "ycbcr")
    # Pillow does not read planes without compression.
    assert (
        isinstance(found, str)
        if layout[:2] == ("separate", None)
        else near(found, rgb_of_ycbcr(three), 2)
    )
    found = of(lab, "cielab")
    assert near(found, rgb_of_lab(lab), 4) if contiguous else found == "bands"


def near(found, wanted, most):
    return np.abs(found.astype(int) - wanted).max() <= most


def test_a_tiff_of_12_bits_is_refused():
    # Written as 8 bits, and the header changed: there are bytes enough for the declared 12 bits of fewer rows.
    content = bytearray(tiff(np.zeros((SIDE * 2, SIDE), np.uint8), photometric="minisblack"))
    at = content.index(struct.pack("<HHIH", 258, 3, 1, 8))
    content[at : at + 10] = struct.pack("<HHIH", 258, 3, 1, 12)
    assert verdict(bytes(content)) == "16-bit"


# All modes of Pillow in all formats that it writes.

MODES = (
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "F",
)
DEEP = ("I;16", "I;16L", "I;16B", "I;16N")
LOSSY = {"JPEG": 12, "WEBP": 12}  # largest mean difference of a level
OPAQUE = {("BMP", "RGBA"), ("GIF", "LA")}  # Pillow leaves transparency out when it writes these
KEEP_DEPTH = ("PNG", "TIFF")  # the others are of 8 bits, whatever they were made from


def in_mode(mode):
    """A picture of Pillow's in a mode, and the pixels that it shows; None where 8 bits cannot show it."""
    if mode in ("I", "F") or mode in DEEP:
        values = np.arange(SIDE * SIDE).reshape(SIDE, SIDE) * 3
        if mode in DEEP:
            return Image.frombytes(
                mode, (SIDE, SIDE), values.astype(">u2" if mode == "I;16B" else "<u2").tobytes()
            ), None
        return Image.fromarray(values.astype(np.int32 if mode == "I" else np.float32)), None
    bands = len(Image.new(mode, (1, 1)).getbands())
    samples = blocks(bands).astype(np.uint8)
    if mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        samples[..., -1] = 255 * (samples[..., -1] > 127)  # GIF knows no other
        if mode in ("La", "RGBa"):
            samples[samples[..., -1] == 0] = 0
    if mode == "1":
        bits = samples[..., 0] > 127
        return Image.fromarray(bits), (bits * 255)[..., None].repeat(3, 2)
    image = Image.frombytes(mode, (SIDE, SIDE), samples.tobytes())
    colours = samples[..., :1].repeat(3, 2)
    if mode in ("P", "PA"):
        image.putpalette(PALETTE.tobytes())
        colours = PALETTE[samples[..., 0]]
    shown = {
        "CMYK": lambda: rgb_of_cmyk(samples.astype(int)),
        "YCbCr": lambda: rgb_of_ycbcr(samples),
        "LAB": lambda: None,  # out of sRGB in places; its colours are held by tifffile's test
        "RGB": lambda: samples,
        "RGBX": lambda: samples[..., :3],
        "RGBA": lambda: over_black(samples[..., :3], samples[..., 3:]),
        "RGBa": lambda: samples[..., :3],
        "LA": lambda: over_black(colours, samples[..., 1:]),
        "La": lambda: colours,
        "PA": lambda: over_black(colours, samples[..., 1:]),
        "HSV": lambda: None,
    }
    return image, shown.get(mode, lambda: colours)()


@pytest.mark.parametrize("form", images.FORMATS)
def test_every_mode_that_pillow_writes_is_read_right_or_refused(form):
    written = {}
    for mode in (*MODES, *DEEP):
        image, wanted = in_mode(mode)
        if (form, mode) in OPAQUE:
            wanted = (
                np.asarray(image)[..., :3]
                if mode == "RGBA"
                else np.asarray(image)[..., :1].repeat(3, 2)
            )
        sink = io.BytesIO()
        try:
            image.save(sink, form, **({"quality": 95} if form in LOSSY else {}))
        except (OSError, ValueError, KeyError):
            continue  # Pillow does not write this one
        found = verdict(sink.getvalue())
        if isinstance(found, str):
            assert found in REFUSED
            written[mode] = found
        elif wanted is not None:
            difference = np.abs(found.astype(int) - wanted)
            assert difference.mean() <= LOSSY.get(form, 0.5), (form, mode)
            written[mode] = "right"
        else:
            assert mode in ("LAB", "HSV") or form not in KEEP_DEPTH, (
                f"{form} of mode {mode} was read to 8 bits"
            )
    assert written.get("RGB") == "right" and written.get("L", "right") == "right"
    assert {written[mode] for mode in written if mode in ("I", "F", *DEEP)} <= {"16-bit"}


# Several pictures in one file.


def pages(*, kinds, deep=False):
    """A TIFF of pages whose tag NewSubfileType has these values; each is half as large as the one before."""
    buffer = io.BytesIO()
    first = blocks(3).astype(np.uint16 if deep else np.uint8)
    with tifffile.TiffWriter(buffer) as file:
        for number, kind in enumerate(kinds):
            mask = bool(kind & 4)
            step = 1 if mask else 2 ** min(number, 1)
            page = first[::step, ::step]
            pixels, photometric = (page[..., 0] > 127, "mask") if mask else (page, "rgb")
            file.write(pixels, photometric=photometric, subfiletype=kind, metadata=None)
    return buffer.getvalue(), first


@pytest.mark.parametrize("kinds", [(0,), (0, 1), (0, 4), (0, 1, 1), (0, 4, 1, 5), (0, 5)])
def test_overviews_and_masks_of_a_tiff_do_not_count(kinds):
    content, first = pages(kinds=kinds)
    assert np.array_equal(verdict(content), first)


@pytest.mark.parametrize("kinds", [(0, 0), (0, 1, 0), (0, 2, 2), (1, 0)])
def test_a_tiff_of_several_whole_pages_or_a_preview_in_front_is_refused(kinds):
    assert verdict(pages(kinds=kinds)[0]) == "animated"


def test_the_only_page_is_the_picture_whatever_it_is_called():
    content, first = pages(kinds=(1,))
    assert np.array_equal(verdict(content), first)


def test_a_big_endian_bigtiff_is_told_which_flags_help():
    assert (
        verdict(tiff(blocks(3).astype(np.uint8), photometric="rgb", bigtiff=True, byteorder=">"))
        == "bands"
    )


def test_overviews_do_not_hide_16_bits():
    assert verdict(pages(kinds=(0, 1), deep=True)[0]) == "16-bit"


@pytest.mark.parametrize("count", [2, 3])
def test_a_jpeg_with_a_preview_is_its_first_picture(count):
    first = Image.fromarray(blocks(3).astype(np.uint8))
    sink, alone = io.BytesIO(), io.BytesIO()
    first.save(alone, "JPEG")
    first.save(sink, "MPO", save_all=True, append_images=[first.resize((16, 16))] * (count - 1))
    assert np.array_equal(images.decode(sink.getvalue()), images.decode(alone.getvalue()))
    assert images.inspect(sink.getvalue(), "DJI_0001.JPG").odd == (
        "further pictures in the file left out",
    )
    assert images.decode(sink.getvalue(), 16).shape == (16, 16, 3)


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_an_animation_stays_outside(form):
    frames = [Image.fromarray(blocks(3, seed=i).astype(np.uint8)) for i in range(2)]
    sink = io.BytesIO()
    frames[0].save(sink, form, save_all=True, append_images=frames[1:])
    assert verdict(sink.getvalue()) == "animated"
