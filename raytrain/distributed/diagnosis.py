"""Judges the facts of machines, for `raytrain doctor`: what works, what to know, what will fail.

    ok        nothing to do
    note      the program copes with it by itself
    failure   a command would fail, or results or secrets would be lost

Nothing here asks a machine. The facts come from `nodes.ask`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from raytrain.distributed.network import is_loopback, network
from raytrain.distributed.nodes import Answer, other_versions
from raytrain.errors import masked
from raytrain.machine import Facts, File

OK = "ok"
NOTE = "note"
FAILURE = "failure"

MIB = 2**20

# Seconds between two clocks from which logs are hard to compare, and from which object stores and
# locks begin to refuse.
CLOCK_NOTE_S = 2.0
CLOCK_FAILURE_S = 60.0
# NCCL exchanges data between GPUs of a machine in /dev/shm. Docker gives 64 MiB by default.
LEAST_SHARED_MEMORY = 512 * MIB
# Files that Ray's own processes have open, and in addition for each CPU and for each machine.
OPEN_FILES = 256
OPEN_FILES_OF_CPU = 16
OPEN_FILES_OF_MACHINE = 8
# What Ray recommends: docs.ray.io, "Ray cluster ulimit settings".
RECOMMENDED_FILES = 65_535
# MB/s of a link. ResNet-50 exchanges 100 MB in each step.
SLOW_LINK = 100.0
FAILING_LINK = 10.0

SAME_VERSION = "install the same version there, or ray job submit --working-dir ."
SHARED = "a path that every machine reaches: a shared disk, s3:// or gs://"


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis.

    Attributes:
        level: OK, NOTE or FAILURE.
        machine: its name; empty for the whole cluster.
        what: a sentence.
        fix: what to do; empty where nothing is to be done.
    """

    level: str
    machine: str
    what: str
    fix: str = ""

    def __str__(self) -> str:
        where = f"{self.machine}: " if self.machine else ""
        text = f"{self.level:8}{where}{self.what}"
        if self.fix:
            text += f"; {self.fix}"
        return text


@dataclass(frozen=True)
class Here:
    """What the machine of the command knows, to compare the others with.

    Attributes:
        facts: its own facts.
        files: the files of the question, as this machine sees them.
        cache_needed: bytes of the decoded tiles of the dataset; None without a dataset.
    """

    facts: Facts
    files: Sequence[File] = ()
    cache_needed: int | None = None


def diagnosed(answers: Sequence[Answer], here: Here) -> list[Finding]:
    """Returns all findings about the machines, those of each machine together.

    Args:
        answers: of the machines that may work.
        here: the machine of the command.
    """
    found: list[Finding] = []
    for answer in answers:
        if answer.facts is None:
            what = f"does not answer: {answer.silence}"
            found.append(Finding(FAILURE, answer.name, what, "ray status shows the machines"))
            continue
        own = list(_of_machine(answer, answer.facts, here, len(answers)))
        if all(finding.level != FAILURE for finding in own):
            found.append(Finding(OK, answer.name, _summary(answer.facts)))
        found += own
    return found + list(_of_shared_caches(answers))


def _of_machine(answer: Answer, facts: Facts, here: Here, machines: int) -> Iterator[Finding]:
    """Yields what is to be said about one machine; nothing if it is sound."""
    name = answer.name
    yield from _of_software(name, facts, here.facts)
    yield from _of_paths(name, facts, here)
    yield from _of_cache(name, facts, here.cache_needed)
    yield from _of_limits(name, facts, machines)
    yield from _of_network(name, facts, machines)
    yield from _of_gpus(answer, facts)
    yield from _of_clock(name, answer.clock_s)


def _summary(facts: Facts) -> str:
    gpus = ""
    if facts.gpus is not None and facts.gpus.count:
        gpus = f", {facts.gpus.count} GPUs"
    memory = ""
    if facts.memory_whole:
        memory = f", {facts.memory_whole / 1e9:.0f} GB"
    version = facts.versions.get("raytrain", "unknown")
    return f"raytrain {version}, {facts.cpus} CPUs{memory}{gpus}"


