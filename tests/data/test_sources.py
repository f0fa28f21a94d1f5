"""Labels: strict reading, quirks of the real file, a sentence with a line for everything else."""

import hashlib

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raytrain.data import sources, splits
from raytrain.errors import DataError

# reference: sha256 of the sorted validation rows of the lesson as little-endian int64.
LESSON_VALID_SHA256 = "cabcefb529d3a2bc05c6e7b25bd3f9be69e54992e4091cfbeef46c0c8d6a3a84"


def read(tmp_path, content, **options):
    path = tmp_path / "labels.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return sources.read_labels(str(path), **options)


def test_the_default_split_is_the_lessons():
    parts = splits.random_parts(40479)
    valid = np.flatnonzero(parts == "valid").astype("<i8")
    assert len(valid) == 8095
    assert hashlib.sha256(valid.tobytes()).hexdigest() == LESSON_VALID_SHA256


def test_quirks_of_the_real_file_are_tidied_not_lost(tmp_path):
    labels = read(tmp_path, "image_name,tags\nt_0,clear primary clear\nt_1,primary blooming agriculture\nt_2,water\n")
    assert labels.classes == ["agriculture", "blooming", "clear", "primary", "water"]
    assert labels.targets.tolist() == [[0, 0, 1, 1, 0], [1, 1, 0, 1, 0], [0, 0, 0, 0, 1]]
    assert labels.notes["rows that repeat a tag"] == 1


def test_names_and_tags_stay_text(tmp_path):
    labels = read(tmp_path, "image_name,tags\r\n0001,NA null\r\nnull,NA\r\n")
    assert labels.table["image_name"].tolist() == ["0001", "null"]
    assert labels.classes == ["NA", "null"]


def test_a_byte_order_mark_and_more_columns_are_fine(tmp_path):
    labels = read(tmp_path, b"\xef\xbb\xbfid,image_name,tags\n7,t_0,clear\n")
    assert labels.table["image_name"].tolist() == ["t_0"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ("image_name,tags\n", "no rows"),
        ("image_name;tags\nt_0;clear\n", "separated by ';'"),
        ("image_name\ttags\nt_0\tclear\n", r"separated by '\\t'"),
        ("image,tags\nt_0,clear\n", 'one column "image_name"'),
        ("Image_Name,tags\nt_0,clear\n", 'Did you mean "Image_Name"'),
        ("image_name,tags,tags\nt_0,clear,x\n", 'one column "tags"'),
        ("image_name,tags\nt_0,clear,primary\n", "line 2 .* has 3 fields"),
        ("image_name,tags\nt_0,clear\nt_1\n", "line 3 .* has 1 fields"),
        ('image_name,tags\nt_0,clear\nt_1,"clear\nt_2,haze\n', "line 3 on"),
        ("<!DOCTYPE html><html></html>", "HTML page"),
        (b"image_name,tags\nt_0,caf\xe9\n", "not UTF-8 .byte 0xe9 at line 2"),
        (b"image_name,tags\nt_0,cl\0ear\n", "NUL character at line 2"),
        ("image_name,tags\nt_0,clear\n".encode("utf-16"), "not UTF-8"),
    ],
)
def test_a_file_that_would_be_misread_is_refused_with_its_line(tmp_path, content, words):
    with pytest.raises(DataError, match=words):
        read(tmp_path, content)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.csv does not exist"):
        sources.read_labels(str(tmp_path / "nowhere.csv"))


def test_unusable_rows_are_named_by_their_problem(tmp_path):
    rows = "../x,clear\nt_0,clear\nt_0,clear\nt_1,clear\nt_1,haze\nt_2,\nt_3,haze\n"
    labels = read(tmp_path, "image_name,tags\n" + rows)
    index, bad = sources.index_table(labels, {f"t_{i}": f"/t_{i}.jpg" for i in range(3)}, np.array(["train"] * 7))
    assert index["image_name"].tolist() == ["t_0"]
    assert [(record["image_name"], record["kind"]) for record in bad] == [
        ("../x", "unsafe-name"), ("t_1", "contradicting-labels"), ("t_1", "contradicting-labels"),
        ("t_2", "no-labels"), ("t_3", "missing"),
    ]  # fmt: skip
    assert "line 8" in bad[-1]["detail"]


