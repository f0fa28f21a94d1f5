"""Reads and writes predictions as a Parquet file.

Evaluation, thresholds, submissions and reports read it without GPU or Ray. Its columns:

    image_name  string
    logits      list<float32>, K in each row
    target      list<uint8>, K of 0 and 1 in each row, null where the labels are unknown; there is
                no such column where all are unknown
    fold        int32, the fold in which the tile was validated, from 0; only in out-of-fold
                predictions

The file's metadata holds one JSON object under the key `raytrain`: schema_version, classes in the
order of the logits, and meta (task, checkpoint, split, part, dataset, as far as the writer knew
them). Schema version 2 is that of a file where some labels are known and some are not; programs of
before refuse it. Equal predictions give equal bytes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raytrain import registry, storage
from raytrain.data.row_labels import list_column
from raytrain.errors import DataError, masked
from raytrain.evaluation.metrics import Array

# Of several labels per tile.
SCHEMA_VERSION = 1
# Neither names nor logits repeat, so a dictionary would take more space.
PARQUET: dict[str, Any] = {
    "compression": "zstd",
    "use_dictionary": False,
    "write_page_checksum": True,
}
# Of other tasks, or with some unknown targets: programs that know neither refuse it.
EXTENDED_VERSION = 2
KEY = b"raytrain"
TYPES = {
    "image_name": pa.string(),
    "logits": pa.list_(pa.float32()),
    "target": pa.list_(pa.uint8()),
    "fold": pa.int32(),
}
OPTIONAL = ("target", "fold")
# The fix in messages: how to write a new file.
AGAIN = "raytrain predict --checkpoint RUN --dataset DATASET --out P.parquet"


@dataclass(frozen=True, eq=False)
class Predictions:
    """The output of a network for named tiles.

    Attributes:
        names: of N tiles.
        logits: float32 (N, K).
        target: uint8 (N, K) of 0 and 1, or None where all labels are unknown. Rows whose labels are
            unknown are zeros that mean nothing.
        classes: names of the K classes.
        meta: where the predictions come from, see the module.
        known: bool (N,), whether the labels of each tile are known, or None where all are or no
            target is given.
        fold: int32 (N,), the fold whose network predicted each tile, which it was not trained on;
            None where one network predicted all.

    Raises:
        ValueError: the shapes do not fit the numbers of names and classes.
    """

    names: tuple[str, ...]
    logits: Array
    target: Array | None
    classes: tuple[str, ...]
    meta: dict[str, str] = field(default_factory=dict)
    known: Array | None = None
    fold: Array | None = None

    def __post_init__(self) -> None:
        self._check_shape("logits", self.logits)
        if self.target is not None:
            self._check_shape("target", self.target)
        if self.known is not None and self.known.shape != (len(self.names),):
            raise ValueError(f"known has shape {self.known.shape} for {len(self.names)} names")
        if self.fold is not None and self.fold.shape != (len(self.names),):
            raise ValueError(f"fold has shape {self.fold.shape} for {len(self.names)} names")

    @property
    def is_known(self) -> Array:
        """bool (N,): whether the labels of each tile are known."""
        if self.target is None:
            return np.zeros(len(self.names), np.bool_)
        if self.known is None:
            return np.ones(len(self.names), np.bool_)
        return self.known

    def judged(self) -> Predictions:
        """The predictions that can be judged: those of tiles whose labels are known.

        Without any such tile there are no targets, and all predictions stay.
        """
        known = self.is_known
        if known.all() or not known.any():
            return _without_mask(self)
        return replace(self.taken(np.flatnonzero(known)), known=None)

    def taken(self, rows: Array) -> Predictions:
        """Returns the predictions of some rows, int (M,), in their order."""
        return replace(
            self,
            names=tuple(self.names[row] for row in rows.tolist()),
            logits=self.logits[rows],
            target=_taken(self.target, rows),
            known=_taken(self.known, rows),
            fold=_taken(self.fold, rows),
        )

    def _check_shape(self, what: str, values: Array) -> None:
        shape = (len(self.names), len(self.classes))
        if values.shape != shape:
            raise ValueError(
                f"{what} has shape {values.shape}; {shape} are the numbers of names and classes"
            )

    @property
    def task(self) -> str:
        """Name of the task, see `raytrain.registry`."""
        return self.meta.get("task", registry.DEFAULT)

    @property
    def probability(self) -> Array:
        """The probability of each class, float64 (N, K), as the task computes it."""
        return registry.evaluation(self.task).probabilities(self.logits)


def _taken(values: Array | None, rows: Array) -> Array | None:
    if values is None:
        return None
    return values[rows]


def _without_mask(predictions: Predictions) -> Predictions:
    """The same predictions, of which all or none have a target, without the mask `known`."""
    if predictions.is_known.all():
        return replace(predictions, known=None)
    return replace(predictions, target=None, known=None)


def write(path: str, predictions: Predictions, *, durable: bool = True) -> None:
    """Writes the file atomically.

    Args:
        path: path or URI.
        predictions: to write.
        durable: see `storage.write_bytes`.

    Raises:
        StorageError: the path cannot be written.
    """
    columns = {
        "image_name": pa.array(predictions.names, pa.string()),
        "logits": list_column(predictions.logits, np.float32),
    }
    is_known = predictions.is_known
    # A file without rows may have targets, too.
    if predictions.target is not None and (is_known.any() or not len(is_known)):
        columns["target"] = list_column(predictions.target, np.uint8, is_known)
    if predictions.fold is not None:
        columns["fold"] = pa.array(predictions.fold, pa.int32())
    has_unknown = "target" in columns and bool(columns["target"].null_count)
    metadata = _metadata(predictions.classes, predictions.meta, has_unknown)
    table = pa.table(columns).replace_schema_metadata(metadata)
    sink = io.BytesIO()
    pq.write_table(table, sink, **PARQUET)
    storage.write_bytes(path, sink.getvalue(), durable=durable)


def _metadata(
    classes: Sequence[str], meta: Mapping[str, str], has_unknown: bool
) -> dict[bytes, bytes]:
    """The metadata of a file.

    Args:
        classes: names of the K classes.
        meta: where the predictions come from.
        has_unknown: whether it has a target that is unknown.
    """
    version = SCHEMA_VERSION
    if has_unknown or meta.get("task", registry.DEFAULT) != registry.DEFAULT:
        version = EXTENDED_VERSION
    known = {"schema_version": version, "classes": classes, "meta": meta}
    # Masked: the paths in meta may be URIs with keys. Sorted, so that equal metadata is equal text.
    return {KEY: masked(json.dumps(known, sort_keys=True)).encode()}


class Writer:
    """Writes predictions piece by piece, each as a row group; see `writing`."""

    def __init__(self, path: str, sink: pq.ParquetWriter, has_target: bool) -> None:
        self.path = path
        self.sink = sink
        self.has_target = has_target
        # Predictions so far, and those whose labels are known.
        self.tiles = 0
        self.known = 0

    def add(self, names: Sequence[str], logits: Array, target: Array, known: Array) -> None:
        """Adds predictions.

        Args:
            names: of N tiles.
            logits: float32 (N, K).
            target: uint8 (N, K); it does not count in a file without targets.
            known: bool (N,), whether the labels of each tile are known.

        Raises:
            StorageError: the file cannot be written.
        """
        columns = {
            "image_name": pa.array(names, pa.string()),
            "logits": list_column(logits, np.float32),
        }
        if self.has_target:
            columns["target"] = list_column(target, np.uint8, known)
        with storage.failures("write", self.path):
            self.sink.write_table(pa.table(columns).cast(self.sink.schema))
        self.tiles += len(names)
        self.known += int(known.sum())


@contextmanager
def writing(
    path: str, classes: Sequence[str], meta: Mapping[str, str], known: Array | None
) -> Iterator[Writer]:
    """Yields what writes a file piece by piece. It is there once the block ends without an error.

    Args:
        path: path or URI.
        classes: names of the K classes.
        meta: where the predictions come from.
        known: bool (N,), whether the labels of each tile are known; None if they have none.

    Raises:
        StorageError: the path cannot be written.
    """
    columns = [("image_name", pa.string()), ("logits", pa.list_(pa.float32()))]
    has_target = known is not None and bool(known.any())
    if has_target:
        columns.append(("target", pa.list_(pa.uint8())))
    has_unknown = has_target and known is not None and not known.all()
    schema = pa.schema(columns).with_metadata(_metadata(classes, meta, has_unknown))
    # Around each step alone: errors of the block have nothing to do with this file.
    with storage.new_file(path) as file:
        with storage.failures("write", path):
            sink = pq.ParquetWriter(file, schema, **PARQUET)
        try:
            yield Writer(path, sink, has_target)
        finally:
            with storage.failures("write", path):
                sink.close()


def read(path: str) -> Predictions:
    """Reads predictions and checks that they can be used.

    Args:
        path: path or URI.

    Raises:
        DataError: the file is missing, no Parquet file, damaged, or not written by raytrain; or
            its logits and targets are not K finite numbers in each row.
        StorageError: the file system cannot be reached.
    """
    table = _table(path)
    known = _known(path, table.schema.metadata or {})
    classes = known["classes"]
    if table.column("image_name").null_count:
        raise _unusable(path, "a row has no image_name")
    logits = _matrix(path, table, "logits", classes)
    _check_finite(path, table, logits)
    target = None
    mask = None
    if "target" in table.column_names:
        # Version 1 has no nulls: there they are a damage.
        if known["schema_version"] == EXTENDED_VERSION and table.column("target").null_count:
            mask = table.column("target").is_valid().to_numpy()
        target = _matrix(path, table, "target", classes, mask)
        _check_binary(path, target)
    fold = None
    if "fold" in table.column_names:
        if table.column("fold").null_count:
            raise _unusable(path, "a row has no fold")
        fold = table.column("fold").to_numpy()
    names = table.column("image_name").to_pylist()
    registry.check(known["meta"].get("task", registry.DEFAULT))
    return Predictions(
        names=tuple(names),
        logits=logits,
        target=target,
        classes=tuple(classes),
        meta=known["meta"],
        known=mask,
        fold=fold,
    )


def _check_finite(path: str, table: pa.Table, logits: Array) -> None:
    is_finite = np.isfinite(logits).all(axis=1)  # bool (N,)
    if is_finite.all():
        return
    row = int(np.argmin(is_finite))  # the first that is not
    name = table.column("image_name")[row].as_py()
    raise _unusable(
        path,
        f"the logits of {name} are not finite",
        "the output of a network that diverged means nothing",
    )


def _check_binary(path: str, target: Array) -> None:
    # `initial`: a file without rows has no maximum.
    largest = target.max(initial=0)
    if largest > 1:
        raise _unusable(
            path,
            f"a target is {largest}, not 0 or 1",
            "a label that counts twice would make every score wrong",
        )


def _table(path: str) -> pa.Table:
    """The columns that raytrain writes, with their types checked.

    Other columns are not read: a foreign one with an extension type must never be converted.
    """
    try:
        content = storage.read_bytes(path)
    except FileNotFoundError:
        raise DataError(f"there is no predictions file {path}", "", AGAIN) from None
    try:
        with pq.ParquetFile(io.BytesIO(content), page_checksum_verification=True) as file:
            columns = _checked_columns(path, file.schema_arrow)
            return file.read(columns=columns)
    except (pa.ArrowException, OSError, KeyError) as error:
        detail = str(error).splitlines()[0]
        raise _unusable(path, f"it is no Parquet file, or damaged ({detail})") from None


def _checked_columns(path: str, schema: pa.Schema) -> list[str]:
    """The columns to read; raises DataError where one is missing or of another type."""
    columns = []
    for name, type_ in TYPES.items():
        is_there = schema.get_field_index(name) >= 0
        if name in OPTIONAL and not is_there:
            continue
        if name not in schema.names or schema.field(name).type != type_:
            raise _unusable(path, f"it has no column {name} of type {type_}")
        columns.append(name)
    return columns


def _known(path: str, metadata: dict[bytes, bytes]) -> dict[str, Any]:
    """The object under the key `raytrain`: classes (list of str) and meta (str to str)."""
    try:
        known = json.loads(metadata[KEY])
        versions = (SCHEMA_VERSION, EXTENDED_VERSION)
        is_right = known["schema_version"] in versions and len(known["classes"]) > 0
        words = [*known["classes"], *known["meta"].values()]
    except (KeyError, ValueError, TypeError, AttributeError):
        is_right = False
        words = []
    if not is_right or not all(isinstance(word, str) for word in words):
        raise _unusable(
            path,
            "its metadata is not that of raytrain's schema version "
            f"{SCHEMA_VERSION} or {EXTENDED_VERSION}",
            "classes are unknown",
        )
    return dict(known)


def _matrix(
    path: str, table: pa.Table, name: str, classes: list[str], known: Array | None = None
) -> Array:
    """The values of a list column as (N, K).

    The length of every list is checked, so neither a slice nor a null can shift a row.

    Args:
        path: of the file, for messages.
        table: its columns.
        name: of the list column.
        classes: names of the K classes.
        known: bool (N,), False for rows that may be null, whose values are zeros. By default no
            row may be.
    """
    column = table.column(name).combine_chunks()
    if known is None:
        known = np.ones(len(column), np.bool_)
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
    flat = column.flatten()
    wrong = np.flatnonzero((lengths != len(classes)) & known)  # a null list has length NaN
    why = "they would be read as other labels"
    if len(wrong):
        row = table.column("image_name")[int(wrong[0])].as_py()
        raise _unusable(path, f"the {name} of {row} are not {len(classes)} numbers", why)
    if flat.null_count:
        raise _unusable(path, f"{name} has empty values", why)
    numbers: Array = flat.to_numpy(zero_copy_only=False).reshape(-1, len(classes))
    if known.all():
        return numbers
    values = np.zeros((len(known), len(classes)), numbers.dtype)
    values[known] = numbers
    return values


def _unusable(
    path: str, what: str, why: str = "scores and submissions would be wrong"
) -> DataError:
    return DataError(f"{path} cannot be used as predictions: {what}", why, AGAIN)
