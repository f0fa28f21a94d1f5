"""Labels: strict reading, quirks of the real file, a sentence with a line for everything else."""

import hashlib

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raytrain.data import labels as module
from raytrain.data import splits
from raytrain.data.label_format import LabelFormat
from raytrain.errors import DataError

# reference: sha256 of the sorted validation rows of the lesson as little-endian int64.
LESSON_VALID_SHA256 = "cabcefb529d3a2bc05c6e7b25bd3f9be69e54992e4091cfbeef46c0c8d6a3a84"


def read(tmp_path, content, **options):
    path = tmp_path / "labels.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return module.read_labels(str(path), **options)


def test_the_default_split_is_the_lessons():
    parts = splits.random_parts(40479)
    valid = np.flatnonzero(parts == "valid").astype("<i8")
    assert len(valid) == 8095
    assert hashlib.sha256(valid.tobytes()).hexdigest() == LESSON_VALID_SHA256


def test_quirks_of_the_real_file_are_tidied_not_lost(tmp_path):
    labels = read(
        tmp_path,
        "image_name,tags\nt_0,clear primary clear\nt_1,primary blooming agriculture\nt_2,water\n",
    )
    assert labels.classes == ["agriculture", "blooming", "clear", "primary", "water"]
    assert labels.targets.tolist() == [[0, 0, 1, 1, 0], [1, 1, 0, 1, 0], [0, 0, 0, 0, 1]]
    assert labels.notes["rows that repeat a label"] == 1


