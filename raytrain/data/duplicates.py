"""Tiles that show the same: equal bytes, equal pixels, or nearly equal pixels. No torch, no ray.

A tile's fingerprint holds digests of its bytes and of its pixels, a 64-bit difference hash, a small grey picture and the
mean colour. Two tiles are near duplicates where all three hold:

    hash         Hamming distance of the difference hashes <= 10
    grey picture correlation of the 32 x 32 grey pictures >= 0.9
    colour       means of red, green and blue each within 4 levels of 255

The hash alone is not enough: on tiles of even cloud or haze it is the hash of noise or of a gradient. Measured on 40,479
pieces of 128 to 200 pixels, cut at random from 601 Planet tiles, turned, and stored again: the hash passes 127,303 of the
819 million pairs, 121,128 of them pieces of different tiles; the three conditions pass 517, all of them pieces of the same
tile. Among the 8 symmetries of these tiles (11.6 million pairs of equal colours) none passes, among the 520,710 pairs of
whole Planet and UC Merced tiles only the pair that is there. Share of changed copies that is found
(Planet / UC Merced): JPEG at quality 75 1.00 / 1.00, at quality 40 0.94 / 1.00, brightness + 2 1.00 / 1.00, 2 pixels cut
off on every side 0.95 / 0.98, half the size 0.99 / 1.00. Copies of very even tiles get lost first. A copy that was turned
or flipped is not found.
"""

from __future__ import annotations

import hashlib
import io
import logging
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from raytrain.data import images
from raytrain.data.dataset import POOL_FROM_TILES, PROGRESS_EVERY_S, Dataset, read_shard
from raytrain.errors import DataError

logger = logging.getLogger(__name__)


Array = np.ndarray[Any, Any]

MAX_DISTANCE = 10
MIN_CORRELATION = 0.9
MAX_COLOUR = 4.0
SIDE = 32
KINDS = ("equal bytes", "equal pixels", "near duplicates")
# Rows that are compared with all others at once: their distances fit into a processor's cache.
BLOCK = 64
MAX_LINKS = 1_000_000
FINGERPRINT = np.dtype(
    [
        ("content", np.uint64, (2,)),
        ("mode", "U24"),
        ("width", np.int32),
        ("height", np.int32),
        ("pixels", np.uint64, (2,)),
        ("dhash", np.uint64),
        ("grey", np.uint8, (SIDE, SIDE)),
        ("colour", np.float32, (3,)),
    ]
)


@dataclass(frozen=True)
class Group:
    """Tiles that show the same. `kind`: one of KINDS; `rows`: their row numbers, ascending."""

    kind: str
    rows: tuple[int, ...]


def fingerprints(dataset: Dataset, *, decode: bool = True, processes: int | None = None) -> Array:
    """The fingerprint of every row, decoded by all CPUs of this process.

    Args:
        dataset: an opened dataset whose bytes are known to be good.
        decode: False reads the encoded bytes only; then pixels, dhash, grey and colour are zero.
        processes: by default the CPUs that this process may use.

    Returns:
        FINGERPRINT (rows,). 1,100 bytes a tile.

    Raises:
        DataError: a shard cannot be read, or a picture no longer passes the gate.
    """
    processes = processes or len(os.sched_getaffinity(0))
    found, done, began = [np.zeros(0, FINGERPRINT)], 0, time.monotonic()
    said = began
    for part in _map(dataset.shards, decode, processes if dataset.rows >= POOL_FROM_TILES else 1):
        found.append(part)
        done += len(part)
        if time.monotonic() - said > PROGRESS_EVERY_S:
            said = time.monotonic()
            left = round((said - began) / done * (dataset.rows - done))
            logger.info(
                f"check: {done} of {dataset.rows} tiles looked at, {left // 60}:{left % 60:02} to go"
            )
    return np.concatenate(found)


def _map(shards: list[str], decode: bool, processes: int) -> Iterator[Array]:
    if processes > 1 and decode:
        # spawn: a fork of a process that runs Ray's threads may inherit a lock that nobody will release.
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            yield from pool.map(_fingerprint_shard, shards, [decode] * len(shards))
    else:
        yield from (_fingerprint_shard(path, decode) for path in shards)


def _fingerprint_shard(path: str, decode: bool) -> Array:
    table = read_shard(path, ["image_name", "image", "width", "height"])
    found = np.zeros(table.num_rows, FINGERPRINT)
    found["width"], found["height"] = (
        table.column("width").to_numpy(),
        table.column("height").to_numpy(),
    )
    for row, (name, content) in enumerate(
        zip(table.column("image_name"), table.column("image"), strict=True)
    ):
        try:
            _fill(found[row], content.as_py(), decode)
        except images.BadImage as error:
            raise DataError(
                f"the picture {name} in {path} is damaged ({error.kind}: {error.detail})",
                "training would stop at it",
                "ingest again into a new directory",
            ) from None
    return found


