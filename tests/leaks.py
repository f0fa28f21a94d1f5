"""What a test leaves behind: processes, temporary files, Ray's actors and placement groups. A pytest plugin.

Whatever stands after a test, or after all tests of a module, and did not before, is an error of that test or module. The
temporary directory is one of the session's own; pytest's `tmp_path` lies elsewhere.
"""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import pairwise
from multiprocessing.util import Finalize

import psutil
import pytest

# What is ending has so long to end: an actor that is killed needs about a second.
PATIENCE_S = 8.0
# Servers that this process starts at their first use and that end with it: for groups of processes, for shared memory,
# for shared tensors, for compilation. What a forkserver has started is not excepted.
SERVERS = (
    "multiprocessing.forkserver",
    "multiprocessing.resource_tracker",
    "torch_shm_manager",
    "compile_worker",
)
# The folder of Ray's sessions; sockets of forkservers, which Ray kills in its dashboard; torch's cache of compiled code.
FILES = ("ray", "pymp-*", "torchinductor_*")
# Those of Ray Data: one of each, kept for all that follow.
ACTORS = (
    "_StatsActor",
    "_AutoscalingCoordinatorActor",
    "ActorLocationTracker",
    "AutoscalingRequester",
)
LIVING = ("DEPENDENCIES_UNREADY", "PENDING_CREATION", "ALIVE", "RESTARTING")
# In a Ray of another process, which a fixture has started for several tests, they are seen by their titles alone. Its agents
# begin some seconds after it answers.
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
WORKERS = ("ray::IDLE", *AGENTS, *(f"ray::{name}" for name in ACTORS))


@dataclass(frozen=True)
class Standing:
    """What there is: numbers of all processes, names in the temporary directory, Ray's actors and groups by their ids."""

    processes: frozenset[int]
    files: frozenset[str]
    ray: dict[str, str]


def standing() -> Standing:
    """What there is now."""
    return Standing(
        frozenset(psutil.pids()), frozenset(os.listdir(tempfile.gettempdir())), _of_ray()
    )


def left_since(before: Standing) -> list[str]:
    """A line for each thing that was not there before."""
    now = standing()
    files = [
        name
        for name in sorted(now.files - before.files)
        if not any(fnmatch(name, shared) for shared in FILES)
    ]
    return [
        *_processes(now.processes - before.processes),
        *(f"temporary file {name}" for name in files),
        *(text for key, text in now.ray.items() if key not in before.ray),
    ]


@contextmanager
def nothing_left() -> Iterator[None]:
    """Fails where something is left at the end, and still is after the time it has to end."""
    before = standing()
    yield
    end = time.monotonic() + PATIENCE_S
    while (left := left_since(before)) and time.monotonic() < end:
        time.sleep(0.1)
    if left:
        pytest.fail("left behind: " + "; ".join(left), pytrace=False)


def _processes(numbers: frozenset[int]) -> list[str]:
    """Lines for those processes that this one, or one that has gone since, has started."""
    lines = []
    for number in sorted(numbers):
        try:
            process = psutil.Process(number)
            line = " ".join(process.cmdline()).strip()
            if line and line not in WORKERS and _is_ours(process) and not _is_shared(process):
                lines.append(f"process {number} ({line[:200]})")
        except psutil.Error:  # it has ended, or is another user's
            pass
    return lines


def _is_ours(process: psutil.Process) -> bool:
    """By its parents; an orphan by the temporary directory that it inherited.

    Not seen are orphaned agents of Ray, whose title overwrites it: they watch a dead raylet for a minute longer.
    """
    parents = {parent.pid for parent in process.parents()}
    return os.getpid() in parents or process.environ().get("TMPDIR") == tempfile.gettempdir()


def _is_shared(process: psutil.Process) -> bool:
    line = [process, *process.parents()]
    ours = next((below for below, parent in pairwise(line) if parent.pid == os.getpid()), None)
    if ours is None:
        return False
    words = " ".join(ours.cmdline())
    if ours == process and any(name in words for name in SERVERS):
        return True
    # Ray's servers of this process, and all that they start: workers wait for the next task; actors are seen by Ray.
    return bool(ray := _ray()) and ray.get_runtime_context().get_session_name() in words


def _of_ray() -> dict[str, str]:
    """Living actors and placement groups, where this process is connected to Ray."""
    if not (ray := _ray()):
        return {}
    # The public list_actors asks the dashboard: 4 ms, twice a test.
    from ray._private.state import actors

    found = {
        key: actor for state in LIVING for key, actor in actors(actor_state_name=state).items()
    }
    groups = ray.util.placement_group_table().items()
    return {
        **{
            key: f"actor {a['ActorClassName']}"
            for key, a in found.items()
            if a["ActorClassName"] not in ACTORS
        },
        **{key: f"placement group {key}" for key, group in groups if group["state"] != "REMOVED"},
    }


def _ray():
    ray = sys.modules.get("ray")
    return ray if ray and ray.is_initialized() else None


@pytest.fixture(scope="session", autouse=True)
def temporary_directory(tmp_path_factory):
    """The session's own, for its processes too; Ray's sessions lie in it, hence its short name."""
    tmp_path_factory.getbasetemp()  # pytest decides on its own place now, outside
    path = tempfile.mkdtemp(prefix="tests-")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", path)
        patch.setattr(tempfile, "tempdir", path)
        yield path
        if ray := sys.modules.get("ray"):
            ray.shutdown()
    # After those of multiprocessing, which removes its sockets in there at -100.
    Finalize(None, shutil.rmtree, (path,), {"ignore_errors": True}, exitpriority=-200)


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left_by_the_module(temporary_directory):
    """Of what its own fixtures made."""
    with nothing_left():
        yield


@pytest.fixture(autouse=True)
def nothing_is_left_by_the_test(temporary_directory):
    """Of what it made itself."""
    with nothing_left():
        yield
