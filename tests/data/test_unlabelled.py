"""Tiles of test folders: which they are, how they are named, that no rule moves them and nothing counts them."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from handmade import DIGITS, encoded, scene, write_dataset, write_files

from raytrain.cli.main import run_command
from raytrain.data import dataset as ds
from raytrain.data.inspection import LabelRule, inspect
from raytrain.data.sources import images_at, images_in
from raytrain.data.splits import Rows, Rule
from raytrain.errors import DataError
from raytrain.report import dataset_page, dataset_text


@pytest.fixture
def digits(tmp_path):
    """Pictures in train/3, train/7, valid/3, valid/7 and test, as fastai's mnist_tiny."""
    return write_files(tmp_path / "digits", *DIGITS, "test/0.png", "test/1.png")


# Which pictures they are, and their names


def test_a_folder_below_the_images_is_left_out_of_the_labelled_pictures_and_keeps_its_name(digits):
    images = images_in(digits, subfolders=True)
    assert len(images.table) == 14
    found = images.add_test_folder("test")
    assert len(found.table) == 12 and not found.table["image_name"].str.startswith("test").any()
    assert str(found).endswith("; 2 in the test folder test")
    tiles = found.label_from_folders()
    assert tiles.classes == ["3", "7"] and tiles.unlisted == []
    assert tiles.tests["image_name"].tolist() == ["test/0", "test/1"]
    assert tiles.tests["path"].tolist() == [f"{digits}/test/{i}.png" for i in (0, 1)]


@pytest.mark.parametrize("way", ["absolute", "relative", "dots", "link"])
def test_the_same_folder_may_be_given_as_a_path_of_its_own(digits, tmp_path, monkeypatch, way):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(f"{digits}/test")
    path = {
        "absolute": f"{digits}/test",
        "relative": "digits/test",
        "dots": "digits/../digits/./test/",
        "link": "link",
    }[way]
    found = images_in(digits, subfolders=True).add_test_folder(path)
    tiles = found.label_from_folders()
    assert len(found.table) == 12 and tiles.tests["image_name"].tolist() == ["test/0", "test/1"]


def test_pictures_elsewhere_have_their_folder_in_the_name_only_where_one_needs_it(tmp_path):
    train = write_files(tmp_path / "train-jpg", "train_0.jpg", "train_1.jpg")
    write_files(tmp_path / "test-jpg", "test_0.jpg", "more/test_1.jpg")
    write_files(tmp_path / "again", "a.jpg", "train_0.png")
    write_files(tmp_path / "third", "a.jpg", "a.png")
    images = images_in(train).add_test_folder(str(tmp_path / "test-jpg"))
    tiles = images.label_with(lambda name: "x")
    assert tiles.tests["image_name"].tolist() == ["more/test_1", "test_0"]
    # The folder of one that needs it is in front of all its names. Later folders follow earlier ones.
    more = tiles.add_test_folder(str(tmp_path / "again")).add_test_folder(str(tmp_path / "third"))
    assert more.tests["image_name"].tolist()[2:] == [
        "again/a",
        "again/train_0",
        "a.jpg",
        "a.png",
    ]
    assert len(set(more.names)) == len(more.names)


def test_a_name_that_two_tiles_would_have_is_refused(tmp_path):
    images = images_in(write_files(tmp_path / "images", "test/0.jpg", "0.jpg"), subfolders=True)
    other = write_files(tmp_path / "elsewhere" / "test", "0.png")
    with pytest.raises(DataError, match="two tiles would be named test/0, one of them in the test"):
        images.add_test_folder(other).label_with(lambda name: "x")


def test_pictures_of_a_list_that_lie_in_a_test_folder_are_left_out(tmp_path):
    folder = write_files(tmp_path / "set", "a.png", "b.png", "test/c.png")
    listed = images_at([f"{folder}/a.png", f"{folder}/test/c.png"])
    found = listed.add_test_folder(f"{folder}/test")
    assert found.table["image_name"].tolist() == ["a"]
    assert found.label_with(lambda name: "x").names == ["a", "c"]


