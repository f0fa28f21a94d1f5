"""Recipes: precedence, ranges, nearest keys, and that what is printed runs."""

from importlib import resources

import pytest
import yaml

from raytrain.cli.main import run_command
from raytrain.config import (
    Augment,
    Recipe,
    Stage,
    Statistics,
    environment,
    load_recipe,
    normalization,
    parse_assignments,
    parse_yaml,
    recipe_names,
    validate,
)
from raytrain.errors import ConfigError

pytestmark = pytest.mark.usefixtures("own_network")


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_prints_a_recipe_that_loads(name, tmp_path):
    recipe = load_recipe(name)
    path = tmp_path / "printed.yaml"
    path.write_text(recipe.to_yaml())
    assert load_recipe(str(path)) == recipe


def test_a_field_left_out_takes_the_lessons_value():
    assert load_recipe("planet-resnet50").model_dump(
        exclude={"train": {"schedule"}}
    ) == Recipe().model_dump(exclude={"train": {"schedule"}})


def test_flags_beat_the_environment_beats_the_file_beats_the_default(tmp_path, monkeypatch):
    path = tmp_path / "r.yaml"
    path.write_text("train: {batch_size: 10, wd: 0.5, seed: 7}")
    monkeypatch.setenv("RAYTRAIN_TRAIN__BATCH_SIZE", "20")
    monkeypatch.setenv("RAYTRAIN_TRAIN__WD", "0.25")
    recipe = load_recipe(str(path), {"train": {"batch_size": 30}})
    assert (recipe.train.batch_size, recipe.train.wd, recipe.train.seed, recipe.num_workers) == (
        30,
        0.25,
        7,
        1,
    )


def test_an_environment_variable_that_names_nothing_is_refused():
    with pytest.raises(ConfigError, match='Did you mean "RAYTRAIN_TRAIN__BATCH_SIZE"'):
        environment({"RAYTRAIN_TRAIN__BACH_SIZE": "3"})
    assert environment({"RAYTRAIN_CACHE": "x", "HOME": "y", "RAYTRAIN_DATASET": "d"}) == {
        "dataset": "d"
    }


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("STAGES", "1", "--stages 1 or RAYTRAIN_SELECT=1 selects, `stages:` in the file"),
        ("STAGES", "3-4", "--stages 3-4 or RAYTRAIN_SELECT=3-4"),
        ("STAGES", "[{size: 64}]", "YAML file"),
        ("STAGES__0__LR", "0.1", "the list of stages comes from a YAML file"),
        ("WD", "0.1", 'Did you mean "RAYTRAIN_TRAIN__WD"'),
        ("TRAIN_BATCH_SIZE", "8", 'Did you mean "RAYTRAIN_TRAIN__BATCH_SIZE"'),
        ("AUGMENT__ZOOM", "2", 'Did you mean "RAYTRAIN_DATA__AUGMENT__ZOOM"'),
        ("CACHE_DIR", "x", 'Did you mean "RAYTRAIN_CACHE"'),
        ("WORKERS", "2", 'Did you mean "RAYTRAIN_NUM_WORKERS"'),
        ("CONFIG", "smoke", "--config is given on the command line only"),
        ("DRY_RUN", "1", "unset RAYTRAIN_DRY_RUN, and give --dry-run"),
        ("RESUME", "first", "--resume"),
    ],
)
def test_a_variable_that_looks_like_a_setting_is_told_how_it_is_set(name, value, words):
    with pytest.raises(ConfigError) as caught:
        environment({f"RAYTRAIN_{name}": value})
    assert f"RAYTRAIN_{name} names no setting" in caught.value.what and words in str(caught.value)
    assert f"unset RAYTRAIN_{name}" in caught.value.fix


