"""Predictions are written as they come, in the order of the tiles."""

import numpy as np
import pandas as pd
import pytest

from raytrain.distributed.predict import in_order
from raytrain.errors import StorageError
from raytrain.evaluation import predictions


def tables(*ranges):
    return [pd.DataFrame({"order": list(numbers)}) for numbers in ranges]


@pytest.mark.parametrize(
    "came",
    [
        [range(3), range(3, 5), range(5, 6)],
        [range(5, 6), range(3, 5), range(3)],
        [range(3, 5), range(3), range(5, 6)],
        # Ray may join rows of several blocks.
        [[3, 4, 0], [1, 2, 5]],
    ],
)
def test_tables_are_put_in_order_as_soon_as_all_before_them_are_there(came):
    found = pd.concat(in_order(iter(tables(*came))))
    assert found["order"].tolist() == list(range(6))


def test_only_what_came_too_early_waits():
    came = iter(tables(range(2, 4), range(2), range(4, 6)))
    ordered = in_order(came)
    assert next(ordered)["order"].tolist() == [0, 1]
    assert next(ordered)["order"].tolist() == [2, 3]
    assert len(list(came)) == 1, "the third was not asked for"


CLASSES = ("a", "b")


def add(writer, names, known):
    count = len(names)
    logits = np.arange(2.0 * count, dtype=np.float32).reshape(count, 2)
    writer.add(names, logits, np.ones((count, 2), np.uint8), np.array(known))


def test_pieces_are_one_file_of_row_groups(tmp_path):
    path = str(tmp_path / "p.parquet")
    known = np.array([True, True, False])
    with predictions.writing(path, CLASSES, {"part": "test"}, known) as writer:
        add(writer, ["x", "y"], [True, True])
        assert not (tmp_path / "p.parquet").exists()
        add(writer, ["z"], [False])
    found = predictions.read(path)
    assert found.names == ("x", "y", "z") and found.classes == CLASSES
    assert found.is_known.tolist() == known.tolist() and found.meta["part"] == "test"
    assert (writer.tiles, writer.known) == (3, 2)
    assert [file.name for file in tmp_path.iterdir()] == ["p.parquet"]


def test_a_file_is_read_as_one_that_was_written_at_once(tmp_path):
    logits = np.array([[1, 2], [3, 4]], np.float32)
    whole = predictions.Predictions(("x", "y"), logits, None, CLASSES, {"k": "v"})
    predictions.write(str(tmp_path / "whole.parquet"), whole)
    with predictions.writing(str(tmp_path / "pieces.parquet"), CLASSES, {"k": "v"}, None) as writer:
        for row, name in enumerate("xy"):
            writer.add([name], logits[row : row + 1], np.zeros((1, 0)), np.array([False]))
    one, other = (predictions.read(str(tmp_path / f"{n}.parquet")) for n in ("whole", "pieces"))
    assert one.names == other.names and one.meta == other.meta and other.target is None
    np.testing.assert_array_equal(one.logits, other.logits)


def test_an_error_leaves_what_was_there_before(tmp_path):
    path = tmp_path / "p.parquet"
    path.write_bytes(b"before")
    with (
        pytest.raises(RuntimeError),
        predictions.writing(str(path), CLASSES, {}, None) as writer,
    ):
        add(writer, ["x"], [False])
        raise RuntimeError
    assert path.read_bytes() == b"before" and len(list(tmp_path.iterdir())) == 1


def test_an_error_of_the_caller_is_not_one_of_the_file(tmp_path):
    with (
        pytest.raises(TimeoutError),
        predictions.writing(str(tmp_path / "p.parquet"), CLASSES, {}, None),
    ):
        raise TimeoutError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_fault_of_the_storage(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(StorageError),
        predictions.writing(str(tmp_path / "file" / "p.parquet"), CLASSES, {}, None),
    ):
        pass