def _of_software(name: str, facts: Facts, here: Facts) -> Iterator[Finding]:
    if facts.source != here.source:
        what = (
            f"runs other source code of raytrain: version "
            f"{facts.versions.get('raytrain', 'unknown')}, source {facts.source}"
        )
        yield Finding(FAILURE, name, what, SAME_VERSION)
    packages = dict(facts.versions)
    own = dict(here.versions)
    # The source says more about it.
    packages.pop("raytrain", None)
    own.pop("raytrain", None)
    different = other_versions(packages, own)
    if different:
        what = f"has other packages: {different}"
        yield Finding(FAILURE, name, what, "install those of constraints.txt on every machine")
    if facts.python != here.python:
        what = f"has Python {facts.python}, here is {here.python}"
        yield Finding(FAILURE, name, what, "the same Python on every machine")


def _of_paths(name: str, facts: Facts, here: Here) -> Iterator[Finding]:
    for directory in facts.directories:
        if directory.problem:
            what = f"cannot use {masked(directory.path)}: {directory.problem}"
            yield Finding(FAILURE, name, what, SHARED)
    own = {file.path: file for file in here.files}
    for file in facts.files:
        known = own[file.path]
        if known.problem:
            # It is told once, of the machine of the command.
            continue
        if (file.size, file.sha256) != (known.size, known.sha256):
            problem = file.problem or "another file of that name is there"
            yield Finding(FAILURE, name, f"cannot read {masked(file.path)}: {problem}", SHARED)