def test_names_and_tags_stay_text(tmp_path):
    labels = read(tmp_path, "image_name,tags\r\n0001,NA null\r\nnull,NA\r\n")
    assert labels.table["image_name"].tolist() == ["0001", "null"]
    assert labels.classes == ["NA", "null"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.csv does not exist"):
        module.read_labels(str(tmp_path / "nowhere.csv"))


def test_other_separators_are_named_by_the_user(tmp_path):
    form = LabelFormat("id", "labels", separator=";", tags_separator=",")
    labels = read(tmp_path, "id;labels\nt_0;bare ground, water\nt_1;water,\n", form=form)
    assert labels.classes == ["bare ground", "water"] and labels.targets.tolist() == [
        [1, 1],
        [0, 1],
    ]
    tabs = read(
        tmp_path, "image_name\ttags\nt_0\tclear primary\n", form=LabelFormat(separator="\t")
    )
    assert tabs.classes == ["clear", "primary"]
    with pytest.raises(DataError, match="separated by ',', expected ';'"):
        read(tmp_path, "id,labels\nt_0,water\n", form=form)


@pytest.mark.parametrize("tags", [["clear primary", "water"], [["clear", "primary"], ["water"]]])
def test_a_parquet_file_gives_the_labels_of_the_csv(tmp_path, tags):
    path = tmp_path / "labels.parquet"
    pd.DataFrame({"other": [1, 2], "image_name": ["t_0", "t_1"], "tags": tags}).to_parquet(path)
    labels = module.read_labels(str(path))
    wanted = read(tmp_path, "image_name,tags\nt_0,clear primary\nt_1,water\n")
    assert labels.classes == wanted.classes and labels.targets.tolist() == wanted.targets.tolist()
    assert labels.table["image_name"].tolist() == ["t_0", "t_1"] and labels.table[
        "line"
    ].tolist() == [1, 2]


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
        module.read_labels(str(path))


def test_a_parquet_file_that_is_none_is_refused(tmp_path):
    path = tmp_path / "labels.parquet"
    path.write_bytes(b"image_name,tags")
    with pytest.raises(DataError, match="is not a Parquet file"):
        module.read_labels(str(path))


def test_an_unknown_label_names_the_nearest(tmp_path):
    with pytest.raises(DataError, match=r'"primry" on 1 tiles.*Did you mean "primary"'):
        read(tmp_path, "image_name,tags\nt_0,primry\n", classes=["primary", "clear"])


@pytest.mark.parametrize("classes", [["a", "b", "a"], ["a", ""], [" a"]])
def test_a_list_of_classes_has_different_clean_names(tmp_path, classes):
    with pytest.raises(DataError, match="the list of classes has"):
        read(tmp_path, "image_name,tags\nt_0,a\n", classes=classes)


def test_a_quote_that_the_header_opens_is_named_by_its_line(tmp_path):
    with pytest.raises(DataError, match="from line 1 on"):
        read(tmp_path, '"image_name,tags\nt_0,clear\n')


@pytest.mark.parametrize(
    "tags", [pa.array([["a", None]]), pa.array([b"\xff\xfe"]).cast(pa.string(), safe=False)]
)
def test_a_damaged_cell_of_a_parquet_file_is_refused(tmp_path, tags):
    path = tmp_path / "labels.parquet"
    pq.write_table(pa.table({"image_name": ["t_0"], "tags": tags}), path)
    with pytest.raises(DataError, match=r"empty cells|UTF8|not a Parquet"):
        module.read_labels(str(path))


def test_listed_classes_keep_their_order(tmp_path):
    labels = read(tmp_path, "image_name,tags\nt_0,b\n", classes=["c", "b", "a"])
    assert labels.targets.tolist() == [[0, 1, 0]]


GOOD = "image_name,tags\nt_0,clear primary\nt_1,haze\n"
# What a person or a program does to a label file, and what comes of it: the words of the error, or the classes read.
HAND_MADE = {
    "byte order mark": (b"\xef\xbb\xbf" + GOOD.encode(), ["clear", "haze", "primary"]),
    "CRLF": (GOOD.replace("\n", "\r\n").encode(), ["clear", "haze", "primary"]),
    "no newline at the end": (GOOD.rstrip().encode(), ["clear", "haze", "primary"]),
    "blank lines": (GOOD.replace("\n", "\n\n").encode(), ["clear", "haze", "primary"]),
    "another column first": (b"id,image_name,tags\n7,t_0,clear\n", ["clear"]),
    "quoted fields": (b'image_name,tags\n"t_0","clear primary"\n', ["clear", "primary"]),
    "doubled, leading and trailing spaces": (
        b"image_name,tags\n t_0 ,  clear   primary \n",
        ["clear", "primary"],
    ),
    "another case": (b"image_name,tags\nt_0,clear\nt_1,Clear\nt_2,clear\n", ["clear"]),
    "the labels NA and null": (b"image_name,tags\nt_0,NA null nan\n", ["NA", "nan", "null"]),
    "a name of digits": (b"image_name,tags\n0001,clear\n", ["clear"]),
    "UTF-16": (GOOD.encode("utf-16"), "not UTF-8 .byte 0xff at line 1"),
    "Latin-1": (b"image_name,tags\nt_0,caf\xe9\n", "not UTF-8 .byte 0xe9 at line 2"),
    "semicolons": (GOOD.replace(",", ";").encode(), "line 1 .* separated by ';', expected ','"),
    "tabs": (GOOD.replace(",", "\t").encode(), r"line 1 .* separated by '\\t'"),
    "a web page": (b"<!DOCTYPE html><title>Sign in</title>", "HTML page, not a table, from line 1"),
    "XML": (b"<?xml version='1.0'?><rows/>", "line 1 is .*xml"),
    "JSON": (b'[{"image_name": "t_0", "tags": "clear"}]', 'one column "image_name"'),
    "a zip archive": (b"PK\x03\x04\x14\x00" + bytes(range(200)), "line 1|UTF-8"),
    "another header": (
        b"image,tags\nt_0,clear\n",
        'one column "image_name"; its header in line 1 is image,tags',
    ),
    "a header in another case": (b"Image_Name,tags\nt_0,clear\n", 'Did you mean "Image_Name"'),
    "a header twice": (b"image_name,tags,tags\nt_0,clear,x\n", 'one column "tags"'),
    "no header": (b"t_0,clear\nt_1,haze\n", "its header in line 1 is t_0,clear"),
    "a comma between labels": (b"image_name,tags\nt_0,clear,primary\n", "line 2 .* has 3 fields"),
    "a comma within quotes": (
        b'image_name,tags\nt_0,"clear,primary"\n',
        "line 2 .* with ',' inside",
    ),
    "a short row": (b"image_name,tags\nt_0,clear\nt_1\n", "line 3 .* has 1 fields"),
    "NUL": (b"image_name,tags\nt_0,cl\0ear\n", "NUL character at line 2"),
    "an open quote": (b'image_name,tags\nt_0,clear\nt_1,"clear\nt_2,haze\n', "from line 3 on"),
    "a quote inside a field": (b'image_name,tags\nt_0,clear\nt_1,"clear"x\n', "from line 3 on"),
    "no bytes": (b"", "is empty, it has no line 1"),
    "a header alone": (b"image_name,tags\n", "header in line 1 but no rows"),
}


@pytest.mark.parametrize("case", HAND_MADE)
def test_a_hand_made_label_file_gives_rows_or_a_sentence_with_a_line(tmp_path, case):
    content, wanted = HAND_MADE[case]
    if isinstance(wanted, list):
        labels = read(tmp_path, content)
        assert labels.classes == wanted and set(labels.table["problem"]) == {""}
        return
    with pytest.raises(DataError, match=wanted) as caught:
        read(tmp_path, content)
    assert "line" in caught.value.what and caught.value.fix


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../../x", "unsafe-name"),
        ("/etc/x", "unsafe-name"),
        ("C:\\x", "unsafe-name"),
        ("a/../x", "unsafe-name"),
        (".hidden", "unsafe-name"),
        ("a" * 256, "unsafe-name"),
        ("", "unsafe-name"),
        ("a\\..\\x", "unsafe-name"),
        ("bell\x07", "unsafe-name"),
        ("train/3/7463.png", ""),
        ("a" * 255, ""),
        ("caf\u00e9", ""),
        ("tile (0)", ""),
        ("a [1]/b + c", ""),
    ],
)
def test_names_stay_inside_the_folder(tmp_path, name, kind):
    assert read(tmp_path, f"image_name,tags\n{name},clear\n").table["problem"].tolist() == [kind]


