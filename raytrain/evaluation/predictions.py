"""Predictions as a Parquet file: what evaluation, thresholds, submissions and reports read, without GPU or Ray.

    image_name string · logits list<float32>, K a row · target list<uint8>, K of 0 and 1 a row, if known

The file's metadata holds one JSON object under the key `raytrain`: schema_version, classes in the order of the logits,
and meta (task, checkpoint, split, part, dataset: whatever the writer knew). Equal predictions give equal bytes.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raytrain import storage
from raytrain.errors import DataError, masked
from raytrain.evaluation.metrics import Array, sigmoid

SCHEMA_VERSION = 1
KEY = b"raytrain"
TYPES = {
    "image_name": pa.string(),
    "logits": pa.list_(pa.float32()),
    "target": pa.list_(pa.uint8()),
}
AGAIN = "raytrain predict --checkpoint RUN --dataset DATASET --out P.parquet"


@dataclass(frozen=True, eq=False)
class Predictions:
    """Logits float32 (N, K) of named tiles, and their target uint8 (N, K) of 0 and 1 where it is known."""

    names: tuple[str, ...]
    logits: Array
    target: Array | None
    classes: tuple[str, ...]
    meta: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = (len(self.names), len(self.classes))
        for what, values in (("logits", self.logits), ("target", self.target)):
            if values is not None and values.shape != shape:
                raise ValueError(
                    f"{what} has shape {values.shape}; {shape} are the numbers of names and classes"
                )

    @property
    def probability(self) -> Array:
        """float64 (N, K), sigmoid of the logits."""
        return sigmoid(self.logits)


def write(path: str, predictions: Predictions, *, durable: bool = True) -> None:
    """Writes the file atomically; see `storage.write_bytes` for `durable`.

    Raises:
        StorageError: the place cannot be written.
    """
    columns = {
        "image_name": pa.array(predictions.names, pa.string()),
        "logits": _lists(predictions.logits, np.float32),
    }
    if predictions.target is not None:
        columns["target"] = _lists(predictions.target, np.uint8)
    known = {
        "schema_version": SCHEMA_VERSION,
        "classes": predictions.classes,
        "meta": predictions.meta,
    }
    table = pa.table(columns).replace_schema_metadata(
        {KEY: masked(json.dumps(known, sort_keys=True)).encode()}
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", use_dictionary=False, write_page_checksum=True)
    storage.write_bytes(path, sink.getvalue(), durable=durable)


def read(path: str) -> Predictions:
    """Reads predictions and proves that they can be used.

    Raises:
        DataError: no such file, not Parquet or damaged, not written by raytrain, or logits and targets that are not
            K finite numbers a row.
        StorageError: the file system cannot be reached.
    """
    table = _table(path)
    known = _known(path, table.schema.metadata or {})
    classes = known["classes"]
    if table.column("image_name").null_count:
        raise _unusable(path, "a row has no image_name")
    logits = _matrix(path, table, "logits", classes)
    if not np.isfinite(logits).all():
        row = int(np.flatnonzero(~np.isfinite(logits).all(axis=1))[0])
        name = table.column("image_name")[row].as_py()
        raise _unusable(
            path,
            f"the logits of {name} are not finite",
            "a network that diverged says nothing about a tile",
        )
    target = _matrix(path, table, "target", classes) if "target" in table.column_names else None
    if target is not None and target.max(initial=0) > 1:
        raise _unusable(
            path,
            f"a target is {target.max()}, not 0 or 1",
            "a label that counts twice would bend every score",
        )
    return Predictions(
        tuple(table.column("image_name").to_pylist()), logits, target, tuple(classes), known["meta"]
    )


def _lists(values: Array, dtype: type[np.generic]) -> pa.ListArray:
    offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    return pa.ListArray.from_arrays(
        pa.array(offsets), pa.array(np.ascontiguousarray(values, dtype).ravel())
    )


def _table(path: str) -> pa.Table:
    """The columns that raytrain writes, types checked; foreign columns are never converted."""
    try:
        content = storage.read_bytes(path)
    except FileNotFoundError:
        raise DataError(f"there is no predictions file {path}", "", AGAIN) from None
    try:
        with pq.ParquetFile(io.BytesIO(content), page_checksum_verification=True) as file:
            schema = file.schema_arrow
            columns = [
                name for name in TYPES if schema.get_field_index(name) >= 0 or name != "target"
            ]
            wrong = [
                name
                for name in columns
                if name not in schema.names or schema.field(name).type != TYPES[name]
            ]
            if wrong:
                raise _unusable(path, f"it has no column {wrong[0]} of type {TYPES[wrong[0]]}")
            return file.read(columns=columns)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise _unusable(
            path, f"it is no Parquet file, or damaged ({str(error).splitlines()[0]})"
        ) from None


def _known(path: str, metadata: dict[bytes, bytes]) -> dict[str, Any]:
    """The object under the key `raytrain`, with classes (list of str) and meta (str to str)."""
    try:
        known = json.loads(metadata[KEY])
        right = known["schema_version"] == SCHEMA_VERSION and len(known["classes"]) > 0
        right &= all(isinstance(word, str) for word in [*known["classes"], *known["meta"].values()])
    except (KeyError, ValueError, TypeError, AttributeError):
        right = False
    if not right:
        raise _unusable(
            path,
            f"its metadata is not that of raytrain's schema version {SCHEMA_VERSION}",
            "classes are unknown",
        )
    return dict(known)


def _matrix(path: str, table: pa.Table, name: str, classes: list[str]) -> Array:
    """(N, K) of a list column; slicing and nulls cannot shift a row, since every list is measured."""
    column = table.column(name).combine_chunks()
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
    flat = column.flatten()
    wrong = np.flatnonzero(lengths != len(classes))  # a null list has length NaN
    if len(wrong) or flat.null_count:
        row = table.column("image_name")[int(wrong[0]) if len(wrong) else 0].as_py()
        found = (
            f"the {name} of {row} are not {len(classes)} numbers"
            if len(wrong)
            else f"{name} has empty values"
        )
        raise _unusable(path, found, "they would be read as other labels")
    values: Array = flat.to_numpy(zero_copy_only=False).reshape(-1, len(classes))
    return values


def _unusable(
    path: str, what: str, why: str = "scores and submissions would be wrong"
) -> DataError:
    return DataError(f"{path} cannot be used as predictions: {what}", why, AGAIN)
