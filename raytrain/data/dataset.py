"""The dataset on disk: its schema, its manifest, its splits, and checks of its content.

    DATASET/shards/part-00000.parquet ...   image_name, image (encoded bytes), width, height,
                                            crc32, target (null where it is unknown)
    DATASET/labels.parquet                  names and targets of all rows, see `row_labels.py`
    DATASET/splits/<name>.parquet           image_name, part (train, valid or test), fold
    DATASET/dataset.json                    the manifest, written last; without it there is no
                                            dataset
    DATASET/quarantine.jsonl                files that were left out, with kind and reason

Row numbers count over all shards in the order of the manifest. Imports neither torch nor ray.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raytrain import registry, storage
from raytrain.data import images, pixels, row_labels
from raytrain.data.row_labels import RowLabels
from raytrain.data.tile_format import TileFormat
from raytrain.errors import DataError, did_you_mean

Array = np.ndarray[Any, Any]

# Several labels per tile on 8-bit RGB pixels, and a known target for every tile.
SCHEMA_VERSION = 1
# Whatever else there is. Programs of before refuse it, as they would misread it.
EXTENDED_VERSION = 2
# What dataset.json says only of tiles that are not 8-bit RGB: number of channels, type of their
# values, and which bands of the files they are.
TILE_KEYS = ("channels", "dtype", "bands")
SHARD_SCHEMA = pa.schema(
    [
        ("image_name", pa.string()),
        ("image", pa.binary()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("crc32", pa.int64()),
        ("target", pa.list_(pa.uint8())),
    ]
)
SPLIT_SCHEMA = pa.schema(
    [
        ("image_name", pa.string()),
        ("part", pa.string()),
        ("fold", pa.int32()),
    ]
)
PARTS = ("train", "valid", "test")
# Starting a pool of processes takes a second or two. In that time one process decodes about this
# many tiles.
POOL_FROM_TILES = 3000
PROGRESS_EVERY_S = 10.0
MANIFEST_KEYS = {"schema_version", "classes", "tile_size", "shards", "splits"}
ROW_GROUP = 256  # rows in each row group of a shard
# Drawn in place of labels where the target is unknown.
UNLABELLED = "unlabelled"


@dataclass(frozen=True)
class MappedRows:
    """What processes of one machine share of a dataset's rows, see `tiles/rows.py`.

    Attributes:
        targets: uint8 (rows, K), as `Dataset.targets`.
        known: bool (rows,), as `Dataset.known`.
        split: name of the split that `parts` belongs to.
        parts: uint8 (rows,): 1 + the position in `PARTS`; 0 in no part.
    """

    targets: Array
    known: Array
    split: str
    parts: Array


@dataclass(frozen=True)
class Dataset:
    """An opened dataset directory.

    Attributes:
        path: of the directory, or its URI.
        manifest: content of dataset.json.
        mapped: targets and parts that processes of this machine share; None to read them.
    """

    path: str
    manifest: dict[str, Any]
    mapped: MappedRows | None = field(default=None, repr=False, compare=False)

    @property
    def task(self) -> str:
        """Name of the task, see `raytrain.registry`."""
        return str(self.manifest.get("task", registry.DEFAULT))

    @property
    def classes(self) -> list[str]:
        """The K label names in the order of the target columns."""
        return list(self.manifest["classes"])

    @property
    def tile_size(self) -> int:
        """Side of the stored tiles in pixels: the most frequent one."""
        return int(self.manifest["tile_size"])

    @property
    def tile_format(self) -> TileFormat:
        """Channels of the tiles, type of their values, and the bands that they come from."""
        return TileFormat.from_manifest(self.manifest)

    @property
    def shards(self) -> list[str]:
        """Paths of the shards, in the order that numbers the rows."""
        files = [shard["file"] for shard in self.manifest["shards"]]
        return [storage.join(self.path, "shards", file) for file in files]

    @cached_property
    def shard_starts(self) -> Array:
        """int64 (shards + 1,): the first row of each shard, and last the number of all rows.

        Shard `i` holds the rows from `shard_starts[i]` up to, not including, `shard_starts[i + 1]`.
        """
        rows = [int(shard["rows"]) for shard in self.manifest["shards"]]
        return np.cumsum([0, *rows], dtype=np.int64)

    @property
    def rows(self) -> int:
        """Number of tiles in the dataset."""
        return int(self.shard_starts[-1])

    @cached_property
    def hash(self) -> str:
        """SHA-256 of shards and classes, and of what else decides how they are read.

        Datasets with equal hashes have equal pictures and labels in equal order.
        """
        return dataset_hash(self.manifest)

    @cached_property
    def row_labels(self) -> RowLabels:
        """Names and targets of all rows.

        They are read from `labels.parquet`. An older dataset has no such file, and its shards are
        read in its place.

        Raises:
            DataError: a shard is missing or has another size, or labels are not those that were
                written.
        """
        sha256 = self.manifest.get(row_labels.HASH_KEY)
        if sha256 is None:
            return _labels_of_shards(self)
        content = _verified(self, row_labels.FILE, sha256)
        found = row_labels.parse(content, len(self.classes))
        if len(found.labels.names) != self.rows or len(found.shard_bytes) != len(self.shards):
            reason = f"{row_labels.FILE} has another number of rows or shards"
            raise _damaged_manifest(self.path, reason)
        _check_sizes(self, found.shard_bytes)
        return found.labels

    @cached_property
    def targets(self) -> Array:
        """uint8 (rows, K): 1 if the tile has the label. Of use only together with `known`."""
        if self.mapped is not None:
            return self.mapped.targets
        return self.row_labels.targets

    @cached_property
    def known(self) -> Array:
        """bool (rows,): whether the target of the tile is known."""
        if self.mapped is not None:
            return self.mapped.known
        return self.row_labels.known

    def split(self, name: str) -> pd.DataFrame:
        """Reads a named split.

        Returns:
            The columns image_name, part and fold.

        Raises:
            DataError: there is no such split, or its file is not the one in the manifest.
        """
        entries = self.splits
        if name not in entries:
            fix = f"raytrain data split {self.path} --name {name}"
            if entries:
                fix = f"--data.split {next(iter(entries))}"
            known = ", ".join(entries) or "none"
            raise DataError(
                f'{self.path} has no split "{name}" (it has: {known}).'
                f"{did_you_mean(name, entries)}",
                "training and validation rows would be undefined",
                fix,
            )
        content = _verified(self, f"splits/{name}.parquet", entries[name]["sha256"])
        return pq.read_table(io.BytesIO(content)).to_pandas()

    def part_rows(self, split: str, part: str) -> Array:
        """Returns the row numbers of one part of a split, int64, ascending.

        Args:
            split: name of the split.
            part: `train`, `valid` or `test`.

        Raises:
            DataError: training or validation has tiles without a target; see also `split`
                and `row_labels`.
        """
        if self.mapped is not None and self.mapped.split == split:
            return np.flatnonzero(self.mapped.parts == 1 + PARTS.index(part)).astype(np.int64)
        table = self.split(split)
        _check_stays(self, split, table, part)
        in_part = table["part"] == part
        members = pa.array(table.loc[in_part, "image_name"], pa.string())
        is_member = pc.is_in(self.row_labels.names, members)
        return np.flatnonzero(is_member.to_numpy(zero_copy_only=False)).astype(np.int64)

    def split_hash(self, split: str) -> str:
        """Returns the SHA-256 of a split's file."""
        return str(self.splits[split]["sha256"])

    @property
    def splits(self) -> dict[str, dict[str, Any]]:
        """The entries of the splits in the manifest, by name; see `split_entry`."""
        return {entry["name"]: entry for entry in self.manifest["splits"]}


