"""What tests share: a home of their own, one small synthetic dataset, at most one local Ray at a time.

`./dev test` runs them in two processes of pytest-xdist. All tests that start a Ray run in the same one, so that two never
stand beside each other.
"""

import os
import signal

# Before torch is imported: threads that wait for each other sleep, instead of spinning on a core that another test needs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
from filelock import FileLock
from handmade import NETWORK

from raytrain.cli.main import run_command
from raytrain.data import synthetic
from raytrain.data.dataset import open_dataset
from raytrain.distributed.environment import QUIET
from raytrain.log import collected

pytest_plugins = ["leaks"]
TILES = 160
ARCH = "RAYTRAIN_MODEL__ARCH"
# A test that starts a Ray, itself or in another process, has one of these fixtures. With the first three it uses the Ray
# that the tests share, with the others one of its own.
USES_SHARED_RAY = {"cluster", "in_this_process", "four"}
STARTS_OWN_RAY = {"no_cluster", "searched", "ray_head", "declared"}


def pytest_make_parametrize_id(val):
    """Names packed bytes by their number: they hold the time, and both processes must find the same tests."""
    if isinstance(val, bytes) and val.startswith((b"PK", b"\x1f\x8b")):
        return f"{len(val)}-packed-bytes"
    return None


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in the same hook
def pytest_collection_modifyitems(items):
    """Tests that start a Ray are one group of pytest-xdist; the others of a file are one, too.

    The group of Ray comes first, since it takes longer than all others together. Files that start Rays of their own are its
    last, so that the shared one is seldom ended and started again. Of the others, training takes longest.
    """
    with_own = {item.path for item in items if not STARTS_OWN_RAY.isdisjoint(item.fixturenames)}

    def place(item):
        return not starts_ray(item), item.path in with_own, item.path.parent.name != "training"

    items.sort(key=place)
    for item in items:
        group = "ray" if starts_ray(item) else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))


def starts_ray(item):
    return not (USES_SHARED_RAY | STARTS_OWN_RAY).isdisjoint(item.fixturenames)


@pytest.fixture(scope="session", autouse=True)
def surroundings(temporary_directory, tmp_path_factory):
    """A temporary HOME and tile cache; Ray without tokens; recipes train the small network, unless `own_network`."""
    home = tmp_path_factory.mktemp("home")
    os.environ.update(
        HOME=str(home),
        RAYTRAIN_CACHE=str(home / "cache"),
        RAY_AUTH_MODE="disabled",
        **QUIET,
    )
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.1"  # their epochs are as short as that
    os.environ[ARCH] = NETWORK
    for name in ("RAY_ADDRESS", "RAYTRAIN_STORAGE", "RAYTRAIN_DATASET"):
        os.environ.pop(name, None)


@pytest.fixture
def hangups():
    """SIGHUP ends a process, as in a terminal: under nohup the tests would find it ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def own_network(monkeypatch):
    """Recipes keep the network that they name."""
    monkeypatch.delenv(ARCH)


@pytest.fixture
def logged():
    """The texts of the program's messages."""
    with collected() as texts:
        yield texts


@pytest.fixture
def in_this_process(monkeypatch):
    """A run without a worker group, whose start takes 10 seconds: for tests of what comes before and after."""
    from raytrain.training.loop import fit
    from raytrain.training.services import Hooks
    from raytrain.worker import Worker

    def group(function, path, recipe, own=(), stop=None):
        hooks = Hooks(metrics=tuple(own))
        return fit(recipe, open_dataset(recipe.dataset), path, Worker(), hooks)

    monkeypatch.setattr("raytrain.distributed.train._group", group)


@pytest.fixture(scope="session")
def shared(tmp_path_factory, worker_id):
    """A folder that all processes of these tests share."""
    own = tmp_path_factory.getbasetemp()
    return own if worker_id == "master" else own.parent


@pytest.fixture(scope="session")
def tiles(shared):
    """(image folder, label file) of 160 synthetic tiles."""
    with FileLock(shared / "tiles.lock"):
        return synthetic.write(shared / "tiles", TILES, seed=1)


@pytest.fixture
def cluster():
    """A local Ray of two declared CPUs, started by the first test that needs one: each process of a pool imports torch."""
    import ray

    if not ray.is_initialized():
        ray.init(address="local", num_cpus=2, log_to_driver=False)
    yield
    # Left running for the next test; `no_cluster` and the end of the session (in `leaks`) stop it.


@pytest.fixture
def no_cluster():
    """No Ray in this process: for tests that start one in another."""
    import ray

    ray.shutdown()


@pytest.fixture(scope="session")
def dataset(tiles, shared):
    """The ingested dataset of the tiles: 3 shards, 128 training and 32 validation tiles."""
    out = shared / "synthetic"
    with FileLock(shared / "synthetic.lock"):
        if not out.exists():
            ingest_once(tiles, out)
    return open_dataset(str(out))


def ingest_once(tiles, out):
    import ray

    started = not ray.is_initialized()
    if started:
        ray.init(address="local", num_cpus=2, log_to_driver=False)
    assert (
        run_command(
            ["ingest", "--images", str(tiles[0]), "--labels", str(tiles[1]), "--out", str(out)]
        )
        == 0
    )
    if started:
        ray.shutdown()
