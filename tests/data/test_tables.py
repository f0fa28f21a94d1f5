"""Tables of a user: packed, tidied, in every Arrow type; what could be misread is refused with its line."""

import gzip
import io
import zipfile
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raytrain.data.label_format import KAGGLE_FORMAT, LabelFormat
from raytrain.data.labels import read_labels
from raytrain.data.sources import images_in
from raytrain.data.tile_values import column_of
from raytrain.errors import DataError

GOOD = "image_name,tags\nt_0,clear primary\nt_1,haze\nt_2,clear\n"


@pytest.fixture
def read(tmp_path):
    """Reads the labels in a file of some content."""

    def of(content, name="labels.csv", form=KAGGLE_FORMAT, **options):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_labels(str(path), form, **options)

    return of


def zipped(files):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return sink.getvalue()


def parquet(**columns):
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def same(labels, wanted):
    assert labels.classes == wanted.classes
    assert labels.table["image_name"].tolist() == wanted.table["image_name"].tolist()
    assert labels.targets.tolist() == wanted.targets.tolist()
    assert set(labels.table["problem"]) == {""}


# Compression


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(GOOD.encode()),
        zipped({"train_v2.csv": GOOD}),
        zipped(
            {
                "folder/": "",
                "folder/train_v2.csv": "\ufeff" + GOOD,
                "__MACOSX/._train_v2.csv": "x",
                "folder/Thumbs.db": "x",
                ".DS_Store": "x",
            }
        ),
        gzip.compress(
            parquet(image_name=["t_0", "t_1", "t_2"], tags=["clear primary", "haze", "clear"])
        ),
    ],
)
@pytest.mark.parametrize("name", ["labels.csv", "labels.csv.gz", "train_v2.csv.zip"])
def test_a_packed_table_is_the_table(read, content, name):
    same(read(content, name), read(GOOD, "plain.csv"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (zipped({"a.csv": GOOD, "b.csv": GOOD}), "zip archive of 2 files"),
        (zipped({"__MACOSX/._a.csv": "x"}), "zip archive of 0 files"),
        (zipped({"[Content_Types].xml": "x", "xl/workbook.xml": "x"}), "workbook of Excel"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(512), "workbook of Excel"),
        (gzip.compress(GOOD.encode())[:30], "cannot be unpacked"),
        (zipped({"a.csv": GOOD})[:40], "cannot be unpacked"),
    ],
)
def test_a_packed_file_that_is_no_table_is_named(read, content, words):
    with pytest.raises(DataError, match=words) as error:
        read(content)
    assert error.value.fix


def test_a_zip_with_a_password_is_named(read):
    content = bytearray(zipped({"a.csv": GOOD}))
    for signature, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # the flag bit in both headers
        content[content.index(signature) + at] |= 1
    with pytest.raises(DataError, match="password"):
        read(bytes(content))


def test_a_small_file_that_unpacks_to_much_is_not_unpacked(read):
    with pytest.raises(DataError, match="more than 209,715,200 bytes without compression"):
        read(gzip.compress(bytes(201 * 2**20)))


# Rows and headers


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace("\n", ",\n"),
        GOOD.replace("t_1,haze\n", "t_1,haze,\n").replace("t_2,clear\n", "t_2,clear,,,\n"),
        GOOD + ",\n" * 30,
        GOOD.replace("\n", "\n , \n"),
        "\n\n" + GOOD,
        GOOD.replace("image_name,tags", " image_name , tags "),
        GOOD.replace("image_name,tags", "\ufeff image_name,tags\u200b"),
        GOOD.replace("t_1,", "\u200bt_1\xa0,\xa0"),
        GOOD.replace("\n", "\r"),
        "sep=,\r\n" + GOOD,
        "sep=;\n" + GOOD.replace(",", ";"),
        GOOD.replace("t_2", "image_name,tags\nt_2"),
        GOOD.replace("t_2", " Image_Name, TAGS \nt_2"),
        GOOD.replace("t_2", "\ufeffimage_name,tags\r\nt_2"),
    ],
)
def test_what_cannot_be_misread_is_tidied(read, text):
    same(read(text), read(GOOD, "plain.csv"))


def test_a_header_in_the_middle_is_counted(read):
    assert read(GOOD + GOOD.replace("t_", "u_")).notes["rows that repeat the header, left out"] == 1
    frame = pd.DataFrame({"image_name": ["t_0", "image_name"], "tags": ["clear", "tags"]})
    found = read(parquet(**{name: frame[name].to_list() for name in frame}), "labels.parquet")
    assert found.notes["rows that repeat the header, left out"] == 1 and found.classes == ["clear"]


