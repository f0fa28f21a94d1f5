"""Planet's tiles and labels into one folder: from the Kaggle competition, from a Kaggle dataset, or from files at hand.

The folder gets `train-jpg/`, `test-jpg/`, `test-jpg-additional/`, `train_v2.csv`, `sample_submission_v2.csv`, each as far
as the source has it; `archives/` with what was downloaded; and `download.json`, which records size and sha256 of every
archive and what came out of it. Killed at any point, the same command goes on and ends with the same bytes.
File names have changed over the years, and the pictures were withdrawn from the competition at times, so what there is
is listed first. TIFF archives are never fetched. No torch, no ray.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raytrain import storage
from raytrain.data import archives, remote
from raytrain.data.archives import check_space, size_text
from raytrain.data.labels import read_labels
from raytrain.data.names import KnownNames, is_junk
from raytrain.data.remote import Kaggle, RemoteFile
from raytrain.errors import ConfigError, DataError

logger = logging.getLogger(__name__)


# Pictures in each folder of the competition, and how their names begin.
EXPECTED = {"train-jpg": 40_479, "test-jpg": 40_669, "test-jpg-additional": 20_522}
PREFIXES = {"train_": "train-jpg", "test_": "test-jpg", "file_": "test-jpg-additional"}
# Our name of a table, and its names at the sources.
LABELS, SAMPLE = "train_v2.csv", "sample_submission_v2.csv"
OTHER_LABELS = "labels.csv"  # in fastai's samples, planet_sample.tgz and planet_tiny.tgz
TABLES = {
    LABELS: (LABELS, "train_classes.csv", OTHER_LABELS),
    SAMPLE: (SAMPLE, "sample_submission.csv"),
}
# What these samples call the folder of the training tiles.
OTHER_FOLDERS = {"train": "train-jpg"}
# What a browser calls the competition or the dataset when it is downloaded as one file.
WHOLE = (remote.COMPETITION, remote.DATASET.split("/")[1], "archive", "planet")
PICTURES = (".jpg", ".jpeg", ".png")
STAGING = "unpacking.partial"
_DEPTH = 3


def place_of(name: str) -> str | None:
    """Where a member of an archive belongs: `train-jpg/train_0.jpg`, `train_v2.csv`, or None (see `archives.Destination`)."""
    # Older Windows tools write `\\` between folders.
    *folders, base = [part for part in re.split(r"[/\\]", name) if part != "."] or [""]
    if not base or is_junk("/".join([*folders, base])):
        return None
    if table := next((ours for ours, names in TABLES.items() if base in names), None):
        # `labels.csv` may be anybody's; fastai's lies in planet_sample/ or planet_tiny/.
        of_planet = base != OTHER_LABELS or not folders or folders[-1].startswith("planet")
        return table if of_planet else None
    if base.lower().endswith(PICTURES):
        by_prefix = next(
            (folder for prefix, folder in PREFIXES.items() if base.startswith(prefix)), None
        )
        folder = next((folder for folder in reversed(folders) if folder in EXPECTED), by_prefix)
        return f"{folder}/{base}" if folder else None
    inner = base.lower().endswith(archives.SUFFIXES) and "tif" not in base.lower()
    return f"{archives.INNER}/{base}" if inner else None


def choose(names: list[str], wanted: str) -> str | None:
    """The first of the names under which a folder's archive or a table is known; they may be nested (`a.csv/a.csv`)."""
    stems = TABLES.get(wanted, (wanted,))
    suffixes = ("", ".zip", ".7z") if wanted in TABLES else archives.SUFFIXES
    found = {name.rsplit("/", 1)[-1]: name for name in reversed(names)}
    return next(
        (found[stem + suffix] for stem in stems for suffix in suffixes if stem + suffix in found),
        None,
    )


def download(out: str, source: str) -> None:
    """Fills a folder, and says what is in it.

    Args:
        out: local directory; made where it does not exist.
        source: "competition", "dataset", or the path of an archive or a folder.

    Raises:
        DataError: an archive or the label file cannot be used, or is not the one that was recorded.
        RemoteError, UnfinishedError: see `remote.Kaggle`.
        StorageError: not enough disk, or it cannot be written.
    """
    if storage.is_uri(out):
        raise ConfigError(
            f"--out {out} is not a local folder", "archives are unpacked on a disk", "--out DIR"
        )
    base = Path(storage.absolute(out))
    storage.make_dir(str(base))
    with storage.locked(str(base), "is filling"):
        planet = _Planet(base)
        planet.finish()
        if source in ("competition", "dataset"):
            _from_kaggle(planet, source)
        else:
            _from_path(planet, Path(storage.absolute(source)))
        planet.conclude()


