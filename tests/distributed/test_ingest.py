"""Ingest: several processes, the same bytes twice, bad files counted and never fatal within the budget."""

import json
import shutil

import pytest
from PIL import Image

from raytrain.cli import run_command
from raytrain.data.dataset import damages, open_dataset, read_images
from raytrain.distributed import ingest as module
from raytrain.distributed.ingest import ingest, rows_per_shard

pytestmark = pytest.mark.usefixtures("cluster")


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


def test_several_processes_share_the_gate_and_two_ingests_are_the_same_bytes(tiles, dataset, tmp_path, capsys):
    done = ingest(str(tiles[0]), str(tiles[1]), str(tmp_path / "again"))
    assert len(done.pids) > 1
    printed = capsys.readouterr().out
    assert all(f"(by process {pid})" in printed for pid in done.pids)
    assert tree(tmp_path / "again") == tree(dataset_folder(dataset))


def dataset_folder(dataset):
    from pathlib import Path

    return Path(dataset.place)


def test_the_pictures_in_the_shards_are_the_files(tiles, dataset):
    for name, content in zip(dataset.table["image_name"], read_images(dataset, range(dataset.rows)), strict=True):
        assert content == (tiles[0] / f"{name}.jpg").read_bytes()
    assert damages(dataset) == []


def test_a_second_ingest_says_what_is_there_and_changes_nothing(tiles, dataset, capsys):
    before = {p: p.stat().st_mtime_ns for p in dataset_folder(dataset).rglob("*")}
    arguments = ["ingest", "--images", str(tiles[0]), "--labels", str(tiles[1]), "--out", dataset.place]
    assert run_command(arguments) == 0
    assert "is there already" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in dataset_folder(dataset).rglob("*")} == before


def test_a_dataset_is_never_overwritten_by_another(tiles, dataset, capsys):
    arguments = ["ingest", "--images", str(tiles[0]), "--labels", str(tiles[1]), "--out", dataset.place, "--seed", "7"]
    assert run_command(arguments) == 3
    assert "never overwrites" in capsys.readouterr().err


def test_bad_files_are_listed_and_all_good_tiles_are_kept(tiles, damaged, dataset, tmp_path):
    done = ingest(str(damaged), str(tiles[1]), str(tmp_path / "out"))
    records = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert sorted(record["kind"] for record in records) == ["missing", "not-an-image", "truncated"]
    bad = {record["image_name"] for record in records}
    assert set(done.dataset.table["image_name"]) == set(dataset.table["image_name"]) - bad
    # The split is drawn on the rows of the label file: no other tile changed its part.
    parts = [
        d.split("random").set_index("image_name")["part"].drop(bad, errors="ignore") for d in (done.dataset, dataset)
    ]
    assert parts[0].to_dict() == parts[1].to_dict()


def test_more_bad_files_than_allowed_leave_only_the_list(tiles, damaged, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["ingest", "--images", str(damaged), "--labels", str(tiles[1]), "--out", str(out), "--max-bad", "2"]
    assert run_command(arguments) == 3
    message = capsys.readouterr().err
    assert "3 of 160 tiles cannot be used" in message and f"{out}.quarantine.jsonl" in message
    assert len((tmp_path / "out.quarantine.jsonl").read_text().splitlines()) == 3
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "images") == ["out.quarantine.jsonl"]
    assert run_command([*arguments[:-1], "3"]) == 0
    assert not (tmp_path / "out.quarantine.jsonl").exists()


def test_an_ingest_that_is_cut_leaves_nothing_and_the_next_succeeds(tiles, tmp_path, monkeypatch):
    def cut(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_finish", cut)
    arguments = ["ingest", "--images", str(tiles[0]), "--labels", str(tiles[1]), "--out", str(tmp_path / "out")]
    assert run_command(arguments) == 130
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    (tmp_path / "out.partial" / "shards").mkdir(parents=True)  # what a SIGKILL leaves
    assert run_command(arguments) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_check_names_every_damage(dataset, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(dataset.place, copy)
    assert run_command(["data", "check", str(copy), "--out", str(tmp_path)]) == 0
    shard = copy / "shards" / "part-00001.parquet"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    (copy / "splits" / "random.parquet").unlink()
    assert run_command(["data", "check", str(copy)]) == 3
    message = capsys.readouterr().err
    assert "part-00001.parquet is damaged" in message and "random.parquet is missing" in message


def test_shards_depend_on_the_rows_alone():
    assert [rows_per_shard(n) for n in (10, 1024, 1600, 40479)] == [64, 64, 100, 1024]


def test_a_tile_of_another_size_and_a_png_pass_and_are_counted(tiles, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(tiles[0], folder)
    first = sorted(folder.iterdir())[0]
    Image.open(first).convert("RGB").resize((200, 100)).save(first, "PNG")
    done = ingest(str(folder), str(tiles[1]), str(tmp_path / "out"))
    assert done.counts["size 200x100"] == 1 and done.dataset.tile_size == 256
    assert open_dataset(done.dataset.place).rows == 160
