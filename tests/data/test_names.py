"""Names of tiles: which are safe, which mean the same, and how one that cannot be printed is shown."""

import pytest

from raytrain.data.names import KnownNames, spelling, stem, trimmed, visible, why_unsafe


@pytest.mark.parametrize(
    "name",
    [
        "t_0",
        "tile (0)",
        "a [1]/b + c.jpg",
        "for\u00eat",
        "fore\u0302t/\u6771\u4eac",
        "a..b",
        "x" * 255,
        "b\\c",
        "-x",
        "1:2",
    ],
)
def test_names_of_all_kinds_are_safe(name):
    assert why_unsafe(name) == ""


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "is empty"),
        ("../x", "leads out"),
        ("a/../x", "leads out"),
        ("a\\..\\x", "leads out"),
        ("/x", "leads out"),
        ("a//x", "leads out"),
        ("C:\\x", "leads out"),
        ("c:/x", "leads out"),
        (".x", "hidden"),
        ("a/.x", "hidden"),
        ("x" * 256, "longer than 255"),
        ("\u6771" * 86, "longer than 255"),
        ("x/" * 600 + "x", "over 1024"),
        ("a\nb", "U\\+000A"),
        ("a\u2028b", "U\\+2028"),
        ("f\udcf4ret", "not UTF-8"),
    ],
)
def test_an_unsafe_name_has_its_reason(name, why):
    import re

    assert re.search(why, why_unsafe(name))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("DSC_0.JPG", "DSC_0.jpg"),
        ("a.Tiff", "a.tiff"),
        ("for\u00eat", "fore\u0302t"),
        ("a\\b.jpg", "a/b.jpg"),
        ("./a.jpg", "a.jpg"),
        ("a\u200b.jpg", "a.jpg"),
    ],
)
def test_spellings_of_one_name_are_alike(one, other):
    assert spelling(one) == spelling(other)


@pytest.mark.parametrize(
    ("one", "other"), [("a.jpg", "a.png"), ("a.jpg", "a"), ("A.jpg", "a.jpg"), ("x/a", "a")]
)
def test_names_of_different_files_are_not(one, other):
    assert spelling(one) != spelling(other)


def test_a_stem_has_no_suffix_of_a_picture_in_any_case():
    assert [stem(name) for name in ("a.JPG", "a.tIfF", "a.v2", "a.jpg.png", "jpg")] == [
        "a",
        "a",
        "a.v2",
        "a.jpg",
        "jpg",
    ]


def test_a_known_name_is_found_by_its_spellings_and_without_its_folder():
    known = KnownNames(["t_0", "a/t_1.jpg", "a/t_2", "b/t_2", "a/t_0"])
    assert known.find("t_0.JPG") == ["t_0"] and known.find("a\\t_0") == ["a/t_0"]
    assert known.find("t_1") == ["a/t_1.jpg"] and known.find("./a/t_1.jpeg") == ["a/t_1.jpg"]
    assert known.find("t_2") == [] and known.in_folders("t_2") == ["a/t_2", "b/t_2"]
    assert known.find("c/t_1") == [] and known.find("t_9") == []


def test_two_known_names_that_differ_in_their_suffix_are_both_meant():
    assert KnownNames(["a.jpg", "a.png"]).find("a") == ["a.jpg", "a.png"]


def test_what_cannot_be_seen_is_shown():
    assert visible("\ufefft_0") == "<U+FEFF>t_0" and visible("f\udcf4ret") == "f<0xF4>ret"
    assert visible("a\u200bb\tc\xa0d") == "a<U+200B>b<U+0009>c<U+00A0>d"
    assert visible("fore\u0302t (1), \u6771") == "fore\u0302t (1), \u6771"


def test_white_space_and_invisible_characters_go_at_the_ends_alone():
    assert trimmed("\ufeff \u200b a\u200bb \xa0\u200b") == "a\u200bb"
