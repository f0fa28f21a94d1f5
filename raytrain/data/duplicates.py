"""Finds tiles that show the same: equal bytes, equal pixels, or nearly equal pixels.

The fingerprint of a tile holds digests of its bytes and pixels, a 64-bit difference hash, a small
grey picture and the mean colour. Two tiles are near duplicates where all three conditions hold:

    hash          Hamming distance of the difference hashes <= 10
    grey picture  correlation of the 32 x 32 grey pictures >= 0.9
    colour        means of red, green and blue each within 4 levels of 255

The hash alone is not enough: on tiles of even cloud or haze it is the hash of noise or of a
gradient. This was measured on 40,479 pieces of 128 to 200 pixels, cut at random from 601 Planet
tiles, turned, and stored again. Of 819 million pairs the hash passes 127,303, and 121,128 of these
are pieces of different tiles. The three conditions pass 517 pairs, all of them pieces of the same
tile.

No pair passes among the 8 symmetries of these tiles (11.6 million pairs of equal colours). Among
the 520,710 pairs of whole Planet and UC Merced tiles only the one true pair passes. The share of
changed copies that is found:

    change                        Planet  UC Merced
    JPEG at quality 75              1.00       1.00
    JPEG at quality 40              0.94       1.00
    brightness + 2                  1.00       1.00
    2 pixels cut off every side     0.95       0.98
    half the size                   0.99       1.00

Copies of very even tiles are the first to be missed. A turned or flipped copy is not found.

Of tiles with other bands the three channels that are drawn are compared: hash and grey picture as
they are drawn (`drawing`), colours by their values. Nothing of this was measured on such tiles.
Imports neither torch nor ray.
"""

from __future__ import annotations

import hashlib
import io
import logging
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from raytrain.data import drawing, images, pixels
from raytrain.data.dataset import POOL_FROM_TILES, PROGRESS_EVERY_S, Dataset, read_shard
from raytrain.data.headers import is_tiff
from raytrain.data.tile_format import TileFormat
from raytrain.errors import DataError
from raytrain.machine import usable_cpus

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]

MAX_DISTANCE = 10  # bits
MIN_CORRELATION = 0.9
COLOUR_LEVELS = 255
MAX_COLOUR = 4.0  # of these levels
CELLS = 66  # more than the cells of MAX_COLOUR levels along a colour, so that neighbours are unique
SIDE = 32  # of the grey picture, in pixels
EQUAL_BYTES = "equal bytes"
EQUAL_PIXELS = "equal pixels"
NEAR = "near duplicates"
KINDS = (EQUAL_BYTES, EQUAL_PIXELS, NEAR)
# Rows that are compared with all others at once: their distances fit into a processor's cache.
BLOCK = 64
# Pairs of near duplicates that are kept in memory; a million take 16 MB.
MAX_LINKS = 1_000_000
# One entry for each tile, 1,100 bytes or so. Digests have 128 bits, as two uint64.
FINGERPRINT = np.dtype(
    [
        ("content", np.uint64, (2,)),  # digest of the encoded bytes
        ("mode", "U24"),
        ("width", np.int32),
        ("height", np.int32),
        ("pixels", np.uint64, (2,)),  # digest of shape and decoded pixels
        ("dhash", np.uint64),
        ("grey", np.uint8, (SIDE, SIDE)),
        ("colour", np.float32, (3,)),  # mean red, green and blue, 0 to 255
    ]
)


@dataclass(frozen=True)
class Group:
    """Tiles that show the same.

    Attributes:
        kind: one of KINDS.
        rows: their row numbers, ascending.
    """

    kind: str
    rows: tuple[int, ...]


def fingerprints(dataset: Dataset, *, decode: bool = True, processes: int | None = None) -> Array:
    """Computes the fingerprint of every row, on all CPUs of this process.

    Args:
        dataset: an opened dataset whose bytes are known to be undamaged.
        decode: False reads the encoded bytes only; then pixels, dhash, grey and colour are zero.
        processes: by default the number of CPUs that this process may use.

    Returns:
        FINGERPRINT (rows,).

    Raises:
        DataError: a shard cannot be read, or a picture no longer passes the gate.
    """
    processes = processes or usable_cpus()
    # Starting processes takes longer than a small dataset.
    if dataset.rows < POOL_FROM_TILES:
        processes = 1
    # The empty first part is the result for a dataset without shards.
    parts = [np.zeros(0, FINGERPRINT)]
    done = 0
    began = time.monotonic()
    last_log = began
    for part in _fingerprint_shards(dataset, decode, processes):
        parts.append(part)
        done += len(part)
        if time.monotonic() - last_log > PROGRESS_EVERY_S:
            last_log = time.monotonic()
            seconds_per_tile = (last_log - began) / done
            left_s = round(seconds_per_tile * (dataset.rows - done))
            minutes, seconds = divmod(left_s, 60)
            logger.info(f"check: {done} of {dataset.rows} tiles read, {minutes}:{seconds:02} to go")
    return np.concatenate(parts)


