"""The decisions one by one: where the pictures are, how labels appear, what validates."""

import numpy as np
import pandas as pd
import pytest
from handmade import DIGITS, write_files

from raytrain.data.label_format import LabelFormat
from raytrain.data.sources import images_at, images_in
from raytrain.errors import DataError


@pytest.fixture
def digits(tmp_path):
    """Pictures in train/3, train/7, valid/3, valid/7, as fastai's mnist_tiny."""
    return write_files(tmp_path, *DIGITS)


def test_pictures_are_found_with_and_without_suffix(tmp_path):
    found = images_in(
        write_files(tmp_path, "a.jpg", "b.PNG", "notes.txt", "._a.jpg", "below/c.jpg")
    )
    assert found.table["image_name"].tolist() == ["a", "b"] and found.table["file"].tolist() == [
        "a.jpg",
        "b.PNG",
    ]
    assert found.table["path"].iloc[0] == str(tmp_path / "a.jpg")
    assert str(found) == f"2 pictures in {tmp_path.name}: a, b"


def test_rules_say_which_folders_and_suffixes_count(digits, tmp_path):
    write_files(tmp_path, "test/9.png", "train/3/9.jpg", "__MACOSX/train/3/0.png")
    assert len(images_in(digits, subfolders=True).table) == 14
    assert len(images_in(digits, subfolders=True, suffixes=[".png"]).table) == 13
    assert len(images_in(digits, folders=["train"]).table) == 7
    assert images_in(digits, folders=["valid"]).table["image_name"].iloc[0] == "valid/3/0"


def test_pictures_of_one_stem_keep_their_suffix(tmp_path):
    assert images_in(write_files(tmp_path, "a.jpg", "a.png", "b.png")).table[
        "image_name"
    ].tolist() == [
        "a.jpg",
        "a.png",
        "b",
    ]


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no pictures"):
        images_in(str(tmp_path))
    with pytest.raises(DataError, match="does not exist"):
        images_in(str(tmp_path / "nowhere"))


def test_a_list_of_places_is_a_source(tmp_path):
    found = images_at(["s3://bucket/far/b.jpg", str(tmp_path / "a.jpg")])
    assert (
        found.table["image_name"].tolist() == ["a", "b"]
        and found.table["path"].iloc[1] == "s3://bucket/far/b.jpg"
    )
    with pytest.raises(DataError, match="two of the listed pictures are named a"):
        images_at(["/x/a.jpg", "/y/a.jpg"])
    with pytest.raises(DataError, match="no picture is listed"):
        images_at([])


def test_labels_from_a_table_in_memory(tmp_path):
    found = images_in(write_files(tmp_path, "a.jpg", "b.jpg", "c.jpg"))
    table = pd.DataFrame({"id": ["b", "a.jpg", "d"], "words": [["y", "x"], ["x"], ["y"]]})
    tiles = found.label_from_table(table, LabelFormat("id", "words"))
    assert tiles.classes == ["x", "y"] and np.stack(tiles.table["target"]).tolist() == [
        [1, 1],
        [1, 0],
        [0, 1],
    ]
    assert tiles.table["problem"].tolist() == ["", "", "missing"] and tiles.unlisted == [
        str(tmp_path / "c.jpg")
    ]
    assert (
        str(tiles) == "2 tiles, 2 classes, 3 labels; 1 missing; 1 pictures without labels left out"
    )
    with pytest.raises(DataError, match=r'must have one column "image_name".*id,words'):
        found.label_from_table(table)


def test_labels_from_folders_and_from_a_function_agree(digits):
    found = images_in(digits, subfolders=True)
    by_folder = found.label_from_folders()
    by_function = found.label_with(lambda name: name.split("/")[1])
    assert by_folder.classes == ["3", "7"]
    pd.testing.assert_frame_equal(
        by_folder.table.drop(columns="target"), by_function.table.drop(columns="target")
    )
    assert np.array_equal(
        np.stack(by_folder.table["target"]), np.stack(by_function.table["target"])
    )
    several = found.label_with(lambda name: name.split("/")[:2])
    assert several.classes == ["3", "7", "train", "valid"]
    with pytest.raises(DataError, match='the label "7" on 6 tiles'):
        found.label_from_folders(classes=["3"])


def test_pictures_without_a_folder_have_no_folder_label(tmp_path):
    with pytest.raises(DataError, match="1 pictures lie in no sub-folder"):
        images_in(write_files(tmp_path, "a.jpg", "x/b.jpg"), subfolders=True).label_from_folders()


def test_labels_that_name_no_picture_at_all_are_refused(tmp_path):
    found = images_in(write_files(tmp_path / "images", "a.jpg"))
    (tmp_path / "labels.csv").write_text("image_name,tags\nx/a,clear\n")
    with pytest.raises(DataError, match=r"none of the 1 tiles .* 1 pictures in images: a"):
        found.label_from_file(str(tmp_path / "labels.csv"))


