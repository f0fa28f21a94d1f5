"""Going on in the middle of an epoch: whatever ended the run, the same weights, averages and record to the bit."""

import hashlib
import io
import json
import random
from functools import partial

import pytest
import torch
from group import run_alone, run_group, save_at_once, trace
from handmade import NETWORK
from torch.multiprocessing import ProcessExitedException

from raytrain import storage
from raytrain.checkpoints import layout, reading, versions, writing
from raytrain.config import load_recipe
from raytrain.data.dataset import open_dataset
from raytrain.errors import ConfigError, DivergedError, StorageError
from raytrain.models import networks
from raytrain.training import decision, loop, lr_find, start
from raytrain.training.services import Hooks
from raytrain.training.setup import opened
from raytrain.training.stage import begin_stage
from raytrain.worker import Worker

# Five steps an epoch, the last one short.
STEPS, OPTIONS = 5, {"ema": 0.9, "mixup": 0.4, "accumulate": 2, "clip_norm": 1.0, "loss": "soft-f2"}


@pytest.fixture(scope="module")
def recipe(dataset):
    """Two epochs frozen, one unfrozen, one at 64 px."""
    train = {"batch_size": 30, "threads": 1, "ema": 0.9}
    smoke = load_recipe("smoke", {"dataset": dataset.path, "train": train})
    first = smoke.stages[0].model_copy(update={"epochs": 2})
    return smoke.model_copy(update={"stages": (first, *smoke.stages[1:3])})


def often(recipe):
    """The same with a checkpoint after every step."""
    return recipe.model_copy(
        update={"train": recipe.train.model_copy(update={"save_every_s": 0.0})}
    )


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """A run that ends after a step has the checkpoint of that step."""
    save_at_once(monkeypatch.setattr)


class Stopped(Exception):
    """Stands for whatever ends a process."""


def stop_at(batch_number):
    """A hook that ends the run as its n-th training batch begins."""
    seen = iter(range(10**6))

    def on_batch(batch):
        if batch.part == "train" and next(seen) == batch_number:
            raise Stopped

    return on_batch


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    run_alone(recipe, run)
    return trace(run)


def test_an_undisturbed_run_leaves_no_step_behind_and_the_best_epoch(whole):
    hashes, rows, _ = whole
    assert set(hashes) == {"best", "last", "stage-1-32", "stage-2-32", "stage-1-64"}
    best = max(range(4), key=lambda n: float(rows[n]["f2"]))
    same = {name for name in hashes if hashes[name] == hashes["best"]} - {"best"}
    assert {1: "stage-1-32", 2: "stage-2-32", 3: "stage-1-64"}.get(best) in (*same, None)


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 4))]
)
def test_a_run_stopped_at_random_steps_ends_with_the_same_bits(recipe, whole, tmp_path, seed):
    chance, run = random.Random(seed), tmp_path / "run"
    for _ in range(3):
        with pytest.raises(Stopped):
            run_alone(often(recipe), run, on_batch=stop_at(chance.randrange(1, 6)))
    run_alone(recipe, run)
    assert trace(run) == whole


def test_it_goes_on_from_the_very_step(recipe, tmp_path, logged):
    with pytest.raises(Stopped):
        run_alone(often(recipe), tmp_path / "run", on_batch=stop_at(STEPS + 3))
    found, _ = reading.find_latest(str(tmp_path / "run" / "checkpoints"))
    assert (
        found.position == (1, 1, 3) and found.meta["step"] == STEPS + 3 and found.meta["f2"] is None
    )
    seen = []
    run_alone(
        recipe,
        tmp_path / "run",
        on_batch=lambda batch: seen.append((batch.part, batch.epoch, batch.number)),
    )
    assert seen[0] == ("train", 2, 3)
    assert any("resuming in stage 1 epoch 2 after its step 3" in line for line in logged)


