"""Collects Planet's tiles and labels in one folder.

The source is the Kaggle competition, a Kaggle dataset, or a local archive or folder. The folder
gets, as far as the source has them:

    train-jpg/, test-jpg/, test-jpg-additional/    tiles
    train_v2.csv, sample_submission_v2.csv         labels, and the sample submission
    archives/                                      what was downloaded
    download.json                                  size, sha256 and contents of every archive

A command that was killed at any point can be repeated: it resumes and ends with the same bytes.
File names changed over the years and the pictures were withdrawn from the competition at times, so
the source is listed first. TIFF archives are never downloaded. Imports neither torch nor ray.
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

Record = dict[str, Any]
"""What `download.json` holds for an archive, see `_PlanetFolder`."""

# Number of pictures in each folder of the competition.
EXPECTED = {"train-jpg": 40_479, "test-jpg": 40_669, "test-jpg-additional": 20_522}
# How the names of the pictures in each folder begin.
PREFIXES = {"train_": "train-jpg", "test_": "test-jpg", "file_": "test-jpg-additional"}
LABELS = "train_v2.csv"
SAMPLE = "sample_submission_v2.csv"
# The label file of fastai's samples, planet_sample.tgz and planet_tiny.tgz.
OTHER_LABELS = "labels.csv"
# Our name of a table, and its names at the sources.
TABLES = {
    LABELS: (LABELS, "train_classes.csv", OTHER_LABELS),
    SAMPLE: (SAMPLE, "sample_submission.csv"),
}
# The name of the folder of training tiles in fastai's samples.
OTHER_FOLDERS = {"train": "train-jpg"}
# The names that a browser gives to the competition or the dataset downloaded as one file.
WHOLE = (remote.COMPETITION, remote.DATASET.split("/")[1], "archive", "planet")
PICTURES = (".jpg", ".jpeg", ".png")
# Archives are unpacked to this folder. Complete results are moved out of it by a rename each.
STAGING = "unpacking.partial"
# Levels of folders below --from that are searched.
_DEPTH = 3
_SHOWN_FILES = 12  # names of files in a message
# Seconds between two progress messages: on a terminal, and in a log file.
_TERMINAL_INTERVAL_S = 0.5
_LOG_INTERVAL_S = 60


def destination_of(name: str) -> str | None:
    """Returns where a member of an archive belongs; see `archives.Destination`.

    Args:
        name: of the member, with its folders.

    Returns:
        Such as `train-jpg/train_0.jpg` or `train_v2.csv`; None for what is left out.
    """
    # Older Windows tools write `\\` between folders.
    parts = [part for part in re.split(r"[/\\]", name) if part != "."]
    if not parts or not parts[-1] or is_junk("/".join(parts)):
        return None
    base = parts[-1]
    folders = parts[:-1]
    table = _table_of(base)
    if table is not None:
        if base == OTHER_LABELS and not _may_be_fastais(folders):
            return None
        return table
    if base.lower().endswith(PICTURES):
        folder = _picture_folder(folders, base)
        if folder is None:
            return None
        return f"{folder}/{base}"
    if base.lower().endswith(archives.SUFFIXES) and "tif" not in base.lower():
        return f"{archives.INNER}/{base}"
    return None


def _table_of(base: str) -> str | None:
    """Our name of a table by a name that a source gives it, or None."""
    for ours, names in TABLES.items():
        if base in names:
            return ours
    return None


def _may_be_fastais(folders: list[str]) -> bool:
    """Whether `labels.csv` in these folders may be Planet's; many other data sets have one."""
    # fastai's lies in planet_sample/ or planet_tiny/.
    return not folders or folders[-1].startswith("planet")


def _picture_folder(folders: list[str], base: str) -> str | None:
    """The competition's folder of a picture: by its nearest folder, else by its name."""
    for folder in reversed(folders):
        if folder in EXPECTED:
            return folder
    for prefix, folder in PREFIXES.items():
        if base.startswith(prefix):
            return folder
    return None