def test_unusable_rows_are_named_by_their_problem(tmp_path):
    rows = "../x,clear\nt_0,clear\nt_0,clear\nt_1,clear\nt_1,haze\nt_2,\nt_3,haze\n"
    (tmp_path / "labels.csv").write_text("image_name,tags\n" + rows)
    found = images_in(write_files(tmp_path / "images", "t_0.jpg", "t_1.jpg", "t_2.jpg"))
    divided = found.label_from_file(str(tmp_path / "labels.csv")).split()
    assert divided.usable()["image_name"].tolist() == ["t_0"]
    assert [
        (record["image_name"], record["kind"], record["row"]) for record in divided.unusable()
    ] == [
        ("../x", "unsafe-name", 2),
        ("t_1", "contradicting-labels", 5),
        ("t_1", "contradicting-labels", 6),
        ("t_2", "no-labels", 7),
        ("t_3", "missing", 8),
    ]


def test_contradicting_rows_of_one_picture_are_both_left_out(tmp_path):
    found = images_in(write_files(tmp_path, "t_0.jpg"))
    tiles = found.label_from_table(
        pd.DataFrame({"image_name": ["t_0", "t_0.jpg"], "tags": ["a", "b"]})
    )
    assert tiles.table["problem"].tolist() == ["contradicting-labels"] * 2


def test_blank_cells_are_tiles_without_labels_and_listed_names_may_have_spaces(tmp_path):
    found = images_in(
        write_files(tmp_path, "Annual Crop/a (1).jpg", "For\u00eat/b.jpg"), subfolders=True
    )
    tiles = found.label_from_folders()
    assert tiles.classes == ["Annual Crop", "For\u00eat"] and set(tiles.table["problem"]) == {""}
    other = images_in(write_files(tmp_path / "x", "a.jpg", "b.jpg"))
    table = pd.DataFrame({"image_name": ["a", "b"], "tags": ["x", float("nan")]})
    assert other.label_from_table(table).table["problem"].tolist() == ["", "no-labels"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"by": "stratify"}, 'Did you mean "stratified"'),
        ({"by": "column", "valid_values": ["x"]}, "has 0 values for 12 tiles"),
        ({"by": "group", "groups": {"train/3/0": "a"}}, "no group for 11 tiles"),
        (
            {"by": "list", "valid_values": ["train/3/0"], "test_values": ["train/3/0.png"]},
            "to validate and to test",
        ),
    ],
)
def test_a_division_that_cannot_be_made_is_refused(digits, options, words):
    tiles = images_in(digits, subfolders=True).label_from_folders()
    with pytest.raises(DataError, match=words):
        tiles.split(**options)


def test_listed_names_that_are_no_tiles_are_said(digits):
    tiles = images_in(digits, subfolders=True).label_from_folders()
    divided = tiles.split(by="list", valid_values=["train/3/0", "nowhere"])
    assert str(divided) == "train 11, valid 1; 1 listed names are no tiles: nowhere"


def test_one_picture_under_two_names_is_kept_once(tmp_path):
    found = images_in(write_files(tmp_path, "t_0.jpg"))
    tiles = found.label_from_table(
        pd.DataFrame({"image_name": ["t_0", "t_0.jpg"], "tags": ["a", "a"]})
    )
    assert tiles.table["problem"].tolist() == ["", "same-picture"]


def test_each_rule_divides_and_labels_of_validation_alone_are_said(digits):
    tiles = images_in(digits, subfolders=True).label_with(lambda name: name.split("/")[:2])
    by_folder = tiles.split(by="folder", valid_values=["valid"])
    assert str(by_folder) == "train 6, valid 6; only in validation, so never learned: valid"
    assert str(
        tiles.split(by="list", valid_values=["train/3/0.png"], test_values=["train/3/1"])
    ) == ("test 1, train 10, valid 1")
    by_group = tiles.split(by="group", groups=lambda name: name.split("/")[1], valid=0.5)
    assert (
        by_group.table.groupby(by_group.table["image_name"].str.split("/").str[1])["part"]
        .nunique()
        .max()
        == 1
    )
    with pytest.raises(DataError, match=r'no tile has the folder "vald".*Did you mean "valid"'):
        tiles.split(by="folder", valid_values=["vald"])


def test_the_source_tells_two_divisions_apart(digits):
    tiles = images_in(digits, subfolders=True).label_from_folders()
    assert tiles.split(seed=1).source != tiles.split(seed=2).source
    assert (
        tiles.split().source
        == images_in(digits, subfolders=True).label_from_folders().split().source
    )


# How labels find their pictures


def named(folder, images, names):
    """The tiles of label rows with these names, each with another label."""
    found = images_in(write_files(folder, *images), subfolders=True)
    return found.label_from_table(
        pd.DataFrame({"image_name": names, "tags": [f"label{i}" for i in range(len(names))]})
    )


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("DSC_0.JPG", "DSC_0.jpg"),
        ("DSC_0.jpg", "DSC_0.JPG"),
        ("a.TIF", "a.tif"),
        ("fore\u0302t.jpg", "for\u00eat"),
        ("for\u00eat.jpg", "fore\u0302t.JPG"),
        ("x/a.jpg", "x\\a.jpg"),
        ("x/a.jpg", "./x/a"),
        ("tile (1) [b].jpg", "tile (1) [b]"),
    ],
)
def test_a_name_in_another_spelling_finds_its_picture(tmp_path, image, name):
    tiles = named(tmp_path, [image, "other.jpg"], [name])
    assert tiles.table["problem"].tolist() == [""] and tiles.table["path"].tolist() == [
        str(tmp_path / image)
    ]