@pytest.mark.parametrize("row", ["image_name,labels", "image_name,", "IMAGE_NAME,label"])
def test_another_header_in_the_middle_is_refused_with_its_line(read, row):
    with pytest.raises(
        DataError, match=r'line 5 of .* begins with "(?i:image_name)" as a header does'
    ):
        read(GOOD + row + "\nu_0,clear\n")


@pytest.mark.parametrize(
    "row", ["filename,tags", "tags,image_name", "id,TAGS", '\ufeff"image_name","tags"']
)
def test_a_header_with_another_first_column_is_refused_too(read, row):
    with pytest.raises(DataError, match="line 5 of"):
        read(GOOD + row + "\nu_0,clear\n")


def test_the_usual_header_under_another_one_is_refused(read):
    with pytest.raises(DataError, match="line 5 of"):
        read(GOOD.replace("image_name", "id") + GOOD, form=LabelFormat("id"))


def test_a_label_called_as_its_column_is_one_where_the_user_lists_it(read):
    form = LabelFormat("image_name", "cloud")
    text = "image_name,cloud\nt_0,cloud\nt_1,clear\n"
    with pytest.raises(DataError, match="its column's name"):
        read(text, form=form)
    assert read(text, form=form, classes=["cloud", "clear"]).targets.tolist() == [[1, 0], [0, 1]]


def test_columns_of_parquet_and_in_memory_are_found_without_the_space_around_their_names(
    read, tmp_path
):
    columns = {" image_name ": ["t_0", ""], "tags ": ["clear", ""]}
    labels = read(parquet(**columns), "labels.parquet")
    assert labels.table["image_name"].tolist() == ["t_0"], "a row of empty texts is no tile"
    (tmp_path / "t_0.jpg").write_bytes(b"x")
    assert images_in(str(tmp_path)).label_from_table(pd.DataFrame(columns)).table[
        "image_name"
    ].tolist() == ["t_0"]


@pytest.mark.parametrize(
    "cell", [["x", None], ["x", float("nan")], {"x": 1}, b"x y", [["x"]], [b"x"]]
)
def test_a_cell_in_memory_that_is_no_list_of_labels_is_refused(tmp_path, cell):
    (tmp_path / "t_0.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match="line 1 of the table in memory"):
        images_in(str(tmp_path)).label_from_table(
            pd.DataFrame({"image_name": ["t_0"], "tags": [cell]})
        )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"BZh91AY&SY" + bytes(20), "bzip2"),
        (b"\xfd7zXZ\0" + bytes(20), "xz"),
        (b"\x28\xb5\x2f\xfd" + bytes(20), "Zstandard"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(20), "7z"),
        (gzip.compress(gzip.compress(b"x")), "gzip"),
        (
            zipped(
                {"mimetype": "application/vnd.oasis.opendocument.spreadsheet", "content.xml": "x"}
            ),
            "workbook",
        ),
    ],
)
def test_another_compression_is_named(read, content, words):
    with pytest.raises(DataError, match=words) as error:
        read(content)
    assert "UTF-8" not in error.value.what


# Parquet

TEXT = ["clear primary", "haze", "clear"]
LISTS = [["clear", "primary"], ["haze"], ["clear"]]
TEXT_TYPES = {
    "string": pa.array(TEXT),
    "large_string": pa.array(TEXT, pa.large_string()),
    "dictionary": pa.array(TEXT).dictionary_encode(),
    "dictionary of large": pa.array(TEXT, pa.large_string()).dictionary_encode(),
    "string_view": pa.array(TEXT, pa.string_view()),
}
LIST_TYPES = {
    "list": pa.array(LISTS),
    "large_list": pa.array(LISTS, pa.large_list(pa.large_string())),
    "list of dictionary": pa.array(LISTS, pa.list_(pa.dictionary(pa.int32(), pa.string()))),
    "list_view": pa.array(LISTS, pa.list_view(pa.string())),
    "large_list_view": pa.array(LISTS, pa.large_list_view(pa.string())),
    "list of string_view": pa.array(LISTS, pa.list_(pa.string_view())),
}
FIXED = pa.array(
    [["clear", "primary"], ["haze", "haze"], ["clear", "clear"]], pa.list_(pa.string(), 2)
)


