"""The sides that train, on a handful of tiny tiles, and what is measured with them."""

import re
from contextlib import closing

import numpy as np
import pytest
import torch
from group import save_at_once
from handmade import encoded, scene, write_dataset

from raytrain.bench import generate, gpu
from raytrain.bench.comparisons import against_plain
from raytrain.bench.decode import decode_rate
from raytrain.bench.files import write_jpegs, write_labelled
from raytrain.bench.growth import memory_figures
from raytrain.bench.measurement import Measurement
from raytrain.bench.peer import PlainLoop, PlainSettings, augmentation
from raytrain.bench.sides import Ceiling, Loop, Saving, alone
from raytrain.bench.training import measure
from raytrain.checkpoints import saver
from raytrain.config import Model, Recipe, Stage, Train
from raytrain.data import images
from raytrain.data.dataset import damages, read_images
from raytrain.training.decision import Decisions

CLASSES = ["clear", "haze", "water"]
ROWS = 20  # 14 of them train: a batch of 8 and one of 6


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    tiles = {
        f"t{i}": (encoded(scene(i, 32), "JPEG" if i % 2 else "PNG"), " ".join(CLASSES[: i % 3 + 1]))
        for i in range(ROWS)
    }
    parts = ["train"] * 14 + ["valid"] * 6
    return write_dataset(
        tmp_path_factory.mktemp("bench") / "dataset", tiles, CLASSES, {"random": parts}
    )


@pytest.fixture
def recipe():
    stage = Stage(size=32, epochs=1, freeze=False, lr=1e-3)
    return Recipe(
        model=Model(arch="resnet18", weights="none"),
        train=Train(batch_size=8, precision="fp32"),
        stages=(stage,),
    )


@pytest.fixture
def loop(recipe, dataset, tmp_path):
    with closing(Loop(recipe, dataset, 1, alone(recipe), str(tmp_path))) as made:
        yield made


def weights(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()]).clone()


def test_the_loop_trains_and_goes_on_over_the_ends_of_epochs(loop):
    before, seen = weights(loop.opened.network), []
    counts = loop.tile_counts
    loop.tile_counts = (seen.append(count) or count for count in counts)
    assert loop.block(3) > 0 and loop.block(2) > 0
    assert seen == [8, 6, 8, 6, 8]
    assert not torch.equal(before, weights(loop.opened.network))
    assert (loop.name, loop.about) == ("train.stage-1-32", "resnet18 32 px batch 8 fp32")
    loop.tile_counts = counts


def test_the_rate_of_the_loop_is_tiles_over_seconds(loop, monkeypatch):
    clock = iter([100.0, 104.0])
    monkeypatch.setattr("raytrain.bench.sides.time.perf_counter", lambda: next(clock))
    assert loop.block(3) == (8 + 6 + 8) / 4.0


def test_the_ceiling_trains_the_same_network_and_reads_no_tile(loop, monkeypatch):
    ceiling = Ceiling.of(loop)
    assert ceiling.network is loop.opened.network
    assert ceiling.optimizer is loop.opened.optimizer
    assert tuple(ceiling.pixels.shape) == (8, 3, 32, 32) and tuple(ceiling.target.shape) == (8, 3)
    assert ceiling.pixels.is_contiguous(memory_format=torch.channels_last)
    before = weights(ceiling.network)
    monkeypatch.setattr(loop.opened, "fetched", None)
    monkeypatch.setattr(loop.opened, "steps", None)
    clock = iter([10.0, 12.0])
    monkeypatch.setattr("raytrain.bench.sides.time.perf_counter", lambda: next(clock))
    assert ceiling.block(3) == 3 * 8 / 2.0
    assert not torch.equal(before, weights(ceiling.network))


def test_measuring_a_stage_gives_its_figures(recipe, dataset, logged):
    found = {f.name: f for f in measure(recipe, dataset, pairs=2, block=1, parts=["train"])}
    stage = ("ceiling", "loop", "ratio", "cache", "augmented", "validation", "epoch")
    assert list(found) == [*(f"train.stage-1-32.{name}" for name in stage), "memory.host"]
    loop, ceiling, ratio = (
        found[f"train.stage-1-32.{name}"].values for name in ("loop", "ceiling", "ratio")
    )
    assert len(ratio) == 2 and ratio == tuple(a / b for a, b in zip(loop, ceiling, strict=True))
    assert found["train.stage-1-32.epoch"].about.endswith("14 + 6 tiles")
    assert any("round 2 of 2" in line for line in logged)


