"""The key of a stage: equal for what gives the same bits, another for what does not."""

import json
from dataclasses import replace

import pytest
from test_stages import ALONE, THREE, recipe_of, train_here

from raytrain.data.dataset import open_dataset
from raytrain.training import stage_keys, stages

CPU = stage_keys.Facts("cpu", 1, "fp32", 1, False, None)


def keys(dataset, tmp_path, fields=None, listed=THREE, found=CPU):
    return stage_keys.keys(recipe_of(dataset, tmp_path, fields, listed), dataset, found)


def shared(one, two):
    """How many stages two chains share."""
    count = 0
    for first, second in zip(one, two, strict=False):
        if first != second:
            break
        count += 1
    return count


@pytest.fixture(scope="module")
def given(dataset, tmp_path_factory):
    return keys(dataset, tmp_path_factory.mktemp("given"))


def test_every_field_of_the_configuration_is_in_the_key_or_known_to_have_no_effect():
    assert stage_keys.undecided_fields() == []


@pytest.mark.parametrize(
    ("fields", "same"),
    [
        ({}, 3),
        ({"stages.3.lr": 0.003}, 2),
        ({"stages.2.epochs": 3}, 1),
        ({"stages.3.size": 48}, 2),
        ({"stages.3.start_size": 32, "stages.3.epochs": 2}, 2),
        ({"stages.1.lr": 0.02}, 0),
        ({"stages.2.augment": {"rotate": 20.0}}, 1),
        ({"train.wd": 0.02}, 0),
        ({"train.seed": 7}, 0),
        ({"train.loss": "soft-f2"}, 0),
        ({"data.augment.zoom": 1.2}, 0),
        ({"data.normalize": "none"}, 0),
        ({"data.stored_size": 32}, 0),
        ({"model.dropout": 0.1}, 0),
        ({"lr": "auto"}, 0),
    ],
)
def test_chains_share_what_comes_before_their_first_difference(
    dataset, tmp_path, given, fields, same
):
    assert shared(given, keys(dataset, tmp_path, fields)) == same


@pytest.mark.parametrize(
    "fields",
    [
        {"stages.1.freeze": 2},
        {"stages.1.lr": 1e-2},
        {"stages.1.batch_size": 32},
        {"stages.2.augment": {"rotate": 10.0}},
        {"stages.1.name": "head", "stages.3.name": "larger"},
        {"train.loss": "bce"},
        {"train.execution": "eager"},
        {"data.stored_size": 64},
    ],
)
def test_another_way_to_write_the_same_is_the_same_key(dataset, tmp_path, given, fields):
    assert keys(dataset, tmp_path, fields) == given


@pytest.mark.parametrize(
    "change",
    [
        {"device": "cuda"},
        {"world": 2},
        {"precision": "bf16"},
        {"threads": 2},
        {"window": 1, "streamed": True},
    ],
)
def test_what_a_machine_decides_is_in_the_key(dataset, tmp_path, given, change):
    other = keys(dataset, tmp_path, found=replace(CPU, **change))
    assert shared(given, other) == 0


def test_a_list_that_ends_earlier_shares_its_stages(dataset, tmp_path, given):
    assert keys(dataset, tmp_path, listed=THREE[:2]) == given[:2]


def test_weights_and_a_checkpoint_to_start_from_are_known_by_their_content(dataset, tmp_path):
    one, two, other = (tmp_path / name for name in ("one", "two", "other"))
    for directory, content in ((one, "a"), (two, "a"), (other, "b")):
        directory.mkdir()
        (directory / "MANIFEST.json").write_text(json.dumps({"model.safetensors": content}))
        (directory / "weights.pth").write_text(content)
    for field, name in (("init_from", ""), ("model.weights", "weights.pth")):
        first, second, third = (
            keys(dataset, tmp_path, {field: str(directory / name)})
            for directory in (one, two, other)
        )
        assert first == second
        assert shared(first, third) == 0


# Each field that is not in the key as it stands, with another value that must give the same bits.
SAME_BITS = [
    {"train.save_every_s": 0.0},
    {"train.stall_s": 200.0},
    {"metrics": ["test_stage_keys:always_half"]},
    {"tiles": "cache"},
    {"train.threads": 1},
    {"train.precision": "fp32"},
    {"train.execution": "eager"},
    {"stages.1.batch_size": 32, "train.batch_size": 16},
    {"stages.1.freeze": 2, "stages.1.name": "head"},
    {"data.window_gb": 1.0},
    {"use_gpu": False},
]


def always_half(probabilities, targets):
    return 0.5


@pytest.mark.parametrize("fields", SAME_BITS, ids=lambda fields: next(iter(fields)))
def test_fields_outside_the_key_change_no_weight(dataset, tmp_path, fields):
    """One stage of one epoch with and without the field, in two storages.

    Whatever the stage is called, its checkpoint has the lesson's name there.
    """
    found = []
    for place, changed in (("plain", {}), ("changed", fields)):
        recipe = recipe_of(dataset, tmp_path / place, changed, THREE[:1])
        known = stage_keys.facts(recipe, dataset, ALONE)
        plan = stages.plans(recipe, stage_keys.keys(recipe, dataset, known))[0]
        stages.train(plan, dataset, train_here)
        manifest = json.loads(
            (
                tmp_path / place / f"stages/{plan.key}/checkpoints/stage-1-32/MANIFEST.json"
            ).read_text()
        )
        found.append((plan.key, manifest["model.safetensors"]))
    assert found[0] == found[1]


def test_facts_leave_nothing_open(dataset, tmp_path):
    recipe = recipe_of(dataset, tmp_path, {"train.precision": "auto", "train.threads": None})
    found = stage_keys.facts(recipe, dataset, ALONE)
    fixed = stage_keys.with_facts(recipe, found)
    assert fixed.train.threads == 1
    assert fixed.train.precision in ("bf16", "fp32")
    assert fixed.tiles == "cache"
    assert stage_keys.facts(fixed, open_dataset(fixed.dataset), ALONE) == found


def test_a_hash_of_the_sources_is_noted_beside_the_version_of_the_code():
    found = stage_keys.sources_hash()
    assert found == stage_keys.SOURCES, (
        "the sources that train have changed. If the same recipe still gives the same bits, set "
        f'SOURCES = "{found}" in raytrain/training/stage_keys.py. Else raise CODE_VERSION, too.'
    )
