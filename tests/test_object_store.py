"""The same on s3:// as on a disk, against a local server."""

import shlex
import tempfile
from pathlib import Path

import pytest
import yaml

from raytrain import storage
from raytrain.cli.main import run_command
from raytrain.data.dataset import open_dataset
from raytrain.data.sources import images_in
from raytrain.distributed import ingest as module
from raytrain.distributed.ingest import ingest
from raytrain.errors import DataError, RaytrainError

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture(scope="module")
def bucket():
    """Makes a URI of a place in a bucket; keys stand in it, so that Ray's processes have them too."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    query = (
        f"?scheme=http&endpoint_override={host}:{port}&region=us-east-1&allow_bucket_creation=true"
    )
    storage.make_dir(f"s3://KEY:SECRET@tiles-bucket/start{query}")
    yield lambda path: f"s3://KEY:SECRET@tiles-bucket/{path}{query}"
    server.stop()


@pytest.fixture(scope="module")
def uploaded(bucket, tiles):
    for path in tiles[0].iterdir():
        storage.write_bytes(bucket(f"{tiles[0].name}/{path.name}"), path.read_bytes())
    storage.write_bytes(bucket("labels.csv"), tiles[1].read_bytes())
    return bucket(tiles[0].name), bucket("labels.csv")


def objects(uri):
    return {
        file.path: storage.read_bytes(storage.join(uri, file.path))
        for file in storage.files(uri, recursive=True)
    }


def test_an_ingest_from_and_to_a_bucket_gives_the_local_bytes(
    uploaded, bucket, dataset, tmp_path, capsys
):
    out = bucket("datasets/planet")
    command = ["ingest", "--images", uploaded[0], "--labels", uploaded[1], "--out", out]
    assert run_command(command) == 0
    assert "SECRET" not in capsys.readouterr().out
    made, local = open_dataset(out), open_dataset(dataset.path)
    assert made.hash == local.hash and made.split_hash("random") == local.split_hash("random")
    assert not [path for path in objects(out) if path.startswith("progress")]
    assert run_command(command) == 0 and "is there already" in capsys.readouterr().out
    assert run_command(["data", "check", out, "--out", str(tmp_path)]) == 0
    assert "SECRET" not in capsys.readouterr().out
    assert not any(b"SECRET" in path.read_bytes() for path in tmp_path.iterdir())
    assert not any(b"SECRET" in content for content in objects(out).values())
    assert (
        run_command(["data", "split", out, "--name", "cv", "--by", "stratified", "--folds", "2"])
        == 0
    )
    assert set(open_dataset(out).split("cv-1")["part"]) == {"train", "valid"}


def test_an_ingest_to_a_bucket_that_was_cut_goes_on(uploaded, bucket, dataset, monkeypatch, logged):
    out = bucket("datasets/cut")
    divided = images_in(uploaded[0]).label_from_file(uploaded[1]).split()

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_finish", stop)
        with pytest.raises(KeyboardInterrupt):
            ingest(divided, out)
    storage.remove(storage.join(out, "progress", "00001.json"))
    # Of a process that was killed while it tried the place.
    storage.write_bytes(storage.join(out, ".raytrain-marker-0123abcd"), b"marker")
    with pytest.raises(DataError, match="is not a dataset"):
        open_dataset(out)
    assert ingest(divided, out).dataset.hash == dataset.hash
    assert "ingest: 2 shards are there from an earlier, unfinished ingest" in logged


def test_too_many_bad_tiles_leave_only_the_list_in_the_bucket(bucket, tiles):
    for i in range(10):
        content = (tiles[0] / f"synthetic_{i:06}.jpg").read_bytes() if i else b"no picture"
        storage.write_bytes(bucket(f"few/{i}.jpg"), content)
    divided = images_in(bucket("few")).label_with(lambda name: "x").split()
    with pytest.raises(DataError, match="1 not-an-image"):
        ingest(divided, bucket("datasets/bad"), max_bad=0)
    assert [file.path for file in storage.files(bucket("datasets"))] == ["bad.quarantine.jsonl"]
    assert b"SECRET" not in storage.read_bytes(bucket("datasets/bad.quarantine.jsonl"))
    assert not objects(bucket("datasets/bad"))


def test_tiles_without_labels_are_listed_without_the_keys(bucket, tiles):
    for i in range(20):
        storage.write_bytes(
            bucket(f"blank/{i}.jpg"), (tiles[0] / f"synthetic_{i:06}.jpg").read_bytes()
        )
    divided = images_in(bucket("blank")).label_with(lambda name: "" if name == "3" else "x").split()
    assert [record["kind"] for record in divided.unusable()] == ["no-labels"]
    assert "SECRET" not in str(divided.unusable()) and "tiles-bucket/blank/3.jpg" in str(
        divided.unusable()
    )


def test_a_test_folder_in_a_bucket_is_given_by_its_name_or_uri(bucket):
    for path in ("set/train/a/0.png", "set/train/b/0.png", "set/test/0.png", "more/0.png"):
        storage.write_bytes(bucket(f"parts/{path}"), b"x")
    images = images_in(bucket("parts/set"), subfolders=True)
    for folder in ("test", bucket("parts/set/test")):
        tiles = images.add_test_folder(folder).label_from_folders()
        assert tiles.names == ["train/a/0", "train/b/0", "test/0"] and tiles.unlisted == []
    more = tiles.add_test_folder(bucket("parts/more"))
    assert more.names[-1] == "0" and "SECRET" not in str(more.source)
    with pytest.raises(DataError, match=r"the test folder tset does not exist") as error:
        images.add_test_folder("tset")
    assert "SECRET" not in str(error.value)


def test_errors_do_not_show_the_keys_of_a_uri(bucket):
    with pytest.raises(RaytrainError) as caught:
        open_dataset(bucket("nowhere"))
    assert "SECRET" not in str(caught.value) and "s3://***@tiles-bucket/nowhere" in str(
        caught.value
    )


@pytest.mark.slow
def test_a_search_in_a_bucket_leaves_the_keys_nowhere_and_prints_a_place_that_works(
    uploaded, bucket, tmp_path, monkeypatch, capsys
):
    searches, data = (
        bucket(path).replace("KEY:SECRET", "KEY:S3CR3TKEY")
        for path in ("searches", "datasets/searched")
    )
    ingested = ["ingest", "--images", uploaded[0], "--labels", uploaded[1], "--out", data]
    space = tmp_path / "space.yaml"
    space.write_text(yaml.safe_dump({"stages.1.lr": {"loguniform": [0.001, 0.1]}}))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "ENV1RONMENTKEY")
    command = [
        "tune",
        "--config",
        "smoke",
        "--stages",
        "1",
        "--dataset",
        data,
        "--space",
        str(space),
        "--num-samples",
        "1",
        "--name",
        "s",
        "--storage",
        searches,
    ]
    assert run_command(ingested) == 0 and run_command(command) == 0
    said = capsys.readouterr().out
    # What is left in this machine's temporary folder includes the logs of Ray.
    left = {
        str(path): path.read_bytes()
        for path in Path(tempfile.gettempdir()).rglob("*")
        if path.is_file()
    }
    there = objects(searches)
    for name, content in (left | there | {"standard output": said.encode()}).items():
        for key in (b"S3CR3TKEY", b"ENV1RONMENTKEY"):
            assert key not in content and key.hex().encode() not in content, name
    assert any("runtime_env_agent" in name for name in left) and not [
        name for name in there if "/ray/" in name
    ]
    words = shlex.split(said.rpartition("next: ")[2])
    assert words[:3] == ["raytrain", "train", "--config"] and "/s/best.yaml?scheme=http" in words[3]
    # The keys are the environment's where a line has left them out.
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "KEY")
    assert run_command([*words[1:], "--print-config"]) == 0
    assert "s/search.html?scheme=http" in said


def test_a_space_that_holds_keys_is_refused(bucket, dataset, tmp_path, capsys):
    space = tmp_path / "space.yaml"
    space.write_text(
        yaml.safe_dump({"init_from": {"choice": [bucket("runs/a"), bucket("runs/b")]}})
    )
    command = ["tune", "--config", "smoke", "--dataset", dataset.path, "--space", str(space)]
    assert run_command([*command, "--storage", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr().err
    assert "the space holds the keys of a URI" in said and "SECRET@" not in said


@pytest.mark.slow
def test_a_run_in_a_bucket_is_trained_and_resumed(uploaded, bucket, tmp_path):
    out, runs = bucket("datasets/run"), bucket("runs")
    assert (
        run_command(["ingest", "--images", uploaded[0], "--labels", uploaded[1], "--out", out]) == 0
    )
    train = ["train", "--config", "smoke", "--dataset", out, "--storage", runs, "--name", "far"]
    assert run_command([*train, "--stages", "1-2"]) == 0
    names = storage.names(storage.join(runs, "far", "checkpoints"), directories=True)
    assert names == ["best", "last", "stage-1-32", "stage-2-32"]
    chained = ["--init-from", "far:stage-2-32", "--stages", "3-4", "--name", "further"]
    assert run_command([*train[:-2], *chained]) == 0
    assert run_command(["runs", "report", "further", "--storage", runs]) == 0
