"""Targets and parts of a dataset that the processes of a machine share."""

import numpy as np
import pytest

from raytrain.data import dataset as ds
from raytrain.errors import StorageError
from raytrain.tiles import rows
from raytrain.tiles.cache import CONTENT_FILE
from raytrain.tiles.rows import with_mapped_rows


def test_mapped_rows_are_those_of_the_dataset(dataset, tmp_path):
    mapped = with_mapped_rows(ds.open_dataset(dataset.path), "random", tmp_path)
    np.testing.assert_array_equal(mapped.targets, dataset.targets)
    np.testing.assert_array_equal(mapped.known, dataset.known)
    for part in ds.PARTS:
        found = mapped.part_rows("random", part)
        np.testing.assert_array_equal(found, dataset.part_rows("random", part))
    assert isinstance(mapped.targets, np.memmap)


def test_the_second_process_reads_neither_labels_nor_split(dataset, tmp_path, monkeypatch):
    with_mapped_rows(ds.open_dataset(dataset.path), "random", tmp_path)
    monkeypatch.setattr(ds, "_verified", None)
    mapped = with_mapped_rows(ds.open_dataset(dataset.path), "random", tmp_path)
    assert len(mapped.part_rows("random", "train")) == 128 and mapped.targets.any()


def test_rows_that_were_not_finished_are_written_again(dataset, tmp_path):
    with_mapped_rows(dataset, "random", tmp_path)
    [content] = tmp_path.glob(f"*/{CONTENT_FILE}")
    content.unlink()
    (content.parent / "targets.u8").write_bytes(b"")
    mapped = with_mapped_rows(dataset, "random", tmp_path)
    np.testing.assert_array_equal(mapped.targets, dataset.targets)


def test_another_split_is_read_as_before(dataset, tmp_path):
    mapped = with_mapped_rows(dataset, "random", tmp_path)
    with pytest.raises(ds.DataError, match='has no split "other"'):
        mapped.part_rows("other", "train")
    assert with_mapped_rows(dataset, "other", tmp_path) is dataset


def test_a_disk_that_cannot_be_written_is_no_error(dataset, tmp_path, logged):
    (tmp_path / "file").touch()
    assert with_mapped_rows(dataset, "random", tmp_path / "file" / "cache") is dataset
    assert "labels are kept in memory" in logged[0]


def test_many_rows_are_written_by_a_process_of_its_own(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "APART_FROM_ROWS", 1)
    mapped = with_mapped_rows(ds.open_dataset(dataset.path), "random", tmp_path)
    np.testing.assert_array_equal(mapped.targets, dataset.targets)


@pytest.mark.parametrize("name", rows.FILES)
def test_a_bit_that_flipped_in_the_cache_is_found_and_mended(name, dataset, tmp_path):
    with_mapped_rows(dataset, "random", tmp_path)
    [file] = tmp_path.glob(f"*/{name}")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    mapped = with_mapped_rows(dataset, "random", tmp_path)
    np.testing.assert_array_equal(mapped.targets, dataset.targets)
    np.testing.assert_array_equal(mapped.known, dataset.known)
    for part in ds.PARTS:
        found = mapped.part_rows("random", part)
        np.testing.assert_array_equal(found, dataset.part_rows("random", part))


def test_what_others_have_mapped_is_not_written_over(dataset, tmp_path):
    first = with_mapped_rows(dataset, "random", tmp_path)
    [file] = tmp_path.glob("*/parts.u8")
    file.write_bytes(b"")  # noticed by the next process, which writes all files again
    inode = (file.parent / "targets.u8").stat().st_ino
    with_mapped_rows(dataset, "random", tmp_path)
    assert (file.parent / "targets.u8").stat().st_ino != inode
    np.testing.assert_array_equal(first.targets, dataset.targets)


def test_a_full_disk_leaves_nothing_behind(dataset, tmp_path, monkeypatch, logged):
    def full(self, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rows.Path, "write_text", full)
    assert with_mapped_rows(dataset, "random", tmp_path) is dataset
    assert "No space left on device" in logged[0]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_the_limit_of_the_cache_holds(dataset, tmp_path, monkeypatch, logged):
    monkeypatch.setenv("RAYTRAIN_CACHE_GB", "0.000000001")
    assert with_mapped_rows(dataset, "random", tmp_path) is dataset
    assert "labels are kept in memory" in logged[0] and "may hold 0.0 GB" in logged[0]


def test_a_dataset_that_cannot_be_read_is_no_fault_of_the_cache(dataset, tmp_path, monkeypatch):
    def away(*args):
        raise StorageError("cannot read it: away", "", "")

    monkeypatch.setattr(ds, "_verified", away)
    with pytest.raises(StorageError, match="away"):
        with_mapped_rows(ds.open_dataset(dataset.path), "random", tmp_path)


def test_names_alone_are_read_without_keeping_the_labels(dataset, tmp_path):
    mapped = with_mapped_rows(ds.open_dataset(dataset.path), "random", tmp_path)
    wanted = mapped.part_rows("random", "valid")
    assert ds.names_alone(mapped, wanted).to_pylist() == ds.names_of(dataset, wanted)
    assert "row_labels" not in vars(mapped)
