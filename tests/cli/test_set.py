"""`--set PATH=VALUE`: any field of a recipe, also those of a stage, on every command with a recipe."""

import pytest
import yaml

from raytrain.cli.main import run_command
from raytrain.config import load_recipe, parse_assignments, set_field, with_fields
from raytrain.errors import ConfigError

SMOKE = ["train", "--config", "smoke"]
RECIPE_COMMANDS = {
    "train": [],
    "train --dry-run": ["--dry-run"],
    "lr-find": [],
    "tune": ["--space", "space.yaml"],
    "bench": ["--only", "decode"],
}


def printed(capsys, *words):
    """The recipe that --print-config prints."""
    assert run_command([*SMOKE, *words, "--print-config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def refused(capsys, *words):
    """The message of a command line that is refused with exit code 2."""
    assert run_command([*words]) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message and "next: " in message
    return message


def test_a_field_of_a_stage_is_set_and_stages_count_from_1(capsys):
    words = ["--set", "stages.2.lr=1e-5,0.002", "--set", "stages.1.epochs=3"]
    recipe = printed(capsys, *words, "--set", "train.wd=0.1")
    assert recipe["stages"][1]["lr"] == [1e-5, 0.002] and recipe["stages"][0]["epochs"] == 3
    assert recipe["train"]["wd"] == 0.1
    # The others keep their values.
    smoke = load_recipe("smoke").model_dump(mode="json")
    assert recipe["stages"][1]["size"] == smoke["stages"][1]["size"]


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("stages.1.lr=1e-5", 1e-5),
        ("stages.1.lr=0.02", 0.02),
        ("stages.1.lr=1e-5,0.002", [1e-5, 0.002]),
        ("stages.1.lr=1e-5, 0.002", [1e-5, 0.002]),
        ("stages.1.lr=[1e-5, 0.002]", [1e-5, 0.002]),
        ("stages.1.freeze=2", 2),
        ("stages.1.freeze=false", False),
        ("stages.1.batch_size=16", 16),
        ("stages.2.lr.2=0.004", [1.0e-4, 0.004]),
    ],
)
def test_values_are_written_as_in_a_recipe_and_rates_also_as_a_pair(capsys, assignment, value):
    recipe = printed(capsys, "--set", assignment)
    _, number, field = assignment.partition("=")[0].split(".")[:3]
    assert recipe["stages"][int(number) - 1][field] == value


def test_set_is_a_flag_so_it_overrides_environment_and_file(capsys, monkeypatch):
    monkeypatch.setenv("RAYTRAIN_TRAIN__WD", "0.25")
    monkeypatch.setenv("RAYTRAIN_TRAIN__SEED", "7")
    recipe = printed(capsys, "--set", "train.wd=0.5")
    assert recipe["train"]["wd"] == 0.5 and recipe["train"]["seed"] == 7


def test_what_a_stage_does_not_name_of_its_augmentation_still_comes_from_the_run(capsys):
    words = ["--data.augment.rotate", "3", "--set", "stages.1.augment.zoom=1.2"]
    augment = printed(capsys, *words)["stages"][0]["augment"]
    assert augment["zoom"] == 1.2 and augment["rotate"] == 3


