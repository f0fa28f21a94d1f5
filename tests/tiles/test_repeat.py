"""Tiles that an epoch shows several times: exact counts, whatever shares, windows and interruptions there are."""

import csv
import json
from collections import Counter

import numpy as np
import pytest
import torch
from group import run_alone, run_group, save_at_once, tile_hash, trace
from handmade import encoded, scene, write_dataset

from raytrain.cli.main import run_command
from raytrain.config import load_recipe
from raytrain.errors import ConfigError
from raytrain.tiles import sampling
from raytrain.tiles.cache import open_store
from raytrain.tiles.stream import StreamFeed
from raytrain.training.services import Hooks
from raytrain.training.setup import opened
from raytrain.worker import Worker

CLASSES = ["common", "none", "often", "rare"]
REPEAT = {"rare": 4, "often": 2}
TILES, TRAIN = 40, 32
STARTS = np.array([0, 7, 12, 21, 25])
ROWS = np.array([0, 2, 3, 6, 7, 9, 12, 13, 14, 20, 21, 24], dtype=np.int64)


def labels_of(number):
    """Every eighth tile is rare, every fourth is often, some have no label but the common one."""
    labels = ["common"]
    if number % 4 == 0:
        labels.append("often")
    if number % 8 == 0 or number == 3:
        labels.append("rare")
    return " ".join(labels)


def factor_of(number):
    if "rare" in labels_of(number):
        return 4
    return 2 if "often" in labels_of(number) else 1


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    named = {f"tile_{n}": (encoded(scene(n)), labels_of(n)) for n in range(TILES)}
    parts = ["valid" if n % 5 == 4 else "train" for n in range(TILES)]
    folder = tmp_path_factory.mktemp("repeat") / "dataset"
    return write_dataset(folder, named, CLASSES, {"random": parts}, rows_per_shard=7)


def recipe_of(dataset, **data):
    values = {
        "dataset": dataset.path,
        "data": {"repeat": REPEAT, **data},
        "train": {"batch_size": 15, "threads": 1},
        "stages": [{"size": 32, "epochs": 2, "lr": 0.001}],
    }
    return load_recipe("smoke", values)


@pytest.fixture(scope="module")
def wanted(dataset):
    """row -> how often an epoch shows it."""
    return {int(row): factor_of(row) for row in dataset.part_rows("random", "train")}


def test_the_largest_factor_of_its_labels_counts_and_without_one_a_tile_comes_once():
    targets = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1], [0, 0, 0]], np.uint8)
    factors = np.array([3, 100, 1])
    assert sampling.repeats(targets, factors).tolist() == [3, 100, 100, 1, 1]


@pytest.mark.parametrize("window", [None, 1, 2])
def test_an_epoch_visits_every_row_as_often_as_it_stands_there(window):
    often = np.repeat(ROWS, np.arange(1, len(ROWS) + 1))
    order = sampling.epoch_order(often, STARTS, (1, 2, 3), window)
    assert sorted(order) == list(often)
    # Copies are shuffled apart: the last row stands there twelve times.
    places = np.flatnonzero(order == ROWS[-1])
    if window is None:
        assert np.ptp(places) > len(often) / 2


def test_without_repeats_the_order_is_the_one_it_always_was():
    order = sampling.epoch_order(ROWS, STARTS, (42, 1, 1))
    assert order.tolist() == [9, 20, 6, 13, 14, 0, 21, 3, 12, 24, 2, 7]
    windowed = sampling.epoch_order(ROWS, STARTS, (42, 1, 1), 2)
    assert windowed.tolist() == [3, 21, 6, 24, 2, 0, 13, 7, 20, 9, 14, 12]


def test_no_repeats_change_no_row(dataset):
    rows = sampling.training_rows(recipe_of(dataset, repeat={}), dataset)
    assert np.array_equal(rows, dataset.part_rows("random", "train"))
    ones = sampling.training_rows(recipe_of(dataset, repeat={"rare": 1}), dataset)
    assert np.array_equal(ones, rows)


@pytest.mark.parametrize("window_gb", [2.0, 1e-9])
@pytest.mark.parametrize("tiles", ["cache", "stream"])
def test_the_batches_of_a_run_hold_each_tile_as_often_as_it_should(
    dataset, wanted, tmp_path, tiles, window_gb, logged
):
    recipe = recipe_of(dataset, window_gb=window_gb).model_copy(update={"tiles": tiles})
    with opened(recipe, dataset, str(tmp_path / "run"), Worker(), Hooks()) as (job, _, _):
        assert job.tiles.window == (1 if tiles == "stream" and window_gb < 1 else None)
        orders = []
        for epoch in (1, 2):
            rows = np.concatenate(job.batches(1, epoch))
            assert Counter(rows.tolist()) == wanted
            orders.append(rows.tolist())
        assert orders[0] != orders[1]
    total = sum(wanted.values())
    assert f"data.repeat: an epoch shows {total} tiles, which are {TRAIN} different ones" in logged


