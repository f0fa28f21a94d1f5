import gzip
import zipfile

import numpy as np
import pytest

from raytrain.errors import ConfigError, DataError
from raytrain.evaluation.predictions import Predictions
from raytrain.evaluation.rule_files import Chosen
from raytrain.evaluation.rules import Thresholds
from raytrain.evaluation.submission import build, write

CLASSES = ("clear", "haze", "water")


def of(tiles, classes=CLASSES):
    """Predictions of {name: probabilities}."""
    p = np.array(list(tiles.values()), float).reshape(-1, len(classes))
    return Predictions(tuple(tiles), np.log(p / (1 - p)).astype(np.float32), None, classes, {})


def at(cuts):
    """The decision of these thresholds."""
    cuts = np.broadcast_to(cuts, len(CLASSES))
    return Chosen("per_class", Thresholds(cuts), "as the test asks")


def rows(submission):
    table = submission.table
    return dict(zip(table["image_name"], table["tags"], strict=True))


def test_tags_are_above_the_threshold_and_in_class_order():
    tiles = of({"a": [0.3, 0.1, 0.9], "b": [0.21, 0.19, 0.1]})
    assert rows(build([tiles], None, None)) == {"a": "clear water", "b": "clear"}
    assert rows(build([tiles], at(0.5), None)) == {"a": "water", "b": "clear"}
    assert rows(build([tiles], at([0.25, 0.05, 0.95]), None)) == {
        "a": "clear haze",
        "b": "haze",
    }


def test_a_probability_that_equals_the_threshold_is_no_tag():
    assert rows(build([of({"a": [0.5, 0.9, 0.1]})], at(0.5), None)) == {"a": "haze"}


def test_every_tile_has_at_least_its_top_label():
    assert rows(build([of({"a": [0.01, 0.03, 0.02]})], None, None)) == {"a": "haze"}


def test_several_folders_are_one_table_in_natural_order():
    tiles = [
        of({f"test_{i}": [0.9, 0.1, 0.1] for i in (10, 2, 1)}),
        of({"file_3": [0.1, 0.9, 0.1]}),
    ]
    table = build(tiles).table
    assert list(table) == ["image_name", "tags"]
    assert list(table["image_name"]) == ["file_3", "test_1", "test_2", "test_10"]


def test_names_that_differ_only_in_leading_zeros_have_one_order():
    tiles = {name: [0.9, 0.1, 0.1] for name in ("a1", "a01", "a1b2", "7", "b", "a")}
    forward, backward = (
        build([of(dict(pairs))]).table for pairs in (tiles.items(), reversed(tiles.items()))
    )
    assert (
        list(forward["image_name"])
        == list(backward["image_name"])
        == ["7", "a", "a01", "a1", "a1b2", "b"]
    )


def test_names_lose_the_extension_of_a_picture_and_nothing_else():
    names = ("a.jpg", "b.TIF", "c.v2", "d.e.png", ".hidden")
    table = build([of({name: [0.9, 0.1, 0.1] for name in names})], None, None).table
    assert set(table["image_name"]) == {"a", "b", "c.v2", "d.e", ".hidden"}


def test_a_tile_that_comes_twice_is_named():
    with pytest.raises(DataError, match="tile test_7 comes twice") as error:
        build([of({"test_7": [0.5] * 3}), of({"test_7.jpg": [0.5] * 3})], None, None)
    assert error.value.exit_code == 3


def test_files_with_other_classes_or_no_files_are_refused():
    tiles = {"a": [0.5] * 3}
    with pytest.raises(DataError, match="2 different lists of classes"):
        build([of(tiles), of({"b": [0.5] * 3}, CLASSES[::-1])], None, None)
    with pytest.raises(DataError, match="0 different"):
        build([], None, None)


@pytest.mark.parametrize("label", ["bare ground", "", "a\tb"])
def test_a_label_that_spaces_would_break_is_refused(label):
    with pytest.raises(DataError, match="has a space, or is empty"):
        build([of({"a": [0.5] * 3}, ("clear", label, "water"))], None, None)


def sample_file(tmp_path, names, header="image_name,tags"):
    path = tmp_path / "sample.csv"
    path.write_text("\n".join([header, *(f"{name},primary" for name in names)]) + "\n")
    return str(path)


def test_the_sample_gives_the_order(tmp_path):
    sample = sample_file(tmp_path, ["b", "NA", "a", "007"])
    table = build(
        [of({name: [0.9, 0.1, 0.1] for name in ("007", "a", "b", "NA")})], None, sample
    ).table
    assert list(table["image_name"]) == ["b", "NA", "a", "007"]


def test_names_that_differ_from_the_sample_are_counted_with_examples(tmp_path):
    sample = sample_file(tmp_path, ["a", *(f"test_{i}" for i in range(1200))])
    with pytest.raises(DataError) as error:
        build([of({name: [0.5] * 3 for name in ("a", "x10", "x9", "x8", "x7")})], None, sample)
    assert "1,200 not in the predictions (test_0, test_1, test_2)" in error.value.what
    assert "4 not in the sample (x7, x8, x9)" in error.value.what


