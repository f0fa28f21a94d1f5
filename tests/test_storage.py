"""Places: local paths and URIs, atomic writes, sentences for what cannot be written."""

import errno
import os

import pytest

from raytrain import storage
from raytrain.errors import StorageError

MINIO = "s3://bucket/runs?scheme=http&endpoint_override=127.0.0.1:9000&region=us-east-1"


def test_parts_are_joined_and_taken_off_before_the_query_of_a_uri():
    assert storage.join("/a/", "b", "c") == "/a/b/c"
    first = storage.join(MINIO, "first")
    assert first == MINIO.replace("/runs?", "/runs/first?")
    assert storage.name_of(first) == "first" and storage.parent(first) == MINIO
    assert storage.parent("/a/b") == "/a"


def test_local_places_are_absolute_and_uris_as_they_are(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("x") == str(tmp_path / "x")
    assert storage.absolute(f"file://{tmp_path}/x") == str(tmp_path / "x")
    assert storage.absolute("~/x") == os.path.expanduser("~/x")
    assert storage.absolute(MINIO) == MINIO


def test_a_uri_opens_its_own_file_system():
    fs, path = storage.filesystem(MINIO)
    assert fs.type_name == "s3" and path == "bucket/runs"
    with pytest.raises(StorageError, match="cannot be opened"):
        storage.filesystem("nonsense://x")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_write_that_fails_leaves_the_old_content_and_no_rest(tmp_path, monkeypatch, code):
    path = str(tmp_path / "file")
    storage.write_bytes(path, b"old")

    def fail(handle):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(storage.os, "fsync", fail)
    with pytest.raises(StorageError, match=os.strerror(code)) as caught:
        storage.write_bytes(path, b"new")
    assert caught.value.exit_code == 7
    assert storage.read_bytes(path) == b"old" and os.listdir(tmp_path) == ["file"]


def test_a_missing_file_is_told_from_one_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(str(tmp_path / "nowhere"))
    with pytest.raises(StorageError):
        storage.read_bytes(str(tmp_path))


def test_listing_tells_files_from_directories(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a.txt").write_text("x")
    assert storage.names(str(tmp_path)) == ["a.txt"]
    assert storage.names(str(tmp_path), directories=True) == ["b"]
    assert storage.names(str(tmp_path / "nowhere")) == []


def test_a_probe_leaves_nothing_and_a_bad_place_is_refused(tmp_path):
    storage.probe(str(tmp_path / "runs"))
    assert list((tmp_path / "runs").iterdir()) == []
    with pytest.raises(StorageError, match="/proc/raytrain"):
        storage.probe("/proc/raytrain")


def test_numbers_that_json_does_not_have_are_refused(tmp_path):
    with pytest.raises(ValueError):
        storage.write_json(str(tmp_path / "x"), float("nan"))


def test_keys_of_uris_are_not_written_and_come_back_from_the_place_that_was_named(tmp_path):
    storage.write_json(
        str(tmp_path / "a.json"),
        {"dataset": "s3://KEY:SE%2FCRET@bucket/data?region=x", "lr": "a:b@c"},
    )
    written = storage.read_json(str(tmp_path / "a.json"))
    assert written == {"dataset": "s3://***@bucket/data?region=x", "lr": "a:b@c"}
    named = "s3://KEY:SE%2FCRET@bucket/runs"
    assert (
        storage.with_keys_of(written["dataset"], named) == "s3://KEY:SE%2FCRET@bucket/data?region=x"
    )
    assert storage.with_keys_of(written["dataset"], str(tmp_path)) == written["dataset"]
    assert storage.filesystem("s3://***@bucket/data?region=x")[1] == "bucket/data"


def test_a_lock_of_a_file_or_a_directory_has_one_owner_at_a_time(tmp_path):
    for path in (tmp_path / "new.lock", tmp_path):
        with storage.file_lock(path) as first, storage.file_lock(path, wait=False) as second:
            assert first and not second
        with storage.file_lock(path, wait=False) as third:
            assert third
