"""`raytrain data show` and `raytrain data check` as a person types them: what they print, draw, write and refuse."""

import io
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from handmade import encoded, scene, tiff, write_dataset
from PIL import Image

from raytrain.cli.main import run_command
from raytrain.config import Augment
from raytrain.data.dataset import open_dataset
from raytrain.data.drawing import drawn
from raytrain.data.tile_format import TileFormat
from raytrain.report import sheet
from raytrain.training.transforms import examples, train_pixels

CLASSES = ["<b>", "forest", "road & rail", "$x$"]


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A dataset of twelve tiles; the user stands in an empty folder beside it."""
    pictures = [encoded(scene(i), "JPEG", quality=90) for i in range(12)]
    pictures[11] = pictures[4]
    labels = [f"{CLASSES[i % 2].split()[0]}{' $x$' if i == 5 else ''}" for i in range(12)]
    tiles = {
        f"tile_{i:02}": (picture, words)
        for i, (picture, words) in enumerate(zip(pictures, labels, strict=True))
    }
    write_dataset(tmp_path / "set", tiles, CLASSES, {"random": ["train"] * 8 + ["valid"] * 4})
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "set"


def shown(capsys, *arguments):
    """(names and labels printed, the sheet as an array)."""
    assert run_command(["data", "show", *map(str, arguments)]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    picture = np.asarray(Image.open(last.split(": ", 1)[1], formats=("PNG",)))
    return {line.split()[0]: line.split()[2:] for line in lines}, picture


def test_a_sheet_of_four_bands_shows_three_of_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    form = TileFormat(4, "uint16", (1, 2, 3, 4))
    values = np.dstack([scene(1), scene(2)[:, :, :1]]).astype(np.uint16) * 39
    parts = {"random": ["train", "valid"]}
    tiles = {"a": (tiff(values), "x"), "b": (tiff(values // 2), "x")}
    write_dataset(tmp_path / "set", tiles, ["x"], parts, form=form)
    names, picture = shown(capsys, "set", "--size", 64)
    assert set(names) == {"a", "b"} and holds(picture, drawn(values))
    names, picture = shown(capsys, "set", "--size", 64, "--augmented")
    assert set(names) == {"a", "b"} and holds(picture, drawn(values))


def holds(picture, tile):
    """True if the tile is somewhere on the sheet, pixel by pixel."""
    windows = np.lib.stride_tricks.sliding_window_view(picture[:, 20:], (1, 8, 3))[:, :, 0, 0]
    at = np.argwhere((windows == tile[0, :8]).all((-1, -2)))
    side = len(tile)
    return any(
        (picture[y : y + side, x + 20 : x + 20 + side] == tile).all()
        for y, x in at
        if y + side <= len(picture)
    )


def pixels_of(number):
    return np.asarray(
        Image.open(io.BytesIO(encoded(scene(number), "JPEG", quality=90)), formats=("JPEG",))
    )


def test_show_draws_every_tile_it_names_and_says_where(path, capsys):
    names, picture = shown(capsys, path, "--tiles", 6, "--size", 64)
    assert len(names) == 6 and (path.parent / "here" / "set-tiles.png").exists()
    drawn = {f"tile_{i:02}" for i in range(11) if holds(picture, pixels_of(i))}
    assert drawn == {name.replace("11", "04") for name in names}
    assert shown(capsys, path, "--tiles", 6, "--size", 64)[1].tobytes() == picture.tobytes()
    others, _ = shown(capsys, path, "--tiles", 6, "--size", 64, "--seed", 7)
    assert set(others) != set(names)


def test_show_takes_tiles_of_a_part_and_of_a_label(path, capsys):
    names, _ = shown(capsys, path, "--part", "valid", "--split", "random")
    assert sorted(names) == ["tile_08", "tile_09", "tile_10", "tile_11"]
    names, _ = shown(capsys, path, "--label", "<b>", "--part", "valid")
    assert names == {"tile_08": ["<b>"], "tile_10": ["<b>"]}


def test_show_per_label_has_a_row_for_each_label_that_has_tiles(path, capsys):
    names, picture = shown(
        capsys, path, "--per-label", "--tiles", 2, "--size", 64, "--out", "rows.png"
    )
    assert holds(picture, pixels_of(5)) and names["tile_05"] == ["forest", "$x$"]
    row = 64 + 4 + 2 * sheet.LINE + sheet.GAP + 2 * sheet.LINE
    assert 3 * row < len(picture) < 4 * row  # `road & rail` has none


def test_augmented_tiles_are_what_the_training_transform_makes_of_them(path, capsys):
    _, picture = shown(
        capsys, path, "--augmented", "--tiles", 1, "--size", 64, "--config", "quickstart"
    )
    augment = Augment(flip="dihedral", rotate=0, zoom=1.0, lighting=0.1)
    name = shown(capsys, path, "--tiles", 1)[0].popitem()[0]
    tile = pixels_of(int(name.split("_")[1]))
    assert holds(picture, tile)
    for draw in examples(tile[None], augment, 5, 64, 42)[0]:
        assert holds(picture, draw)


def test_examples_are_the_training_transform_pixel_by_pixel():
    import torch

    from raytrain.training.transforms import draw

    images = np.stack([scene(1), scene(2)])
    made = examples(images, Augment(), 3, 48, seed=9)
    draws = draw(Augment(), 6, torch.Generator().manual_seed(9))
    batch = torch.from_numpy(images).permute(0, 3, 1, 2)
    for tile in range(2):
        for number in range(3):
            at = number * 2 + tile
            wanted = train_pixels(batch[tile : tile + 1], draws.rows(slice(at, at + 1)), 48, "none")
            wanted = (wanted[0].permute(1, 2, 0).numpy() * 255).round()
            assert np.abs(made[tile, number] - wanted).max() <= 1
    assert made.shape == (2, 3, 48, 48, 3) and made.dtype == np.uint8


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--label", "forst"], 3, 'Did you mean "forest"'),
        (["--label", "road & rail"], 3, "no tile of this part"),
        (["--split", "randon"], 3, 'Did you mean "random"'),
        (["--part", "test"], 3, "--part train or valid"),
        (["--part", "validation"], 2, "validation"),
        (["--tiles", "0"], 2, "--tiles 0"),
        (["--size", "9000"], 2, "--size 9000"),
        (["--seed", "-1"], 2, "--seed -1"),
        (["--config", "smoke"], 2, "--augmented"),
        (["--augmented", "--config", "smok"], 2, 'Did you mean "smoke"'),
        (["--augmented", "--per-label"], 2, "leave one of them out"),
    ],
)
def test_show_refuses_in_one_sentence(path, capsys, arguments, code, words):
    assert run_command(["data", "show", str(path), *arguments]) == code
    message = capsys.readouterr().err
    assert words in message and "Traceback" not in message
    assert list((path.parent / "here").iterdir()) == []


def test_a_sheet_that_no_program_would_open_is_refused(monkeypatch, path, capsys):
    monkeypatch.setattr(sheet, "MAX_PIXELS", 100_000)
    assert run_command(["data", "show", str(path)]) == 2
    assert "fewer --tiles" in capsys.readouterr().err


def test_text_on_a_sheet_stays_inside_its_column_and_is_never_cut():
    words = ["short,", "W" * 60, "line\nbreak"]
    lines = sheet._wrap(words, 100, sheet.TEXT, bold=False)
    assert all(sheet._font(sheet.TEXT, False).getlength(line) <= 100 for line in lines)
    assert "".join(lines).replace(" ", "") == "short," + "W" * 60 + "line�break"


def test_looking_needs_neither_torch_nor_ray(path):
    code = "import sys; from raytrain.cli.main import run_command\n"
    code += f"assert run_command(['data', 'show', {str(path)!r}]) == run_command(['data', 'check', {str(path)!r}]) == 0\n"
    code += "print([m for m in ('torch', 'ray') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# check


class Page(HTMLParser):
    """Tags that are open at the end, and all text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.sources = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.sources += [value for key, value in attrs if key in ("src", "srcset", "href")]
        if tag not in ("meta", "img", "br", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_check_prints_and_draws_what_it_found(path, capsys):
    assert (
        run_command(["data", "check", str(path), "--alone", "$x$", "--at-most-one", "<b>,forest"])
        == 0
    )
    text = capsys.readouterr().out
    assert "12 tiles in 3 shards, all bytes match their checksums" in text
    assert re.search(r"^forest +6 +4 +2 +\$x\$ 17 %$", text, re.M)
    assert (
        "  $x$ alone: broken by 1 tile\n" in text
        and "  at most one of <b>, forest: kept by every tile\n" in text
    )
    assert (
        "warning: split random leaks: tile_04 (train) and tile_11 (valid) show the same (equal bytes)"
        in text
    )
    # The command that it prints mends the leak.
    command = text.splitlines()[-1].removeprefix("next: raytrain ")
    assert run_command(shlex.split(command)) == 0
    split = open_dataset(str(path)).split("no-leaks").set_index("image_name")["part"]
    assert split["tile_04"] == split["tile_11"] and set(split) == {"train", "valid"}
    written = (path.parent / "here" / "set-check.html").read_text()
    page = Page(written)
    assert page.open == []
    assert all(source.startswith("data:image/") for source in page.sources)
    for words in (
        "tile_04 (train) and tile_11 (valid)",
        "2 tiles, equal bytes",
        "with different labels",
        "<b>",
        "road & rail",
    ):
        assert words in page.text
    assert "<b>" not in written and "&lt;b&gt;" in written
    assert written.count('alt="tile tile_04"') >= 1 and "<script" not in written


def test_the_page_goes_where_it_is_told(path, capsys):
    for out, file in (("a/page.html", "a/page.html"), ("b", "b/set-check.html")):
        assert run_command(["data", "check", str(path), "--fast", "--out", out]) == 0
        assert (path.parent / "here" / file).exists() and file in capsys.readouterr().out
    assert (
        "only equal bytes are found" in (path.parent / "here" / "b" / "set-check.html").read_text()
    )


def test_damage_ends_with_3_and_no_page(path, capsys):
    shard = path / "shards" / "part-00001.parquet"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert run_command(["data", "check", str(path)]) == 3
    assert "part-00001.parquet is damaged" in capsys.readouterr().err
    assert list((path.parent / "here").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--alone", "forst"], 3, 'Did you mean "forest"'),
        (["--exactly-one", "forest"], 2, "needs 2 or more"),
        (["--alone", " , "], 2, "names 0 labels"),
        (["--split", "randon"], 3, 'Did you mean "random"'),
    ],
)
def test_check_refuses_in_one_sentence(path, capsys, arguments, code, words):
    assert run_command(["data", "check", str(path), *arguments]) == code
    message = capsys.readouterr().err
    assert words in message and "Traceback" not in message


