"""The dataset on disk: its schema, manifest, splits and verification.

    DATASET/shards/part-00000.parquet ...   image_name, image (encoded bytes), width, height, crc32, target
    DATASET/splits/<name>.parquet           image_name, part (train / valid / test), fold
    DATASET/dataset.json                    written last; without it there is no dataset
    DATASET/quarantine.jsonl                files that were left out, with kind and reason

Row numbers count over the shards in the order of the manifest. No torch, no ray.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from raytrain import storage
from raytrain.data import images
from raytrain.errors import DataError, did_you_mean

SCHEMA_VERSION = 1
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
SPLIT_SCHEMA = pa.schema([("image_name", pa.string()), ("part", pa.string()), ("fold", pa.int32())])
PARTS = ("train", "valid", "test")
# Starting a pool costs a second or two, about what one process needs to decode this many tiles.
POOL_FROM_TILES = 3000
PROGRESS_EVERY_S = 10.0
MANIFEST_KEYS = {"schema_version", "classes", "tile_size", "shards", "splits"}


@dataclass(frozen=True)
class Dataset:
    """A dataset directory that was opened; `manifest` is the content of its dataset.json."""

    path: str
    manifest: dict[str, Any]

    @property
    def classes(self) -> list[str]:
        """Label names in the order of the target columns."""
        return list(self.manifest["classes"])

    @property
    def tile_size(self) -> int:
        """Side of the tiles as stored, pixels: the most frequent one."""
        return int(self.manifest["tile_size"])

    @property
    def shards(self) -> list[str]:
        """Places of the shards, in the order that numbers the rows."""
        return [
            storage.join(self.path, "shards", shard["file"]) for shard in self.manifest["shards"]
        ]

    @property
    def shard_rows(self) -> list[int]:
        """Rows of every shard."""
        return [int(shard["rows"]) for shard in self.manifest["shards"]]

    @property
    def rows(self) -> int:
        """Tiles in the dataset."""
        return sum(self.shard_rows)

    @cached_property
    def hash(self) -> str:
        """SHA-256 over shards and classes; equal hashes mean equal pictures and labels in equal order."""
        return dataset_hash(self.manifest["shards"], self.classes)

    @cached_property
    def table(self) -> pd.DataFrame:
        """image_name and target (uint8 array of K) of every row, without the pictures.

        Raises:
            DataError: a shard is missing or damaged, or its labels are not those that were written.
        """
        tables = [
            _labels(path, entry)
            for path, entry in zip(self.shards, self.manifest["shards"], strict=True)
        ]
        names = [name for t in tables for name in t.column("image_name").to_pylist()]
        return pd.DataFrame(
            {"image_name": names, "target": list(_targets(tables, len(self.classes)))}
        )

    @cached_property
    def targets(self) -> np.ndarray[Any, Any]:
        """uint8 (rows, K): 1 where the tile has the label."""
        return (
            np.stack(list(self.table["target"]))
            if self.rows
            else np.zeros((0, len(self.classes)), np.uint8)
        )

    def split(self, name: str) -> pd.DataFrame:
        """The rows of a named split: image_name, part, fold.

        Raises:
            DataError: no such split, or its file is not the one in the manifest.
        """
        known = [split["name"] for split in self.manifest["splits"]]
        if name not in known:
            raise DataError(
                f'{self.path} has no split "{name}" (it has: {", ".join(known) or "none"}).{did_you_mean(name, known)}',
                "training and validation rows would be undefined",
                f"--data.split {known[0]}"
                if known
                else f"raytrain data split {self.path} --name {name}",
            )
        content = self._verified(
            "splits", f"{name}.parquet", self.manifest["splits"][known.index(name)]["sha256"]
        )
        return pq.read_table(io.BytesIO(content)).to_pandas()

    def part_rows(self, split: str, part: str) -> np.ndarray[Any, Any]:
        """int64 row numbers of one part (`train`, `valid`, `test`) of a split, ascending."""
        table = self.split(split)
        members = set(table.loc[table["part"] == part, "image_name"])
        return np.flatnonzero(self.table["image_name"].isin(members).to_numpy()).astype(np.int64)

    def split_hash(self, split: str) -> str:
        """SHA-256 of the split's file."""
        return next(str(s["sha256"]) for s in self.manifest["splits"] if s["name"] == split)

    def _verified(self, folder: str, file: str, sha256: str) -> bytes:
        path = storage.join(self.path, folder, file)
        try:
            content = storage.read_bytes(path)
        except FileNotFoundError:
            content = b""
        if hashlib.sha256(content).hexdigest() != sha256:
            raise DataError(
                f"{path} is {'damaged' if content else 'missing'}: it is not the file that dataset.json names",
                "labels or pictures would be silently wrong",
                f"raytrain data check {self.path}",
            )
        return content


