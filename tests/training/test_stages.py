"""Stages as runs of their own: a chain has the bits of one run, and no stage is trained twice."""

import json

import pytest
from group import run_alone

from raytrain import runlock, storage
from raytrain.config import load_recipe, with_fields
from raytrain.config.recipe import Recipe
from raytrain.data.dataset import open_dataset
from raytrain.errors import DivergedError, TakenError
from raytrain.evaluation import judgement, predictions
from raytrain.training import loop, stage_keys, stages
from raytrain.training.services import Hooks
from raytrain.worker import Worker

ALONE = Worker(cpus=1)
THREE = [
    {"size": 32, "epochs": 1, "freeze": True, "lr": 0.01},
    {"size": 32, "epochs": 2, "lr": [2e-4, 2e-3]},
    {"size": 64, "epochs": 1, "lr": [1e-4, 1e-3]},
]


def recipe_of(dataset, tmp_path, fields=None, listed=THREE):
    base = load_recipe(
        "smoke",
        {
            "dataset": dataset.path,
            "storage": str(tmp_path),
            "stages": listed,
            "train": {"batch_size": 32, "threads": 1},
            "data": {"stored_size": 64},
        },
    )
    changed = with_fields(base.model_dump(mode="json"), fields or {})
    return Recipe.model_validate(changed)


def train_here(recipe, path):
    dataset = open_dataset(recipe.dataset)
    metrics = loop.fit(recipe, dataset, path, ALONE, Hooks())
    return metrics | {"machine": stages.machine_of(ALONE.device)}


def plans_of(recipe, dataset):
    found = stage_keys.facts(recipe, dataset, ALONE)
    return stages.plans(recipe, stage_keys.keys(recipe, dataset, found))


def train_chain(recipe, dataset):
    plans = plans_of(recipe, dataset)
    outcomes = [stages.train(plan, dataset, train_here) for plan in plans]
    return plans, outcomes


def weights(checkpoint):
    """sha256 of the weights of a checkpoint, and of their averages if it has any."""
    manifest = json.loads((checkpoint / "MANIFEST.json").read_text())
    return {name: value for name, value in manifest.items() if name.endswith(".safetensors")}


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="plain"),
        pytest.param(
            {
                "train.ema": 0.9,
                "train.mixup": 0.2,
                "train.accumulate": 2,
                "train.clip_norm": 1.0,
                "train.label_smoothing": 0.05,
                "stages.2.name": "unfrozen",
            },
            id="everything",
        ),
        # Half a minute of range tests.
        pytest.param({"lr": "auto"}, id="lr-auto", marks=pytest.mark.slow),
    ],
)
def test_a_chain_of_stages_has_the_bits_of_one_run(dataset, tmp_path, fields):
    recipe = recipe_of(dataset, tmp_path, fields)
    run_alone(recipe, tmp_path / "one")
    plans, _ = train_chain(recipe, dataset)
    for plan, name in zip(plans, recipe.stage_names, strict=True):
        stored = plan.recipe.stage_names[-1]
        assert weights(tmp_path / "one/checkpoints" / name) == weights(
            tmp_path / "stages" / plan.key / "checkpoints" / stored
        )


def test_an_outcome_has_the_scores_that_evaluate_shows_to_the_last_digit(dataset, tmp_path):
    plans, outcomes = train_chain(recipe_of(dataset, tmp_path), dataset)
    file = storage.join(plans[-1].path, "predictions.parquet")
    judged = judgement.judge(predictions.read(file))
    for rule, estimate in judged.scores.items():
        assert outcomes[-1].scores[rule] == estimate.value
    assert outcomes[-1].scores["f2"] == judged.f2
    assert outcomes[1].epochs == 2


def test_a_stage_is_found_by_whoever_calls_it_otherwise(dataset, tmp_path):
    named = recipe_of(dataset, tmp_path, {"stages.1.name": "head"}, THREE[:1])
    other = recipe_of(dataset, tmp_path, {"stages.1.name": "first"}, THREE[:1])
    train_chain(named, dataset)
    (plan,) = plans_of(other, dataset)
    found = stages.find(plan)
    assert found is not None and found == stages.find(plans_of(named, dataset)[0])
    assert storage.exists(plan.checkpoint) and plan.checkpoint.endswith("stage-1-32")


