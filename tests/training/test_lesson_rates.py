"""`lr: lesson` through real stages: the steepest fall, then a pair from the curve and the stage before."""

import json
from functools import partial

import pandas as pd
import pytest
import torch
from group import run_alone, save_at_once, trace
from handmade import encoded, scene, write_dataset

from raytrain.checkpoints import reading
from raytrain.cli.main import run_command
from raytrain.config import load_recipe
from raytrain.data.dataset import open_dataset
from raytrain.report import plots, rates
from raytrain.training import lr_find, transforms
from raytrain.training.loop import find_rates
from raytrain.training.services import Hooks
from raytrain.worker import Worker

CLASSES = ["even", "odd"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    named = {f"tile_{n}": (encoded(scene(n)), CLASSES[n % 2]) for n in range(30)}
    parts = ["valid" if n % 5 == 4 else "train" for n in range(30)]
    folder = tmp_path_factory.mktemp("rates") / "dataset"
    return write_dataset(folder, named, CLASSES, {"random": parts}, rows_per_shard=10)


@pytest.fixture(scope="module")
def recipe(dataset):
    """A frozen stage, an unfrozen one, and another unfrozen one."""
    stages = [
        {"size": 32, "epochs": 1, "freeze": True, "lr": 0.01},
        {"size": 32, "epochs": 2, "freeze": False, "lr": [1e-4, 0.002]},
        {"size": 32, "epochs": 1, "freeze": False, "lr": [1e-4, 0.001]},
    ]
    values = {
        "dataset": dataset.path,
        "lr": "lesson",
        "model": {"dropout": 0.0},
        "data": {"augment": {"flip": "none", "rotate": 0, "lighting": 0}},
        "train": {"batch_size": 12, "threads": 1},
        "stages": stages,
    }
    return load_recipe("smoke", values)


@pytest.fixture(scope="module")
def shorter():
    """Range tests of 40 steps, whose fall counts as clear whatever it is.

    The loss of so small a network rises late, so that the pair would end below its beginning: it gets the whole of the
    frozen rate. That it is a fifth: test_lr_find.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lr_find, "range_test", partial(lr_find.range_test, steps=40))
        patch.setattr(lr_find, "CLEAR_FALL", -10.0)
        patch.setattr(lr_find, "HIGH_DIVISOR", 1.0)
        yield


@pytest.fixture(scope="module")
def whole(recipe, shorter, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    run_alone(recipe, run)
    return run


def peak_of(run, name):
    return reading.load(str(run / "checkpoints" / name)).meta["lr"]


def found_in(run, name):
    return json.loads((run / "lr-find" / f"{name}.json").read_text())


def rise_in(run, name):
    """Read from the table by hand."""
    table = pd.read_csv(run / "lr-find" / f"{name}.csv")
    kept = table.iloc[10:-5]
    lowest = kept["smoothed"].idxmin()
    after = table.loc[lowest:]
    risen = after[after["smoothed"] > 1.1 * kept["smoothed"].min()]
    return risen["lr"].iloc[0]


def test_a_frozen_stage_takes_the_steepest_fall_and_the_next_one_a_pair(whole):
    first = found_in(whole, "stage-1-32")
    assert peak_of(whole, "stage-1-32") == first["steepest"]
    assert "frozen/5" not in first
    second = found_in(whole, "stage-2-32")
    low, high = peak_of(whole, "stage-2-32")
    assert high == second["frozen/5"] == first["steepest"]
    assert low == second["rise/10"] == pytest.approx(rise_in(whole, "stage-2-32") / 10)
    assert low < high


def test_a_stage_after_an_unfrozen_one_keeps_the_recipes_rates(recipe, whole):
    assert tuple(peak_of(whole, "stage-3-32")) == recipe.stages[2].lr
    assert "frozen/5" not in found_in(whole, "stage-3-32")


def test_a_run_that_starts_from_the_frozen_stage_reads_its_rate_there(
    recipe, whole, tmp_path, shorter, logged
):
    start = str(whole / "checkpoints" / "stage-1-32")
    settings = recipe.model_copy(update={"init_from": start, "select": "2"})
    run_alone(settings, tmp_path / "run")
    assert peak_of(tmp_path / "run", "stage-2-32") == peak_of(whole, "stage-2-32")
    before = reading.load(str(whole / "checkpoints" / "stage-2-32")).weights()
    after = reading.load(str(tmp_path / "run" / "checkpoints" / "stage-2-32")).weights()
    assert all(torch.equal(before[key], after[key]) for key in before)
    frozen = peak_of(whole, "stage-1-32")
    assert any(f"the stage before was frozen with lr {frozen:.1e}" in line for line in logged)


def test_a_run_without_a_stage_before_keeps_the_planned_rates_and_says_so(
    recipe, tmp_path, shorter, logged
):
    run_alone(recipe.model_copy(update={"select": "2"}), tmp_path / "run")
    assert tuple(peak_of(tmp_path / "run", "stage-2-32")) == recipe.stages[1].lr
    assert any("stage 2: no frozen stage comes before this one" in line for line in logged)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("epoch", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_resumed_run_has_the_rates_of_an_undisturbed_one(
    recipe, whole, tmp_path, shorter, monkeypatch, epoch
):
    save_at_once(monkeypatch.setattr)

    def stop(batch):
        if batch.part == "valid" and (batch.stage, batch.epoch) == (2, epoch):
            raise Stopped

    train = recipe.train.model_copy(update={"save_every_s": 0.0})
    often = recipe.model_copy(update={"train": train})
    with pytest.raises(Stopped):
        run_alone(often, tmp_path / "run", on_batch=stop)
    run_alone(recipe, tmp_path / "run")
    assert trace(tmp_path / "run") == trace(whole)


@pytest.mark.slow
def test_half_the_rates_after_a_divergence_are_half_the_lessons(
    recipe, whole, tmp_path, shorter, monkeypatch
):
    diverged = []

    # No feed gives pixels that are not numbers: they are let in for this test.
    monkeypatch.setitem(transforms.SCALE, torch.float32, 255)

    def poison(batch):
        if batch.part == "valid" and batch.stage == 2 and not diverged:
            diverged.append(batch.stage)
            batch.tensors["image"] = batch.tensors["image"].float() * float("nan")

    settings = recipe.model_copy(update={"select": "1-2"})
    run_alone(settings, tmp_path / "run", on_batch=poison, backoff=True)
    halved = peak_of(tmp_path / "run", "stage-2-32")
    assert diverged == [2]
    assert halved == pytest.approx([lr / 2 for lr in peak_of(whole, "stage-2-32")])


def test_the_range_test_alone_shows_the_pair_and_draws_it(
    recipe, whole, dataset, tmp_path, shorter
):
    start = str(whole / "checkpoints" / "stage-1-32")
    settings = recipe.model_copy(update={"init_from": start, "select": "2", "lr": None})
    run = str(tmp_path / "run")
    find_rates(settings, dataset, run, Worker(), Hooks())
    (test,) = rates.read(run)
    assert list(test.suggestions) == ["steepest", "valley", "minimum/10", "rise/10", "frozen/5"]
    assert test.suggestions == found_in(whole, "stage-2-32")
    drawn = plots.range_test(test.curve, test.suggestions)
    without = {rule: lr for rule, lr in test.suggestions.items() if rule != "rise/10"}
    assert drawn != plots.range_test(test.curve, without)


def test_the_command_prints_the_pair_as_it_is_typed(
    recipe, whole, tmp_path, shorter, monkeypatch, capsys
):
    def in_this_process(settings, name, *, wait_s):
        data = open_dataset(settings.dataset)
        find_rates(settings, data, str(tmp_path / name), Worker(), Hooks())

    monkeypatch.setattr("raytrain.distributed.train.find_rates", in_this_process)
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml())
    start = str(whole / "checkpoints" / "stage-1-32")
    command = ["lr-find", "--config", str(file), "--stages", "2", "--init-from", start]
    assert run_command([*command, "--storage", str(tmp_path), "--name", "found"]) == 0
    low, high = peak_of(whole, "stage-2-32")
    said = capsys.readouterr().out
    assert f"rise/10 {low:.1e}, frozen/5 {high:.1e}" in said
    assert f"--set stages.2.lr={low:.1e},{high:.1e}" in said
    assert (tmp_path / "found" / "lr-find" / "stage-2-32.png").exists()