def test_the_selection_of_stages_has_a_variable_of_its_own():
    assert environment({"RAYTRAIN_SELECT": "3-4"}) == {"select": "3-4"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: {bach_size: 3}", r'"train.bach_size \(line 1\)".*Did you mean "batch_size"'),
        ("model:\n  archh: x", r'"model.archh \(line 2\)".*Did you mean "arch"'),
        ("trian: {}", 'Did you mean "train"'),
        ("train: {batch_size: 0}", "train.batch_size .line 1. = 0: .*greater than or equal to 2"),
        ("train: {wd: .nan}", "train.wd"),
        ("stages: []", "stages"),
        ("stages:\n - {size: 8, epochs: 1, lr: 1}", "stages.1.size .line 2. = 8"),
        ("stages:\n - {size: 64, epochs: 1}", "stages.1.lr is missing"),
        ("stages:\n - {size: 64, epochs: 1, lr: [1e-5, 0]}", "greater than 0"),
        ("stages:\n - {size: 64, epochs: 1, lr: 1, freze: true}", 'Did you mean "freeze"'),
        ("stages:\n - {size: 64, epochs: 1, lr: 1, freeze: '1'}", "freeze"),
        (
            "stages:\n - {size: 64, epochs: 3, lr: 1, start_size: 64}",
            "start_size 64 must be below size 64",
        ),
        ("stages:\n - {size: 64, epochs: 1, lr: 1, start_size: 32}", "2 epochs or more"),
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
    stages = parse_yaml(
        "stages: [{size: 64, epochs: 1, lr: [1e-5, 2e-3]}, {size: 64, epochs: 1, lr: 1e-2}]", "r"
    )
    recipe = validate(stages, "r")
    assert recipe.stages[0].lr == (1e-5, 2e-3) and recipe.stages[1].lr == 0.01


@pytest.mark.parametrize(
    "written", ["{water: 3, 7: 2}", {"water": 3, 7: 2}, {"water": "3", "7": 2}]
)
def test_numbers_by_label_are_a_mapping_or_its_text_as_in_a_variable(written, monkeypatch):
    recipe = validate({"data": {"repeat": written}}, "r")
    assert recipe.data.repeat == {"water": 3, "7": 2}
    assert validate(yaml.safe_load(recipe.to_yaml()), "r") == recipe
    if isinstance(written, str):
        monkeypatch.setenv("RAYTRAIN_DATA__REPEAT", written)
        assert load_recipe("smoke").data.repeat == {"water": 3, "7": 2}


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ({"water": 0}, "data.repeat.water = 0: .*greater than or equal to 1"),
        ({"water": 101}, "data.repeat.water = 101: .*less than or equal to 100"),
        ({"water": 1.5}, "data.repeat.water = 1.5: .*integer"),
        ("water", "data.repeat = 'water': .*dictionary"),
        ("[water", r"data.repeat = '\[water': not a mapping in YAML, such as {label: 2}"),
    ],
)
def test_a_wrong_number_of_repeats_is_refused(written, words):
    with pytest.raises(ConfigError, match=words):
        validate({"data": {"repeat": written}}, "r")


def test_stages_have_the_lessons_names_over_the_whole_list():
    assert Recipe().stage_names == ("stage-1-128", "stage-2-128", "stage-1-256", "stage-2-256")


def named(*names):
    """A recipe whose stages of 128, 128, 256 and 256 px have these names."""
    fields = {f"stages.{n}.name": name for n, name in enumerate(names, 1) if name is not None}
    return load_recipe(None, fields=fields)