def _fingerprint_shards(dataset: Dataset, decode: bool, processes: int) -> Iterator[Array]:
    fingerprint = partial(_fingerprint_shard, decode=decode, tiles=dataset.tile_format)
    # Without decoding there is too little to compute for several processes.
    if processes == 1 or not decode:
        yield from map(fingerprint, dataset.shards)
        return
    # spawn: a fork of a process that runs Ray's threads may inherit a lock that is never released.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context) as pool:
        yield from pool.map(fingerprint, dataset.shards)


def _fingerprint_shard(path: str, decode: bool, tiles: TileFormat) -> Array:
    """FINGERPRINT (rows of the shard,)."""
    table = read_shard(path, ["image_name", "image", "width", "height"])
    found = np.zeros(table.num_rows, FINGERPRINT)
    found["width"] = table.column("width").to_numpy()
    found["height"] = table.column("height").to_numpy()
    names = table.column("image_name")
    contents = table.column("image")
    rows = zip(names, contents, strict=True)
    for row, (name, content) in enumerate(rows):
        try:
            _fill(found[row], content.as_py(), decode, tiles)
        except images.BadImage as error:
            raise DataError(
                f"the picture {name} in {path} is damaged ({error.kind}: {error.detail})",
                "training would stop at it",
                "ingest again into a new directory",
            ) from None
    return found


def _fill(entry: np.void, content: bytes, decode: bool, tiles: TileFormat) -> None:
    """Writes the fields of one fingerprint, except width and height."""
    entry["content"] = _digest(content)
    entry["mode"] = _mode(content, tiles)
    if not decode:
        return
    tile = pixels.decode(content, tiles)
    # With the shape: 20 x 30 and 30 x 20 pixels may hold the same bytes.
    shape = str(tile.shape).encode()
    entry["pixels"] = _digest(shape + tile.tobytes())
    grey = Image.fromarray(drawing.drawn(tile)).convert("L")
    entry["dhash"] = dhash(grey)
    reduced = grey.resize((SIDE, SIDE), Image.Resampling.BOX)
    entry["grey"] = np.asarray(reduced)
    colour = drawing.drawn_channels(tile).mean((0, 1))
    if tiles.scale != COLOUR_LEVELS:
        colour = colour * (COLOUR_LEVELS / tiles.scale)
    entry["colour"] = colour


def _digest(content: bytes) -> Array:
    """uint64 (2,), 128 bits of BLAKE2b."""
    digest = hashlib.blake2b(content, digest_size=16).digest()
    return np.frombuffer(digest, np.uint64)


def _mode(content: bytes, tiles: TileFormat) -> str:
    """Pillow's mode of the encoded picture: RGB, L, CMYK, P, RGBA ...

    It is followed by `, transparent` where one colour is declared transparent. Of a TIFF whose
    bands are kept it is the number of its bands and bits.
    """
    if not tiles.is_plain and is_tiff(content):
        return pixels.tiff_mode(content)
    image = Image.open(io.BytesIO(content), formats=images.FORMATS)
    if "transparency" in image.info:
        return f"{image.mode}, transparent"
    return image.mode


def dhash(grey: Image.Image) -> int:
    """Computes the 64-bit difference hash of a grey picture.

    The picture is reduced to 9 columns and 8 rows. Bit 8 r + c, from the highest, is 1 where the
    mean grey of row r rises from column c to c + 1 (Krawetz 2013, "Kind of Like That").
    """
    reduced = np.asarray(grey.resize((9, 8), Image.Resampling.BOX))
    left = reduced[:, :-1]
    right = reduced[:, 1:]
    bits = np.packbits(right > left)  # uint8 (8,)
    return int.from_bytes(bits.tobytes(), "big")