@pytest.mark.parametrize("kind", [*TEXT_TYPES, *LIST_TYPES, "fixed size"])
def test_every_arrow_type_of_text_and_lists_of_text_is_read(read, kind):
    tags = {**TEXT_TYPES, **LIST_TYPES, "fixed size": FIXED}[kind]
    try:
        content = parquet(image_name=["t_0", "t_1", "t_2"], tags=tags)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        pytest.skip(f"this pyarrow cannot write {tags.type} to Parquet")
    same(read(content, "labels.parquet"), read(GOOD, "plain.csv"))


def test_an_empty_cell_of_parquet_is_a_tile_without_labels(read):
    for tags in (pa.array([["clear"], None]), pa.array(["clear", None])):
        content = parquet(image_name=["t_0", "t_1"], tags=tags)
        assert read(content, "labels.parquet").table["problem"].tolist() == ["", "no-labels"]
        assert read(content, "labels.parquet", allow_empty=True).targets.tolist() == [[1], [0]]


def test_a_name_that_is_missing_is_refused_and_a_row_without_anything_is_none(read):
    blank = parquet(image_name=["t_0", None], tags=["clear", None])
    assert read(blank, "labels.parquet").table["image_name"].tolist() == ["t_0"]
    with pytest.raises(DataError, match=r'"image_name" .* with 1 empty cells'):
        read(parquet(image_name=["t_0", None], tags=["clear", "haze"]), "labels.parquet")


def test_written_lists_in_parquet_text_are_read(read):
    content = parquet(image_name=["t_0", "t_1", "t_2"], tags=[str(row) for row in LISTS])
    same(read(content, "labels.parquet"), read(GOOD, "plain.csv"))


# One column for each label

ONE_HOT = "IMAGE\\LABEL,water,bare-soil,airplane\nt_0,0,1,1\nt_1,1,0,0\n"


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (ONE_HOT, KAGGLE_FORMAT),
        (ONE_HOT.replace("IMAGE\\LABEL", "image_name"), KAGGLE_FORMAT),
        (ONE_HOT.replace(",0", ",False").replace(",1", ",TRUE"), KAGGLE_FORMAT),
        (ONE_HOT.replace(",0", ", 0.0").replace(",1", ", 1.0 "), KAGGLE_FORMAT),
        (ONE_HOT.replace("\n", ",\n"), KAGGLE_FORMAT),
        (ONE_HOT.replace(",", ";"), LabelFormat(separator=";")),
        ("id,split,water,bare-soil,airplane\nt_0,a,0,1,1\nt_1,b,1,0,0\n", "columns"),
        ("id,weight,water,bare-soil,airplane\nt_0,0,0,1,1\nt_1,1,1,0,0\n", "columns"),
    ],
)
def test_a_table_of_0_and_1_gives_its_columns_as_labels(read, text, form):
    if form == "columns":
        form = LabelFormat("id", label_columns=("water", "bare-soil", "airplane"))
    labels = read(text, form=form)
    assert labels.classes == ["airplane", "bare-soil", "water"] and labels.targets.tolist() == [
        [1, 1, 0],
        [0, 0, 1],
    ]
    assert labels.table["image_name"].tolist() == ["t_0", "t_1"]
    assert "3 columns of 0 and 1" in labels.remarks[0]


@pytest.mark.parametrize("kind", [bool, np.int8, np.int64, np.float32, str])
def test_a_table_of_0_and_1_in_parquet_and_in_memory(read, kind, tmp_path):
    frame = pd.DataFrame({"name": ["t_0", "t_1"], "b": [1, 0], "a": [0, 1], "c": [0, 0]})
    frame = frame.astype({"a": kind, "b": kind, "c": kind})
    frame.to_parquet(tmp_path / "x.parquet")
    labels = read((tmp_path / "x.parquet").read_bytes(), "labels.parquet", allow_empty=True)
    assert labels.classes == ["a", "b", "c"] and labels.targets.tolist() == [[0, 1, 0], [1, 0, 0]]
    for name in ("t_0", "t_1"):
        (tmp_path / f"{name}.jpg").write_bytes(b"x")
    tiles = images_in(str(tmp_path)).label_from_table(frame)
    assert np.stack(tiles.table["target"]).tolist() == labels.targets.tolist()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (ONE_HOT.replace("t_1,1", "t_1,2"), 'line 3 has "2" in the column "water"'),
        (ONE_HOT.replace("t_1,1", "t_1,"), 'line 3 has "" in the column "water"'),
        (ONE_HOT.replace(",0", ",-1"), 'line 2 has "-1" in the column "water"'),
        (
            ONE_HOT.replace(",1", ",yes").replace(",0", ",no"),
            'line 2 has "no" in the column "water"',
        ),
        (
            "image_name,label,is_valid,is_test\nt_0,cat,0,1\n",
            'line 2 has "cat" in the column "label"',
        ),
        ("image_name,water\nt_0,1\n", 'one column "tags"'),
        ("image_name,water,road\nt_0,wet,1\n", 'one column "tags"'),
    ],
)
def test_a_table_that_may_be_another_is_refused_with_its_line(read, text, words):
    with pytest.raises(DataError, match=words) as error:
        read(text)
    assert "--tags-column" in error.value.fix and "--label-columns" in error.value.fix