def test_suffixes_choose_and_what_cannot_be_a_tile_is_named_once(digits):
    write_files(Path(digits), "test/2.jpg", "test/below/3.png", "test/notes.txt")
    (Path(digits) / "test" / "4.png").symlink_to("nowhere")
    images = images_in(digits, subfolders=True)
    assert [str(entry) for entry in images.left_out] == [
        "test/4.png (unreadable: No such file or directory)"
    ]
    found = images.add_test_folder("test", [".PNG"])
    assert found.left_out == images.left_out
    names = found.label_from_folders(["3", "7", "test"]).tests["image_name"].tolist()
    assert names == ["test/0", "test/1", "test/below/3"]


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("tset", r"the test folder tset does not exist \(looked for: .*tset, .*digits/tset\)"),
        ("empty", "digits/empty holds no pictures"),
        ("test/0.png", "--test-folder test/0.png is a file"),
        ("{digits}", "holds all pictures of digits"),
        ("valid", "--test-folder valid may be .*valid or .*digits/valid"),
    ],
)
def test_a_folder_that_cannot_be_one_is_refused(digits, tmp_path, monkeypatch, folder, words):
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path, "valid/x.png")
    (Path(digits) / "empty").mkdir()
    with pytest.raises(DataError, match=words):
        images_in(digits, subfolders=True).add_test_folder(folder.format(digits=digits))


def test_a_folder_given_twice_is_refused(digits):
    images = images_in(digits, subfolders=True).add_test_folder("test")
    with pytest.raises(DataError, match="hold the same pictures"):
        images.add_test_folder(f"{digits}/test")
    with pytest.raises(DataError, match="hold the same pictures"):
        images.label_from_folders().add_test_folder("test")


@pytest.mark.parametrize("row", ["test/0", "test/0.png"])
@pytest.mark.parametrize("first", ["labels", "test folder"])
def test_labels_of_a_tile_of_a_test_folder_are_refused(digits, row, first):
    images = images_in(digits, subfolders=True)
    table = pd.DataFrame({"image_name": ["train/3/0", row], "tags": ["3", "7"]})
    with pytest.raises(DataError, match="name 1 pictures of the test folder test, such as test/0"):
        if first == "labels":
            images.label_from_table(table).add_test_folder("test")
        else:
            images.add_test_folder("test").label_from_table(table)


def test_pictures_without_labels_are_listed_unless_they_are_of_a_test_folder(digits):
    images = images_in(digits, subfolders=True)
    tiles = images.label_from_table(pd.DataFrame({"image_name": ["train/3/0"], "tags": ["3"]}))
    assert len(tiles.unlisted) == 13
    with_tests = tiles.add_test_folder("test")
    assert len(with_tests.unlisted) == 11 and not any("/test/" in p for p in with_tests.unlisted)


def test_a_name_that_is_unsafe_goes_to_the_quarantine(digits):
    write_files(Path(digits), "test/line\nbreak.png")
    divided = images_in(digits, subfolders=True).add_test_folder("test").label_from_folders()
    (record,) = divided.split().unusable()
    assert (record["kind"], record["row"]) == ("unsafe-name", 0)
    assert record["detail"] == "the name has the character U+000A"
    assert len(divided.split().usable()) == 14


def test_another_list_of_test_folders_is_another_source(digits):
    def source(*folders):
        images = images_in(digits, subfolders=True, folders=["train", "valid"])
        for folder in folders:
            images = images.add_test_folder(folder)
        return images.label_from_folders().split().source

    write_files(Path(digits), "more/0.png")
    assert "test_folders" not in source()
    assert source("test") == source("test") and source("test") != source("more")
    before = source("test")
    (Path(digits) / "test" / "0.png").write_bytes(b"another size")
    assert source("test") != before


# A class nobody asked for


