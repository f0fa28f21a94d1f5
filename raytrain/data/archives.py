"""Safe extraction of .7z, .tar, .tar.7z, .tar.gz and .zip archives.

An archive is listed and judged as a whole before anything of it is written: one member that would leave the target
folder, a link or a device, a name that stands there twice, or sizes and counts over the limits, and nothing is written.
While it is written every byte is counted, since declared sizes can lie. No torch, no ray.
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

# File names as the competition's archives have them; none starts with a dot, so no name leads out of the folder.
SAFE_NAME = re.compile(r"(?=.{1,255}\Z)[A-Za-z0-9_-][A-Za-z0-9_.-]*")
SUFFIXES = (".tar.7z", ".tar.gz", ".tgz", ".tar", ".7z", ".zip")
# Archives inside an archive go here while they wait for their turn; no member can be named so (SAFE_NAME).
INNER = ".inner"
DEPTH = 2  # levels of archives in archives


@dataclass(frozen=True)
class Limits:
    """What an archive may hold at most; bytes of one picture, of one table, of everything, and number of members.

    A real tile has 12 to 25 kB, the label file 1.4 MB, an archive of tiles 600 MB and at most 40,669 members.
    """

    picture: int = 2**20
    table: int = 20 * 2**20
    total: int = 3 * 2**30
    members: int = 200_000

    def of(self, target: str) -> int:
        """The limit for one file that would be written to `target`."""
        if target.startswith(f"{INNER}/"):
            return self.total
        return self.table if target.endswith(".csv") else self.picture


@dataclass
class Extracted:
    """What was written: files and bytes by folder (or by the name of a file at the top), and how many were left out."""

    files: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    others: int = 0

    def __iadd__(self, more: Extracted) -> Extracted:
        self.files += more.files
        self.bytes += more.bytes
        self.others += more.others
        return self


Destination = Callable[[str], str | None]
"""From a member's name to `file` or `folder/file` inside the target, or None to leave it out."""


def extract(
    path: Path,
    target: Path,
    destination: Destination,
    limits: Limits | None = None,
    tell: Callable[[int], None] = lambda count: None,
    *,
    depth: int = 0,
    taken: set[str] | None = None,
) -> Extracted:
    """Writes the wanted members of an archive into a folder.

    Args:
        path: archive; what it is, is read from its first bytes and not from its name. A plain CSV counts as one too.
        target: folder, which the caller removes where an error is raised.
        destination: see `Destination`; `.inner/NAME` means an archive in the archive, which is unpacked in turn; of all together the
            limits hold. Two levels: a zip of everything holds a 7z, which holds a tar.
        tell: is told the bytes of each piece that was written.
        depth, taken: for archives in archives: how deep, and the files that exist already.

    Raises:
        DataError: hostile, damaged, cut off, or over the limits. Nothing was written for what the listing tells.
        StorageError: the disk is full or cannot be written.
    """
    limits, taken = limits or Limits(), set() if taken is None else taken
    archive = open_archive(path, limits.total)
    with damage(archive):
        wanted, done = _judged(
            archive, destination if depth < DEPTH else _without_inner(destination), limits, taken
        )
        _check_space(target, [member.size for member in wanted.values()])
    with storage.failures("write", str(target)):
        for folder in {str(PurePosixPath(name).parent) for name in wanted}:
            (target / folder).mkdir(parents=True, exist_ok=True)
    sinks = {
        member.name: Sink(target / name, member, path, tell) for name, member in wanted.items()
    }
    with damage(archive):
        archive.pour(sinks)
        if left := [sink.member.name for sink in sinks.values() if not sink.done]:
            raise ValueError(
                f"{len(left)} of {len(sinks)} files did not come out, such as {left[0]!r}"
            )
    for name in sorted(name for name in wanted if name.startswith(f"{INNER}/")):
        rest = replace(
            limits,
            total=limits.total - done.bytes.total(),
            members=limits.members - done.files.total(),
        )
        done += extract(
            target / name, target, destination, rest, tell, depth=depth + 1, taken=taken
        )
        with storage.failures("remove", str(target / name)):
            (target / name).unlink()
    if not depth:
        shutil.rmtree(target / INNER, ignore_errors=True)
    return done


def _without_inner(destination: Destination) -> Destination:
    def placed(name: str) -> str | None:
        found = destination(name)
        return None if found and found.startswith(f"{INNER}/") else found

    return placed


def _judged(
    archive: Archive, destination: Destination, limits: Limits, taken: set[str]
) -> tuple[dict[str, Member], Extracted]:
    """The members to write by their destination in the target, and their counts; refuses the archive if one is wrong."""
    wanted: dict[str, Member] = {}
    done, total = Extracted(), 0
    for number, member in enumerate(archive.members(), 1):
        if number > limits.members:
            raise _refusal(archive.path, f"holds more than {limits.members} members")
        _refuse_hostile(archive.path, member)
        target = destination(member.name) if member.kind == "file" else None
        if target is None:
            done.others += member.kind == "file"
        else:
            _refuse_target(archive.path, member, target, limits, taken)
            taken.add(target.lower())
            wanted[target] = member
            if not target.startswith(f"{INNER}/"):
                top = target.split("/")[0]
                done.files[top] += 1
                done.bytes[top] += member.size
        if target is not None or archive.sequential:
            total += member.size
        if total > limits.total:
            raise _refusal(archive.path, f"would unpack to more than {limits.total} bytes")
    return wanted, done


def _refuse_hostile(path: Path, member: Member) -> None:
    parts = re.split(r"[/\\]", member.name)
    if "\0" in member.name or ".." in parts or not parts[0] or re.match(r"[A-Za-z]:", member.name):
        raise _refusal(
            path, f"holds {member.name[:80]!r}, a name that leads out of the target folder"
        )
    if member.kind == "special":
        raise _refusal(
            path, f"holds {member.name[:80]!r}, which is a link or a device and not a file"
        )
    if member.size < 0:
        raise _refusal(path, f"gives {member.name[:80]!r} a size of {member.size} bytes")


def _refuse_target(
    path: Path, member: Member, target: str, limits: Limits, taken: set[str]
) -> None:
    name, limit = target.rsplit("/", 1)[-1], limits.of(target)
    if not SAFE_NAME.fullmatch(name):
        raise _refusal(
            path,
            f"holds {member.name[:80]!r}; file names are made of up to 255 letters, digits, _, . and -",
        )
    if member.size > limit:
        raise _refusal(
            path, f"gives {member.name[:80]!r} {member.size} bytes, at most {limit} are taken"
        )
    if target.lower() in taken:
        raise _refusal(path, f"holds two files that would both become {target}")


def _refusal(path: Path, what: str) -> DataError:
    return DataError(
        f"{path} {what}",
        "such an archive is damaged or an attack; nothing of it has been written",
        "get it again from where it is published, or give another one with --from",
    )


def check_space(path: Path, needed: int, what: str) -> None:
    """Raises StorageError where fewer than `needed` bytes are free; the nearest folder that exists is asked."""
    folder = next(p for p in (path, *path.parents) if p.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"{what} needs {size_text(needed)} of free disk, {path} has {size_text(free)}",
            "it would stop half-way",
            "free some space (df -h), or give --out on a larger disk",
        )


def _check_space(target: Path, sizes: list[int]) -> None:
    # A file takes whole blocks of the disk.
    check_space(target, sum(-(-size // 4096) * 4096 for size in sizes), "unpacking")


def size_text(count: int) -> str:
    """Bytes for people: 602.3 MB."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"
