"""R5 and R6: whatever writes is killed, or its disk fails, at every single write to the file system."""

import errno
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest.mock import patch

import syscalls
import torch
import writers
from figures import Case, Checks, Figure, Outcome, numbers
from group import save_at_once
from sentences import flaw, flaw_of
from syscalls import ERRORS, FLUSHES, KILLS, Ended, Fault
from workshop import dataset, recipe
from writers import Invalid, Writer

from raytrain import storage
from raytrain.checkpoints.layout import STEP
from raytrain.checkpoints.reading import find_latest
from raytrain.checkpoints.saver import MOST_FAILURES, Saver
from raytrain.data.dataset import open_dataset
from raytrain.errors import StorageError
from raytrain.log import collected
from raytrain.training.loop import fit
from raytrain.training.services import Hooks
from raytrain.worker import Worker

LEAST_POINTS = 300
# --quick takes one point of so many.
QUICK_EVERY = 20


def swept(name: str, faults: tuple[Fault, ...], quick: bool, folder: Path) -> Outcome:
    """A writer with each fault at each of its points: of every twentieth point, or of all others."""
    if not syscalls.possible():
        return Outcome(
            0, 1, failures=["this figure traces system calls, which needs Linux on x86-64"]
        )
    torch.set_num_threads(
        1
    )  # a forked process has none of the threads that torch's pool believes in
    writer = writers.writer(name, folder)
    writer.begin(_emptied(folder / "before"))
    checks, chosen = (
        Checks(),
        (lambda n: n % QUICK_EVERY == 0) if quick else (lambda n: n % QUICK_EVERY != 0),
    )
    points = syscalls.points(partial(writer.work, _fresh(folder)), folder / "place")
    for number, point in enumerate(points):
        for fault in faults:
            if chosen(number) and fault.fits(point):
                what = f"{name}, {fault.name} call {number + 1}, {point}"
                for wrong in _tried(writer, number, fault, folder):
                    checks.add(not wrong, f"{what}: {wrong}")
    return checks.outcome(points=[float(checks.of)], valid=[float(checks.passed)])


def _tried(writer: Writer, number: int, fault: Fault, folder: Path) -> Iterator[str]:
    """What is wrong after a fault, nothing if all is well."""
    path = _fresh(folder)
    ended = syscalls.disturbed(partial(writer.work, path), path, number, fault)
    try:
        state = writer.state(path)
        yield (
            _ended_badly(ended, state)
            if fault.error
            else ""
            if ended.code is None
            else f"not killed: {ended}"
        )
    except Invalid as error:
        yield f"{error} (the work ended with {ended.code} {ended.text})"
    except Exception as error:
        yield f"{type(error).__name__}: {error}"


def _ended_badly(ended: Ended, state: str) -> str:
    """An error of the disk is either borne, and then all is there, or told in a sentence with the exit code of storage."""
    if ended.code == 0:
        return "" if state == "new" else "it ended without an error, and not all is there"
    if ended.code != StorageError.exit_code:
        return f"exit code {ended.code}: {ended.text}"
    return flaw(ended.text)


def flushed(folder: Path) -> Outcome:
    """Nothing is renamed to its final name before its bytes are flushed: a kill does not show that, a power cut would.

    But for the tile cache and the record of an ingest that is going on, which can be made again.
    """
    torch.set_num_threads(1)
    checks = Checks()
    for name in writers.NAMES:
        (here := folder / name.replace(" ", "-")).mkdir()
        writer = writers.writer(name, here)
        writer.begin(_emptied(here / "before"))
        dirty: set[str] = set()
        for point in syscalls.points(partial(writer.work, _fresh(here)), here / "place"):
            call, _, path = point.partition(" ")
            if any(word in path for word in ("progress/", "cache/")):
                continue
            if call in ("write", "pwrite64", "writev"):
                dirty.add(path)
            elif call in FLUSHES:
                dirty = dirty - {path, _renamed_beside(path)} if path else set()
            elif path in dirty and Path(path).parent.suffix == ".partial":
                # A file in a folder that has no final name yet: what is flushed there next must be this one.
                dirty = dirty - {path} | {_renamed_beside(path)}
            elif call.startswith("rename"):
                lost = sorted(file for file in dirty if file == path or file.startswith(f"{path}/"))
                checks.add(not lost, f"{name}: {path} is renamed, {', '.join(lost)} is not flushed")
    checks.add(checks.of > 20, "next to nothing was renamed")
    return checks.outcome()


