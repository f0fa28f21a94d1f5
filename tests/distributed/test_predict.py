"""`predict` takes the sources that ingest takes, through the same gate; what cannot be used is named and left out."""

import os
import shutil

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from handmade import encoded as encoded_pixels
from handmade import scene, write_dataset
from odd_images import COUNTED, JPEG, QUARANTINED, encoded, four_bands, noise

from raytrain.cli.main import run_command
from raytrain.data.bands import BandRule
from raytrain.data.dataset import all_names
from raytrain.data.images import MAX_BYTES
from raytrain.distributed.ingest import gate_shard
from raytrain.distributed.predict import Predictor
from raytrain.errors import DataError, StorageError
from raytrain.evaluation import predictions


@pytest.fixture(scope="module")
def checkpoint(dataset, tmp_path_factory):
    """A checkpoint of the small network, not trained."""
    from handmade import NETWORK

    from raytrain.checkpoints import writing
    from raytrain.models import networks
    from raytrain.training.transforms import RESIZE_RULE

    path = tmp_path_factory.mktemp("checkpoint") / "last"
    meta = {
        "task": "multi-label",
        "classes": dataset.classes,
        "arch": NETWORK,
        "split": "random",
        "stage": 1,
        "epoch": 1,
        "f2": 0.5,
        "size": 32,
        "normalize": "imagenet",
        "precision": "fp32",
        "resize": {"rule": RESIZE_RULE, "stored_size": 64},
    }
    writing.save(str(path), networks.build(NETWORK, len(dataset.classes), 0.5), meta)
    return str(path)


def block(paths):
    """Rows as predict and as ingest have them."""
    names = [os.path.basename(path) for path in paths]
    columns = {
        "order": range(len(paths)),
        "image_name": names,
        "path": paths,
        "row": -1,
        "shard": 0,
        "key": "",
        "known": True,
    }
    return pd.DataFrame(columns).assign(target=[np.zeros(3, np.uint8)] * len(paths))


def written(folder, files):
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [str(folder / name) for name in files]


def kinds_of_ingest(paths, path, bands=None):
    return {
        record["image_name"]: record["kind"]
        for record in gate_shard(block(paths), str(path), bands)["bad"]
    }


def kinds_of_predict(paths, checkpoint, bands=None):
    found = Predictor(checkpoint, False, bands)(block(paths))
    assert all(found.loc[found["kind"] != "", "detail"]), "each has a reason"
    return dict(zip(found["image_name"], found["kind"], strict=True))


def test_the_gate_of_predict_is_that_of_ingest(tmp_path, checkpoint):
    files = {
        f"bad_{i}{suffix}": content for i, (content, suffix, _) in enumerate(QUARANTINED.values())
    }
    files |= {
        f"odd_{i}{suffix}": content for i, (content, suffix, _) in enumerate(COUNTED.values())
    }
    paths = written(tmp_path, files)
    for name, target in (
        ("loop.jpg", "loop.jpg"),
        ("memory.jpg", "/proc/self/mem"),
        ("gone.jpg", "nowhere"),
    ):
        (tmp_path / name).symlink_to(target)
        paths.append(str(tmp_path / name))
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    paths += [
        str(tmp_path / "folder.jpg"),
        str(tmp_path / "pipe.jpg"),
        str(tmp_path / "absent.jpg"),
    ]
    refused = kinds_of_ingest(paths, tmp_path / "out")
    assert kinds_of_predict(paths, checkpoint) == {
        os.path.basename(path): refused.get(os.path.basename(path), "") for path in paths
    }
    assert {
        name: refused[name] for name in ("memory.jpg", "folder.jpg", "pipe.jpg", "loop.jpg")
    } == dict.fromkeys(("memory.jpg", "folder.jpg", "pipe.jpg", "loop.jpg"), "unreadable")
    assert refused["gone.jpg"] == refused["absent.jpg"] == "missing"
    assert sum(kind != "" for kind in refused.values()) == len(QUARANTINED) + 6


def test_a_shard_that_is_not_the_one_of_the_dataset_is_not_predicted(dataset, checkpoint):
    shard = dataset.shards[0]
    right = dataset.manifest["shards"][0]["sha256"]
    rows = block([shard, shard]).assign(row=[0, 1], sha256=right)
    predictor = Predictor(checkpoint, False)
    assert list(predictor(rows)["kind"]) == ["", ""]
    with pytest.raises(DataError, match=r"it is not the file that dataset\.json names"):
        predictor(rows.assign(sha256="0" * 64))