@pytest.mark.parametrize(
    ("paths", "folder", "count"),
    [
        ([*DIGITS, "test/0.png", "test/1.png"], "test", 2),
        ([*DIGITS, "Test/0.png"], "Test", 1),
        ([*DIGITS, "unlabelled/0.png"], "unlabelled", 1),
        (["cats/0.png", "dogs/0.png", "TEST/0.png"], "TEST", 1),
        (["train/cats/0.png", "train/test/0.png"], "train/test", 1),
        (["all/train/3/0.png", "all/train/7/0.png", "all/more/0.png"], "all/more", 1),
        (["forest/0.png", "urban/dense/0.png", "urban/sparse/0.png"], "forest", 1),
    ],
)
def test_a_folder_that_is_probably_not_labelled_is_never_a_class_without_a_word(
    tmp_path, paths, folder, count
):
    images = images_in(write_files(tmp_path, *paths), subfolders=True)
    with pytest.raises(
        DataError, match=f'the folder "{folder}" with its {count} pictures'
    ) as error:
        images.label_from_folders()
    assert error.value.exit_code == 3
    assert f"--test-folder {folder}, " in error.value.fix and "--classes" in error.value.fix
    # Each way out works.
    classes = sorted({path.split("/")[-2] for path in paths})
    assert images.label_from_folders(classes).classes == classes
    rest = [name for name in classes if name != folder.split("/")[-1]]
    assert images.add_test_folder(folder).label_from_folders().classes == rest
    if "--folders" in error.value.fix:
        flags = error.value.fix.split("; or ")[1].split()
        kept = [flags[i + 1] for i, flag in enumerate(flags) if flag == "--folders"]
        chosen = images_in(str(tmp_path), folders=kept)
        assert chosen.label_from_folders().classes == rest


def test_a_folder_that_also_holds_class_folders_is_no_test_folder(tmp_path):
    images = images_in(write_files(tmp_path, *DIGITS, "train/0.png"), subfolders=True)
    with pytest.raises(DataError, match='the folder "train" with its 1 pictures') as error:
        images.label_from_folders()
    assert error.value.fix.startswith("move the pictures that lie in train itself")
    assert "--test-folder" not in error.value.fix
    assert images.label_from_folders(["3", "7", "train"]).classes == ["3", "7", "train"]


@pytest.mark.parametrize(
    "paths",
    [
        ["cats/0.png", "dogs/0.png"],
        ["data/cats/0.png", "data/dogs/0.png"],
        DIGITS,
        [*DIGITS, "test/3/0.png"],
        ["train/cats/0.png"],
        ["cats/0.png"],
    ],
)
def test_folders_that_are_plainly_classes_are_classes(tmp_path, paths):
    tiles = images_in(write_files(tmp_path, *paths), subfolders=True).label_from_folders()
    assert tiles.classes == sorted({path.split("/")[-2] for path in paths})


def test_listed_classes_name_the_folder_in_any_spelling(tmp_path):
    images = images_in(write_files(tmp_path, *DIGITS, "Test/0.png"), subfolders=True)
    assert images.label_from_folders(["3", "7", "test"]).classes == ["3", "7", "test"]
    with pytest.raises(DataError, match='the folder "Test"'):
        images.label_from_folders(["3", "7"])


# Splits


def rows(known, groups=(), labels=3):
    """Tiles with random labels; the name of the tile with number 4 is `t4`, that of an unknown one `test/t4`."""
    known = np.array(known, bool)
    names = [f"t{i}" if is_known else f"test/t{i}" for i, is_known in enumerate(known)]
    targets = np.random.default_rng(0).integers(0, 2, (len(known), labels), dtype=np.uint8)
    return Rows(names, targets * known[:, None], list(groups), known)


KNOWN = np.arange(60) % 4 != 3
SCENES = [f"scene-{i // 5}" for i in range(60)]


