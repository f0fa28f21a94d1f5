"""Facts of a machine, for the checks before a command starts and for `raytrain doctor`.

    facts(Question(...))   what this machine answers

All values are plain, so that they can be sent between machines and written as JSON. Imports neither
torch nor ray; only a question for GPUs imports torch.
"""

from __future__ import annotations

import hashlib
import os
import platform
import resource
import shutil
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from raytrain import control_groups, memory, storage
from raytrain.control_groups import CGROUPS, PROC
from raytrain.errors import ConfigError, StorageError

# The packages whose versions decide what training computes.
PACKAGES = (
    "raytrain",
    "ray",
    "torch",
    "torchvision",
    "numpy",
    "pandas",
    "pyarrow",
    "pillow",
    "pydantic",
)
# Where workers of one machine exchange data. Containers often have 64 MB of it.
SHARED_MEMORY = Path("/dev/shm")
# The file in a cache folder that tells whether two machines have the same folder.
CACHE_ID = "cache-id"
# Bytes at the beginning of a file that are compared between machines.
COMPARED_BYTES = 2**20
MB = 10**6
# Files that a Ray of this machine alone may have open, where the hard limit allows so many.
RAY_OPEN_FILES = 65_536
# Seconds to wait for the address of a host name.
NAME_S = 1.0
# Variables that name the network interfaces of a worker group.
INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


@dataclass(frozen=True)
class Question:
    """What a machine is asked beside its own facts.

    Attributes:
        directories: absolute paths or URIs that a command writes to.
        marker: name of a file that the asking machine has put into each of them; empty for none.
        files: absolute paths or URIs of files that a command reads.
        gpus: whether to ask torch for GPUs, whose import takes seconds.
        megabytes: MB to write to each directory and read back, to measure its speed; 0 for none.
    """

    directories: tuple[str, ...] = ()
    marker: str = ""
    files: tuple[str, ...] = ()
    gpus: bool = False
    megabytes: int = 0


@dataclass(frozen=True)
class Directory:
    """A directory, as a machine sees it.

    Attributes:
        path: as it was asked for.
        problem: why it cannot be used; empty if it can.
        sees_marker: whether the file of the asking machine is there.
        mb_per_s: speed of writing and reading back together; None if it was not measured.
    """

    path: str
    problem: str
    sees_marker: bool
    mb_per_s: float | None = None


@dataclass(frozen=True)
class File:
    """A file, as a machine sees it.

    Attributes:
        path: as it was asked for.
        problem: why it cannot be read; empty if it can.
        size: in bytes.
        sha256: of its first `COMPARED_BYTES` bytes, hexadecimal.
    """

    path: str
    problem: str
    size: int = 0
    sha256: str = ""


@dataclass(frozen=True)
class Gpus:
    """What torch sees in a process.

    Attributes:
        count: number of GPUs that torch can use.
        why: the reason where `count` is 0, else empty.
    """

    count: int
    why: str = ""


@dataclass(frozen=True)
class Cache:
    """The folder for decoded tiles.

    Attributes:
        path: of the folder.
        problem: why it cannot be written; empty if it can.
        free: free bytes of its disk.
        limit: bytes that all caches there may have together, see `cache_limit`.
        identity: text that is the same on two machines only if they share the folder.
    """

    path: str
    problem: str
    free: int = 0
    limit: int = 0
    identity: str = ""


