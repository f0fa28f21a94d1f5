"""Which files of a folder or a list are pictures; all else is left out and named, and nothing ends the command."""

import os
import subprocess
import sys

import pytest

from raytrain.data.listing import is_list, left_out_lines, listed_pictures, pictures_in
from raytrain.data.names import is_junk
from raytrain.data.sources import images_at, images_in
from raytrain.errors import ConfigError, DataError


def make(folder, *paths):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"x")
    return str(folder)


def found(folder, **options):
    listing = pictures_in(str(folder), subfolders=True, **options)
    return [file.path for file in listing.files], [
        (entry.path, entry.kind) for entry in listing.left_out
    ]


# Links and loops


def test_a_link_to_a_folder_above_is_left_out_and_named(tmp_path):
    make(tmp_path, "Forest/a.jpg", "River/b.jpg")
    (tmp_path / "Forest" / "up").symlink_to("..")
    assert found(tmp_path) == (["Forest/a.jpg", "River/b.jpg"], [("Forest/up/", "same-folder")])


def test_a_link_out_of_the_source_to_a_folder_above_it_is_left_out(tmp_path):
    make(tmp_path, "train/3/a.jpg", "valid/3/b.jpg")
    (tmp_path / "train" / "loop").symlink_to("..")
    assert found(tmp_path / "train") == (["3/a.jpg"], [("loop/", "same-folder")])


def test_of_a_folder_and_a_link_to_it_the_folder_counts_whatever_they_are_called(tmp_path):
    make(tmp_path, "z/a.jpg", "z/deep/b.jpg")
    (tmp_path / "link").symlink_to("z")
    (tmp_path / "other").symlink_to("z/deep")
    assert found(tmp_path) == (
        ["z/a.jpg", "z/deep/b.jpg"],
        [("link/", "same-folder"), ("other/", "same-folder")],
    )


def test_links_to_folders_and_files_elsewhere_are_followed_once(tmp_path):
    make(tmp_path / "far", "a.jpg", "b.jpg")
    make(tmp_path / "here", "c.jpg")
    (tmp_path / "here" / "one").symlink_to(tmp_path / "far")
    (tmp_path / "here" / "two").symlink_to(tmp_path / "far")
    (tmp_path / "here" / "d.jpg").symlink_to(tmp_path / "far" / "a.jpg")
    assert found(tmp_path / "here") == (
        ["c.jpg", "d.jpg", "one/a.jpg", "one/b.jpg"],
        [("two/", "same-folder")],
    )


def test_links_that_lead_to_each_other_end(tmp_path):
    make(tmp_path / "a", "1.jpg")
    make(tmp_path / "b", "2.jpg")
    (tmp_path / "a" / "to").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "to").symlink_to(tmp_path / "a")
    assert found(tmp_path / "a") == (["1.jpg", "to/2.jpg"], [("to/to/", "same-folder")])


def test_a_link_to_nothing_or_to_itself_is_left_out(tmp_path):
    make(tmp_path, "a.jpg")
    (tmp_path / "gone.jpg").symlink_to("nowhere")
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    assert found(tmp_path) == (["a.jpg"], [("gone.jpg", "unreadable"), ("self.jpg", "unreadable")])


def test_a_chosen_folder_may_be_a_link_to_one_that_is_not(tmp_path):
    make(tmp_path, "all/train/a.jpg", "all/rest/b.jpg")
    (tmp_path / "train").symlink_to("all/train")
    assert found(tmp_path, folders=["train"]) == (["train/a.jpg"], [])


def test_of_links_into_each_other_no_folder_is_taken_twice(tmp_path):
    make(tmp_path / "far", "a.jpg", "sub/b.jpg")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "1").symlink_to(tmp_path / "far" / "sub")
    (tmp_path / "here" / "2").symlink_to(tmp_path / "far")
    assert found(tmp_path / "here") == (["1/b.jpg", "2/a.jpg"], [("2/sub/", "same-folder")])


# Names and files that cannot be used


def test_names_that_are_not_utf8_are_left_out_and_shown(tmp_path):
    make(tmp_path, "a.jpg")
    folder = os.fsencode(tmp_path)
    for name in (b"f\xf4ret.jpg", b"notes\xff.txt"):
        with open(folder + b"/" + name, "wb"):
            pass
    os.mkdir(folder + b"/for\xeat")
    with open(folder + b"/for\xeat/b.jpg", "wb"):
        pass
    assert found(tmp_path) == (
        ["a.jpg"],
        [("f<0xF4>ret.jpg", "unsafe-name"), ("for<0xEA>t/", "unsafe-name")],
    )
    assert images_in(str(tmp_path)).table["image_name"].tolist() == ["a"]


def test_pipes_are_left_out_and_not_waited_for(tmp_path):
    make(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "b.jpg")
    os.mkfifo(tmp_path / "c.log")
    assert found(tmp_path) == (["a.jpg"], [("b.jpg", "unreadable")])