def add_splits(dataset: Dataset, tables: dict[str, pd.DataFrame]) -> list[str]:
    """Adds named splits (image_name, part, fold) to a dataset; no shard is touched, dataset.json is replaced at the end.

    Returns:
        The names that were new; a split that is there with equal content stays as it is.

    Raises:
        DataError: a name is taken by another split, or a part is empty of validation or training rows.
    """
    with storage.locked(dataset.path, "is dividing"):
        return _add_splits(open_dataset(dataset.path), tables)


def _add_splits(dataset: Dataset, tables: dict[str, pd.DataFrame]) -> list[str]:
    there = {split["name"]: split["sha256"] for split in dataset.manifest["splits"]}
    contents = {name: split_bytes(table) for name, table in tables.items()}
    entries = {name: split_entry(name, contents[name], table) for name, table in tables.items()}
    for name, entry in entries.items():
        if there.get(name, entry["sha256"]) != entry["sha256"]:
            raise DataError(
                f'{dataset.path} has another split "{name}"',
                "runs were judged on it; a split is never overwritten",
                "raytrain data split with another --name",
            )
        check_parts(name, entry["parts"])
    new = [name for name in entries if name not in there]
    for name in new:
        storage.write_bytes(storage.join(dataset.path, "splits", f"{name}.parquet"), contents[name])
    if new:
        manifest = dataset.manifest | {
            "splits": dataset.manifest["splits"] + [entries[name] for name in new]
        }
        storage.write_json(storage.join(dataset.path, "dataset.json"), manifest)
    return new


def check_parts(name: str, parts: Mapping[str, int]) -> None:
    """Refuses a split without training or without validation tiles.

    Args:
        name: of the split.
        parts: tiles by part.

    Raises:
        DataError: one of them is missing.
    """
    if not {"train", "valid"} <= parts.keys():
        counts = ", ".join(f"{count} {part}" for part, count in parts.items())
        raise DataError(
            f'the split "{name}" would have {counts or "no"} tiles',
            "both parts need tiles, to learn from and to judge by",
            "divide the tiles in another way",
        )


def split_entry(name: str, content: bytes, table: pd.DataFrame) -> dict[str, Any]:
    """What dataset.json says of a split: name, sha256 of its file, tiles by part."""
    parts = {str(part): int(count) for part, count in sorted(table["part"].value_counts().items())}
    return {"name": name, "sha256": hashlib.sha256(content).hexdigest(), "parts": parts}


def shard_entry(
    file: str, content: bytes | memoryview, names: Sequence[str], targets: Any
) -> dict[str, Any]:
    """What dataset.json says of a shard: file, rows, sha256 of the file, and `labels`, the hash of names and targets.

    Labels are read at every start, the pictures once: so that the file need not be read whole for them.

    Args:
        file: name of the shard.
        content: of it.
        names: of its rows.
        targets: uint8 (K,) of each row.
    """
    return {
        "file": file,
        "rows": len(names),
        "sha256": hashlib.sha256(content).hexdigest(),
        "labels": _labels_hash(names, np.asarray(targets, np.uint8)),
    }


def _labels(path: str, entry: dict[str, Any]) -> pa.Table:
    table = read_shard(path, ["image_name", "target"])
    flat = table.column("target").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    # Older datasets have no hash of their labels.
    known = entry.get("labels")
    if table.num_rows != entry["rows"] or known not in (
        None,
        _labels_hash(table.column(0).to_pylist(), flat),
    ):
        raise DataError(
            f"the names or labels in shard {path} are not those that were written",
            "the network would learn other labels than the dataset's",
            "raytrain data check DATASET; then ingest again into a new directory",
        )
    return table


def _labels_hash(names: Sequence[str], targets: np.ndarray[Any, Any]) -> str:
    return hashlib.sha256("\n".join([*names, ""]).encode() + targets.tobytes()).hexdigest()