def _fill(entry: np.void, content: bytes, decode: bool) -> None:
    entry["content"] = _digest(content)
    entry["mode"] = _mode(content)
    if not decode:
        return
    pixels = images.decode(content)
    grey = Image.fromarray(pixels).convert("L")
    entry["pixels"] = _digest(str(pixels.shape).encode() + pixels.tobytes())
    entry["dhash"] = dhash(grey)
    entry["grey"] = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX))
    entry["colour"] = pixels.mean((0, 1))


def _digest(content: bytes) -> Array:
    return np.frombuffer(hashlib.blake2b(content, digest_size=16).digest(), np.uint64)


def _mode(content: bytes) -> str:
    """Pillow's mode of the encoded picture: RGB, L, CMYK, P, RGBA ...; `P, transparent` where a colour is see-through."""
    image = Image.open(io.BytesIO(content), formats=images.FORMATS)
    return image.mode + (", transparent" if "transparency" in image.info else "")


def dhash(grey: Image.Image) -> int:
    """The 64-bit difference hash: bit 8 r + c (from the highest) is 1 where the mean grey rises from column c to c + 1.

    Krawetz 2013, "Kind of Like That": the picture is reduced to 9 columns and 8 rows, neighbours are compared.
    """
    reduced = np.asarray(grey.resize((9, 8), Image.Resampling.BOX))
    return int.from_bytes(np.packbits(reduced[:, 1:] > reduced[:, :-1]).tobytes(), "big")


def groups(prints: Array) -> list[Group]:
    """Groups of tiles that show the same, largest first; a tile is in one group at most.

    Near duplicates join groups: with a near b and b near c all three are in one. Compares every hash with every other:
    40,479 tiles take 1 to 8 seconds on one core, ten times as many a hundred times that; if all hashes were equal, 2 minutes.

    Args:
        prints: FINGERPRINT (rows,); without decoded pixels only equal bytes are found.
    """
    links = star(prints["content"])
    if prints["grey"].any() or prints["pixels"].any():
        links = np.concatenate([links, star(prints["pixels"])])
        alone = np.setdiff1d(np.arange(len(prints)), links[:, 1])  # one of each group that is known
        links = np.concatenate([links, alone[near(prints[alone])]])
    label = _components(links, len(prints))
    members = (
        np.split(np.argsort(label, kind="stable"), np.cumsum(np.bincount(label))[:-1])
        if len(prints)
        else []
    )
    found = [Group(_kind(prints[rows]), tuple(rows.tolist())) for rows in members if len(rows) > 1]
    return sorted(found, key=lambda group: (-len(group.rows), group.rows))


def _kind(prints: Array) -> str:
    if (prints["content"] == prints["content"][0]).all():
        return KINDS[0]
    return KINDS[1] if (prints["pixels"] == prints["pixels"][0]).all() else KINDS[2]


def near(prints: Array) -> Array:
    """Pairs of near duplicates by the rule of this module.

    Returns:
        int64 (pairs, 2) of indices into `prints`, the first less than the second. Beyond MAX_LINKS pairs only as many as
        keep the same groups together.
    """
    hashes = np.ascontiguousarray(prints["dhash"])
    found, links = [np.zeros((0, 2), np.int64)], 0
    for start in range(0, len(prints), BLOCK):
        close = (
            np.bitwise_count(hashes[start : start + BLOCK, None] ^ hashes[None, start:])
            <= MAX_DISTANCE
        )
        close = np.triu(close, 1)
        if not close.any():
            continue
        first, second = np.flatnonzero(close.any(1)), np.flatnonzero(close.any(0))
        alike = close[np.ix_(first, second)] & _alike(prints[start + first], prints[start + second])
        found.append(
            start + np.stack([first[np.nonzero(alike)[0]], second[np.nonzero(alike)[1]]], 1)
        )
        links += len(found[-1])
        if links > MAX_LINKS:
            found = [star(_components(np.concatenate(found), len(prints)))]
            links = len(found[0])
    return np.concatenate(found)


def _alike(first: Array, second: Array) -> Array:
    """bool (a, b): correlation and colour of every tile of `first` with every tile of `second` are near enough."""
    colour = np.abs(first["colour"][:, None] - second["colour"][None]).max(-1) <= MAX_COLOUR
    correlated = _unit(first["grey"]) @ _unit(second["grey"]).T >= MIN_CORRELATION
    return np.asarray(colour & correlated)


def _unit(grey: Array) -> Array:
    """float32 (n, SIDE²) with mean 0 and length 1, so that a product is a correlation; a single colour stays zero."""
    flat: Array = grey.reshape(len(grey), -1).astype(np.float32)
    flat -= flat.mean(1, keepdims=True)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    return flat


def star(keys: Array) -> Array:
    """Links that join equal keys: int64 (links, 2), the first row that has a key with every other that has it.

    Args:
        keys: (n,) or (n, d).
    """
    _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    links = np.stack([first[inverse.reshape(-1)], np.arange(len(keys))], 1)
    apart: Array = links[links[:, 0] != links[:, 1]]
    return apart


def _components(links: Array, count: int) -> Array:
    """int (count,): number of the group that each row belongs to."""
    graph = coo_matrix(
        (np.ones(len(links), bool), (links[:, 0], links[:, 1])), shape=(count, count)
    )
    return np.asarray(connected_components(graph, directed=False)[1])