def choose(names: list[str], wanted: str) -> str | None:
    """Chooses the file of a source that holds a folder's tiles or a table.

    Args:
        names: files of the source; they may be nested (`a.csv/a.csv`).
        wanted: a folder of `EXPECTED`, a table of `TABLES`, or another name without suffix.

    Returns:
        The first of the known names that is there, or None.
    """
    stems = TABLES.get(wanted, (wanted,))
    suffixes: tuple[str, ...] = archives.SUFFIXES
    if wanted in TABLES:
        suffixes = ("", ".zip", ".7z")
    # Reversed, so that of equal base names the first one stays.
    by_base = {}
    for name in reversed(names):
        base = name.rsplit("/", 1)[-1]
        by_base[base] = name
    for stem in stems:
        for suffix in suffixes:
            if stem + suffix in by_base:
                return by_base[stem + suffix]
    return None


def download(out: str, source: str) -> None:
    """Fills a folder and logs what is in it.

    Args:
        out: local directory; created if it does not exist.
        source: "competition", "dataset", or the path of an archive or a folder.

    Raises:
        ConfigError: `out` is a URI, or `source` does not exist.
        DataError: an archive or the label file cannot be used, or differs from its record.
        RemoteError: see `remote.Kaggle`.
        UnfinishedError: see `remote.Kaggle`.
        StorageError: the disk is too small, or cannot be written.
    """
    if storage.is_uri(out):
        raise ConfigError(
            f"--out {out} is not a local folder", "archives are unpacked on a disk", "--out DIR"
        )
    base = Path(storage.absolute(out))
    storage.make_dir(str(base))
    with storage.locked(str(base), "is filling"):
        planet = _PlanetFolder(base)
        planet.finish()
        if source in ("competition", "dataset"):
            _from_kaggle(planet, source)
        else:
            _from_path(planet, Path(storage.absolute(source)))
        planet.conclude()