def open_dataset(path: str) -> Dataset:
    """Opens a dataset.

    Args:
        path: path or URI of its directory.

    Raises:
        DataError: dataset.json is missing, damaged, or of another schema version.
    """
    path = storage.absolute(path)
    try:
        manifest = storage.read_json(storage.join(path, "dataset.json"))
    except FileNotFoundError:
        raise DataError(
            f"{path} is not a dataset: it has no dataset.json",
            "the manifest is written last, so an ingest that was cut short leaves none",
            f"raytrain ingest --images DIR --labels CSV --out {path}",
        ) from None
    except ValueError as error:
        raise _damaged_manifest(path, str(error)) from None
    if not isinstance(manifest, dict):
        raise _damaged_manifest(path, "it is not a JSON object")
    # The version first: another one may have other keys.
    _check_version(path, manifest.get("schema_version"))
    missing = sorted(MANIFEST_KEYS - manifest.keys())
    if missing:
        raise _damaged_manifest(path, f"it has no {missing[0]}")
    dataset = Dataset(path, manifest)
    registry.check(dataset.task)
    try:
        _ = dataset.tile_format
    except ValueError as error:
        raise _damaged_manifest(path, str(error)) from None
    return dataset


def all_names(dataset: Dataset) -> list[str]:
    """Returns the names of all tiles, in the order of the rows. Raises as `Dataset.row_labels`."""
    found: list[str] = dataset.row_labels.names.to_pylist()
    return found