def test_a_complete_stage_keeps_one_checkpoint_and_is_not_trained_again(dataset, tmp_path):
    recipe = recipe_of(dataset, tmp_path)
    plans, outcomes = train_chain(recipe, dataset)
    for plan in plans:
        assert storage.names(storage.join(plan.path, "checkpoints")) == []
        kept = storage.names(storage.join(plan.path, "checkpoints"), directories=True)
        assert kept == [plan.recipe.stage_names[-1]]

    def refuse(recipe, path):
        raise AssertionError("trained again")

    again = [stages.train(plan, dataset, refuse) for plan in plans]
    assert again == outcomes
    assert [stages.find(plan) for plan in plans] == outcomes


def test_a_stopped_stage_has_no_outcome_and_goes_on_from_its_checkpoint(dataset, tmp_path, logged):
    plan = plans_of(recipe_of(dataset, tmp_path), dataset)[0]

    def stopped(recipe, path):
        return loop.fit(
            recipe, open_dataset(recipe.dataset), path, ALONE, Hooks(stop=lambda: "SIGTERM")
        )

    with pytest.raises(stages.Stopped, match="SIGTERM"):
        stages.train(plan, dataset, stopped)
    assert stages.find(plan) is None
    assert not runlock.is_held(plan.path)
    assert stages.train(plan, dataset, train_here).epochs == 1
    assert any("resuming in stage 1 epoch 1 after its step" in line for line in logged)


def test_a_divergence_is_an_outcome(dataset, tmp_path):
    plan = plans_of(recipe_of(dataset, tmp_path), dataset)[0]

    def diverge(recipe, path):
        raise DivergedError("the loss is nan", "", "")

    found = stages.train(plan, dataset, diverge)
    assert (found.state, found.reason, found.epochs) == (stages.DIVERGED, "the loss is nan", 0)
    assert stages.find(plan) == found


def test_a_stage_whose_checkpoint_is_gone_counts_as_missing(dataset, tmp_path):
    plans, _ = train_chain(recipe_of(dataset, tmp_path), dataset)
    before = weights(tmp_path / "stages" / plans[1].key / "checkpoints/stage-2-32")
    storage.remove(plans[1].checkpoint)
    assert stages.find(plans[1]) is None
    stages.train(plans[1], dataset, train_here)
    assert weights(tmp_path / "stages" / plans[1].key / "checkpoints/stage-2-32") == before


def test_a_stage_whose_checkpoint_is_damaged_is_trained_again(dataset, tmp_path):
    plans, _ = train_chain(recipe_of(dataset, tmp_path), dataset)
    before = weights(tmp_path / "stages" / plans[0].key / "checkpoints/stage-1-32")
    assert not stages.forget_if_damaged(plans[0])
    file = tmp_path / "stages" / plans[0].key / "checkpoints/stage-1-32/model.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"gone")
    assert stages.forget_if_damaged(plans[0])
    assert stages.find(plans[0]) is None
    stages.train(plans[0], dataset, train_here)
    assert weights(file.parent) == before


def test_a_stage_that_another_process_trains_is_left_to_it(dataset, tmp_path):
    plan = plans_of(recipe_of(dataset, tmp_path), dataset)[0]
    with runlock.held(plan.path), pytest.raises(TakenError, match="is being trained by process"):
        stages.train(plan, dataset, train_here)


def test_a_process_that_lost_its_lock_writes_no_outcome(dataset, tmp_path):
    plan = plans_of(recipe_of(dataset, tmp_path), dataset)[0]

    def overtaken(recipe, path):
        metrics = train_here(recipe, path)
        lock = storage.read_json(storage.join(path, runlock.FILE))
        storage.write_json(storage.join(path, runlock.FILE), lock | {"token": "another"})
        return metrics

    with pytest.raises(TakenError):
        stages.train(plan, dataset, overtaken)
    assert stages.find(plan) is None


def test_later_stages_start_from_the_one_before(dataset, tmp_path):
    recipe = recipe_of(dataset, tmp_path, {"init_from": None})
    plans = plans_of(recipe, dataset)
    assert [plan.recipe.init_from for plan in plans] == [
        None,
        plans[0].checkpoint,
        plans[1].checkpoint,
    ]
    assert [len(plan.recipe.stages) for plan in plans] == [1, 2, 3]
    assert [plan.recipe.select for plan in plans] == ["1", "2", "3"]


def test_a_recipe_that_selects_stages_is_a_chain_of_those(dataset, tmp_path):
    whole = recipe_of(dataset, tmp_path)
    part = whole.model_copy(update={"select": "2-3"})
    plans = plans_of(part, dataset)
    assert [plan.number for plan in plans] == [2, 3]
    assert plans[0].recipe.init_from is None
