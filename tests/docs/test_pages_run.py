"""Runs the commands of README and of the pages as they are printed, each page in a folder of its own.

What a page takes for granted lies there: small synthetic tiles in place of Planet's, runs of the names that it uses. The
network is that of the tests, from random weights, and each stage of a named recipe has one epoch. Commands that are marked `not run here` are left out.
"""

import json
import re
import shlex
import shutil

import numpy as np
import pages
import pandas as pd
import pytest
from handmade import NETWORK, tiff

from raytrain.cli.main import run_command
from raytrain.config import loading
from raytrain.data import synthetic
from raytrain.evaluation import predictions

pytestmark = pytest.mark.slow

# Training needs a full batch of 64 tiles after a fifth was taken for validation.
TILES = 100


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    """A folder like that of `raytrain download planet`, with synthetic tiles."""
    base = tmp_path_factory.mktemp("planet")
    images, labels = synthetic.write(base, TILES, seed=3)
    folder = base / "tiles"
    for name in ("train-jpg", "test-jpg", "test-jpg-additional"):
        (folder / name).mkdir(parents=True)
    shutil.copy(labels, folder / "train_v2.csv")
    pictures = sorted(images.iterdir())
    for path in pictures:
        shutil.copy(path, folder / "train-jpg")
    for name, some in (("test-jpg", pictures[:6]), ("test-jpg-additional", pictures[6:9])):
        for number, path in enumerate(some):
            shutil.copy(path, folder / name / f"{name}_{number}.jpg")
    rows = [
        path.stem
        for name in ("test-jpg", "test-jpg-additional")
        for path in sorted((folder / name).iterdir())
    ]
    sample = pd.DataFrame({"image_name": rows, "tags": "primary"})
    sample.to_csv(folder / "sample_submission_v2.csv", index=False)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch, cluster, in_this_process):
    """An empty folder in which the commands of a page run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYTRAIN_MODEL__ARCH", NETWORK)
    monkeypatch.setenv("RAYTRAIN_MODEL__WEIGHTS", "none")
    whole = loading._recipe_text

    def short(name):
        text = whole(name)
        return re.sub(r"epochs: \d+", "epochs: 1", text) if name in loading.recipe_names() else text

    monkeypatch.setattr(loading, "_recipe_text", short)
    return tmp_path


def run(*words):
    code = run_command([str(word) for word in words])
    assert code == 0, f"exit code {code}: raytrain {shlex.join(map(str, words))}"


def run_page(name):
    """Runs all commands of a page that are not marked. Returns how many they were."""
    count = 0
    for block in pages.blocks(pages.page(name)):
        if block.language != "sh":
            continue
        for command in pages.commands(block):
            if command.not_run or command.words[0] != "raytrain":
                continue
            print(f"{command.where}: {command.text}")
            run(*command.words[1:])
            count += 1
    return count


# What pages take for granted


def planet(here, painted):
    """The folder `tiles` and the dataset `planet`."""
    shutil.copytree(painted, here / "tiles")
    run(
        "ingest", "--images", "tiles/train-jpg", "--labels", "tiles/train_v2.csv", "--out", "planet"
    )


def short_run(name, *more):
    """A run of the lesson's four stages."""
    run("train", "--config", "planet-resnet18", "--name", name, *more)


def photos(here, painted):
    """A folder of pictures with a table of labels, and a folder of folders."""
    shutil.copytree(painted / "train-jpg", here / "photos")
    shutil.copy(painted / "train_v2.csv", here / "labels.csv")
    for number, path in enumerate(sorted((here / "photos").iterdir())):
        folder = here / "classes" / ("forest", "water", "road")[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)


def digits(here, painted):
    """Pictures in `digits/train/3` and so on, and some without labels in `digits/test`."""
    for number, path in enumerate(sorted((painted / "train-jpg").iterdir())[:60]):
        folder = here / "digits" / ("valid" if number % 4 == 0 else "train") / "37"[number % 2]
        if number >= 54:
            folder = here / "digits" / "test"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)


def four_bands(here):
    """TIFF tiles of four bands with their labels."""
    (here / "four-bands").mkdir()
    draw = np.random.default_rng(0)
    rows = []
    for number in range(48):
        name = f"tile_{number}"
        values = draw.integers(0, 4000, (32, 32, 4), dtype=np.uint16)
        (here / "four-bands" / f"{name}.tif").write_bytes(tiff(values))
        rows.append({"image_name": name, "tags": ("water", "water road")[number % 2]})
    pd.DataFrame(rows).to_csv(here / "labels.csv", index=False)


# The pages


def test_readme(here, painted):
    shutil.copytree(painted, here / "tiles")
    photos(here, painted)
    assert run_page("README.md") == 9
    shutil.copy(next((here / "tiles" / "train-jpg").iterdir()), "tile.jpg")
    (code,) = [one for one in pages.blocks(pages.page("README.md")) if one.language == "python"]
    exec(compile(code.text, "README.md", "exec"), {})
    submitted = pd.read_csv("submission.csv")
    assert list(submitted) == ["image_name", "tags"] and len(submitted) == 9