@pytest.mark.parametrize(
    "rule",
    [
        Rule(),
        Rule("stratified"),
        Rule("group"),
        Rule("column", valid_values=("scene-1", "scene-4"), test_values=("scene-2",)),
        Rule("list", valid_values=("t0", "t1", "t8"), test_values=("t2", "test/t3")),
        Rule(folds=3),
        Rule("stratified", folds=3),
        Rule("group", folds=3),
    ],
    ids=str,
)
def test_no_rule_moves_tiles_without_a_target_and_the_others_are_divided_as_if_alone(rule):
    groups = [group if is_known else "" for group, is_known in zip(SCENES, KNOWN, strict=True)]
    with_tests = rows(KNOWN, groups)
    alone = with_tests.with_target()
    assert alone.known.all() and len(alone.names) == 45
    both, expected = rule.tables("s", with_tests), rule.tables("s", alone)
    assert list(both) == list(expected)
    for name, table in both.items():
        assert set(table["part"][~KNOWN]) == {"test"} and set(table["fold"][~KNOWN]) == {-1}
        of_others = table[KNOWN].reset_index(drop=True)
        pd.testing.assert_frame_equal(of_others, expected[name], check_dtype=False)


@pytest.mark.parametrize(
    ("rule", "groups"),
    [
        (Rule("list", valid_values=("t0", "test/t3.png")), ()),
        (Rule("folder", valid_values=("test",)), ()),
        (Rule("column", valid_values=("scene-0",)), SCENES),
    ],
)
def test_a_rule_that_names_one_for_validation_is_refused(rule, groups):
    with pytest.raises(
        DataError, match=r"without a target are to validate, such as test/t3"
    ) as error:
        rule.tables("s", rows(KNOWN, groups))
    assert error.value.exit_code == 3


def test_a_bare_name_in_a_list_means_the_tile_with_a_target():
    some = Rows(
        ["train/a", "train/b", "test/a", "c"],
        np.ones((4, 1), np.uint8),
        [],
        np.array([True, True, False, False]),
    )
    rule = Rule("list", valid_values=("a",), test_values=("c", "d"))
    assert rule.parts(some).tolist() == ["valid", "train", "test", "test"]
    assert rule.unmatched(some) == ["d"]


def test_a_split_by_folder_goes_with_a_test_folder(digits):
    tiles = images_in(digits, subfolders=True).add_test_folder("test").label_from_folders()
    for test_values in ((), ("test",)):
        divided = tiles.split(by="folder", valid_values=["valid"], test_values=test_values)
        assert str(divided) == "test 2, train 6, valid 6 (2 without a target)"
    index = divided.usable()
    assert index["known"].tolist() == [True] * 12 + [False] * 2
    assert index["part"].tolist()[12:] == ["test"] * 2 and index["row"].tolist()[12:] == [0, 0]


def test_groups_are_asked_for_tiles_with_a_target_only(digits):
    tiles = images_in(digits, subfolders=True).add_test_folder("test").label_from_folders()
    by_name = {name: name.split("/")[2] for name in tiles.table["image_name"]}
    wanted = tiles.split(by="group", groups=by_name).table["part"].tolist()
    assert tiles.split(by="group", groups=list(by_name.values())).table["part"].tolist() == wanted
    by_function = tiles.split(by="group", groups=lambda name: name.split("/")[-1])
    assert by_function.table["part"].tolist() == wanted


# On disk


CLASSES = ["clear", "cloudy", "haze", "partly_cloudy", "water"]
PARTS = ["train"] * 5 + ["valid"] * 3 + ["test"] * 4


@pytest.fixture
def data(tmp_path):
    """Eight tiles with labels, two of them equal, and four without, of which two equal these and one another."""
    pictures = [encoded(scene(i, 32)) for i in range(12)]
    pictures[5] = pictures[4]
    pictures[8] = pictures[0]
    pictures[10] = pictures[9]
    labels = ["clear water", "clear", "haze", "clear", "clear", "haze", "clear water", "water"]
    words = [*labels, None, None, None, None]
    tiles = {f"t{i}": (pictures[i], words[i]) for i in range(12)}
    return write_dataset(
        tmp_path / "data", tiles, CLASSES, {"random": PARTS}, rows_per_shard=5, tile_size=32
    )


