"""Targets and parts of a dataset that the processes of a machine share."""

import numpy as np
import pytest

from raytrain.data import dataset as ds
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