def test_a_number_of_a_label_is_set_by_itself_or_all_of_them_at_once(capsys):
    words = ["--set", "data.repeat={water: 2, v1.5: 3}"]
    assert printed(capsys, *words)["data"]["repeat"] == {"water": 2, "v1.5": 3}
    words = ["--set", "data.repeat.v1.5=4", "--set", "data.repeat.water=2"]
    assert printed(capsys, *words)["data"]["repeat"] == {"water": 2, "v1.5": 4}
    words = ["--data.repeat.blow_down", "4"]
    assert printed(capsys, *words)["data"]["repeat"] == {"blow_down": 4}


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("train.wd", "PATH=VALUE"),
        ("=3", "PATH=VALUE"),
        ("train.wd=", "PATH=VALUE"),
        ("train.wd=[1", "not valid YAML"),
        ("train.wd=5", "train.wd = 5: Input should be less than 1"),
        ("train.wdd=5", 'Did you mean "train.wd"?'),
        ("train.wdd=5", "there are train.batch_size, train.precision"),
        ("train.wd.x=5", "train.wd is a single value"),
        ("nowhere=5", "there are model, data, train, stages"),
        ("stages.0.lr=0.01", "next: stages.1.lr"),
        ("stages.9.lr=0.01", "the recipe has 4 stages"),
        ("stages.-1.lr=0.01", "the recipe has 4 stages"),
        ("stages.first.lr=0.01", "numbered from 1 to 4"),
        ("stages.1.rate=0.01", "there are stages.1.size, stages.1.epochs"),
        ("stages.1.lr=fast", "stages.1.lr = 'fast'"),
        ("stages.1.lr=1e-5,0.002,0.1", "stages.1.lr"),
        ("stages.1.lr.1=0.01", "the single rate 0.01"),
        ("stages.2.lr.0=0.01", "next: stages.2.lr.1"),
        ("stages.2.lr.3=0.01", "the parts 1 and 2"),
        ("lr=0.01", "--set stages.1.lr=0.01"),
        ("train.lr=0.01", "a peak learning rate belongs to a stage"),
        ("train=3", "such as train.batch_size"),
        ("data.repeat.water=0", "data.repeat.water = 0: Input should be greater than or equal"),
        ("lr=slow", "--set stages.1.lr=slow"),
    ],
)
def test_a_wrong_path_or_value_is_refused_with_what_to_type(capsys, assignment, words):
    assert words in refused(capsys, *SMOKE, "--set", assignment, "--print-config")


@pytest.mark.parametrize(
    "words",
    [
        ["--train.wd", "0.1", "--set", "train.wd=0.2"],
        ["--train.wd", "0.1", "--set", "train={wd: 0.2}"],
        ["--stages", "1", "--set", "select='2'"],
        ["--lr", "auto", "--set", "lr=auto"],
        ["--use-gpu", "--set", "use_gpu=true"],
    ],
)
def test_a_field_with_its_own_flag_and_set_is_refused(capsys, words):
    message = refused(capsys, *SMOKE, *words, "--print-config")
    assert "set the same field" in message and f"{words[0]} and --set" in message


def test_a_path_given_twice_is_refused(capsys):
    words = ["--set", "train.wd=0.1", "--set", "train.wd=0.2", "--print-config"]
    assert "train.wd is given twice" in refused(capsys, *SMOKE, *words)


@pytest.mark.parametrize("name", RECIPE_COMMANDS)
def test_every_command_with_a_recipe_takes_it(capsys, name):
    command = name.split()[0]
    words = [command, *RECIPE_COMMANDS[name], "--set", "train.wdd=0.1"]
    assert 'Did you mean "train.wd"?' in refused(capsys, *words)


def test_no_variable_sets_it(capsys, monkeypatch):
    monkeypatch.setenv("RAYTRAIN_SET", "train.wd=0.1")
    assert "--set is given on the command line only" in refused(capsys, *SMOKE, "--print-config")


def test_setting_a_field_leaves_the_values_it_started_from_alone():
    values = {"train": {"wd": 0.1}, "stages": [{"size": 64, "epochs": 1, "lr": [1e-5, 0.1]}]}
    changed = with_fields(values, {"train.wd": 0.2, "stages.1.lr.1": 1e-4})
    assert changed["train"]["wd"] == 0.2 and changed["stages"][0]["lr"] == [1e-4, 0.1]
    assert values["train"]["wd"] == 0.1 and values["stages"][0]["lr"] == [1e-5, 0.1]


def test_the_whole_list_of_stages_is_set_before_a_field_in_it():
    fields = {
        "stages.1.lr": 0.5,
        "stages": [{"size": 64, "epochs": 1, "lr": 0.1}, {"size": 96, "epochs": 1, "lr": 0.1}],
    }
    assert [stage.lr for stage in load_recipe(None, {}, fields).stages] == [0.5, 0.1]


def test_a_field_below_something_that_is_no_mapping_is_refused():
    for values, path in (({"stages": 3}, "stages.1.lr"), ({"train": 3}, "train.wd")):
        with pytest.raises(ConfigError):
            set_field(values, path, 0.1)


def test_the_file_is_checked_by_itself_first_so_that_its_mistakes_keep_their_lines(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("train:\n  wd: 5\n")
    with pytest.raises(ConfigError, match=r"train.wd \(line 2\)"):
        load_recipe(str(file), {}, parse_assignments(["stages.1.lr=0.1"]))
