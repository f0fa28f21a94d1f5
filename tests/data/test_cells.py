"""Cells of a tags column: lists as programs write them are read; what is not clear is refused with its line."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytrain.data.cells import Source, tags_of
from raytrain.errors import DataError


def tags(*cells, separator=None, classes=None):
    return tags_of(cells, Source("labels.csv", list(range(2, len(cells) + 2))), separator, classes)


@pytest.mark.parametrize(
    ("cell", "wanted"),
    [
        ("['haze', 'primary']", ("haze", "primary")),  # str(list), as DataFrame.to_csv writes it
        ('["haze", "primary"]', ("haze", "primary")),  # JSON
        ("[haze, primary]", ("haze", "primary")),  # YAML, polars' cast to text
        ("['haze' 'primary']", ("haze", "primary")),  # str(numpy array)
        ("['haze'\n 'primary']", ("haze", "primary")),  # of many items
        ("('haze', 'primary')", ("haze", "primary")),
        ("('haze',)", ("haze",)),
        ("{'haze', 'primary'}", ("haze", "primary")),
        ("[haze primary]", ("haze", "primary")),  # cut as the text without brackets is
        ("  [ 'haze' ,'primary' ]  ", ("haze", "primary")),
        ("['bare ground', \"farmers' field\"]", ("bare ground", "farmers' field")),
        (r"['L\'eau', 'a\\b']", ("L'eau", r"a\b")),
        (r'["for\u00eat"]', ("for\u00eat",)),
        ("['a, b', 'c']", ("a, b", "c")),
        ("[3, 7]", ("3", "7")),
        ("[]", ()),
        ("[ ]", ()),
        ("['']", ()),
    ],
)
def test_a_written_list_is_its_items(cell, wanted):
    assert tags(cell) == [wanted]
    assert tags(cell, "", "[]") == [wanted, (), ()]


def test_the_mark_that_a_user_names_cuts_a_list_without_quotes():
    assert tags("[bare ground;water]", "[water]", separator=";") == [
        ("bare ground", "water"),
        ("water",),
    ]


def test_a_comma_in_one_list_says_how_the_others_are_cut():
    assert tags("[bare ground]", "[water, bare ground]") == [
        ("bare ground",),
        ("water", "bare ground"),
    ]


@pytest.mark.parametrize(
    ("cells", "line"),
    [
        (("['haze']", "primary"), 3),
        (("haze", "primary", "['haze']"), 2),
        (("['haze', primary]",), 2),
        (("['haze', nan]",), 2),
        (("[nan]", "['haze']"), 2),
        (("[None]",), 2),
        (("[null]",), 2),
        (("['haze'", "water"), 2),
        (("water", "'haze' 'primary'"), 3),
        (("array(['haze'], dtype=object)",), 2),
        (("[['haze'], ['water']]",), 2),
        (("{'haze': 1}",), 2),
        (("water]",), 2),
        (('"haze"',), 2),
        (("['haze', '[water]']",), 2),
        (("[\"['a', 'b']\"]",), 2),
        (("['a]', 'b']",), 2),
        (("[‘haze’, ‘water’]",), 2),
        (("water", "“haze primary”"), 3),
        (("[haze primary ... water]",), 2),
        (("[haze|primary]",), 2),
        (("water", "forest (dense trees)"), 3),
        (("[haze;primary]", "[water]"), 2),
    ],
)
def test_what_is_no_clear_list_is_refused_with_its_line(cells, line):
    with pytest.raises(DataError, match=f"line {line} of labels.csv") as error:
        tags(*cells)
    assert error.value.fix


def test_labels_with_balanced_brackets_and_quotes_inside_stay():
    cells = ("forest (mixed), water", "L'eau [deep]")
    assert tags(*cells, separator=",") == [("forest (mixed)", "water"), ("L'eau [deep]",)]
    assert tags("(unknown)", "water") == [("(unknown)",), ("water",)]


def test_parentheses_apostrophes_and_inches_belong_to_labels():
    assert tags("'70s", '5"', "a)", "1) x") == [("'70s",), ('5"',), ("a)",), ("1)", "x")]


def test_a_separator_inside_the_parentheses_of_a_label_is_noticed():
    with pytest.raises(DataError, match=r"one of them would be homes \(houses"):
        tags("homes (houses, huts)", separator=",")


def test_a_separator_that_the_user_names_holds_for_all_lists():
    cells = ("[water;bare ground, rock]", "[water]")
    assert tags(*cells, separator=";") == [("water", "bare ground, rock"), ("water",)]


def test_listed_classes_may_have_any_marks():
    assert tags("[A] [B]", "[A]", classes=["[A]", "[B]"]) == [("[A]", "[B]"), ("[A]",)]
    assert tags("[x]", "'y'", "water", classes=["[x]", "'y'", "water"]) == [
        ("[x]",),
        ("'y'",),
        ("water",),
    ]


def test_lists_of_parquet_are_lists_already_and_their_brackets_are_looked_at():
    assert tags(["bare ground", "a, b"], []) == [("bare ground", "a, b"), ()]
    with pytest.raises(DataError, match=r"would be \['haze'\]"):
        tags(["['haze']"])


# Without marks by which labels that were split in two are noticed: ")" beside "(" is refused.
_CHARACTERS = st.characters(
    codec="utf-8", exclude_categories=["C", "Z"], exclude_characters="[](){}\"'‘’“”„«»"
)
_LABELS = st.lists(st.text(_CHARACTERS, min_size=1, max_size=6), max_size=4)


@given(st.lists(_LABELS, min_size=1, max_size=5).filter(any))
def test_what_python_and_json_write_is_read_back(rows):
    wanted = [tuple(row) for row in rows]
    assert tags(*(json.dumps(row) for row in rows)) == wanted
    assert tags(*(str(row) for row in rows)) == wanted


def test_what_pandas_writes_of_lists_and_arrays_is_read_back(tmp_path):
    rows = [["haze", "primary"], ["water"], []]
    for column in (rows, [np.array(row, dtype=object) for row in rows]):
        pd.DataFrame({"tags": column}).to_csv(tmp_path / "x.csv", index=False)
        cells = pd.read_csv(tmp_path / "x.csv", dtype=str)["tags"].to_list()
        assert tags(*cells) == [("haze", "primary"), ("water",), ()]