def groups(prints: Array, among: Array | None = None) -> list[Group]:
    """Finds the groups of tiles that show the same.

    Near duplicates join groups: with a near b and b near c, all three are in one. Tiles are
    compared with all those of near colours.

    Args:
        prints: FINGERPRINT (rows,); without decoded pixels only equal bytes are found.
        among: int (n,), the rows to compare, ascending; by default all.

    Returns:
        Groups of two tiles or more, largest first; a tile is in one group at most.
    """
    if among is not None and len(among) < len(prints):
        found = []
        for group in groups(prints[among]):
            rows = among[list(group.rows)]
            found.append(Group(group.kind, tuple(rows.tolist())))
        return found
    links = star(prints["content"])
    decoded = prints["grey"].any() or prints["pixels"].any()
    if decoded:
        links = np.concatenate([links, star(prints["pixels"])])
        # One tile of each group found so far is enough for the slow comparison.
        rows = np.arange(len(prints))
        single = np.setdiff1d(rows, links[:, 1])
        pairs = near(prints[single])
        links = np.concatenate([links, single[pairs]])
    found = []
    for rows in _rows_by_component(links, len(prints)):
        if len(rows) > 1:
            kind = _kind(prints[rows])
            found.append(Group(kind, tuple(rows.tolist())))
    return sorted(found, key=_largest_first)


def _rows_by_component(links: Array, count: int) -> list[Array]:
    """Row numbers, ascending, of each component of the graph."""
    if count == 0:
        return []
    component = _components(links, count)
    # A stable sort by component keeps the rows of each ascending.
    order = np.argsort(component, kind="stable")
    ends = np.cumsum(np.bincount(component))
    return np.split(order, ends[:-1])


def _largest_first(group: Group) -> tuple[int, tuple[int, ...]]:
    return -len(group.rows), group.rows


def _kind(prints: Array) -> str:
    """The kind of a group: the strictest that holds for all its tiles."""
    if _all_equal(prints["content"]):
        return EQUAL_BYTES
    if _all_equal(prints["pixels"]):
        return EQUAL_PIXELS
    return NEAR


def _all_equal(digests: Array) -> bool:
    return bool((digests == digests[0]).all())


def near(prints: Array) -> Array:
    """Finds pairs of near duplicates by the three conditions of this module.

    Only tiles of near colours are compared. Their colours are in one cell of a grid, or in two
    cells that touch, so no pair is missed.

    Args:
        prints: FINGERPRINT (n,).

    Returns:
        int64 (pairs, 2) of indices into `prints`, the first less than the second. Beyond MAX_LINKS
        pairs only as many are returned as keep the same groups together.
    """
    grid = _Grid.of(prints["colour"])
    hashes = prints["dhash"][grid.order]
    found = [np.zeros((0, 2), np.int64)]
    links = 0
    most = MAX_LINKS
    for cell in range(len(grid.starts) - 1):
        for block, others in _comparisons(grid, cell):
            pairs = grid.order[_alike_pairs(prints, hashes, grid, block, others)]
            found.append(np.sort(pairs, axis=1))
            links += len(pairs)
            if links <= most:
                continue
            # A star of each component needs fewer links than tiles.
            stars = star(_components(np.concatenate(found), len(prints)))
            found = [stars]
            links = len(stars)
            # Where the stars alone are that many, not after every block.
            most = max(MAX_LINKS, 2 * links)
    return np.concatenate(found)


@dataclass(frozen=True)
class _Grid:
    """Tiles by the cell of their mean colour. Cells have a side of `MAX_COLOUR` levels.

    Attributes:
        order: int64 (n,), the tiles sorted by their cell.
        keys: int64 (cells,), the number of each cell that has tiles, ascending.
        starts: int64 (cells + 1,), where the tiles of each cell begin in `order`.
    """

    order: Array
    keys: Array
    starts: Array

    @classmethod
    def of(cls, colours: Array) -> _Grid:
        """Makes the grid of float32 (n, 3) colours from 0 to 255."""
        cells = np.floor(colours / MAX_COLOUR).astype(np.int64)
        key = (cells[:, 0] * CELLS + cells[:, 1]) * CELLS + cells[:, 2]
        order = np.argsort(key, kind="stable")
        keys, starts = np.unique(key[order], return_index=True)
        return cls(order, keys, np.append(starts, len(key)))

    def between(self, first: int, last: int) -> Array:
        """Positions in `order` of the tiles in the cells from `first` to `last`, by number."""
        low = np.searchsorted(self.keys, first, side="left")
        high = np.searchsorted(self.keys, last, side="right")
        return np.arange(self.starts[low], self.starts[high])


