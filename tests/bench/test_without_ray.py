"""`python -m raytrain.bench` on a machine that has torch, torchvision, numpy, pandas, pyarrow, pillow, pydantic alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LACKING = (
    "ray",
    "yaml",
    "cyclopts",
    "matplotlib",
    "scipy",
    "safetensors",
    "tensorboardX",
    "jinja2",
    "kaggle",
    "requests",
    "py7zr",
    "timm",
    "sklearn",
    "psutil",
)
# Found by every Python that starts with this folder on its path, those that the bench starts included.
BLOCKER = """
import sys
from importlib.machinery import PathFinder
class Lacking:
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {lacking!r} else PathFinder.find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Lacking()
"""


@pytest.fixture
def bench(tmp_path):
    """Runs the command where the named packages are lacking."""

    def run(*words, lacking=LACKING):
        (tmp_path / "sitecustomize.py").write_text(BLOCKER.format(lacking=set(lacking)))
        path = f"{tmp_path}{os.pathsep}{ROOT}"
        return subprocess.run(
            [sys.executable, "-m", "raytrain.bench", *words],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
        )

    return run


def test_the_training_part_runs_and_writes_its_figures(bench, tmp_path):
    out = tmp_path / "bench.json"
    words = [
        "--tiles",
        "24",
        "--arch",
        "resnet18",
        "--stage",
        "32:8",
        "--pairs",
        "1",
        "--steps",
        "1",
    ]
    done = bench(*words, "--only", "decode,train", "--precision", "fp32", "--json", str(out))
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    figures = {figure["name"]: figure for figure in found["figures"]}
    stage = ("ceiling", "loop", "ratio", "cache", "augmented", "validation", "epoch")
    assert list(figures) == [
        "decode",
        *(f"train.stage-1-32.{name}" for name in stage),
        "memory.host",
    ]
    assert all(value > 0 for figure in figures.values() for value in figure["values"])
    loop, ceiling, ratio = (
        figures[f"train.stage-1-32.{name}"]["median"] for name in ("loop", "ceiling", "ratio")
    )
    assert ratio == loop / ceiling
    assert (
        found["command"].startswith("python -m raytrain.bench --tiles 24 ")
        and found["machine"]["cores"] >= 1
    )
    for figure in figures.values():
        assert figure["label"] in done.stdout


def test_the_check_of_a_gpu_starts_too_and_finds_none(bench, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = bench("--check")
    assert (
        done.returncode == 5
        and done.stderr.startswith("error: torch ")
        and "Traceback" not in done.stderr
    )


@pytest.mark.slow
def test_a_schedule_runs_whole_and_says_what_it_left_out(bench, tmp_path):
    out = tmp_path / "bench.json"
    words = [
        "--tiles",
        "24",
        "--arch",
        "resnet18",
        "--stage",
        "32:8",
        "--epochs",
        "2",
        "--schedule",
    ]
    done = bench(*words, "--json", str(out), lacking=set(LACKING) - {"safetensors"})
    assert done.returncode == 0, done.stderr + done.stdout
    assert "TensorBoard events left out: the package tensorboardX is not installed" in done.stdout
    assert "the report left out" in done.stdout
    figures = {figure["name"]: figure for figure in json.loads(out.read_text())["figures"]}
    assert len(figures["schedule.f2"]["values"]) == 4 and 0 < figures["schedule.f2"]["max"] <= 1
    epochs, whole, first = (
        figures[name]["values"] for name in ("schedule.epoch", "schedule", "schedule.first-step")
    )
    assert 0 < first[0] < whole[0] and sum(epochs) < whole[0]
    assert figures["schedule"]["about"] == "resnet18, 24 tiles, 4 epochs, 32 px"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "trian"], "trian: not of decode"),
        (["--stage", "64"], "64 is not SIZE:BATCH"),
        (["--stage", "8:4"], "greater than or equal to 16"),
        (["--pairs", "0"], "0 is not a number of 1 or more"),
        (["--dataset", "nowhere"], "is not a dataset"),
        (["--tiles", "16", "--stage", "32:64"], "a batch size of 64 is more than"),
        (["--tiles", "8", "--schedule"], "safetensors is not installed"),
    ],
)
def test_a_mistake_is_answered_in_a_sentence(words, said, monkeypatch, capsys):
    from raytrain.bench.__main__ import main

    monkeypatch.setattr("raytrain.bench.schedule.NEEDED", "raytrain_safetensors")
    said = said.replace("safetensors", "raytrain_safetensors")
    try:
        code = main(words)
    except SystemExit as error:
        code = error.code
    error = capsys.readouterr().err
    assert code in (2, 3) and said in error and "Traceback" not in error


def test_the_flag_tiles_in_reaches_the_recipe_beside_the_number_of_tiles():
    from raytrain.bench.__main__ import _parser, _recipe

    options = _parser().parse_args(["--tiles", "24", "--tiles-in", "stream"])
    assert options.tiles == 24 and _recipe(options).tiles == "stream"
    assert _recipe(_parser().parse_args([])).tiles == "auto"
    with pytest.raises(SystemExit):
        _parser().parse_args(["--place", "stream"])
