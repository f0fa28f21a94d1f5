"""Recipes: precedence, ranges, nearest keys, and that what is printed runs."""

import pytest
import yaml

from raytrain.config import Recipe, environment, load_recipe, parse_yaml, recipe_names, validate
from raytrain.errors import ConfigError


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_prints_a_recipe_that_loads(name, tmp_path):
    recipe = load_recipe(name)
    path = tmp_path / "printed.yaml"
    path.write_text(recipe.to_yaml())
    assert load_recipe(str(path)) == recipe


def test_a_field_left_out_takes_the_lessons_value():
    assert load_recipe("planet-resnet50").model_dump(exclude={"train": {"schedule"}}) == Recipe().model_dump(
        exclude={"train": {"schedule"}}
    )


def test_flags_beat_the_environment_beats_the_file_beats_the_default(tmp_path, monkeypatch):
    path = tmp_path / "r.yaml"
    path.write_text("train: {batch_size: 10, wd: 0.5, seed: 7}")
    monkeypatch.setenv("RAYTRAIN_TRAIN__BATCH_SIZE", "20")
    monkeypatch.setenv("RAYTRAIN_TRAIN__WD", "0.25")
    recipe = load_recipe(str(path), {"train": {"batch_size": 30}})
    assert (recipe.train.batch_size, recipe.train.wd, recipe.train.seed, recipe.num_workers) == (30, 0.25, 7, 1)


def test_an_environment_variable_that_names_nothing_is_refused():
    with pytest.raises(ConfigError, match='Did you mean "RAYTRAIN_TRAIN__BATCH_SIZE"'):
        environment({"RAYTRAIN_TRAIN__BACH_SIZE": "3"})
    assert environment({"RAYTRAIN_CACHE": "x", "HOME": "y", "RAYTRAIN_DATASET": "d"}) == {"dataset": "d"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: {bach_size: 3}", r'"train.bach_size \(line 1\)".*Did you mean "batch_size"'),
        ("model:\n  archh: x", r'"model.archh \(line 2\)".*Did you mean "arch"'),
        ("trian: {}", 'Did you mean "train"'),
        ("train: {batch_size: 0}", "train.batch_size .line 1. = 0: .*greater than or equal to 2"),
        ("train: {wd: .nan}", "train.wd"),
        ("stages: []", "stages"),
        ("stages:\n - {size: 8, epochs: 1, lr: 1}", "stages.0.size .line 2. = 8"),
        ("stages:\n - {size: 64, epochs: 1}", "stages.0.lr is missing"),
        ("stages:\n - {size: 64, epochs: 1, lr: [1e-5, 0]}", "greater than 0"),
        ("stages:\n - {size: 64, epochs: 1, lr: 1, freze: true}", 'Did you mean "freeze"'),
        ("data: {split: ../x}", "data.split"),
        ("- 1", "not keys with values"),
        ("a: [", "not valid YAML at line 1"),
    ],
)
def test_a_wrong_recipe_is_refused_by_key_and_line(tmp_path, text, words):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_recipe(str(path))


def test_all_mistakes_are_named_at_once():
    with pytest.raises(ConfigError) as caught:
        validate({"train": {"batch_size": 0, "wd": 3}, "model": {"x": 1}}, "r")
    assert all(word in caught.value.what for word in ("batch_size", "wd", "model.x"))


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(ConfigError, match='Did you mean "planet-resnet50"'):
        load_recipe("planet-resnet5O")


def test_numbers_that_yaml_reads_as_text_are_numbers():
    stages = parse_yaml("stages: [{size: 64, epochs: 1, lr: [1e-5, 2e-3]}, {size: 64, epochs: 1, lr: 1e-2}]", "r")
    recipe = validate(stages, "r")
    assert recipe.stages[0].lr == (1e-5, 2e-3) and recipe.stages[1].lr == 0.01


def test_stages_have_the_lessons_names_over_the_whole_list():
    assert Recipe().stage_names == ("stage-1-128", "stage-2-128", "stage-1-256", "stage-2-256")


def test_a_selection_of_stages_must_exist():
    assert load_recipe(None, {"select": "3-4"}).selected == (3, 4)
    assert load_recipe(None, {"select": "2"}).selected == (2, 2)
    for wrong in ("0", "3-5", "4-3"):
        with pytest.raises(ConfigError, match="stages 1 to 4"):
            load_recipe(None, {"select": wrong})


def test_recipes_are_plain_yaml():
    assert yaml.safe_load(Recipe().to_yaml())["stages"][1]["lr"] == [1e-5, 0.002]