def dataset_hash(shards: Sequence[dict[str, Any]], classes: Sequence[str]) -> str:
    """The hash of a dataset from its manifest's shard entries and classes."""
    content = json.dumps([[s["file"], s["rows"], s["sha256"]] for s in shards] + [list(classes)])
    return hashlib.sha256(content.encode()).hexdigest()


def open_dataset(path: str) -> Dataset:
    """Opens a dataset directory or URI.

    Raises:
        DataError: no dataset.json, or one of another schema version.
    """
    path = storage.absolute(path)
    try:
        manifest = storage.read_json(storage.join(path, "dataset.json"))
        if not isinstance(manifest, dict):
            raise ValueError("it is no JSON object")
        if manifest.get("schema_version") == SCHEMA_VERSION and (
            lacking := MANIFEST_KEYS - manifest.keys()
        ):
            raise ValueError(f"it has no {min(lacking)}")
    except FileNotFoundError:
        raise DataError(
            f"{path} is not a dataset: it has no dataset.json",
            "the manifest is written last, so an ingest that was cut short leaves none",
            f"raytrain ingest --images DIR --labels CSV --out {path}",
        ) from None
    except ValueError as error:
        raise DataError(
            f"{path}/dataset.json is damaged: {error}", "", f"ingest {path} again"
        ) from None
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise DataError(
            f"{path} has schema version {manifest.get('schema_version')}, this program reads {SCHEMA_VERSION}",
            "rows could be misread",
            "ingest it again with this version of raytrain",
        )
    return Dataset(path, manifest)


def read_shard(path: str, columns: list[str], sha256: str | None = None) -> pa.Table:
    """Reads columns of a shard with page checksums verified.

    Only the named columns are touched: a foreign column with a pickled extension type must never be converted.

    Args:
        path: of the shard.
        columns: some of `SHARD_SCHEMA`.
        sha256: of the whole file, to be compared; for those who read nearly all of it anyway. Page checksums do not cover
            the footer.

    Raises:
        DataError: missing, damaged or of another schema.
    """
    try:
        if sha256 is not None:
            content = storage.read_bytes(path)
            if hashlib.sha256(content).hexdigest() != sha256:
                raise OSError("it is not the file that dataset.json names")
            fs, source = None, pa.BufferReader(content)
        else:
            fs, source = storage.filesystem(path)
        with pq.ParquetFile(source, filesystem=fs, page_checksum_verification=True) as file:
            unexpected = [
                c for c in columns if file.schema_arrow.field(c).type != SHARD_SCHEMA.field(c).type
            ]
            if unexpected:
                raise DataError(
                    f"the column {unexpected[0]} of shard {path} has another type than raytrain writes",
                    "columns of foreign types may hold code and are never read",
                    "ingest again into a new directory",
                )
            return file.read(columns=columns)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DataError(
            f"shard {path} cannot be read: {str(error).splitlines()[0]}",
            "its tiles would be missing from training",
            "raytrain data check DATASET names every damaged file; ingest again to replace them",
        ) from None


def read_images(dataset: Dataset, rows: Sequence[int]) -> Iterator[bytes]:
    """Encoded pictures of single rows (for reports and sheets), in the order asked for; one shard is in memory at a time."""
    starts = np.concatenate([[0], np.cumsum(dataset.shard_rows)])
    shard_of = np.searchsorted(starts, rows, side="right") - 1
    found: dict[int, bytes] = {}
    for shard in np.unique(shard_of):
        column = read_shard(dataset.shards[shard], ["image"]).column("image")
        found |= {
            row: column[int(row - starts[shard])].as_py()
            for row in np.asarray(rows)[shard_of == shard].tolist()
        }
    yield from (found[row] for row in rows)


def decoded_images(
    dataset: Dataset, rows: Sequence[int], size: int
) -> Iterator[np.ndarray[Any, Any]]:
    """Tiles of single rows as uint8 (size, size, 3), in the order asked for.

    Raises:
        DataError: a picture that the gate of today refuses; an older version may have let it in.
    """
    for row, content in zip(rows, read_images(dataset, rows), strict=True):
        try:
            yield images.decode(content, size)
        except images.BadImage as error:
            raise DataError(
                f"the picture {dataset.table['image_name'].iloc[row]} in {dataset.path} cannot be used "
                f"({error.kind}: {error.detail})",
                "the network would learn from wrong pixels",
                "ingest again into a new directory",
            ) from None


