"""Commands where Ray declares GPUs: those that torch does not see are not used, those that it sees are shared out."""

import re

import numpy as np
import pandas as pd
import pytest
import ray
import torch
from batches import observed
from handmade import NETWORK

from raytrain.bench.generate import write_tiles
from raytrain.cli.main import run_command
from raytrain.config import load_recipe
from raytrain.data.dataset import names_of
from raytrain.distributed import dry_run, preflight, search_resources, slots
from raytrain.distributed import train as train_module
from raytrain.distributed.predict import Predictor, predict
from raytrain.distributed.search import search
from raytrain.distributed.search_setup import Options
from raytrain.distributed.train import train
from raytrain.errors import ResourceError
from raytrain.evaluation import predictions
from raytrain.search.table import State, read

no_gpu = pytest.mark.skipif(
    torch.cuda.is_available(), reason="this machine has a GPU, which torch sees"
)
STAGE = {"size": 32, "epochs": 1, "freeze": False, "lr": 0.01}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """160 generated tiles in three shards."""
    return write_tiles(str(tmp_path_factory.mktemp("data") / "dataset"), 160, 32)


@pytest.fixture
def recipe(data, tmp_path):
    values = {
        "dataset": data.path,
        "storage": str(tmp_path / "runs"),
        "num_workers": 2,
        "stages": [STAGE],
        "model": {"arch": NETWORK, "weights": "none"},
        "train": {"batch_size": 32, "threads": 1, "precision": "fp32"},
    }
    return load_recipe("smoke", values)


def flags(recipe):
    return [
        "--config",
        "smoke",
        "--dataset",
        recipe.dataset,
        "--storage",
        recipe.storage,
        "--model.weights",
        "none",
        "--train.batch-size",
        "32",
    ]


@no_gpu
@pytest.mark.usefixtures("declared")
def test_declared_gpus_that_torch_does_not_see_are_not_used_and_a_line_says_so(recipe, logged):
    assert preflight.use_gpu(recipe) is False
    assert len(logged) == 1
    assert re.fullmatch(
        r"CPUs are used: \S+ \(.*\) declares 2 GPUs, torch sees none there \(.+\)", logged[0]
    )
    assert preflight.use_gpu(recipe.model_copy(update={"use_gpu": False})) is False
    assert len(logged) == 1, "nothing is asked where GPUs are not wanted"


@no_gpu
@pytest.mark.usefixtures("declared")
@pytest.mark.parametrize(
    "command",
    [["train", "--use-gpu"], ["train", "--use-gpu", "--dry-run"], ["lr-find", "--use-gpu"]],
    ids=lambda words: " ".join(words),
)
def test_asked_for_they_end_the_command_with_exit_code_5(recipe, command, capfd):
    assert run_command([*command, *flags(recipe)]) == 5
    message = capfd.readouterr().err
    assert "declares 2 GPUs, torch sees none there" in message and "--no-use-gpu" in message
    assert "Traceback" not in message


@no_gpu
@pytest.mark.usefixtures("declared")
def test_a_search_asked_for_gpus_that_torch_does_not_see_ends_with_exit_code_5(
    recipe, tmp_path, capfd
):
    (tmp_path / "space.yaml").write_text("train.wd: {choice: [0.01, 0.1]}\n")
    command = ["tune", "--space", str(tmp_path / "space.yaml"), "--use-gpu", *flags(recipe)]
    assert run_command(command) == 5
    assert "torch sees none there" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("usable")
def test_each_worker_gets_a_gpu_of_its_own_and_predict_shares_them_out(
    recipe, data, tmp_path, monkeypatch, logged
):
    def note(rank, batch, path=str(tmp_path)):
        with open(f"{path}/rank-{rank}", "w") as file:
            file.write(f"{ray.get_gpu_ids()} {ray.train.get_context().get_local_rank()}")

    monkeypatch.setattr(train_module, "train_worker", observed(train_module.train_worker, note))
    done = train(recipe, name="run")
    assert "starting 2 GPU workers (about 15 seconds)" in logged
    ranks = sorted((tmp_path / f"rank-{rank}").read_text() for rank in (0, 1))
    assert {text[-1] for text in ranks} == {"0", "1"} and len({text[:-2] for text in ranks}) == 2

    predicted_alike(f"{done.run.path}/checkpoints/last", data, tmp_path, logged)