def test_a_stage_may_have_a_name_of_its_own(tmp_path):
    recipe = named("head", None, "stage-1-256-rn50", "größe 256")
    assert recipe.stage_names == ("head", "stage-2-128", "stage-1-256-rn50", "größe 256")
    assert recipe.default_stage_names == Recipe().stage_names
    assert recipe.without_stage_names() == Recipe()
    path = tmp_path / "printed.yaml"
    path.write_text(recipe.to_yaml())
    assert load_recipe(str(path)) == recipe and "name:" not in Recipe().to_yaml()
    assert load_recipe(str(path), fields={"stages.1.name": None}).stage_names[0] == "stage-1-128"
    # Its own default name is one, too.
    assert named("stage-1-128").stage_names == Recipe().stage_names


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "is empty"),
        ("..", "means another directory"),
        ("a/b", "has the character /"),
        ("first:last", "has the character :"),
        (" a", "begins or ends with a blank"),
        ("-a", "begins with -"),
        ("x" * 300, "has 300 bytes; 232 are the most"),
        ("a\u202eb", "cannot be printed"),
        ("last", "that of another checkpoint"),
        ("Best", "that of another checkpoint"),
        ("step-3", "that of another checkpoint"),
        ("a.partial", "being replaced"),
        ("a.old", "being replaced"),
        ("3-4", "looks like numbers of stages"),
    ],
)
def test_a_name_of_a_stage_follows_the_rules_of_names(name, why):
    with pytest.raises(ConfigError) as caught:
        named(None, name)
    error = caught.value
    assert "stages.2.name" in error.what and why in error.what
    assert "--init-from RUN:NAME" in error.why and "--set stages.1.name=" in error.fix


@pytest.mark.parametrize("name", ["last-try", "best-of-all", "step", "256 px", "x" * 232])
def test_other_names_of_stages_are_taken(name):
    assert named(name).stage_names[0] == name


@pytest.mark.parametrize(
    ("names", "stages"),
    [(("a", "b", "a"), "1 and 3"), (("a", "A"), "1 and 2"), (("stage-2-256",), "1 and 4")],
)
def test_two_stages_of_one_name_are_refused(names, stages):
    with pytest.raises(ConfigError) as caught:
        named(*names)
    assert f"the stages {stages} both have the name" in caught.value.what
    assert caught.value.fix.startswith("give each stage another name")


def test_a_stage_is_selected_by_its_name():
    fields = {"stages.3.name": "large"}
    for select in ("large", "3"):
        assert load_recipe(None, {"select": select}, fields).selected == (3, 3)
    assert load_recipe(None, {"select": "stage-2-256"}).selected == (4, 4)
    with pytest.raises(ConfigError, match=r'of this name\. Did you mean "large"') as caught:
        load_recipe(None, {"select": "larg"}, fields)
    assert "stage-1-128, stage-2-128, large, stage-2-256" in caught.value.why
    assert caught.value.fix == "--stages 1-4, or --stages stage-2-256"


def test_a_selection_of_stages_must_exist():
    assert load_recipe(None, {"select": "3-4"}).selected == (3, 4)
    assert load_recipe(None, {"select": "2"}).selected == (2, 2)
    for wrong in ("0", "3-5", "4-3"):
        with pytest.raises(ConfigError, match="stages 1 to 4"):
            load_recipe(None, {"select": wrong})


def test_recipes_are_plain_yaml():
    assert yaml.safe_load(Recipe().to_yaml())["stages"][1]["lr"] == [1e-5, 0.002]


def test_a_depth_of_freezing_is_true_false_or_a_number_of_groups():
    depths = {
        freeze: Stage(size=64, epochs=1, lr=0.1, freeze=freeze).frozen_groups
        for freeze in (False, 1, 2)
    }
    assert (
        depths == {False: 0, 1: 1, 2: 2}
        and Stage(size=64, epochs=1, lr=0.1, freeze=True).frozen_groups == 2
    )
    with pytest.raises(ConfigError, match="layer groups from 0 to 2"):
        validate({"stages": [{"size": 64, "epochs": 1, "lr": 0.1, "freeze": 3}]}, "r")


def test_the_size_rises_in_steps_of_32_and_ends_at_the_stages_own():
    stage = Stage(size=250, epochs=6, lr=0.1, start_size=100)
    assert [stage.size_at(epoch) for epoch in range(1, 7)] == [100, 128, 160, 192, 224, 250]
    assert Stage(size=250, epochs=3, lr=0.1).size_at(1) == 250