def _of_cache(name: str, facts: Facts, needed: int | None) -> Iterator[Finding]:
    cache = facts.cache
    if cache.problem:
        what = f"the tile cache {cache.path} cannot be written: {cache.problem}"
        yield Finding(FAILURE, name, what, "export RAYTRAIN_CACHE=DIR on a local disk, there")
        return
    if needed is None:
        return
    tiles = f"the decoded tiles need {needed / 1e9:.1f} GB, the tile cache {cache.path}"
    if cache.free < needed:
        what = f"{tiles} has {cache.free / 1e9:.1f} GB free, so tiles are streamed"
        yield Finding(NOTE, name, what, "export RAYTRAIN_CACHE=DIR on a larger disk is faster")
    elif cache.limit < needed:
        what = f"{tiles} may hold {cache.limit / 1e9:.1f} GB, so tiles are streamed"
        enough = -(-needed // 10**9)
        yield Finding(NOTE, name, what, f"export RAYTRAIN_CACHE_GB={enough} is faster")


def _of_shared_caches(answers: Sequence[Answer]) -> Iterator[Finding]:
    machines: defaultdict[str, list[str]] = defaultdict(list)
    for answer in answers:
        if answer.facts is not None and answer.facts.cache.identity:
            machines[answer.facts.cache.identity].append(answer.name)
    for names in machines.values():
        if len(names) < 2:
            continue
        what = "one tile cache is shared by " + ", ".join(names)
        fix = "export RAYTRAIN_CACHE=DIR with a local disk on each: locks and maps need one"
        yield Finding(FAILURE, "", what, fix)


def _of_limits(name: str, facts: Facts, machines: int) -> Iterator[Finding]:
    needed = OPEN_FILES + OPEN_FILES_OF_CPU * facts.cpus + OPEN_FILES_OF_MACHINE * machines
    fix = f"ulimit -n {RECOMMENDED_FILES}, before ray start"
    if facts.open_files < needed:
        what = f"a process may open {facts.open_files} files, {needed} are needed"
        yield Finding(FAILURE, name, what, fix)
    elif facts.open_files < RECOMMENDED_FILES:
        what = f"a process may open {facts.open_files} files, which is enough here"
        yield Finding(NOTE, name, what, f"{fix}, in a large cluster")
    if facts.cpu_quota is not None and facts.cpu_quota < facts.cpus:
        what = (
            f"its quota is {facts.cpu_quota:g} CPUs, and it could run on {facts.cpus}: "
            "threads follow the quota"
        )
        yield Finding(NOTE, name, what)
    if facts.shared_memory is not None and facts.shared_memory < LEAST_SHARED_MEMORY:
        level = NOTE
        # NCCL needs it; gloo and Ray use other ways.
        if facts.gpus is not None and facts.gpus.count:
            level = FAILURE
        what = f"/dev/shm has {facts.shared_memory / MIB:.0f} MiB"
        fix = "docker run --shm-size 8g; on Kubernetes a memory volume at /dev/shm"
        yield Finding(level, name, what, fix)


def _of_network(name: str, facts: Facts, machines: int) -> Iterator[Finding]:
    uses_gpu = facts.gpus is not None and facts.gpus.count > 0
    found = network(uses_gpu, facts.interfaces, facts.interface_variables)
    if found.unknown:
        variable, _, _ = found.unknown.partition("=")
        what = f"{found.unknown} names no network interface"
        yield Finding(FAILURE, name, what, f"unset {variable} there, before ray start")
    elif found.alone and machines > 1:
        what = f"workers would be known by {found.alone}, which no other machine reaches"
        yield Finding(FAILURE, name, what, "unset GLOO_SOCKET_IFNAME there, before ray start")
    if facts.name_address and is_loopback(facts.name_address):
        what = f"its host name has the address {facts.name_address}: Ray's address is used"
        yield Finding(NOTE, name, what)
    if not facts.name_address:
        yield Finding(NOTE, name, "its host name has no address: Ray's address is used")


def _of_gpus(answer: Answer, facts: Facts) -> Iterator[Finding]:
    if facts.gpus is None or facts.gpus.count >= answer.declared_gpus:
        return
    what = f"declares {answer.declared_gpus} GPUs, torch sees {facts.gpus.count}"
    if facts.gpus.why:
        what += f" ({facts.gpus.why})"
    fix = "a torch and a driver that fit together, or ray start --num-gpus 0"
    yield Finding(FAILURE, answer.name, what, fix)


def _of_clock(name: str, ahead_s: float) -> Iterator[Finding]:
    if abs(ahead_s) < CLOCK_NOTE_S:
        return
    level = FAILURE if abs(ahead_s) >= CLOCK_FAILURE_S else NOTE
    direction = "ahead of" if ahead_s > 0 else "behind"
    what = f"its clock is {abs(ahead_s):.1f} s {direction} this one"
    yield Finding(level, name, what, "systemctl enable --now systemd-timesyncd, or chrony")


def of_links(seconds: Mapping[tuple[str, str], float | None], megabytes: int) -> list[Finding]:
    """Judges the links between machines.

    Args:
        seconds: of an all-reduce between two machines; None where it did not end in time.
        megabytes: that were exchanged.

    Returns:
        Findings about the machines whose links are all slow, else about the slow links.
    """
    slow: dict[tuple[str, str], float] = {}
    for pair, taken in seconds.items():
        speed = 0.0 if taken is None else megabytes / taken
        if speed < SLOW_LINK:
            slow[pair] = speed
    if not slow:
        return [Finding(OK, "", f"links between machines: at least {SLOW_LINK:.0f} MB/s")]
    found = []
    for machine in sorted({name for pair in slow for name in pair}):
        links = [pair for pair in seconds if machine in pair]
        others = [pair for pair in seconds if machine not in pair]
        # It is the machine if all its links are slow and one without it is not.
        all_slow = all(pair in slow for pair in links)
        if all_slow and any(pair not in slow for pair in others):
            found.append(_slow(machine, max(slow[pair] for pair in links)))
    if found:
        return found
    return [_slow(" and ".join(pair), speed) for pair, speed in slow.items()]


def _slow(machine: str, speed: float) -> Finding:
    level = FAILURE if speed < FAILING_LINK else NOTE
    what = f"its network passes {speed:.1f} MB/s"
    if speed == 0:
        what = "its network is so slow that the measurement was ended"
    what += "; ResNet-50 exchanges 100 MB in each step"
    return Finding(level, machine, what, "check its cable, its switch and its limits")


def of_ports(blocked: Sequence[tuple[str, str]]) -> list[Finding]:
    """Judges which machines reach which.

    Args:
        blocked: (from, to) of each connection that failed.
    """
    found = []
    for start, end in blocked:
        what = f"cannot connect to {end}"
        fix = "open the ports between the machines (a security group, a firewall)"
        found.append(Finding(FAILURE, start, what, fix))
    return found
