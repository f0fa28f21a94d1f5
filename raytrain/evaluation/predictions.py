"""The predictions file: logits by tile name, and the target where it is known.

Evaluation, thresholds, submissions and reports read this and need neither a GPU nor Ray. Parquet with the columns
image_name string, logits list<float32>, target list<uint8> (optional); classes and origin in the file's metadata.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raytrain import storage
from raytrain.errors import DataError
from raytrain.evaluation.metrics import sigmoid

METADATA_KEY = b"raytrain"


@dataclass(frozen=True)
class Predictions:
    """Logits of tiles.

    Attributes:
        names: of the N tiles, unique.
        logits: float32 (N, K).
        target: uint8 (N, K), or None where the labels are unknown.
        classes: the K labels.
        meta: task, checkpoint, dataset, split, part: where they come from.
    """

    names: tuple[str, ...]
    logits: np.ndarray[Any, Any]
    target: np.ndarray[Any, Any] | None
    classes: tuple[str, ...]
    meta: dict[str, str]

    @property
    def probability(self) -> np.ndarray[Any, Any]:
        """float64 (N, K)."""
        return sigmoid(self.logits)

    def known_target(self) -> np.ndarray[Any, Any]:
        """The target.

        Raises:
            DataError: the labels of these tiles are unknown.
        """
        if self.target is None:
            raise DataError(
                "these predictions have no target: they were made for folders of tiles without labels",
                "nothing can be judged without the truth",
                "raytrain predict --checkpoint C --dataset DATASET --part valid --out P.parquet",
            )
        return self.target


def write(place: str, predictions: Predictions) -> None:
    """Writes a predictions file, whole or not at all; equal predictions give equal bytes."""
    columns: dict[str, pa.Array] = {
        "image_name": pa.array(predictions.names, pa.string()),
        "logits": _lists(predictions.logits, pa.float32()),
    }
    if predictions.target is not None:
        columns["target"] = _lists(predictions.target, pa.uint8())
    meta = json.dumps({"classes": list(predictions.classes), **predictions.meta}, sort_keys=True)
    table = pa.table(columns).replace_schema_metadata({METADATA_KEY: meta.encode()})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    storage.write_bytes(place, sink.getvalue())


def read(place: str) -> Predictions:
    """Reads a predictions file.

    Raises:
        DataError: missing, not a predictions file, or with uneven or non-finite logits.
    """
    table, meta = _table(place)
    classes = tuple(meta.pop("classes"))
    logits = _matrix(table, "logits", len(classes), place)
    if not np.isfinite(logits).all():
        raise DataError(f"{place} holds logits that are not finite", "the network diverged", "predict with another checkpoint")
    target = _matrix(table, "target", len(classes), place) if "target" in table.column_names else None
    return Predictions(tuple(table.column("image_name").to_pylist()), logits, target, classes, meta)


def _table(place: str) -> tuple[pa.Table, dict[str, Any]]:
    fix = "raytrain predict --checkpoint C --dataset DATASET --out P.parquet writes one"
    try:
        content = storage.read_bytes(place)
    except FileNotFoundError:
        raise DataError(f"the predictions file {place} does not exist", "there is nothing to judge", fix) from None
    try:
        file = pq.ParquetFile(io.BytesIO(content), page_checksum_verification=True)
        meta = json.loads((file.schema_arrow.metadata or {})[METADATA_KEY])
        types = {"image_name": pa.string(), "logits": pa.list_(pa.float32()), "target": pa.list_(pa.uint8())}
        known = [name for name in file.schema_arrow.names if name in types]
        wrong = [name for name in known if file.schema_arrow.field(name).type != types[name]]
        if wrong or not {"image_name", "logits"} <= set(known):
            raise KeyError("schema")
        return file.read(columns=known), meta
    except (pa.ArrowException, OSError, KeyError, ValueError):
        raise DataError(f"{place} is not a predictions file", "it has another content or is damaged", fix) from None


def _matrix(table: pa.Table, name: str, width: int, place: str) -> np.ndarray[Any, Any]:
    column = table.column(name).combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False)
    if len(values) != len(column) * width or any(n != width for n in column.value_lengths().to_pylist()):
        raise DataError(f"{place}: a row of {name} has not {width} values, one per class", "labels would be shifted")
    matrix: np.ndarray[Any, Any] = values.reshape(len(column), width)
    return matrix


def _lists(matrix: np.ndarray[Any, Any], kind: pa.DataType) -> pa.Array:
    offsets = np.arange(len(matrix) + 1, dtype=np.int32) * matrix.shape[1]
    return pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(matrix).reshape(-1), kind))
