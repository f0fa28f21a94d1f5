"""SIGKILL at random points of an ingest, then the same command: the bytes of an undisturbed one.

./dev test -m slow tests/distributed/test_kill.py
"""

import os
import random
import signal
import subprocess
import sys
import time

import psutil
import pytest
from odd_images import encoded, noise

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_cluster")]
TILES, SHARDS = 640, 10


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The command without its --out."""
    folder = tmp_path_factory.mktemp("kill")
    (folder / "images").mkdir()
    for i in range(TILES):
        (folder / "images" / f"t_{i}.jpg").write_bytes(encoded(noise(size=(256, 256), seed=i)))
    rows = "".join(f"t_{i},{('clear', 'water')[i % 2]}\n" for i in range(TILES))
    (folder / "labels.csv").write_text("image_name,tags\n" + rows)
    program = [sys.executable, "-c", "from raytrain.cli.main import main; main()", "ingest"]
    return [*program, "--images", str(folder / "images"), "--labels", str(folder / "labels.csv")]


@pytest.fixture(scope="module")
def undisturbed(command, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    subprocess.run([*command, "--out", str(out)], check=True, capture_output=True)
    return tree(out)


def workers_ended(processes):
    """Waits for what could still write; Ray's agents watch a dead raylet for a minute longer."""
    _, alive = psutil.wait_procs(
        [p for p in processes if p.is_running() and "Agent" not in p.name()], timeout=60
    )
    return not alive


@pytest.mark.parametrize("point", range(8))
def test_a_killed_ingest_ends_with_the_same_bytes(command, undisturbed, tmp_path, point):
    out, chance = tmp_path / "out", random.Random(point)
    process = subprocess.Popen(
        [*command, "--out", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    records, wanted = tmp_path / "out.partial" / "progress", chance.randrange(SHARDS)
    while process.poll() is None and len(list(records.glob("0*.json"))) < wanted:
        time.sleep(0.005)
    time.sleep(chance.uniform(0, 0.3))
    children = (
        psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    )
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists() or tree(out) == undisturbed
    assert workers_ended(children)
    subprocess.run([*command, "--out", str(out)], check=True, capture_output=True)
    assert tree(out) == undisturbed
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
