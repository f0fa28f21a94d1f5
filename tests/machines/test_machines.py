"""Commands on several machines, which `namespaced` makes of this one: `./dev test -m machines tests/machines`."""

import csv
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from group import run_group
from namespaced import Cluster, why_not

from raytrain.config import load_recipe
from raytrain.data.dataset import open_dataset
from raytrain.evaluation import predictions

WHY_NOT = why_not()
pytestmark = [
    pytest.mark.machines,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
]
BOTH = ["10.77.0.1", "10.77.0.2"]


@pytest.fixture(scope="module")
def machines():
    """Two machines of one CPU, as an installation of Debian or Ubuntu leaves them."""
    import ray

    ray.shutdown()
    # A short path, since Ray keeps sockets in it.
    folder = Path(tempfile.mkdtemp(prefix="m-"))
    debian = {"cpus": 1, "on_debian": True}
    with Cluster(folder, [debian, debian]) as found:
        yield found
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def ingested(machines, tiles):
    """The dataset of the tests, ingested by a job."""
    images = shutil.copytree(tiles[0], machines.shared / "images")
    labels = shutil.copy(tiles[1], machines.shared)
    out = machines.shared / "dataset"
    done = machines.submit("ingest", "--images", images, "--labels", labels, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def recipe(machines, ingested):
    """A short recipe for two workers, which lies where all machines read it."""
    fields = {
        "dataset": str(ingested),
        "num_workers": 2,
        "train": {"batch_size": 16, "threads": 1},
        "stages": [{"size": 32, "epochs": 2, "lr": 0.01}],
    }
    found = load_recipe("smoke", fields)
    (machines.shared / "recipe.yaml").write_text(found.to_yaml())
    return found


@pytest.fixture(scope="module")
def trained(machines, recipe):
    """The run of a job with two workers."""
    runs = machines.shared / "runs"
    given = ["--config", machines.shared / "recipe.yaml", "--storage", runs, "--name", "two"]
    done = machines.submit("train", *given)
    assert done.returncode == 0, done.stdout + done.stderr
    return runs / "two"


def history(run):
    with (run / "history.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_dataset_of_two_machines_is_that_of_one(ingested, dataset):
    assert open_dataset(str(ingested)).hash == dataset.hash


def test_two_workers_on_two_machines_of_one_cpu_give_the_losses_of_one_machine(
    machines, recipe, trained, tmp_path
):
    assert sorted(machines.machines_of_workers()) == BOTH
    run_group(recipe, tmp_path / "here", 2, record=False)
    for there, here in zip(history(trained), history(tmp_path / "here"), strict=True):
        for name in ("train_loss", "valid_loss"):
            assert float(there[name]) == pytest.approx(float(here[name]), abs=1e-6)


def test_predictions_of_two_machines_are_those_of_the_run(machines, ingested, trained):
    out = machines.shared / "valid.parquet"
    done = machines.submit("predict", "--checkpoint", trained, "--dataset", ingested, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    found = predictions.read(str(out))
    known = predictions.read(str(trained / "predictions.parquet"))
    rows = [found.names.index(name) for name in known.names]
    np.testing.assert_allclose(found.logits[rows], known.logits, atol=1e-5)


def test_a_search_of_two_machines_names_a_winner(machines, recipe, trained):
    space = machines.shared / "space.yaml"
    space.write_text(yaml.safe_dump({"stages.1.lr": {"loggrid": [0.003, 0.03, 3]}}))
    runs = trained.parent
    given = ["--config", machines.shared / "recipe.yaml", "--storage", runs, "--num-workers", "1"]
    limits = ["--space", space, "--num-samples", "2", "--reruns", "0", "--name", "search"]
    line = ["tune", *given, *limits, "--resume", "auto"]
    for _ in range(2):
        done = machines.submit(*line)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "winner: trial" in done.stdout
    table = json.loads((runs / "search" / "trials.json").read_text())
    assert [row["state"] for row in table["trials"]] == ["complete"] * 2
