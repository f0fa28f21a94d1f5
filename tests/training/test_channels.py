"""Training on other tiles than 8-bit RGB: what the network sees, learns and keeps."""

import json

import numpy as np
import pytest
import torch
from group import run_alone
from handmade import encoded, scene, tiff, write_dataset

from raytrain.checkpoints import fitting, reading
from raytrain.config import Augment, Statistics, load_recipe
from raytrain.data.tile_format import TileFormat
from raytrain.errors import ConfigError
from raytrain.evaluation import predictions
from raytrain.models import networks
from raytrain.training import normalization, transforms
from raytrain.training.footprint import footprint

CPU = torch.device("cpu")
FOUR = TileFormat(4, "uint16", (1, 2, 3, 4))
THREE = TileFormat(3, "uint16", (1, 2, 3))
SIDE = 32


def tiles_told_apart_by_band_4(count=200):
    """Noise in every band; in the fourth, and only there, tiles of one label are brighter."""
    generator = np.random.default_rng(7)
    tiles = {}
    for number in range(count):
        values = generator.integers(2000, 6000, (SIDE, SIDE, 4))
        bright = number % 2
        values[:, :, 3] += 1500 * bright
        tiles[f"t{number}"] = (tiff(values.astype(np.uint16)), "bright" if bright else "dark")
    return tiles


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """The same files with four and with three of their bands."""
    folder = tmp_path_factory.mktemp("bands")
    tiles = tiles_told_apart_by_band_4()
    # Half of both labels: by chance no network comes near the bounds below.
    parts = {"random": ["train" if number % 4 < 2 else "valid" for number in range(len(tiles))]}
    classes = ["bright", "dark"]
    return {
        form.channels: write_dataset(
            folder / str(form.channels), tiles, classes, parts, 32, SIDE, form
        )
        for form in (FOUR, THREE)
    }


def recipe_for(dataset, epochs=5, **data):
    """Trains a network of random weights without augmentation."""
    values = {
        "dataset": dataset.path,
        "model": {"weights": "none", "dropout": 0.0},
        "data": {
            "normalize": "dataset",
            "augment": {"flip": "none", "p_affine": 0, "p_lighting": 0},
        }
        | data,
        "train": {"batch_size": 16, "threads": 1, "precision": "fp32"},
        "stages": [{"size": SIDE, "epochs": epochs, "freeze": False, "lr": 0.005}],
        "select": None,
    }
    return load_recipe("smoke", values)


@pytest.fixture(scope="module")
def runs(datasets, tmp_path_factory):
    """A run on four bands and one on three."""
    folder = tmp_path_factory.mktemp("runs")
    for channels, dataset in datasets.items():
        run_alone(recipe_for(dataset), folder / str(channels))
    return folder


def accuracy(run):
    found = predictions.read(str(run / "predictions.parquet"))
    return float(((found.logits > 0) == (found.target > 0)).mean())


def test_a_network_learns_what_the_fourth_band_alone_tells(runs):
    assert accuracy(runs / "4") >= 0.95
    assert accuracy(runs / "3") < 0.7


def test_a_checkpoint_names_bands_and_numbers_and_older_programs_refuse_it(runs, datasets):
    meta = json.loads((runs / "4" / "checkpoints" / "last" / "meta.json").read_text())
    assert meta["schema_version"] == 3
    assert (meta["channels"], meta["dtype"], meta["bands"]) == (4, "uint16", [1, 2, 3, 4])
    found = normalization.resolved(recipe_for(datasets[4]), datasets[4]).data.normalize
    assert meta["normalize"] == meta["recipe"]["data"]["normalize"]
    assert Statistics.model_validate(meta["normalize"]) == found
    assert reading.load(str(runs / "4" / "checkpoints" / "last")).tile_format == FOUR


def test_a_run_that_resumes_keeps_its_numbers_and_its_bits(runs, datasets, tmp_path):
    recipe = recipe_for(datasets[4])
    seen = iter(range(10**6))

    def dies(batch):
        if batch.part == "train" and next(seen) == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_alone(recipe, tmp_path / "run", on_batch=dies)
    run_alone(recipe, tmp_path / "run")
    left, right = (
        reading.load(str(folder / "checkpoints" / "last")).weights()
        for folder in (runs / "4", tmp_path / "run")
    )
    assert all(torch.equal(left[key], right[key]) for key in left)