def test_other_separators_are_named_by_the_user(tmp_path):
    form = sources.LabelFormat("id", "labels", separator=";", tags_separator=",")
    labels = read(tmp_path, "id;labels\nt_0;bare ground, water\nt_1;water,\n", form=form)
    assert labels.classes == ["bare ground", "water"] and labels.targets.tolist() == [[1, 1], [0, 1]]
    tabs = read(tmp_path, "image_name\ttags\nt_0\tclear primary\n", form=sources.LabelFormat(separator="\t"))
    assert tabs.classes == ["clear", "primary"]
    with pytest.raises(DataError, match="separated by ',', expected ';'"):
        read(tmp_path, "id,labels\nt_0,water\n", form=form)


@pytest.mark.parametrize("tags", [["clear primary", "water"], [["clear", "primary"], ["water"]]])
def test_a_parquet_file_gives_the_labels_of_the_csv(tmp_path, tags):
    path = tmp_path / "labels.parquet"
    pd.DataFrame({"other": [1, 2], "image_name": ["t_0", "t_1"], "tags": tags}).to_parquet(path)
    labels = sources.read_labels(str(path))
    wanted = read(tmp_path, "image_name,tags\nt_0,clear primary\nt_1,water\n")
    assert labels.classes == wanted.classes and labels.targets.tolist() == wanted.targets.tolist()
    assert labels.table["image_name"].tolist() == ["t_0", "t_1"] and labels.table["line"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"image_name": ["a"], "tags": [None]}, "1 empty cells"),
        ({"image_name": [1], "tags": ["x"]}, "of type int64"),
        ({"image_name": [["a"]], "tags": ["x"]}, "of type list"),
        ({"image_name": ["a"], "tag": ["x"]}, 'one column "tags".*Did you mean "tag"'),
        ({"image_name": [], "tags": []}, "type"),
    ],
)
def test_a_parquet_file_that_would_be_misread_is_refused(tmp_path, table, words):
    path = tmp_path / "labels.parquet"
    pd.DataFrame(table).to_parquet(path)
    with pytest.raises(DataError, match=words):
        sources.read_labels(str(path))


def test_a_parquet_file_that_is_none_is_refused(tmp_path):
    path = tmp_path / "labels.parquet"
    path.write_bytes(b"image_name,tags")
    with pytest.raises(DataError, match="is not a Parquet file"):
        sources.read_labels(str(path))


def test_an_unknown_label_names_the_nearest(tmp_path):
    with pytest.raises(DataError, match=r'"primry" on 1 tiles.*Did you mean "primary"'):
        read(tmp_path, "image_name,tags\nt_0,primry\n", classes=["primary", "clear"])


def test_listed_classes_keep_their_order(tmp_path):
    labels = read(tmp_path, "image_name,tags\nt_0,b\n", classes=["c", "b", "a"])
    assert labels.targets.tolist() == [[0, 1, 0]]


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=300), st.text(max_size=300).map(lambda t: ("image_name,tags\n" + t).encode())))
def test_any_bytes_give_rows_or_a_sentence(tmp_path_factory, content):
    try:
        labels = read(tmp_path_factory.mktemp("fuzz"), content)
    except DataError:
        return
    assert len(labels.targets) == len(labels.table) > 0


def test_images_are_found_by_name_and_by_stem(tmp_path):
    for name in ("a.jpg", "b.PNG", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    found = sources.find_images(str(tmp_path))
    assert found["a"] == found["a.jpg"] == str(tmp_path / "a.jpg")
    assert found["b"].endswith("b.PNG") and "notes" not in found


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no pictures"):
        sources.find_images(str(tmp_path))
    with pytest.raises(DataError, match="does not exist"):
        sources.find_images(str(tmp_path / "nowhere"))


def test_one_picture_under_two_names_is_kept_once(tmp_path):
    (tmp_path / "t_0.jpg").write_bytes(b"x")
    labels = read(tmp_path, "image_name,tags\nt_0,a\nt_0.jpg,a\n")
    good, bad = sources.index_table(labels, sources.find_images(str(tmp_path)), np.array(["train", "valid"]))
    assert good["image_name"].tolist() == ["t_0"] and [record["kind"] for record in bad] == ["same-picture"]