def test_a_stage_has_the_batch_size_and_augmentation_of_the_run_unless_it_names_its_own():
    own = Stage(size=64, epochs=1, lr=0.1, batch_size=16, augment=Augment(rotate=0))
    recipe = Recipe(stages=(own, Stage(size=64, epochs=1, lr=0.1)))
    assert [recipe.batch_size(stage) for stage in recipe.stages] == [16, 64]
    assert [recipe.augment(stage).rotate for stage in recipe.stages] == [0, 10]


def test_a_stages_augmentation_names_only_what_differs_from_the_runs(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("""
data: {augment: {flip: dihedral-2018, rotate: 5}}
stages:
  - {size: 64, epochs: 1, lr: 0.1, augment: {lighting: 0}}
""")
    recipe = load_recipe(str(path))
    augment = recipe.augment(recipe.stages[0])
    assert (augment.flip, augment.rotate, augment.lighting) == ("dihedral-2018", 5, 0)
    assert validate(yaml.safe_load(recipe.to_yaml()), "r") == recipe


@pytest.mark.parametrize("name", recipe_names())
def test_the_header_of_every_recipe_says_its_command_and_what_to_expect(name):
    header = (
        resources.files("raytrain.recipes")
        .joinpath(f"{name}.yaml")
        .read_text()
        .split("\nmodel:")[0]
    )
    assert header.startswith(f"# {name}: ") and f"raytrain train --config {name} " in header
    assert ("F2" in header or "accuracy" in header) and any(
        word in header for word in ("GPU", "CPU")
    )
    assert "Source: " in header and any(
        word in header for word in ("minute", "seconds", "time at best")
    )


def lesson(**changes):
    """Every number of the presets, written out: section 1 of the recipe's reference."""
    train = {
        "batch_size": 64,
        "precision": "fp32",
        "wd": 0.01,
        "optimizer": "adamw",
        "seed": 42,
        "threads": None,
        "loss": None,
        "class_weights": "none",
        "label_smoothing": 0.0,
        "mixup": 0.0,
        "ema": 0.0,
        "clip_norm": None,
        "accumulate": 1,
        "execution": "auto",
        "save_every_s": None,
        "stall_s": 300.0,
        "schedule": changes["schedule"],
        "drop_last": changes["drop_last"],
    }
    augment = {
        "flip": changes["flip"],
        "rotate": 10,
        "zoom": 1.05,
        "warp": 0.0,
        "lighting": 0.1,
        "p_affine": 0.75,
        "p_lighting": 0.75,
    }
    stages = [
        (128, True, 0.01),
        (128, False, (1e-5, 0.002)),
        (256, True, 0.005),
        (256, False, (1e-5, 0.001)),
    ]
    return {
        "model": {
            "arch": "resnet50",
            "weights": "imagenet",
            "dropout": 0.5,
            "batch_norm": "worker",
        },
        "data": {
            "split": "random",
            "normalize": "imagenet",
            "window_gb": 2.0,
            "stored_size": None,
            "repeat": {},
            "augment": augment,
        },
        "train": train,
        "stages": tuple(
            {
                "size": size,
                "epochs": 5,
                "freeze": freeze,
                "lr": lr,
                "start_size": None,
                "batch_size": None,
                "augment": None,
                "name": None,
            }
            for size, freeze, lr in stages
        ),
        "select": None,
        "dataset": None,
        "storage": "runs",
        "lr": None,
        "init_from": None,
        "remap_labels": False,
        "metrics": (),
        "tiles": "auto",
        "num_workers": 1,
        "max_workers": None,
        "use_gpu": None,
        "mlflow": None,
    }


def test_the_presets_of_the_lesson_are_these_numbers_and_differ_where_fastai_did():
    first, later = load_recipe("planet-resnet50-2018"), load_recipe("planet-resnet50-2019")
    assert first.model_dump() == lesson(
        schedule="one-cycle-2018", drop_last=False, flip="dihedral-2018"
    )
    assert later.model_dump() == lesson(schedule="one-cycle-2019", drop_last=True, flip="dihedral")


# How channels are normalised

NUMBERS = "{mean: [0.1, 2e-1], std: [0.3, 0.4]}"
STATISTICS = Statistics(mean=(0.1, 0.2), std=(0.3, 0.4))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [(name, name) for name in ("imagenet", "none", "dataset")] + [(NUMBERS, STATISTICS)],
)
def test_a_normalisation_is_a_word_or_numbers_wherever_it_is_given(
    text, wanted, tmp_path, monkeypatch, capsys
):
    file = tmp_path / "mine.yaml"
    file.write_text(f"data: {{normalize: {text}}}")
    assert load_recipe(str(file)).data.normalize == wanted
    fields = parse_assignments([f"data.normalize={text}"])
    assert load_recipe(None, None, fields).data.normalize == wanted
    assert run_command(["train", "--print-config", "--data.normalize", text]) == 0
    file.write_text(capsys.readouterr().out)
    assert load_recipe(str(file)).data.normalize == wanted
    # Above a file with numbers, a word replaces them.
    file.write_text("data: {normalize: {mean: [0.5], std: [0.5]}}")
    monkeypatch.setenv("RAYTRAIN_DATA__NORMALIZE", text)
    assert load_recipe(str(file)).data.normalize == wanted
    assert normalization(str(STATISTICS)) == STATISTICS


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("imagnet", "one of imagenet, none, dataset, or {mean: [...], std: [...]}"),
        ("[0.5, 0.2]", "one of imagenet"),
        ("{mean: [0.5]}", "std: Field required"),
        ("{mean: [0.5], std: [0.2, 0.3]}", "1 means and 2 standard deviations"),
        ("{mean: [0.5], std: [0]}", "must be greater than 0"),
        ("{mean: [0.5], std: [0.2], max: [1]}", "max: Extra inputs are not permitted"),
        ("{mean: [], std: []}", "mean: Tuple should have at least 1 item"),
        ("{mean: [.nan], std: [1]}", "finite number"),
        ("'{mean'", "this is not valid YAML"),
    ],
)
def test_another_normalisation_is_refused_by_its_key(text, words, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(f"data:\n  normalize: {text}\n")
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(file))
    assert "data.normalize (line 2) = " in caught.value.what and words in caught.value.what


