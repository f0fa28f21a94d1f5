"""The Python API: the same files as the commands, objects that draw themselves, models without Ray."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import raytrain
from raytrain import storage
from raytrain.cli.main import run_command
from raytrain.data.dataset import all_names, read_images
from raytrain.errors import ConfigError, DataError
from raytrain.evaluation import predictions

FEW_STAGES = [{"size": 32, "epochs": 1, "lr": 0.01}]


@pytest.fixture(scope="module")
def opened(dataset):
    return raytrain.open_dataset(dataset.path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("api")


@pytest.fixture
def recipe(opened, folder):
    values = {
        "dataset": opened.path,
        "storage": str(folder),
        "num_workers": 1,
        "train": {"batch_size": 32},
        "stages": FEW_STAGES,
    }
    return raytrain.load_recipe("quickstart", values)


@pytest.fixture
def run(recipe, folder, in_this_process):
    """Trained by the first test that needs it."""
    if not (folder / "first").exists():
        raytrain.train(recipe, name="first")
    return raytrain.open_run("first", storage_path=str(folder))


def test_the_import_is_quick_and_loads_neither_torch_nor_ray():
    program = """
import sys, time
began = time.perf_counter()
import raytrain
seconds = time.perf_counter() - began
print(seconds, [name for name in ("torch", "ray", "pandas", "matplotlib") if name in sys.modules])
raytrain.open_dataset, raytrain.images_in, raytrain.load_recipe
print([name for name in ("torch", "ray") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    first, second = done.stdout.splitlines()
    seconds, _, loaded = first.partition(" ")
    assert (loaded, second) == ("[]", "[]")
    # It imports nothing. The bound is generous, since other tests share the machine.
    assert float(seconds) < 0.2


def test_every_name_is_documented_and_entry_points_show_an_example():
    for name in raytrain.__all__:
        entry = getattr(raytrain, name)
        assert entry.__doc__, name
        is_ours = entry.__module__ == "raytrain.api"
        if is_ours and name not in ("Figure", "Search", "Evaluation"):
            assert "Example:" in entry.__doc__, name
    assert sorted(raytrain.__all__) == sorted(raytrain.api.__all__)
    assert set(raytrain.__all__) <= set(dir(raytrain))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = raytrain.trian


def test_a_dataset_draws_itself(opened):
    assert len(opened) == 160
    picture, labels = opened[3]
    (content,) = read_images(opened, [3])
    assert picture.size == (opened.tile_size, opened.tile_size)
    of_file = Image.open(io.BytesIO(content)).convert("RGB")
    assert np.array_equal(np.asarray(picture), np.asarray(of_file))
    assert labels and set(labels) <= set(opened.classes)
    assert opened[-1][1] == opened[159][1]
    with pytest.raises(IndexError):
        opened[160]
    assert "160 tiles" in repr(opened)
    plain, augmented = opened.show_batch(tiles=6), opened.show_batch(tiles=2, augmented=True)
    assert plain.image.size != augmented.image.size
    assert plain == opened.show_batch(tiles=6) != opened.show_batch(tiles=6, seed=1)
    assert plain._repr_png_() == plain.png


def test_a_figure_is_saved_and_says_how(opened, tmp_path):
    figure = opened.show_batch(tiles=1)
    path = figure.save(tmp_path / "batch.png")
    assert Path(path).read_bytes() == figure.png
    assert ".save(" in repr(figure)


def test_training_leaves_the_files_of_the_command(run, recipe, folder, in_this_process):
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    words = ["train", "--config", str(folder / "recipe.yaml"), "--name", "second"]
    assert run_command(words) == 0
    of_command = {path.relative_to(folder / "second") for path in (folder / "second").rglob("*")}
    of_python = {path.relative_to(folder / "first") for path in (folder / "first").rglob("*")}
    events = {path for path in of_command | of_python if "tfevents" in path.name}
    assert of_python - events == of_command - events
    one, two = (
        predictions.read(str(folder / n / "predictions.parquet")) for n in ("first", "second")
    )
    assert np.array_equal(one.logits, two.logits)
    assert Path(run.report).exists()


def test_a_run_draws_itself(run):
    assert len(run.history) == 1 and len(run.steps) == 4
    for figure in (run.plot_losses(), run.plot_lr(), run.plot_scores(), run.show_results()):
        assert figure.image.width > 400


def test_the_model_predicts_what_predict_writes(run, opened, folder):
    model = run.load_model()
    assert isinstance(model, torch.nn.Module) and not model.training
    found = predictions.read(storage.join(run.path, "predictions.parquet"))
    assert model.classes == found.classes and model.size == 32
    rows = [all_names(opened).index(name) for name in found.names]
    files = []
    for name, content in zip(found.names, read_images(opened, rows), strict=True):
        files.append(folder / f"{name}.jpg")
        files[-1].write_bytes(content)
    # Files, pictures and arrays of the same pixels.
    of_files = model.logits(files)
    assert np.allclose(of_files, found.logits, atol=1e-5)
    pictures = [Image.open(file) for file in files[:3]]
    assert np.allclose(model.logits(pictures), of_files[:3], atol=0.05)
    arrays = [np.asarray(picture.convert("RGB")) for picture in pictures]
    assert np.array_equal(model.logits(np.stack(arrays)), model.logits(pictures))
    table = model.probabilities(files[:2])
    assert list(table.columns) == list(found.classes) and list(table.index) == [
        str(f) for f in files[:2]
    ]
    assert np.allclose(table.to_numpy(), 1 / (1 + np.exp(-of_files[:2].astype(float))))


def test_a_model_decides_labels_as_the_run_recommends(run, folder):
    content = json.loads((Path(run.path) / "thresholds.json").read_text())
    model = run.load_model()
    assert model.decision.name == content["recommended"]
    other = run.load_model("stage-1-32")
    assert other.thresholds == dict.fromkeys(other.classes, 0.2)
    file = next(folder.glob("*.jpg"))
    (labels,) = other.labels(file)
    probabilities = other.probabilities(file).iloc[0]
    expected = tuple(probabilities.index[probabilities > 0.2]) or (probabilities.idxmax(),)
    assert labels == expected


def test_a_grey_array_is_the_grey_picture(run, opened):
    model = run.load_model()
    picture = opened[0][0].convert("L")
    grey = np.asarray(picture)
    known = model.logits(picture)
    assert np.array_equal(model.logits(grey), known)
    assert np.array_equal(model.logits(grey[:, :, np.newaxis]), known)


def test_a_picture_that_cannot_be_read_is_named(run, tmp_path):
    model = run.load_model()
    with pytest.raises(DataError, match="no picture"):
        model.probabilities(tmp_path / "missing.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"broken\.jpg"):
        model.probabilities([tmp_path / "broken.jpg"])
    with pytest.raises(DataError, match="is a folder, not a picture"):
        model.labels(tmp_path)
    with pytest.raises(DataError, match=r"shape \(64, 64, 2\)"):
        model.probabilities(np.zeros((64, 64, 2), np.uint8))
    with pytest.raises(DataError, match="float64") as caught:
        model.probabilities(np.zeros((64, 64, 3)))
    assert "give an array uint8 (H, W, 3), a PIL picture" in caught.value.fix
    assert model.probabilities([]).shape == (0, len(model.classes))


def test_evaluate_gives_the_scores_of_the_command(run, folder, capsys):
    judged = raytrain.evaluate(run)
    out = str(folder / "evaluation")
    assert (
        run_command(["evaluate", storage.join(run.path, "predictions.parquet"), "--out", out]) == 0
    )
    assert judged.text in capsys.readouterr().out
    written = pd.read_csv(storage.join(out, "per_label.csv"))
    assert set(judged.labels.index) == set(written["label"])
    (score,) = judged.scores.values()
    assert 0 < score < 1 and repr(judged) == judged.text
    again = raytrain.evaluate(storage.join(run.path, "predictions.parquet"), out=folder / "again")
    assert Path(again.report).exists() and again.scores == judged.scores


def test_a_run_that_does_not_exist_is_a_sentence(folder):
    with pytest.raises(ConfigError, match="raytrain runs list"):
        raytrain.open_run("nothing", storage_path=str(folder))


def test_predict_and_ingest_use_ray(run, cluster, opened, folder, tiles):
    images, labels = tiles
    found = raytrain.images_in(images).label_from_file(labels).split(by="random", valid=0.2, seed=1)
    made = raytrain.ingest(found, folder / "made")
    assert len(made) == 160 and made[0][1]
    table = raytrain.predict(run, opened, out=folder / "valid.parquet")
    known = predictions.read(storage.join(run.path, "predictions.parquet"))
    assert np.allclose(table.loc[list(known.names)].to_numpy(), known.probability, atol=1e-5)
    assert raytrain.evaluate(folder / "valid.parquet").labels.shape[0] == len(opened.classes)