def test_a_column_that_the_user_names_must_hold_0_and_1(read):
    with pytest.raises(DataError, match=r'line 3 .* has "2" in the column "water"'):
        read(
            ONE_HOT.replace("t_1,1", "t_1,2"),
            form=LabelFormat("IMAGE\\LABEL", label_columns=("water",)),
        )


@pytest.mark.parametrize("other", ["Water", "wa\u200bter"])
def test_two_columns_of_one_label_are_refused(read, other):
    with pytest.raises(DataError, match="which are one label"):
        read(ONE_HOT.replace("bare-soil", other))


def test_pandas_row_numbers_are_no_label_and_unseen_characters_no_part_of_one(read):
    text = (
        ONE_HOT.replace("IMAGE", "Unnamed: 0,IMAGE").replace("t_0", "0,t_0").replace("t_1", "1,t_1")
    )
    assert read(text).classes == ["airplane", "bare-soil", "water"]
    assert read(ONE_HOT.replace("bare", "\u200bbare\u200b")).classes == [
        "airplane",
        "bare-soil",
        "water",
    ]


@pytest.mark.parametrize(
    ("values", "good"),
    [
        (pa.array([Decimal("1"), Decimal("0")]), True),
        (pa.array([Decimal("1.00"), Decimal("0.00")]), True),
        (pa.array([0.9999999, 0.0]), False),
        (pa.array([1.0, None]), False),
    ],
)
def test_numbers_of_parquet_are_0_and_1_or_not(read, values, good):
    content = parquet(image_name=["t_0", "t_1"], a=values, b=pa.array([0, 1]), c=pa.array([1, 0]))
    if good:
        assert read(content, "labels.parquet").targets.tolist() == [[1, 0, 1], [0, 1, 0]]
        return
    with pytest.raises(DataError, match='in the column "a"'):
        read(content, "labels.parquet")


@pytest.mark.parametrize(
    "cells", [("0", "1", "1"), ("True", "False", "True"), ("1", "1", "1"), ("0.0", "1.0", "0.0")]
)
def test_a_tags_column_of_0_and_1_has_these_classes_and_says_so(read, cells):
    text = "image_name,tags,other\n" + "".join(f"t_{i},{cell},0\n" for i, cell in enumerate(cells))
    labels = read(text)
    assert labels.classes == sorted(set(cells)) and "--label-columns" in labels.remarks[0]
    assert read(GOOD).remarks == ()


def test_the_form_of_a_plain_table_stands_in_the_manifest_as_it_did():
    assert KAGGLE_FORMAT.content() == {
        "name_column": "image_name",
        "tags_column": "tags",
        "separator": ",",
        "tags_separator": None,
    }
    assert LabelFormat(label_columns=("a", "b"), join_rows=True).content().keys() >= {
        "label_columns",
        "join_rows",
    }


# Rows of one tile

LONG = "image_name,tags\nt_0,haze\nt_1,water\nt_0,primary\nt_0.jpg,haze\nt_2,\n"


