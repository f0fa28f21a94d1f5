"""Names and targets of all rows of a dataset, in one file beside its shards.

    DATASET/labels.parquet   image_name, target (null where it is unknown), shard, row (in its
                             shard); the metadata holds the bytes of each shard's file

The file is read with one request, where the shards would take several each. Imports neither torch
nor ray.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raytrain.errors import DataError

Array = np.ndarray[Any, Any]

FILE = "labels.parquet"
# The key of its hash in dataset.json.
HASH_KEY = "labels_sha256"
SCHEMA = pa.schema(
    [
        ("image_name", pa.string()),
        ("target", pa.list_(pa.uint8())),
        ("shard", pa.int32()),
        ("row", pa.int32()),
    ]
)
# Rows whose names are read at a time, where only some are wanted.
NAMES_AT_ONCE = 65_536
# Key of the metadata: a JSON list of the bytes of the shard files, in the order of the manifest.
SHARD_BYTES = b"shard_bytes"


@dataclass(frozen=True)
class RowLabels:
    """Names and targets of rows.

    Attributes:
        names: (rows,) of the tiles.
        targets: uint8 (rows, K): 1 if the tile has the label; zeros where it is unknown.
        known: bool (rows,): whether the target is known.
    """

    names: pa.StringArray
    targets: Array
    known: Array


def from_columns(names: pa.ChunkedArray, targets: pa.ListArray, classes: int) -> RowLabels:
    """Returns the labels in two columns of a table.

    Args:
        names: strings.
        targets: lists of uint8; null where the target is unknown.
        classes: number of classes.

    Raises:
        DataError: a target has another length.
    """
    known = np.asarray(targets.is_valid().to_numpy(zero_copy_only=False))
    flat = flat_targets(targets)
    if len(flat) != int(known.sum()) * classes:
        raise DataError(
            "a target has another length than the list of classes", "labels would be shifted"
        )
    if known.all():
        # A copy can be written to, and lets go of the table.
        matrix = np.array(flat.reshape(-1, classes))
    else:
        matrix = np.zeros((len(known), classes), np.uint8)
        matrix[known] = flat.reshape(-1, classes)
    return RowLabels(one_chunk(names), matrix, known)


def joined(parts: Sequence[RowLabels], classes: int) -> RowLabels:
    """Returns the rows of several parts one after the other.

    Args:
        parts: in the order of the rows; may be empty.
        classes: number of classes.
    """
    empty = RowLabels(
        pa.array([], pa.string()), np.zeros((0, classes), np.uint8), np.zeros(0, np.bool_)
    )
    every = [empty, *parts]
    return RowLabels(
        pa.concat_arrays([part.names for part in every]),
        np.concatenate([part.targets for part in every]),
        np.concatenate([part.known for part in every]),
    )


def one_chunk(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Returns a column as one array."""
    if isinstance(column, pa.ChunkedArray):
        # Also of a column without chunks.
        return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    return column


def flat_targets(targets: pa.ListArray) -> Array:
    """Returns all known targets one after the other, uint8 (known rows * K,)."""
    # `flatten` leaves out the values of a null, as `values` would not.
    return np.asarray(targets.flatten().to_numpy(zero_copy_only=False))


def target_array(targets: Iterable[Any]) -> pa.ListArray:
    """Makes a column of targets from arrays; Arrow would convert them number by number.

    Args:
        targets: uint8 (K,) each, or None where the target is unknown.
    """
    offsets = [0]  # where the target of each row begins in the flat array
    flat = [np.zeros(0, np.uint8)]  # concatenate needs at least one array
    is_unknown = []
    for target in targets:
        is_unknown.append(target is None)
        if target is None:
            # A null has no numbers: it ends where it begins.
            offsets.append(offsets[-1])
            continue
        offsets.append(offsets[-1] + len(target))
        flat.append(np.asarray(target, np.uint8))
    return _lists(np.array(offsets, np.int32), np.concatenate(flat), np.array(is_unknown, bool))


