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


def test_folds_are_written_and_read_and_go_with_their_rows(tmp_path):
    fold = np.array([1, 0, 2, 1, 0], np.int32)
    before = replace(some(5), fold=fold)
    write(str(tmp_path / "p.parquet"), before)
    after = read(str(tmp_path / "p.parquet"))
    assert (after.fold.dtype, after.fold.tolist()) == (np.int32, fold.tolist())
    assert pq.read_schema(tmp_path / "p.parquet").field("fold").type == pa.int32()
    assert after.taken(np.array([3, 1])).fold.tolist() == [1, 0]
    known = np.array([True, False, True, True, False])
    assert replace(after, known=known).judged().fold.tolist() == [1, 2, 1]
    assert read(str(tmp_path / "p.parquet")).fold is not None
    with pytest.raises(ValueError, match="fold has shape"):
        replace(before, fold=fold[:3])


def test_equal_predictions_give_equal_bytes(tmp_path):
    write(str(tmp_path / "a"), some())
    write(str(tmp_path / "b"), replace(some(), meta=dict(reversed(META.items()))))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_file_has_the_schema_that_others_may_rely_on(path):
    schema = pq.read_schema(path)
    types = {name: schema.field(name).type for name in schema.names}
    assert types == {name: predictions.TYPES[name] for name in ("image_name", "logits", "target")}
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


# Some targets are unknown


def partly(known, seed=0):
    """Predictions of tiles of which some have no target; zeros stand there."""
    known = np.array(known, bool)
    found = some(len(known), seed=seed)
    return replace(found, target=found.target * known[:, None], known=known)


MIXED = [True, False, True, False, False]


def test_unknown_targets_are_null_in_a_file_of_version_2_and_zeros_with_a_mask_when_read(tmp_path):
    before, path = partly(MIXED), str(tmp_path / "p.parquet")
    write(path, before)
    table = pq.read_table(path)
    assert json.loads(table.schema.metadata[b"raytrain"])["schema_version"] == 2
    column = table.column("target").to_pylist()
    assert [row is None for row in column] == [not known for known in MIXED]
    after = read(path)
    assert after.known.tolist() == after.is_known.tolist() == MIXED
    assert after.target.dtype == np.uint8 and after.target.tolist() == before.target.tolist()
    assert (after.names, after.logits.tobytes()) == (before.names, before.logits.tobytes())
    write(str(tmp_path / "again"), after)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "p.parquet").read_bytes()


@pytest.mark.parametrize("known", [True, False])
def test_all_targets_known_or_all_unknown_are_the_bytes_of_version_1(tmp_path, known):
    write(str(tmp_path / "mask"), partly([known] * 5))
    write(str(tmp_path / "plain"), some(target=known))
    assert (tmp_path / "mask").read_bytes() == (tmp_path / "plain").read_bytes()
    found = read(str(tmp_path / "mask"))
    assert found.known is None and found.is_known.tolist() == [known] * 5
    assert (
        json.loads(pq.read_schema(tmp_path / "mask").metadata[b"raytrain"])["schema_version"] == 1
    )


def test_a_null_target_in_a_file_of_version_1_is_a_damage(tmp_path):
    path = str(tmp_path / "p.parquet")
    write(path, partly(MIXED))
    known = {"schema_version": 1, "classes": ["clear", "haze", "water"], "meta": META}
    rewrite(path, {b"raytrain": json.dumps(known).encode()})
    with pytest.raises(DataError, match="the target of tile_1 are not 3 numbers"):
        read(path)


@pytest.mark.parametrize("bad", [[1], [1, 0, 1, 0], []])
def test_a_target_of_another_length_is_found_beside_unknown_ones(tmp_path, bad):
    path = str(tmp_path / "p.parquet")
    write(path, partly(MIXED))
    targets = [[1, 0, 1], None, bad, None, None]
    rewrite(path, target=pa.array(targets, pa.list_(pa.uint8())))
    with pytest.raises(DataError, match="the target of tile_2 are not 3 numbers"):
        read(path)


def test_what_can_be_judged_are_the_tiles_with_a_target():
    found = partly(MIXED).judged()
    assert found.names == ("tile_0", "tile_2") and found.known is None
    whole = some()
    assert found.target.tolist() == whole.target[[0, 2]].tolist()
    assert found.logits.tolist() == whole.logits[[0, 2]].tolist()
    assert partly([True] * 5).judged().names == whole.names
    nothing = partly([False] * 5).judged()
    assert nothing.names == whole.names and nothing.target is None
    assert some(target=False).judged().target is None


def test_a_mask_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"known has shape \(2,\) for 5 names"):
        replace(some(), known=np.array([True, False]))