def names_of(dataset: Dataset, rows: Sequence[int] | Array) -> list[str]:
    """Returns the names of some rows, in their order. Raises as `Dataset.row_labels`."""
    found: list[str] = dataset.row_labels.names.take(pa.array(rows, pa.int64())).to_pylist()
    return found


def names_alone(dataset: Dataset, rows: Array) -> pa.StringArray:
    """Reads the names of some rows, and keeps nothing else of the labels in memory.

    Args:
        dataset: an opened dataset.
        rows: int64 (N,) row numbers, ascending.

    Raises:
        DataError: as `Dataset.row_labels`.
    """
    sha256 = dataset.manifest.get(row_labels.HASH_KEY)
    if sha256 is None:
        return _labels_of_shards(dataset).names.take(pa.array(rows, pa.int64()))
    return row_labels.parse_names(_verified(dataset, row_labels.FILE, sha256), rows)


def _labels_of_shards(dataset: Dataset) -> RowLabels:
    """Reads names and targets of all rows from the shards of an older dataset."""
    classes = len(dataset.classes)
    parts = []
    for path, entry in zip(dataset.shards, dataset.manifest["shards"], strict=True):
        shard = _read_labels(path, entry)
        targets = row_labels.one_chunk(shard.column("target"))
        parts.append(row_labels.from_columns(shard.column("image_name"), targets, classes))
    return row_labels.joined(parts, classes)


def _check_sizes(dataset: Dataset, expected: Sequence[int]) -> None:
    """Lists the shards once, and refuses a missing one and one of another size.

    Args:
        dataset: an opened dataset.
        expected: bytes of each shard's file.
    """
    there = {file.path: file.size for file in storage.files(storage.join(dataset.path, "shards"))}
    for entry, size in zip(dataset.manifest["shards"], expected, strict=True):
        found = there.get(entry["file"])
        if found == size:
            continue
        state = "is missing"
        if found is not None:
            state = f"has {found} bytes, not {size}"
        raise DataError(
            f"the shard {storage.join(dataset.path, 'shards', entry['file'])} {state}",
            "its tiles would be missing from training",
            f"raytrain data check {dataset.path}; then ingest again into a new directory",
        )


def _verified(dataset: Dataset, file: str, sha256: str) -> bytes:
    """Reads a file of the dataset and compares its hash with that of the manifest."""
    path = storage.join(dataset.path, file)
    state = "damaged"
    try:
        content = storage.read_bytes(path)
    except FileNotFoundError:
        content = b""
    if not content:
        # An empty file counts as missing, too.
        state = "missing"
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DataError(
            f"{path} is {state}: it is not the file that dataset.json names",
            "labels or pictures would be silently wrong",
            f"raytrain data check {dataset.path}",
        )
    return content


def _damaged_manifest(path: str, reason: str) -> DataError:
    return DataError(f"{path}/dataset.json is damaged: {reason}", "", f"ingest {path} again")


def schema_version(manifest: Mapping[str, Any]) -> int:
    """Returns the schema version that a manifest is written with.

    Args:
        manifest: content of dataset.json, whatever its own version says.
    """
    if extensions(manifest) or any("unknown" in shard for shard in manifest["shards"]):
        return EXTENDED_VERSION
    return SCHEMA_VERSION