@pytest.mark.slow
@pytest.mark.usefixtures("usable")
def test_trials_of_a_search_have_a_gpu_each(recipe):
    alone = recipe.model_copy(update={"num_workers": 1})
    options = Options(num_samples=2, reruns=0)
    search(alone, {"train.wd": {"choice": [0.01, 0.1]}}, options, name="search")
    rows = read(f"{recipe.storage}/search").trials
    assert [row.state for row in rows] == [State.COMPLETE] * 2


@pytest.mark.usefixtures("usable")
@pytest.mark.parametrize(
    ("fields", "share", "resources", "at_once"),
    [
        ({}, {}, {"CPU": 1, "GPU": 1}, 2),
        ({"use_gpu": False}, {}, {"CPU": 1}, 2),
        # Two trials on each GPU would fit, but each needs a CPU.
        ({}, {"trial_gpus": 0.5}, {"CPU": 1, "GPU": 0.5}, 2),
        ({}, {"trial_gpus": 0.5, "trial_cpus": 0.5}, {"CPU": 0.5, "GPU": 0.5}, 4),
        # 0.4 of a GPU: two on each, since Ray gives parts of one GPU only.
        ({}, {"trial_gpus": 0.4, "trial_cpus": 0.1}, {"CPU": 0.1, "GPU": 0.4}, 4),
        ({"num_workers": 2}, {}, {"CPU": 0.01}, 1),
    ],
)
def test_trials_share_gpus_and_cpus_out(recipe, fields, share, resources, at_once):
    changed = recipe.model_copy(update={"num_workers": 1} | fields)
    found = search_resources.share_of(changed, Options(num_samples=1, **share))
    assert found.resources == resources
    assert slots.count(found) == at_once
    assert slots.count(found, most=1) == 1


def predicted_alike(checkpoint, data, tmp_path, logged):
    """Two processes on a GPU each give, for every tile, what one process without gives, though small blocks are joined."""
    out = str(tmp_path / "p.parquet")
    logged.clear()
    predict(checkpoint, out, dataset_path=data.path, part="all")
    lines = [line for line in logged if line.startswith("predict: ")]
    assert len({re.search(r"process (\d+)", line)[1] for line in lines}) == 2
    found = predictions.read(out)
    alone = Predictor(checkpoint, False)
    rows = []
    starts = data.shard_starts
    for shard, start, end in zip(data.shards, starts, starts[1:], strict=False):
        numbers = np.arange(start, end)
        block = pd.DataFrame({"order": numbers, "path": shard, "row": numbers - start, "target": 0})
        block["known"] = True
        rows.append(alone(block.assign(image_name=names_of(data, numbers))))
    wanted = pd.concat(rows)
    assert found.names == tuple(wanted["image_name"])
    np.testing.assert_allclose(found.logits, np.stack(list(wanted["logits"])), rtol=1e-4, atol=1e-5)
    # And a block that holds rows of two shards, in any order.
    mixed = pd.concat([rows[1].iloc[[0]], rows[0].iloc[[1]], rows[1].iloc[[1]]])
    block = pd.DataFrame(
        {"path": [data.shards[n] for n in (1, 0, 1)], "row": [0, 1, 1], "order": 0, "target": 0}
    )
    again = alone(block.assign(image_name=mixed["image_name"].to_list(), known=True))
    np.testing.assert_allclose(
        np.stack(list(again["logits"])), np.stack(list(mixed["logits"])), rtol=1e-4, atol=1e-5
    )


@pytest.mark.usefixtures("usable")
def test_more_workers_than_gpus_are_refused_by_the_command_and_by_its_dry_run(recipe, monkeypatch):
    more = recipe.model_copy(update={"num_workers": 3, "use_gpu": True})
    for refuse in (preflight.use_gpu, dry_run._device):
        with pytest.raises(ResourceError, match="the cluster declares 2 GPUs") as caught:
            refuse(more)
        assert caught.value.fix == "--num-workers 2"
