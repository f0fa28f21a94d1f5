"""The file with names and targets of all rows of a dataset, and what a start makes of the shards."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from raytrain import storage
from raytrain.data import dataset as ds
from raytrain.data import row_labels
from raytrain.errors import DataError


@pytest.fixture
def copy(dataset, tmp_path):
    """The dataset of the tests, which `ingest` has written, in a folder of its own."""
    return Path(shutil.copytree(dataset.path, tmp_path / "dataset"))


def without_file(copy):
    """The dataset as an earlier version wrote it."""
    manifest = json.loads((copy / "dataset.json").read_text())
    del manifest[row_labels.HASH_KEY]
    (copy / "dataset.json").write_text(json.dumps(manifest))
    (copy / row_labels.FILE).unlink()
    return ds.open_dataset(str(copy))


def test_the_file_holds_what_the_shards_hold(dataset, copy):
    older = without_file(copy)
    assert ds.all_names(dataset) == ds.all_names(older)
    np.testing.assert_array_equal(dataset.targets, older.targets)
    np.testing.assert_array_equal(dataset.known, older.known)
    assert dataset.hash == older.hash


def test_the_rows_of_a_part_are_those_of_the_shards(dataset, copy):
    older = without_file(copy)
    for part in ("train", "valid"):
        rows = dataset.part_rows("random", part)
        np.testing.assert_array_equal(rows, older.part_rows("random", part))
        assert rows.dtype == np.int64 and (np.diff(rows) > 0).all()


def test_a_start_reads_the_file_and_no_shard(dataset, monkeypatch):
    opened = ds.open_dataset(dataset.path)
    monkeypatch.setattr(ds, "read_shard", None)
    assert len(ds.all_names(opened)) == opened.rows == len(opened.targets)


def test_shards_and_rows_are_named(dataset):
    table = pyarrow.parquet.read_table(f"{dataset.path}/{row_labels.FILE}")
    assert table.schema.equals(row_labels.SCHEMA)
    starts = dataset.shard_starts
    numbers = table.column("shard").to_numpy()
    np.testing.assert_array_equal(starts[numbers] + table.column("row"), np.arange(dataset.rows))


def shard_of(copy):
    return sorted((copy / "shards").iterdir())[1]


def test_a_missing_shard_is_refused_by_name(copy):
    shard = shard_of(copy)
    shard.unlink()
    with pytest.raises(DataError, match=f"the shard .*/{shard.name} is missing"):
        _ = ds.open_dataset(str(copy)).targets


def test_a_shard_of_another_size_is_refused_by_name(copy):
    shard = shard_of(copy)
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DataError, match=f"{shard.name} has .* bytes, not"):
        _ = ds.open_dataset(str(copy)).targets


@pytest.mark.parametrize(
    "damage", [lambda file: file.unlink(), lambda file: file.write_bytes(b"x")]
)
def test_another_labels_file_is_refused(copy, damage):
    damage(copy / row_labels.FILE)
    with pytest.raises(
        DataError, match=r"labels\.parquet is .*: it is not the file that dataset\.json"
    ):
        _ = ds.open_dataset(str(copy)).targets


def test_a_check_compares_it_with_the_labels_of_every_shard(copy):
    opened = ds.open_dataset(str(copy))
    assert ds.damages(opened) == []
    file = row_labels.parse((copy / row_labels.FILE).read_bytes(), len(opened.classes))
    targets = file.labels.targets.copy()
    targets[0] = 1 - targets[0]
    column = row_labels.target_rows(targets, file.labels.known)
    rows = [entry["rows"] for entry in opened.manifest["shards"]]
    content = row_labels.content(file.labels.names, column, rows, file.shard_bytes)
    storage.write_bytes(f"{copy}/{row_labels.FILE}", content)
    manifest = opened.manifest | {row_labels.HASH_KEY: ds.hashlib.sha256(content).hexdigest()}
    storage.write_json(f"{copy}/dataset.json", manifest)
    [damage] = ds.damages(ds.open_dataset(str(copy)))
    assert damage == "part-00000.parquet: its labels are not those in labels.parquet"


def test_unknown_targets_are_null():
    targets = np.array([[0, 1], [0, 0], [1, 1]], np.uint8)
    known = np.array([True, False, True])
    column = row_labels.target_rows(targets, known)
    assert column.to_pylist() == [[0, 1], None, [1, 1]]
    names = pa.array(["a", "b", "c"])
    found = row_labels.parse(row_labels.content(names, column, [2, 1], [10, 20]), 2)
    np.testing.assert_array_equal(found.labels.targets, [[0, 1], [0, 0], [1, 1]])
    np.testing.assert_array_equal(found.labels.known, known)
    assert found.shard_bytes == [10, 20] and found.labels.names.to_pylist() == ["a", "b", "c"]


def test_equal_rows_give_equal_bytes():
    column = row_labels.target_array([np.array([1, 0], np.uint8)] * 3)
    files = {row_labels.content(pa.array(["a", "b", "c"]), column, [3], [9]) for _ in range(2)}
    assert len(files) == 1


def test_a_dataset_without_rows_has_no_labels():
    found = row_labels.joined([], 3)
    assert len(found.names) == 0 and found.targets.shape == (0, 3)


def test_a_foreign_column_is_never_read():
    table = pa.table({"image_name": [b"a"], "target": [[1]], "shard": [0], "row": [0]})
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink)
    with pytest.raises(DataError, match=r"column image_name of labels\.parquet has another type"):
        row_labels.parse(sink.getvalue().to_pybytes(), 1)


def test_pictures_come_from_the_shard_that_the_manifest_names_only(copy):
    opened = ds.open_dataset(str(copy))
    manifest = json.loads((copy / "dataset.json").read_text())
    manifest["shards"][1]["sha256"] = "0" * 64
    (copy / "dataset.json").write_text(json.dumps(manifest))
    row = int(opened.shard_starts[1])
    assert list(ds.read_images(opened, [row]))
    with pytest.raises(DataError, match="it is not the file that"):
        list(ds.read_images(ds.open_dataset(str(copy)), [row]))


def test_names_of_some_rows_are_read_in_pieces(monkeypatch):
    names = [f"tile_{number}" for number in range(10)]
    column = row_labels.target_array([np.array([1, 0], np.uint8)] * 10)
    data = row_labels.content(pa.array(names), column, [10], [9])
    monkeypatch.setattr(row_labels, "NAMES_AT_ONCE", 3)
    for rows in ([], [0], [2, 3, 9], range(10)):
        found = row_labels.parse_names(data, np.array(rows, np.int64)).to_pylist()
        assert found == [names[row] for row in rows]


def test_an_older_dataset_gives_the_same_names(dataset, copy):
    older = without_file(copy)
    rows = dataset.part_rows("random", "valid")
    assert ds.names_alone(older, rows).to_pylist() == ds.names_alone(dataset, rows).to_pylist()
