"""The notebook and two scripts of examples/ run as they are, on small synthetic tiles; of the others, what needs no training."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from handmade import NETWORK

import raytrain
from raytrain.api import Figure
from raytrain.search import space_file

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def here(tmp_path, monkeypatch, cluster, in_this_process):
    """An empty folder, and the small network of the tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYTRAIN_MODEL__ARCH", NETWORK)
    monkeypatch.setenv("RAYTRAIN_MODEL__WEIGHTS", "none")
    return tmp_path


def run_script(name, *words, monkeypatch):
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def cells():
    notebook = json.loads((EXAMPLES / "lesson.ipynb").read_text())
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_holds_no_output():
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells())


def test_the_notebook_runs_and_each_picture_is_drawn(here, monkeypatch):
    names = {}
    figures = 0
    for cell in cells():
        source = "".join(cell["source"])
        # Fewer tiles than a reader paints; the rest stands as it is.
        lines = source.replace("600, seed=1", "160, seed=1").splitlines()
        exec("\n".join(lines), names)
        if lines[-1].startswith(("run.plot", "run.show", "dataset.show")):
            figure = eval(lines[-1], names)
            assert isinstance(figure, Figure) and figure._repr_png_().startswith(b"\x89PNG")
            figures += 1
    assert figures == 5 and len(names["run"].history) == 5


def test_classes_in_folders_are_trained_and_predicted(here, tiles, monkeypatch, capsys):
    images, _ = tiles
    for number, path in enumerate(sorted(Path(images).iterdir())[:80]):
        folder = here / "pictures" / ("forest", "water")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    (here / "recipe.yaml").write_text(
        raytrain.load_recipe("smoke", {"stages": [{"size": 32, "epochs": 1, "lr": 0.01}]}).to_yaml()
    )
    words = ("pictures", "out", "--recipe", "recipe.yaml")
    run_script("own_folder.py", *words, monkeypatch=monkeypatch)
    assert "recall" in capsys.readouterr().out
    run_script("own_folder.py", *words, monkeypatch=monkeypatch)
    run_script(
        "predict_folder.py", "out/runs/first", "pictures", "labels.csv", monkeypatch=monkeypatch
    )
    written = pd.read_csv("labels.csv")
    assert len(written) == 80 and set(written["labels"]) <= {"forest", "water"}


def test_the_space_of_the_search_is_valid_for_its_recipe(own_network):
    space = runpy.run_path(str(EXAMPLES / "search.py"))["SPACE"]
    assert space_file.read(space, raytrain.load_recipe("planet-resnet18")).size == 12


@pytest.mark.slow
def test_the_search_names_a_winner_that_is_a_run(here, dataset, monkeypatch, capsys):
    stages = [
        {"size": 32, "epochs": 1, "freeze": True, "lr": 0.01},
        {"size": 32, "epochs": 1, "lr": 0.005},
        {"size": 48, "epochs": 1, "freeze": True, "lr": 0.005},
        {"size": 48, "epochs": 1, "lr": [0.0002, 0.002]},
    ]
    recipe = raytrain.load_recipe("smoke", {"stages": stages, "storage": "runs"})
    (here / "recipe.yaml").write_text(recipe.to_yaml())
    words = (dataset.path, "--recipe", "recipe.yaml", "--trials", "2", "--reruns", "1")
    run_script("search.py", *words, monkeypatch=monkeypatch)
    assert "page: " in capsys.readouterr().out
    search = raytrain.open_run("search", storage_path="runs")
    assert list(search.trials["kind"]) == ["given", "drawn", "rerun", "rerun"]
    assert Path(search.page).exists() and len(search.best.stages) == 4
    assert len(raytrain.evaluate(search).labels) == len(dataset.classes)


def test_the_shell_scripts_name_commands_that_exist(tmp_path):
    """`raytrain` and `ray` are replaced by programs that print their words; the parser checks them elsewhere."""
    for name in ("raytrain", "ray"):
        program = tmp_path / name
        program.write_text('#!/bin/sh\necho "$@"\n')
        program.chmod(0o755)
    found = dict(os.environ, PATH=f"{tmp_path}:{os.environ['PATH']}")
    done = subprocess.run(
        ["sh", EXAMPLES / "chained_runs.sh", "planet"],
        env=found,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert lines[1].endswith("--stages 3-4 --name large --init-from small") and len(lines) == 3
    done = subprocess.run(
        ["sh", EXAMPLES / "cluster.sh", "s3://b/t", "s3://b/r"],
        env=found,
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line.split()[6] for line in done.stdout.splitlines()] == [
        "jobs/ingest.py", "jobs/train.py", "jobs/tune.py"
    ]  # fmt: skip