def test_rows_of_one_tile_are_joined_on_request(read):
    labels = read(LONG, form=LabelFormat(join_rows=True))
    assert labels.table["image_name"].tolist() == ["t_0", "t_1", "t_2"] and labels.classes == [
        "haze",
        "primary",
        "water",
    ]
    assert labels.targets.tolist() == [[1, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert labels.table["problem"].tolist() == ["", "", "no-labels"]
    assert labels.notes["rows joined to another row of their tile"] == 2


def test_of_joined_rows_a_cell_is_one_label_unless_a_separator_is_given(read):
    text = 'image_name,tags\nt_0,bare ground\nt_0,"houses, huts"\n'
    assert read(text, form=LabelFormat(join_rows=True)).classes == ["bare ground", "houses, huts"]
    assert read(text, form=LabelFormat(join_rows=True, tags_separator=",")).classes == [
        "bare ground",
        "houses",
        "huts",
    ]


def test_a_cell_that_is_a_listed_class_is_one_label(read):
    text = 'image_name,tags\nt_0,bare ground\nt_1,"houses, huts"\nt_2,water\n'
    labels = read(text, classes=["water", "bare ground", "houses, huts", "road"])
    assert labels.targets.tolist() == [
        [0, 1, 0, 0],
        [0, 0, 1, 0],
        [1, 0, 0, 0],
    ] and labels.remarks == ("no tile has road",)
    assert read("image_name,tags\nt_0,a b\n", classes=["a", "b", "a b"]).targets.tolist() == [
        [1, 1, 0]
    ]


def test_rows_of_one_tile_are_named_for_what_they_are(read):
    labels = read(LONG)
    assert "1 tiles have several rows with one label each, 2 rows" in labels.remarks[0]
    assert "--join-rows" in labels.remarks[0]
    assert read("image_name,tags\nt_0,haze water\nt_0,primary\n").remarks == ()


# Spelling


def test_one_label_in_two_unicode_forms_is_one_label_and_counted(read):
    text = "image_name,tags\nt_0,for\u00eat\nt_1,fore\u0302t\nt_2,for\u00eat\n"
    labels = read(text)
    assert (
        labels.classes == ["for\u00eat"]
        and labels.notes["labels written in another Unicode form"] == 1
    )
    assert labels.notes["labels written in another case"] == 0
    listed = read(text, classes=["fore\u0302t"])
    assert listed.classes == ["fore\u0302t"] and listed.targets.tolist() == [[1]] * 3
    alone = read("image_name,tags\nt_0,fore\u0302t\n")
    assert alone.classes == ["fore\u0302t"], "one form alone stays as it is written"


@pytest.mark.parametrize("mark", ["\u200b", "\ufeff", "\u2060", "\u00ad", "\u200e"])
def test_characters_that_nobody_sees_make_no_class_and_are_counted(read, mark):
    labels = read(f"image_name,tags\nt_0,wa{mark}ter{mark}\nt_1,water\nt_2,{mark}\n")
    assert labels.classes == ["water"] and labels.table["problem"].tolist() == ["", "", "no-labels"]
    assert labels.notes["labels with invisible characters, now without"] == 1


def test_an_unknown_label_shows_what_cannot_be_seen(read):
    with pytest.raises(DataError, match="wa<U\\+200D>ter"):
        read("image_name,tags\nt_0,wa\u200dter\n", classes=["water"])


# Values of tiles


@pytest.fixture
def table(tmp_path):
    """Writes a table and gives its path."""

    def of(content, name="table.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return of


def test_a_value_is_found_under_the_name_column_of_the_labels_or_the_usual_one(table):
    names = ["t_0", "a/t_1"]
    assert column_of(
        names, table("id,scene\nt_0,x\nt_1.JPG,y\n"), "scene", ("id", "image_name")
    ) == ["x", "y"]
    assert column_of(
        names, table("image_name,scene\nt_0,x\na/t_1,y\n"), "scene", ("id", "image_name")
    ) == ["x", "y"]
    assert column_of(names, table("id;scene\nt_0;x\nt_1;y\n"), "scene", ("id",), ";") == ["x", "y"]
    assert column_of(names, table("id,scene\nt_0,x\nt_1,y\n"), "scene", ("id",), ";") == ["x", "y"]
    assert column_of(
        names, table(gzip.compress(b"image_name,scene\nt_0,x\nt_1,y\n"), "t.csv.gz"), "scene"
    ) == [
        "x",
        "y",
    ]
    with pytest.raises(DataError, match='must have one column "id"'):
        column_of(names, table("name,scene\nt_0,x\n"), "scene", ("id", "image_name"))


@pytest.mark.parametrize(
    "values",
    [pa.array([3, 12]), pa.array([True, False]), pa.array(["3", "12"]).dictionary_encode()],
)
def test_a_value_of_parquet_may_be_a_number(table, values):
    found = column_of(
        ["t_0", "t_1"], table(parquet(image_name=["t_0", "t_1"], fold=values), "t.parquet"), "fold"
    )
    assert found == [str(value) for value in values.to_pylist()]
    with pytest.raises(DataError, match="of type double"):
        column_of(["t_0"], table(parquet(image_name=["t_0"], fold=[0.5]), "t.parquet"), "fold")


def test_a_bare_name_that_may_be_two_tiles_gives_neither_a_value(table):
    with pytest.raises(DataError, match="2 of 2 tiles have no row"):
        column_of(["a/t", "b/t"], table("image_name,scene\nt,x\n"), "scene")