@dataclass(frozen=True)
class Facts:
    """What a machine is and has.

    Attributes:
        host: its name.
        name_address: the IP address of that name; empty if it has none.
        interfaces: names of its network interfaces that have an address.
        interface_variables: those of `INTERFACE_VARIABLES` that are set.
        python: version.
        versions: of each installed package of `PACKAGES`.
        source: hash of the source code of raytrain that runs.
        cpus: number of CPUs that a process may run on.
        cpu_quota: CPUs that its processes may use on average; None without a limit.
        memory_free: bytes that may still be used; None if unknown.
        memory_whole: bytes in total; None if unknown.
        shared_memory: bytes of /dev/shm in total; None if there is none.
        open_files: how many files a process may have open.
        cache: the folder for decoded tiles.
        directories: of the question, in its order.
        files: of the question, in its order.
        gpus: None if they were not asked for.
        clock: seconds since 1970 by its clock, when the answer was complete.
    """

    host: str
    name_address: str
    interfaces: tuple[str, ...]
    interface_variables: dict[str, str]
    python: str
    versions: dict[str, str]
    source: str
    cpus: int
    cpu_quota: float | None
    memory_free: int | None
    memory_whole: int | None
    shared_memory: int | None
    open_files: int
    cache: Cache
    directories: tuple[Directory, ...]
    files: tuple[File, ...]
    gpus: Gpus | None
    clock: float


def facts(question: Question) -> Facts:
    """Returns the facts of this machine, for a process that is started now."""
    bound = memory.left()
    soft_limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Facts(
        host=platform.node(),
        name_address=_address_of_name(),
        interfaces=interfaces(),
        interface_variables=_interface_variables(),
        python=platform.python_version(),
        versions=versions(),
        source=source_hash(),
        cpus=len(os.sched_getaffinity(0)),
        cpu_quota=control_groups.cpu_quota(),
        memory_free=None if bound is None else bound.free,
        memory_whole=None if bound is None else bound.whole,
        shared_memory=_shared_memory(),
        open_files=soft_limit,
        cache=_cache(),
        directories=tuple(_directory(path, question) for path in question.directories),
        files=tuple(seen_file(path) for path in question.files),
        gpus=seen_gpus() if question.gpus else None,
        # Taken last: the asking machine compares it with its own clock when the answer arrives.
        clock=time.time(),
    )


# CPUs, limits and GPUs


def usable_cpus(cgroups: Path = CGROUPS, proc: Path = PROC) -> int:
    """Returns how many threads of this process can run at the same time, at least 1.

    That is the smaller of the CPUs that it may run on (taskset, Slurm) and the CPU quota of its
    control groups (containers, Kubernetes). More threads than the quota would all be stopped for
    the rest of each period, which is slower than fewer threads.

    Args:
        cgroups: where the control groups are mounted.
        proc: the kernel's /proc.
    """
    found = len(os.sched_getaffinity(0))
    quota = control_groups.cpu_quota(cgroups, proc)
    if quota is not None:
        found = min(found, int(quota))
    return max(1, found)


def _shared_memory() -> int | None:
    try:
        return shutil.disk_usage(SHARED_MEMORY).total
    except OSError:
        return None