def test_unknown_targets_are_null_in_the_shard_and_zeros_with_a_mask_in_memory(data):
    column = pq.read_table(data.shards[1]).column("target").to_pylist()
    assert column[:3] == [[0, 0, 1, 0, 0], [1, 0, 0, 0, 1], [0, 0, 0, 0, 1]]
    assert column[3:] == [None, None] and data.manifest["schema_version"] == 2
    assert [shard.get("unknown") for shard in data.manifest["shards"]] == [None, 2, 2]
    assert data.known.tolist() == [True] * 8 + [False] * 4
    assert data.targets.shape == (12, 5) and data.targets.dtype == np.uint8
    assert not data.targets[8:].any() and data.targets[:8].any(axis=1).all()
    assert ds.unknown_tiles(data) == 4 and len(ds.known_targets(data)) == 8
    assert ds.damages(data) == []


def test_all_targets_known_write_the_bytes_of_version_1(tmp_path):
    tiles = {f"t{i}": (encoded(scene(i, 32)), "clear") for i in range(4)}
    plain = write_dataset(tmp_path / "data", tiles, CLASSES, tile_size=32)
    (shard,) = plain.manifest["shards"]
    assert plain.manifest["schema_version"] == 1 and "unknown" not in shard
    # The hash of a shard's labels as every earlier version made it.
    content = b"t0\nt1\nt2\nt3\n" + np.array([[1, 0, 0, 0, 0]] * 4, np.uint8).tobytes()
    assert shard["labels"] == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("order", [[0, 1, 3, 2, 4], [3, 0, 1, 2, 4], [2, 1, 0, 3, 4]])
def test_a_target_that_went_to_another_tile_is_noticed(data, order):
    rows = pq.read_table(data.shards[1]).to_pylist()
    # The first two orders keep all known targets in their order; only which are unknown differs.
    targets = [rows[i]["target"] for i in order]
    columns = [(*list(old.values())[:-1], new) for old, new in zip(rows, targets, strict=True)]
    Path(data.shards[1]).write_bytes(ds.shard_bytes(columns))
    with pytest.raises(DataError, match=r"labels in shard .* are not those that were written"):
        ds.open_dataset(data.path).part_rows("random", "train")


def test_the_number_of_unknown_targets_is_compared_with_the_manifest(data):
    path = Path(data.path) / "dataset.json"
    manifest = json.loads(path.read_text())
    del manifest["shards"][1]["unknown"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"part-00001\.parquet are not those that were written"):
        _ = ds.open_dataset(data.path).row_labels


@pytest.mark.parametrize("part", ["train", "valid"])
def test_a_split_by_hand_that_trains_or_validates_on_them_is_refused(data, part):
    assert data.part_rows("random", "test").tolist() == [8, 9, 10, 11]
    parts = [*PARTS[:8], part, "test", "test", "test"]
    table = pd.DataFrame({"image_name": ds.all_names(data), "part": parts, "fold": -1})
    with pytest.raises(
        DataError, match=f"has 1 tiles without a target in the part {part}"
    ) as error:
        ds.add_splits(data, {"mine": table})
    assert "raytrain data split" in error.value.fix
    # A file that somebody wrote past `add_splits`.
    content = ds.split_bytes(table)
    (Path(data.path) / "splits" / "mine.parquet").write_bytes(content)
    splits = [*data.manifest["splits"], ds.split_entry("mine", content, table)]
    other = replace(data, manifest=data.manifest | {"splits": splits})
    with pytest.raises(DataError, match=f"in the part {part}, such as t8"):
        other.part_rows("mine", part)
    assert len(other.part_rows("mine", "test")) == 3


@pytest.mark.parametrize(
    "flags",
    [
        ["--by", "random"],
        ["--by", "stratified", "--folds", "2"],
        ["--by", "group", "--table", "scenes.csv", "--column", "scene"],
        ["--by", "column", "--table", "scenes.csv", "--column", "scene", "--valid-values", "b"],
        ["--by", "list", "--valid-list", "valid.txt"],
    ],
    ids=lambda flags: flags[1],
)
def test_data_split_leaves_them_in_the_part_test(data, tmp_path, monkeypatch, capsys, flags):
    monkeypatch.chdir(tmp_path)
    lines = [f"t{i},{'abc'[i % 3]}" for i in range(8)]
    Path("scenes.csv").write_text("image_name,scene\n" + "\n".join(lines) + "\n")
    Path("valid.txt").write_text("t1\nt6\n")
    assert run_command(["data", "split", data.path, "--name", "new", *flags]) == 0
    assert "4 tiles without a target stay in the part test" in capsys.readouterr().out
    found = ds.open_dataset(data.path)
    for name in set(found.splits) - {"random"}:
        table = found.split(name).set_index("image_name")["part"]
        assert table[[f"t{i}" for i in range(8, 12)]].tolist() == ["test"] * 4
        assert set(table[[f"t{i}" for i in range(8)]]) == {"train", "valid"}