def test_bands_mean_the_same_for_both(tmp_path, checkpoint):
    files = {
        "a.tif": four_bands((1000, 2000, 3000, 9999)),
        "tiff.jpg": four_bands(),
        "b.jpg": JPEG,
        "c.tif": four_bands((1, 2)),
    }
    paths, rule = written(tmp_path, files), BandRule((3, 2, 1), 0, 10000)
    assert kinds_of_ingest(paths, tmp_path / "out", rule) == {"c.tif": "bands"}
    assert kinds_of_predict(paths, checkpoint, rule) == {
        "a.tif": "",
        "tiff.jpg": "",
        "b.jpg": "",
        "c.tif": "bands",
    }


def test_a_disk_that_gives_nothing_is_not_many_bad_files(tmp_path, checkpoint):
    for i in range(3):
        (tmp_path / f"{i}.jpg").symlink_to("/proc/self/mem")
    paths = [str(tmp_path / f"{i}.jpg") for i in range(3)]
    with pytest.raises(StorageError, match="Input/output error"):
        Predictor(checkpoint, False)(block(paths))
    with pytest.raises(StorageError, match="Input/output error"):
        gate_shard(block(paths), str(tmp_path / "out"))


def test_files_that_are_bad_each_in_its_way_are_no_trouble_of_the_disk(tmp_path, checkpoint):
    paths = written(tmp_path, {"deep.png": QUARANTINED["16-bit grey"][0], "empty.jpg": b""})
    (tmp_path / "memory.jpg").symlink_to("/proc/self/mem")
    for i in range(3):
        (tmp_path / f"loop_{i}.jpg").symlink_to(f"loop_{i}.jpg")
    mixed = [*paths, str(tmp_path / "memory.jpg")]
    loops = [str(tmp_path / f"loop_{i}.jpg") for i in range(3)]
    for some in (mixed, loops):
        assert "" not in kinds_of_predict(some, checkpoint).values()
        assert len(kinds_of_ingest(some, tmp_path / "out")) == 3


def test_of_a_huge_file_little_is_read(tmp_path, checkpoint, monkeypatch):
    from raytrain import storage

    sizes = []
    read = storage.read_bytes
    monkeypatch.setattr(
        storage,
        "read_bytes",
        lambda path, most=-1: sizes.append(len(read(path, most))) or read(path, most),
    )
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(1_500_000_000)
    assert kinds_of_predict([str(tmp_path / "huge.jpg")], checkpoint) == {"huge.jpg": "too-large"}
    assert max(sizes) == MAX_BYTES + 1


def test_folders_lists_and_what_lies_among_them(
    tmp_path, checkpoint, tiles, cluster, capsys, monkeypatch
):
    pictures = sorted(tiles[0].iterdir())[:6]
    for i, path in enumerate(pictures):
        folder = tmp_path / "images" / ("x" if i % 2 else "y")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    (tmp_path / "images" / "x" / "@eaDir").mkdir()
    shutil.copy(pictures[0], tmp_path / "images" / "x" / "@eaDir" / "thumb.jpg")
    (tmp_path / "images" / "x" / "up").symlink_to("..")
    (tmp_path / "images" / "x" / "bad.jpg").symlink_to("/proc/self/mem")
    (tmp_path / "images" / "x" / "deep.png").write_bytes(QUARANTINED["16-bit grey"][0])
    with open(os.fsencode(tmp_path / "images" / "y") + b"/f\xf4ret.jpg", "wb") as file:
        file.write(JPEG)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "extra.jpg").write_bytes(encoded(noise()))
    (tmp_path / "more" / "list.txt").write_bytes(b"\xef\xbb\xbfextra.jpg\r\nabsent.jpg\r\n")
    monkeypatch.chdir(tmp_path)
    out = str(tmp_path / "p.parquet")
    command = [
        "predict",
        "--checkpoint",
        checkpoint,
        "--out",
        out,
        "--images",
        "images",
        "--subfolders",
    ]
    assert run_command(command) == 0
    printed = capsys.readouterr().out
    for line in (
        "left out: x/bad (unreadable: ",
        "left out: x/deep (16-bit: ",
        "left out: x/up/ (same-folder: ",
        "left out: y/f<0xF4>ret.jpg (unsafe-name: ",
    ):
        assert line in printed
    wanted = [f"{'x' if i % 2 else 'y'}/{path.stem}" for i, path in enumerate(pictures)]
    assert sorted(predictions.read(out).names) == sorted(wanted)
    command = [
        "predict",
        "--checkpoint",
        checkpoint,
        "--out",
        out,
        "--images",
        "more/list.txt",
        "--images",
        "images/y",
    ]
    assert run_command(command) == 0
    assert "left out: absent (missing: no such file)" in capsys.readouterr().out
    assert sorted(predictions.read(out).names) == sorted(
        ["extra", *(path.stem for path in pictures[::2])]
    )