def test_tidied_labels_are_counted_and_listed_classes_give_the_spelling(tmp_path):
    labels = read(
        tmp_path, "image_name,tags\nt_0,Clear clear\nt_1,PRIMARY\n", classes=["primary", "Clear"]
    )
    assert labels.targets.tolist() == [[0, 1], [1, 0]]
    assert (
        labels.notes["labels written in another case"] == 2
        and labels.notes["rows that repeat a label"] == 1
    )


def test_tiles_without_labels_are_kept_on_request(tmp_path):
    content = "image_name,tags\nt_0,clear\nt_1,\n"
    assert read(tmp_path, content).table["problem"].tolist() == ["", "no-labels"]
    kept = read(tmp_path, content, allow_empty=True)
    assert kept.table["problem"].tolist() == ["", ""] and kept.targets.tolist() == [[1], [0]]


def test_a_file_of_5_gb_is_refused_unread(tmp_path):
    path = tmp_path / "labels.csv"
    with path.open("wb") as file:
        file.truncate(5 * 2**30)
    with pytest.raises(DataError, match="has 5,368,709,120 bytes"):
        module.read_labels(str(path))


def _rows_or_a_sentence(folder, content):
    try:
        labels = read(folder, content)
    except DataError as error:
        assert "line" in error.what, error.what
    else:
        assert len(labels.targets) == len(labels.table) > 0


_CELLS = st.text(st.sampled_from('ab ,;"\n\r\t\0\u00e9|/.<'), max_size=12)


@settings(max_examples=1000, deadline=None)
@given(
    st.lists(st.tuples(_CELLS, _CELLS), max_size=6),
    st.sampled_from([",", ";", "\t"]),
    st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_a_thousand_generated_tables_give_rows_or_a_sentence(tmp_path_factory, rows, mark, end):
    lines = [mark.join(("image_name", "tags")), *(mark.join(row) for row in rows)]
    _rows_or_a_sentence(tmp_path_factory.getbasetemp(), end.join(lines))


@settings(max_examples=500, deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.binary(max_size=4), st.integers(0, 3))
def test_five_hundred_damaged_files_give_rows_or_a_sentence(tmp_path_factory, path, junk, cut):
    content = GOOD.encode()
    _rows_or_a_sentence(
        tmp_path_factory.getbasetemp(), content[:path] + junk + content[path + cut :]
    )


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=300))
def test_five_hundred_random_files_give_rows_or_a_sentence(tmp_path_factory, content):
    _rows_or_a_sentence(tmp_path_factory.getbasetemp(), content)