def target_rows(targets: Array, known: Array) -> pa.ListArray:
    """Makes a column of targets from a matrix.

    Args:
        targets: uint8 (rows, K).
        known: bool (rows,): where it is False the column is null.
    """
    return list_column(targets, np.uint8, known)


def list_column(values: Array, dtype: type[np.generic], known: Array | None = None) -> pa.ListArray:
    """Makes a column of N lists from the rows of a matrix.

    Args:
        values: (N, K).
        dtype: of the numbers in the column.
        known: bool (N,); rows where it is False become null. By default none does.
    """
    if known is None:
        known = np.ones(len(values), np.bool_)
    lengths = np.where(known, values.shape[1], 0)  # a null has no numbers
    # Where each row begins in the flat array, and the end of the last.
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return _lists(offsets, np.ascontiguousarray(values[known], dtype).ravel(), ~known)


def _lists(offsets: Array, flat: Array, is_unknown: Array) -> pa.ListArray:
    mask = None
    # Where all are known no mask is written, so that a shard has the bytes that it always had.
    if is_unknown.any():
        mask = pa.array(is_unknown, pa.bool_())
    return pa.ListArray.from_arrays(offsets, flat, mask=mask)


def content(
    names: pa.StringArray, targets: pa.ListArray, rows: Sequence[int], sizes: Sequence[int]
) -> bytes:
    """Makes the file; equal arguments give equal bytes.

    Args:
        names: (N,) of all rows, in the order of the shards.
        targets: (N,) lists of uint8; null where they are unknown.
        rows: number of rows of each shard.
        sizes: bytes of the file of each shard.
    """
    shard = np.repeat(np.arange(len(rows), dtype=np.int32), rows)
    starts = np.concatenate([[0], np.cumsum(rows)[:-1]])
    row = np.arange(len(names)) - np.repeat(starts, rows)
    table = pa.Table.from_arrays(
        [names, targets, pa.array(shard), pa.array(row, pa.int32())],
        schema=SCHEMA.with_metadata({SHARD_BYTES: json.dumps(list(sizes))}),
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


@dataclass(frozen=True)
class LabelsFile:
    """What the file holds.

    Attributes:
        labels: of all rows.
        shard_bytes: bytes of each shard's file, in the order of the manifest.
    """

    labels: RowLabels
    shard_bytes: list[int]


def parse(data: bytes, classes: int) -> LabelsFile:
    """Reads the file, whose hash has been compared.

    Args:
        data: content of the file.
        classes: number of classes.

    Raises:
        DataError: a column has another type.
    """
    wanted = ["image_name", "target"]
    with _opened(data, wanted) as file:
        table = file.read(columns=wanted)
    labels = from_columns(table.column("image_name"), one_chunk(table.column("target")), classes)
    return LabelsFile(labels, json.loads(table.schema.metadata[SHARD_BYTES]))


def parse_names(data: bytes, rows: Array) -> pa.StringArray:
    """Reads the names of some rows. Only a part of the file is in memory at a time.

    Args:
        data: content of the file.
        rows: int64 (N,), ascending.

    Returns:
        Their names, (N,).

    Raises:
        DataError: as `parse`.
    """
    found = [pa.array([], pa.string())]
    start = 0
    with _opened(data, ["image_name"]) as file:
        for batch in file.iter_batches(NAMES_AT_ONCE, columns=["image_name"]):
            first, last = np.searchsorted(rows, [start, start + batch.num_rows])
            found.append(batch.column(0).take(pa.array(rows[first:last] - start)))
            start += batch.num_rows
    names = pa.concat_arrays(found)
    # Arrow keeps the memory that reading took, 40 MB of a million rows, for what it reads next.
    pa.default_memory_pool().release_unused()
    return names


def _opened(data: bytes, wanted: Sequence[str]) -> pq.ParquetFile:
    file = pq.ParquetFile(io.BytesIO(data))
    for name in wanted:
        if file.schema_arrow.field(name).type != SCHEMA.field(name).type:
            raise DataError(
                f"the column {name} of {FILE} has another type than raytrain writes",
                "columns of foreign types may hold code and are never read",
                "ingest again into a new directory",
            )
    return file
