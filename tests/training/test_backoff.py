"""A run that diverges goes back to its latest checkpoint, once, and on with half the rates."""

import json
import uuid

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from batches import batches_seen
from group import run_alone, run_group, save_at_once, trace

from raytrain.checkpoints import reading
from raytrain.config import Recipe, load_recipe
from raytrain.data.dataset import open_dataset
from raytrain.errors import DivergedError
from raytrain.training import optim
from raytrain.training.loop import fit
from raytrain.training.services import Hooks
from raytrain.worker import Worker


@pytest.fixture(scope="module")
def recipe(dataset):
    """Two stages of two epochs; five steps an epoch, a checkpoint after each."""
    train = {"batch_size": 30, "threads": 1, "ema": 0.9, "save_every_s": 0.0}
    smoke = load_recipe(
        "smoke", {"dataset": dataset.path, "train": train, "model": {"arch": "timm:test_resnet"}}
    )
    return smoke.model_copy(
        update={"stages": tuple(s.model_copy(update={"epochs": 2}) for s in smoke.stages[:2])}
    )


@pytest.fixture(scope="module")
def usual(recipe, tmp_path_factory):
    """The rates of a run that never diverges."""
    run = tmp_path_factory.mktemp("whole") / "run"
    run_alone(recipe, run)
    return rates(run)


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    save_at_once(monkeypatch.setattr)


def poison(*paths):
    """A hook that makes the targets of each (stage, epoch, step) useless, once."""
    left = set(paths)

    def on_batch(batch):
        path = (batch.stage, batch.epoch, batch.number)
        if batch.part == "train" and path in left:
            left.remove(path)
            batch.tensors["target"].fill_(float("nan"))

    return on_batch


def rates(run):
    """(stage, epoch, step) to the head's rate."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {(row["stage"], row["epoch"], row["step"]): row["lr"][-1] for row in rows}


def train(recipe, run, **hooks):
    return run_alone(recipe, run, backoff=True, **hooks)


@pytest.mark.parametrize(
    "path", [(1, 1, 2), pytest.param((1, 2, 0), marks=pytest.mark.slow), (2, 2, 3)]
)
def test_a_run_that_diverges_once_goes_on_with_half_the_rates(
    recipe, usual, tmp_path, path, logged
):
    train(recipe, tmp_path / "run", on_batch=poison(path))
    told = [line for line in logged if "returns to its latest checkpoint" in line]
    assert len(told) == 1 and f"at step {path[2] + 1} of stage {path[0]} epoch {path[1]}" in told[0]
    found = rates(tmp_path / "run")
    assert found.keys() == usual.keys() and len(found) == 20
    at = 5 * (2 * path[0] + path[1] - 3) + path[2]
    assert {key: rate / usual[key] for key, rate in found.items()} == {
        key: 0.5 if key[2] >= at else 1.0 for key in usual
    }
    for name in ("last", "stage-2-32"):
        assert reading.read(str(tmp_path / "run" / "checkpoints" / name)).meta["lr_scale"] == 0.5


def test_a_run_that_diverges_again_ends(recipe, tmp_path):
    with pytest.raises(DivergedError, match="step 1 of stage 2 epoch 1"):
        train(recipe, tmp_path / "run", on_batch=poison((1, 2, 1), (2, 1, 0)))
    found, _ = reading.find_latest(str(tmp_path / "run" / "checkpoints"))
    assert found.position == (1, 2, 0) and found.meta["lr_scale"] == 0.5


def test_without_backoff_as_in_a_search_it_ends_at_once(recipe, tmp_path):
    with pytest.raises(DivergedError, match="step 2 of stage 1 epoch 1"):
        run_alone(recipe, tmp_path / "run", on_batch=poison((1, 1, 1)))


def test_a_stop_after_it_costs_no_bit(recipe, tmp_path):
    train(recipe, tmp_path / "whole", on_batch=poison((1, 2, 2)))
    seen = []

    def stop():
        return "SIGTERM" if seen and seen[-1] == (1, 2, 3) else None

    hurt = poison((1, 2, 2))

    def on_batch(batch):
        hurt(batch)
        seen.append((batch.stage, batch.epoch, batch.number) if batch.part == "train" else None)

    assert train(recipe, tmp_path / "cut", on_batch=on_batch, stop=stop)["stopped"] == "SIGTERM"
    train(recipe, tmp_path / "cut")
    assert trace(tmp_path / "cut") == trace(tmp_path / "whole")


def _member(rank: int, recipe_json: str, run: str, group: str) -> None:
    dist.init_process_group("gloo", init_method=group, rank=rank, world_size=2)
    recipe = Recipe.model_validate_json(recipe_json)
    data, worker = open_dataset(recipe.dataset), Worker(rank, 2, rank, 2)
    with batches_seen(poison(*[(1, 2, 2)] * rank)):  # rank 1 alone
        fit(recipe, data, run, worker, Hooks(), backoff=True)
    dist.destroy_process_group()


def test_all_ranks_go_back_where_one_diverges(recipe, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    arguments = (recipe.model_dump_json(), str(run), f"file://{tmp_path}/group-{uuid.uuid4().hex}")
    mp.start_processes(_member, arguments, nprocs=2, start_method="forkserver")
    run_group(recipe, tmp_path / "whole", 2, record=False)
    found, usual = rates(run), rates(tmp_path / "whole")
    assert found.keys() == usual.keys()
    # The checkpoint of the step before may still have been on its way.
    halved = [key[2] for key in usual if found[key] == usual[key] / 2]
    assert halved[-1] == 19 and 5 <= halved[0] <= 7 and len(halved) == 20 - halved[0]


def test_the_peaks_of_a_stage_and_of_an_optimiser_are_scaled():
    assert optim.times((1e-5, 0.002), 0.5) == (5e-6, 0.001) and optim.times(0.01, 1.0) == 0.01
    net = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD([{"params": net.parameters(), "lr": 0.1, "peak_lr": 0.4}])
    optim.scale_peaks(optimizer, 0.5)
    assert optimizer.param_groups[0]["peak_lr"] == 0.2 and optimizer.param_groups[0]["lr"] == 0.1