def test_data_split_refuses_a_table_that_validates_on_them(data, tmp_path, capsys):
    lines = [f"t{i},{'ab'[i % 2]}" for i in range(12)]
    (tmp_path / "parts.csv").write_text("image_name,part\n" + "\n".join(lines) + "\n")
    flags = ["--by", "column", "--table", str(tmp_path / "parts.csv"), "--column", "part"]
    command = ["data", "split", data.path, "--name", "new", *flags, "--valid-values", "b"]
    assert run_command(command) == 3
    assert "2 tiles without a target are to validate, such as t9" in capsys.readouterr().err
    assert "new" not in ds.open_dataset(data.path).splits


# What is counted and drawn


def test_labels_rules_duplicates_and_leaks_leave_them_out(data):
    found = inspect(data, rules=[LabelRule("requires", ("water", "clear"))])
    assert found.labels.columns.tolist() == ["label", "tiles", "random train", "random valid"]
    assert found.labels["tiles"].tolist() == [5, 0, 2, 0, 3]
    assert {str(rule): broken.tolist() for rule, broken in found.rules} == {
        "water only together with clear": [7],
        "exactly one of clear, cloudy, haze, partly_cloudy": [7],
        "cloudy alone": [],
    }
    # t4 is clear and t5 shows the same and is haze; t8, t9 and t10 have no labels.
    assert [group.rows for group in found.groups] == [(4, 5)]
    assert [group.rows for group in found.contradictions] == [(4, 5)]
    assert [leak.rows for leak in found.leaks] == [(4, 5)]
    assert sum(len(rows) for rows in found.sizes.values()) == 12
    assert not any("test" in warning for warning in found.warnings)


def test_the_rows_of_a_rule_are_those_of_the_dataset_where_unknown_tiles_come_first(tmp_path):
    words = [None, "haze", None, "clear haze", "water"]
    tiles = {f"t{i}": (encoded(scene(i, 32)), words[i]) for i in range(5)}
    tiles["t5"] = (encoded(scene(3, 32)), "clear")
    data = write_dataset(tmp_path / "data", tiles, CLASSES, tile_size=32)
    found = inspect(data)
    assert [broken.tolist() for _, broken in found.rules] == [[3, 4], []]
    assert [group.rows for group in found.groups] == [(3, 5)]


def test_text_and_page_say_how_many_are_known(data, tmp_path):
    found = inspect(data)
    sentence = "8 tiles with a target, 4 without one; labels, rules, duplicates and leaks leave the latter out."
    text = dataset_text.summary(found)
    assert f"\n  {sentence}\n" in text and "12 tiles in 3 shards" in text
    dataset_page.write(found, str(tmp_path / "page.html"), "groups.csv")
    page = (tmp_path / "page.html").read_text()
    assert sentence in page and "1.25 labels per tile" in page and "unlabelled" in page


def test_a_sheet_shows_no_label_of_them(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_command(["data", "show", data.path, "--part", "test", "--size", "32"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[:4]] == ["unlabelled"] * 4
    assert lines[4] == "the dataset has 8 tiles with a target, 4 without one"
    assert ds.labels_of(data, 8) == () and ds.shown_labels(data, 0) == ("clear", "water")
    assert run_command(["data", "show", data.path, "--label", "haze", "--size", "32"]) == 0
    assert "sheet of 2 tiles" in capsys.readouterr().out


def test_copies_of_the_dataset_have_its_hash(data, tmp_path):
    shutil.copytree(data.path, tmp_path / "copy")
    assert ds.open_dataset(str(tmp_path / "copy")).hash == data.hash