def _renamed_beside(path: str) -> str:
    return str(Path(path).with_name("renamed"))


def too_large(folder: Path) -> Outcome:
    """A limit on the size of files (EFBIG) in the middle of a checkpoint, by the kernel itself."""
    checks, writer = Checks(), writers.writer("checkpoints", folder)
    writer.begin(_emptied(folder / "before"))
    for limit in range(0, 1500, 100):
        path = _fresh(folder)

        def limited(path: Path = path, limit: int = limit) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            writer.work(path)

        ended = syscalls.disturbed(limited, path, -1, KILLS[0])
        checks.add(
            (ended.code == 7 and "File too large" in ended.text) or ended.code == 0,
            f"{limit} bytes: {ended.text}",
        )
        checks.add(
            writer.state(path) == ("new" if ended.code == 0 else "old"),
            f"{limit} bytes: another state",
        )
    return checks.outcome()


def within_an_epoch(failing: int, folder: Path) -> Outcome:
    """A run whose disk is full for so many checkpoints within an epoch, in a row: two are borne, the third ends it."""
    checks, met, written = Checks(), [], storage.written
    settings = recipe(
        dataset(folder / "data", 64), (32, 64), epochs=1, save_every_s=0.0
    ).model_copy(update={"select": "1"})

    def refused(path: Path) -> None:
        met.append(path)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def full(path: Path, write: Callable[[Path], None]) -> str:
        fails = f"/{STEP}" in str(path) and len(met) < failing
        return written(path, refused if fails else write)

    with (
        patch.object(Saver, "save", Saver.save),
        patch.object(storage, "written", full),
        collected() as lines,
    ):
        save_at_once()
        try:
            fit(
                settings,
                open_dataset(settings.dataset),
                str(folder / "run"),
                Worker(),
                Hooks(),
            )
            checks.add(failing < MOST_FAILURES, "it went on without a checkpoint")
        except StorageError as error:
            checks.add(
                failing == MOST_FAILURES and not flaw_of(error), f"{failing} failures: {error}"
            )
    said = sum("training goes on" in line for line in lines)
    checks.add(said == min(failing, MOST_FAILURES - 1), f"said {said} times that training goes on")
    found, skipped = find_latest(str(folder / "run" / "checkpoints"))
    # The third failure in a row comes before anything was kept.
    checks.add((found is None) == (failing == MOST_FAILURES) and not skipped, f"{found}, {skipped}")
    return checks.outcome()


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder / "place", ignore_errors=True)
    # With their times: what an ingest has done it knows again by the times of the pictures.
    return Path(shutil.copytree(folder / "before", folder / "place"))


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _cases(word: str, faults: tuple[Fault, ...]) -> list[Case]:
    return [
        Case(f"{word} {name} {which}", partial(swept, name, faults, quick), quick)
        for name in writers.NAMES
        for which, quick in (("some points", True), ("other points", False))
    ]


def _points(outcomes: list[Outcome]) -> str:
    return f"{sum(numbers(outcomes, 'valid')):.0f} of {sum(numbers(outcomes, 'points')):.0f} points valid"


def _enough(outcomes: list[Outcome]) -> bool:
    """All are valid; and many enough, unless only the quick cases were run."""
    whole = len(outcomes) > 2 * len(writers.NAMES)
    return all(o.passed == o.of > 0 for o in outcomes) and (
        not whole or sum(numbers(outcomes, "points")) >= LEAST_POINTS
    )


FIGURES = [
    Figure(
        "R5",
        "killed at any write: checkpoints, record, dataset, cache, archives",
        f"100% of >= {LEAST_POINTS} points",
        [*_cases("killed", KILLS), Case("flushed before renamed", flushed)],
        _points,
        _enough,
    ),
    Figure(
        "R6",
        "disk full, read-only or failing at any write",
        "old state intact, exit code 7: 100%",
        [
            *_cases("failing disk", ERRORS),
            Case("failing disk too large", too_large),
            *(
                Case(
                    f"failing disk for {n} checkpoints in a row",
                    partial(within_an_epoch, n),
                    n == 3,
                )
                for n in (1, 2, 3)
            ),
        ],
    ),
]
