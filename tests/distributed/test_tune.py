"""Searches: paths into a recipe, and trials over the same loop."""

import tempfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from ray.tune.execution import class_cache

from raytrain.cli.main import run_command
from raytrain.config import Recipe, load_recipe
from raytrain.distributed import tune as module
from raytrain.distributed.tune import apply_draw, sampler
from raytrain.errors import ConfigError
from raytrain.evaluation.tasks.multi_label import SCORE


def test_a_draw_reaches_any_field_and_the_list_of_stages_first():
    stages = [{"size": 64, "epochs": 2, "lr": 0.01}]
    drawn = apply_draw(Recipe(), {"stages.1.lr": 0.5, "train.wd": 0.1, "stages": stages})
    assert stages == [{"size": 64, "epochs": 2, "lr": 0.01}]
    assert len(drawn.stages) == 1 and drawn.stages[0].lr == 0.5 and drawn.train.wd == 0.1
    assert apply_draw(Recipe(), {"stages.2.lr.1": 1e-4}).stages[1].lr == (1e-4, 0.002)


@pytest.mark.parametrize("path", ["train.lerning", "stages.9.lr", "nowhere.x", "stages.1.lr.1"])
def test_a_path_that_does_not_exist_is_refused(path):
    with pytest.raises(ConfigError):
        apply_draw(Recipe(), {path: 0.1})


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("stages.0.lr", "stages.1.lr"),
        ("stages.2.lr.0", "stages.2.lr.1"),
        ("stages.9.lr", "the recipe has 4 stages"),
        ("train.lr", "a peak learning rate belongs to a stage"),
        ("train.wdd", 'Did you mean "train.wd"?'),
    ],
)
def test_a_wrong_path_is_refused_with_the_path_to_write(path, words):
    with pytest.raises(ConfigError) as caught:
        apply_draw(Recipe(), {path: 0.1})
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "how", [{"loguniforn": [1, 2]}, {"uniform": 3}, {"uniform": [1, 2, 3, 4]}, 5, {}]
)
def test_a_wrong_sampler_is_refused(how):
    with pytest.raises(ConfigError):
        sampler("train.wd", how)


@pytest.mark.usefixtures("cluster")
def test_a_search_over_rates_and_schedules_gives_a_table_and_a_config_that_train_takes(
    dataset, tmp_path, capsys
):
    space = {
        "stages": {
            "choice": [
                [{"size": 32, "epochs": 2, "lr": 0.01}],
                [{"size": 32, "epochs": 1, "lr": 0.01}, {"size": 48, "epochs": 1, "lr": 0.01}],
            ]
        },
        "stages.1.lr": {"loguniform": [0.001, 0.1]},
        "stages.1.epochs": {"randint": [3, 4]},
    }
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(space))
    arguments = [
        "tune",
        "--config",
        "smoke",
        "--space",
        str(tmp_path / "space.yaml"),
        "--dataset",
        dataset.path,
        "--storage",
        str(tmp_path),
        "--name",
        "search",
        "--num-samples",
        "4",
        "--train.batch-size",
        "32",
    ]
    assert run_command(arguments) == 0
    table = pd.read_csv(tmp_path / "search" / "trials.csv")
    assert (
        len(table) == 4
        and table["f2"].is_monotonic_decreasing
        and table["stages.1.lr"].nunique() == 4
    )
    best = load_recipe(str(tmp_path / "search" / "best.yaml"))
    assert (
        best.stages[0].lr == pytest.approx(table["stages.1.lr"][0]) and best.dataset == dataset.path
    )
    # A drawn number of epochs is trained to its end, though the recipe's own list is shorter.
    assert table["epochs"].max() >= 3 and best.stages[0].epochs == 3
    assert "raytrain train --config" in capsys.readouterr().out
    trial = tmp_path / "search" / "trials" / table["trial"][0]
    assert (trial / "checkpoints" / "last" / "MANIFEST.json").exists()


@pytest.fixture
def tuner(monkeypatch):
    """Tune without Ray: what it was given, and the settings that Ray would show of a trial; fails where it is told to."""
    told = SimpleNamespace(order=[], fails=False)

    class Tuner:
        def __init__(self, trainable, param_space, tune_config, run_config):
            told.order.append("tuner")
            told.folder = Path(run_config.storage_path)
            told.trial = (
                class_cache._ActorClassCache()
                .get(type("Trial", (), {}))
                ._default_options["runtime_env"]
            )

        def fit(self):
            (told.folder / "ray").mkdir(parents=True, exist_ok=True)
            (told.folder / "ray" / "tuner.pkl").write_text("what Tune pickles")
            if told.fails:
                raise KeyboardInterrupt
            return [SimpleNamespace(error=None, metrics={"trial_id": "a"})]

    monkeypatch.setattr(module.ray.tune, "Tuner", Tuner)
    monkeypatch.setattr(
        module.ray.tune,
        "with_parameters",
        lambda function, **given: lambda config: function(config, **given),
    )
    monkeypatch.setattr(module.ray, "cluster_resources", lambda: {"CPU": 2}, raising=False)
    monkeypatch.setattr(module, "session", nullcontext)
    monkeypatch.setattr(module, "check_workers", lambda number: None)
    monkeypatch.setattr(module.gpus, "needed", lambda use_gpu: [])
    monkeypatch.setattr(module, "check_reach", lambda path: told.order.append(f"reach {path}"))
    monkeypatch.setattr(module.storage, "probe", lambda path: None)
    return told


@pytest.mark.parametrize("fails", [False, True])
def test_tune_keeps_its_files_out_of_a_bucket_and_tidies_them_up(tuner, fails):
    path, tuner.fails = "s3://KEY:S3CRET@bucket/runs/s?region=us-east-1", fails
    with pytest.raises(KeyboardInterrupt) if fails else nullcontext():
        module.run_trials(module.Trials(module._trial, ({}, path), {}, path, 1, SCORE))
    assert tuner.order == [f"reach {path}", "tuner"]
    assert "S3CRET" not in str(tuner.folder) and str(tuner.folder).startswith(tempfile.gettempdir())
    assert not tuner.folder.exists()


def trials_in(folder):
    return module.Trials(module._trial, ({}, str(folder)), {}, str(folder), 1, SCORE)


def test_tune_keeps_its_files_beside_a_local_search(tuner, tmp_path):
    module.run_trials(trials_in(tmp_path))
    assert tuner.folder == tmp_path and (tmp_path / "ray" / "tuner.pkl").exists()


def test_keys_of_the_environment_are_no_settings_of_trials(tuner, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "S3CRET")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "S3CRET")
    monkeypatch.setenv("RAY_CHDIR_TO_TRIAL_DIR", "0")
    module.run_trials(trials_in(tmp_path))
    assert tuner.trial["env_vars"]["RAY_CHDIR_TO_TRIAL_DIR"] == "0" and "S3CRET" not in str(
        tuner.trial
    )