def test_a_bare_name_finds_its_only_picture_and_gets_its_folder(tmp_path):
    images = [
        "airplane/airplane01.jpg",
        "beach/beach00.jpg",
        "beach/both.jpg",
        "airplane/both.jpg",
        "top.jpg",
        "beach/top.jpg",
    ]
    tiles = named(tmp_path, images, ["airplane01", "beach00.JPG", "both", "top", "nowhere"])
    assert tiles.table["image_name"].tolist() == [
        "airplane/airplane01",
        "beach/beach00.jpg",
        "both",
        "top",
        "nowhere",
    ]
    assert tiles.table["problem"].tolist() == ["", "", "ambiguous-name", "", "missing"]
    details = [record["detail"] for record in tiles.split(valid=0.5).unusable()]
    assert "it may be airplane/both or beach/both" in details[0]


def test_a_name_that_two_files_have_but_for_case_of_the_suffix_is_ambiguous(tmp_path):
    tiles = named(tmp_path, ["a.JPG", "a.jpg"], ["a.Jpg", "a.jpg"])
    assert tiles.table["problem"].tolist() == ["ambiguous-name", ""]


def test_names_with_backslashes_lie_in_their_folders(tmp_path):
    images = [f"{part}/{name}.jpg" for part in ("train", "valid") for name in "ab"]
    tiles = named(tmp_path, images, ["train\\a", ".\\train\\b", "valid\\a.jpg", "valid/b"])
    assert tiles.table["image_name"].tolist() == ["train/a", "train/b", "valid/a.jpg", "valid/b"]
    assert tiles.split(by="folder", valid_values=["valid"]).table["part"].tolist() == [
        "train",
        "train",
        "valid",
        "valid",
    ]


def test_bare_names_go_with_folders_lists_and_tables(tmp_path):
    images = [f"{part}/t_{part}{i}.jpg" for part in ("train", "valid") for i in range(3)]
    tiles = named(
        tmp_path, images, [f"t_{part}{i}" for part in ("train", "valid") for i in range(3)]
    )
    assert str(tiles.split(by="folder", valid_values=["valid"])).startswith("train 3, valid 3")
    by_list = tiles.split(by="list", valid_values=["t_valid0", "valid/t_valid1.JPG", "nowhere"])
    assert str(by_list).startswith(
        "train 4, valid 2"
    ) and "1 listed names are no tiles: nowhere" in str(by_list)


def test_names_that_several_folders_hold_are_the_reason_where_none_is_found(tmp_path):
    with pytest.raises(DataError, match="none of the 1 tiles") as error:
        named(tmp_path, ["a/t.jpg", "b/t.jpg"], ["t"])
    assert "folder/name" in error.value.fix
    with pytest.raises(DataError) as error:
        named(tmp_path, ["a/t.jpg", "b/t.jpg"], ["u"])
    assert "--subfolders" not in error.value.fix


def test_names_that_begin_with_the_folder_itself_are_told_the_folder_above(tmp_path):
    found = images_in(write_files(tmp_path / "train-jpg", "a.jpg"))
    with pytest.raises(DataError) as error:
        found.label_from_table(pd.DataFrame({"image_name": ["train-jpg/a"], "tags": ["x"]}))
    assert "--images DIR --folders train-jpg" in error.value.fix


def test_a_listed_name_in_both_lists_is_refused_in_any_spelling(tmp_path):
    tiles = named(tmp_path, ["x/a.jpg", "x/b.jpg"], ["a", "b"])
    with pytest.raises(DataError, match="x/a is to validate and to test"):
        tiles.split(by="list", valid_values=["a"], test_values=["x/a.jpg"])


def test_unseen_characters_of_a_listed_name_are_shown(tmp_path):
    tiles = named(tmp_path, ["a.jpg", "b.jpg"], ["a", "b"])
    assert "1 listed names are no tiles: c<U+200D>d" in str(
        tiles.split(by="list", valid_values=["a", "c\u200dd"])
    )


def test_written_lists_in_memory_are_read_as_in_a_file(tmp_path):
    found = images_in(write_files(tmp_path, "a.jpg", "b.jpg"))
    table = pd.DataFrame({"image_name": ["a", "b"], "tags": ["['x', 'y']", "['y']"]})
    assert found.label_from_table(table).classes == ["x", "y"]
    assert found.label_with(lambda name: "['x']").classes == ["x"]
    arrays = pd.DataFrame(
        {"image_name": ["a", "b"], "tags": [np.array(["x", "y"]), np.array(["y"])]}
    )
    assert np.stack(found.label_from_table(arrays).table["target"]).tolist() == [[1, 1], [0, 1]]
    with pytest.raises(DataError, match="with ',' inside"):
        found.label_from_table(pd.DataFrame({"image_name": ["a", "b"], "tags": ["x,y", "y"]}))
