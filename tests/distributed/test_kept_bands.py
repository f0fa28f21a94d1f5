"""Tiles of four bands of 16 bits from files to predictions, by the commands."""

import json

import numpy as np
import pytest
import yaml
from handmade import tiff
from odd_images import JPEG, PNG, four_bands

from raytrain import runs
from raytrain.cli.main import run_command
from raytrain.config import Statistics
from raytrain.data.bands import KeptBands
from raytrain.data.dataset import all_names, decoded_images, open_dataset, read_images
from raytrain.data.tile_format import TileFormat
from raytrain.distributed import ingest as module
from raytrain.distributed.predict import Predictor
from raytrain.distributed.preflight import check_recipe
from raytrain.errors import ConfigError
from raytrain.evaluation import predictions

FOUR = TileFormat(4, "uint16", (1, 2, 3, 4))
SIDE = 32
COUNT = 48
VALUES = np.random.default_rng(0).integers(0, 65536, (COUNT, SIDE, SIDE, 4), np.uint16)
FILES = {f"t{number}.tif": tiff(values) for number, values in enumerate(VALUES)}
# Refused in a dataset of four bands of 16 bits, by kind.
REFUSED = {
    "a.jpg": (JPEG, "bands"),
    "b.png": (PNG, "bands"),
    "c.tif": (four_bands((1, 2, 3)), "bands"),
    "d.tif": (tiff(VALUES[0].astype(np.uint8)), "16-bit"),
    "e.tif": (tiff(VALUES[0].astype(np.float32)), "16-bit"),
    "f.tif": (FILES["t0.tif"][:3000], "truncated"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of tiles and the label file beside it, the refused ones last."""
    path = tmp_path_factory.mktemp("bands")
    (path / "tiles").mkdir()
    lines = ["image_name,tags"]
    for number, (name, content) in enumerate(FILES.items()):
        (path / "tiles" / name).write_bytes(content)
        lines.append(f"t{number},{'water' if number % 2 else 'land'}")
    for name, (content, _) in REFUSED.items():
        (path / "tiles" / name).write_bytes(content)
        lines.append(f"{name[0]},land")
    (path / "labels.csv").write_text("\n".join(lines) + "\n")
    return path


def ingest_command(folder, *flags):
    where = ["--images", str(folder / "tiles"), "--labels", str(folder / "labels.csv")]
    return ["ingest", *where, "--out", str(folder / "dataset"), *flags]


@pytest.fixture(scope="module")
def four(folder):
    import ray

    if not ray.is_initialized():
        ray.init(address="local", num_cpus=2, log_to_driver=False)
    assert run_command(ingest_command(folder, "--bands", "1,2,3,4")) == 0
    return open_dataset(str(folder / "dataset"))


def recipe_file(folder, **data):
    values = {
        "model": {"weights": "none"},
        "data": {"normalize": "dataset", **data},
        "train": {"batch_size": 16, "threads": 1, "precision": "fp32"},
        "stages": [{"size": SIDE, "epochs": 1, "freeze": False, "lr": 0.001}],
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def train_command(folder, dataset, *flags):
    where = ["--dataset", dataset.path, "--storage", str(folder / "runs")]
    return ["train", "--config", recipe_file(folder), *where, *flags]


@pytest.fixture
def trained(folder, four, in_this_process):
    path = folder / "runs" / "first"
    if not path.exists():
        assert run_command(train_command(folder, four, "--name", "first")) == 0
    return path


# Ingest


def test_the_files_are_stored_as_they_are_and_the_manifest_says_what_they_hold(four):
    manifest = four.manifest
    assert manifest["schema_version"] == 2 and four.tile_format == FOUR
    keys = {key: manifest[key] for key in ("channels", "dtype", "bands")}
    assert keys == {"channels": 4, "dtype": "uint16", "bands": [1, 2, 3, 4]}
    assert manifest["source"]["bands"] == {"bands": [1, 2, 3, 4]} and manifest["tile_size"] == SIDE
    names = all_names(four)
    assert sorted(names) == sorted(name.removesuffix(".tif") for name in FILES)
    for name, content in zip(names, read_images(four, range(COUNT)), strict=True):
        assert content == FILES[f"{name}.tif"]
    for name, tile in zip(names, decoded_images(four, range(COUNT), SIDE), strict=True):
        np.testing.assert_array_equal(tile, VALUES[int(name[1:])])


def test_files_of_other_tiles_stand_in_the_quarantine_with_kind_and_reason(folder, four):
    lines = (folder / "dataset" / "quarantine.jsonl").read_text().splitlines()
    found = {}
    for record in map(json.loads, lines):
        assert record["detail"]
        found[record["path"].rpartition("/")[2]] = record["kind"]
    assert found == {name: kind for name, (_, kind) in REFUSED.items()}


def test_the_same_command_again_finds_its_dataset_and_other_bands_are_refused(folder, four, capsys):
    assert run_command(ingest_command(folder, "--bands", "1,2,3,4")) == 0
    said = capsys.readouterr().out
    assert "is there already" in said and "tiles keep bands 1,2,3,4 of 16 bits" in said
    assert "--data.normalize dataset" in said.splitlines()[-1]
    for flags in (["--bands", "1,2,3"], ["--bands", "3,2,1", "--scale", "0,10000"]):
        assert run_command(ingest_command(folder, *flags)) == 3
        assert "made with other bands" in capsys.readouterr().err


def index_of(folder, names):
    import pandas as pd

    return pd.DataFrame({"path": [str(folder / "tiles" / name) for name in names]})


def test_the_first_usable_file_in_the_order_of_the_labels_says_which_type(folder):
    kept = KeptBands((1, 2, 3, 4))

    def found(*names):
        return module._format_of_first(index_of(folder, names), kept).dtype

    assert found("t0.tif", "d.tif") == "uint16"
    assert found("d.tif", "t0.tif") == "uint8"
    assert found("a.jpg", "gone.tif", "f.tif", "e.tif", "t1.tif") == "uint16"
    assert module._format_of_first(index_of(folder, ["a.jpg"]), kept) == TileFormat(
        4, "uint8", (1, 2, 3, 4)
    )


# Training


def test_a_run_keeps_the_numbers_that_its_start_computed(folder, four, trained):
    text = yaml.safe_load((trained / "config.yaml").read_text())
    numbers = Statistics.model_validate(text["data"]["normalize"])
    train = four.part_rows("random", "train")
    pixels = np.stack(list(decoded_images(four, train.tolist(), SIDE))) / 65535
    np.testing.assert_allclose(numbers.mean, pixels.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(numbers.std, pixels.std((0, 1, 2)), atol=1e-6)
    run = runs.find("first", str(folder / "runs"))
    recipe, _ = check_recipe(run.recipe, run)
    assert recipe.data.normalize == numbers
    meta = json.loads((trained / "checkpoints" / "last" / "meta.json").read_text())
    assert Statistics.model_validate(meta["normalize"]) == numbers


@pytest.mark.usefixtures("in_this_process")
def test_what_does_not_fit_four_bands_is_refused_before_anything_starts(
    folder, four, trained, tiles, dataset, capsys
):
    for flags, word in (
        (["--data.normalize", "imagenet"], "data.normalize = imagenet, but the dataset holds"),
        (["--data.normalize", "{mean: [0.5], std: [0.2]}"], "data.normalize has 1 means"),
    ):
        assert run_command(train_command(folder, four, "--name", "second", *flags)) == 2
        assert word in (said := capsys.readouterr().err) and "--data.normalize dataset" in said
    command = train_command(folder, dataset, "--name", "second", "--data.normalize", "none")
    last = str(trained / "checkpoints" / "last")
    assert run_command([*command, "--init-from", last]) == 2
    assert not (folder / "runs" / "second").exists()


def test_a_checkpoint_of_rgb_starts_no_run_on_four_bands(folder, four, tmp_path, capsys):
    from handmade import NETWORK

    from raytrain.checkpoints import writing
    from raytrain.models import networks

    meta = {
        "classes": four.classes,
        "arch": NETWORK,
        "normalize": "none",
        "stage": 1,
        "epoch": 1,
        "f2": 0.5,
    }
    writing.save(str(tmp_path / "rgb"), networks.build(NETWORK, 2, 0.5), meta)
    command = train_command(folder, four, "--name", "third", "--data.normalize", "none")
    assert run_command([*command, "--init-from", str(tmp_path / "rgb")]) == 2
    said = capsys.readouterr().err
    assert "was trained on tiles of 8-bit RGB, the dataset holds bands 1,2,3,4 of 16 bits" in said


# Predictions


def test_predictions_of_files_are_those_of_the_dataset(folder, four, trained):
    import pandas as pd

    found = predictions.read(str(trained / "predictions.parquet"))
    names = [f"{name}.tif" for name in found.names]
    block = pd.DataFrame({"order": range(len(names)), "image_name": names, "row": -1})
    block["path"] = [str(folder / "tiles" / name) for name in names]
    block["target"] = [np.zeros(2, np.uint8)] * len(names)
    block["known"] = True
    done = Predictor(str(trained / "checkpoints" / "last"), False)(block)
    assert set(done["kind"]) == {""}
    np.testing.assert_allclose(np.stack(list(done["logits"])), found.logits, atol=1e-5)


def test_predict_takes_the_bands_of_the_checkpoint_and_no_others(
    folder, trained, dataset, tmp_path, capsys
):
    command = ["predict", "--checkpoint", str(trained / "checkpoints" / "last")]
    command += ["--out", str(tmp_path / "p.parquet")]
    for flags, given in (
        (["--bands", "4,3,2,1"], "--bands 4,3,2,1"),
        (["--bands", "3,2,1", "--scale", "0,10000"], "--bands 3,2,1 --scale 0,10000"),
    ):
        assert run_command([*command, "--images", str(folder / "tiles"), *flags]) == 2
        said = capsys.readouterr().err
        assert given in said and "was trained on bands 1,2,3,4 of 16 bits" in said
    wrong = [name for name in dataset.classes if name not in ("land", "water")]
    assert wrong and run_command([*command, "--dataset", dataset.path]) == 2


def test_bands_that_are_kept_are_refused_by_a_checkpoint_of_rgb(tmp_path):
    from handmade import NETWORK

    from raytrain.checkpoints import reading, writing
    from raytrain.distributed.predict import _rule
    from raytrain.models import networks

    meta = {"stage": 1, "epoch": 1, "classes": ["a"], "arch": NETWORK}
    writing.save(str(tmp_path / "last"), networks.build(NETWORK, 1, 0.0), meta)
    checkpoint = reading.load(str(tmp_path / "last"))
    with pytest.raises(ConfigError, match="trained on 8-bit RGB") as caught:
        _rule(checkpoint, KeptBands((3, 2, 1)))
    assert "--bands 3,2,1 --scale LOW,HIGH" in caught.value.fix
    assert _rule(checkpoint, None) is None