def raised_open_files() -> int:
    """Returns how many files a process may have open once it has started Ray.

    As `ray.init` raises the limit: ray/_private/worker.py.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = RAY_OPEN_FILES
    return max(soft, min(hard, RAY_OPEN_FILES))


def seen_gpus() -> Gpus:
    """Returns the GPUs that torch sees in this process. Decisions about GPUs rest on it."""
    import torch

    # Why torch cannot use a driver appears only in a warning.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return Gpus(torch.cuda.device_count())
    # torch for AMD cards is built with HIP instead of CUDA.
    if torch.version.cuda is None and torch.version.hip is None:
        return Gpus(0, "this torch is a build without CUDA")
    if caught:
        # The sentences after the first are advice on where to get a driver.
        sentence = str(caught[-1].message).split(". ")[0]
        return Gpus(0, sentence.splitlines()[0])
    return Gpus(0, "no device, or no driver that this torch can use")


# Network


def interfaces() -> tuple[str, ...]:
    """Returns the names of the network interfaces that have an IPv4 or IPv6 address."""
    # Imported late: `python -m raytrain.bench` also runs without it.
    import psutil

    families = (socket.AF_INET, socket.AF_INET6)
    found = []
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.family in families for address in addresses):
            found.append(name)
    return tuple(found)


def _interface_variables(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    return {name: environment[name] for name in INTERFACE_VARIABLES if name in environment}


def _address_of_name() -> str:
    """The address of this machine's host name; empty if it has none, or if nobody answers in time.

    Without a line for it in /etc/hosts, a name server is asked. If that is away, it takes 10 s.
    """
    found: list[str] = []

    def ask() -> None:
        with suppress(OSError):
            found.append(socket.gethostbyname(socket.gethostname()))

    # A daemon, since nothing ends such a question.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(NAME_S)
    return "".join(found)


# Software


def versions() -> dict[str, str]:
    """Returns the version of each installed package of `PACKAGES`."""
    found = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


@cache
def source_hash() -> str:
    """Returns the first 16 hexadecimal digits of the sha256 of the package that this process runs.

    It covers names and contents of all Python and YAML files.
    """
    package = Path(__file__).parent
    files = [path for path in package.rglob("*") if path.suffix in (".py", ".yaml")]
    digest = hashlib.sha256()
    for path in sorted(files):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package)} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


# Disks


def cache_directory() -> Path:
    """Returns `RAYTRAIN_CACHE`, or by default the folder `raytrain` in the user's cache folder."""
    chosen = os.environ.get("RAYTRAIN_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    user_cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(f"{user_cache}/raytrain").expanduser()


def cache_limit() -> int:
    """Returns how many bytes the decoded tiles in the cache folder may have together.

    Raises:
        ConfigError: RAYTRAIN_CACHE_GB is not a number.
    """
    text = os.environ.get("RAYTRAIN_CACHE_GB") or "100"
    try:
        return int(float(text) * 1e9)
    except (OverflowError, ValueError):
        raise ConfigError(
            f'the environment variable RAYTRAIN_CACHE_GB = "{text}" is not a number',
            "it limits the tile cache, in gigabytes",
            "export RAYTRAIN_CACHE_GB=100",
        ) from None


def _cache() -> Cache:
    folder = cache_directory()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        identity = _identity(folder / CACHE_ID)
        free = shutil.disk_usage(folder).free
        return Cache(str(folder), "", free, cache_limit(), identity)
    except ConfigError as error:
        return Cache(str(folder), error.what)
    except OSError as error:
        return Cache(str(folder), error.strerror or str(error))


def _identity(file: Path) -> str:
    """Returns the content of a file, which the first process writes that finds none."""
    own = file.with_name(f"{file.name}.{uuid.uuid4().hex}")
    if not file.exists():
        own.write_text(own.suffix)
        # Unlike `rename`, `link` leaves the file of another process that was faster.
        with suppress(FileExistsError):
            os.link(own, file)
        own.unlink()
    return file.read_text()


def _directory(path: str, question: Question) -> Directory:
    sees_marker = False
    try:
        if question.marker:
            storage.read_bytes(storage.join(path, question.marker))
            sees_marker = True
        storage.probe(path)
        speed = None
        if question.megabytes:
            speed = _speed(path, question.megabytes)
    except FileNotFoundError:
        return Directory(path, "what the asking machine wrote is not there", False)
    except StorageError as error:
        return Directory(path, error.what, sees_marker)
    return Directory(path, "", sees_marker, speed)


def _speed(path: str, megabytes: int) -> float:
    """Returns MB/s of writing a file and reading it back together."""
    file = storage.join(path, f"{storage.PROBES}speed-{uuid.uuid4().hex[:8]}")
    content = os.urandom(megabytes * MB)
    began = time.perf_counter()
    try:
        storage.write_bytes(file, content)
        storage.read_bytes(file)
        return megabytes / (time.perf_counter() - began)
    finally:
        storage.remove(file)


def seen_file(path: str) -> File:
    """Returns a file as this machine sees it.

    Args:
        path: absolute path or URI.
    """
    try:
        size = storage.size(path)
        beginning = storage.read_bytes(path, COMPARED_BYTES)
    except FileNotFoundError:
        return File(path, "no such file")
    except StorageError as error:
        return File(path, error.what)
    return File(path, "", size, hashlib.sha256(beginning).hexdigest())
