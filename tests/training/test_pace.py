"""Step times of the ranks: what a slow machine costs the others is seen."""

import csv
import time
import uuid
from functools import partial

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp
from batches import batches_seen
from group import run_alone

from raytrain.checkpoints.history import RankRow
from raytrain.config import Recipe, load_recipe
from raytrain.data.dataset import open_dataset
from raytrain.log import collected
from raytrain.training.loop import fit
from raytrain.training.pace import slow_ranks
from raytrain.training.services import Hooks
from raytrain.worker import Worker

HELD_UP_S = 0.1


@pytest.fixture(scope="module")
def recipe(dataset):
    """Two epochs of 16 steps."""
    train = {"batch_size": 8, "threads": 1}
    smoke = load_recipe(
        "smoke", {"dataset": dataset.path, "train": train, "model": {"arch": "timm:test_resnet"}}
    )
    return smoke.model_copy(update={"stages": (smoke.stages[0].model_copy(update={"epochs": 2}),)})


def rows(run):
    return list(csv.DictReader((run / "ranks.csv").open()))


def row(rank, seconds, steps=20):
    return RankRow(1, 1, rank, f"host{rank}", steps, seconds)


def test_a_rank_that_takes_longer_than_the_others_is_named():
    said = slow_ranks([row(0, 0.2), row(1, 0.5), row(2, 0.2), row(3, 0.29)])
    assert len(said) == 1 and said[0].startswith("rank 1 on host1 takes 2.5 times as long")
    assert slow_ranks([row(0, 0.2), row(1, 0.41)])[0].startswith("rank 1 on host1 takes 2.0 times")


@pytest.mark.parametrize(
    "ranks", [[], [row(0, 9.0)], [row(0, 0.2, 9), row(1, 0.9, 9)], [row(0, 0.0), row(1, 0.0)]]
)
def test_nothing_is_said_of_one_rank_or_of_few_steps(ranks):
    assert slow_ranks(ranks) == []


def test_a_run_writes_a_row_for_each_epoch_and_going_on_repeats_none(recipe, tmp_path):
    class Stopped(Exception):
        pass

    def stop(batch):
        if (batch.part, batch.epoch, batch.number) == ("train", 2, 3):
            raise Stopped

    with pytest.raises(Stopped):
        run_alone(recipe, tmp_path, on_batch=stop)
    assert [(r["epoch"], r["rank"], r["steps"]) for r in rows(tmp_path)] == [("1", "0", "16")]
    run_alone(recipe, tmp_path)
    assert [(r["stage"], r["epoch"]) for r in rows(tmp_path)] == [("1", "1"), ("1", "2")]


def _held_up(rank, batch):
    time.sleep(HELD_UP_S * rank)


def _member(rank: int, recipe_json: str, run: str, group: str) -> None:
    dist.init_process_group("gloo", init_method=group, rank=rank, world_size=2)
    recipe = Recipe.model_validate_json(recipe_json)
    worker = Worker(rank, 2, rank, 2)
    with collected() as lines, batches_seen(partial(_held_up, rank)):
        fit(recipe, open_dataset(recipe.dataset), run, worker, Hooks())
    if rank == 0:
        slow = [line for line in lines if "all wait for it" in line]
        assert slow and all(line.startswith("rank 1 on") for line in slow), lines
    dist.destroy_process_group()


def test_the_time_that_one_rank_waits_for_another_is_not_its_own(recipe, tmp_path):
    group = f"file://{tmp_path}/group-{uuid.uuid4().hex}"
    mp.start_processes(
        _member,
        (recipe.model_dump_json(), str(tmp_path), group),
        nprocs=2,
        start_method="forkserver",
    )
    seconds = {(r["epoch"], r["rank"]): float(r["seconds"]) for r in rows(tmp_path)}
    assert len(seconds) == 4
    for epoch in ("1", "2"):
        assert seconds[epoch, "1"] > HELD_UP_S > 2 * seconds[epoch, "0"]