def test_a_checkpoint_starts_no_run_on_other_tiles(runs, datasets):
    three = reading.load(str(runs / "3" / "checkpoints" / "last"))
    classes, arch = three.meta["classes"], three.meta["arch"]
    fitting.check_fits(three, classes, arch, tiles=THREE)
    with pytest.raises(ConfigError) as caught:
        fitting.check_fits(three, classes, arch, tiles=FOUR)
    assert "tiles of bands 1,2,3 of 16 bits, the dataset holds bands 1,2,3,4" in caught.value.what
    with pytest.raises(ConfigError, match="the dataset holds 8-bit RGB"):
        fitting.check_fits(three, classes, arch)
    with pytest.raises(ConfigError, match="tiles of bands 1,2,3 of 16 bits"):
        recipe = recipe_for(datasets[4]).model_copy(update={"init_from": three.path})
        run_alone(recipe, runs / "refused")


# Pixels


def test_16_bits_become_numbers_from_0_to_1():
    values = torch.tensor([0, 1, 32768, 65535]).to(torch.uint16).reshape(1, 4, 1, 1)
    images = values.expand(1, 4, 8, 8).contiguous()
    wanted = torch.tensor([0, 1, 32768, 65535], dtype=torch.float64) / 65535
    found = transforms.valid_pixels(images, 8, "none", torch.float64)
    assert torch.equal(found[0, :, 3, 4], wanted)
    draws = transforms.draw(
        Augment(flip="none", p_affine=0, p_lighting=0), 1, torch.Generator().manual_seed(0)
    )
    found = transforms.train_pixels(images, draws, 8, "none", torch.float64)
    torch.testing.assert_close(found[0, :, 3, 4], wanted, rtol=0, atol=1e-6)
    assert found.shape == (1, 4, 8, 8)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_each_channel_has_its_own_mean_and_deviation():
    normalize = Statistics(mean=(0.1, 0.2, 0.3, 0.4), std=(0.5, 1.0, 2.0, 4.0))
    images = torch.full((2, 4, 8, 8), 65535).to(torch.uint16)
    found = transforms.valid_pixels(images, 8, normalize, torch.float64)
    wanted = torch.tensor([0.9 / 0.5, 0.8, 0.7 / 2, 0.6 / 4], dtype=torch.float64)
    torch.testing.assert_close(found[1, :, 0, 0], wanted)


# Normalisation


def test_imagenets_statistics_need_three_channels(datasets):
    recipe = recipe_for(datasets[4], normalize="imagenet")
    with pytest.raises(ConfigError, match="holds bands 1,2,3,4 of 16 bits") as caught:
        normalization.check(recipe, FOUR)
    assert "--data.normalize dataset" in caught.value.fix
    normalization.check(recipe, THREE)


def test_numbers_for_other_channels_are_refused(datasets):
    recipe = recipe_for(datasets[4], normalize={"mean": [0.5] * 3, "std": [0.2] * 3})
    with pytest.raises(ConfigError, match="has 3 means, but the dataset holds bands 1,2,3,4"):
        normalization.check(recipe, FOUR)
    normalization.check(recipe, THREE)


def test_a_recipe_holds_the_numbers_from_its_start_on(datasets):
    recipe = normalization.resolved(recipe_for(datasets[4]), datasets[4])
    assert isinstance(recipe.data.normalize, Statistics)
    assert load_recipe_of(recipe.to_yaml()) == recipe
    assert normalization.resolved(recipe, datasets[4]) is recipe
    train = datasets[4].part_rows("random", "train")
    # Of the fourth band: noise of 2000 to 5999, and 1500 more on every other tile.
    mean = (3999.5 + 1500 * (train % 2).mean()) / 65535
    assert recipe.data.normalize.mean[3] == pytest.approx(mean, rel=1e-2)


def load_recipe_of(text):
    import yaml

    from raytrain.config import validate

    return validate(yaml.safe_load(text), "the text")


def test_rgb_of_8_bits_may_take_its_own_statistics(tmp_path):
    tiles = {f"t{i}": (encoded(scene(i)), "a") for i in range(4)}
    parts = {"random": ["train", "train", "train", "valid"]}
    dataset = write_dataset(tmp_path / "rgb", tiles, ["a"], parts)
    recipe = recipe_for(dataset)
    found = normalization.resolved(recipe, dataset).data.normalize
    pixels = np.stack([scene(i) for i in range(3)]) / 255
    np.testing.assert_allclose(found.mean, pixels.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(found.std, pixels.std((0, 1, 2)), atol=1e-6)


# Memory


def test_more_channels_need_more_memory(datasets):
    recipe = recipe_for(datasets[4])
    three, four = (footprint(recipe, 2, CPU, channels) for channels in (3, 4))
    assert four.state > three.state
    # The batch, and its copies of augmentation.
    assert four.step - three.step >= 3 * 16 * SIDE * SIDE * 4


def test_a_network_says_how_many_channels_it_takes():
    assert networks.in_channels(torch.nn.Sequential()) == 3
    model = networks.build("resnet18", 2, 0.0, channels=4)
    assert networks.in_channels(model) == 4
    networks.check_sizes(model, "resnet18", [64])