def test_a_dataset_without_flaws_and_without_splits_is_said_to_be_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiles = {f"t{i}": (encoded(scene(i)), "a" if i % 2 else "b") for i in range(4)}
    write_dataset(tmp_path / "calm", tiles, ["a", "b"])
    assert run_command(["data", "check", "calm"]) == 0
    assert "no warnings" in capsys.readouterr().out
    assert "No warnings." in (tmp_path / "calm-check.html").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"calm", "calm-check.html"}
    assert run_command(["data", "show", "calm", "--part", "valid"]) == 3
    assert "no split" in capsys.readouterr().err


def test_a_picture_that_an_older_version_let_in_is_named_and_no_traceback(tmp_path, capsys):
    deep = io.BytesIO()
    Image.fromarray(np.full((32, 32), 300, np.uint16)).save(deep, "PNG")
    tiles = {"good": (encoded(scene(1)), "a"), "deep": (deep.getvalue(), "a")}
    found = write_dataset(tmp_path / "old", tiles, ["a"], {"random": ["train", "valid"]})
    for command in (
        ["data", "show", found.path, "--out", str(tmp_path / "x.png")],
        ["data", "check", found.path],
    ):
        assert run_command(command) == 3
        message = capsys.readouterr().err
        assert "deep" in message and "16-bit" in message and "Traceback" not in message