def test_a_streamed_batch_with_the_same_tile_twice_has_it_twice(dataset, tmp_path):
    store = open_store(dataset, 64, directory=tmp_path / "cache")
    feed = StreamFeed(dataset, 64, window=1, processes=0, device=torch.device("cpu"))
    rows = np.array([3, 8, 3, 3, 8])
    (picture,) = feed(iter([rows]))
    np.testing.assert_array_equal(picture.permute(0, 2, 3, 1).numpy(), store.pixels[rows])
    feed.close()


@pytest.fixture(scope="module")
def groups(dataset, tmp_path_factory):
    base = tmp_path_factory.mktemp("groups")
    for world in (1, 2, 3):
        run_group(recipe_of(dataset), base / str(world), world)
    return base


def recorded(run, world):
    """(epoch, number) -> tiles of the global batch, over all ranks."""
    seen = {}
    for rank in range(world):
        for line in (run / f"batches-{rank}.jsonl").read_text().splitlines():
            batch = json.loads(line)
            if batch["part"] == "train":
                key = (batch["epoch"], batch["number"])
                seen.setdefault(key, []).extend(batch["tiles"])
    return seen


@pytest.mark.parametrize("world", [1, 2, 3])
def test_counts_are_exact_for_any_number_of_workers(groups, dataset, wanted, world):
    store = open_store(dataset, 64)
    hashes = {
        tile_hash(torch.from_numpy(store.pixels[row].copy()).permute(2, 0, 1)): count
        for row, count in wanted.items()
    }
    seen = recorded(groups / str(world), world)
    for epoch in (1, 2):
        tiles = [tile for key, batch in seen.items() if key[0] == epoch for tile in batch]
        assert Counter(tiles) == hashes
    # Ranks take contiguous shares of one and the same batch.
    assert seen == recorded(groups / "1", 1)
    rows = list(csv.DictReader((groups / str(world) / "history.csv").open()))
    assert len(rows) == 2


class Stopped(Exception):
    pass


def test_a_run_goes_on_within_an_epoch_of_repeated_mixed_and_dropped_tiles(
    dataset, tmp_path, monkeypatch
):
    recipe = recipe_of(dataset)
    train = recipe.train.model_copy(
        update={"mixup": 0.4, "drop_last": True, "batch_size": 10, "save_every_s": 0.0}
    )
    recipe = recipe.model_copy(update={"train": train})
    run_alone(recipe, tmp_path / "whole")
    save_at_once(monkeypatch.setattr)

    def stop(batch):
        if batch.part == "train" and (batch.epoch, batch.number) == (2, 3):
            raise Stopped

    with pytest.raises(Stopped):
        run_alone(recipe, tmp_path / "cut", on_batch=stop)
    seen = []
    run_alone(recipe, tmp_path / "cut", on_batch=lambda b: seen.append((b.epoch, b.number)))
    assert seen[0][0] == 2 and seen[0][1] > 0
    assert trace(tmp_path / "cut") == trace(tmp_path / "whole")


def test_dropped_tiles_are_counted_among_the_repeated_ones(dataset, wanted, tmp_path, logged):
    recipe = recipe_of(dataset)
    train = recipe.train.model_copy(update={"drop_last": True})
    stages = (recipe.stages[0].model_copy(update={"epochs": 1}),)
    run_alone(recipe.model_copy(update={"train": train, "stages": stages}), tmp_path / "run")
    dropped = sum(wanted.values()) % 15
    assert dropped
    assert any(
        f"the last {dropped} tiles of an epoch make no full batch" in line for line in logged
    )


def test_a_batch_may_be_as_large_as_the_repeated_tiles_are_many(dataset, wanted):
    recipe = recipe_of(dataset)
    rows = sampling.training_rows(recipe, dataset)
    assert len(rows) == sum(wanted.values()) > TRAIN
    train = recipe.train.model_copy(update={"batch_size": len(rows)})
    sampling.check_batches(recipe.model_copy(update={"train": train}), len(rows), 8)


def test_a_label_that_the_dataset_lacks_is_refused(dataset):
    with pytest.raises(ConfigError, match=r'the label "rar".* Did you mean "rare"') as caught:
        sampling.training_rows(recipe_of(dataset, repeat={"rar": 2}), dataset)
    assert "common, none, often, rare" in caught.value.why


def test_a_dry_run_prints_the_tiles_of_an_epoch_and_refuses_an_unknown_label(
    dataset, wanted, tmp_path, capsys
):
    command = ["train", "--config", "smoke", "--dataset", dataset.path, "--dry-run"]
    command += ["--storage", str(tmp_path / "runs"), "--stages", "1", "--train.batch-size", "15"]
    assert run_command([*command, "--set", "data.repeat={rare: 4, often: 2}"]) == 0
    said = capsys.readouterr()
    total = sum(wanted.values())
    words = f"an epoch shows {total} tiles, which are {TRAIN} different ones"
    assert words in said.out + said.err
    steps = -(-total // 15)
    assert f"1 epochs x {steps} steps of 15" in said.out + said.err
    assert run_command([*command, "--set", "data.repeat={rar: 4}"]) == 2
    assert 'Did you mean "rare"?' in capsys.readouterr().err
