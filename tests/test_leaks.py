"""The check that runs after each test: that it sees what it is made for, and nothing else."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import leaks
import pytest

LEAKING = """
import subprocess, tempfile
from pathlib import Path
import leaks, pytest
leaks.PATIENCE_S = 0.3
started = []
@pytest.fixture(scope="module")
def careless():
    yield
    tempfile.mkdtemp(prefix="of-the-module-")
def test_clean(careless, tmp_path):
    (tmp_path / "file").touch()
def test_process():
    started.append(subprocess.Popen(["sleep", "60"]))
def test_file():
    tempfile.mkstemp(prefix="of-the-test-")
def test_end():
    started[0].kill()
    started[0].wait()
"""


def test_every_test_and_module_is_checked(tmp_path):
    (tmp_path / "test_leaking.py").write_text(LEAKING)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "leaks",
        "-p",
        "no:cacheprovider",
        str(tmp_path),
        "--basetemp",
        str(tmp_path / "base"),
    ]
    path = f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, cwd=tmp_path, capture_output=True, text=True
    )
    assert "4 passed, 3 errors" in done.stdout, done.stdout + done.stderr
    for name, words in (
        ("process", "sleep 60"),
        ("file", "file of-the-test-"),
        ("end", "file of-the-module-"),
    ):
        said = done.stdout.split(f"ERROR at teardown of test_{name} ")[1].split("ERROR at")[0]
        assert "left behind: " in said and words in said


def gone(before):
    end = time.monotonic() + leaks.PATIENCE_S
    while leaks.left_since(before) and time.monotonic() < end:
        time.sleep(0.05)
    return not leaks.left_since(before)


def test_a_child_its_child_and_an_orphan_are_named_until_they_end():
    before = leaks.standing()
    parent = subprocess.Popen(
        ["sh", "-c", "sleep 61 & echo $!; wait"], stdout=subprocess.PIPE, text=True
    )
    child = int(parent.stdout.readline())
    orphan = int(
        subprocess.run(["sh", "-c", "sleep 62 >&2 & echo $!"], stdout=subprocess.PIPE).stdout
    )
    found = leaks.left_since(before)
    os.kill(orphan, signal.SIGKILL)
    os.kill(child, signal.SIGKILL)
    parent.communicate()
    assert sorted(line.split()[1] for line in found) == sorted(
        map(str, (parent.pid, child, orphan))
    )
    assert gone(before)


def test_a_temporary_file_is_named_and_what_all_share_is_not():
    before = leaks.standing()
    path = Path(tempfile.mkdtemp(prefix="mine-"))
    shared = Path(tempfile.mkdtemp(prefix="pymp-"))
    assert leaks.left_since(before) == [f"temporary file {path.name}"]
    path.rmdir()
    shared.rmdir()
    assert leaks.left_since(before) == []


@pytest.mark.usefixtures("cluster")
def test_a_living_actor_and_a_placement_group_are_named_and_rays_workers_are_not():
    import ray

    @ray.remote(num_cpus=0)
    class Idler:
        def ready(self):
            return True

    before = leaks.standing()
    idler = Idler.remote()
    group = ray.util.placement_group([{"CPU": 1}])
    ray.get([idler.ready.remote(), group.ready()])
    nothing = leaks.Standing(frozenset(), before.files, before.ray)
    actor, placement = sorted(leaks.left_since(nothing))
    assert actor.startswith("actor ") and actor.endswith("Idler")
    assert placement == f"placement group {group.id.hex()}"
    ray.kill(idler)
    ray.util.remove_placement_group(group)
    assert gone(before)