def test_every_option_goes_on_in_the_middle_of_an_epoch(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(lr_find, "range_test", partial(lr_find.range_test, steps=30))
    train = recipe.train.model_copy(update=OPTIONS)
    recipe = recipe.model_copy(update={"train": train, "lr": "auto", "select": "2"})
    run_alone(recipe, tmp_path / "whole")
    # The hook sees the two passes of every step.
    for passes in (7, 9):
        with pytest.raises(Stopped):
            run_alone(often(recipe), tmp_path / "cut", on_batch=stop_at(passes))
    run_alone(recipe, tmp_path / "cut")
    assert trace(tmp_path / "cut") == trace(tmp_path / "whole")


def stop_after(steps):
    """A hook that gives a reason to stop when it is asked for the n-th time."""
    asked = iter(range(10**6))
    return lambda: "SIGHUP" if next(asked) == steps else None


def test_a_range_test_stops_at_a_signal_and_what_was_trained_before_is_kept(
    recipe, tmp_path, monkeypatch
):
    monkeypatch.setattr(lr_find, "range_test", partial(lr_find.range_test, steps=30))
    # Every step is a decision.
    monkeypatch.setattr(decision, "EVERY_S", 0.0)
    auto = recipe.model_copy(update={"lr": "auto", "select": "1-2"})
    run_alone(auto, tmp_path / "whole")
    run = tmp_path / "run"
    batches = []
    done = run_alone(auto, run, stop=stop_after(5), on_batch=batches.append)
    # At the first range test: nothing to keep, and no step of the stage.
    assert done == {"stopped": "SIGHUP", "checkpoint": None} and len(batches) == 6
    assert not (run / "lr-find").exists() and not (run / "checkpoints").exists()
    done = run_alone(auto, run, stop=stop_after(35 + 2 * STEPS + 5), on_batch=batches.append)
    assert done["stopped"] == "SIGHUP" and done["stage"] == 1
    assert reading.load(done["checkpoint"]).position == (1, 2, 0)
    assert sorted(p.name for p in (run / "lr-find").iterdir()) == [
        "stage-1-32.csv",
        "stage-1-32.json",
    ]
    run_alone(auto, run)
    assert trace(run) == trace(tmp_path / "whole")


def test_the_newest_checkpoint_is_damaged_and_the_one_before_gives_the_same_bits(
    recipe, whole, tmp_path, logged
):
    with pytest.raises(Stopped):
        run_alone(often(recipe), tmp_path / "run", on_batch=stop_at(STEPS + 4))
    paths = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert len(paths) == layout.KEPT_STEPS
    content = bytearray((paths[-1] / "train_state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (paths[-1] / "train_state.pt").write_bytes(content)
    loop.fit(
        recipe,
        open_dataset(recipe.dataset),
        str(tmp_path / "run"),
        Worker(),
        Hooks(),
    )
    assert any("skipped a checkpoint" in line and paths[-1].name in line for line in logged)
    assert trace(tmp_path / "run") == whole


def killed_and_resumed(recipe, folder, world, kills):
    """The run with so many SIGKILLs, then to its end."""
    for kill in kills:
        with pytest.raises(ProcessExitedException):
            run_group(often(recipe), folder, world, record=False, kill=kill)
    run_group(recipe, folder, world, record=False)
    assert not list((folder / "checkpoints").glob("*.partial"))
    return trace(folder)


@pytest.mark.parametrize(
    "world", [1, 3, *(pytest.param(world, marks=pytest.mark.slow) for world in (2, 4))]
)
def test_a_killed_rank_and_the_same_command_again_give_the_same_bits(recipe, tmp_path, world):
    # The kill falls in the middle of the unfrozen stage's only epoch.
    short = recipe.model_copy(update={"select": "2"})
    run_group(short, tmp_path / "whole", world, record=False)
    found = killed_and_resumed(short, tmp_path / "cut", world, [(world - 1, 3)])
    assert found == trace(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_ten_killed_ranks_each_give_the_same_bits(recipe, tmp_path, world):
    run_group(recipe, tmp_path / "whole", world, record=False)
    wanted, chance, last = trace(tmp_path / "whole"), random.Random(world), 4 * STEPS
    for n in range(10):
        kills = [(chance.randrange(world), chance.randrange(1, last))]
        assert killed_and_resumed(recipe, tmp_path / str(n), world, kills) == wanted


def test_another_number_of_workers_sees_the_same_tiles_and_says_that_bits_may_differ(
    recipe, tmp_path, logged
):
    short = recipe.model_copy(update={"stages": recipe.stages[:1]})
    with pytest.raises(ProcessExitedException):
        run_group(often(short), tmp_path / "run", 2, record=True, kill=(1, STEPS - 1))
    found, _ = reading.find_latest(str(tmp_path / "run" / "checkpoints"))
    ranks = found.train_state()["ranks"]
    assert (
        len(ranks) == 2
        and found.position[:2] == (1, 0)
        and found.position.steps in (STEPS - 2, STEPS - 1)
    )
    data, run = open_dataset(short.dataset), str(tmp_path / "run")
    with opened(short, data, run, Worker(), Hooks()) as (job, state, services):
        assert any("2 workers so far, 1 from here" in line for line in logged)
        stepper = begin_stage(job, state, services, 1)
        record, steps = loop.begin_epoch(job, state, stepper, 1)
        loop.train_step(job, state, stepper, record, steps)
    assert record.done == found.position.steps + 1
    torch.testing.assert_close(
        torch.stack(record.outcomes[:-1]), ranks[0]["outcomes"] + ranks[1]["outcomes"]
    )
    mean = (ranks[0]["statistics"][0] + ranks[1]["statistics"][0]) / 2
    assert not torch.equal(ranks[0]["statistics"][0], mean)
    loop.fit(short, open_dataset(short.dataset), str(tmp_path / "run"), Worker(), Hooks())
    assert [float(row["f2"]) > 0 for row in trace(tmp_path / "run")[1]] == [True, True]


def test_a_gradient_that_is_not_finite_reaches_no_step_checkpoint(recipe, tmp_path):
    def poison(batch):
        if batch.part == "train" and (batch.epoch, batch.number) == (1, 3):
            batch.tensors["target"].fill_(float("nan"))

    with pytest.raises(DivergedError, match="step 4 of stage 1 epoch 1"):
        run_alone(often(recipe), tmp_path / "run", on_batch=poison)
    found, _ = reading.find_latest(str(tmp_path / "run" / "checkpoints"))
    assert found.position == (1, 0, 3)
    assert all(bool(value.isfinite().all()) for value in found.weights().values())


@pytest.mark.parametrize("when", ["within an epoch", "after an epoch"])
def test_a_reason_to_stop_leaves_a_checkpoint_of_the_step_that_was_just_done(
    recipe, whole, tmp_path, when
):
    batches = []

    def stop():
        within = len(batches) and batches[-1] == ("train", 2, 1)
        after = len(batches) and batches[-1][:2] == ("valid", 1)
        return "SIGTERM" if (within if when == "within an epoch" else after) else None

    hooks = {
        "on_batch": lambda batch: batches.append((batch.part, batch.epoch, batch.number)),
        "stop": stop,
    }
    result = run_alone(often(recipe), tmp_path / "run", **hooks)
    wanted = (1, 1, 2) if when == "within an epoch" else (1, 1, 0)
    assert result["stopped"] == "SIGTERM" and reading.load(result["checkpoint"]).position == wanted
    assert reading.find_latest(str(tmp_path / "run" / "checkpoints"))[0].position == wanted
    run_alone(recipe, tmp_path / "run")
    assert trace(tmp_path / "run") == whole


def test_a_start_from_classes_in_another_order_is_remapped_when_asked(recipe, dataset, tmp_path):
    run_alone(recipe.model_copy(update={"select": "1"}), tmp_path / "first")
    path = tmp_path / "first" / "checkpoints" / "stage-1-32"
    found = reading.load(str(path))
    theirs = found.meta["classes"][::-1]
    net = networks.build(NETWORK, len(theirs), 0.5)
    net.load_state_dict(found.weights())
    writing.save(str(tmp_path / "other"), net, found.meta | {"classes": theirs})
    settings = recipe.model_copy(update={"select": "2", "init_from": str(tmp_path / "other")})
    with pytest.raises(ConfigError, match="another order"):
        run_alone(settings, tmp_path / "run")
    settings = settings.model_copy(update={"remap_labels": True})
    with opened(settings, dataset, str(tmp_path / "run"), Worker(), Hooks()) as (_, state, _):
        head = state.model.head[-1].weight
    assert torch.equal(head, found.weights()["head.7.weight"].flip(0))


def test_the_optimiser_of_a_checkpoint_from_before_steps_were_kept_goes_on(recipe, tmp_path, whole):
    """Such a train_state.pt holds the optimiser's state alone."""
    older, newer = tmp_path / "older", tmp_path / "newer"
    for run in (older, newer):
        with pytest.raises(Stopped):
            run_alone(often(recipe), run, on_batch=stop_at(STEPS + 1))
        for path in (run / "checkpoints").glob("step-*"):
            storage.remove(str(path))
    last = reading.read(str(older / "checkpoints" / "last"))
    bare = io.BytesIO()
    torch.save(last.train_state()["optimizer"], bare)
    meta = dict(last.meta)
    del meta[versions.KEY]  # such a checkpoint says no version
    rewritten = last.files | {
        "train_state.pt": bare.getvalue(),
        "meta.json": json.dumps(meta).encode(),
    }
    manifest = {name: hashlib.sha256(content).hexdigest() for name, content in rewritten.items()}
    for name, content in (rewritten | {layout.MANIFEST: json.dumps(manifest).encode()}).items():
        (older / "checkpoints" / "last" / name).write_bytes(content)
    for run in (older, newer):
        run_alone(recipe, run)
    assert trace(older) == trace(newer) == whole


def test_workers_that_others_have_taken_over_from_write_no_record(recipe, tmp_path):
    def taken_over(batch):
        if batch.part == "valid":
            (tmp_path / "run" / "writer.json").write_text('{"token": "of the others"}')

    with pytest.raises(ConfigError, match="other workers train run by now"):
        run_alone(recipe, tmp_path / "run", on_batch=taken_over)
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert "writer.json" in left and not left & {
        "predictions.parquet",
        "history.csv",
        "metrics.jsonl",
        "ranks.csv",
    }


def test_rank_0_chooses_the_checkpoint_and_one_that_cannot_read_it_trains_from_nothing_else(
    recipe, tmp_path, monkeypatch
):
    with pytest.raises(Stopped):
        run_alone(often(recipe), tmp_path / "run", on_batch=stop_at(3))
    steps = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    chosen = [str(steps[0])]  # an older one than this rank would have found
    monkeypatch.setattr(
        start.dist, "broadcast_object_list", lambda box, src: box.__setitem__(slice(None), chosen)
    )
    found, _ = start._latest(str(tmp_path / "run"), Worker(1, 2, 1, 2))
    assert len(steps) > 1 and found.path == chosen[0]
    chosen[0] = str(tmp_path / "run" / "checkpoints" / "step-99999999")
    with pytest.raises(
        StorageError, match="rank 1 cannot read the checkpoint that rank 0 resumes from"
    ):
        start._latest(str(tmp_path / "run"), Worker(1, 2, 1, 2))