def test_checkpoints_come_at_the_interval_of_the_saver_and_the_rests_of_their_side_do_not_count(
    recipe, dataset, tmp_path, monkeypatch
):
    now = [0.0]
    monkeypatch.setattr("raytrain.checkpoints.saver.time.monotonic", lambda: now[0])
    # A decision after every step.
    monkeypatch.setattr(Decisions, "after_step", lambda self: self.decide())
    save_at_once(monkeypatch.setattr)
    with closing(Saving(recipe, dataset, 1, alone(recipe), str(tmp_path))) as side:
        side.block_with_save(2)
        assert (
            side.saves == 1
            and not side._is_busy()
            and list((tmp_path / "checkpoints").glob("step-*"))
        )
        now[0] += 1000.0
        side.block(2)
        assert side.saves == 1
        now[0] += 1000.0
        counts = side.tile_counts

        def slow():
            for count in counts:
                now[0] += saver.LEAST_INTERVAL_S / 4
                yield count

        side.tile_counts = slow()
        side.block(10)  # a pair of steps is an epoch, whose end saves in another way
        assert side.saves == 3


@pytest.mark.slow
def test_what_checkpoints_cost(recipe, dataset, monkeypatch):
    monkeypatch.setattr(saver, "LEAST_INTERVAL_S", 0.1)
    monkeypatch.setattr(saver, "TIMES_COST", 1)
    found = {f.name: f for f in measure(recipe, dataset, pairs=2, block=2, parts=["checkpoints"])}
    assert list(found) == [
        f"checkpoints.{name}" for name in ("loop", "without", "ratio", "saves", "cost")
    ]
    assert len(found["checkpoints.ratio"].values) == 2 and found["checkpoints.cost"].median > 0
    assert re.match(r"[0-9]+ MB; [0-9.]+ s for the first", found["checkpoints.cost"].about)


def test_files_hold_the_bytes_of_the_dataset_under_the_suffix_of_their_format(dataset, tmp_path):
    rows = [7, 2, 19]
    paths, targets = write_jpegs(dataset, rows, tmp_path / "files")
    assert [path.name for path in paths] == ["t7.jpg", "t2.png", "t19.jpg"]
    assert [path.read_bytes() for path in paths] == list(read_images(dataset, rows))
    assert targets.dtype == np.uint8 and (targets == dataset.targets[rows]).all()


def test_labelled_files_repeat_the_tiles_under_new_names(dataset, tmp_path):
    folder, labels = write_labelled(dataset, 2 * ROWS + 1, tmp_path)
    lines = labels.read_text().splitlines()
    assert len(list(folder.iterdir())) == len(lines) - 1 == 2 * ROWS + 1
    assert lines[0] == "image_name,tags" and lines[3] == lines[3 + ROWS].replace(
        "tile_22", "tile_2"
    )
    assert (folder / "tile_3.jpg").read_bytes() == (folder / "tile_23.jpg").read_bytes()
    assert (folder / "tile_3.jpg").read_bytes() == next(read_images(dataset, [3]))


@pytest.fixture
def files(dataset, tmp_path):
    return write_jpegs(dataset, [i for i in range(ROWS) if i % 2][:8], tmp_path / "files")


@pytest.mark.parametrize(
    "options", [{}, {"precision": "bf16", "channels_last": True, "our_network": True}]
)
def test_a_plain_loop_trains_two_epochs_on_files(files, options):
    paths, targets = files
    settings = PlainSettings("resnet18", 32, 3, 1, device=torch.device("cpu"), **options)
    with closing(PlainLoop(paths, targets, settings)) as plain:
        before = weights(plain.network)
        assert (
            plain.block(4) > 0
        )  # two batches of three to an epoch, the other two tiles are dropped
        assert torch.isfinite(weights(plain.network)).all() and not torch.equal(
            before, weights(plain.network)
        )
        ours = hasattr(plain.network, "head")
        assert ours is bool(options) and hasattr(plain.network, "fc") is not ours
        first = next(p for p in plain.network.parameters() if p.dim() == 4 and p.shape[1] > 1)
        assert first.is_contiguous(memory_format=torch.channels_last) is bool(options)
        loaders = plain.loader._iterator._workers
    assert not any(worker.is_alive() for worker in loaders)


