"""The dataset on disk: what is compared with dataset.json, and when."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from handmade import encoded, scene, write_dataset

from raytrain.data import dataset as ds
from raytrain.errors import DataError
from raytrain.tiles import cache

CLASSES = ["clear", "water"]


@pytest.fixture
def data(tmp_path):
    tiles = {f"t{i}": (encoded(scene(i, 32), "JPEG"), CLASSES[i % 2]) for i in range(8)}
    return write_dataset(
        tmp_path / "data", tiles, CLASSES, {"random": ["train"] * 6 + ["valid"] * 2}, tile_size=32
    )


def rewritten(shard, **changes):
    """The shard with other values in its first row, and with all checksums of Parquet right."""
    rows = pq.read_table(shard).to_pylist()
    rows[0] |= changes
    content = ds.shard_bytes(
        [(*list(row.values())[:-1], np.array(row["target"], np.uint8)) for row in rows]
    )
    Path(shard).write_bytes(content)


@pytest.mark.parametrize("changes", [{"target": [0, 1]}, {"image_name": "t9"}])
def test_labels_and_names_are_compared_wherever_they_are_read(data, changes):
    rewritten(data.shards[1], **changes)
    with pytest.raises(
        DataError, match=r"labels in shard .*part-00001\.parquet are not those that were written"
    ):
        ds.open_dataset(data.path).part_rows("random", "train")


def test_a_dataset_from_before_labels_had_a_hash_is_read(data):
    manifest = json.loads((Path(data.path) / "dataset.json").read_text())
    for shard in manifest["shards"]:
        del shard["labels"]
    (Path(data.path) / "dataset.json").write_text(json.dumps(manifest))
    older = ds.open_dataset(data.path)
    assert older.hash == data.hash and len(ds.all_names(older)) == 8


def test_pictures_are_compared_where_they_are_decoded(data, tmp_path):
    other = encoded(scene(99, 32), "JPEG")
    rewritten(data.shards[0], image=other, crc32=ds.crc32(other))
    with pytest.raises(
        DataError,
        match=r"part-00000\.parquet cannot be read: it is not the file that dataset\.json names",
    ):
        cache.open_store(data, 32, directory=tmp_path / "cache")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is damaged: Expecting"),
        ("[]", "is damaged: it is not a JSON object"),
        (
            '{"schema_version": 1, "classes": [], "tile_size": 32, "splits": []}',
            "is damaged: it has no shards",
        ),
        ("{}", "has schema version None"),
        ('{"schema_version": 0}', "has schema version 0"),
    ],
)
def test_a_manifest_that_is_none_is_refused(data, content, words):
    (Path(data.path) / "dataset.json").write_text(content)
    with pytest.raises(DataError, match=words):
        ds.open_dataset(data.path)


def test_a_newer_schema_version_is_refused_with_both_versions_and_the_fix(data):
    path = Path(data.path) / "dataset.json"
    newer = ds.EXTENDED_VERSION + 1
    # A newer version may have other keys, so nothing but the version is looked at.
    path.write_text(json.dumps({"schema_version": newer, "shards": "elsewhere"}))
    with pytest.raises(DataError) as error:
        ds.open_dataset(data.path)
    assert f"has schema version {newer}" in error.value.what
    assert f"reads schema versions {ds.SCHEMA_VERSION} and" in error.value.what
    assert f"update raytrain to a release that reads schema version {newer}" in error.value.fix
    assert error.value.exit_code == 3


def test_an_older_schema_version_is_told_to_ingest_again(data):
    (Path(data.path) / "dataset.json").write_text('{"schema_version": 0}')
    with pytest.raises(DataError) as error:
        ds.open_dataset(data.path)
    assert "raytrain ingest" in error.value.fix and "update" not in error.value.fix


def test_shards_start_where_the_one_before_ends(data):
    assert data.shard_starts.dtype == np.int64
    assert data.shard_starts[0] == 0 and data.shard_starts[-1] == data.rows == 8
    rows = [shard["rows"] for shard in data.manifest["shards"]]
    assert np.diff(data.shard_starts).tolist() == rows and data.rows == sum(rows)
    names = ds.all_names(data)
    for shard, path in enumerate(data.shards):
        first, end = data.shard_starts[shard : shard + 2]
        assert ds.read_shard(path, ["image_name"]).column(0).to_pylist() == names[first:end]


def test_a_dataset_without_shards_has_one_start():
    empty = ds.Dataset("nowhere", {"shards": []})
    assert empty.shard_starts.tolist() == [0] and empty.shard_starts.dtype == np.int64


def test_a_file_is_no_dataset(data):
    with pytest.raises(DataError, match=r"has no dataset\.json"):
        ds.open_dataset(data.shards[0])


@pytest.mark.parametrize(
    "extension",
    [{"channels": 4}, {"dtype": "uint16"}, {"bands": [1, 2, 3, 4]}],
)
def test_what_earlier_programs_would_misread_has_another_version_and_hash(data, extension):
    plain = ds.open_dataset(data.path).manifest
    other = plain | extension
    assert (ds.schema_version(plain), ds.schema_version(other)) == (1, 2)
    assert ds.dataset_hash(other) != ds.dataset_hash(plain)


def test_an_unknown_task_is_refused_with_those_that_exist(data):
    path = Path(data.path) / "dataset.json"
    manifest = json.loads(path.read_text()) | {"task": "multi-labels", "schema_version": 2}
    path.write_text(json.dumps(manifest))
    with pytest.raises(
        DataError, match=r'no task "multi-labels". Did you mean "?multi-label'
    ) as error:
        ds.open_dataset(data.path)
    assert "multi-label" in error.value.fix