def sides(dataset: Dataset) -> np.ndarray[Any, Any]:
    """int32 (rows, 2): width and height of every tile as stored, pixels."""
    tables = [read_shard(path, ["width", "height"]) for path in dataset.shards]
    return np.concatenate(
        [np.stack([column.to_numpy() for column in table.columns], 1) for table in tables]
    )


def labels_of(dataset: Dataset, row: int) -> tuple[str, ...]:
    """Names of the labels of a row."""
    return tuple(dataset.classes[k] for k in np.flatnonzero(dataset.targets[row]))


def shard_bytes(
    rows: Sequence[tuple[str, bytes, int, int, int, np.ndarray[Any, Any]]],
) -> memoryview:
    """Rows (the columns of `SHARD_SCHEMA`) as Parquet bytes: page checksums, no clock times.

    Not compressed, since JPEG bytes do not shrink; without statistics, which would hold the smallest picture.
    """
    columns = list(zip(*rows, strict=True)) or [()] * len(SHARD_SCHEMA)
    arrays = [
        pa.array(column, field.type)
        for column, field in zip(columns[:-1], SHARD_SCHEMA, strict=False)
    ]
    lengths = np.cumsum([0, *map(len, columns[-1])], dtype=np.int32)
    flat = np.concatenate([np.zeros(0, np.uint8), *columns[-1]]).astype(np.uint8)
    arrays.append(pa.ListArray.from_arrays(lengths, flat))
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.Table.from_arrays(arrays, schema=SHARD_SCHEMA),
        sink,
        row_group_size=256,
        compression="none",
        write_page_checksum=True,
        use_dictionary=False,
        write_statistics=False,
    )
    return memoryview(sink.getvalue())


def split_bytes(split: pd.DataFrame) -> bytes:
    """A split (image_name, part, fold) as Parquet bytes, sorted by name so that equal splits are equal bytes."""
    table = pa.Table.from_pandas(
        split.sort_values("image_name"), schema=SPLIT_SCHEMA, preserve_index=False
    )
    sink = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata(None), sink, compression="zstd", write_page_checksum=True
    )
    return sink.getvalue()


def damages(dataset: Dataset) -> list[str]:
    """Every damage of a dataset, one sentence each: hashes of shards and splits, row counts, crc32 of each picture."""
    found = []
    for entry in dataset.manifest["shards"]:
        found += _damages_of(dataset, "shards", entry["file"], entry)
    for entry in dataset.manifest["splits"]:
        found += _damages_of(dataset, "splits", f"{entry['name']}.parquet", entry)
    return found


def examples(dataset: Dataset) -> list[str]:
    """The first quarantined file of each kind with the reason, a sentence each; none where nothing was left out."""
    try:
        lines = (
            storage.read_bytes(storage.join(dataset.path, "quarantine.jsonl")).decode().splitlines()
        )
    except FileNotFoundError:
        return []
    found: dict[str, str] = {}
    for record in map(json.loads, lines):
        name = record["image_name"] or record["path"]
        found.setdefault(record["kind"], f"{record['kind']}, such as {name}: {record['detail']}")
    return [found[kind] for kind in sorted(found)]


def _damages_of(dataset: Dataset, folder: str, file: str, entry: dict[str, Any]) -> list[str]:
    try:
        content = dataset._verified(folder, file, entry["sha256"])
    except DataError as error:
        return [error.what]
    if folder == "splits":
        return []
    table = pq.read_table(io.BytesIO(content), columns=["image_name", "image", "crc32"])
    wrong = [
        f"{file}: the picture of {name} does not match its crc32"
        for name, image, check in zip(
            *(table.column(c).to_pylist() for c in table.column_names), strict=True
        )
        if crc32(image) != check
    ]
    return wrong + (
        []
        if table.num_rows == entry["rows"]
        else [f"{file}: {table.num_rows} rows, not {entry['rows']}"]
    )


def _targets(tables: list[pa.Table], width: int) -> Iterator[np.ndarray[Any, Any]]:
    for table in tables:
        column = table.column("target").combine_chunks()
        flat = column.flatten().to_numpy(zero_copy_only=False)
        if len(flat) != len(column) * width:
            raise DataError(
                "a target has another length than the list of classes", "labels would be shifted"
            )
        yield from flat.reshape(-1, width)
