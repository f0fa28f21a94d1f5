"""`raytrain download planet`: a small Kaggle on this machine, the ways it fails, kills at any point, files at hand."""

import gzip
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import py7zr
import pytest
from kaggle_server import Fault, KaggleServer, redirect

from raytrain.cli.main import run_command
from raytrain.data import download, remote, synthetic
from raytrain.data.download import choose, destination_of
from raytrain.data.labels import read_labels
from raytrain.log import printed

ROOT = Path(__file__).parents[2]
CANARY = "canary-5f2c9e1b7a"
TAR, TEST_TAR, LABELS = "train-jpg.tar.7z", "test-jpg.tar", "train_v2.csv/train_v2.csv"


def tar(content):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def seven(name, data):
    """Not compressed: the same few tiles over and over would shrink to nothing."""
    buffer = io.BytesIO()
    with py7zr.SevenZipFile(buffer, "w", filters=[{"id": py7zr.FILTER_COPY}]) as archive:
        archive.writestr(data, name)
    return buffer.getvalue()


def zipped(content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def planet():
    """The folder that every way must end with: name to bytes. Twelve pictures, repeated to 12 MB, and their labels."""
    pictures = [synthetic.encoded(0, i) for i in range(12)]
    count = 12_000_000 // (sum(map(len, pictures)) // 12)
    content = {f"train-jpg/train_{i}.jpg": pictures[i % 12] for i in range(count)}
    content |= {f"test-jpg/test_{i}.jpg": pictures[i] for i in range(5)}
    rows = "".join(f"train_{i},{' '.join(synthetic.labels(0, i % 12))}\n" for i in range(count))
    return content | {"train_v2.csv": f"image_name,tags\n{rows}".encode()}


def part(planet, *tops):
    return {name: data for name, data in planet.items() if name.split("/")[0] in tops}


@pytest.fixture(scope="session")
def listing(planet):
    """What the competition holds, by names of several years; the label file arrives zipped, as Kaggle sends it."""
    return {
        "train-tif-v2.tar.7z": b"never fetched",
        TAR: seven("train-jpg.tar", tar(part(planet, "train-jpg"))),
        TEST_TAR: tar(part(planet, "test-jpg")),
        LABELS: zipped(part(planet, "train_v2.csv")),
        "test_v2_file_mapping.csv.zip": b"never fetched",
    }


@pytest.fixture
def kaggle(listing, monkeypatch, tmp_path):
    server = KaggleServer(dict(listing))
    for name in list(os.environ):
        if name.startswith("KAGGLE"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")
    monkeypatch.setenv("KAGGLE_USERNAME", "someone")
    monkeypatch.setenv("KAGGLE_KEY", CANARY)
    monkeypatch.setattr(remote, "BACKOFF_S", 0.01)
    redirect(server.port)
    yield server
    server.close()


def tree(folder):
    """Hash of every name and byte under a folder."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        total.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return total.hexdigest()


def written(folder):
    paths = [
        p
        for p in folder.rglob("*")
        if p.is_file() and p.parent.name != "archives" and p.name != "download.json"
    ]
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


def command(out, *more):
    return ["download", "planet", "--out", str(out), *more]


# The ways to the folder


def test_the_competition_fills_the_folder_and_a_second_run_asks_nobody(
    kaggle, tmp_path, planet, capsys
):
    assert run_command(command(tmp_path / "planet")) == 0
    said = capsys.readouterr().out
    assert written(tmp_path / "planet") == planet
    assert f"{TAR}  " in said and "of free disk" in said and "are free" in said
    assert "test-jpg-additional: not there" in said and "the competition has 40,479" in said
    assert (
        f"next: raytrain ingest --images {tmp_path}/planet/train-jpg --labels {tmp_path}/planet/train_v2.csv"
        in said
    )
    fetched = [
        path
        for path, headers in kaggle.requests
        if path.startswith("/blob") and headers.get("Range") is None
    ]
    assert not [path for path in fetched if "tif" in path or "mapping" in path]
    record = json.loads((tmp_path / "planet" / "download.json").read_text())["archives"][TAR]
    assert record["sha256"] == hashlib.sha256(kaggle.files[TAR]).hexdigest() and record[
        "size"
    ] == len(kaggle.files[TAR])
    before, asked = tree(tmp_path / "planet"), len(kaggle.requests)
    assert run_command(command(tmp_path / "planet")) == 0
    assert "is complete" in capsys.readouterr().out
    assert tree(tmp_path / "planet") == before and len(kaggle.requests) == asked


def test_the_dataset_comes_as_one_zip_with_other_names(kaggle, tmp_path, planet, capsys):
    names = {
        f"planet/planet/{name.replace('train_v2', 'train_classes')}": data
        for name, data in planet.items()
    }
    kaggle.files["planets-dataset.zip"] = zipped(names)
    kaggle.etags["planets-dataset.zip"] = '"one"'
    assert run_command(command(tmp_path / "planet", "--from", "dataset")) == 0
    assert written(tmp_path / "planet") == planet


def test_every_way_at_hand_gives_the_same_folder(tmp_path, planet, listing, capsys):
    folder = tmp_path / "folder"
    for name, data in listing.items():
        path = (
            folder
            / "deep"
            / name.split("/")[-1].replace(".csv", ".csv.zip" if "/" in name else ".csv")
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "all.zip").write_bytes(zipped(planet))
    (tmp_path / "all.tar").write_bytes(tar(planet))
    for source in ("folder", "all.zip", "all.tar"):
        assert (
            run_command(command(tmp_path / f"from {source}", "--from", str(tmp_path / source))) == 0
        )
        assert written(tmp_path / f"from {source}") == planet
    assert f"--images '{tmp_path}/from all.tar/train-jpg'" in capsys.readouterr().out


def test_a_folder_of_tiles_is_used_where_it_lies(tmp_path, planet, capsys):
    plain = tmp_path / "planet" / "planet"
    for name, data in part(planet, "test-jpg", "train_v2.csv").items() | {
        ("train-jpg/train_0.jpg", b"x")
    }:
        path = plain / name.replace("train_v2", "train_classes")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for _ in range(2):
        assert run_command(command(tmp_path / "out", "--from", str(tmp_path / "planet"))) == 0
    assert (tmp_path / "out" / "train-jpg").readlink() == plain / "train-jpg"
    assert read_labels(str(tmp_path / "out" / "train_v2.csv")).classes
    assert run_command(command(tmp_path / "second", "--from", str(tmp_path / "out"))) == 0
    assert (tmp_path / "second" / "train-jpg" / "train_0.jpg").read_bytes() == b"x"
    assert "without a picture, such as train_1" in capsys.readouterr().out
    assert (
        run_command(command(plain, "--from", str(plain))) == 0
    )  # the labels get their name, all else is in its place
    assert not (plain / "train-jpg").is_symlink() and (plain / "train_v2.csv").exists()


@pytest.mark.parametrize(
    ("names", "wanted", "chosen"),
    [
        ([f"train-jpg{suffix}" for suffix in (".tar", ".tar.7z")], "train-jpg", "train-jpg.tar.7z"),
        (["train-jpg.tar", "train-tif-v2.tar.7z"], "train-jpg", "train-jpg.tar"),
        (["a/train-jpg.zip/train-jpg.zip"], "train-jpg", "a/train-jpg.zip/train-jpg.zip"),
        (["train-tif-v2.tar.7z", "train-jpg.torrent", "train-jpg-sample.zip"], "train-jpg", None),
        (["train_v2.csv/train_v2.csv"], "train_v2.csv", "train_v2.csv/train_v2.csv"),
        (["train_v2.csv.zip"], "train_v2.csv", "train_v2.csv.zip"),
        (["train_classes.csv", "train_v2.csv.zip"], "train_v2.csv", "train_v2.csv.zip"),
        (["planet/planet/train_classes.csv"], "train_v2.csv", "planet/planet/train_classes.csv"),
    ],
)
def test_the_names_of_all_years_are_known(names, wanted, chosen):
    assert choose(names, wanted) == chosen


def test_tiles_go_where_their_folder_or_name_says():
    assert (
        destination_of("x/test-jpg-additional/test-jpg-additional/file_1.jpg")
        == "test-jpg-additional/file_1.jpg"
    )
    assert destination_of("file_1.jpg") == "test-jpg-additional/file_1.jpg"
    assert destination_of("sample_submission.csv") == "sample_submission_v2.csv"
    assert [
        destination_of(name) for name in ("cat.jpg", "train_0.tif", "train-tif-v2.tar", "notes.txt")
    ] == [None] * 4


def test_a_missing_label_file_is_told_and_the_tiles_stay(tmp_path, planet, capsys):
    (tmp_path / TEST_TAR).write_bytes(tar(part(planet, "train-jpg")))
    assert run_command(command(tmp_path / "out", "--from", str(tmp_path / TEST_TAR))) == 3
    assert "has no train_v2.csv" in capsys.readouterr().err
    (tmp_path / "train_classes.csv").write_bytes(planet["train_v2.csv"])
    assert (
        run_command(command(tmp_path / "out", "--from", str(tmp_path / "train_classes.csv"))) == 0
    )
    assert written(tmp_path / "out") == part(planet, "train-jpg", "train_v2.csv")


@pytest.mark.parametrize("watched", [True, False])
def test_progress_tells_how_far_and_when_it_ends(monkeypatch, capsys, watched):
    clock = iter([0.0, *[30.0 * i for i in range(1, 9)]])  # a quarter of an hour for 30 pieces
    monkeypatch.setattr(download.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(download.time, "time", lambda: 0.0)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: watched)
    with printed(), download.Progress("downloading a") as progress:
        progress.begin(10**6, 31 * 10**6)
        for _ in range(8):
            progress.add(10**6)
    said = capsys.readouterr().out
    assert said.startswith("downloading a: 31.0 MB, 1.0 MB are there\n")
    end = time.strftime("%H:%M:%S", time.localtime(22 * 30))
    assert f"downloading a: 9.0 MB of 31.0 MB, end about {end}" in said
    assert said.count("end about") == (8 if watched else 4) and said.count("\n") == (
        1 if watched else 5
    )


REFUSED_LOCALLY = {
    "no such path": (lambda t: t / "nothing", 2, "does not exist"),
    "a folder of something else": (lambda t: t, 3, "holds nothing of Planet; files there: a.txt"),
    "an archive of something else": (
        lambda t: other_archive(t),
        3,
        "holds no tiles and no labels of Planet",
    ),
    "labels that are a web page": (lambda t: page(t), 3, "is an HTML page"),
}


def other_archive(folder):
    (folder / "other.zip").write_bytes(zipped({"cat.jpg": b"x"}))
    return folder / "other.zip"


def page(folder):
    (folder / "train_v2.csv").write_bytes(b"<html>sign in")
    return folder / "train_v2.csv"


@pytest.mark.parametrize("name", REFUSED_LOCALLY)
def test_what_cannot_be_used_says_so(tmp_path, capsys, name):
    (tmp_path / "a.txt").write_text("a")
    source, code, text = REFUSED_LOCALLY[name]
    assert run_command(command(tmp_path / "out", "--from", str(source(tmp_path)))) == code
    assert text in capsys.readouterr().err


def test_another_archive_of_the_same_name_and_lost_files_are_noticed(tmp_path, planet, capsys):
    path, out = tmp_path / "all.tar", tmp_path / "out"
    path.write_bytes(tar(planet))
    assert run_command(command(out, "--from", str(path))) == 0
    (out / "train-jpg" / "train_3.jpg").unlink()
    assert run_command(command(out, "--from", str(path))) == 3
    assert f"rm -r {out}/train-jpg and run the same command again" in capsys.readouterr().err
    shutil.rmtree(out / "train-jpg")
    assert run_command(command(out, "--from", str(path))) == 0 and written(out) == planet
    path.write_bytes(tar(planet | {"train-jpg/train_0.jpg": b"other"}))
    assert run_command(command(out, "--from", str(path))) == 3
    assert "it is not the archive that" in capsys.readouterr().err
    assert run_command(command(out, "--from", str(other_name(path)))) == 3
    assert (
        "is there already and did not come out of" in capsys.readouterr().err
        and written(out) == planet
    )


def other_name(path):
    return path.rename(path.with_name("more.tar"))


def test_two_at_a_time_do_not_fill_one_folder(tmp_path, planet, capsys):
    import fcntl

    (tmp_path / "out").mkdir()
    handle = os.open(tmp_path / "out", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    assert run_command(command(tmp_path / "out")) == 7
    os.close(handle)
    assert "another process is filling" in capsys.readouterr().err


# Faults

PAGE = Fault(body="<!DOCTYPE html><title>Sign in", type="text/html; charset=utf-8")
RATE = Fault(status=429, headers={"Retry-After": "1"})
# name: (faults by where, exit code, texts, whether it is done after all)
FAULTS = {
    "401": (
        {"list": [Fault(status=401)]},
        4,
        ["does not accept the credentials (401)", "KAGGLE_API_TOKEN"],
    ),
    "403 for the rules": (
        {"file": [Fault(status=403)]},
        4,
        ["rules are not accepted", remote.RULES],
    ),
    "404 for a file": (
        {"file": [Fault(status=404)]},
        4,
        ["has no train-jpg.tar.7z", LABELS, "--from dataset"],
    ),
    "404 for the competition": ({"list": [Fault(status=404)]}, 4, ["has no the list of files"]),
    "429, then fine": (
        {"file": [RATE]},
        0,
        ["no more requests for now (429)", "trying again in 1 s"],
    ),
    "429 for ever": (
        {"list": [RATE | {"for_ever": True, "headers": {"Retry-After": "0"}}]},
        75,
        ["5 times in a row", "again after"],
    ),
    "429 for too long": (
        {"list": [Fault(status=429, headers={"Retry-After": "3600"})]},
        75,
        ["again after", "it resumes the download"],
    ),
    "500, then fine": (
        {"list": [Fault(status=500)], "blob": [Fault(status=503)] * 2},
        0,
        ["fault of its own (500)", "(503)"],
    ),
    "cut at half, then fine": ({"blob": [Fault(cut=0.5)]}, 0, ["are kept; trying again"]),
    "cut, 500, cut, then fine": (
        {"blob": [Fault(cut=0.3), Fault(status=500, body="no"), Fault(status=429), Fault(cut=0.7)]},
        0,
        ["(500)", "(429)"],
    ),
    "changed between two parts": (
        {"blob": [Fault(cut=0.01), Fault(etag='"two"')]},
        0,
        ["has changed at Kaggle since"],
    ),
    "a page in place of the archive": ({"blob": [PAGE]}, 4, [f"a web page came in place of {TAR}"]),
    "a page in place of the list": (
        {"list": [PAGE]},
        4,
        ["a web page came in place of the list of files"],
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_has_its_sentence_and_its_exit_code(kaggle, tmp_path, planet, capsys, name):
    kaggle.faults, code, texts = (
        {k: list(v) for k, v in FAULTS[name][0].items()},
        *FAULTS[name][1:],
    )
    assert run_command(command(tmp_path / "planet")) == code
    said = "".join(capsys.readouterr())
    assert [text for text in texts if text not in said] == []
    assert "Traceback" not in said and "s3cr3t" not in said
    assert code == 0 or ("  next: " in said and f"exit code {code}" in said)
    if code == 0:
        assert written(tmp_path / "planet") == planet
        assert kaggle.sent <= 1.05 * sum(
            len(kaggle.files[name]) for name in (TAR, TEST_TAR, LABELS)
        )


def test_a_file_of_another_length_than_listed_is_not_fetched(kaggle, tmp_path, capsys):
    kaggle.listed[TAR] += 5
    assert run_command(command(tmp_path / "planet")) == 4
    assert (
        f"lists {TAR} with {len(kaggle.files[TAR]) + 5} bytes and sends {len(kaggle.files[TAR])}"
        in capsys.readouterr().err
    )


def test_a_line_that_is_always_cut_stops_with_its_part_and_goes_on_later(
    kaggle, tmp_path, planet, capsys
):
    kaggle.faults = {"blob": [Fault(cut=0.6), *[Fault(cut=0.1)] * 5]}
    out = tmp_path / "planet"
    assert run_command(command(out)) == 75
    said = capsys.readouterr().err
    assert (
        "5 times in a row" in said
        and "MB are kept" in said
        and "run the same command again; it resumes the download" in said
    )
    part = out / "archives" / f"{TAR}.partial"
    assert 0 <= int(0.6 * len(kaggle.files[TAR])) - part.stat().st_size < 2**15
    assert run_command(command(out)) == 0 and written(out) == planet
    assert kaggle.sent <= 1.05 * sum(len(kaggle.files[name]) for name in (TAR, TEST_TAR, LABELS))


@pytest.mark.parametrize("etag", ['W/"weak"', ""])
def test_without_a_sure_identity_a_cut_file_begins_anew(kaggle, tmp_path, planet, etag):
    kaggle.etags = dict.fromkeys(kaggle.files, etag)
    kaggle.faults = {"blob": [Fault(cut=0.5)]}
    assert run_command(command(tmp_path / "planet")) == 0 and written(tmp_path / "planet") == planet
    assert not [headers for _, headers in kaggle.requests if "Range" in headers]
    assert kaggle.sent > 1.4 * len(kaggle.files[TAR])


def test_a_server_that_is_not_there_is_75(kaggle, tmp_path, capsys):
    kaggle.close()
    assert run_command(command(tmp_path / "planet")) == 75
    assert "the connection failed (ConnectionError), 5 times in a row" in capsys.readouterr().err


def test_withdrawn_pictures_are_told_with_what_is_left(kaggle, tmp_path, capsys):
    kaggle.listed = {name: size for name, size in kaggle.listed.items() if "jpg" not in name}
    assert run_command(command(tmp_path / "planet")) == 4
    said = capsys.readouterr().err
    assert (
        f"has no archive train-jpg.tar.7z; available files: train-tif-v2.tar.7z, {LABELS}" in said
    )
    assert "--from dataset" in said and "--from PATH" in said


def test_a_disk_that_is_too_small_is_refused_before_the_first_byte(
    kaggle, tmp_path, capsys, monkeypatch
):
    from raytrain.data import archives

    monkeypatch.setattr(
        archives.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 13_000_000)
    )
    assert run_command(command(tmp_path / "planet")) == 7
    assert "of free disk" in capsys.readouterr().err and kaggle.sent == 0


# Credentials


def test_no_credentials_names_the_three_ways(tmp_path):
    """In a process of its own: Kaggle's client reads its folder when it is imported."""
    code = (
        "import sys\nfrom raytrain.cli.main import run_command\nsys.exit(run_command(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command(tmp_path / "planet")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
        },
    )
    assert done.returncode == 4 and "KAGGLE_API_TOKEN" not in done.stdout
    assert "there are no credentials for Kaggle" in done.stderr and "Traceback" not in done.stderr
    assert [
        way
        for way in ("KAGGLE_API_TOKEN", "KAGGLE_KEY", "kaggle.json", "--from PATH")
        if way not in done.stderr
    ] == []


WAYS = {
    "token": ({"KAGGLE_API_TOKEN": CANARY}, {}),
    "token file": ({}, {"access_token": CANARY}),
    "name and key": ({"KAGGLE_USERNAME": "someone", "KAGGLE_KEY": CANARY}, {}),
    "kaggle.json": ({}, {"kaggle.json": json.dumps({"username": "someone", "key": CANARY})}),
}


@pytest.fixture(scope="module")
def driver():
    """A process that has imported what the command needs; it forks a child for each command."""
    with subprocess.Popen(
        [sys.executable, Path(__file__).with_name("download_driver.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "HOME": "/nonexistent",
            "PYTHONPATH": str(ROOT),
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
            "KAGGLE_USERNAME": "someone",
            "KAGGLE_KEY": "something",
            "KAGGLE_CONFIG_DIR": os.environ["HOME"] + "/kaggle-of-the-driver",
        },
    ) as process:
        yield lambda **task: Child(process, task)
        process.stdin.close()


class Child:
    """A command that runs in a forked process."""

    def __init__(self, process, task):
        self.process = process
        process.stdin.write(json.dumps(task) + "\n")
        process.stdin.flush()
        self.pid = json.loads(process.stdout.readline())

    def result(self):
        """(exit code, or minus the signal; number of file operations; what it printed)."""
        return json.loads(self.process.stdout.readline())


@pytest.mark.parametrize("way", WAYS)
def test_no_way_to_sign_in_leaves_its_secret_anywhere(
    kaggle, tmp_path, planet, capsys, driver, way
):
    variables, files = WAYS[way]
    for name, text in files.items():
        path = tmp_path / "home" / ".kaggle" / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    kaggle.faults = {"blob": [Fault(cut=0.5)], "file": [Fault(status=500, body=CANARY)]}
    for argv, code in ((command(tmp_path / "planet"), 0), (command(tmp_path / "other"), 4)):
        env = variables | {"HOME": str(tmp_path / "home")}
        done = driver(argv=argv, port=kaggle.port, env=env).result()
        assert done["code"] == code
        assert CANARY not in done["output"] and "s3cr3t" not in done["output"]
        kaggle.faults = {
            "list": [
                Fault(
                    status=403,
                    body=json.dumps({"code": 403, "message": CANARY}),
                    type="application/json",
                )
            ]
        }
    authorised = [headers.get("Authorization", "") for _, headers in kaggle.requests]
    assert any(authorised), "it did sign in"
    told = [
        p
        for p in tmp_path.rglob("*")
        if p.is_file() and "home" not in p.parts and CANARY.encode() in p.read_bytes()
    ]
    assert told == [] and written(tmp_path / "planet") == planet


# Kills


SIGNED_IN = {"KAGGLE_USERNAME": "someone", "KAGGLE_KEY": CANARY, "HOME": "/nonexistent"}
RANDOM = random.Random(20171)


def undisturbed(driver, server, tmp_path_factory):
    """Tree hash of a download that nobody disturbs, and the number of its file operations."""
    out = tmp_path_factory.mktemp("undisturbed") / "planet"
    done = driver(argv=command(out), port=server.port, env=SIGNED_IN).result()
    server.close()
    assert done["code"] == 0
    return tree(out), done["operations"]


@pytest.fixture(scope="module")
def whole(driver, listing, tmp_path_factory):
    return undisturbed(driver, KaggleServer(dict(listing)), tmp_path_factory)


@pytest.fixture(scope="module")
def few(planet):
    """A listing with so few tiles that a good part of the file operations is about records and renames."""
    tiles = {name: planet[name] for name in list(part(planet, "train-jpg"))[:12]}
    return {
        TAR: seven("train-jpg.tar", tar(tiles)),
        TEST_TAR: tar(part(planet, "test-jpg")),
        LABELS: zipped(part(planet, "train_v2.csv")),
    }


@pytest.fixture(scope="module")
def whole_of_few(driver, few, tmp_path_factory):
    return undisturbed(driver, KaggleServer(dict(few)), tmp_path_factory)


@pytest.mark.parametrize("share", [round(RANDOM.uniform(0.01, 0.99), 3) for _ in range(10)])
def test_killed_while_it_downloads_it_goes_on(driver, kaggle, whole, tmp_path, share):
    wanted = sum(len(kaggle.files[name]) for name in (TAR, TEST_TAR, LABELS))
    ready, killed = threading.Event(), []

    def kill(sent):
        if sent >= share * wanted and not killed:
            ready.wait(10)
            killed.append(sent)
            os.kill(child.pid, signal.SIGKILL)

    kaggle.on_bytes = kill
    child = driver(argv=command(tmp_path / "planet"), port=kaggle.port, env=SIGNED_IN)
    ready.set()
    assert child.result()["code"] == -signal.SIGKILL and killed
    kaggle.on_bytes = lambda sent: None
    assert (
        driver(argv=command(tmp_path / "planet"), port=kaggle.port, env=SIGNED_IN).result()["code"]
        == 0
    )
    assert tree(tmp_path / "planet") == whole[0]
    assert kaggle.sent <= 1.05 * wanted


@pytest.mark.parametrize("share", [0.0, *(round(RANDOM.uniform(0, 1), 3) for _ in range(20)), 1.0])
def test_killed_at_any_file_operation_it_goes_on(
    driver, kaggle, few, whole_of_few, tmp_path, share
):
    """Opens, renames, links, removals and new folders are counted; it dies just before one of them."""
    kaggle.files, kaggle.listed = few, {name: len(content) for name, content in few.items()}
    at = 1 + round(share * (whole_of_few[1] - 1))
    task = {"argv": command(tmp_path / "planet"), "port": kaggle.port, "env": SIGNED_IN}
    assert driver(**task, kill_at=at).result()["code"] == -signal.SIGKILL
    assert driver(**task).result()["code"] == 0
    assert tree(tmp_path / "planet") == whole_of_few[0]


@pytest.mark.parametrize("at", [18, 26, 32])
def test_killed_while_it_unpacks_a_removed_folder_again_it_goes_on(
    driver, kaggle, few, whole_of_few, tmp_path, at
):
    kaggle.files, kaggle.listed = few, {name: len(content) for name, content in few.items()}
    task = {"argv": command(tmp_path / "planet"), "port": kaggle.port, "env": SIGNED_IN}
    assert driver(**task).result()["code"] == 0
    shutil.rmtree(tmp_path / "planet" / "train-jpg")
    sent = kaggle.sent
    assert driver(**task, kill_at=at).result()["code"] == -signal.SIGKILL
    assert driver(**task).result()["code"] == 0
    assert tree(tmp_path / "planet") == whole_of_few[0] and kaggle.sent == sent


# fastai's samples, and folders that are not Planet's


def sample_of_fastai(planet, folder):
    """planet_sample/labels.csv and planet_sample/train/train_*.jpg."""
    tiles = {
        name.replace("train-jpg", "train"): data
        for name, data in planet.items()
        if name.startswith("train-jpg/")
    }
    few = dict(list(tiles.items())[:12])
    rows = "".join(f"{Path(name).stem},clear primary\n" for name in few)
    return {
        f"{folder}/{name}": data
        for name, data in {**few, "labels.csv": f"image_name,tags\n{rows}".encode()}.items()
    }


@pytest.mark.parametrize("kind", ["tgz", "zip", "folder", "folder above"])
def test_the_samples_of_fastai_are_planets_tiles(tmp_path, planet, capsys, kind):
    content = sample_of_fastai(planet, "planet_sample")
    source = tmp_path / ("planet_sample.tgz" if kind == "tgz" else "planet_sample.zip")
    if kind == "tgz":
        source.write_bytes(gzip.compress(tar(content)))
    elif kind == "zip":
        source.write_bytes(zipped(content))
    else:
        for name, data in content.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(data)
        source = tmp_path / "planet_sample" if kind == "folder" else tmp_path
    out = tmp_path / "here" / "out"
    assert run_command(command(out, "--from", str(source))) == 0
    assert "train_v2.csv: 12 tiles with 2 labels; each has its picture" in capsys.readouterr().out
    assert len(list((out / "train-jpg").iterdir())) == 12


def test_the_train_folder_and_labels_of_other_tiles_are_left_alone(tmp_path, capsys):
    for name in ("mine/train/cat_0.jpg", "mine/labels.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert run_command(command(tmp_path / "out", "--from", str(tmp_path / "mine"))) == 3
    message = capsys.readouterr().err
    assert (
        "holds nothing of Planet" in message
        and "raytrain ingest --images DIR --labels CSV" in message
    )
    assert (
        destination_of("mine/labels.csv") is None
        and destination_of("planet_tiny/labels.csv") == "train_v2.csv"
    )
    assert (
        destination_of("./labels.csv") == "train_v2.csv"
        and destination_of("./train/train_0.jpg") == "train-jpg/train_0.jpg"
    )


def test_labels_with_suffixes_have_their_pictures(tmp_path, planet, capsys):
    rows = ["image_name,tags"]
    for name, data in list(planet.items())[:12]:
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        rows.append(f"{path.name},clear")
    (tmp_path / "mine" / "train_v2.csv").write_text("\n".join(rows))
    assert run_command(command(tmp_path / "out", "--from", str(tmp_path / "mine"))) == 0
    assert "12 tiles with 1 labels; each has its picture" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name",
    [
        "@eaDir/train_0.jpg",
        "train-jpg/.ipynb_checkpoints/train_0.jpg",
        "__MACOSX/train-jpg/._train_0.jpg",
        "._train_v2.csv",
    ],
)
def test_what_a_system_adds_to_an_archive_is_left_out(name):
    assert destination_of(name) is None