# A number of workers that may change


@pytest.mark.parametrize(
    "text", ["num_workers: 2:8", "num_workers: '2:8'", "{num_workers: 2, max_workers: 8}"]
)
def test_a_range_of_workers_is_two_numbers(text, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    recipe = load_recipe(str(path))
    assert (recipe.num_workers, recipe.max_workers, recipe.most_workers) == (2, 8, 8)
    assert load_recipe(None, {"num_workers": "2:8"}).max_workers == 8
    assert load_recipe(None, {}, {"num_workers": "2:8"}).max_workers == 8


@pytest.mark.parametrize("text", ["8:2", "0:2", "2:", "2:8:9", "two"])
def test_another_range_is_refused(text):
    with pytest.raises(ConfigError, match="workers"):
        load_recipe(None, {"num_workers": text})


def test_one_number_of_workers_is_also_the_largest():
    recipe = load_recipe(None, {"num_workers": 3})
    assert recipe.max_workers is None and recipe.most_workers == 3


def test_one_number_replaces_a_range(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("{num_workers: 2, max_workers: 8}")
    for flags, fields in (({"num_workers": "12"}, {}), ({}, {"num_workers": 12})):
        recipe = load_recipe(str(path), flags, fields)
        assert (recipe.num_workers, recipe.max_workers) == (12, None)
    both = load_recipe(str(path), {}, {"max_workers": 4, "num_workers": 3})
    assert (both.num_workers, both.max_workers) == (3, 4)


def test_a_range_is_set_by_its_path_too():
    fields = parse_assignments(["num_workers=2:8"])
    assert load_recipe(None, {}, fields).max_workers == 8
