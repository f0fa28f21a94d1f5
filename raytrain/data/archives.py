"""Safe extraction of .7z, .tar, .tar.7z, .tar.gz and .zip archives.

The whole listing is checked before anything is written. One member that would leave the target
folder, a link, a device, a repeated name, or sizes and counts over the limits refuse the archive.
Declared sizes can be wrong, so every byte is counted again during extraction. Imports neither
torch nor ray.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from raytrain import storage
from raytrain.data.archive_formats import Archive, Member, Sink, damage, open_archive
from raytrain.errors import DataError, StorageError

# The characters of file names in the competition's archives. No name starts with a dot, so none
# leads out of the folder.
SAFE_NAME = re.compile(r"(?=.{1,255}\Z)[A-Za-z0-9_-][A-Za-z0-9_.-]*")
SUFFIXES = (".tar.7z", ".tar.gz", ".tgz", ".tar", ".7z", ".zip")
# Archives inside an archive are written to this folder until they are unpacked. SAFE_NAME refuses
# a member of this name.
INNER = ".inner"
# Levels of archives in archives: a zip of everything holds a 7z, which holds a tar.
DEPTH = 2
_DISK_BLOCK_BYTES = 4096


@dataclass(frozen=True)
class Limits:
    """What an archive may hold at most.

    A real tile has 12 to 25 kB, the label file 1.4 MB. An archive of tiles has 600 MB and at most
    40,669 members.

    Attributes:
        picture: bytes of one picture.
        table: bytes of one table.
        total: bytes of all members together.
        members: number of members.
    """

    picture: int = 2**20
    table: int = 20 * 2**20
    total: int = 3 * 2**30
    members: int = 200_000

    def of(self, target: str) -> int:
        """Returns the limit in bytes for one file that would be written to `target`."""
        if target.startswith(f"{INNER}/"):
            return self.total
        if target.endswith(".csv"):
            return self.table
        return self.picture


@dataclass
class Extracted:
    """Counts of what was written.

    Attributes:
        files: number of files by folder, or by file name for a file at the top.
        bytes: number of bytes, by the same keys.
        others: number of files that were left out.
    """

    files: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    others: int = 0

    def __iadd__(self, more: Extracted) -> Extracted:
        self.files += more.files
        self.bytes += more.bytes
        self.others += more.others
        return self


Destination = Callable[[str], str | None]
"""Maps a member's name to `file` or `folder/file` inside the target, or to None to leave it out."""


@dataclass(frozen=True)
class _Job:
    """What all levels of one extraction share.

    Attributes:
        target: folder that is filled.
        destination: maps names of members to paths in the target.
        on_bytes: called with the number of bytes after each write.
        taken: paths in the target that are used already, in lower case.
    """

    target: Path
    destination: Destination
    on_bytes: Callable[[int], None]
    taken: set[str] = field(default_factory=set)


def _ignore(count: int) -> None:
    """The default of `on_bytes`."""


def extract(
    path: Path,
    target: Path,
    destination: Destination,
    limits: Limits | None = None,
    on_bytes: Callable[[int], None] = _ignore,
) -> Extracted:
    """Writes the wanted members of an archive into a folder.

    Args:
        path: archive, or a plain CSV file. The first bytes tell its kind, not its name.
        target: folder to fill. The caller removes it where an error is raised.
        destination: see `Destination`. A path `.inner/NAME` means an archive in the archive: it is
            unpacked in turn, and its members count towards the same limits.
        limits: `Limits()` by default.
        on_bytes: called with the number of bytes after each write.

    Returns:
        Counts of what was written, inner archives included.

    Raises:
        DataError: hostile, damaged, cut off, or over the limits. Nothing was written where the
            listing alone shows it.
        StorageError: the disk is full or cannot be written.
    """
    job = _Job(target, destination, on_bytes)
    done = _extract_level(path, job, limits or Limits(), depth=0)
    shutil.rmtree(target / INNER, ignore_errors=True)
    return done


def _extract_level(path: Path, job: _Job, limits: Limits, depth: int) -> Extracted:
    """Extracts one archive, then the archives that came out of it."""
    archive = open_archive(path, limits.total)
    destination = job.destination
    if depth >= DEPTH:
        destination = _without_inner(destination)
    with damage(archive):
        wanted, done = _select_members(archive, destination, limits, job.taken)
        _check_space(job.target, [member.size for member in wanted.values()])
    _write_members(archive, wanted, job)
    for name in sorted(wanted):
        if not name.startswith(f"{INNER}/"):
            continue
        inner = job.target / name
        done += _extract_level(inner, job, _rest_of(limits, done), depth + 1)
        with storage.failures("remove", str(inner)):
            inner.unlink()
    return done


def _rest_of(limits: Limits, done: Extracted) -> Limits:
    """What is left of the limits after everything so far."""
    return replace(
        limits,
        total=limits.total - done.bytes.total(),
        members=limits.members - done.files.total(),
    )


def _without_inner(destination: Destination) -> Destination:
    """The same destinations, except that inner archives are left out."""

    def without_inner(name: str) -> str | None:
        found = destination(name)
        if found and found.startswith(f"{INNER}/"):
            return None
        return found

    return without_inner