def test_the_plain_loops_batches_are_augmented_pictures_with_their_targets(files):
    paths, targets = files
    settings = PlainSettings("resnet18", 24, 8, 0, device=torch.device("cpu"))
    with closing(PlainLoop(paths, targets, settings)) as plain:
        pixels, target = next(iter(plain.loader))
    assert tuple(pixels.shape) == (8, 3, 24, 24) and sorted(map(tuple, target.tolist())) == sorted(
        map(tuple, targets.astype(float).tolist())
    )
    names = [type(step).__name__ for step in augmentation(24)]
    assert names[0] == "RandomResizedCrop" and names[-2:] == ["ToTensor", "Normalize"]


def test_a_frozen_stage_is_not_compared_with_a_plain_loop(recipe, dataset, logged):
    frozen = recipe.model_copy(
        update={"stages": (recipe.stages[0].model_copy(update={"freeze": True}),)}
    )
    assert against_plain(Measurement(frozen, dataset, 1, "", pairs=1, block=1)) == []
    assert "not frozen" in logged[0]


def test_generated_tiles_are_a_whole_dataset_of_planets_format(tmp_path):
    made = generate.write_tiles(str(tmp_path / "made"), 70)
    assert (
        damages(made) == []
        and np.diff(made.shard_starts).tolist() == [64, 6]
        and made.tile_size == 256
    )
    assert len(made.part_rows("random", "valid")) == 14 and made.targets.any(1).all()
    contents = list(read_images(made, range(70)))
    pictures = [images.inspect(content) for content in contents]
    assert {(p.width, p.height, p.mode) for p in pictures} == {(256, 256, "CMYK")}
    assert 13_000 < np.mean([len(content) for content in contents]) < 17_000
    again = generate.write_tiles(str(tmp_path / "again"), 70)
    assert again.hash == made.hash


def test_generated_tiles_are_cached_beside_them_and_gone_afterwards(monkeypatch):
    monkeypatch.setenv("RAYTRAIN_CACHE", "mine")
    with generate.workplace(None, 8, 32) as made:
        cache, path = generate.os.environ["RAYTRAIN_CACHE"], generate.Path(made.path)
        assert cache != "mine" and path.exists()
    assert generate.os.environ["RAYTRAIN_CACHE"] == "mine" and not path.exists()


def test_the_decode_rate_counts_every_tile(dataset, monkeypatch):
    seen = []
    monkeypatch.setattr("raytrain.bench.decode.images.decode", lambda content: seen.append(content))
    (figure,) = decode_rate(dataset, 3)
    assert seen == list(read_images(dataset, range(ROWS))) * 3 and len(figure.values) == 3


def test_memory_that_grows_by_so_much_an_epoch_is_found():
    noise = [300_000_000 - 10_000_000 // (n + 1) for n in range(50)]
    slope = memory_figures([*noise, *(300_000_000 + 7_000 * n for n in range(50))])[1]
    assert slope.median == pytest.approx(7.0) and slope.about.endswith("last 50")


def test_gaps_between_kernels():
    spans = [(0, 2), (1, 3), (1, 2), (5, 6), (9, 10)]
    assert gpu.uncovered_share(spans) == pytest.approx(0.5)
    assert gpu.uncovered_share([(4, 5), (0, 4)]) == 0.0 and gpu.uncovered_share([]) == 1.0


def test_operations_of_a_step_are_three_times_those_of_the_forward_pass():
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(4 * 64, 5)
    )
    forward = 2 * (8 * 8 * 4 * 3 * 9 + 4 * 64 * 5)
    assert gpu.operations_per_tile(model, 8, torch.device("cpu")) == 3 * forward
    assert model.training
