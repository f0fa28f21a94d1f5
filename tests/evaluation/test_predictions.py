import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raytrain.errors import DataError
from raytrain.evaluation import predictions
from raytrain.evaluation.predictions import Predictions, read, write

META = {
    "task": "multi-label",
    "checkpoint": "run:last",
    "split": "random",
    "part": "valid",
    "dataset": "planet",
}


def some(rows=5, classes=("clear", "haze", "water"), target=True, seed=0):
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(rows, len(classes))).astype(np.float32)
    true = generator.integers(0, 2, logits.shape, dtype=np.uint8)
    return Predictions(
        tuple(f"tile_{i}" for i in range(rows)), logits, true if target else None, classes, META
    )


def rewrite(path, metadata=None, **columns):
    """The file again, with some columns or the metadata replaced by others."""
    table = pq.read_table(path)
    for name, values in columns.items():
        index = table.column_names.index(name)
        table = (
            table.remove_column(index) if values is None else table.set_column(index, name, values)
        )
    pq.write_table(
        table.replace_schema_metadata(table.schema.metadata if metadata is None else metadata),
        path,
    )


@pytest.fixture
def path(tmp_path):
    path = str(tmp_path / "p.parquet")
    write(path, some())
    return path


@pytest.mark.parametrize("target", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_what_is_written_is_read(tmp_path, rows, target):
    before, path = some(rows, target=target), str(tmp_path / "new" / "p.parquet")
    write(path, before)
    after = read(path)
    assert (after.names, after.classes, after.meta) == (before.names, before.classes, before.meta)
    assert (after.logits.dtype, after.logits.tobytes()) == (np.float32, before.logits.tobytes())
    assert (after.target is None) == (not target)
    if target:
        assert (after.target.dtype, after.target.tolist()) == (np.uint8, before.target.tolist())


def test_equal_predictions_give_equal_bytes(tmp_path):
    write(str(tmp_path / "a"), some())
    write(str(tmp_path / "b"), replace(some(), meta=dict(reversed(META.items()))))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_file_has_the_schema_that_others_may_rely_on(path):
    schema = pq.read_schema(path)
    assert {name: schema.field(name).type for name in schema.names} == predictions.TYPES
    known = json.loads(schema.metadata[b"raytrain"])
    assert known == {"schema_version": 1, "classes": ["clear", "haze", "water"], "meta": META}


def test_a_view_of_a_larger_array_is_written_as_it_looks(tmp_path):
    whole, path = some(6), str(tmp_path / "p")
    part = Predictions(whole.names[::2], whole.logits[::2], whole.target[::2], whole.classes, META)
    write(path, part)
    np.testing.assert_array_equal(read(path).logits, whole.logits[[0, 2, 4]])
    np.testing.assert_array_equal(read(path).target, whole.target[[0, 2, 4]])


def test_probability_is_the_sigmoid_in_float64():
    assert some().probability.dtype == np.float64
    np.testing.assert_allclose(
        some().probability, 1 / (1 + np.exp(-some().logits.astype(float))), rtol=1e-14
    )


def test_logits_that_do_not_fit_the_names_are_refused():
    with pytest.raises(ValueError, match=r"logits has shape \(5, 3\)"):
        replace(some(), names=("one",))


def test_a_missing_file_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="there is no predictions file") as error:
        read(str(tmp_path / "none.parquet"))
    assert error.value.exit_code == 3


@pytest.mark.parametrize(
    "content", [b"", b"image_name,tags\n", b"PAR1 and then something else PAR1"]
)
def test_a_file_that_is_not_parquet_is_a_data_error(tmp_path, content):
    (tmp_path / "p").write_bytes(content)
    with pytest.raises(DataError, match="no Parquet file"):
        read(str(tmp_path / "p"))


def test_a_damaged_page_is_a_data_error(tmp_path):
    path = tmp_path / "p"
    write(str(path), some(500))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        read(str(path))


@pytest.mark.parametrize("name", ["image_name", "logits"])
def test_a_missing_column_is_named(path, name):
    rewrite(path, **{name: None})
    with pytest.raises(DataError, match=f"no column {name}"):
        read(path)


def test_a_column_of_another_type_is_named(path):
    rewrite(path, logits=pa.array([[0.0] * 3] * 5, pa.list_(pa.float64())))
    with pytest.raises(DataError, match="no column logits of type"):
        read(path)


@pytest.mark.parametrize(
    "known",
    [
        None,
        b"not json",
        b"[]",
        b'{"schema_version": 1, "classes": [], "meta": {}}',
        b'{"schema_version": 1, "classes": ["a", "b", 3], "meta": {}}',
        b'{"schema_version": 3, "classes": ["a", "b", "c"], "meta": {}}',
        b'{"schema_version": 1, "classes": ["a", "b", "c"], "meta": []}',
    ],
)
def test_a_table_without_our_metadata_is_a_data_error(path, known):
    rewrite(path, metadata={} if known is None else {b"raytrain": known})
    with pytest.raises(DataError, match="its metadata"):
        read(path)


@pytest.mark.parametrize("bad", [[0.0] * 2, [0.0] * 4, [], None])
def test_logits_of_another_length_are_found_in_their_row(path, bad):
    # 4 beside 2 keep the total: only the length of every row shows it.
    rows = [[0.0] * 3, bad, [0.0] * (6 - len(bad or [])), [0.0] * 3, [0.0] * 3]
    rewrite(path, logits=pa.array(rows, pa.list_(pa.float32())))
    with pytest.raises(DataError, match="the logits of tile_1 are not 3 numbers"):
        read(path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_are_a_data_error(path, bad):
    rewrite(
        path,
        logits=pa.array(
            [[0.0] * 3] * 2 + [[0.0, bad, 0.0]] + [[0.0] * 3] * 2, pa.list_(pa.float32())
        ),
    )
    with pytest.raises(DataError, match="logits of tile_2 are not finite"):
        read(path)


def test_empty_values_are_a_data_error(path):
    rewrite(path, logits=pa.array([[0.0, None, 0.0]] * 5, pa.list_(pa.float32())))
    with pytest.raises(DataError, match="empty values"):
        read(path)


def test_a_target_that_counts_a_label_twice_is_a_data_error(path):
    rewrite(path, target=pa.array([[0, 2, 1]] * 5, pa.list_(pa.uint8())))
    with pytest.raises(DataError, match="a target is 2"):
        read(path)


def test_foreign_columns_are_left_alone(path):
    table = pq.read_table(path)
    pq.write_table(table.append_column("note", pa.array(["x"] * 5)), path)
    assert read(path).names == some().names