def _write_members(archive: Archive, wanted: dict[str, Member], job: _Job) -> None:
    """Writes members to their paths in the target; `wanted` is by that path."""
    folders = {str(PurePosixPath(name).parent) for name in wanted}
    with storage.failures("write", str(job.target)):
        for folder in folders:
            (job.target / folder).mkdir(parents=True, exist_ok=True)
    sinks = {}
    for name, member in wanted.items():
        sinks[member.name] = Sink(
            path=job.target / name,
            member=member,
            archive=archive.path,
            on_bytes=job.on_bytes,
        )
    with damage(archive):
        archive.pour(sinks)
        # A stream can end before all listed members came.
        left = []
        for name, sink in sinks.items():
            if not sink.complete:
                left.append(name)
        if left:
            raise ValueError(
                f"{len(left)} of {len(sinks)} files did not come out, such as {left[0]!r}"
            )


def _select_members(
    archive: Archive, destination: Destination, limits: Limits, taken: set[str]
) -> tuple[dict[str, Member], Extracted]:
    """Checks the whole listing and selects the members to write.

    Args:
        taken: paths in the target that are used already; the new ones are added.

    Returns:
        The members by their path in the target, and the counts of them. Inner archives are not
        counted, since their members are.

    Raises:
        DataError: one member is hostile, or the archive is over the limits.
    """
    wanted: dict[str, Member] = {}
    done = Extracted()
    total = 0
    for number, member in enumerate(archive.members(), 1):
        if number > limits.members:
            raise _refusal(archive.path, f"holds more than {limits.members} members")
        _refuse_hostile(archive.path, member)
        target = None
        if member.kind == "file":
            target = destination(member.name)
            if target is None:
                done.others += 1
        if target is not None:
            _refuse_target(archive.path, member, target, limits, taken)
            taken.add(target.lower())
            wanted[target] = member
            _count(done, target, member.size)
        if target is not None or archive.sequential:
            total += member.size
        # Inside the loop: a bomb may list members for ever.
        if total > limits.total:
            raise _refusal(archive.path, f"would unpack to more than {limits.total} bytes")
    return wanted, done


def _count(done: Extracted, target: str, size: int) -> None:
    if target.startswith(f"{INNER}/"):
        return
    top = target.split("/")[0]
    done.files[top] += 1
    done.bytes[top] += size


def _refuse_hostile(path: Path, member: Member) -> None:
    """Raises DataError for a member that no honest archive of tiles has, wanted or not."""
    if _leads_out(member.name):
        raise _refusal(path, f"holds {member.shown}, a name that leads out of the target folder")
    if member.kind == "special":
        raise _refusal(path, f"holds {member.shown}, which is a link or a device and not a file")
    if member.size < 0:
        raise _refusal(path, f"gives {member.shown} a size of {member.size} bytes")


def _leads_out(name: str) -> bool:
    """Whether a name is absolute, climbs with `..`, has a drive letter, or holds a NUL."""
    parts = re.split(r"[/\\]", name)
    if "\0" in name or ".." in parts:
        return True
    # The first part is empty in `/etc/passwd`, and in a name without characters.
    return not parts[0] or re.match(r"[A-Za-z]:", name) is not None


def _refuse_target(
    path: Path, member: Member, target: str, limits: Limits, taken: set[str]
) -> None:
    """Raises DataError where a wanted member cannot be written to its path in the target."""
    file_name = target.rsplit("/", 1)[-1]
    limit = limits.of(target)
    if not SAFE_NAME.fullmatch(file_name):
        rule = "file names are made of up to 255 letters, digits, _, . and -"
        raise _refusal(path, f"holds {member.shown}; {rule}")
    if member.size > limit:
        sizes = f"{member.size} bytes, at most {limit} are allowed"
        raise _refusal(path, f"gives {member.shown} {sizes}")
    # Lower case: some file systems take names that differ in case for the same.
    if target.lower() in taken:
        raise _refusal(path, f"holds two files that would both become {target}")


def _refusal(path: Path, what: str) -> DataError:
    return DataError(
        f"{path} {what}",
        "such an archive is damaged or an attack; nothing of it has been written",
        "get it again from where it is published, or give another one with --from",
    )


def check_space(path: Path, needed: int, what: str) -> None:
    """Checks the free disk space at a path that need not exist yet.

    Args:
        path: file or folder that will be written; the nearest existing parent is measured.
        needed: bytes.
        what: the subject of the message, such as "unpacking".

    Raises:
        StorageError: fewer than `needed` bytes are free.
    """
    folder = path
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free >= needed:
        return
    raise StorageError(
        f"{what} needs {size_text(needed)} of free disk, {path} has {size_text(free)}",
        "it would stop half-way",
        "free some space (df -h), or give --out on a larger disk",
    )


def _check_space(target: Path, sizes: list[int]) -> None:
    """Checks that files of these bytes fit; a file takes whole blocks of the disk."""
    blocks = sum(-(-size // _DISK_BLOCK_BYTES) for size in sizes)  # -(-a // b): rounded up
    check_space(target, blocks * _DISK_BLOCK_BYTES, "unpacking")


def size_text(count: int) -> str:
    """Formats bytes with a decimal unit: `602.3 MB`."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"