def test_from_planet_tiles_to_a_submission(here, painted):
    shutil.copytree(painted, here / "tiles")
    assert run_page("planet.md") == 7
    assert list(pd.read_csv("submission.csv")["image_name"]) == list(
        pd.read_csv("tiles/sample_submission_v2.csv")["image_name"]
    )


def test_start(here):
    assert run_page("start.md") == 1


def test_your_own_tiles(here, painted, capsys):
    planet(here, painted)
    digits(here, painted)
    four_bands(here)
    pictures = sorted((here / "tiles" / "train-jpg").iterdir())
    (here / "images").mkdir()
    rows = []
    for number, path in enumerate(pictures[:40]):
        shutil.copy(path, here / "images")
        part = ("train", "train", "validation", "test")[number % 4]
        rows.append(
            {
                "patch_id": path.stem,
                "labels": ["Arable land", "Pastures"][: 1 + number % 2],
                "split": part,
            }
        )
    pd.DataFrame(rows).to_parquet("metadata.parquet")
    # Of the page's second block: it predicts with a run of this name.
    run("ingest", "--images", "digits", "--labels", "folders", "--split", "folder", "--valid-values", "valid",
        "--test-folder", "test", "--out", "digits-first")  # fmt: skip
    short_run("digits", "--dataset", "digits-first", "--data.split", "folder")
    # Of the page's block on submissions: one tile of the sample could not be predicted.
    short_run("first", "--dataset", "planet")
    run("predict", "--checkpoint", "first", "--images", "tiles/test-jpg", "--out", "test.parquet")
    names = [*(path.stem for path in (here / "tiles" / "test-jpg").iterdir()), "gone"]
    pd.DataFrame({"image_name": names, "tags": "clear"}).to_csv(
        "sample_submission_v2.csv", index=False
    )
    assert run_page("data.md") == 18


def test_decisions(here, painted):
    planet(here, painted)
    for name, seed in (("first", 1), ("second", 2)):
        short_run(name, "--dataset", "planet", "--train.seed", seed)
        shutil.copytree(here / "runs" / name, here / name)
    shutil.copy("first/predictions.parquet", "P.parquet")
    names = predictions.read("P.parquet").names
    pd.DataFrame({"image_name": names, "scene": [f"s{i % 8}" for i in range(len(names))]}).to_csv(
        "scenes.csv", index=False
    )
    run("predict", "--checkpoint", "first", "--images", "tiles/test-jpg", "--out", "test.parquet")
    run(
        "evaluate",
        "P.parquet",
        "--exactly-one",
        "clear,cloudy,haze,partly_cloudy",
        "--alone",
        "cloudy",
        "--out",
        "evaluation",
    )
    weights_of_the_tests("resnet18.pth")
    assert run_page("decisions.md") == 10


def test_recipes(here, painted):
    planet(here, painted)
    short_run("first", "--dataset", "planet")
    assert run_page("recipes.md") == 5


def test_runs(here, painted):
    planet(here, painted)
    assert run_page("training.md") == 2


def test_searches(here, painted):
    planet(here, painted)
    shutil.copytree(pages.DOCS / "spaces", here / "docs" / "spaces")
    assert run_page("searches.md") == 1


def test_tasks(here, painted):
    digits(here, painted)
    shutil.copytree(painted / "train-jpg", here / "train-jpg")
    shutil.copytree(painted / "train-jpg", here / "tiles")
    names = [path.stem for path in sorted((here / "tiles").iterdir())]
    pd.DataFrame(
        {"image_name": names, "label": [f"scene {i % 3}" for i in range(len(names))]}
    ).to_csv("scenes.csv", index=False)
    recipe = next(
        block for block in pages.blocks(pages.page("tasks.md")) if block.language == "yaml"
    )
    (here / "mnist.yaml").write_text(recipe.text)
    weights_of_the_tests("resnet18.pth")
    assert run_page("tasks.md") == 7


def weights_of_the_tests(path):
    """Writes weights that fit the network of the tests, as a file that `--model.weights` takes."""
    import torch

    from raytrain.models import bodies

    network = bodies.timm_network(NETWORK.removeprefix("timm:"))
    torch.save(network.state_dict(), path)


def test_python(here, painted):
    """All examples but the first two, which tests/distributed/test_ingest.py runs."""
    planet(here, painted)
    short_run("first", "--dataset", "planet")
    blocks = [
        block for block in pages.blocks(pages.page("python.md")) if block.language == "python"
    ]
    for block in blocks[2:]:
        exec(compile(block.text, "python.md", "exec"), {})
    assert len(blocks) == 5 and (here / "results.png").exists()


def test_the_metric_of_the_page_can_be_used(here, painted, monkeypatch):
    planet(here, painted)
    (code,) = [
        block for block in pages.blocks(pages.page("tasks.md")) if block.language == "python"
    ]
    (here / "my_metrics.py").write_text(code.text)
    short_run("first", "--dataset", "planet", "--metrics", "my_metrics:recall")
    run(
        "evaluate",
        "runs/first/predictions.parquet",
        "--metrics",
        "my_metrics:recall",
        "--out",
        "judged",
    )
    assert json.loads((here / "judged" / "metrics.json").read_text())["own"]["recall"] >= 0
