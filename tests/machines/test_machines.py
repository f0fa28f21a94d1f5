"""Commands on several machines, which `namespaced` makes of this one: `./dev test -m machines tests/machines`."""

import csv
import shutil
import tempfile
from pathlib import Path

import pytest
from group import run_group
from namespaced import Cluster, why_not

from raytrain.config import load_recipe

WHY_NOT = why_not()
pytestmark = [
    pytest.mark.machines,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
    pytest.mark.usefixtures("no_cluster"),
]


@pytest.fixture
def folder():
    """A folder with a short path."""
    path = Path(tempfile.mkdtemp(prefix="m-"))
    yield path
    shutil.rmtree(path)


def history(run):
    with (run / "history.csv").open() as file:
        return list(csv.DictReader(file))


def test_two_workers_on_two_machines_of_one_cpu_give_the_losses_of_one_machine(
    folder, dataset, tmp_path
):
    debian = {"cpus": 1, "on_debian": True}
    with Cluster(folder, [debian, debian]) as cluster:
        data = shutil.copytree(dataset.path, cluster.shared / "dataset")
        runs = cluster.shared / "runs"
        stage = {"size": 32, "epochs": 2, "lr": 0.01}
        train = {"batch_size": 16, "threads": 1}
        fields = {"dataset": str(data), "num_workers": 2, "train": train, "stages": [stage]}
        recipe = load_recipe("smoke", fields)
        (cluster.shared / "recipe.yaml").write_text(recipe.to_yaml())
        done = cluster.submit(
            "train",
            *("--config", cluster.shared / "recipe.yaml"),
            *("--storage", runs, "--name", "two"),
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert sorted(cluster.machines_of_workers()) == ["10.77.0.1", "10.77.0.2"]
        rows = history(runs / "two")
    run_group(recipe, tmp_path / "here", 2, record=False)
    for there, here in zip(rows, history(tmp_path / "here"), strict=True):
        for name in ("train_loss", "valid_loss"):
            assert float(there[name]) == pytest.approx(float(here[name]), abs=1e-6)