@dataclass
class _PlanetFolder:
    """The folder that is filled, and its record `download.json`.

    Attributes:
        base: the folder.
        records: by the archive's name, a dictionary of
            "size" (bytes) and "sha256" of the archive,
            "contents": "files" and "bytes" of each folder and table that came out of it,
            "others": number of members left out,
            "unpacked": False while it is being unpacked again.
        plans: by source, the names of the archives that it gives.
    """

    base: Path
    records: dict[str, Record] = field(default_factory=dict)
    plans: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.record_path.exists():
            return
        try:
            known = json.loads(self.record_path.read_bytes())
            self.records = known["archives"]
            self.plans = known["plans"]
        except (OSError, ValueError, KeyError, TypeError):
            raise DataError(
                f"{self.record_path} cannot be read as a record of downloads",
                "it records which archives are complete",
                f"rm {self.record_path}",
            ) from None

    @property
    def record_path(self) -> Path:
        """Path of `download.json`."""
        return self.base / "download.json"

    def save(self) -> None:
        """Writes `download.json` atomically; sorted, so that equal folders have equal bytes."""
        content = {
            "archives": dict(sorted(self.records.items())),
            "plans": dict(sorted(self.plans.items())),
        }
        storage.write_json(str(self.record_path), content)

    def finish(self) -> None:
        """Moves complete results out of the staging folder and removes what a kill left.

        A kill may have come before a move, or between two of them.
        """
        for record in self.records.values():
            if record.get("unpacked"):
                for name in record.get("contents", {}):
                    self._move_out(name)
        self._clear()
        for path in self._leftovers():
            storage.remove(str(path))
        storage.sync_directory(self.base)

    def _move_out(self, name: str) -> None:
        staged = self.base / STAGING / name
        final = self.base / name
        if staged.exists() and not final.exists():
            with storage.failures("move", str(staged)):
                staged.rename(final)

    def _leftovers(self) -> list[Path]:
        """Files that only a kill leaves."""
        # Of an atomic write that was interrupted.
        left = [*self.base.glob(".download.json.*.partial"), *self.base.glob("archives/.*.partial")]
        # Of a kill between the rename of a complete transfer and the removal of its identity.
        for path in self.base.glob("archives/*.partial.json"):
            if not path.with_suffix("").exists():
                left.append(path)
        return left

    def _clear(self) -> None:
        """Removes the staging folder."""
        staging = self.base / STAGING
        with storage.failures("remove", str(staging)):
            if staging.exists():
                shutil.rmtree(staging)

    def has(self, name: str) -> bool:
        """Whether everything that came out of an archive is there.

        Raises:
            DataError: one of its folders has lost or gained files.
        """
        record = self.records.get(name, {})
        if not record.get("unpacked"):
            return False
        for part in record["contents"]:
            if not (self.base / part).exists():
                return False
        for part, counts in record["contents"].items():
            _check_counts(self.base / part, counts, name)
        return True

    def unpack(self, path: Path) -> None:
        """Unpacks an archive unless its contents are there; records its size and sha256.

        Raises:
            DataError: the archive differs from its record, cannot be used, holds nothing of
                Planet, or would overwrite something else.
            StorageError: the disk is full or cannot be written.
        """
        name = path.name
        found = self._identified(path)
        known = self.records.get(name)
        if known and self.has(name):
            logger.info(f"{name} is unpacked already")
            return
        ours: set[str] = set()
        if known:
            # Until the end of this call, so that a kill does not leave a record of a whole folder.
            known["unpacked"] = False
            self.save()
            ours = set(known["contents"])
        self._clear()
        try:
            done = self._unpack_to_staging(path, found["size"])
            self._check_contents(path, list(done.files), ours)
        except BaseException:
            self._clear()
            raise
        # Once for all files, which takes a moment. A sync after each of forty thousand files would
        # take an hour on some disks.
        os.sync()
        contents = {}
        for part, files in sorted(done.files.items()):
            contents[part] = {"files": files, "bytes": done.bytes[part]}
        self.records[name] = {
            **found,
            "contents": contents,
            "others": done.others,
            "unpacked": True,
        }
        # Saved before the moves: `finish` completes them after a kill.
        self.save()
        self.finish()
        _log_unpacked(name, done)

    def _unpack_to_staging(self, path: Path, size: int) -> archives.Extracted:
        # The contents of a .tar.7z are written twice: as a tar, then as files.
        passes = 1
        if path.name.endswith(".tar.7z"):
            passes = 2
        with Progress(f"unpacking {path.name}") as progress:
            progress.begin(0, size * passes)
            return archives.extract(
                path, self.base / STAGING, destination_of, on_bytes=progress.add
            )

    def _check_contents(self, path: Path, parts: list[str], ours: set[str]) -> None:
        """Refuses an archive without tiles and labels, and one that would overwrite other files.

        Args:
            path: archive that was unpacked to the staging folder.
            parts: folders and tables that came out of it.
            ours: folders and tables that came out of the same archive before.
        """
        if not parts:
            raise DataError(
                f"{path} holds no tiles and no labels of Planet",
                f"it should hold pictures in {', '.join(EXPECTED)} or named train_*, test_*, "
                f"file_*, or {LABELS}",
                "give the right archive with --from, or ingest your own: "
                "raytrain ingest --images DIR --labels CSV",
            )
        for part in parts:
            target = self.base / part
            if part not in ours and os.path.lexists(target):
                raise DataError(
                    f"{target} is there already and did not come out of {path}",
                    "it would be overwritten",
                    "give another --out, or move it away",
                )

    def _identified(self, path: Path) -> Record:
        """Returns size and sha256 of an archive; raises DataError if others are on record."""
        with storage.failures("read", str(path)), path.open("rb") as file:
            found: Record = {
                "size": path.stat().st_size,
                "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            }
        known = self.records.get(path.name, found)
        if known["size"] == found["size"] and known["sha256"] == found["sha256"]:
            return found
        raise DataError(
            f"{path} has {_identity_text(found)}, recorded are {_identity_text(known)}",
            f"it is not the archive that {self.record_path} names: "
            "changed at its source, or damaged",
            f"rm {_quoted(path)} to get it again, or take the new one with another --out",
        )

    def link(self, name: str, folder: Path) -> None:
        """Makes a symbolic link to an existing folder of tiles instead of copying it.

        Args:
            name: of the link, a folder of `EXPECTED`.
            folder: that holds the tiles.

        Raises:
            DataError: something else of this name is there.
        """
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
        """Logs what is there, and checks the labels against the pictures.

        Raises:
            DataError: tiles or labels are missing, or the labels cannot be read.
        """
        _log_parts(self.base)
        self._require_training_data()
        images = self.base / "train-jpg"
        labels = self.base / LABELS
        found = read_labels(str(labels))
        pictures = KnownNames(os.listdir(images))
        missing = []
        for name in found.table["image_name"]:
            if not pictures.whole(name):
                missing.append(name)
        coverage = "each has its picture"
        if missing:
            coverage = f"{len(missing):,} without a picture, such as {missing[0]}"
        logger.info(
            f"{LABELS}: {len(found.table):,} tiles with {len(found.classes)} labels; {coverage}"
        )
        paths = f"--images {_quoted(images)} --labels {_quoted(labels)}"
        logger.info(f"next: raytrain ingest {paths} --out planet")

    def _require_training_data(self) -> None:
        absent = []
        for name in ("train-jpg", LABELS):
            path = self.base / name
            if not path.exists():
                absent.append(name)
        if not absent:
            return
        raise DataError(
            f"{self.base} has no {' and no '.join(absent)}",
            "training needs tiles and their labels",
            f"raytrain download planet --out {_quoted(self.base)} --from PATH "
            "with an archive or folder that has it; what is there stays",
        )


def _check_counts(path: Path, counts: dict[str, int], archive: str) -> None:
    """Compares a folder or a table with its counts in the record."""
    files = 1
    changed = False
    if path.is_dir():
        files = len(os.listdir(path))
    else:
        changed = path.is_file() and path.stat().st_size != counts["bytes"]
    if files != counts["files"] or changed:
        raise DataError(
            f"{path} has {files} files, {counts['files']} came out of {archive}",
            "files were lost, added or changed since",
            f"rm -r {_quoted(path)} and run the same command again",
        )


def _quoted(path: Path) -> str:
    """The path as one word of a command to type."""
    return shlex.quote(str(path))


def _identity_text(record: Record) -> str:
    """Size and the beginning of the hash of an archive, for a message."""
    size = record["size"]
    sha256 = record["sha256"][:12]
    return f"{size} bytes and sha256 {sha256}"


def _pictures(names: list[str]) -> list[str]:
    """The file names that are those of pictures."""
    return [name for name in names if name.lower().endswith(PICTURES)]


def _log_parts(base: Path) -> None:
    for name in (*EXPECTED, *TABLES):
        path = base / name
        if not path.exists():
            logger.info(f"{name}: not there")
        elif name in EXPECTED:
            pictures = _pictures(os.listdir(path))
            expected = EXPECTED[name]
            logger.info(f"{name}: {len(pictures):,} pictures (the competition has {expected:,})")


def _log_unpacked(name: str, done: archives.Extracted) -> None:
    counts = []
    for part, files in sorted(done.files.items()):
        counts.append(f"{part} {files:,}")
    left_out = ""
    if done.others:
        left_out = f"; {done.others} other files left out"
    logger.info(f"{name}: {', '.join(counts)}{left_out}")


@dataclass(frozen=True)
class _Wanted:
    """A file to download from Kaggle.

    Attributes:
        listed: Kaggle's name of it; None for the whole dataset.
        name: of the file in `archives/`.
        size: bytes, 0 where unknown.
    """

    listed: str | None
    name: str
    size: int


def _from_kaggle(planet: _PlanetFolder, source: str) -> None:
    plan = planet.plans.get(source, [])
    # A complete folder is recognised without a request to Kaggle.
    if plan and all(planet.has(name) for name in plan):
        logger.info(f"{planet.base} is complete: all of {', '.join(plan)} is there")
        return
    kaggle = Kaggle(source)
    files = kaggle.files()
    wanted = _chosen(kaggle, files)
    planet.plans[source] = [file.name for file in wanted]
    planet.save()
    _check_plan(planet, wanted)
    for file in wanted:
        if not planet.has(file.name):
            planet.unpack(_fetched(planet, kaggle, file))


def _chosen(kaggle: Kaggle, files: list[RemoteFile]) -> list[_Wanted]:
    """Chooses the files to download; raises RemoteError where tiles or labels are missing."""
    if kaggle.source == "dataset":
        # As one file: a hundred thousand requests for single pictures would lock the account.
        return [_Wanted(listed=None, name=f"{WHOLE[1]}.zip", size=0)]
    sizes = {file.name: file.size for file in files}
    wanted = []
    for name in (*EXPECTED, *TABLES):
        listed = choose(list(sizes), name)
        if listed is None:
            _refuse_if_needed(name, kaggle, list(sizes))
            continue
        # Kaggle lists a table's plain size and sends it zipped, so that size cannot be compared.
        size = sizes[listed]
        if name in TABLES:
            size = 0
        base = listed.rsplit("/", 1)[-1]
        wanted.append(_Wanted(listed=listed, name=base, size=size))
    return wanted


def _refuse_if_needed(name: str, kaggle: Kaggle, listed: list[str]) -> None:
    """Raises RemoteError if training is impossible without a file that Kaggle does not list."""
    if name == "train-jpg":
        raise remote.missing(f"archive {name}.tar.7z", kaggle.slug, listed, competition=True)
    if name == LABELS:
        raise remote.missing(LABELS, kaggle.slug, listed, competition=True)


def _check_plan(planet: _PlanetFolder, wanted: list[_Wanted]) -> None:
    """Logs what will be downloaded and refuses a disk that is too small for it."""
    left = [file for file in wanted if not planet.has(file.name)]
    needed = 0
    for file in left:
        size = "size not listed"
        if file.size:
            size = size_text(file.size)
        logger.info(f"  {file.name}  {size}")
        # Bytes that an earlier command downloaded need no further room.
        needed += file.size - min(file.size, _bytes_there(planet, file.name))
    needed += _room([(file.name, file.size) for file in left])
    free = shutil.disk_usage(planet.base).free
    logger.info(
        f"needs {size_text(needed)} of free disk (archives, one tar at a time, pictures); "
        f"{size_text(free)} are free"
    )
    check_space(planet.base, needed, "the download")


def _bytes_there(planet: _PlanetFolder, name: str) -> int:
    """Bytes of a complete or partial download."""
    total = 0
    for path in (planet.base / "archives").glob(f"{name}*"):
        if path.suffix != ".json":
            total += path.stat().st_size
    return total


def _room(files: list[tuple[str, int]]) -> int:
    """Bytes of disk that unpacking needs.

    JPEGs hardly compress, so pictures take about the size of their archive. Whole blocks of the
    disk add an eighth. The largest tar of a .tar.7z exists beside its pictures for a while.

    Args:
        files: (name, bytes) of the archives.
    """
    pictures = 0
    largest_tar = 0
    for name, size in files:
        pictures += size * 9 // 8
        if name.endswith((".tar.7z", ".7z")):
            largest_tar = max(largest_tar, size)
    return pictures + largest_tar


def _fetched(planet: _PlanetFolder, kaggle: Kaggle, file: _Wanted) -> Path:
    """Returns the path of the downloaded file; downloads it if it is not there."""
    path = planet.base / "archives" / file.name
    if path.exists():
        return path
    storage.make_dir(str(path.parent))
    with Progress(f"downloading {file.name}") as progress:

        def before(start: int, whole: int) -> None:
            # Checked again here: only now the size of a file that Kaggle does not list is known.
            needed = whole - start + _room([(file.name, whole)])
            check_space(path.parent, needed, file.name)
            progress.begin(start, whole)

        kaggle.fetch(file.listed, path, file.size, before, progress.add)
    return path


def _from_path(planet: _PlanetFolder, path: Path) -> None:
    if not path.exists():
        raise ConfigError(
            f"--from {path} does not exist",
            "it must be competition, dataset, or the path of an archive or a folder",
            "raytrain download planet --from PATH --out DIR",
        )
    if path.is_file():
        planet.unpack(path)
        return
    files, folders = _found_in(path)
    packed = _archives_in(files, folders)
    if not packed and not folders:
        shown = ", ".join(files[:_SHOWN_FILES]) or "none"
        raise DataError(
            f"{path} holds nothing of Planet; files there: {shown}",
            f"it should hold folders or archives named {', '.join(EXPECTED)}, "
            f"{LABELS} or train_classes.csv",
            "give the archive itself with --from FILE, or the folder that holds train-jpg; "
            "tiles of your own: raytrain ingest --images DIR --labels CSV",
        )
    for name, folder in folders.items():
        planet.link(name, folder)
    for name, file in packed.items():
        # A folder may be its own source; then a table is in its place already.
        source = path / file
        target = planet.base / name
        if source.resolve() != target.resolve():
            planet.unpack(source)


def _archives_in(files: list[str], folders: dict[str, Path]) -> dict[str, str]:
    """Chooses the archives and tables to unpack from a local folder.

    Args:
        files: relative paths of the files there.
        folders: unpacked folders there, by the competition's name.

    Returns:
        Relative paths by the folder or table that they hold.
    """
    found = {}
    for name in (*EXPECTED, *TABLES):
        if name in folders:
            continue
        file = choose(files, name)
        if file is not None:
            found[name] = file
    # Without Planet's pictures, a `labels.csv` is that of other tiles.
    labels = found.get(LABELS, "").rsplit("/", 1)[-1]
    if "train-jpg" not in folders and labels == OTHER_LABELS:
        del found[LABELS]
    if not folders and "train-jpg" not in found:
        for stem in WHOLE:
            file = choose(files, stem)
            if file is not None:
                found[stem] = file
    return found


def _found_in(path: Path) -> tuple[list[str], dict[str, Path]]:
    """Searches a local folder and its subfolders, at most three levels down.

    Returns:
        Relative paths of the files that are no pictures, and the folders of Planet's pictures by
        the competition's name.
    """
    files: list[str] = []
    folders: dict[str, Path] = {}
    for folder, inside, names in os.walk(path, followlinks=True):
        here = Path(folder)
        ours = _folder_of_tiles(here.name, names)
        # os.walk descends into what is left in `inside`.
        if ours is not None:
            folders.setdefault(ours, here)
            inside.clear()
            continue
        if len(here.relative_to(path).parts) >= _DEPTH:
            inside.clear()
        else:
            inside[:] = sorted(name for name in inside if name != STAGING)
        for name in sorted(names):
            if not name.lower().endswith(PICTURES):
                files.append(str((here / name).relative_to(path)))
    return files, folders


def _folder_of_tiles(folder: str, files: list[str]) -> str | None:
    """The competition's name of a folder with tiles, or None for another folder."""
    pictures = _pictures(files)
    if not pictures:
        return None
    if folder in EXPECTED:
        return folder
    ours = OTHER_FOLDERS.get(folder)
    if ours is None:
        return None
    # `train` is a common name, so each picture must be named as Planet's are.
    for name in pictures:
        prefix = name.split("_")[0] + "_"
        if PREFIXES.get(prefix) != ours:
            return None
    return ours


class Progress:
    """Reports the progress of a transfer or an unpacking, and its estimated end.

    On a terminal it redraws one line, elsewhere it logs a line each minute.
    """

    def __init__(self, label: str) -> None:
        """Takes the text that begins each line, such as `downloading train-jpg.tar.7z`."""
        self._label = label
        self._on_terminal = sys.stdout.isatty()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self._on_terminal:
            # Erases the line.
            print("\r\033[K", end="", flush=True)

    def begin(self, start: int, whole: int) -> None:
        """Starts counting.

        Args:
            start: bytes that are there already.
            whole: bytes at the end.
        """
        self._start = start
        self._count = start
        self._whole = whole
        self._began = time.monotonic()
        self._reported = self._began
        already = ""
        if start:
            already = f", {size_text(start)} are there"
        logger.info(f"{self._label}: {size_text(whole)}{already}")

    def add(self, count: int) -> None:
        """Counts some more bytes and reports if the last report is long enough ago."""
        self._count += count
        now = time.monotonic()
        interval_s: float = _LOG_INTERVAL_S
        if self._on_terminal:
            interval_s = _TERMINAL_INTERVAL_S
        if now - self._reported < interval_s:
            return
        self._reported = now
        line = (
            f"{self._label}: {size_text(self._count)} of {size_text(self._whole)}, "
            f"end about {self._estimated_end(now)}"
        )
        if self._on_terminal:
            print(f"\r\033[K{line}", end="", flush=True)
        else:
            logger.info(line)

    def _estimated_end(self, now: float) -> str:
        """Local time of the end at the mean speed since the start, as HH:MM:SS."""
        done = max(1, self._count - self._start)
        left = self._whole - self._count
        spent_s = now - self._began
        left_s = left * spent_s / done
        end = time.localtime(time.time() + max(0, left_s))
        return time.strftime("%H:%M:%S", end)
