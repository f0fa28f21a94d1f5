"""Ingest: several processes, the same bytes twice, bad files counted and never fatal within the budget."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from handmade import NETWORK
from odd_images import COUNTED, QUARANTINED, encoded, four_bands, noise
from PIL import Image

from raytrain import storage
from raytrain.checkpoints import reading
from raytrain.cli.main import run_command
from raytrain.data import images
from raytrain.data.bands import BandRule
from raytrain.data.dataset import all_names, damages, names_of, open_dataset, read_images
from raytrain.data.sources import images_at, images_in
from raytrain.distributed import ingest as module
from raytrain.distributed.ingest import ingest, rows_per_shard
from raytrain.errors import DataError, StorageError

pytestmark = pytest.mark.usefixtures("cluster")


def divided(folder, label_file):
    return images_in(str(folder)).label_from_file(str(label_file)).split()


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def damaged(tiles, tmp_path):
    """A copy of the tiles with one truncated, one text file, one missing."""
    folder = tmp_path / "images"
    shutil.copytree(tiles[0], folder)
    names = sorted(p.name for p in folder.iterdir())
    (folder / names[3]).write_bytes((folder / names[3]).read_bytes()[:3000])
    (folder / names[5]).write_text("not a picture, whatever the name says")
    (folder / names[8]).unlink()
    return folder


def test_several_processes_share_the_gate_and_two_ingests_are_the_same_bytes(
    tiles, dataset, tmp_path, logged
):
    done = ingest(divided(tiles[0], tiles[1]), str(tmp_path / "again"))
    assert len(done.pids) > 1
    assert "ingest: 3 of 3 shards, 0:00 to go" in logged
    assert tree(tmp_path / "again") == tree(dataset_folder(dataset))


def dataset_folder(dataset):
    return Path(dataset.path)


def test_the_pictures_in_the_shards_are_the_files(tiles, dataset):
    for name, content in zip(
        all_names(dataset), read_images(dataset, range(dataset.rows)), strict=True
    ):
        assert content == (tiles[0] / f"{name}.jpg").read_bytes()
    assert damages(dataset) == []


def test_a_second_ingest_says_what_is_there_and_changes_nothing(tiles, dataset, capsys):
    before = {p: p.stat().st_mtime_ns for p in dataset_folder(dataset).rglob("*")}
    arguments = [
        "ingest",
        "--images",
        str(tiles[0]),
        "--labels",
        str(tiles[1]),
        "--out",
        dataset.path,
    ]
    assert run_command(arguments) == 0
    assert "is there already" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in dataset_folder(dataset).rglob("*")} == before


def test_a_dataset_that_is_there_needs_no_machine(tiles, dataset, monkeypatch, capsys):
    monkeypatch.setattr("raytrain.distributed.ingest.with_machine", None)
    command = ["ingest", "--images", str(tiles[0]), "--labels", str(tiles[1])]
    assert run_command([*command, "--out", dataset.path, "--wait", "600"]) == 0
    assert "is there already" in capsys.readouterr().out


@pytest.mark.parametrize("seconds", ["inf", "-1", "nan", "1e9"])
def test_a_wait_without_an_end_is_refused(seconds, tiles, tmp_path, capsys):
    command = ["ingest", "--images", str(tiles[0]), "--labels", str(tiles[1])]
    assert run_command([*command, "--out", str(tmp_path / "out"), "--wait", seconds]) == 2
    assert "--wait" in capsys.readouterr().err


def test_a_dataset_is_never_overwritten_by_another(tiles, dataset, capsys):
    arguments = [
        "ingest",
        "--images",
        str(tiles[0]),
        "--labels",
        str(tiles[1]),
        "--out",
        dataset.path,
        "--seed",
        "7",
    ]
    assert run_command(arguments) == 3
    assert "never overwrites" in capsys.readouterr().err


def test_bad_files_are_listed_and_all_good_tiles_are_kept(tiles, damaged, dataset, tmp_path):
    done = ingest(divided(damaged, tiles[1]), str(tmp_path / "out"))
    records = [
        json.loads(line)
        for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    ]
    assert sorted(record["kind"] for record in records) == ["missing", "not-an-image", "truncated"]
    bad = {record["image_name"] for record in records}
    assert set(all_names(done.dataset)) == set(all_names(dataset)) - bad
    # The split is drawn on the rows of the label file: no other tile changed its part.
    parts = [
        d.split("random").set_index("image_name")["part"].drop(bad, errors="ignore")
        for d in (done.dataset, dataset)
    ]
    assert parts[0].to_dict() == parts[1].to_dict()


def test_more_bad_files_than_allowed_leave_only_the_list(tiles, damaged, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [
        "ingest",
        "--images",
        str(damaged),
        "--labels",
        str(tiles[1]),
        "--out",
        str(out),
        "--max-bad",
        "2",
    ]
    assert run_command(arguments) == 3
    message = capsys.readouterr().err
    assert "3 of 160 tiles cannot be used" in message and f"{out}.quarantine.jsonl" in message
    assert len((tmp_path / "out.quarantine.jsonl").read_text().splitlines()) == 3
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "images") == [
        "out.quarantine.jsonl"
    ]
    assert run_command([*arguments[:-1], "3"]) == 0
    assert not (tmp_path / "out.quarantine.jsonl").exists()


@pytest.fixture
def cut(monkeypatch, tmp_path):
    """Runs an ingest into tmp_path/out that is stopped before its end, as by Ctrl-C."""

    def stop(*args):
        raise KeyboardInterrupt

    def run(folder, label_file):
        with monkeypatch.context() as patch:
            patch.setattr(module, "_finish", stop)
            with pytest.raises(KeyboardInterrupt):
                ingest(divided(folder, label_file), str(tmp_path / "out"))
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith("out")] == ["out.partial"]

    return run


def test_an_ingest_that_was_cut_goes_on_to_the_same_bytes(tiles, dataset, tmp_path, cut, logged):
    cut(*tiles)
    (tmp_path / "out.partial" / "shards" / ".part-00000.parquet.1f.partial").write_bytes(
        b"what a SIGKILL leaves"
    )
    (tmp_path / "out.partial" / "shards" / "part-00001.parquet").unlink()
    (tmp_path / "out.partial" / "progress" / "00002.json").unlink()
    done = ingest(divided(*tiles), str(tmp_path / "out"))
    assert "ingest: 1 shards are there from an earlier, unfinished ingest" in logged
    assert tree(tmp_path / "out") == tree(dataset_folder(dataset)) and not done.already_there
    assert not (tmp_path / "out.partial").exists()


def test_shards_of_files_that_changed_or_were_bad_are_made_again(
    tiles, damaged, dataset, tmp_path, cut, logged
):
    cut(damaged, tiles[1])
    for path in damaged.iterdir():  # three files are mended; all others are newer than they were
        path.write_bytes((tiles[0] / path.name).read_bytes())
    shutil.copy(tiles[0] / sorted(p.name for p in tiles[0].iterdir())[8], damaged)
    ingest(divided(damaged, tiles[1]), str(tmp_path / "out"))
    assert not any("unfinished" in line for line in logged)
    shards = tmp_path / "out" / "shards"
    assert tree(shards) == tree(dataset_folder(dataset) / "shards")


def test_25_kinds_of_odd_pictures_among_1000_good_ones_are_all_accounted_for(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    good = [f"good_{i}" for i in range(1000)]
    for i, name in enumerate(good):
        (folder / f"{name}.jpg").write_bytes(encoded(noise(size=(32, 32), seed=i)))
    wanted = {}
    for number, (content, suffix, said) in enumerate([*QUARANTINED.values(), *COUNTED.values()]):
        for copy in range(4):
            (folder / f"odd_{number}_{copy}{suffix}").write_bytes(content)
            wanted[f"odd_{number}_{copy}"] = said
    tiles = images_in(str(folder)).label_with(lambda name: name.split("_")[0])
    done = ingest(tiles.split(), str(tmp_path / "out"), max_bad=100)
    records = [
        json.loads(line)
        for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    ]
    kinds = {kind for _, _, kind in QUARANTINED.values()}
    assert {record["image_name"]: record["kind"] for record in records} == {
        name: said for name, said in wanted.items() if said in kinds
    }
    for record in records:
        content = (folder / storage.name_of(record["path"])).read_bytes()
        unread = not content or record["kind"] == "too-large"
        assert record["sha256"] == ("" if unread else hashlib.sha256(content).hexdigest())
    for said in {said for _, _, said in COUNTED.values()}:
        assert done.counts[said] >= 4, said
    assert (
        done.counts["mislabelled"]
        == done.counts["orientation applied"]
        == done.counts["size 200x100"]
        == 4
    )
    kept = {name for name, said in wanted.items() if said not in kinds}
    assert set(all_names(done.dataset)) == set(good) | kept
    assert len(wanted) == 100


def test_tiff_tiles_of_four_bands_become_pictures_by_the_rule(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(20):
        (folder / f"t_{i}.tif").write_bytes(four_bands((1000, 2000, 3000 + i, 9999)))
    divided = images_in(str(folder)).label_with(lambda name: "water").split()
    rule = BandRule((3, 2, 1), 0, 10000)
    done = ingest(divided, str(tmp_path / "out"), bands=rule)
    rows = [int(name.split("_")[1]) for name in all_names(done.dataset)]
    for i, content in zip(rows, read_images(done.dataset, range(20)), strict=True):
        assert images.decode(content)[0, 0].tolist() == [
            round(255 * v / 10000) for v in (3000 + i, 2000, 1000)
        ]
    assert done.dataset.manifest["source"]["bands"] == {"bands": [3, 2, 1], "low": 0, "high": 10000}
    assert ingest(divided, str(tmp_path / "out"), bands=rule).already_there


def test_a_division_without_validation_tiles_is_refused_before_any_work(tiles, tmp_path, capsys):
    (tmp_path / "all.txt").write_text("\n".join(p.stem for p in tiles[0].iterdir()))
    command = [
        "ingest",
        "--images",
        str(tiles[0]),
        "--labels",
        str(tiles[1]),
        "--out",
        str(tmp_path / "out"),
    ]
    assert (
        run_command([*command, "--split", "list", "--valid-list", str(tmp_path / "all.txt")]) == 3
    )
    assert 'the split "list" would have 160 valid tiles' in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["all.txt"]


def python_blocks():
    text = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
    return [
        block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "images_in" in block
    ]


@pytest.mark.parametrize("number", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_the_five_steps_of_the_python_page_run(
    number, request, tiles, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    # The first trains a ResNet-18 with a worker of Ray.
    request.getfixturevalue("in_this_process" if number else "own_network")
    if number == 0:
        shutil.copytree(tiles[0], "train-jpg")
        shutil.copy(tiles[1], "train_v2.csv")
    else:
        for i, path in enumerate(sorted(tiles[0].iterdir())[:60]):
            folder = Path("digits", "valid" if i % 4 == 0 else "train", "37"[i % 2])
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder)
    code = re.sub(
        "planet-resnet(50|18)|single-label-resnet18", "smoke", python_blocks()[number]
    ).replace('{"dataset"', '{"select": "1", "dataset"')
    assert "smoke" in code
    exec(compile(code, "python.md", "exec"), {})
    printed = capsys.readouterr().out
    (dataset,) = [p.parent for p in Path().glob("*/dataset.json")]
    assert (
        open_dataset(str(dataset)).rows == (160, 60)[number]
        and f"{(160, 60)[number]} pictures in" in printed
    )
    last = reading.load(str(Path("runs", ("first", "second")[number], "checkpoints", "last")))
    assert last.meta["arch"] == ("resnet18", NETWORK)[number]


def test_check_names_every_damage(dataset, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(dataset.path, copy)
    assert run_command(["data", "check", str(copy), "--out", str(tmp_path)]) == 0
    shard = copy / "shards" / "part-00001.parquet"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    (copy / "splits" / "random.parquet").unlink()
    assert run_command(["data", "check", str(copy)]) == 3
    message = capsys.readouterr().err
    assert "part-00001.parquet is damaged" in message and "random.parquet is missing" in message


def test_shards_have_a_limit_of_rows_and_of_bytes():
    assert [rows_per_shard(n) for n in (10, 1024, 1600, 40479)] == [64, 64, 100, 1024]
    order, mib = np.array([3, 1, 0, 2, 4]), 2**20
    assert [list(p) for p in module._cut(order, [0] * 5, 2)] == [[3, 1], [0, 2], [4]]
    assert [
        list(p) for p in module._cut(order, [20 * mib, 40 * mib, mib, 30 * mib, 70 * mib], 9)
    ] == [
        [3],
        [1, 0, 2],
        [4],
    ]
    assert not list(module._cut(np.array([], int), [], 2))


def test_other_pictures_of_the_same_names_are_another_dataset(tiles, dataset, tmp_path):
    folder = tmp_path / tiles[0].name
    shutil.copytree(tiles[0], folder)
    assert ingest(
        divided(folder, tiles[1]), dataset.path
    ).already_there  # a copy of the same pictures
    first = sorted(folder.iterdir())[0]
    first.write_bytes(first.read_bytes() + b"\0")
    with pytest.raises(DataError, match="made with other pictures_sha256"):
        ingest(divided(folder, tiles[1]), dataset.path)


def test_two_ingests_do_not_write_one_dataset(tiles, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "out.partial").mkdir()
    with (
        storage.locked(str(tmp_path / "out.partial"), "is at work in"),
        pytest.raises(StorageError, match="another process"),
    ):
        ingest(divided(*tiles), str(out))
    assert not out.exists() and not any((tmp_path / "out.partial").iterdir())


def test_a_torn_record_and_a_file_that_cannot_be_read_stop_nothing(tiles, dataset, tmp_path, cut):
    cut(*tiles)
    (tmp_path / "out.partial" / "progress" / "00001.json").write_bytes(b"")
    assert ingest(divided(*tiles), str(tmp_path / "out")).dataset.hash == dataset.hash
    paths = [str(path) for path in sorted(tiles[0].iterdir())]
    (tmp_path / "folder.jpg").mkdir()
    listed = (
        images_at([*paths[:20], str(tmp_path / "folder.jpg")]).label_with(lambda name: "x").split()
    )
    done = ingest(listed, str(tmp_path / "listed"))
    assert done.counts["quarantined: unreadable"] == 1 and done.dataset.rows == 20


def test_a_tile_of_another_size_and_a_png_pass_and_are_counted(tiles, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(tiles[0], folder)
    first = sorted(folder.iterdir())[0]
    Image.open(first).convert("RGB").resize((200, 100)).save(first, "PNG")
    done = ingest(divided(folder, tiles[1]), str(tmp_path / "out"))
    assert done.counts["size 200x100"] == 1 and done.dataset.tile_size == 256
    assert open_dataset(done.dataset.path).rows == 160


def test_what_lies_among_the_tiles_is_named_and_does_not_end_the_command(
    tiles, dataset, tmp_path, capsys
):
    folder = tmp_path / "images"
    shutil.copytree(tiles[0], folder)
    for i in range(15):  # more than --max-bad allows
        shutil.copy(
            os.fsencode(next(tiles[0].iterdir())), os.fsencode(folder) + b"/f\xf4ret%d.jpg" % i
        )
    (folder / "up").symlink_to(".")
    out = tmp_path / "out"
    assert (
        run_command(
            [
                "ingest",
                "--images",
                str(folder),
                "--labels",
                str(tiles[1]),
                "--out",
                str(out),
                "--subfolders",
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert (
        "left out: f<0xF4>ret0.jpg (unsafe-name: the name has bytes that are not UTF-8)" in printed
    )
    assert "left out: up/ (same-folder: " in printed
    assert "unsafe-name, such as f<0xF4>ret0.jpg: the name has bytes that are not UTF-8" in printed
    records = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert sorted(record["kind"] for record in records) == ["same-folder", *["unsafe-name"] * 15]
    assert {record["row"] for record in records} == {0}
    assert tree(out / "shards") == tree(dataset_folder(dataset) / "shards")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            [f"{name},{label}" for name in "abcdefgh" for label in "xy"],
            ("16 contradicting-labels", "--join-rows"),
        ),
        ([f"gone_{i},x" for i in range(12)], ("12 missing", "how tiles are named")),
        ([f"../{i},x" for i in range(12)], ("12 unsafe-name", "correct the names")),
        ([f"{i}," for i in range(12)], ("12 no-labels", "--allow-empty")),
    ],
)
def test_many_bad_rows_of_one_kind_are_told_what_they_mean(tiles, tmp_path, capsys, rows, words):
    name = sorted(tiles[0].iterdir())[0].stem
    (tmp_path / "labels.csv").write_text("\n".join(["image_name,tags", f"{name},x", *rows]))
    command = [
        "ingest",
        "--images",
        str(tiles[0]),
        "--labels",
        str(tmp_path / "labels.csv"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert run_command(command) == 3
    message = capsys.readouterr().err
    assert all(word in message for word in words) and "no dataset was written" in message


def test_many_pictures_of_16_bits_are_told_which_flags_help(tmp_path, capsys):
    for i in range(12):
        (tmp_path / f"t_{i}.tif").write_bytes(four_bands())
    (tmp_path / "labels.csv").write_text(
        "image_name,tags\n" + "".join(f"t_{i},x\n" for i in range(12))
    )
    command = [
        "ingest",
        "--images",
        str(tmp_path),
        "--labels",
        str(tmp_path / "labels.csv"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert run_command(command) == 3
    assert "12 bands" in (message := capsys.readouterr().err) and "--bands 3,2,1 --scale" in message
    assert run_command([*command, "--bands", "3,2,1", "--scale", "0,500"]) == 0


def test_joined_rows_and_classes_from_a_file_give_the_dataset_of_one_row_a_tile(
    tiles, dataset, tmp_path
):
    lines = Path(tiles[1]).read_text().splitlines()
    long = [
        f"{name},{tag}"
        for name, tags in (line.split(",") for line in lines[1:])
        for tag in tags.split()
    ]
    (tmp_path / "long.csv").write_text("\n".join([lines[0], *long]))
    (tmp_path / "classes.txt").write_text("\ufeff" + "\r\n".join(dataset.classes), newline="")
    command = [
        "ingest",
        "--images",
        str(tiles[0]),
        "--labels",
        str(tmp_path / "long.csv"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert run_command([*command, "--join-rows", "--classes", str(tmp_path / "classes.txt")]) == 0
    assert open_dataset(str(tmp_path / "out")).hash == dataset.hash


def test_a_split_takes_tables_and_lists_as_ingest_does(tiles, dataset, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(dataset.path, copy)
    names = all_names(dataset)
    frame = {"tile": [f"{name}.JPG" for name in names], "fold": [i % 2 for i in range(len(names))]}
    pq.write_table(pa.table(frame), tmp_path / "folds.parquet")
    by_table = [
        "--by",
        "column",
        "--table",
        str(tmp_path / "folds.parquet"),
        "--column",
        "fold",
        "--valid-values",
        "1",
    ]
    assert (
        run_command(
            ["data", "split", str(copy), "--name", "one", *by_table, "--name-column", "tile"]
        )
        == 0
    )
    (tmp_path / "valid.txt").write_bytes(
        b"\xef\xbb\xbf" + "\r\n".join(f"{name}.JPG" for name in names[1::2]).encode()
    )
    assert (
        run_command(
            [
                "data",
                "split",
                str(copy),
                "--name",
                "two",
                "--by",
                "list",
                "--valid-list",
                str(tmp_path / "valid.txt"),
            ]
        )
        == 0
    )
    one, two = (open_dataset(str(copy)).split(name) for name in ("one", "two"))
    assert one.equals(two) and (one["part"] == "valid").sum() == len(names) // 2


# Test folders


@pytest.fixture
def parted(tmp_path):
    """Pictures in train/3, train/7, valid/3 and valid/7, 25 in each, and 70 in test: two shards of either kind."""
    folder = tmp_path / "digits"
    paths = [
        f"{part}/{digit}/{i}" for part in ("train", "valid") for digit in "37" for i in range(25)
    ]
    paths += [f"test/{i}" for i in range(70)]
    for seed, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{path}.png").write_bytes(encoded(noise(size=(16, 16), seed=seed), "PNG"))
    return folder


def by_folder(folder, out, *more):
    """The arguments of an ingest whose folders are labels and parts."""
    where = ["--images", str(folder), "--labels", "folders", "--out", str(out)]
    return ["ingest", *where, "--split", "folder", "--valid-values", "valid", *more]


def test_tiles_of_a_test_folder_are_null_in_shards_of_their_own_and_change_no_other(
    parted, tmp_path, capsys
):
    (parted / "test" / "broken.png").write_bytes(b"no picture")
    arguments = by_folder(parted, tmp_path / "out", "--test-folder", "test")
    assert run_command(arguments) == 0
    said = capsys.readouterr().out
    assert "170 tiles, 2 classes" in said
    assert "  tiles without a target, of test folders: 70\n" in said
    assert "  quarantined: not-an-image: 1\n" in said
    found = open_dataset(str(tmp_path / "out"))
    names = all_names(found)
    assert found.known.tolist() == [not name.startswith("test/") for name in names]
    assert found.known.tolist() == [True] * 100 + [False] * 70
    assert found.manifest["schema_version"] == 2 and damages(found) == []
    column = [pq.read_table(shard).column("target").to_pylist() for shard in found.shards]
    assert [set(map(str, targets)) for targets in column] == [
        {"[1, 0]", "[0, 1]"},
        {"[1, 0]", "[0, 1]"},
        {"None"},
        {"None"},
    ]
    parts = found.split("folder").set_index("image_name")["part"]
    assert parts.value_counts().to_dict() == {"test": 70, "train": 50, "valid": 50}
    tests = set(names_of(found, np.flatnonzero(~found.known)))
    assert set(names_of(found, found.part_rows("folder", "test"))) == tests
    contents = dict(zip(names, read_images(found, range(found.rows)), strict=True))
    assert contents["test/7"] == (parted / "test" / "7.png").read_bytes()
    # The same tiles without the test folder: equal shards, as bytes.
    plain = by_folder(parted, tmp_path / "plain", "--folders", "train", "--folders", "valid")
    assert run_command(plain) == 0
    shards = tree(tmp_path / "plain" / "shards")
    assert shards.items() <= tree(tmp_path / "out" / "shards").items() and len(shards) == 2
    assert open_dataset(str(tmp_path / "plain")).manifest["schema_version"] == 1


def test_a_dataset_made_with_other_test_folders_is_never_overwritten(parted, tmp_path, capsys):
    arguments = by_folder(parted, tmp_path / "out", "--test-folder", "test")
    assert run_command(arguments) == 0 and run_command(arguments) == 0
    assert "is there already" in capsys.readouterr().out
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "0.png").write_bytes(encoded(noise(size=(16, 16), seed=999), "PNG"))
    assert run_command([*arguments, "--test-folder", str(tmp_path / "more")]) == 3
    assert "holds a dataset made with other test folders" in capsys.readouterr().err


def test_a_folder_named_test_is_no_class_and_nothing_is_written(parted, tmp_path, capsys):
    assert run_command(by_folder(parted, tmp_path / "out")) == 3
    said = capsys.readouterr().err
    assert 'the folder "test" with its 70 pictures would become a class' in said
    assert "--test-folder test" in said and "--folders train --folders valid" in said
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]
    listed = by_folder(parted, tmp_path / "out", "--classes", "3,7,test")
    assert run_command(listed) == 0
    assert open_dataset(str(tmp_path / "out")).classes == ["3", "7", "test"]


@pytest.mark.slow
def test_an_ingest_with_a_test_folder_that_was_cut_goes_on_to_the_same_bytes(
    parted, tmp_path, monkeypatch, logged
):
    tiles = images_in(str(parted), subfolders=True).add_test_folder("test").label_from_folders()
    divided_tiles = tiles.split(by="folder", valid_values=["valid"])
    ingest(divided_tiles, str(tmp_path / "whole"))

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "_finish", stop)
        ingest(divided_tiles, str(tmp_path / "out"))
    # One shard of either kind was not finished.
    for number in (1, 2):
        (tmp_path / "out.partial" / "shards" / f"part-{number:05}.parquet").unlink()
    logged.clear()
    ingest(divided_tiles, str(tmp_path / "out"))
    assert "ingest: 2 shards are there from an earlier, unfinished ingest" in logged
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_the_same_pictures_with_and_without_a_target_are_different_shards():
    row = {"image_name": "a", "path": "a.png", "stamp": "1 2", "target": np.zeros(2, np.uint8)}
    blocks = [pd.DataFrame([row | {"known": known}]) for known in (True, False)]
    assert len({module._key(block, None) for block in blocks}) == 2


# Tasks of several shards


@pytest.mark.parametrize(
    ("shards", "cpus", "tasks"),
    [(3, 2, 3), (16, 2, 16), (977, 2, 62), (977, 16, 140), (977, 400, 977)],
)
def test_a_task_takes_several_shards_where_there_are_many(shards, cpus, tasks):
    blocks = [pd.DataFrame({"shard": [number] * 3}) for number in range(shards)]
    joined = module._joined(blocks, cpus)
    assert len(joined) == tasks
    assert pd.concat(joined)["shard"].tolist() == pd.concat(blocks)["shard"].tolist()


def test_several_shards_in_a_task_give_the_same_bytes(tiles, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "rows_per_shard", lambda rows: 16)
    ingest(divided(*tiles), str(tmp_path / "one"))
    monkeypatch.setattr(module, "TASKS_OF_CPU", 1)
    done = ingest(divided(*tiles), str(tmp_path / "several"))
    assert len(done.dataset.shards) == 10 and damages(done.dataset) == []
    assert tree(tmp_path / "several") == tree(tmp_path / "one")
