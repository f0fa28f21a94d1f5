"""A dataset written by hand, without Ray, for tests that need tiles with a certain flaw; and the network of the tests."""

import hashlib
import io
import json
from zlib import crc32

import numpy as np
import pyarrow as pa
from PIL import Image

from raytrain.data import dataset as ds
from raytrain.data import pixels, row_labels
from raytrain.data.splits import as_split
from raytrain.data.tile_format import TileFormat

RGB = TileFormat()
# BatchNorm, pooling and four stages like a ResNet-18, in half a million weights: a step takes a ninth of its time, and a
# checkpoint 8 MB instead of 187.
NETWORK = "timm:test_resnet"


def encoded(pixels, form="PNG", **options):
    """uint8 pixels, or a Pillow image, as the bytes of a file."""
    sink = io.BytesIO()
    image = (
        pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels, np.uint8))
    )
    image.save(sink, form, **options)
    return sink.getvalue()


def scene(seed, side=64):
    """uint8 (side, side, 3): smooth random blobs, different for every seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))


def tiff(values):
    """uint8 or uint16 values (H, W, C) as the bytes of a TIFF."""
    import tifffile

    sink = io.BytesIO()
    tifffile.imwrite(sink, values, photometric="minisblack", planarconfig="contig")
    return sink.getvalue()


def write_dataset(
    path, tiles, classes, splits=None, rows_per_shard=4, tile_size=64, form=RGB, older=True
):
    """Writes and opens a dataset.

    Args:
        path: directory to make.
        tiles: {name: (encoded picture, labels separated by spaces, or None where they are unknown)}, in the order of
            the rows.
        splits: {name: parts in the order of the tiles}.
        rows_per_shard: rows of each shard; the last may have fewer.
        tile_size: side that most pictures have.
        form: of the tiles.
        older: as versions wrote it that knew no labels.parquet.
    """
    (path / "shards").mkdir(parents=True)
    (path / "splits").mkdir()
    rows = [_row(name, picture, labels, classes, form) for name, (picture, labels) in tiles.items()]
    shards, entries, sizes = [], [], []
    for number, start in enumerate(range(0, len(rows), rows_per_shard)):
        some = rows[start : start + rows_per_shard]
        content = ds.shard_bytes([tuple(row.values()) for row in some])
        file = f"part-{number:05}.parquet"
        (path / "shards" / file).write_bytes(content)
        sizes.append(len(content))
        shards.append(
            ds.shard_entry(
                file, content, [row["image_name"] for row in some], [row["target"] for row in some]
            )
        )
    for name, parts in (splits or {}).items():
        split = as_split(list(tiles), np.array(parts, object))
        content = ds.split_bytes(split)
        (path / "splits" / f"{name}.parquet").write_bytes(content)
        entries.append(ds.split_entry(name, content, split))
    manifest = {
        "classes": classes,
        "tile_size": tile_size,
        "shards": shards,
        "splits": entries,
        "source": {"images": "by hand"},
        **form.content(),
    }
    if not older:
        targets = [None if row["target"] is None else np.array(row["target"]) for row in rows]
        labels = row_labels.content(
            pa.array([row["image_name"] for row in rows]),
            row_labels.target_array(targets),
            [shard["rows"] for shard in shards],
            sizes,
        )
        (path / row_labels.FILE).write_bytes(labels)
        manifest[row_labels.HASH_KEY] = hashlib.sha256(labels).hexdigest()
    manifest = {"schema_version": ds.schema_version(manifest), **manifest}
    (path / "dataset.json").write_text(json.dumps(manifest))
    return ds.open_dataset(str(path))


def _row(name, picture, labels, classes, form):
    if form.is_plain:
        # The header alone: some tests keep pictures that the gate would refuse.
        width, height = Image.open(io.BytesIO(picture), formats=("PNG", "JPEG")).size
    else:
        height, width = pixels.decode(picture, form).shape[:2]
    target = None
    if labels is not None:
        target = [int(label in labels.split()) for label in classes]
    return {
        "image_name": name,
        "image": picture,
        "width": width,
        "height": height,
        "crc32": crc32(picture),
        "target": target,
    }


# Names as in fastai's mnist_tiny, without its test folder.
DIGITS = [f"{part}/{digit}/{i}.png" for part in ("train", "valid") for digit in "37" for i in "012"]


def write_files(folder, *paths):
    """Writes files of one byte for tests that open no picture. Returns the folder as text."""
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"x")
    return str(folder)