def extensions(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what decides how shards are read, as far as it is not what version 1 means."""
    found = {key: manifest[key] for key in TILE_KEYS if key in manifest}
    task = manifest.get("task", registry.DEFAULT)
    if task != registry.DEFAULT:
        found["task"] = task
    return found


def _check_version(path: str, version: Any) -> None:
    """Refuses a dataset of a schema version that this program cannot read."""
    if version in (SCHEMA_VERSION, EXTENDED_VERSION):
        return
    fix = "raytrain ingest into a new directory"
    if isinstance(version, int) and version > EXTENDED_VERSION:
        fix = f"update raytrain to a release that reads schema version {version}, or {fix}"
    raise DataError(
        f"{path} has schema version {version}, "
        f"this version of raytrain reads schema versions {SCHEMA_VERSION} and {EXTENDED_VERSION}",
        "rows could be misread",
        fix,
    )


def add_splits(dataset: Dataset, tables: dict[str, pd.DataFrame]) -> list[str]:
    """Adds named splits to a dataset. No shard is touched.

    Args:
        dataset: the dataset on disk.
        tables: splits by name, with the columns image_name, part and fold.

    Returns:
        The names that were new. A split that the dataset already has with equal content stays.

    Raises:
        DataError: the dataset has another split of the same name, or a split has no training or no
            validation rows, or has tiles without a target among them.
    """
    with storage.locked(dataset.path, "is dividing"):
        # Opened again under the lock, because another process may just have added a split.
        return _add_splits(open_dataset(dataset.path), tables)


def _add_splits(dataset: Dataset, tables: dict[str, pd.DataFrame]) -> list[str]:
    present = dataset.splits
    contents = {}
    entries = {}
    # All splits are checked before the first one is written.
    for name, table in tables.items():
        contents[name] = split_bytes(table)
        entries[name] = split_entry(name, contents[name], table)
    for name, entry in entries.items():
        if name in present and present[name]["sha256"] != entry["sha256"]:
            raise DataError(
                f'{dataset.path} has another split "{name}"',
                "runs were judged on it; a split is never overwritten",
                "raytrain data split with another --name",
            )
        check_parts(name, entry["parts"])
        for part in ("train", "valid"):
            _check_stays(dataset, name, tables[name], part)
    new = [name for name in entries if name not in present]
    if not new:
        return []
    splits = list(dataset.manifest["splits"])
    for name in new:
        path = storage.join(dataset.path, "splits", f"{name}.parquet")
        storage.write_bytes(path, contents[name])
        splits.append(entries[name])
    # The manifest last, so that it never names a file that is not there.
    manifest = dataset.manifest | {"splits": splits}
    storage.write_json(storage.join(dataset.path, "dataset.json"), manifest)
    return new


def _check_stays(dataset: Dataset, split: str, table: pd.DataFrame, part: str) -> None:
    """Refuses a split that has tiles without a target in training or validation.

    Args:
        dataset: an opened dataset.
        split: name of the split.
        table: the split, with the columns image_name and part.
        part: train, valid or test. Tiles without a target may be in the last one.
    """
    # Without such tiles nothing needs to be read.
    if part == "test" or not unknown_tiles(dataset):
        return
    names = names_of(dataset, np.flatnonzero(~dataset.known))
    members = table.loc[table["part"] == part, "image_name"]
    moved = sorted(members[members.isin(names)])
    if moved:
        raise DataError(
            f'the split "{split}" has {len(moved)} tiles without a target in the part {part}, '
            f"such as {moved[0]}",
            "nothing can be learned from them or judged by them, so they stay in the part test",
            f"raytrain data split {dataset.path} --name NAME, which puts them there",
        )


def check_parts(name: str, parts: Mapping[str, int]) -> None:
    """Refuses a split without training or without validation tiles.

    Args:
        name: name of the split.
        parts: number of tiles of each part that has any.

    Raises:
        DataError: one of the two parts is missing.
    """
    if "train" in parts and "valid" in parts:
        return
    counts = [f"{count} {part}" for part, count in parts.items()]
    have = ", ".join(counts) or "no"
    raise DataError(
        f'the split "{name}" would have {have} tiles',
        "both parts need tiles, to learn from and to judge by",
        "divide the tiles in another way",
    )


def split_entry(name: str, content: bytes, table: pd.DataFrame) -> dict[str, Any]:
    """Returns the entry of a split in dataset.json.

    Args:
        name: name of the split.
        content: bytes of its file.
        table: the split, with the column part.

    Returns:
        name, sha256 of the file, and parts (the number of tiles of each part).
    """
    counts = table["part"].value_counts()
    parts = {}
    # By name: value_counts sorts by count, and the order in dataset.json would vary.
    for part, count in sorted(counts.items()):
        parts[str(part)] = int(count)
    sha256 = hashlib.sha256(content).hexdigest()
    return {"name": name, "sha256": sha256, "parts": parts}


def shard_entry(
    file: str, content: bytes | memoryview, names: Sequence[str], targets: Iterable[Any]
) -> dict[str, Any]:
    """Returns the entry of a shard in dataset.json.

    Args:
        file: name of the shard's file.
        content: bytes of the file.
        names: (rows,) names of its tiles.
        targets: (rows,), each uint8 (K,), or None where the target is unknown.

    Returns:
        file, rows, sha256 of the file, and labels (the hash of names and targets). If some targets
        are unknown, also unknown: their number.
    """
    column = row_labels.target_array(targets)
    entry: dict[str, Any] = {
        "file": file,
        "rows": len(names),
        "sha256": hashlib.sha256(content).hexdigest(),
        # Every start reads the labels. With a hash of their own, they can be checked without
        # reading the pictures too.
        "labels": _labels_hash(names, column),
    }
    if column.null_count:
        entry["unknown"] = column.null_count
    return entry


def _read_labels(path: str, entry: dict[str, Any]) -> pa.Table:
    """Reads names and targets of a shard and compares them with its entry in the manifest."""
    table = read_shard(path, ["image_name", "target"])
    names = table.column("image_name").to_pylist()
    targets = row_labels.one_chunk(table.column("target"))
    found = _labels_hash(names, targets)
    expected = entry.get("labels")
    if expected is None:
        # Older datasets have no hash of their labels, so there is nothing to compare.
        expected = found
    is_whole = table.num_rows == entry["rows"] and targets.null_count == entry.get("unknown", 0)
    if not is_whole or found != expected:
        raise DataError(
            f"the names or labels in shard {path} are not those that were written",
            "the network would learn other labels than the dataset's",
            "raytrain data check DATASET; then ingest again into a new directory",
        )
    return table


def _labels_hash(names: Sequence[str], targets: pa.ListArray) -> str:
    """Returns the SHA-256 of names and targets.

    It covers each name with a line feed, then all known targets, uint8. If some are unknown, the
    word `unknown` follows, and for each row a byte that is 1 where it is.
    """
    lines = "".join(f"{name}\n" for name in names)
    content = lines.encode() + row_labels.flat_targets(targets).tobytes()
    if targets.null_count:
        is_unknown = targets.is_null().to_numpy(zero_copy_only=False)
        content += b"unknown" + is_unknown.astype(np.uint8).tobytes()
    return hashlib.sha256(content).hexdigest()


def dataset_hash(manifest: Mapping[str, Any]) -> str:
    """Returns the hash of a dataset.

    Args:
        manifest: content of dataset.json. Shards, classes, and what else decides how shards are
            read count; splits and source do not.
    """
    content: list[Any] = []
    for shard in manifest["shards"]:
        content.append([shard["file"], shard["rows"], shard["sha256"]])
    content.append(list(manifest["classes"]))
    found = extensions(manifest)
    # Left out for datasets of version 1, whose hashes stand in checkpoints.
    if found:
        content.append(found)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_shard(path: str, columns: list[str], sha256: str | None = None) -> pa.Table:
    """Reads columns of a shard and verifies the checksums of their pages.

    Args:
        path: path or URI of the shard.
        columns: names of columns of `SHARD_SCHEMA`.
        sha256: expected hash of the whole file, or None. It is worth its time for those who read
            nearly all of the file anyway. The checksums of pages do not cover the footer.

    Raises:
        DataError: the shard is missing, damaged or has another schema.
    """
    try:
        return _read_columns(path, columns, sha256)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DataError(
            f"shard {path} cannot be read: {str(error).splitlines()[0]}",
            "its tiles would be missing from training",
            "raytrain data check DATASET names every damaged file; ingest again to replace them",
        ) from None


def _read_columns(path: str, columns: list[str], sha256: str | None) -> pa.Table:
    filesystem: Any
    source: Any
    if sha256 is None:
        filesystem, source = storage.filesystem(path)
    else:
        content = storage.read_bytes(path)
        if hashlib.sha256(content).hexdigest() != sha256:
            raise OSError("it is not the file that dataset.json names")
        filesystem = None
        source = pa.BufferReader(content)
    with pq.ParquetFile(source, filesystem=filesystem, page_checksum_verification=True) as file:
        _check_types(file.schema_arrow, columns, path)
        # Only the named columns: a foreign column with a pickled extension type must never be
        # converted.
        return file.read(columns=columns)


def _check_types(schema: pa.Schema, columns: list[str], path: str) -> None:
    for column in columns:
        if schema.field(column).type != SHARD_SCHEMA.field(column).type:
            raise DataError(
                f"the column {column} of shard {path} has another type than raytrain writes",
                "columns of foreign types may hold code and are never read",
                "ingest again into a new directory",
            )


def read_images(dataset: Dataset, rows: Sequence[int]) -> Iterator[bytes]:
    """Yields the encoded pictures of single rows, for reports and contact sheets.

    Args:
        dataset: an opened dataset.
        rows: row numbers in any order. The pictures come in the same order.

    Raises:
        DataError: a shard cannot be read, or is not the one that was written.
    """
    wanted = np.asarray(rows)
    starts = dataset.shard_starts
    shard_of = np.searchsorted(starts, wanted, side="right") - 1
    found: dict[int, bytes] = {}
    # Shard by shard: each is read once, and only one is in memory at a time.
    for shard in np.unique(shard_of):
        sha256 = dataset.manifest["shards"][shard]["sha256"]
        column = read_shard(dataset.shards[shard], ["image"], sha256).column("image")
        first = int(starts[shard])
        in_shard = wanted[shard_of == shard]
        for row in in_shard.tolist():
            found[row] = column[row - first].as_py()
    for row in rows:
        yield found[row]


def decoded_images(dataset: Dataset, rows: Sequence[int], size: int) -> Iterator[Array]:
    """Yields the tiles of single rows, (size, size, C) of the type of the dataset's tiles.

    Args:
        dataset: an opened dataset.
        rows: row numbers in any order. The tiles come in the same order.
        size: side of the tiles in pixels.

    Raises:
        DataError: a shard cannot be read, or a picture fails the checks of today. An older version
            may have let it in.
    """
    for row, content in zip(rows, read_images(dataset, rows), strict=True):
        try:
            yield pixels.decode(content, dataset.tile_format, size)
        except images.BadImage as error:
            [name] = names_of(dataset, [row])
            raise DataError(
                f"the picture {name} in {dataset.path} cannot be used "
                f"({error.kind}: {error.detail})",
                "the network would learn from wrong pixels",
                "ingest again into a new directory",
            ) from None


def sides(dataset: Dataset) -> Array:
    """Returns width and height of every stored tile in pixels, int32 (rows, 2)."""
    found = []
    for path in dataset.shards:
        table = read_shard(path, ["width", "height"])
        width = table.column("width").to_numpy()
        height = table.column("height").to_numpy()
        found.append(np.stack([width, height], axis=1))
    return np.concatenate(found)


def unknown_tiles(dataset: Dataset) -> int:
    """Returns how many tiles have an unknown target: those of test folders. Reads no file."""
    return sum(int(shard.get("unknown", 0)) for shard in dataset.manifest["shards"])


def known_targets(dataset: Dataset) -> Array:
    """Returns the targets that are known, uint8 (n, K), in the order of the rows."""
    return np.asarray(dataset.targets[dataset.known])


def labels_of(dataset: Dataset, row: int) -> tuple[str, ...]:
    """Returns the names of the labels of a row; none where the target is unknown."""
    classes = dataset.classes
    columns = np.flatnonzero(dataset.targets[row])
    return tuple(classes[k] for k in columns)


def shown_labels(dataset: Dataset, row: int) -> tuple[str, ...]:
    """Returns the labels of a row as they are drawn: a word where the target is unknown."""
    if not dataset.known[row]:
        return (UNLABELLED,)
    return labels_of(dataset, row)


def shard_bytes(
    rows: Sequence[tuple[str, bytes, int, int, int, Array | None]],
) -> memoryview:
    """Makes the Parquet file of a shard, with page checksums and without clock times.

    Equal rows give equal bytes.

    Args:
        rows: values of the columns of `SHARD_SCHEMA`; as target None where it is unknown.
    """
    arrays = []
    for number, column in enumerate(SHARD_SCHEMA):
        values: list[Any] = [row[number] for row in rows]
        if column.name == "target":
            arrays.append(row_labels.target_array(values))
        else:
            arrays.append(pa.array(values, column.type))
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.Table.from_arrays(arrays, schema=SHARD_SCHEMA),
        sink,
        row_group_size=ROW_GROUP,
        compression="none",  # encoded pictures do not shrink
        write_page_checksum=True,
        use_dictionary=False,
        write_statistics=False,  # they would contain the smallest picture of each row group
    )
    return memoryview(sink.getvalue())


def split_bytes(split: pd.DataFrame) -> bytes:
    """Makes the Parquet file of a split; equal splits give equal bytes.

    Args:
        split: the columns image_name, part and fold.
    """
    # Sorted by name, so that the order in which tiles were found does not matter.
    ordered = split.sort_values("image_name")
    table = pa.Table.from_pandas(ordered, schema=SPLIT_SCHEMA, preserve_index=False)
    # The metadata holds the version of pandas.
    table = table.replace_schema_metadata(None)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def damages(dataset: Dataset) -> list[str]:
    """Checks all files of a dataset: hashes of shards and splits, row counts, crc32 of pictures.

    Returns:
        One sentence for each damage.
    """
    found = []
    for entry in dataset.manifest["shards"]:
        found += _shard_damages(dataset, entry)
    for entry in dataset.manifest["splits"]:
        try:
            _verified(dataset, f"splits/{entry['name']}.parquet", entry["sha256"])
        except DataError as error:
            found.append(error.what)
    if not found:
        found += _label_damages(dataset)
    return found


def _label_damages(dataset: Dataset) -> list[str]:
    """Compares the labels of each shard with its entry in the manifest and with `labels.parquet`.

    Args:
        dataset: whose files are those that the manifest names.
    """
    found = []
    try:
        labels = dataset.row_labels
    except DataError as error:
        return [error.what]
    starts = dataset.shard_starts
    column = row_labels.target_rows(labels.targets, labels.known)
    for number, entry in enumerate(dataset.manifest["shards"]):
        start, rows = starts[number], entry["rows"]
        names = labels.names.slice(start, rows).to_pylist()
        try:
            shard = _read_labels(dataset.shards[number], entry)
        except DataError as error:
            found.append(error.what)
            continue
        own = _labels_hash(
            shard.column("image_name").to_pylist(), row_labels.one_chunk(shard.column("target"))
        )
        if _labels_hash(names, column.slice(start, rows)) != own:
            found.append(f"{entry['file']}: its labels are not those in {row_labels.FILE}")
    return found


def _shard_damages(dataset: Dataset, entry: dict[str, Any]) -> list[str]:
    file = entry["file"]
    try:
        content = _verified(dataset, f"shards/{file}", entry["sha256"])
    except DataError as error:
        return [error.what]
    found = []
    table = pq.read_table(io.BytesIO(content), columns=["image_name", "image", "crc32"])
    for row in table.to_pylist():
        # The hash of the file is right, so it was written with a wrong picture or a wrong crc32.
        if crc32(row["image"]) != row["crc32"]:
            found.append(f"{file}: the picture of {row['image_name']} does not match its crc32")
    expected = entry["rows"]
    if table.num_rows != expected:
        found.append(f"{file}: {table.num_rows} rows, not {expected}")
    return found


def examples(dataset: Dataset) -> list[str]:
    """Returns a sentence about the first quarantined file of each kind, sorted by kind.

    The list is empty if no file was left out.
    """
    try:
        content = storage.read_bytes(storage.join(dataset.path, "quarantine.jsonl"))
    except FileNotFoundError:
        return []
    found: dict[str, str] = {}
    for line in content.decode().splitlines():
        record = json.loads(line)
        name = record["image_name"] or record["path"]
        sentence = f"{record['kind']}, such as {name}: {record['detail']}"
        found.setdefault(record["kind"], sentence)
    return [found[kind] for kind in sorted(found)]