def test_a_folder_that_may_not_be_read_is_left_out(tmp_path):
    make(tmp_path, "a.jpg", "secret/b.jpg")
    tmp_path.chmod(0o755)
    (tmp_path / "secret").chmod(0)
    code = """
import os, sys
from raytrain.data.listing import pictures_in
if os.getuid() == 0: os.setuid(65534)
found = pictures_in(".", subfolders=True)
print([file.path for file in found.files], *found.left_out)
"""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
        )
    finally:
        (tmp_path / "secret").chmod(0o755)
    assert done.stdout.strip() == "['a.jpg'] secret/ (unreadable: Permission denied)", done.stderr


def test_many_that_were_left_out_are_counted(tmp_path):
    make(tmp_path, "a.jpg")
    for i in range(25):
        (tmp_path / f"gone_{i:02}.jpg").symlink_to("nowhere")
    lines = list(left_out_lines(pictures_in(str(tmp_path), subfolders=False).left_out))
    assert len(lines) == 21 and lines[-1] == "left out: 5 more (5 unreadable)"


def test_a_folder_with_nothing_but_such_files_says_so(tmp_path):
    (tmp_path / "gone.jpg").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"holds no pictures; 1 were left out, such as gone.jpg"):
        images_in(str(tmp_path))


# What systems leave among pictures


@pytest.mark.parametrize(
    "path",
    [
        "@eaDir/a.jpg",
        "Forest/@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg",
        ".ipynb_checkpoints/a-checkpoint.jpg",
        "__MACOSX/._a.jpg",
        "Forest/__macosx/a.jpg",
        "._a.jpg",
        "#recycle/a.jpg",
        "$RECYCLE.BIN/a.jpg",
        ".Trash-1000/files/a.jpg",
        "System Volume Information/a.jpg",
        "lost+found/a.jpg",
        ".thumbnails/a.jpg",
        "@Recycle/a.jpg",
    ],
)
def test_what_a_system_leaves_is_no_tile_and_no_class(tmp_path, path):
    assert is_junk(path)
    make(tmp_path, "Forest/a.jpg", "River/b.jpg", path, "Thumbs.db", "Forest/desktop.ini")
    assert found(tmp_path) == (["Forest/a.jpg", "River/b.jpg"], [])
    assert images_in(str(tmp_path), subfolders=True).label_from_folders().classes == [
        "Forest",
        "River",
    ]


def test_a_list_that_names_such_files_leaves_them_out(tmp_path):
    make(tmp_path, "a.jpg", "@eaDir/b.jpg", "._a.jpg")
    images = images_at([f"{tmp_path}/a.jpg", f"{tmp_path}/@eaDir/b.jpg", f"{tmp_path}/._a.jpg"])
    assert images.table["image_name"].tolist() == ["a"] and len(images.left_out) == 2


# Folders, lists and what is neither


def test_a_folder_and_a_list_are_told_apart(tmp_path):
    make(tmp_path, "tiles.txt/a.jpg", "list.TXT", "list.txt.gz")
    assert not is_list(str(tmp_path / "tiles.txt")) and not is_list(str(tmp_path / "nowhere"))
    assert is_list(str(tmp_path / "list.TXT")) and is_list(str(tmp_path / "list.txt.gz"))
    assert is_list("s3://bucket/list.txt") and not is_list("s3://bucket/tiles")
    assert is_list(str(tmp_path / "nowhere.txt")), "then the list is said to be missing"


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("a.jpg", "is a picture"),
        ("a.TIFF", "is a picture"),
        ("a.zip", "is an archive"),
        ("a.tar.gz", "is an archive"),
        ("a.7z", "is an archive"),
        ("labels.csv", "is a file"),
        ("a.parquet", "is a file"),
    ],
)
def test_what_is_neither_folder_nor_list_is_refused_with_what_to_give(tmp_path, name, what):
    make(tmp_path, name)
    with pytest.raises(ConfigError, match=what) as error:
        is_list(str(tmp_path / name))
    assert error.value.exit_code == 2 and "--images" in error.value.fix


def test_relative_paths_count_from_here_else_from_the_list(tmp_path, monkeypatch):
    make(tmp_path / "data", "images/a.jpg", "images/b.jpg")
    make(tmp_path / "work", "images/a.jpg")
    (tmp_path / "data" / "list.txt").write_bytes(
        "\ufeffimages/a.jpg\r\nimages/b.jpg\r\nimages/c.jpg\r\ns3://x/d.jpg".encode()
    )
    monkeypatch.chdir(tmp_path / "work")
    assert listed_pictures("../data/list.txt") == [
        "images/a.jpg",
        str(tmp_path / "work" / ".." / "data" / "images/b.jpg"),
        "images/c.jpg",
        "s3://x/d.jpg",
    ]