@dataclass
class _Planet:
    """The folder that is filled, and its record `download.json`.

    Attributes:
        records: by the archive's name: size, sha256, contents (files and bytes of each folder and table that came out
            of it), others (members left out), unpacked (false from when it is unpacked again until that is complete).
        plans: by source: the names of the archives that it gives.
    """

    base: Path
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    plans: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        path = self.base / "download.json"
        if path.exists():
            try:
                known = json.loads(path.read_bytes())
                self.records, self.plans = known["archives"], known["plans"]
            except (OSError, ValueError, KeyError, TypeError):
                raise DataError(
                    f"{path} cannot be read as a record of downloads",
                    "it says what is complete",
                    f"rm {path}",
                ) from None

    def save(self) -> None:
        content = {
            "archives": dict(sorted(self.records.items())),
            "plans": dict(sorted(self.plans.items())),
        }
        storage.write_json(str(self.base / "download.json"), content)

    def finish(self) -> None:
        """Moves what is complete in staging to its place; a kill may have come before that, or in the middle."""
        staging = self.base / STAGING
        for record in self.records.values():
            for name in record.get("contents", {}) if record.get("unpacked") else ():
                if (staging / name).exists() and not (self.base / name).exists():
                    with storage.failures("move", str(staging / name)):
                        (staging / name).rename(self.base / name)
        self._clear()
        # What a kill left in the middle of an atomic write, and between the end of a transfer and that of its record.
        torn = [*self.base.glob(".download.json.*.partial"), *self.base.glob("archives/.*.partial")]
        torn += [
            p for p in self.base.glob("archives/*.partial.json") if not p.with_suffix("").exists()
        ]
        for path in torn:
            storage.remove(str(path))
        storage.sync_directory(self.base)

    def _clear(self) -> None:
        with storage.failures("remove", str(self.base / STAGING)):
            if (self.base / STAGING).exists():
                shutil.rmtree(self.base / STAGING)

    def has(self, name: str) -> bool:
        """Whether all that came out of an archive is there.

        Raises:
            DataError: a folder of it has lost or gained files.
        """
        record = self.records.get(name, {})
        if not record.get("unpacked") or not all(
            (self.base / part).exists() for part in record["contents"]
        ):
            return False
        for part, counts in record["contents"].items():
            path = self.base / part
            files = len(os.listdir(path)) if path.is_dir() else 1
            if files != counts["files"] or (
                path.is_file() and path.stat().st_size != counts["bytes"]
            ):
                raise DataError(
                    f"{path} has {files} files, {counts['files']} came out of {name}",
                    "files were lost, added or changed since",
                    f"rm -r {shlex.quote(str(path))} and run the same command again",
                )
        return True

    def unpack(self, path: Path) -> None:
        """Unpacks an archive, unless all that came out of it is there; its size and sha256 are recorded or compared."""
        name, found = path.name, self._identified(path)
        known = self.records.get(name)
        if known and self.has(name):
            logger.info(f"{name} is unpacked already")
            return
        if known:
            known["unpacked"] = False
            self.save()
        self._clear()
        try:
            # All of a .tar.7z is written twice: as a tar, and as files.
            with Progress(f"unpacking {name}") as progress:
                progress.begin(0, found["size"] * (2 if name.endswith(".tar.7z") else 1))
                done = archives.extract(path, self.base / STAGING, place_of, tell=progress.add)
            self._check_contents(path, list(done.files), set(known["contents"] if known else ()))
        except BaseException:
            self._clear()
            raise
        # Once for all files, which takes a moment; a sync after each of forty thousand would take an hour on some disks.
        os.sync()
        contents = {
            part: {"files": done.files[part], "bytes": done.bytes[part]}
            for part in sorted(done.files)
        }
        self.records[name] = {
            **found,
            "contents": contents,
            "others": done.others,
            "unpacked": True,
        }
        self.save()
        self.finish()
        left = f"; {done.others} other files left out" if done.others else ""
        logger.info(
            f"{name}: {', '.join(f'{part} {done.files[part]:,}' for part in contents)}{left}"
        )

    def _check_contents(self, path: Path, parts: list[str], ours: set[str]) -> None:
        if not parts:
            raise DataError(
                f"{path} holds no tiles and no labels of Planet",
                f"pictures in {', '.join(EXPECTED)} or named train_*, test_*, file_*, and {LABELS} are looked for",
                "give the right archive with --from, or ingest your own: raytrain ingest --images DIR --labels CSV",
            )
        for part in parts:
            if part not in ours and os.path.lexists(self.base / part):
                raise DataError(
                    f"{self.base / part} is there already and did not come out of {path}",
                    "it would be overwritten",
                    "give another --out, or move it away",
                )

    def _identified(self, path: Path) -> dict[str, Any]:
        """Size and sha256 of an archive, the ones on record if there are any."""
        with storage.failures("read", str(path)), path.open("rb") as file:
            found: dict[str, Any] = {
                "size": path.stat().st_size,
                "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            }
        known = self.records.get(path.name, found)
        if (known["size"], known["sha256"]) != (found["size"], found["sha256"]):
            raise DataError(
                f"{path} has {found['size']} bytes and sha256 {found['sha256'][:12]}, recorded are {known['size']} and "
                f"{known['sha256'][:12]}",
                f"it is not the archive that {self.base / 'download.json'} names: changed at its source, or damaged",
                f"rm {shlex.quote(str(path))} to get it again, or take the new one with another --out",
            )
        return found

    def link(self, name: str, folder: Path) -> None:
        """Uses a folder of tiles where it lies, by a symbolic link of the name that it has here."""
        path = self.base / name
        if path.exists() and path.samefile(folder):
            return
        if os.path.lexists(path):
            raise DataError(
                f"{path} is there already and is not {folder}",
                "it would be hidden",
                "give another --out, or move it away",
            )
        path.symlink_to(folder)
        logger.info(f"{path} points to {folder}; nothing is copied")

    def conclude(self) -> None:
        """Says what is there, and checks that the labels can be read and have their pictures."""
        for name in (*EXPECTED, *TABLES):
            if not (self.base / name).exists():
                logger.info(f"{name}: not there")
            elif name in EXPECTED:
                count = sum(
                    file.lower().endswith(PICTURES) for file in os.listdir(self.base / name)
                )
                logger.info(f"{name}: {count:,} pictures (the competition has {EXPECTED[name]:,})")
        absent = [name for name in ("train-jpg", LABELS) if not (self.base / name).exists()]
        if absent:
            raise DataError(
                f"{self.base} has no {' and no '.join(absent)}",
                "training needs tiles and their labels",
                f"raytrain download planet --out {shlex.quote(str(self.base))} --from PATH "
                "with an archive or folder that has it; what is there stays",
            )
        images, labels = self.base / "train-jpg", self.base / LABELS
        found = read_labels(str(labels))
        pictures = KnownNames(os.listdir(images))
        missing = [name for name in found.table["image_name"] if not pictures.whole(name)]
        each = (
            f"{len(missing):,} without a picture, such as {missing[0]}"
            if missing
            else "each has its picture"
        )
        logger.info(
            f"{LABELS}: {len(found.table):,} tiles with {len(found.classes)} labels; {each}"
        )
        paths = (shlex.quote(str(path)) for path in (images, labels))
        logger.info("next: raytrain ingest --images {} --labels {} --out planet".format(*paths))


def _from_kaggle(planet: _Planet, source: str) -> None:
    plan = planet.plans.get(source, [])
    if plan and all(planet.has(name) for name in plan):
        logger.info(f"{planet.base} is complete: all of {', '.join(plan)} is there")
        return
    kaggle = Kaggle(source)
    files = kaggle.files()
    chosen = _chosen(kaggle, files)
    planet.plans[source] = [name for _, name, _ in chosen]
    planet.save()
    _say_plan(planet, chosen)
    for listed, name, size in chosen:
        if not planet.has(name):
            planet.unpack(_fetched(planet, kaggle, listed, name, size))


def _chosen(kaggle: Kaggle, files: list[RemoteFile]) -> list[tuple[str | None, str, int]]:
    """What to fetch: (name as listed, or None for the whole dataset; name here; bytes, 0 where unknown)."""
    if kaggle.source == "dataset":
        # One file: getting a hundred thousand pictures one by one would lock the account.
        return [(None, f"{WHOLE[1]}.zip", 0)]
    sizes = {file.name: file.size for file in files}
    found = {wanted: choose(list(sizes), wanted) for wanted in (*EXPECTED, *TABLES)}
    for wanted in ("train-jpg", LABELS):
        if found[wanted] is None:
            label = f"archive {wanted}.tar.7z" if wanted in EXPECTED else wanted
            raise remote.missing(label, kaggle.slug, list(sizes), competition=True)
    # The size of a table is not compared: Kaggle lists it plain and sends it zipped.
    return [
        (name, name.rsplit("/", 1)[-1], 0 if wanted in TABLES else sizes[name])
        for wanted, name in found.items()
        if name
    ]


def _say_plan(planet: _Planet, chosen: list[tuple[str | None, str, int]]) -> None:
    """Prints what is fetched and refuses a disk that is too small for it."""
    left = [(name, size) for _, name, size in chosen if not planet.has(name)]
    for name, size in left:
        logger.info(f"  {name}  {size_text(size) if size else 'size not listed'}")
    here = planet.base / "archives"
    come = {
        name: sum(p.stat().st_size for p in here.glob(f"{name}*") if p.suffix != ".json")
        for name, _ in left
    }
    needed = sum(size - min(size, come[name]) for name, size in left)
    needed += _room([(name, size) for name, size in left])
    free = shutil.disk_usage(planet.base).free
    logger.info(
        f"needs {size_text(needed)} of free disk (archives, one tar at a time, pictures); {size_text(free)} are free"
    )
    check_space(planet.base, needed, "the download")


def _room(files: list[tuple[str, int]]) -> int:
    """Bytes that unpacking takes: JPEGs hardly compress, whole blocks of the disk add an eighth; the largest tar for a while."""
    tars = [size for name, size in files if name.endswith((".tar.7z", ".7z"))]
    return sum(size * 9 // 8 for _, size in files) + max(tars, default=0)


def _fetched(planet: _Planet, kaggle: Kaggle, listed: str | None, name: str, size: int) -> Path:
    path = planet.base / "archives" / name
    if path.exists():
        return path
    storage.make_dir(str(path.parent))
    with Progress(f"downloading {name}") as progress:

        def ready(start: int, whole: int) -> None:
            check_space(path.parent, whole - start + _room([(name, whole)]), name)
            progress.begin(start, whole)

        kaggle.fetch(listed, path, size, ready, progress.add)
    return path


def _from_path(planet: _Planet, path: Path) -> None:
    if not path.exists():
        raise ConfigError(
            f"--from {path} does not exist",
            "it is competition, dataset, or the path of an archive or a folder",
            "raytrain download planet --from PATH --out DIR",
        )
    if path.is_file():
        planet.unpack(path)
        return
    files, folders = _found_in(path)
    parts = {
        name: found
        for name in (*EXPECTED, *TABLES)
        if name not in folders and (found := choose(files, name))
    }
    if "train-jpg" not in folders and parts.get(LABELS, "").rsplit("/", 1)[-1] == OTHER_LABELS:
        del parts[LABELS]  # of other tiles
    if not folders and "train-jpg" not in parts:
        parts |= {stem: found for stem in WHOLE if (found := choose(files, stem))}
    if not parts and not folders:
        raise DataError(
            f"{path} holds nothing of Planet; files there: {', '.join(files[:12]) or 'none'}",
            f"folders or archives named {', '.join(EXPECTED)}, {LABELS} or train_classes.csv are looked for",
            "give the archive itself with --from FILE, or the folder that holds train-jpg; "
            "tiles of your own: raytrain ingest --images DIR --labels CSV",
        )
    for name, folder in folders.items():
        planet.link(name, folder)
    for name, found in parts.items():
        if (path / found).resolve() != (planet.base / name).resolve():
            planet.unpack(path / found)


def _found_in(path: Path) -> tuple[list[str], dict[str, Path]]:
    """Relative names of files, and folders with pictures named as the competition's, at most three levels down."""
    files: list[str] = []
    folders: dict[str, Path] = {}
    for folder, inside, names in os.walk(path, followlinks=True):
        here = Path(folder)
        if ours := _folder_of_tiles(here.name, names):
            folders.setdefault(ours, here)
            inside.clear()
            continue
        deep = len(here.relative_to(path).parts) >= _DEPTH
        inside[:] = [] if deep else sorted(name for name in inside if name != STAGING)
        files += [
            str((here / name).relative_to(path))
            for name in sorted(names)
            if not name.lower().endswith(PICTURES)
        ]
    return files, folders


def _folder_of_tiles(folder: str, files: list[str]) -> str | None:
    """The competition's name of a folder with tiles, or None of another folder."""
    pictures = [name for name in files if name.lower().endswith(PICTURES)]
    if not pictures:
        return None
    if folder in EXPECTED:
        return folder
    ours = OTHER_FOLDERS.get(folder)
    of_planet = ours and all(PREFIXES.get(name.split("_")[0] + "_") == ours for name in pictures)
    return ours if of_planet else None


class Progress:
    """How far a transfer or an unpacking is, and when it ends: a line that moves, or one a minute where nobody watches."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._watched = sys.stdout.isatty()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self._watched:
            print("\r\033[K", end="", flush=True)

    def begin(self, start: int, whole: int) -> None:
        """Counts from `start` bytes on, of `whole`."""
        self._start = self._count = start
        self._whole = whole
        self._began = self._told = time.monotonic()
        there = f", {size_text(start)} are there" if start else ""
        logger.info(f"{self._label}: {size_text(whole)}{there}")

    def add(self, count: int) -> None:
        """Some more bytes; tells now and then."""
        self._count += count
        now = time.monotonic()
        if now - self._told < (0.5 if self._watched else 60):
            return
        self._told = now
        left = (self._whole - self._count) * (now - self._began) / max(1, self._count - self._start)
        end = time.strftime("%H:%M:%S", time.localtime(time.time() + max(0, left)))
        line = (
            f"{self._label}: {size_text(self._count)} of {size_text(self._whole)}, end about {end}"
        )
        if self._watched:
            print(f"\r\033[K{line}", end="", flush=True)
        else:
            logger.info(line)
