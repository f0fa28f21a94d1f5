"""Archives: what is unpacked, what is refused whole, and what a damaged one says."""

import errno
import io
import os
import shutil
import stat
import struct
import tarfile
import zipfile
from pathlib import Path

import py7zr
import pytest

from raytrain.cli.main import run_command
from raytrain.data import archive_formats, archives, synthetic
from raytrain.data.archives import Limits, extract
from raytrain.data.download import destination_of
from raytrain.errors import DataError, StorageError

SMALL = Limits(members=1000, total=8 * 2**20)


@pytest.fixture(scope="module")
def tiles():
    """Member name to bytes of twelve tiles and their labels."""
    content = {f"train-jpg/train_{i}.jpg": synthetic.encoded(0, i) for i in range(12)}
    rows = "".join(f"train_{i},{' '.join(synthetic.labels(0, i))}\n" for i in range(12))
    return content | {"train_v2.csv": f"image_name,tags\n{rows}".encode()}


def tar(path, content, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def tar_of(path, *infos):
    with tarfile.open(path, "w") as archive:
        for info, data in infos:
            archive.addfile(info, io.BytesIO(data))
    return path


def entry(name, kind=tarfile.REGTYPE, link="", size=0):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


def zipped(path, content, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def seven(path, content):
    with py7zr.SevenZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(data, name)
    return path


def seven_tar(path, content):
    inner = tar(path.with_name("train-jpg.tar"), content)
    with py7zr.SevenZipFile(path, "w") as archive:
        archive.write(inner, inner.name)
    return path


KINDS = {
    "tar": lambda p, c: tar(p / "a.tar", c),
    "tar.gz": lambda p, c: tar(p / "a.tar.gz", c, "w:gz"),
    "zip": lambda p, c: zipped(p / "a.zip", c, compression=zipfile.ZIP_DEFLATED),
    "7z": lambda p, c: seven(p / "a.7z", c),
    "tar.7z": lambda p, c: seven_tar(p / "a.tar.7z", c),
    "zip of a tar.7z": lambda p, c: zipped(
        p / "a.zip", {"train-jpg.tar": KINDS["tar"](p, c).read_bytes()}
    ),
    "misnamed": lambda p, c: tar(p / "a.7z", c),
}


def written(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_files_and_leaves_others_out(tmp_path, tiles, kind):
    strange = {
        "readme.txt": b"x",
        "train-tif-v2/train_0.tif": b"II*\0",
        "__MACOSX/train-jpg/._train_0.jpg": b"mac",
    }
    path = KINDS[kind](tmp_path, tiles | strange)
    done = extract(path, tmp_path / "out", destination_of)
    assert written(tmp_path / "out") == tiles
    assert done.files == {"train-jpg": 12, "train_v2.csv": 1} and done.others == 3
    assert done.bytes["train-jpg"] == sum(len(v) for k, v in tiles.items() if k.endswith(".jpg"))


# Hostile archives


def symlinked_folder(path):
    return tar_of(
        path,
        (entry("train-jpg", tarfile.SYMTYPE, "/etc"), b""),
        (entry("train-jpg/train_0.jpg", size=1), b"x"),
    )


def symlinked_7z(path):
    link = path.with_name("train_0.jpg")
    link.symlink_to("/etc/passwd")
    with py7zr.SevenZipFile(path, "w") as archive:
        archive.write(link, "train-jpg/train_0.jpg")
    return path


def symlinked_zip(path):
    info = zipfile.ZipInfo("train-jpg/train_0.jpg")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return zipped(path, {info: "/etc/passwd"})


def renamed(path, old, new):
    """Rewrites a member's name in a zip, which Python's own writer would correct."""
    path.write_bytes(path.read_bytes().replace(old, new))
    return path


def seven_escaping(path):
    with py7zr.SevenZipFile(path, "w") as archive:
        archive.writestr(b"x", "aa/train_0.jpg")
        archive.files.files_list[0]["filename"] = "../train_0.jpg"
        archive.header.files_info.files[0]["filename"] = "../train_0.jpg"
    return path


def lying_zip(path, size):
    """A stored 64-byte member whose headers both claim another size once it is unpacked."""
    zipped(path, {"train-jpg/train_0.jpg": os.urandom(64)}, compression=zipfile.ZIP_DEFLATED)
    raw = bytearray(path.read_bytes())
    local, central = raw.index(b"PK\3\4"), raw.index(b"PK\1\2")
    raw[local + 22 : local + 26] = raw[central + 24 : central + 28] = struct.pack("<I", size)
    path.write_bytes(raw)
    return path


def zip_with(path, names):
    with zipfile.ZipFile(path, "w") as archive:
        for number, name in enumerate(names):
            archive.writestr(name, f"{number}")
    return path


BIG = bytes(2 * 2**20)
HOSTILE = {
    "tar ../": (lambda p: tar(p / "a.tar", {"../train_0.jpg": b"x"}), "leads out of the target"),
    "tar with a .. inside": (
        lambda p: tar(p / "a.tar", {"train-jpg/../../train_0.jpg": b"x"}),
        "leads out",
    ),
    "tar absolute": (lambda p: tar(p / "a.tar", {f"{p}/train_0.jpg": b"x"}), "leads out"),
    "tar ../ that is no picture": (
        lambda p: tar(p / "a.tar", {"train-jpg/train_0.jpg": b"x", "../notes": b"x"}),
        "leads",
    ),
    "tar symlink, then write through it": (
        lambda p: symlinked_folder(p / "a.tar"),
        "link or a device",
    ),
    "tar hard link": (
        lambda p: tar_of(p / "a.tar", (entry("train_0.jpg", tarfile.LNKTYPE, "/etc/passwd"), b"")),
        "link",
    ),
    "tar device": (
        lambda p: tar_of(p / "a.tar", (entry("train_0.jpg", tarfile.CHRTYPE), b"")),
        "link or a device",
    ),
    "tar.7z with ../ in the tar": (
        lambda p: seven_tar(p / "a.tar.7z", {"../train_0.jpg": b"x"}),
        "leads out",
    ),
    "tar.gz of a long name that fills the memory": (
        lambda p: long_name(p / "a.tar.gz"),
        "a header of",
    ),
    "zip ../": (lambda p: zipped(p / "a.zip", {"../train_0.jpg": b"x"}), "leads out"),
    "zip backslashes": (lambda p: zipped(p / "a.zip", {"..\\train_0.jpg": b"x"}), "leads out"),
    "zip drive letter": (lambda p: zipped(p / "a.zip", {"C:train_0.jpg": b"x"}), "leads out"),
    "zip NUL": (
        lambda p: renamed(zipped(p / "a.zip", {"train_0.jpg/..": b""}), b"0.jpg/..", b"0.jpg\0.."),
        "leads out",
    ),
    "zip symlink": (lambda p: symlinked_zip(p / "a.zip"), "link or a device"),
    "zip bomb in one picture": (
        lambda p: zipped(p / "a.zip", {"train_0.jpg": BIG}, compression=zipfile.ZIP_DEFLATED),
        "at most 1048576",
    ),
    "zip bomb over many pictures": (
        lambda p: zipped(
            p / "a.zip",
            {f"train_{i}.jpg": BIG[: 2**20] for i in range(9)},
            compression=zipfile.ZIP_DEFLATED,
        ),
        "more than 8388608 bytes",
    ),
    "zip that declares too little": (lambda p: lying_zip(p / "a.zip", 10), "CRC"),
    "zip that declares too much": (lambda p: lying_zip(p / "a.zip", 100), "but it has fewer"),
    "7z ../": (lambda p: seven_escaping(p / "a.7z"), "leads out"),
    "7z symlink": (lambda p: symlinked_7z(p / "a.7z"), "link or a device"),
    "7z bomb in what is left out": (
        lambda p: seven(p / "a.7z", {"a.txt": BIG * 5, "train_0.jpg": b"x"}),
        "more than 8388608",
    ),
    "7z bomb in a tar": (
        lambda p: seven_tar(p / "a.tar.7z", {f"train_{i}.jpg": BIG[: 2**20] for i in range(9)}),
        "at most",
    ),
    "gzip bomb": (lambda p: tar(p / "a.tar.gz", {"a.txt": BIG * 5}, "w:gz"), "more than 8388608"),
    "member-count bomb": (
        lambda p: tar(p / "a.tar.gz", {f"{i}.txt": b"" for i in range(1001)}, "w:gz"),
        "1000 members",
    ),
    "duplicate names": (
        lambda p: tar_of(p / "a.tar", *[(entry("train_0.jpg", size=1), b"x")] * 2),
        "two files",
    ),
    "duplicates in two folders": (
        lambda p: tar(
            p / "a.tar", {"a/train-jpg/train_0.jpg": b"x", "b/train-jpg/train_0.jpg": b"y"}
        ),
        "two files",
    ),
    "duplicates that differ in case": (
        lambda p: zip_with(p / "a.zip", ["train_a.jpg", "train_A.jpg"]),
        "two files",
    ),
    "over-long name": (lambda p: tar(p / "a.tar", {f"train_{'0' * 260}.jpg": b"x"}), "up to 255"),
    "name with a line break": (
        lambda p: zipped(p / "a.zip", {"train_\n0.jpg": b"x"}),
        "letters, digits",
    ),
}


def long_name(path):
    """A GNU long name of 64 MB, a few kB in gzip."""
    tar_of(
        path.with_suffix(""),
        (entry("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=2**26), bytes(2**26)),
    )
    import gzip

    path.write_bytes(gzip.compress(path.with_suffix("").read_bytes(), 1))
    return path


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused_whole(tmp_path, tmp_path_factory, name):
    build, text = HOSTILE[name]
    path = build(tmp_path_factory.mktemp("source"))
    area = tmp_path / "deep" / "er"
    area.mkdir(parents=True)
    written_bytes = []
    with pytest.raises(DataError) as caught:
        extract(path, area / "out", destination_of, SMALL, written_bytes.append)
    assert (
        text in str(caught.value) and "next:" in str(caught.value) and caught.value.exit_code == 3
    )
    outside = [p for p in tmp_path.rglob("*") if p.is_file() and area / "out" not in p.parents]
    assert outside == [] and sum(written_bytes) <= SMALL.total + SMALL.total
    if "declares" not in name and not path.name.endswith(
        ".tar.7z"
    ):  # their listing is true: the stream or the tar tells
        assert sum(written_bytes) == 0 and not (area / "out").exists()


@pytest.mark.parametrize(
    "name",
    [
        "tar ../",
        "zip symlink",
        "7z ../",
        "tar.7z with ../ in the tar",
        "zip that declares too much",
    ],
)
def test_the_command_leaves_nothing_of_a_hostile_archive(tmp_path, tmp_path_factory, capsys, name):
    path = HOSTILE[name][0](tmp_path_factory.mktemp("source"))
    assert (
        run_command(["download", "planet", "--from", str(path), "--out", str(tmp_path / "planet")])
        == 3
    )
    assert HOSTILE[name][1] in capsys.readouterr().err
    assert list(tmp_path.rglob("*")) == [tmp_path / "planet"]
    assert path.exists()


def test_a_link_that_waits_in_the_target_is_not_followed(tmp_path, tiles):
    path = KINDS["tar"](tmp_path, tiles)
    (tmp_path / "out" / "train-jpg").mkdir(parents=True)
    (tmp_path / "out" / "train-jpg" / "train_3.jpg").symlink_to(tmp_path / "victim")
    with pytest.raises(StorageError, match="File exists"):
        extract(path, tmp_path / "out", destination_of)
    assert not (tmp_path / "victim").exists()


# Damage


def cut(path, count):
    path.write_bytes(path.read_bytes()[:count])
    return path


def replaced(path, content):
    path.write_bytes(content)
    return path


def flipped(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    return replaced(path, raw)


def at_a_member(path):
    """Cut where the eighth member would begin: tarfile reads seven members and no error."""
    with tarfile.open(path) as archive:
        return cut(path, archive.getmembers()[7].offset)


DAMAGED = {
    "tar cut in a picture": (
        "tar",
        lambda p: cut(p, 40_000),
        "is cut off: it has 40000 bytes, at least",
    ),
    "tar cut between two members": ("tar", at_a_member, "at least 1024 more are missing"),
    "tar.7z cut": (
        "tar.7z",
        lambda p: cut(p, p.stat().st_size - 1234),
        "at least 1234 more are missing",
    ),
    "7z cut in its first bytes": ("7z", lambda p: cut(p, 20), "is cut off: it has 20 bytes"),
    "7z with a flipped byte": ("7z", flipped, "is damaged or cut off"),
    "zip cut": (
        "zip",
        lambda p: cut(p, p.stat().st_size // 2),
        "damaged or cut off: File is not a zip file",
    ),
    "zip with a flipped byte": ("zip", flipped, "is damaged or cut off"),
    "tar.gz cut": (
        "tar.gz",
        lambda p: cut(p, p.stat().st_size // 2),
        "ended before the end-of-stream",
    ),
    "zero bytes": ("tar", lambda p: replaced(p, b""), "has no bytes"),
    "a web page": (
        "7z",
        lambda p: replaced(p, b"\n<!DOCTYPE html><html><title>Sign in"),
        "is an HTML page",
    ),
    "something else": (
        "7z",
        lambda p: replaced(p, b"\x89PNG and more"),
        "no 7z, tar, gzip or zip archive",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_archive_says_what_is_wrong_and_is_kept(
    tmp_path, tmp_path_factory, tiles, capsys, name
):
    kind, harm, text = DAMAGED[name]
    path = harm(KINDS[kind](tmp_path_factory.mktemp("source"), tiles))
    before = path.read_bytes()
    assert (
        run_command(["download", "planet", "--from", str(path), "--out", str(tmp_path / "planet")])
        == 3
    )
    said = capsys.readouterr().err
    assert text in said and "  next: " in said and "Traceback" not in said
    assert path.read_bytes() == before and list((tmp_path / "planet").iterdir()) == []


def test_a_full_disk_is_a_storage_error_that_keeps_the_archive(
    tmp_path, tiles, capsys, monkeypatch
):
    path, out, real = KINDS["tar.7z"](tmp_path, tiles), tmp_path / "planet", os.write
    written = []

    def full(handle, data):
        written.append(len(data))
        if sum(written) > 200_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, data)

    monkeypatch.setattr(archive_formats.os, "write", full)
    assert run_command(["download", "planet", "--from", str(path), "--out", str(out)]) == 7
    assert "the disk is full" in capsys.readouterr().err and list(out.iterdir()) == []
    monkeypatch.undo()
    assert run_command(["download", "planet", "--from", str(path), "--out", str(out)]) == 0


def test_too_little_free_disk_is_refused_before_anything_is_written(tmp_path, tiles, monkeypatch):
    path = KINDS["zip"](tmp_path, tiles)
    monkeypatch.setattr(
        archives.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 150_000)
    )
    with pytest.raises(StorageError, match=r"unpacking needs .* kB of free disk, .* has 150\.0 kB"):
        extract(path, tmp_path / "out", destination_of)
    assert not (tmp_path / "out").exists()


def test_memory_stays_bounded_while_a_tar_in_a_7z_is_unpacked(tmp_path):
    """200 MB, in a process of its own whose peak tells: nothing is held whole."""
    import subprocess
    import sys

    def blocks():
        return io.BytesIO(bytes(40 * 2**20))

    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for i in range(5):
            archive.addfile(entry(f"{i}.bin", size=40 * 2**20), blocks())
    with py7zr.SevenZipFile(
        tmp_path / "a.tar.7z", "w", filters=[{"id": py7zr.FILTER_LZMA2, "preset": 0}]
    ) as archive:
        archive.write(tmp_path / "a.tar", "a.tar")
    code = (
        "import resource, sys, pathlib\nfrom raytrain.data import archives\n"
        "place = lambda name: '.inner/a.tar' if name == 'a.tar' else None\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "done = archives.extract(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), place)\n"
        "print(done.others, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    arguments = [sys.executable, "-c", code, tmp_path / "a.tar.7z", tmp_path / "out"]
    done = subprocess.run(
        arguments, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    others, grown = map(int, done.stdout.split())
    assert others == 5 and grown < 150


def test_everything_as_one_zip_of_tar_7z_is_unpacked(tmp_path):
    inner = seven_tar(tmp_path / "train-jpg.tar.7z", {"train-jpg/train_0.jpg": b"picture"})
    whole = zipped(
        tmp_path / "planet.zip",
        {inner.name: inner.read_bytes(), "train_v2.csv": b"image_name,tags\n"},
    )
    done = extract(whole, tmp_path / "out", destination_of)
    assert done.files == {"train-jpg": 1, "train_v2.csv": 1}
    assert (tmp_path / "out" / "train-jpg" / "train_0.jpg").read_bytes() == b"picture"
    assert not (tmp_path / "out" / ".inner").exists()


def test_the_limits_hold_for_archives_in_an_archive_together(tmp_path):
    parts = {}
    for part in range(4):
        content = {f"train-jpg/train_{part}_{i}.jpg": b"x" * 300_000 for i in range(3)}
        packed = zipped(tmp_path / f"{part}.zip", content, compression=zipfile.ZIP_DEFLATED)
        parts[packed.name] = packed.read_bytes()
    whole = zipped(tmp_path / "whole.zip", parts)
    written = []
    with pytest.raises(DataError, match="would unpack to more than"):
        extract(whole, tmp_path / "out", destination_of, Limits(total=1_000_000), written.append)
    assert sum(written) <= 1_000_000


def test_two_archives_in_an_archive_do_not_hold_one_file(tmp_path):
    same = [zipped(tmp_path / f"{n}.zip", {"train-jpg/train_0.jpg": b"x" * n}) for n in (1, 2)]
    whole = zipped(tmp_path / "whole.zip", {path.name: path.read_bytes() for path in same})
    with pytest.raises(DataError, match="two files that would both become"):
        extract(whole, tmp_path / "out", destination_of)


# Archives of older and other programs


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "7z"])
def test_names_with_backslashes_are_folders(tmp_path, tiles, kind):
    content = {f"planet\\{name}".replace("/", "\\"): data for name, data in tiles.items()}
    path = KINDS[kind](tmp_path, content)
    if kind == "zip":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("planet\\train-jpg\\", b"")
    extract(path, tmp_path / "out", destination_of)
    assert written(tmp_path / "out") == tiles


@pytest.mark.parametrize(
    "name", ["..\\x.jpg", "train-jpg\\..\\..\\train_0.jpg", "\\train_0.jpg", "C:\\train_0.jpg"]
)
def test_backslashes_lead_nowhere(tmp_path, name):
    path = zipped(tmp_path / "a.zip", {name: b"x"})
    with pytest.raises(DataError, match="leads out of the target folder"):
        extract(path, tmp_path / "out", destination_of)


def changed(path, at, value, size):
    """A zip whose headers hold another value at an offset (local header, central directory)."""
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\3\4", at), (b"PK\1\2", at + 2)):
        start = content.index(signature) + offset
        content[start : start + size] = value.to_bytes(size, "little")
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("method", "name"), [(9, "Deflate64"), (93, "Zstandard"), (98, "PPMd"), (77, "unknown")]
)
def test_a_method_that_is_not_known_here_is_named(tmp_path, tiles, capsys, method, name):
    path = changed(KINDS["zip"](tmp_path, tiles), 8, method, 2)
    assert (
        run_command(["download", "planet", "--from", str(path), "--out", str(tmp_path / "out")])
        == 3
    )
    message = capsys.readouterr().err
    assert (
        f"is packed by method {method} ({name})" in message
        and "damaged" not in message
        and "--from" in message
    )


@pytest.mark.parametrize("kind", ["zip", "7z", "7z with its names"])
def test_a_password_is_named(tmp_path, tiles, capsys, kind):
    if kind == "zip":
        path = changed(KINDS["zip"](tmp_path, tiles), 6, 1, 2)
    else:
        path = tmp_path / "a.7z"
        with py7zr.SevenZipFile(
            path, "w", password="x", header_encryption="names" in kind
        ) as archive:
            archive.writestr(b"x", "train-jpg/train_0.jpg")
    assert (
        run_command(["download", "planet", "--from", str(path), "--out", str(tmp_path / "out")])
        == 3
    )
    message = capsys.readouterr().err
    assert (
        "is protected by a password" in message
        and "py7zr" not in message
        and "damaged" not in message
    )