def test_a_source_with_no_usable_picture_says_why(tmp_path, checkpoint, cluster, capsys):
    (tmp_path / "deep.png").write_bytes(QUARANTINED["16-bit grey"][0])
    command = [
        "predict",
        "--checkpoint",
        checkpoint,
        "--out",
        str(tmp_path / "p"),
        "--images",
        str(tmp_path),
    ]
    assert run_command(command) == 3
    assert (
        "none of the 1 pictures can be used; the first, deep (16-bit: " in capsys.readouterr().err
    )


@pytest.fixture
def partly_known(dataset, tmp_path):
    """Six tiles with labels and four without, two of which share a shard with tiles that have some."""
    labels = [
        *dataset.classes[:3],
        f"{dataset.classes[0]} {dataset.classes[4]}",
        *dataset.classes[5:7],
    ]
    tiles = {
        f"t{i}": (encoded_pixels(scene(i)), label) for i, label in enumerate([*labels, *[None] * 4])
    }
    parts = ["train"] * 3 + ["valid"] * 2 + ["test"] * 5
    return write_dataset(tmp_path / "data", tiles, dataset.classes, {"random": parts})


@pytest.mark.parametrize(
    ("part", "known"),
    [
        ("all", [True] * 6 + [False] * 4),
        pytest.param("test", [True, *[False] * 4], marks=pytest.mark.slow),
        pytest.param("valid", [True] * 2, marks=pytest.mark.slow),
    ],
)
def test_tiles_without_a_target_are_predicted_and_have_null_there(
    partly_known, checkpoint, cluster, tmp_path, capsys, part, known
):
    out = str(tmp_path / "p.parquet")
    command = ["predict", "--checkpoint", checkpoint, "--dataset", partly_known.path]
    assert run_command([*command, "--part", part, "--out", out]) == 0
    found = predictions.read(out)
    assert found.is_known.tolist() == known
    names = all_names(partly_known)
    rows = [names.index(name) for name in found.names]
    assert partly_known.known[rows].tolist() == known
    assert found.target.tolist() == partly_known.targets[rows].tolist()
    column = pq.read_table(out).column("target").to_pylist()
    assert [row is not None for row in column] == known
    said = capsys.readouterr().out
    assert ("4 of these tiles have no target" in said) == (part != "valid")
    if part == "all":
        assert run_command(["evaluate", out, "--out", str(tmp_path / "evaluation")]) == 0
        said = capsys.readouterr().out
        assert "F2 of 6 tiles" in said and "4 tiles without a target were left out" in said
        assert run_command(["submission", out, "--out", str(tmp_path / "s.csv")]) == 0
        assert len(pd.read_csv(tmp_path / "s.csv")) == 10


def test_a_part_of_tiles_without_a_target_has_no_column_and_goes_to_a_submission(
    dataset, checkpoint, cluster, tmp_path, capsys
):
    tiles = {
        f"t{i}": (encoded_pixels(scene(i)), label)
        for i, label in enumerate(["clear"] * 4 + [None] * 3)
    }
    parts = ["train"] * 2 + ["valid"] * 2 + ["test"] * 3
    data = write_dataset(tmp_path / "data", tiles, dataset.classes, {"random": parts})
    out = str(tmp_path / "p.parquet")
    command = ["predict", "--checkpoint", checkpoint, "--dataset", data.path, "--part", "test"]
    assert run_command([*command, "--out", out]) == 0
    assert "next: raytrain submission" in capsys.readouterr().out
    assert predictions.read(out).target is None and len(predictions.read(out).names) == 3
    assert "target" not in pq.read_schema(out).names
    assert run_command(["evaluate", out, "--out", str(tmp_path / "evaluation")]) == 3
    assert "the predictions have no targets" in capsys.readouterr().err