def test_a_sample_that_repeats_a_name_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"1 in the sample more than once \(a\)"):
        build([of({"a": [0.5] * 3})], None, sample_file(tmp_path, ["a", "a"]))
    with pytest.raises(DataError, match=r"1 in the sample more than once \(a\)"):
        build([of({"a": [0.5] * 3})], None, sample_file(tmp_path, ["a", "a.jpg"]))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, r"the sample file .* does not exist"),
        (b"", "is empty"),
        (b"name,tags\na,b\n", 'must have one column "image_name"'),
        (b"name;tags\n", "separated by ';'"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_a_sample_that_is_none_is_a_data_error(tmp_path, content, sentence):
    path = tmp_path / "sample.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=sentence):
        build([of({"a": [0.5] * 3})], None, str(path))


def test_the_file_is_csv_with_line_feeds(tmp_path):
    path = tmp_path / "out" / "submission.csv"
    write(str(path), build([of({"a": [0.9, 0.1, 0.9], "b": [0.1, 0.9, 0.1]})]).table)
    assert path.read_bytes() == b"image_name,tags\na,clear water\nb,haze\n"


def test_as_many_rows_as_in_the_competition_keep_the_order_of_the_sample(tmp_path):
    names = [f"test_{i}" for i in range(40669)] + [f"file_{i}" for i in range(20522)]
    logits = np.random.default_rng(0).normal(size=(61191, 17)).astype(np.float32)
    classes = tuple(f"label{k}" for k in range(17))
    sample = sample_file(tmp_path, names[::-1])
    table = build([Predictions(tuple(names), logits, None, classes, {})], None, sample).table
    write(str(tmp_path / "s.csv"), table)
    assert list(table["image_name"]) == names[::-1]


# Sample files as people and programs write them


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("image_name,tags\nt_1,clear,\nt_0,clear,\n", ["t_1", "t_0"]),
        ("image_name,tags\n t_1 ,clear\n t_0\t,clear\n", ["t_1", "t_0"]),
        ("\ufeffimage_name , tags\r\nt_1,clear\r\nt_0,clear\r\n,\r\n", ["t_1", "t_0"]),
        ("image_name,tags\nt_1.jpg,clear\nt_0.JPG,clear\n", ["t_1.jpg", "t_0.JPG"]),
        ("image_name,tags\nt_1,clear\nimage_name,tags\nt_0,clear\n", ["t_1", "t_0"]),
    ],
)
@pytest.mark.parametrize("pack", [None, "gz", "zip"])
def test_a_sample_is_read_as_every_table_and_gives_its_own_names(tmp_path, content, names, pack):
    path = tmp_path / ("sample.csv" if pack is None else f"sample.csv.{pack}")
    if pack == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("sample_submission_v2.csv", content)
    else:
        path.write_bytes(gzip.compress(content.encode()) if pack else content.encode())
    tiles = {name: [0.9, 0.1, 0.1] if name == "t_0" else [0.1, 0.9, 0.1] for name in ("t_0", "t_1")}
    assert rows(build([of(tiles)], None, str(path))) == dict(
        zip(names, ["haze", "clear"], strict=True)
    )


def test_tiles_in_folders_are_found_by_the_samples_bare_names(tmp_path):
    sample = sample_file(tmp_path, ["test_0", "file_1"])
    tiles = of({"test-jpg/test_0": [0.9, 0.1, 0.1], "more/file_1.jpg": [0.1, 0.9, 0.1]})
    assert rows(build([tiles], None, sample)) == {"test_0": "clear", "file_1": "haze"}


def test_tiles_that_were_not_predicted_get_the_labels_for_missing_ones(tmp_path):
    sample = sample_file(tmp_path, ["a", "broken_2", "b", "broken_10"])
    tiles = of({name: [0.1, 0.9, 0.1] for name in ("a", "b")})
    done = build([tiles], None, sample, ["water", "clear"])
    assert rows(done) == {
        "a": "haze",
        "broken_2": "clear water",
        "b": "haze",
        "broken_10": "clear water",
    }
    line, warning = done.notes()
    assert (
        line
        == 'not predicted, so they get "clear water": 2 of 4 tiles (50.0%): broken_2, broken_10'
    )
    assert "are the predictions of a test folder missing?" in warning
    many = sample_file(tmp_path, ["broken", *(f"t_{i}" for i in range(200))])
    assert (
        len(
            list(
                build(
                    [of({f"t_{i}": [0.1, 0.9, 0.1] for i in range(200)})], None, many, ["clear"]
                ).notes()
            )
        )
        == 1
    )
    assert list(build([tiles], None, sample_file(tmp_path, ["b", "a"]), ["clear"]).notes()) == []


def test_labels_for_missing_tiles_are_classes_and_do_not_hide_other_differences(tmp_path):
    sample = sample_file(tmp_path, ["a", "broken"])
    with pytest.raises(ConfigError, match='"primry", which is no class'):
        build([of({"a": [0.5] * 3})], None, sample, ["primry"])
    with pytest.raises(DataError, match=r"1 not in the sample \(z\)"):
        build([of({"a": [0.5] * 3, "z": [0.5] * 3})], None, sample, ["clear"])
    with pytest.raises(DataError) as error:
        build([of({"a": [0.5] * 3})], None, sample)
    assert "--missing" in error.value.fix