def _comparisons(grid: _Grid, cell: int) -> Iterator[tuple[Array, Array]]:
    """Yields positions of a block of tiles of a cell, and of all that it is compared with.

    The tiles of the block come first among the others, so that each pair is compared once.
    """
    key = int(grid.keys[cell])
    # The cells that touch this one and come later. Blue is the last digit of the number, so cells
    # with neighbouring blues follow each other.
    later = [grid.between(key + 1, key + 1)]
    for red, green in ((0, 1), (1, -1), (1, 0), (1, 1)):
        beside = key + (red * CELLS + green) * CELLS
        later.append(grid.between(beside - 1, beside + 1))
    others = np.concatenate(later)
    end = grid.starts[cell + 1]
    for start in range(grid.starts[cell], end, BLOCK):
        block = np.arange(start, min(start + BLOCK, end))
        yield block, np.concatenate([np.arange(start, end), others])


def _alike_pairs(prints: Array, hashes: Array, grid: _Grid, block: Array, others: Array) -> Array:
    """Finds the pairs of a block and others that are near duplicates.

    Args:
        prints: FINGERPRINT (n,).
        hashes: uint64 (n,), in the order of the grid.
        grid: of the colours.
        block: int64 (a,), positions in that order.
        others: int64 (b,), those of `block` and further ones.

    Returns:
        int64 (pairs, 2) of positions.
    """
    # (a, b): the hash is tested first, since it is by far the fastest test.
    distance = np.bitwise_count(hashes[block][:, None] ^ hashes[others][None])
    # Above the diagonal: each pair once, and no tile with itself.
    close = np.triu(distance <= MAX_DISTANCE, 1)
    # Only rows and columns with a close pair go on to the slower tests.
    first = np.flatnonzero(close.any(1))
    second = np.flatnonzero(close.any(0))
    if not len(first):
        return np.zeros((0, 2), np.int64)
    rows = grid.order[block[first]]
    columns = grid.order[others[second]]
    alike = _alike(prints[rows], prints[columns])
    alike &= close[np.ix_(first, second)]
    row, column = np.nonzero(alike)
    return np.stack([block[first[row]], others[second[column]]], 1)


def _alike(first: Array, second: Array) -> Array:
    """Tests correlation and colour of every pair.

    Args:
        first: FINGERPRINT (a,).
        second: FINGERPRINT (b,).

    Returns:
        bool (a, b).
    """
    rows = first["colour"][:, None]  # (a, 1, 3)
    columns = second["colour"][None]  # (1, b, 3)
    difference = np.abs(rows - columns)
    colour_is_near = difference.max(-1) <= MAX_COLOUR
    correlation = _unit(first["grey"]) @ _unit(second["grey"]).T
    is_correlated = correlation >= MIN_CORRELATION
    return np.asarray(colour_is_near & is_correlated)


def _unit(grey: Array) -> Array:
    """Scales pictures so that the product of two is their correlation.

    Args:
        grey: uint8 (n, SIDE, SIDE).

    Returns:
        float32 (n, SIDE²), each of mean 0 and length 1; a picture of a single value stays zero.
    """
    rows = grey.reshape(len(grey), -1)
    flat: Array = rows.astype(np.float32)
    flat -= flat.mean(1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    flat /= np.maximum(length, 1e-6)
    return flat


def star(keys: Array) -> Array:
    """Links equal keys in the shape of a star: the first row of a key with each other row of it.

    Args:
        keys: (n,) or (n, d).

    Returns:
        int64 (links, 2) of row numbers, the first row of the key first.
    """
    _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    # NumPy 2.0 gives `inverse` further dimensions of length 1 where `axis` is set.
    first_of_row = first[inverse.reshape(-1)]
    row = np.arange(len(keys))
    links = np.stack([first_of_row, row], 1)
    # Without the links of the first rows to themselves.
    apart: Array = links[first_of_row != row]
    return apart


def _components(links: Array, count: int) -> Array:
    """int (count,): the number of the connected component of each row.

    Args:
        links: int (links, 2) of row numbers.
        count: number of rows.
    """
    edges = (links[:, 0], links[:, 1])
    weights = np.ones(len(links), bool)
    graph = coo_matrix((weights, edges), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    return np.asarray(labels)
