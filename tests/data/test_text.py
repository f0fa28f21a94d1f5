"""Lists that a user gives: one reader for names, pictures and classes."""

import gzip

import pytest

from raytrain.data.text import CLASSES, NAMES, listed, read_lines
from raytrain.errors import ConfigError, DataError


def written(folder, content, name="list.txt"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.mark.parametrize(
    "content",
    [
        "t_0\nt_1\n",
        "t_0\nt_1",
        "t_0\r\nt_1\r\n",
        "t_0\rt_1\r",
        "\ufefft_0\n\n t_1 \n",
        "\u200bt_0\u200b\n\xa0\nt_1\t\n",
        gzip.compress(b"\xef\xbb\xbft_0\r\nt_1\r\n"),
    ],
)
def test_lines_are_trimmed_however_they_end(tmp_path, content):
    assert read_lines(written(tmp_path, content), NAMES) == ["t_0", "t_1"]


def test_characters_inside_a_name_do_not_end_a_line(tmp_path):
    assert read_lines(written(tmp_path, "a\u2028b\nc\x0bd\n"), NAMES) == ["a\u2028b", "c\x0bd"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"caf\xe9\n", "not UTF-8 .byte 0xe9 at line 1"),
        ("t_0\n".encode("utf-16"), "not UTF-8"),
        (b"<!doctype html><title>Sign in</title>", "HTML page"),
        (b"t_0\nt\0\n", "NUL character at line 2"),
        (b"\n \n", "the list of names .* is empty"),
        (None, "the list of names .* does not exist"),
    ],
)
def test_a_list_that_cannot_be_read_is_named(tmp_path, content, words):
    path = str(tmp_path / "nowhere.txt") if content is None else written(tmp_path, content)
    with pytest.raises(DataError, match=words) as error:
        read_lines(path, NAMES)
    assert error.value.why and error.value.fix


def test_a_folder_is_no_list(tmp_path):
    with pytest.raises(DataError, match="is a folder, not a list of classes"):
        read_lines(str(tmp_path), CLASSES)


def test_a_flag_takes_words_words_with_commas_and_files(tmp_path):
    assert listed("a, b,c ", "--classes") == ["a", "b", "c"]
    assert listed('water,"bare ground, rock", "x"', "--classes") == [
        "water",
        "bare ground, rock",
        "x",
    ]
    path = written(
        tmp_path, "\ufeffPastures\r\nLand of agriculture, with areas of natural vegetation\r\n"
    )
    assert listed(path, "--classes") == [
        "Pastures",
        "Land of agriculture, with areas of natural vegetation",
    ]
    with pytest.raises(ConfigError, match="cannot be read as words"):
        listed('"water', "--classes")
